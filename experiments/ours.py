"""Our own choices: execution feedback on and off, ways to decode, slots read on their own or one
after the other, recovery against K, T and examples.

Parts: `decoding` reads the same latents of the shipped model in several ways; `nats` asks what
fresh truths cost it.  `thoughts` and `steps` vary K and T of the loop alone (no sweep, no edits,
one search), beside the null model with the same numbers.  `small` trains small models for equal
time: plain, without the candidate being shown, without own candidates in training, with plain
features, with a reader, with a reader that looks back; and plain ones for shares of that time,
which gives recovery against examples seen.  Parts that are not run stay in the record as they are;
`origin` says when each was made.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from experiments import harness
from experiments.baselines import BlindModel, PlainModel, Variant, absent
from experiments.latent_drift import explained
from refinemath import RefineMath, SearchConfig, grammar
from refinemath.evaluation import environment, heldout_problems, null_model
from refinemath.examples import Examples, SkeletonTable, draw_examples, length_weights
from refinemath.expression import ARITY, END, TOKEN_VALUE, is_constant
from refinemath.fitting import Points, execute, no_candidate
from refinemath.model import Model, ModelConfig
from refinemath.training import TrainConfig

LOOP = replace(SearchConfig(), edits=0, patience=0)
PARTS = ("decoding", "nats", "thoughts", "steps", "small")
HOLDS = {part: (part,) for part in PARTS} | {
    "nats": ("prior_nats", "shipped_nats"),
    "small": ("feedback", "own_candidates", "features", "reader", "looks_back", "examples", "runs"),
}


def recovery(model: RefineMath, options: argparse.Namespace, seed: int = 0) -> dict[str, Any]:
    """Share of the held-out slice that a model recovers, and its seconds."""
    problems = heldout_problems(harness.DATA / "heldout.csv", every=options.every)
    right, seconds = [], []
    for _, result, good in harness.answers(model, problems, seed=seed):
        right.append(good)
        seconds.append(result.seconds)
    return {
        "recovered": harness.interval(right),
        "seconds": harness.interval(seconds, np.median),
        "each": right,
    }


# ---------------------------------------------------------------- decoding


def from_nothing(model: Any, points: Points, key: Array, noise: float = 0.3) -> Array:
    """Latents after two steps without a candidate."""
    encoded, (slots, dim) = model.encoder(points), model.refiner.seed[...].shape
    z = model.refiner.start(noise * jax.random.normal(key, (points.y.shape[0], slots, dim)))
    for _ in range(2):
        z = model.refiner(z, encoded, no_candidate(points, slots))
    return z


@jax.jit
def masked_greedy(logits: Array) -> Array:
    """Left to right, the likeliest token that keeps the formula completable."""
    batch, slots, _ = logits.shape

    def step(open_: Array, i: Array) -> tuple[Array, Array]:
        token = jnp.argmax(
            jnp.where(grammar.allowed(open_, slots - 1 - i), logits[:, i], -jnp.inf), axis=-1
        )
        return jnp.maximum(open_ + jnp.asarray(ARITY)[token] - 1, 0), token.astype(jnp.int32)

    return jax.lax.scan(step, jnp.ones(batch, jnp.int32), jnp.arange(slots))[1].T


@jax.jit
def argmax(logits: Array) -> Array:
    """The likeliest token of every slot, whatever that spells."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@jax.jit
def is_legal(tokens: Array) -> Array:
    """Whether a row of tokens is a formula in prefix order followed by END alone."""
    open_ = 1 + jnp.cumsum(jnp.where(tokens == END, 0, jnp.asarray(ARITY)[tokens] - 1), axis=1)
    before = jnp.concatenate([jnp.ones_like(open_[:, :1]), open_[:, :-1]], axis=1)
    return jnp.all((tokens == END) == (before <= 0), axis=1) & (open_[:, -1] == 0)


