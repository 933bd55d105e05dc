"""What a trained network knows: nats by length, position, columns and depth; repair; and the closed
loop.

python -m experiments.network.evaluate FOLDER nats|loop|operations|chain [--columns 1]
    of FOLDER/weights.npz (`training release`), or else of FOLDER/checkpoint.npz
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Int

from experiments.network.candidates import draw_candidates
from experiments.network.examples import Examples, draw_examples, length_weights
from experiments.network.store import load_model
from experiments.network.training import Corpus, Recipe, make_corpus
from refinemath.corpus.build import build_table
from refinemath.corpus.exclusions import training_exclusions
from refinemath.corpus.signatures import signature_words
from refinemath.examples import SkeletonTable, draw_constants, draw_skeletons, rename
from refinemath.execution import additive_terms, evaluate_nodes
from refinemath.fitting import Points, levenberg_marquardt, project
from refinemath.network.moments import Candidate, no_candidate
from refinemath.network.spine import (
    ARITY,
    COLUMNS,
    END,
    SLOTS,
    from_spine,
    states,
    structure,
    to_spine,
)
from refinemath.weights import in_one_step

GROUPS = ((2, 5), (6, 8), (9, 12), (13, 16), (17, 24))
RECOVERED = 1e-6  # FVU in float32, after its numbers are fitted
FIRST_FRESH = 7  # tokens: nearly all shorter skeletons are in the table of the run


def fresh_table(folder: Path, recipe: Recipe, known: SkeletonTable, per_length: int) -> Corpus:
    """Skeletons of `FIRST_FRESH` and more tokens whose functions are not in the table of the run,
    and the run's own shorter ones; made once and kept in `fresh.npz`.
    """
    path, begin = folder / "fresh.npz", np.asarray(known.start)
    if not path.exists():
        own = np.asarray(known.tokens)
        words = signature_words(own[begin[FIRST_FRESH, 0] :].astype(np.int32))
        excluded = training_exclusions(recipe.variables)[0]
        both = np.concatenate([excluded, np.unique(words).view(np.int32).reshape(-1, 2)])
        fresh = build_table(
            per_length,
            seed=recipe.seed + 1000,
            variables=recipe.variables,
            slots=SLOTS,
            excluded=both,
        )
        first, start = int(begin[FIRST_FRESH, 0]), np.asarray(fresh.start)
        cut = int(start[FIRST_FRESH, 0])
        tokens = np.concatenate([own[:first], np.asarray(fresh.tokens)[cut:]])
        start = np.concatenate([begin[:FIRST_FRESH], start[FIRST_FRESH:] - cut + first])
        with in_one_step(path) as file:
            np.savez(file, tokens=tokens, start=start)
    with np.load(path) as file:
        table = SkeletonTable(jnp.asarray(file["tokens"]), jnp.asarray(file["start"]))
    return make_corpus(folder, recipe)._replace(table=table)


def problems(corpus: Corpus, columns: int, *, chain: bool = False, count: int = 1536) -> Examples:
    """Fixed problems without noise, whole formulas, or with `chain` one state of each."""
    draw = jax.jit(
        functools.partial(
            draw_examples,
            table=corpus.table,
            batch=min(256, count),
            points=64 if columns == 1 else 96,
            variables=columns,
            weights=length_weights(corpus.table, columns),
            exclusions=corpus.exclusions(columns),
            noisy=0.0,
            state_share=float(chain),
        )
    )
    parts = [draw(jax.random.key(1000 + i)) for i in range(-(-count // 256))]
    e = Examples(*(np.concatenate(a) for a in zip(*parts, strict=True)))
    return Examples(*(a[e.weight > 0] for a in e))


def _chunks(e: Examples, size: int = 256) -> list[tuple[Examples, int]]:
    """Slices of one size, the last one padded by repetition, and how many rows of each count."""
    out = []
    for i in range(0, len(e.y), size):
        rows = np.minimum(np.arange(i, i + size), len(e.y) - 1)
        out.append((Examples(*(a[rows] for a in e)), min(size, len(e.y) - i)))
    return out


def token_nats(
    graph: Any, params: Any, e: Examples, depth: int, *, shown: bool = False, moved: int = 0
) -> np.ndarray:
    """-log p of every token, (problems, slots), after `depth` steps; candidates of
    `draw_candidates` where `shown`,
    by a latent that has made `moved` steps without them."""

    @jax.jit
    def ask(params: Any, e: Examples, depth: Array, moved: Array) -> Array:
        model = nnx.merge(graph, params)
        points = Points(e.x, e.y, e.mask)
        nothing = no_candidate(points, SLOTS)
        candidate = draw_candidates(jax.random.key(5), e) if shown else nothing
        z = model.latents(model.encoder(points, nothing), moved)
        items = model.encoder(points, candidate)
        return -model.decoder.log_prob(e.target, model.latents(items, depth, z), items.columns)

    parts = [
        np.asarray(ask(params, c, jnp.int32(depth), jnp.int32(moved)))[:n] for c, n in _chunks(e)
    ]
    return np.concatenate(parts)


def describe(e: Examples, per_token: np.ndarray) -> str:
    """Nats in all, up to 16 tokens, by length, by position, by columns used."""
    length, cost = (e.target != END).sum(1), per_token.sum(1)
    by_length = [f"{cost[(length >= a) & (length <= b)].mean():.2f}" for a, b in GROUPS]
    place = [f"{per_token[length > k, k].mean():.2f}" for k in range(8)]
    used = np.array([len({t for t in row if 1 <= t <= COLUMNS}) for row in e.target])
    by_used = [f"{u}: {cost[used == u].mean():.2f}" for u in range(1, 4) if (used == u).any()]
    short = cost[length <= 16].mean()
    cells = (" ".join(by_length), " ".join(place), ", ".join(by_used))
    return f"{cost.mean():.2f} | {short:.2f} | {' | '.join(cells)} |"


# ---------------------------------------------------------------- recovery by sampling


def best_of(key: Array, tokens: Array, points: Points, fits: int = 8) -> tuple[Array, Array, Array]:
    """Of formulas (batch, count, slots) of the package the best, (batch, slots), its fit and FVU;
    the numbers of the
    `fits` most promising ones are fitted."""
    batch, count, slots = tokens.shape

    def times(n: int) -> list[Array]:
        return [jnp.repeat(a, n, axis=0) for a in points]

    flat = tokens.reshape(-1, slots)
    values = draw_constants(key, flat)
    x, y, mask = times(count)
    at, term = additive_terms(flat, 6)
    basis = evaluate_nodes(flat, values, x)[at, jnp.arange(len(flat))[:, None]]
    fvu = project(basis, term, y, mask).fvu.reshape(batch, count)
    weights = jnp.asarray(np.random.default_rng(0).integers(1, 2**30, slots), jnp.int32)
    name = jnp.sum(flat * weights, axis=1, dtype=jnp.int32).reshape(batch, count)
    order = jnp.lexsort((fvu, name), axis=-1)
    ranked = jnp.take_along_axis(fvu, order, 1)
    names = jnp.take_along_axis(name, order, 1)
    repeated = jnp.pad(names[:, 1:] == names[:, :-1], ((0, 0), (1, 0)))
    top = jax.lax.top_k(-jnp.where(repeated, jnp.inf, ranked), fits)[1]
    top = jnp.take_along_axis(order, top, axis=1)[..., None]
    chosen = jnp.take_along_axis(tokens, top, axis=1)
    start = jnp.take_along_axis(values.reshape(tokens.shape), top, axis=1)
    x, y, mask = times(fits)
    fit = levenberg_marquardt(
        chosen.reshape(-1, slots), start.reshape(-1, slots), x, y, mask, steps=6, terms=6
    )
    fvu = fit.fvu.reshape(batch, fits)
    best = jnp.argmin(jnp.where(jnp.isfinite(fvu), fvu, jnp.inf), axis=1)
    row = jnp.arange(batch)
    return chosen[row, best], fit.fitted.reshape(batch, fits, -1)[row, best], fvu[row, best]


def closed_loop(
    graph: Any,
    params: Any,
    e: Examples,
    mode: str,
    *,
    rounds: int = 8,
    count: int = 64,
    depth: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Best FVU (rounds, problems) after each round of `count` samples.

    `loop`: the best formula so far is shown and the latent goes on; `reset`: it is shown to the
    seed latent;
    `hidden`: the latent goes on and sees nothing; `oneshot`: the latent after `depth` steps is
    sampled again and again.
    """

    @jax.jit
    def turn(
        key: Array, params: Any, points: Points, candidate: Candidate, z: Array, first: Array
    ) -> tuple:
        model = nnx.merge(graph, params)
        items = model.encoder(points, candidate)
        start = model.refiner.start(len(points.y))
        z = jnp.where(first, start, z)
        z = model.latents(items, depth, z)
        k = jax.random.split(key)
        tokens, _ = model.decoder.sample(k[0], z, items.columns, count)
        own = from_spine(tokens.reshape(-1, SLOTS))[0].reshape(tokens.shape)
        best, fitted, fvu = best_of(k[1], own, points)
        return z, to_spine(best)[0], fitted, fvu

    out = []
    for chunk, n in _chunks(e, 64):
        points = Points(*map(jnp.asarray, (chunk.x, chunk.y, chunk.mask)))
        nothing = candidate = no_candidate(points, SLOTS)
        z = nnx.merge(graph, params).refiner.start(len(points.y))
        least, history = jnp.full(len(points.y), jnp.inf), []
        for r in range(rounds):
            key = jax.random.fold_in(jax.random.key(seed), 1000 * len(out) + r)
            shown = candidate if mode in ("loop", "reset") else nothing
            first = jnp.asarray(r == 0 or mode in ("reset", "oneshot"))
            z, tokens, fitted, fvu = turn(key, params, points, shown, z, first)
            better = fvu < least
            least = jnp.where(better, fvu, least)
            pick = better[:, None]
            candidate = Candidate(
                jnp.where(pick, tokens, candidate.tokens),
                jnp.where(pick, fitted, candidate.fitted),
                jnp.where(jnp.isfinite(least), least, 1.0),
                jnp.isfinite(least),
            )
            history.append(np.asarray(least)[:n])
        out.append(np.stack(history))
    return np.concatenate(out, axis=1)


