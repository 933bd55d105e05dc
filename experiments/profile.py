"""Where the time goes: the training step (share of the matrix-product peak, share of data), an
answer, and the first answer of a fresh process.

Each part is compiled and timed alone, in turns with the whole, so the parts need not add up to it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments import harness
from experiments.flops import training_flops
from refinemath import RefineMath, SearchConfig, loop
from refinemath.answer.choose import Answers, refit
from refinemath.corpus.exclusions import excludes
from refinemath.evaluation import heldout_problems
from refinemath.examples import draw_examples, length_weights
from refinemath.fitting import Points
from refinemath.problem import prepare
from refinemath.proposers.library import short_skeletons
from refinemath.solver import device_points, pool_candidates
from refinemath.training import (
    TrainConfig,
    best_own_sample,
    fresh_batch,
    loss_fn,
    make_optimizer,
    make_trainer,
)

FIRST = """
import time; a = time.time(); import refinemath; b = time.time()
model = refinemath.RefineMath(); model.solve("data/physics_data.npy", time_budget={seconds}); print(b - a, time.time() - a)
"""


def training(options: Any) -> dict[str, Any]:
    """Seconds of the whole step and of its parts."""
    config = harness.TINY if options.quick else harness.shipped()[2]
    recipe = TrainConfig(batch=options.batch)
    bank = harness.training_bank(harness.folder(options, "profile"), options.bank)
    probes, weights, key = (
        harness.exclusions()[1],
        length_weights(bank),
        jax.random.key(options.seed),
    )
    trainer = make_trainer(config, recipe, bank, probes)
    params, graph = harness.parts_of(config)
    optimizer = make_optimizer(recipe, params)
    moments = optimizer.init(params)
    state = [trainer.init()]

    def whole() -> Any:
        state[0], metrics = trainer.step(state[0])
        return metrics

    draw = jax.jit(
        lambda k: draw_examples(k, bank, recipe.batch, weights=weights, reject=excludes(probes))
    )
    fresh = jax.jit(
        lambda p, k: fresh_batch(k, nnx.merge(graph, p), bank, recipe, weights, probes, config)
    )
    thoughts = fresh(params, key)

    # the thoughts are arguments: the compiler works out beforehand what depends on constants alone
    @jax.jit
    def sample(p: Any, k: jax.Array, thoughts: Any) -> Any:
        points = Points(thoughts.examples.x, thoughts.examples.y, thoughts.examples.mask)
        return best_own_sample(
            k,
            nnx.merge(graph, p).refiner.sample(k, thoughts.z, recipe.own_samples),
            points,
            thoughts.candidate,
        )

    gradient = jax.jit(
        lambda p, k, thoughts: jax.grad(loss_fn, has_aux=True)(p, graph, thoughts, k, recipe)[0]
    )
    update = jax.jit(optimizer.update)
    parts: dict[str, Callable[[], Any]] = {
        "whole step": whole,
        "draw examples": lambda: draw(key),
        "new thoughts, with their examples": lambda: fresh(params, key),
        "own samples, one refiner step": lambda: sample(params, key, thoughts),
        "loss and gradient, with own samples": lambda: gradient(params, key, thoughts),
        "optimizer": lambda: update(params, moments, params),
    }
    seconds = in_turns(parts, options.repeats)
    middle = {name: float(np.median(s)) for name, s in seconds.items()}
    peak = harness.matmul_peak(256 if options.quick else 1024)
    flops = training_flops(config, recipe) * recipe.batch
    network = (
        middle["loss and gradient, with own samples"]
        - recipe.unroll * middle["own samples, one refiner step"]
    )
    return {
        "batch": recipe.batch,
        "parts": {name: harness.interval(s, np.median) for name, s in seconds.items()},
        "examples_per_second": recipe.batch / middle["whole step"],
        "matmul_peak": peak,
        "share_of_matmul_peak": flops / middle["whole step"] / peak,
        "share_of_matmul_peak_in_gradient": flops / max(network, 1e-9) / peak,
        "share_of_data": middle["draw examples"] / middle["whole step"],
        "share_of_optimizer": middle["optimizer"] / middle["whole step"],
    }


def in_turns(parts: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every part, compiled before and taken in turns."""
    for call in parts.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, call in parts.items():
            seconds[name] += harness.times(call, repeats=1)
    return seconds


