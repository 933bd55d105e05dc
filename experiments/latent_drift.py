"""Does Newton-Schulz at inference prevent latent drift?  Stabiliser x what else could hold the
latent x 1 to 64 steps.

The latent alone: no candidate is fed back, so nothing but Z moves.  For every stabiliser (and for
RMSNorm with a Gram penalty on the slots in training) a small model is trained for four steps a
problem under three conditions: `each`, the points are read at every step; `once`, at the first step
alone; `free`, at every step but without the anchor, so that the seed enters at the start only.
Then each runs 64 steps on held-out formulas.  The shipped weights follow (`--shipped`), with their
own feedback and every stabiliser put in their place.

Whether the latent still says the right thing is asked in two ways: `recovered`, whether one of the
formulas drawn from the thoughts of a held-out plot explains it, and `loss`, the cross-entropy of
the true tokens on plots drawn anew from the training formulas, a number that moves before any
recovery does.
"""

from __future__ import annotations

import argparse
import functools
import time
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from experiments import harness
from refinemath import grammar
from refinemath.corpus.exclusions import excludes
from refinemath.evaluation import environment, heldout_problems
from refinemath.examples import SkeletonTable, draw_examples, length_weights
from refinemath.expression import TOKEN_VALUE
from refinemath.fitting import Points, execute, levenberg_marquardt, no_candidate, tree_where
from refinemath.model import ANCHOR, STABILISERS, Encoded, Model, ModelConfig
from refinemath.training import TrainConfig

KINDS = (*STABILISERS, "gram")
CONDITIONS = {
    "each": "points at every step",
    "once": "points at the first step",
    "free": "points at every step, no anchor",
}
EXPLAINED = (
    1e-9  # FVU in float32 with fitted constants under which a decoded formula counts as right
)
NUDGE = 1e-3  # relative size of the disturbance whose growth is measured


def unseen(encoded: Encoded) -> Encoded:
    """The same record with nothing in it: no points, no summary."""
    points = encoded.points
    return Encoded(
        jnp.zeros_like(encoded.each),
        jnp.zeros_like(encoded.summary),
        Points(points.x, jnp.zeros_like(points.y), jnp.zeros_like(points.mask)),
    )


def gram_penalty(z: Float[Array, "batch slots dim"]) -> Array:
    """Mean squared distance of Z Z^T from the identity."""
    return jnp.mean((z @ jnp.swapaxes(z, -1, -2) - jnp.eye(z.shape[1], dtype=z.dtype)) ** 2)


def loss_of(
    graph: Any,
    bank: SkeletonTable,
    probes: Array,
    recipe: TrainConfig,
    injected: bool,
    penalty: float,
) -> Any:
    """Cross-entropy after each of `unroll` steps from the seed thought, without candidates; the
    gradient goes through all of them.
    """
    weights = length_weights(bank)

    def loss(params: Any, key: Array) -> Array:
        model = nnx.merge(graph, params)
        k_draw, k_noise = jax.random.split(key)
        e = draw_examples(k_draw, bank, recipe.batch, weights=weights, reject=excludes(probes))
        points = Points(e.x, e.y, e.mask)
        encoded = model.encoder(points)
        later = encoded if injected else unseen(encoded)
        z = model.refiner.start(
            recipe.noise
            * jax.random.normal(k_noise, (recipe.batch, *model.refiner.seed[...].shape))
        )

        def step(z: Array, t: Array) -> tuple[Array, Array]:
            seen = jax.tree.map(lambda a, b: jnp.where(t == 0, a, b), encoded, later)
            z = model.refiner(z, seen, no_candidate(seen.points))
            return z, harness.cross_entropy(model.refiner.logits(z), e) + penalty * gram_penalty(z)

        return jnp.mean(jax.lax.scan(step, z, jnp.arange(recipe.unroll))[1])

    return loss