def blind_draws(
    table: SkeletonTable, e: Examples, *, rounds: int = 8, count: int = 64, seed: int = 0
) -> np.ndarray:
    """The same for draws from a table of formulas."""
    columns = e.x.shape[1]
    weights = length_weights(table, columns, 16)

    @jax.jit
    def turn(key: Array, points: Points) -> Array:
        k = jax.random.split(key, 3)
        n = len(points.y) * count
        order = jnp.argsort(jax.random.uniform(k[1], (n, columns)), axis=1).astype(jnp.int32)
        tokens = rename(draw_skeletons(k[0], table, weights, n), order).reshape(-1, count, SLOTS)
        return best_of(k[2], tokens, points)[2]

    out = []
    for chunk, n in _chunks(e, 64):
        points = Points(*map(jnp.asarray, (chunk.x, chunk.y, chunk.mask)))
        keys = [
            jax.random.fold_in(jax.random.key(seed), 1000 * len(out) + r) for r in range(rounds)
        ]
        out.append(np.minimum.accumulate([np.asarray(turn(k, points))[:n] for k in keys], axis=0))
    return np.concatenate(out, axis=1)


# ---------------------------------------------------------------- the next operation


def operation_length(tokens: Int[Array, "batch slots"]) -> Int[Array, " batch"]:
    """How many tokens the first operation takes: an operator and, if it has two operands, the short
    one."""
    arity = jnp.asarray(ARITY)[tokens[:, 0]]
    return jnp.where(arity == 2, structure(tokens)[1][:, 0], 1)


