"""Does scan fuse the loop?  A Python loop of jitted steps, an unrolled jit, scan and while_loop:
compile time, run time, memory, kernels.

The step is the shipped refiner on a few thoughts about one scatter plot, without a candidate.
Memory is what the compiled program reserves beside its inputs, as the compiler reports it.  A
kernel is an instruction of the optimised program outside the fused computations; those in the body
of a loop run once a step.  The gradient through scan, with and without recomputing, shows what
training needs.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from experiments import harness
from refinemath.evaluation import heldout_problems
from refinemath.fitting import no_candidate

FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
}  # no work at run time


def kernels(program: str) -> dict[str, int]:
    """Instructions that run, in the text of an optimised program: outside every loop, and in the
    bodies of its loops.
    """
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            name = head.group(2)
            entry = name if head.group(1) else entry
            bodies[name] = []
        elif line.startswith("  ") and " = " in line:
            bodies[name].append(line)

    def count(computation: str) -> dict[str, int]:
        total = {"program": 0, "loop": 0}
        for line in bodies[computation]:
            match = re.search(r"[\]})] ([a-z][\w\-]*)\(", line)
            operation = match.group(1) if match else ""
            called = dict(re.findall(r"(body|condition|to_apply)=%?([\w.\-]+)", line))
            if operation == "while":
                for part in ("body", "condition"):
                    inner = count(called[part])
                    total["loop"] += inner["program"] + inner["loop"]
            elif operation == "call":
                inner = count(called["to_apply"])
                total = {k: total[k] + inner[k] for k in total}
            elif operation not in FREE:
                total["program"] += 1
        return total

    return count(entry)


def compiled(call: Callable[..., Any], *arguments: Any) -> tuple[Any, dict[str, Any]]:
    """The compiled program of a call, and what it cost and needs."""
    began = time.perf_counter()
    program = jax.jit(call).lower(*arguments).compile()
    seconds = time.perf_counter() - began
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None and text is not None, (
        "this backend reports neither memory nor its program"
    )
    needs = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return program, {"compile_seconds": seconds, "bytes": needs, "kernels": kernels(text)}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Every way at every number of steps."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--most", type=int, default=256, help="most steps")
    parser.add_argument("--thoughts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--limit",
        type=float,
        default=60.0,
        help="seconds of compilation after which longer unrolled programs are left out",
    )
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    if options.quick:
        options.most, options.repeats = min(options.most, 4), 3
        config = harness.TINY
        params, graph = harness.parts_of(config)
    else:
        params, graph, config = harness.shipped()
    problem = heldout_problems(harness.DATA / "heldout.csv", every=300)
    points = jax.tree.map(lambda a: jnp.repeat(a, options.thoughts, axis=0), harness.stack(problem))
    encoded = jax.jit(lambda p: nnx.merge(graph, p).encoder(points))(params)
    noise = 0.3 * jax.random.normal(
        jax.random.key(options.seed), (options.thoughts, config.slots, config.latent_dim)
    )
    z = jax.jit(lambda p: nnx.merge(graph, p).refiner.start(noise))(params)

    def step(params: Any, z: Array) -> Array:
        return nnx.merge(graph, params).refiner(z, encoded, no_candidate(points, config.slots))

    def unrolled(n: int, params: Any, z: Array) -> Array:
        for _ in range(n):
            z = step(params, z)
        return z

    def scan(n: int, params: Any, z: Array) -> Array:
        return jax.lax.scan(lambda z, _: (step(params, z), None), z, None, length=n)[0]

    def while_loop(n: int, params: Any, z: Array) -> Array:
        return jax.lax.while_loop(
            lambda c: c[1] < n, lambda c: (step(params, c[0]), c[1] + 1), (z, jnp.int32(0))
        )[0]

    def gradient(n: int, params: Any, z: Array, *, again: bool) -> Any:
        body = jax.checkpoint(step) if again else step  # type: ignore[attr-defined]
        return jax.grad(
            lambda p: jnp.sum(
                jax.lax.scan(lambda z, _: (body(p, z), None), z, None, length=n)[0][..., 0]
            )
        )(params)

    single, cost = compiled(step, params, z)
    rows: list[dict[str, Any]] = []
    reference: dict[int, Array] = {}
    counts = [2**k for k in range(options.most.bit_length())]
    spent = 0.0
    for n in counts:

        def python_loop(n: int = n) -> Array:
            out = z
            for _ in range(n):
                out = single(params, out)
            return out

        reference[n] = python_loop()
        seconds = harness.times(python_loop, repeats=options.repeats)
        rows.append(
            {
                "way": "Python loop",
                "steps": n,
                **cost,
                "seconds": harness.interval(seconds, np.median),
                "dispatches": n,
            }
        )
        for way, call in (("unrolled", unrolled), ("scan", scan), ("while_loop", while_loop)):
            if way == "unrolled" and 2 * spent > options.limit:
                rows.append(
                    {
                        "way": way,
                        "steps": n,
                        "left_out": f"the program of half as many steps took {spent:.0f} s to compile",
                    }
                )
                spent *= 2
                continue
            program, row = compiled(lambda p, z, call=call, n=n: call(n, p, z), params, z)
            spent = row["compile_seconds"] if way == "unrolled" else spent
            apart = float(jnp.max(jnp.abs(program(params, z) - reference[n])))
            seconds = harness.times(functools.partial(program, params, z), repeats=options.repeats)
            rows.append(
                {
                    "way": way,
                    "steps": n,
                    **row,
                    "seconds": harness.interval(seconds, np.median),
                    "dispatches": 1,
                    "apart_from_python_loop": apart,
                }
            )
        for way, again in (
            ("gradient through scan", False),
            ("gradient through scan, recomputed", True),
        ):
            if n >= 4 and n in counts[::2]:
                _, row = compiled(
                    lambda p, z, again=again, n=n: gradient(n, p, z, again=again), params, z
                )
                rows.append({"way": way, "steps": n, **row})
        for row in rows[-6:]:
            if row["steps"] == n and "seconds" in row:
                k = row["kernels"]
                launched = (
                    row["dispatches"] * k["program"]
                    if row["way"] == "Python loop"
                    else k["program"] + (n * k["loop"] if k["loop"] else 0)
                )
                row["kernels_run"] = launched
                print(
                    f"{n:4d} {row['way']:12s} compile {row['compile_seconds']:6.2f} s, run "
                    f"{1000 * row['seconds']['value']:8.2f} ms, "
                    f"{row['bytes'] / 1e6:7.2f} MB, {launched} kernels",
                    flush=True,
                )
    return harness.write("scan_fuses", options, {"one_step": cost, "rows": rows}, began)


if __name__ == "__main__":
    main()
