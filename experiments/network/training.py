"""Training: new problems at every step, random depth, candidates for half of them; a run that
resumes bit for bit.

python -m experiments.network.training run FOLDER [--minutes M] [--steps N]
    start, or go on at a constant learning rate; the table of skeletons is made once, in FOLDER;
    --bfloat16 rounds the factors of matrix products, which a GPU multiplies much faster so
python -m experiments.network.training release FOLDER --steps N
    a copy whose rate falls to 0 over N steps: FOLDER/weights.npz
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from experiments.network.candidates import draw_candidates
from experiments.network.examples import Examples, Exclusions, draw_examples, length_weights
from experiments.network.optimizer import make_optimizer
from experiments.network.store import State, load, save, settings
from refinemath.corpus.build import build_table
from refinemath.corpus.exclusions import excludes, training_exclusions
from refinemath.examples import SkeletonTable
from refinemath.fitting import Points
from refinemath.network.config import Config
from refinemath.network.encoder import Items
from refinemath.network.model import Model
from refinemath.network.spine import END, SLOTS
from refinemath.weights import in_one_step


@dataclass(frozen=True)
class Recipe:
    """A training run.  What is not of its table may change when it goes on: see `of_table`."""

    batch: int = 512  # problems a step, shared evenly by `columns`; each share a multiple of 8
    variables: int = 3  # of the table of skeletons, at most
    per_length: int = 90_000  # skeletons of each length in the table
    chunk: int = 16_384  # skeletons drawn at a time to make it
    columns: tuple[int, ...] = (1, 3)  # of the problems of each share
    points: tuple[int, ...] = (64, 96)
    learning_rate: float = 2e-3
    warmup: int = 100
    depths: tuple[int, ...] = (1, 1, 1, 2, 2, 4, 8)  # refiner steps before the loss, drawn evenly
    state_share: float = 0.2  # problems that are later states of a recursion
    rest_weight: float = 0.02  # weight of the relative velocity where nothing new was shown
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.points) != len(self.columns) or max(self.columns) > self.variables:
            raise ValueError(f"{self.columns} columns, {self.points} points: one number for each")
        if self.batch % (8 * len(self.columns)):
            raise ValueError(f"a batch of {self.batch} has no {len(self.columns)} shares of 8 k")


def of_table(recipe: Recipe) -> list[int]:
    """What the table of a run depends on."""
    r = recipe
    return [r.variables, r.per_length, r.chunk, r.seed, *r.columns]


class Corpus(NamedTuple):
    """What a run draws its problems from."""

    table: SkeletonTable
    words: Array  # first words of the excluded signatures
    probes: dict[int, Array]  # fingerprints of the excluded functions, by the number of columns

    def exclusions(self, columns: int) -> Exclusions:
        """What no problem with so many columns may be."""
        return Exclusions(excludes(self.probes[columns], columns), self.words)


# ---------------------------------------------------------------- loss


# eighths of a batch sorted by length, read over so many slots
BUCKETS = ((4, 8), (2, 13), (2, SLOTS))


def nats(model: Model, e: Examples, z: Array, items: Items) -> tuple[Array, Array]:
    """-log p of every problem's target, (batch,), and 1 where it was read: short ones are read over
    few slots, and where a batch has more long ones than places for them, some are not.
    """
    length = jnp.sum(e.target != END, axis=1)
    order, cost, first = jnp.argsort(length), [], 0
    for eighths, n in BUCKETS:
        rows = order[first : first + len(order) * eighths // 8]
        log_p = model.decoder.log_prob(e.target[rows, :n], z[rows], items.columns[rows])
        cost.append(jnp.where(length[rows] <= n, -jnp.sum(log_p, axis=1), 0.0))
        first += len(rows)
    cost = jnp.zeros(len(order)).at[order].set(jnp.concatenate(cost))
    return cost, (cost > 0).astype(jnp.float32)


def loss_fn(params: Any, graph: Any, e: Examples, key: Array, recipe: Recipe) -> tuple[Array, dict]:
    """Sum of the nats after a random number of steps, the last of which has the gradient.

    Half of the time the candidate is seen in all steps, else in the last one alone, by a latent
    that has moved.
    """
    model = nnx.merge(graph, params)
    k = jax.random.split(key, 3)
    points = Points(e.x, e.y, e.mask)
    candidate = draw_candidates(k[0], e)
    items = model.encoder(points, candidate)
    depth = jnp.asarray(recipe.depths)[jax.random.randint(k[1], (), 0, len(recipe.depths))]
    see = jax.random.bernoulli(k[2])
    hidden = model.encoder.without_candidate(items)
    before = jax.tree.map(lambda a, b: jnp.where(see, a, b), items, hidden)
    start = model.refiner.start(len(e.y))
    moved = model.refiner.run(*jax.lax.stop_gradient((start, before)), depth - 1)
    z0 = jnp.where(depth > 1, jax.lax.stop_gradient(moved), start)
    z = model.refiner(z0, model.refiner.block.cross.read(items.rows), items.mask)
    cost, read = nats(model, e, z, items)
    e = e._replace(weight=e.weight * read)
    cost = cost * e.weight
    velocity = jnp.sum((z - z0) ** 2, axis=(1, 2)) / z.shape[1]
    still = e.weight * (see | ~candidate.known) * (depth > 3)
    rest = jnp.sum(jnp.sqrt(velocity + 1e-12) * still)
    blank = e.weight * ~candidate.known
    eighth = len(cost) // 8
    groups = (
        ("none", blank),
        ("substituted", _rows(len(cost), 0, eighth)),
        ("cut", _rows(len(cost), eighth, 2 * eighth)),
        ("retrieved", _rows(len(cost), 2 * eighth, 4 * eighth)),
    )
    metrics = {name: (jnp.sum(cost * w), jnp.sum(w * e.weight)) for name, w in groups}
    metrics["velocity"] = (rest, jnp.sum(still))
    return jnp.sum(cost) + recipe.rest_weight * rest, metrics


def _rows(n: int, a: int, b: int) -> Array:
    return ((jnp.arange(n) >= a) & (jnp.arange(n) < b)).astype(jnp.float32)


# ---------------------------------------------------------------- the step and the run


class Training:
    """The compiled step of a run, and its first state."""

    def __init__(self, config: Config, recipe: Recipe, corpus: Corpus):
        self.config, self.recipe, self.corpus = config, recipe, corpus
        shapes = nnx.eval_shape(lambda: Model(config, rngs=nnx.Rngs(recipe.seed)))
        self.graph, template = nnx.split(shapes)
        self.optimizer = make_optimizer(template)
        self.draws = [
            functools.partial(
                draw_examples,
                batch=recipe.batch // len(recipe.columns),
                points=points,
                variables=columns,
                weights=length_weights(corpus.table, columns),
                exclusions=corpus.exclusions(columns),
                state_share=recipe.state_share,
            )
            for columns, points in zip(recipe.columns, recipe.points, strict=True)
        ]
        self._compiled = jax.jit(self._step, donate_argnums=0)

    def step(self, state: State, rate: Array) -> tuple[State, dict]:
        """The next state, and (sum, count) of every metric."""
        return self._compiled(state, rate, self.corpus.table)

    def init(self) -> State:
        """The state before the first step."""
        params = nnx.state(Model(self.config, rngs=nnx.Rngs(self.recipe.seed)))
        return State(params, self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def _loss(self, params: Any, drawn: list[Examples], keys: Array) -> tuple[Array, dict]:
        total, named = jnp.float32(0), {}
        for e, key, columns in zip(drawn, keys, self.recipe.columns, strict=True):
            loss, metrics = loss_fn(params, self.graph, e, key, self.recipe)
            total += loss
            named.update({f"{name}{columns}": m for name, m in metrics.items()})
            named[f"drawn{columns}"] = jnp.sum(e.weight), jnp.float32(len(e.weight))
        return total / self.recipe.batch, named

    def _step(self, state: State, rate: Array, table: SkeletonTable) -> tuple[State, dict]:
        root, parts = jax.random.key(self.recipe.seed), len(self.draws)
        keys = jax.random.split(jax.random.fold_in(root, state.step), 2 * parts)
        drawn = [draw(key, table) for draw, key in zip(self.draws, keys[:parts], strict=True)]
        grad = jax.value_and_grad(self._loss, has_aux=True)
        (loss, metrics), grads = grad(state.params, drawn, keys[parts:])
        updates, optimizer = self.optimizer.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        metrics["loss"] = loss, jnp.float32(1)
        return State(params, optimizer, state.step + 1), metrics


def make_corpus(folder: Path, recipe: Recipe) -> Corpus:
    """The table of a run and what is excluded from it, made once and kept in `table.npz`."""
    path = folder / "table.npz"
    made_for = json.dumps(of_table(recipe))
    if not path.exists():
        words, _ = training_exclusions(recipe.variables)
        table = build_table(
            recipe.per_length,
            seed=recipe.seed,
            variables=recipe.variables,
            slots=SLOTS,
            excluded=words,
            chunk=recipe.chunk,
        )
        probes = {f"probes{v}": training_exclusions(v)[1] for v in recipe.columns}
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {"tokens": table.tokens, "start": table.start, "words": words, **probes}
        with in_one_step(path) as file:
            np.savez(file, made_for=np.array(made_for), **arrays)
    with np.load(path) as file:
        if str(file["made_for"]) != made_for:
            raise ValueError(f"{path} was made for {file['made_for']}, not {made_for}")
        table = SkeletonTable(jnp.asarray(file["tokens"]), jnp.asarray(file["start"]))
        probes = {v: jnp.asarray(file[f"probes{v}"]) for v in recipe.columns}
        return Corpus(table, jnp.asarray(np.unique(file["words"][:, 0])), probes)


def run(
    folder: Path,
    config: Config,
    recipe: Recipe,
    *,
    minutes: float = float("inf"),
    steps: float = float("inf"),
    cooldown: int = 0,
    training: Training | None = None,
) -> State:
    """Go on from `checkpoint.npz` if there is one, for so many minutes or steps; a checkpoint every
    five minutes, a line of `log.jsonl` every 50 steps.

    With `cooldown` the checkpoint is only read, the rate falls to 0 over so many steps, and
    `weights.npz` is written.  `training`: where it is compiled already.
    """
    training = training or Training(config, recipe, make_corpus(folder, recipe))
    state, path = training.init(), folder / "checkpoint.npz"
    meta = {"config": asdict(config), "recipe": asdict(recipe), "kind": "checkpoint"}
    before = 0
    if path.exists():
        check_same_run(path, config, recipe)
        state, old = load(path, state)
        before = old["examples"]
    log = folder / ("cooldown.jsonl" if cooldown else "log.jsonl")
    first = now = int(state.step)
    last = first + (cooldown or steps)
    began = saved = time.monotonic()
    window: list[dict] = []
    while now < last and (cooldown or time.monotonic() - began < 60 * minutes):
        rate = recipe.learning_rate * min((now + 1) / recipe.warmup, 1.0)
        rate *= 1 - (now - first) / cooldown if cooldown else 1.0
        state, metrics = training.step(state, jnp.float32(rate))
        window.append(metrics)
        now += 1
        if now % 50 == 0 or now == last:
            seen = before + (now - first) * recipe.batch
            line = {"step": now, "examples": seen, "rate": rate, **_means(window)}
            speed = (now - first) * recipe.batch / (time.monotonic() - began)
            line |= {"examples_per_second": round(speed, 1), "time": time.strftime("%H:%M:%S")}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            window = []
        if not cooldown and time.monotonic() - saved > 300:
            seen = before + (now - first) * recipe.batch
            save(path, state, {**meta, "step": now, "examples": seen})
            saved = time.monotonic()
    meta |= {"step": now, "examples": before + (now - first) * recipe.batch}
    if cooldown:
        half = jax.tree.map(lambda a: a.astype(jnp.float16), state.params)
        save(folder / "weights.npz", half, {**meta, "kind": "weights"})
    else:
        save(path, state, meta)
    return state


def check_same_run(path: Path, config: Config, recipe: Recipe) -> None:
    """Whether a checkpoint can go on with these settings: the same model and the same table.

    Raises `ValueError`.
    """
    old = settings(path)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in old["recipe"].items()}
    same = Config(**old["config"]) == config and of_table(Recipe(**fields)) == of_table(recipe)
    if not same:
        raise ValueError(f"{path} belongs to another run: {old}")


def _means(window: list[dict]) -> dict[str, float]:
    """Of every metric (sum, count) its mean over some steps."""
    sums = {k: [float(sum(m[k][i] for m in window)) for i in range(2)] for k in window[0]}
    return {k: round(a / b, 4) for k, (a, b) in sums.items() if b > 0}


def main(arguments: list[str] | None = None) -> None:
    """The commands above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=("run", "release"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--steps", type=int, help="run: no limit; release: 1000")
    parser.add_argument("--config", type=json.loads, default={}, help="JSON: fields of Config")
    parser.add_argument("--recipe", type=json.loads, default={}, help="JSON: fields of Recipe")
    parser.add_argument("--bfloat16", action="store_true", help="of matrix products alone")
    args = parser.parse_args(arguments)
    old = settings(args.folder / "checkpoint.npz")
    fields = {**old.get("recipe", {}), **args.recipe}
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    config = Config(**{**old.get("config", {}), **args.config})
    recipe = replace(Recipe(), **fields)
    if args.command == "release" and not old:
        parser.error(f"there is no checkpoint in {args.folder}")
    precision = jax.default_matmul_precision("bfloat16" if args.bfloat16 else "highest")
    with precision:
        if args.command == "release":
            run(args.folder, config, recipe, cooldown=args.steps or 1000)
        else:
            steps = float("inf") if args.steps is None else args.steps
            run(args.folder, config, recipe, minutes=args.minutes, steps=steps)


if __name__ == "__main__":
    main()