def decoding(options: argparse.Namespace) -> dict[str, Any]:
    """The same latents of the shipped model, two steps from nothing, read in five ways."""
    params, graph, config = harness.shipped()
    problems = heldout_problems(harness.DATA / "heldout.csv", every=options.every)
    k = 2 if options.quick else 32
    points = jax.tree.map(lambda a: jnp.repeat(a, k, axis=0), harness.stack(problems))

    @jax.jit
    def think_twice(params: Any, key: Array) -> Array:
        model = nnx.merge(graph, params)
        return jnp.where(
            absent(config.variables), -1e9, model.refiner.logits(from_nothing(model, points, key))
        )

    logits = think_twice(params, jax.random.key(options.seed))
    key = jax.random.key(options.seed + 1)
    ways = {
        "exact best": lambda: grammar.best(logits),
        "masked greedy": lambda: masked_greedy(logits),
        "argmax": lambda: argmax(logits),
        "one exact sample": lambda: grammar.sample(key, logits, 1)[:, 0],
    }

    def weight(tokens: Array) -> np.ndarray:
        """The log-probability that the slots give to a formula."""
        return np.asarray(
            jnp.sum(
                jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0],
                axis=1,
            )
        )

    run = jax.jit(execute)
    top, rows = weight(ways["exact best"]()), {}
    for name, way in ways.items():
        tokens = way()
        valid = np.asarray(is_legal(tokens))
        safe = jnp.where(
            jnp.asarray(valid)[:, None], tokens, jnp.zeros_like(tokens).at[:, 0].set(1)
        )  # what is no formula becomes x
        good = np.asarray(explained(safe, points)) & valid
        fvu = np.asarray(
            run(safe, jnp.asarray(TOKEN_VALUE)[safe], points).fvu
        )  # of what is no formula: that of x
        rows[name] = {
            "legal": float(valid.mean()),
            "log_probability_lost": harness.interval((top - weight(tokens))[valid], np.mean),
            "same_as_exact": float(
                np.mean(np.all(np.asarray(tokens) == np.asarray(ways["exact best"]()), axis=1))
            ),
            "fvu_of_the_best_thought": harness.interval(
                np.nan_to_num(fvu, nan=1.0).reshape(len(problems), k).min(1), np.median
            ),
            "explained_by_any_thought": harness.interval(good.reshape(len(problems), k).any(1)),
            "explained_by_a_thought": float(good.mean()),
            "ms": 1000 * harness.clock(way),
            "thoughts": k,
        }
    return rows


# ---------------------------------------------------------------- thoughts and steps


def sweep(options: argparse.Namespace, what: str) -> list[dict[str, Any]]:
    """Recovery of the loop alone, and of blind draws, as K or T grows."""
    base = replace(harness.QUICK, edits=0) if options.quick else LOOP
    rows = []
    for n in [2] if options.quick else options.counts:
        budget = replace(base, thoughts=n) if what == "thoughts" else replace(base, search_steps=n)
        steps = 4 if options.quick else 2 * budget.search_steps
        model = RefineMath(max_iters=steps, budget=budget, sweep=False)
        systems = {"loop": model}
        if not options.quick:
            systems["null"] = null_model(model)
        for name, system in systems.items():
            rows.append(
                {
                    "system": name,
                    what: n,
                    "formulas_drawn": budget.thoughts * budget.samples * budget.search_steps,
                    **recovery(system, options),
                }
            )
            r = rows[-1]["recovered"]
            print(
                f"{what} {n:3d} {name:5s} recovered {r['value']:.3f} [{r['low']:.3f}, "
                f"{r['high']:.3f}], {rows[-1]['seconds']['value']:.2f} s",
                flush=True,
            )
    return rows


# small models: feedback, own candidates, features, reader, examples seen


# two that read token after token; one that is not shown its candidate; one that learns from
# corrupted truths alone, never from what it drew itself; one
# whose encoder sees plain numbers; slots on their own with all the rest
KINDS = ("looks_back", "reader", "blind", "others", "few", "plain")
MODELS: dict[str, Any] = {"blind": BlindModel, "few": PlainModel}
RECIPES: dict[str, dict[str, Any]] = {
    "blind": {"own_samples": 1, "stillness": 0.0},  # nothing to execute for, no candidate to keep
    "others": {
        "own_samples": 1,
        "unroll": 1,
        "go_on": 0.0,
    },  # a step from what it is given, and no second one
}
COMPARED = {
    "feedback": ("blind", "plain"),
    "own_candidates": ("others", "plain"),
    "features": ("few", "plain"),
    "reader": ("reader", "plain"),
    "looks_back": ("looks_back", "reader"),
}
SHARES = (8, 4, 2, 1)  # a plain model is also trained for these shares of the time