@functools.partial(jax.jit, static_argnames=("graph", "steps", "injected", "feedback"))
def watch(
    params: Any,
    graph: Any,
    points: Points,
    key: Array,
    *,
    steps: int,
    injected: bool,
    feedback: bool,
) -> dict[str, Array]:
    """Run the latents of a batch of scatter plots and keep, for every step and plot, what drift
    shows itself in.
    """
    model = nnx.merge(graph, params)
    batch = points.y.shape[0]
    encoded = model.encoder(points)
    later = encoded if injected else unseen(encoded)
    k_noise, k_nudge = jax.random.split(key)
    start = model.refiner.start(
        0.3 * jax.random.normal(k_noise, (batch, *model.refiner.seed[...].shape))
    )
    nudge = jax.random.normal(k_nudge, start.shape)
    nudge = (
        NUDGE
        * nudge
        * jnp.linalg.norm(start, axis=(1, 2), keepdims=True)
        / jnp.linalg.norm(nudge, axis=(1, 2), keepdims=True)
    )

    def step(carry: Any, t: Array) -> tuple[Any, dict[str, Array]]:
        z, twin, candidate = carry
        seen = jax.tree.map(lambda a, b: jnp.where(t == 0, a, b), encoded, later)
        shown = candidate if feedback else no_candidate(seen.points, z.shape[1])
        new, twin = model.refiner(z, seen, shown), model.refiner(twin, seen, shown)
        gram = new @ jnp.swapaxes(new, -1, -2)
        size = jnp.sqrt(jnp.diagonal(gram, axis1=1, axis2=2))
        cosine = jnp.abs(gram) / (size[:, :, None] * size[:, None])
        share = jnp.maximum(jnp.linalg.eigvalsh(gram), 1e-12)
        share = share / jnp.sum(share, axis=1, keepdims=True)
        logits = model.refiner.logits(new)
        if feedback:
            tokens = grammar.best(logits)
            own = execute(tokens, jnp.asarray(TOKEN_VALUE)[tokens], points)
            candidate = tree_where(own.fvu < candidate.fvu, own, candidate)
        slots = z.shape[1]
        out = {
            "velocity": jnp.linalg.norm(new - z, axis=(1, 2)) / jnp.linalg.norm(z, axis=(1, 2)),
            "rank": jnp.exp(-jnp.sum(share * jnp.log(share), axis=1)),
            "cosine": (jnp.sum(cosine, axis=(1, 2)) - slots) / (slots * (slots - 1)),
            "gain": jnp.linalg.norm(twin - new, axis=(1, 2)) / jnp.linalg.norm(nudge, axis=(1, 2)),
            "logits": logits,
        }
        return (new, twin, candidate), out

    return jax.lax.scan(
        step, (start, start + nudge, no_candidate(points, start.shape[1])), jnp.arange(steps)
    )[1]


@functools.partial(jax.jit, static_argnames="count")
def drawn_and_explained(key: Array, logits: Array, points: Points, count: int) -> Array:
    """For every row of logits, whether the best or one of `count` sampled formulas explains its
    plot.
    """
    tokens = jnp.concatenate(
        [grammar.best(logits)[:, None], grammar.sample(key, logits, count)], axis=1
    )
    return jnp.any(
        jax.lax.map(lambda one: explained(one, points), jnp.swapaxes(tokens, 0, 1)), axis=0
    )


@jax.jit
def explained(tokens: Array, points: Points) -> Array:
    """Whether each formula, its constants fitted, leaves less than `EXPLAINED` of its plot
    unexplained.
    """
    return (
        levenberg_marquardt(
            tokens, jnp.asarray(TOKEN_VALUE)[tokens], points.x, points.y, points.mask, steps=10
        ).fvu
        < EXPLAINED
    )