def solving(options: Any) -> dict[str, Any]:
    """Seconds of the phases of one search, the median over some held-out problems, and what the
    search spends on what.
    """
    budget = harness.QUICK if options.quick else SearchConfig()
    params, graph, config = harness.shipped()
    problems = heldout_problems(
        harness.DATA / "heldout.csv", every=100 if options.quick else options.every
    )
    start, prior = (
        jnp.asarray(short_skeletons(config.slots, 32)),
        jnp.zeros((1, config.slots), jnp.uint8),
    )
    nothing = jnp.zeros((0, config.slots), jnp.uint8)

    def searched(budget: SearchConfig, problem: Any, start: Any = start) -> Any:
        points = device_points(prepare(problem.x[:, None], problem.y))
        return jax.block_until_ready(
            loop.search(
                params,
                graph,
                points,
                jax.random.key(0),
                jnp.float32(1e-5),
                start,
                prior,
                budget=budget,
            )
        )

    phases: dict[str, list[float]] = {
        name: [] for name in ("prepare", "think", "fit in float64", "choose and snap")
    }
    searched(budget, problems[0])
    steps = []
    for problem in problems:
        a = time.perf_counter()
        prepared = prepare(problem.x[:, None], problem.y)
        b = time.perf_counter()
        outcome = searched(budget, problem)
        c = time.perf_counter()
        front = refit(pool_candidates(outcome), prepared)
        d = time.perf_counter()
        Answers(prepared).choose(front)
        for name, value in zip(phases, (b - a, c - b, d - c, time.perf_counter() - d), strict=True):
            phases[name].append(value)
        steps.append(int(outcome.steps))
    report = {
        "steps_median": float(np.median(steps)),
        "phases": {k: harness.interval(v, np.median) for k, v in phases.items()},
    }
    if not options.quick:
        # a search that never stops early, whole and with parts left out
        full = replace(budget, solved=0.0, steps=budget.search_steps)
        parts = {
            "whole search": (full, start),
            "no sweep": (full, nothing),
            "no edits": (replace(full, edits=0), start),
            "one fit step": (replace(full, fit_steps=1), start),
            "no network": (replace(full, network=False), start),
        }
        seconds = in_turns(
            {name: lambda b=b, s=s: searched(b, problems[-1], s) for name, (b, s) in parts.items()},
            options.repeats,
        )  # type: ignore[misc]
        report["left out"] = {name: harness.interval(s, np.median) for name, s in seconds.items()}
        model = RefineMath()
        report["warm answer"] = harness.interval(
            [result.seconds for _, result, _ in harness.answers(model, problems)], np.median
        )
    return report


def first_answer(repeats: int) -> dict[str, Any]:
    """Seconds from the start of Python's imports to the formula of the first search, in fresh
    processes: the first one on a machine, which compiles, and a later one; and to the end of a
    whole answer, which for measured data lasts as long as its `time_budget` of 8 seconds allows.
    """

    def once(cache: str, seconds: float) -> tuple[float, float]:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        imports, total = subprocess.run(
            [sys.executable, "-c", FIRST.format(seconds=seconds)],
            check=True,
            cwd=harness.ROOT,
            env=environment,
            capture_output=True,
            text=True,
        ).stdout.split()
        return float(imports), float(total)

    names = {
        "first formula on a machine": 0.01,
        "first formula later": 0.01,
        "whole answer later": 8.0,
    }
    rows: dict[str, list[float]] = {name: [] for name in ("import", *names)}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name, seconds in names.items():
                imports, total = once(cache, seconds)
                rows["import"].append(imports)
                rows[name].append(total)
    return {name: harness.interval(seconds, np.median) for name, seconds in rows.items()}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Profile both, and a fresh process."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--batch", type=int, default=TrainConfig().batch)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bank", type=int, default=2000)
    parser.add_argument("--every", type=int, default=15)
    options = parser.parse_args(arguments)
    if options.quick:
        options.batch, options.repeats, options.bank = 8, 2, 40
    began = time.perf_counter()
    report = {"training": training(options), "solve": solving(options)}
    if not options.quick:
        report["fresh process"] = first_answer(3)
    for name, value in report["training"]["parts"].items():
        print(f"{name:40s} {1000 * value['value']:9.1f} ms")
    t = report["training"]
    print(
        f"training: {100 * t['share_of_matmul_peak']:.0f} % of the matrix-product peak, data "
        f"{100 * t['share_of_data']:.1f} %"
    )
    for name, value in report["solve"]["phases"].items():
        print(f"{name:40s} {1000 * value['value']:9.1f} ms")
    return harness.write("profile", options, report, began)


if __name__ == "__main__":
    main()