@functools.partial(jax.jit, static_argnames="graph")
def nats(params: Any, graph: Any, e: Examples, key: Array, noise: float = 0.3) -> Array:
    """What the true formula costs from nothing: -log of the probability with which it is sampled
    after two steps without a candidate.
    """
    model = nnx.merge(graph, params)
    z = from_nothing(model, Points(e.x, e.y, e.mask), key, noise)
    if model.refiner.reader is not None:
        return -jnp.sum(model.refiner.log_probability(z, e.tokens), axis=1)
    logits = model.refiner.logits(z)
    return grammar.backward(logits)[0, :, 1] - jnp.sum(
        jnp.take_along_axis(logits, e.tokens[..., None], axis=-1)[..., 0], axis=1
    )


def prior_nats(bank: SkeletonTable, e: Examples) -> np.ndarray:
    """What the same formulas cost a blind draw from the bank that they come from; constants at the
    frequency that they have in these examples.
    """
    tokens, weight = np.asarray(e.tokens), np.asarray(length_weights(bank)).sum(axis=1)
    length, formulas = (tokens != END).sum(1), np.diff(np.asarray(bank.start)[:, 0])
    number = np.asarray(is_constant(tokens))
    share = np.bincount(tokens[number], minlength=tokens.max() + 1) / max(number.sum(), 1)
    numbers = np.where(number, -np.log(np.where(number, share[tokens], 1.0)), 0.0).sum(1)
    return np.asarray(numbers - np.log(weight[length] / weight.sum() / formulas[length]))


def fresh_examples(options: argparse.Namespace, bank: SkeletonTable) -> Examples:
    """Plots of formulas of the bank, those that could be drawn."""
    e = draw_examples(jax.random.key(10_000), bank, options.fresh, weights=length_weights(bank))
    return jax.tree.map(lambda a: a[np.asarray(e.weight) > 0], e)


def small_run(options: argparse.Namespace, kind: str, share: int, seed: int) -> dict[str, Any]:
    """Train a small model for a share of the time, then ask what fresh truths cost it and answer
    with the loop alone.
    """
    reads = kind in ("reader", "looks_back")
    config = ModelConfig(
        latent_dim=options.latent_dim,
        width=options.width,
        reader=options.width * reads,
        reader_heads=4 if kind == "looks_back" else 0,
    )
    model_class = MODELS.get(kind, Model)
    recipe = TrainConfig(batch=options.batch, seed=seed, **RECIPES.get(kind, {}))
    where = options.work / f"{kind}-{share}-{seed}"
    bank = harness.training_bank(options.work, options.bank)
    log = harness.train_seconds(
        config, recipe, where, bank, options.seconds / share, model=model_class
    )
    parts = harness.load_parts(where / "weights.npz", config, model_class)
    cost = np.asarray(
        nats(parts[0], parts[1], fresh_examples(options, bank), jax.random.key(10_001))
    )
    model = Variant(parts, budget=LOOP, sweep=False)
    return {
        "kind": kind,
        "share": share,
        "seed": seed,
        "commit": environment("")["commit"],
        "training": log,
        "nats": cost,
        **recovery(model, options, seed),
    }


def compared(runs: list[dict[str, Any]], kind: str, base: str) -> dict[str, Any]:
    """A kind beside another one of the same time: shares recovered and nats, each also as a
    difference paired by problem.
    """

    def mean(of: str, what: str) -> Any:
        return np.mean([r[what] for r in runs if r["kind"] == of and r["share"] == 1], axis=0)

    table = {
        "recovered": harness.interval(mean(kind, "each")),
        f"recovered_{base}": harness.interval(mean(base, "each")),
    }
    table["recovered_difference"] = harness.difference(mean(kind, "each"), mean(base, "each"))
    table |= {
        "nats": harness.interval(mean(kind, "nats")),
        f"nats_{base}": harness.interval(mean(base, "nats")),
    }
    return {**table, "nats_difference": harness.difference(mean(kind, "nats"), mean(base, "nats"))}


