"""Does scan fuse the loop?  A Python loop of jitted steps, an unrolled jit, scan and while_loop:
compile time, run time, memory, kernels.

The step is the shipped refiner on a few latents about one scatter plot, without a candidate.
Memory is what the compiled program reserves beside its inputs.  A kernel is an instruction of the
optimised program outside the fused computations; those in the body of a loop run once a step.
"""

from __future__ import annotations

import functools
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from experiments import measure, networks
from experiments.runner import DATA, Experiment
from refinemath.engine import device_points
from refinemath.evaluation import heldout_problems
from refinemath.fitting import no_candidate
from refinemath.problem import prepare

WAYS = ("Python loop", "unrolled", "scan", "while_loop")
LATENTS = 8


@functools.cache
def ways() -> tuple[dict[str, Callable[[int, Any, Array], Any]], Any, Array]:
    """Every way to take n steps, with the parameters and latents that they start from."""
    params, graph, config = networks.shipped()
    problem = heldout_problems(DATA / "heldout.csv", every=300)[0]
    one = device_points(prepare(problem.x, problem.y))
    points = jax.tree.map(lambda a: jnp.repeat(a, LATENTS, axis=0), one)
    nothing = no_candidate(points, config.slots)
    encoded = jax.jit(lambda p: nnx.merge(graph, p).encoder(points))(params)
    shape = (LATENTS, config.slots, config.latent_dim)
    noise = 0.3 * jax.random.normal(jax.random.key(0), shape)
    z = jax.jit(lambda p: nnx.merge(graph, p).refiner.start(noise))(params)

    def step(params: Any, z: Array) -> Array:
        return nnx.merge(graph, params).refiner(z, encoded, nothing)

    def unrolled(n: int, params: Any, z: Array) -> Array:
        for _ in range(n):
            z = step(params, z)
        return z

    def scan(n: int, params: Any, z: Array) -> Array:
        return jax.lax.scan(lambda z, _: (step(params, z), None), z, None, length=n)[0]

    def while_loop(n: int, params: Any, z: Array) -> Array:
        def body(state: tuple[Array, Array]) -> tuple[Array, Array]:
            return step(params, state[0]), state[1] + 1

        return jax.lax.while_loop(lambda state: state[1] < n, body, (z, jnp.int32(0)))[0]

    return {"unrolled": unrolled, "scan": scan, "while_loop": while_loop}, params, z


@functools.cache
def single_step() -> tuple[Any, dict[str, Any]]:
    """One step, compiled."""
    calls, params, z = ways()
    return measure.compiled(functools.partial(calls["unrolled"], 1), params, z)


def tasks(options: Namespace) -> list[str]:
    """Every way at 1, 2, 4, ... steps."""
    return [f"{w}:{2**k}" for k in range(options.most.bit_length()) for w in WAYS]


def task(options: Namespace, name: str) -> dict[str, Any]:
    """Compile one way, run it, and compare it with the Python loop."""
    way, n = name.split(":")[0], int(name.split(":")[1])
    if way == "unrolled" and n > options.most_unrolled:
        return {"way": way, "steps": n, "left_out": f"over {options.most_unrolled} steps"}
    calls, params, z = ways()
    one, row = single_step()

    def python_loop(z: Array = z) -> Array:
        for _ in range(n):
            z = one(params, z)
        return z

    call, run = python_loop, {"dispatches": n, "kernels_run": n * row["kernels"]["program"]}
    if way != "Python loop":
        program, row = measure.compiled(functools.partial(calls[way], n), params, z)
        call, kernel = functools.partial(program, params, z), row["kernels"]
        run = {"dispatches": 1, "kernels_run": kernel["program"] + n * kernel["loop"]}
        run["apart_from_python_loop"] = float(jnp.max(jnp.abs(call() - python_loop())))
    seconds = measure.times(call, repeats=options.repeats)
    timed = {"seconds": measure.interval(seconds, np.median)}
    return {"way": way, "steps": n, **row, **timed, **run}


EXPERIMENT = Experiment(
    "scan_fuses",
    __doc__,
    tasks,
    task,
    lambda options, records: {"rows": list(records.values())},
    shared=("repeats",),
    options={"most": 256, "most_unrolled": 64},
    quick={"most": 2},
)