def measure(
    params: Any,
    graph: Any,
    options: argparse.Namespace,
    bank: SkeletonTable,
    *,
    injected: bool,
    feedback: bool,
    seed: int,
) -> dict[str, Any]:
    """Everything about one model on the held-out slice and on plots drawn anew from the bank, at 1,
    2, 4, ... steps.
    """
    problems = heldout_problems(harness.DATA / "heldout.csv", every=options.every)
    points = jax.tree.map(
        lambda a: jnp.repeat(a, options.thoughts, axis=0), harness.stack(problems)
    )
    run = functools.partial(
        watch, params, graph, steps=options.most, injected=injected, feedback=feedback
    )
    seen = run(points, jax.random.key(seed))
    at = [2**k for k in range(options.most.bit_length())]
    out: dict[str, Any] = {"steps": at}
    for name in ("velocity", "rank", "cosine", "gain"):
        each = np.asarray(seen[name]).reshape(options.most, len(problems), options.thoughts).mean(2)
        out[name] = [
            harness.interval(
                each[t - 1], np.median if name in ("velocity", "gain") else np.mean, count=500
            )
            for t in at
        ]
    right = [
        drawn_and_explained(jax.random.key(seed), seen["logits"][t - 1], points, options.samples)
        for t in at
    ]
    right = [np.asarray(r).reshape(len(problems), -1).any(1) for r in right]
    out["recovered"] = [harness.interval(r) for r in right]
    out["recovered_each"] = np.array(right).astype(int)
    e = draw_examples(
        jax.random.key(10_000),
        bank,
        options.fresh,
        weights=length_weights(bank),
        reject=excludes(harness.exclusions()[1]),
    )
    logits = run(Points(e.x, e.y, e.mask), jax.random.key(seed + 1))["logits"]
    out["loss"] = [float(harness.cross_entropy(logits[t - 1], e)) for t in at]
    return out


def milliseconds(params: Any, graph: Any, thoughts: int = 32) -> float:
    """One compiled refiner step of 32 thoughts on 64 points."""
    problems = heldout_problems(harness.DATA / "heldout.csv", every=300)
    points = jax.tree.map(lambda a: jnp.repeat(a, thoughts, axis=0), harness.stack(problems))

    @jax.jit
    def ready(params: Any) -> Any:
        model = nnx.merge(graph, params)
        return model.encoder(points), model.refiner.start(
            jnp.zeros((thoughts, *model.refiner.seed[...].shape))
        )

    encoded, z = ready(params)
    step = jax.jit(
        lambda params, z, encoded: nnx.merge(graph, params).refiner(
            z, encoded, no_candidate(points, z.shape[1])
        )
    )
    step(params, z, encoded)
    return 1000 * harness.clock(lambda: step(params, z, encoded), repeats=9)


def one_case(options: argparse.Namespace, kind: str, condition: str, seed: int) -> dict[str, Any]:
    """Train one small model and watch it."""
    injected = condition != "once"
    base = (
        harness.TINY
        if options.quick
        else ModelConfig(latent_dim=options.latent_dim, width=options.width)
    )
    config = replace(base, stabiliser="rms" if kind == "gram" else kind)
    recipe = TrainConfig(
        batch=options.batch, warmup=1 if options.quick else 200, unroll=options.unroll, seed=seed
    )
    bank = harness.training_bank(options.work, options.bank)
    params, graph = harness.parts_of(config, seed=seed)
    loss = loss_of(
        graph, bank, harness.exclusions()[1], recipe, injected, 1.0 if kind == "gram" else 0.0
    )
    params, log = harness.fit(
        loss, params, recipe, seconds=options.seconds, steps=3 if options.quick else None
    )
    watched = measure(params, graph, options, bank, injected=injected, feedback=False, seed=seed)
    record = {
        "stabiliser": kind,
        "condition": condition,
        "seed": seed,
        "commit": environment("")["commit"],
        "training": log,
    }
    return {**record, "ms": milliseconds(params, graph), **watched}


def shipped_case(options: argparse.Namespace, kind: str, condition: str) -> dict[str, Any]:
    """The shipped weights with another stabiliser in place of the one they were trained with."""
    injected = condition != "once"
    params, _, config = harness.shipped()
    graph, _ = nnx.split(
        nnx.eval_shape(lambda: Model(replace(config, stabiliser=kind), rngs=nnx.Rngs(0)))
    )
    bank = harness.training_bank(options.work, options.bank)
    watched = measure(params, graph, options, bank, injected=injected, feedback=injected, seed=0)
    return {
        "stabiliser": kind,
        "trained_with": config.stabiliser,
        "condition": condition,
        "ms": milliseconds(params, graph),
        **watched,
    }