def scaling(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Plain models by examples seen, and what each doubling brings: the slope of a line through the
    shares, seeds and problems drawn again.
    """
    plain = {
        share: [r for r in runs if r["kind"] == "plain" and r["share"] == share] for share in SHARES
    }
    rows: list[dict[str, Any]] = []
    for share, several in plain.items():
        each, cost = (np.mean([r[what] for r in several], axis=0) for what in ("each", "nats"))
        examples = float(np.mean([r["training"]["examples"] for r in several]))
        rows.append(
            {
                "share": share,
                "examples": examples,
                "recovered": harness.interval(each),
                "nats": harness.interval(cost),
            }
        )
    doublings = np.log2([r["examples"] for r in rows])

    def slope(*columns: Array) -> float:
        return float(np.polyfit(doublings, [np.mean(c) for c in columns], 1)[0])

    per = {}
    for what in ("each", "nats"):
        per[what] = harness.interval(
            tuple(np.mean([r[what] for r in several], axis=0) for several in plain.values()), slope
        )
    return {"rows": rows, "recovered_per_doubling": per["each"], "nats_per_doubling": per["nats"]}


# ---------------------------------------------------------------- all parts


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    """The chosen parts; each is kept in `--work` and not done again."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--every", type=int, default=5, help="each N-th held-out formula")
    parser.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8, 16, 32, 64],
        help="values of K and of T",
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--latent-dim", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--seconds",
        type=float,
        default=120.0,
        help="training time of a small model, in seconds of one core",
    )
    parser.add_argument(
        "--fresh", type=int, default=2048, help="fresh plots whose true formula is asked for"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--bank", type=int, default=20_000)
    options = parser.parse_args(arguments)
    if options.quick:
        options.parts, options.every, options.bank, options.fresh = (
            ["decoding", "nats"],
            100,
            40,
            32,
        )
    if options.only:
        harness.one_core(options.core)
        harness.keep_compiled(options.work / "compiled")
        kind, share, seed = options.only.split(":")
        harness.save_task(
            options.work, options.only, small_run(options, kind, int(share), int(seed))
        )
        return None
    began = time.perf_counter()
    options.work = harness.folder(options, "ours")
    path = options.out or harness.RESULTS / "ours.json"
    old = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() and not options.quick else {}
    )
    report: dict[str, Any] = {"origin": {}}
    for part in PARTS:
        if part not in options.parts:
            kept = {name: old[name] for name in HOLDS[part] if name in old}
            if kept:
                report["origin"][part] = old.get("origin", {}).get(
                    part, {k: old[k] for k in ("command", "commit", "date", "jax")}
                )
            report |= kept
            continue
        report["origin"][part] = environment(f"python -m experiments.ours --parts {part}")
        if part == "small":
            harness.training_bank(options.work, options.bank)
            tasks = [
                f"{kind}:{share}:{seed}"
                for seed in range(options.seeds)
                for kind in KINDS
                for share in (SHARES if kind == "plain" else (1,))
            ]
            passed = []
            for name in ("width", "latent_dim", "batch", "seconds", "bank", "every", "fresh"):
                passed += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
            harness.in_children("ours", tasks, options.jobs, options.work, passed)
            runs = [harness.load_task(options.work, name) for name in tasks]
            report |= {name: compared(runs, *kinds) for name, kinds in COMPARED.items()} | {
                "examples": scaling(runs)
            }
            report["runs"] = [
                {k: v for k, v in r.items() if k != "nats"} | {"nats": float(np.mean(r["nats"]))}
                for r in runs
            ]
        elif part == "nats":
            bank = harness.training_bank(options.work, options.bank)
            fresh = fresh_examples(options, bank)
            report["prior_nats"] = harness.interval(prior_nats(bank, fresh))
            report["shipped_nats"] = harness.interval(
                nats(*harness.shipped()[:2], fresh, jax.random.key(10_001))
            )
            print(
                f"fresh truths cost the shipped model {report['shipped_nats']['value']:.2f} nats, "
                f"a blind draw {report['prior_nats']['value']:.2f}"
            )
        else:
            work = decoding if part == "decoding" else functools.partial(sweep, what=part)
            if not harness.task_path(options.work, part).exists():
                harness.save_task(options.work, part, work(options))
            report[part] = harness.load_task(options.work, part)
    for name, row in report.get("decoding", {}).items():
        e = row["fvu_of_the_best_thought"]
        print(
            f"{name:16s} legal {row['legal']:.2f}, FVU {e['value']:.2f} [{e['low']:.2f}, "
            f"{e['high']:.2f}], {row['ms']:.2f} ms"
        )
    for what in COMPARED:
        if what in report:
            d, n = report[what]["recovered_difference"], report[what]["nats_difference"]
            print(
                f"{what}: recovered {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}], nats "
                f"{n['value']:+.2f} [{n['low']:+.2f}, {n['high']:+.2f}]"
            )
    return harness.write("ours", options, report, began)


if __name__ == "__main__":
    main()