def operation_hits(
    graph: Any, params: Any, e: Examples, *, count: int = 1024, depth: int = 1, seed: int = 0
) -> dict[int, float]:
    """Share of problems whose true next operation is among the k most frequent different ones of
    `count` samples, for k
    of 1, 8 and 64; a number counts as any number."""

    @jax.jit
    def draw(key: Array, params: Any, e: Examples) -> tuple[Array, Array]:
        model = nnx.merge(graph, params)
        items = model.encoder(Points(e.x, e.y, e.mask))
        z = model.latents(items, depth)
        tokens, _ = model.decoder.sample(key, z, items.columns, count)
        flat = tokens.reshape(-1, SLOTS)
        place = jnp.arange(SLOTS)[None]
        drawn = jnp.where(place < operation_length(flat)[:, None], flat, END).reshape(tokens.shape)
        return drawn, jnp.where(place < operation_length(e.target)[:, None], e.target, END)

    ranks = []
    for i, (chunk, n) in enumerate(_chunks(e, 32)):
        drawn, truth = map(
            np.asarray, draw(jax.random.key(seed + i), params, Examples(*map(jnp.asarray, chunk)))
        )
        for row, true in zip(drawn[:n], truth[:n], strict=True):
            names, times = np.unique(row, axis=0, return_counts=True)
            hit = np.flatnonzero((names == true).all(1))
            ranks.append((times > times[hit[0]]).sum() if len(hit) else 10**6)
    return {k: float(np.mean(np.array(ranks) < k)) for k in (1, 8, 64, 512)}


# ---------------------------------------------------------------- the chain of next operations


