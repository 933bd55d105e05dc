"""Our own choices: execution feedback on and off, exact decoding against argmax and masked greedy, recovery against thoughts, steps and examples.

Parts: `decoding` reads the same latents of the shipped model in several ways.  `thoughts` and `steps` vary K and T of the loop alone (no sweep, no edits,
one search), beside the null model with the same numbers.  `feedback` trains two small models for equal time, with and without the candidate being shown.
`examples` answers with given weights files (`--snapshots`), whose headers say how many examples they have seen.
"""

from __future__ import annotations

import argparse
import functools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from experiments import harness
from experiments.baselines import BlindModel, Variant, absent, legal
from experiments.latent_drift import explained
from refinemath import Budget, RefineMath, checkpoint, grammar
from refinemath.evaluate import environment, heldout_problems, null_model
from refinemath.language import ARITY, END
from refinemath.model import Config, Model, no_candidate
from refinemath.train import Recipe

LOOP = replace(Budget(), edits=0, patience=0)
PARTS = ("decoding", "thoughts", "steps", "feedback", "examples")


def recovery(model: RefineMath, options: argparse.Namespace, seed: int = 0) -> dict[str, Any]:
    """Share of the held-out slice that a model recovers, and its seconds."""
    problems = heldout_problems(harness.DATA / "heldout.csv", every=options.every)
    right, seconds = [], []
    for _, result, good in harness.answers(model, problems, seed=seed):
        right.append(good)
        seconds.append(result.seconds)
    return {"recovered": harness.interval(right), "seconds": harness.interval(seconds, np.median), "each": right}


# ---------------------------------------------------------------- decoding


@jax.jit
def masked_greedy(logits: Array) -> Array:
    """Left to right, the likeliest token that keeps the formula completable."""
    batch, slots, _ = logits.shape

    def step(open_: Array, i: Array) -> tuple[Array, Array]:
        token = jnp.argmax(jnp.where(legal(open_, slots - 1 - i), logits[:, i], -jnp.inf), axis=-1)
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
        encoded = model.encoder(points)
        z = model.refiner.start(0.3 * jax.random.normal(key, (points.y.shape[0], config.slots, config.latent_dim)))
        for _ in range(2):
            z = model.refiner(z, encoded, no_candidate(points, config.slots))
        return jnp.where(absent(config.variables), -1e9, model.refiner.logits(z))

    logits = think_twice(params, jax.random.key(options.seed))
    key = jax.random.key(options.seed + 1)
    ways = {
        "exact best": lambda: grammar.best(logits), "masked greedy": lambda: masked_greedy(logits), "argmax": lambda: argmax(logits),
        "one exact sample": lambda: grammar.sample(key, logits, 1)[:, 0],
    }  # fmt: skip

    def weight(tokens: Array) -> np.ndarray:
        """The log-probability that the slots give to a formula."""
        return np.asarray(jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0], axis=1))

    top, rows = weight(ways["exact best"]()), {}
    for name, way in ways.items():
        tokens = way()
        valid = np.asarray(is_legal(tokens))
        safe = jnp.where(jnp.asarray(valid)[:, None], tokens, jnp.zeros_like(tokens).at[:, 0].set(1))  # what is no formula becomes x
        good = np.asarray(explained(safe, points)) & valid
        rows[name] = {
            "legal": float(valid.mean()), "log_probability_lost": harness.interval((top - weight(tokens))[valid], np.mean),
            "same_as_exact": float(np.mean(np.all(np.asarray(tokens) == np.asarray(ways["exact best"]()), axis=1))),
            "explained_by_any_thought": harness.interval(good.reshape(len(problems), k).any(1)), "explained_by_a_thought": float(good.mean()),
            "ms": 1000 * harness.clock(way), "thoughts": k,
        }  # fmt: skip
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
            rows.append({"system": name, what: n, "formulas_drawn": budget.thoughts * budget.samples * budget.search_steps, **recovery(system, options)})
            r = rows[-1]["recovered"]
            print(f"{what} {n:3d} {name:5s} recovered {r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}], {rows[-1]['seconds']['value']:.2f} s", flush=True)
    return rows