def task(options: argparse.Namespace, name: str) -> None:
    """`polar:free:0` (stabiliser, condition, seed) or `shipped:polar:each`."""
    first, second, third = name.split(":")
    condition = third if first == "shipped" else second
    # a task has a process of its own, so nothing that was traced with another anchor is met again
    with mock.patch("refinemath.model.ANCHOR", 0.0 if condition == "free" else ANCHOR):
        record = (
            shipped_case(options, second, third)
            if first == "shipped"
            else one_case(options, first, second, int(third))
        )
    harness.save_task(options.work, name, record)


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    """Run what is missing, then write the table."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--latent-dim", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--seconds",
        type=float,
        default=120.0,
        help="training time of a model, in seconds of one core",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--unroll", type=int, default=4, help="steps trained")
    parser.add_argument("--most", type=int, default=64, help="steps run")
    parser.add_argument("--thoughts", type=int, default=4)
    parser.add_argument(
        "--samples", type=int, default=32, help="formulas drawn from a thought, beside its best"
    )
    parser.add_argument("--fresh", type=int, default=512, help="plots drawn anew for the loss")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--bank", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=4, help="each N-th held-out formula")
    parser.add_argument("--shipped", action="store_true", help="the shipped weights as well")
    options = parser.parse_args(arguments)
    if options.quick:
        (
            options.batch,
            options.bank,
            options.seeds,
            options.every,
            options.most,
            options.kinds,
            options.thoughts,
        ) = 8, 40, 1, 100, 8, ["polar"], 2
        options.samples, options.fresh = 2, 8
    if options.only:
        harness.one_core(options.core)
        harness.keep_compiled(options.work / "compiled")
        task(options, options.only)
        return None
    began = time.perf_counter()
    options.work = harness.folder(options, "latent_drift")
    tasks = [
        f"{kind}:{condition}:{seed}"
        for seed in range(options.seeds)
        for kind in options.kinds
        for condition in CONDITIONS
    ]
    if options.shipped:
        tasks += [
            f"shipped:{kind}:{condition}"
            for kind in options.kinds
            if kind != "gram"
            for condition in CONDITIONS
        ]
    if options.quick:
        tasks = tasks[:1]
        for name in tasks:
            task(options, name)
    else:
        harness.training_bank(options.work, options.bank)
        passed: list[str] = []
        for name in (
            "width",
            "latent_dim",
            "batch",
            "seconds",
            "unroll",
            "most",
            "thoughts",
            "samples",
            "fresh",
            "bank",
            "every",
        ):
            passed += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        harness.in_children("latent_drift", tasks, options.jobs, options.work, passed)
    cases = [harness.load_task(options.work, name) for name in tasks]
    for case in cases:
        recovered = " ".join(f"{r['value']:.2f}" for r in case["recovered"])
        losses = " ".join(f"{value:.2f}" for value in case["loss"])
        last = {name: case[name][-1]["value"] for name in ("rank", "cosine", "velocity", "gain")}
        who = "shipped" if "trained_with" in case else f"seed {case['seed']}"
        label = f"{case['stabiliser']:5s} {CONDITIONS[case['condition']]}, {who}"
        end = ", ".join(f"{name} {value:.2g}" for name, value in last.items())
        print(
            f"{label}: recovered {recovered}; loss {losses}; at {case['steps'][-1]} steps {end}; "
            f"{case['ms']:.1f} ms"
        )
    trained = [c for c in cases if "trained_with" not in c]
    return harness.write("latent_drift", options, {"table": table(trained), "cases": cases}, began)


def table(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each stabiliser and condition: means over seeds at every step recorded; recovery
    with an interval over problems.
    """
    rows = []
    for kind, condition in dict.fromkeys((c["stabiliser"], c["condition"]) for c in cases):
        mine = [c for c in cases if (c["stabiliser"], c["condition"]) == (kind, condition)]
        each = np.mean([c["recovered_each"] for c in mine], axis=0)
        rows.append(
            {
                "stabiliser": kind,
                "condition": condition,
                "seeds": len(mine),
                "ms": float(np.median([c["ms"] for c in mine])),
                "steps": mine[0]["steps"],
                "recovered": [harness.interval(e) for e in each],
                "loss": np.mean([c["loss"] for c in mine], axis=0),
                "loss_by_seed": [c["loss"] for c in mine],
                **{
                    n: [float(np.mean([c[n][i]["value"] for c in mine])) for i in range(len(each))]
                    for n in ("rank", "cosine", "velocity", "gain")
                },
            }
        )
    return rows


if __name__ == "__main__":
    main()