def chain_nats(graph: Any, params: Any, e: Examples, *, depth: int = 1) -> tuple[float, float, int]:
    """Nats of a formula written operation by operation, each from the points of its own state; its
    standard error; and
    how many states were asked.

    `e` holds one state of each formula, drawn evenly from its K states: K times the cost of what is
    written
    from that state until the next one begins is an unbiased estimate of the chain.
    """
    cost = token_nats(graph, params, e, depth)
    begins = np.asarray(states(to_spine(jnp.asarray(e.tokens))[0]))
    place = np.arange(SLOTS)[None]
    following = np.where(begins & (place > e.start[:, None]), place, SLOTS).min(axis=1)
    here = place < (following - e.start)[:, None]
    each = begins.sum(1) * np.where(here, cost, 0.0).sum(1)
    return float(each.mean()), float(each.std() / len(each) ** 0.5), len(each)


def report_nats(graph: Any, params: Any, e: Examples, head: str, depths: list[int]) -> list[str]:
    """By depth, with another problem's points, and with candidates shown to a fresh and to a moved
    latent."""
    lines = []
    for depth in depths:
        cost = token_nats(graph, params, e, depth)
        lines.append(f"| {head}, depth {depth} | {describe(e, cost)}")
    other = e._replace(x=np.roll(e.x, 1, 0), y=np.roll(e.y, 1, 0), mask=np.roll(e.mask, 1, 0))
    cost = token_nats(graph, params, other, 1)
    lines.append(f"| {head}, another problem's points | {describe(e, cost)}")
    place = np.arange(len(e.y)) % 256
    for moved in (0, 4):
        cost = token_nats(graph, params, e, 1, shown=True, moved=moved).sum(1)
        without = token_nats(graph, params, e, 1 + moved).sum(1)
        cells = []
        for name, a, b in (("substituted", 0, 32), ("cut", 32, 64), ("retrieved", 64, 128)):
            rows = (place >= a) & (place < b)
            cells.append(f"{name} {cost[rows].mean():.2f} (hidden {without[rows].mean():.2f})")
        lines.append(f"{head}, candidate shown after {moved} steps: {', '.join(cells)}")
    return lines


def report_loop(
    graph: Any, params: Any, e: Examples, head: str, modes: list[str], table: SkeletonTable
) -> list[str]:
    """Recoveries after each round, for each way of running the loop."""
    length, lines = (e.target != END).sum(1), []
    for mode in modes:
        blind = mode == "blind"
        fvu = blind_draws(table, e) if blind else closed_loop(graph, params, e, mode)
        found = fvu < RECOVERED
        groups = [(length >= a) & (length <= b) for a, b in GROUPS[:4]]
        by_length = " ".join(f"{found[-1][g].sum()}/{g.sum()}" for g in groups)
        rounds = " ".join(map(str, found.sum(1)))
        lines.append(f"{head}, {mode}: of {len(e.y)} after rounds of 64: {rounds}; {by_length}")
        print(lines[-1], flush=True)
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=("nats", "loop", "operations", "chain"))
    parser.add_argument("--columns", type=int, default=1)
    parser.add_argument("--depths", default="1,2,4,8")
    parser.add_argument("--modes", default="loop,reset,hidden,oneshot,blind")
    parser.add_argument("--count", type=int, default=256, help="problems of loop and operations")
    parser.add_argument("--problems", type=int, default=1536, help="problems in all")
    parser.add_argument("--per-length", type=int, default=3000, help="of the fresh table")
    args = parser.parse_args(arguments)
    released = args.folder / "weights.npz"
    path = released if released.exists() else args.folder / "checkpoint.npz"
    graph, params, meta = load_model(path)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["recipe"].items()}
    recipe = Recipe(**fields)
    known = make_corpus(args.folder, recipe).table
    corpus = fresh_table(args.folder, recipe, known, args.per_length)
    seen = meta["examples"] // 1000
    head = f"{path.parent.name} {seen}k examples, x1..x{args.columns}"
    e = problems(corpus, args.columns, chain=args.what == "chain", count=args.problems)
    length = (e.target != END).sum(1)
    few = Examples(*(a[np.flatnonzero(length <= 16)[: args.count]] for a in e))
    match args.what:
        case "nats":
            lines = report_nats(graph, params, e, head, [int(d) for d in args.depths.split(",")])
        case "chain":
            mean, error, count = chain_nats(graph, params, e)
            lines = [f"{head}, chain: {mean:.2f} nats, standard error {error:.2f}, {count} states"]
        case "operations":
            hits = operation_hits(graph, params, few)
            lines = [f"{head}: next operation among the k most frequent of 1024 draws: {hits}"]
        case "loop":
            lines = report_loop(graph, params, few, head, args.modes.split(","), known)
    if args.what != "loop":  # which prints as it goes
        print("\n".join(lines))


if __name__ == "__main__":
    main()