# ---------------------------------------------------------------- feedback


def feedback_run(options: argparse.Namespace, feedback: bool, seed: int) -> dict[str, Any]:
    """Train with the candidate shown or hidden for equal time, then answer with the loop alone in the same way."""
    config = harness.TINY if options.quick else Config(latent_dim=options.latent_dim, width=options.width)
    kind = Model if feedback else BlindModel
    recipe = Recipe(batch=options.batch, seed=seed)
    if not feedback:
        recipe = replace(recipe, own_samples=1, stillness=0.0)  # nothing to execute for, no candidate to keep
    where = options.work / f"feedback-{int(feedback)}-{seed}"
    log = harness.train_seconds(config, recipe, where, harness.training_bank(options.work, options.bank), options.seconds, model=kind)
    model = Variant(harness.load_parts(where / "weights.npz", config, kind), budget=LOOP, sweep=False)
    return {"feedback": feedback, "seed": seed, "commit": environment("")["commit"], "training": log, **recovery(model, options, seed)}


def feedback_table(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares with and without, and the difference paired by problem."""
    on, off = (np.mean([r["each"] for r in runs if r["feedback"] == f], axis=0) for f in (True, False))
    return {"on": harness.interval(on), "off": harness.interval(off), "on_minus_off": harness.difference(on, off)}


# ---------------------------------------------------------------- all parts


def examples_seen(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Recovery of the loop alone with the weights of a file."""
    meta = checkpoint.read_meta(path)
    model = RefineMath(meta["config"]["latent_dim"], weights=path, budget=LOOP, sweep=False)
    return {"file": path.name, "examples": meta.get("examples"), "config": meta["config"], **recovery(model, options)}


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    """The chosen parts; each is kept in `--work` and not done again."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--every", type=int, default=5, help="each N-th held-out formula")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="values of K and of T")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--latent-dim", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=900.0, help="training time of a feedback model, in seconds of one core")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--bank", type=int, default=20_000)
    parser.add_argument("--snapshots", type=Path, nargs="*", default=[], help="weights files of one run at different numbers of examples")
    options = parser.parse_args(arguments)
    if options.quick:
        options.parts, options.every = ["decoding"], 100
    if options.only:
        harness.one_core(options.core)
        harness.keep_compiled(options.work / "compiled")
        _, feedback, seed = options.only.split(":")
        harness.save_task(options.work, options.only, feedback_run(options, feedback == "1", int(seed)))
        return None
    began = time.perf_counter()
    options.work = harness.folder(options, "ours")
    report: dict[str, Any] = {}
    for part in options.parts:
        if part == "feedback":
            harness.training_bank(options.work, options.bank)
            tasks = [f"feedback:{f}:{seed}" for seed in range(options.seeds) for f in (1, 0)]
            passed = []
            for name in ("width", "latent_dim", "batch", "seconds", "bank", "every"):
                passed += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
            harness.in_children("ours", tasks, options.jobs, options.work, passed)
            runs = [harness.load_task(options.work, name) for name in tasks]
            report[part] = {"table": feedback_table(runs), "runs": runs}
        elif part == "examples":
            report[part] = [examples_seen(options, path) for path in options.snapshots]
        else:
            work = decoding if part == "decoding" else functools.partial(sweep, what=part)
            if not harness.task_path(options.work, part).exists():
                harness.save_task(options.work, part, work(options))
            report[part] = harness.load_task(options.work, part)
    for name, row in report.get("decoding", {}).items():
        e = row["explained_by_any_thought"]
        print(f"{name:16s} legal {row['legal']:.2f}, explained {e['value']:.2f} [{e['low']:.2f}, {e['high']:.2f}], {row['ms']:.2f} ms")
    if "feedback" in report:
        d = report["feedback"]["table"]["on_minus_off"]
        print(f"feedback on minus off: {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]")
    options.snapshots = [p.name for p in options.snapshots]
    return harness.write("ours", options, report, began)


if __name__ == "__main__":
    main()
