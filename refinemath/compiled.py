"""The search and its proposers as one compiled program, with what a proposer declares it uses."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from refinemath.fitting import Candidate, Points
from refinemath.loop import (
    Context,
    Proposer,
    SearchConfig,
    SearchOutput,
    SettleOutput,
    Trace,
    search,
    settle,
)
from refinemath.pool import Pool
from refinemath.proposers.library import make_library
from refinemath.proposers.short import initial_pool

# A first answer waits for the compiler.  XLA's newer code generator for the CPU (an option until
# JAX 0.11) and more optimisation than level 1 would make the loop somewhat faster, and that wait
# longer than they save in a few answers.
_OLD_GENERATOR: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}
_QUICK_TO_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 1} | (
    _OLD_GENERATOR if jax.__version_info__ < (0, 11) else {}
)


@functools.partial(
    jax.jit, static_argnames=("graph", "proposers", "config"), compiler_options=_QUICK_TO_COMPILE
)
def run_search(
    params: Any,
    graph: Any,
    points: Points,
    key: Array,
    skeletons: Int[Array, "entries slots"],
    table: Int[Array, "skeletons slots"],
    limit: Array,
    *,
    forbidden: Bool[Array, " vocabulary"] | None = None,
    proposers: tuple[Proposer, ...],
    config: SearchConfig,
) -> SearchOutput:
    """One search on one set of points (batch size 1).

    `params`, `graph`: the split model, or None where no proposer reads latents.  `skeletons`: short
    formulas for the library, `table`: skeletons for blind draws; no rows where nobody uses them.
    `forbidden`: tokens that no formula may hold.
    """
    k_library, k_search = jax.random.split(key)
    library = make_library(k_library, skeletons, points)
    size = min(config.pool, len(skeletons))
    pool = initial_pool(library, points, size) if size else None
    model = None if graph is None else nnx.merge(graph, params)
    context = Context(points, library, table, forbidden)
    return search(model, context, pool, k_search, limit, proposers=proposers, config=config)


@functools.partial(jax.jit, static_argnames=("graph", "config"), compiler_options=_QUICK_TO_COMPILE)
def run_settle(
    params: Any,
    graph: Any,
    points: Points,
    latents: Float[Array, "latents slots dim"],
    best: Candidate,
    threshold: Array,
    limit: Array,
    *,
    config: SearchConfig,
) -> SettleOutput:
    """`loop.settle` compiled."""
    model = nnx.merge(graph, params)
    return settle(model, points, latents, best, threshold, limit, config)


class SearchRecord(NamedTuple):
    """A search and how its latents came to rest, in NumPy."""

    pool: Pool
    latents: np.ndarray  # (latents, slots, dim)
    trace: Trace  # a row for each step
    searched: int  # steps in which the candidates changed; in the others the latents came to rest
    steps: int
    found_at: int
    converged: bool


def record_search(
    params: Any,
    graph: Any,
    points: Points,
    output: SearchOutput,
    threshold: float,
    config: SearchConfig,
) -> SearchRecord:
    """The record of a search; its latents are brought to rest first, if there are any, in at most
    the steps of `config` that are left.
    """
    searched = int(output.steps)
    latents, rows, steps, converged = output.latents, [(output.trace, searched)], searched, True
    if len(latents):
        best, stop = output.pool.candidates(), jnp.float32(threshold)
        steps_left = jnp.int32(config.steps - searched)
        end = run_settle(params, graph, points, latents, best, stop, steps_left, config=config)
        latents, converged = end.latents, bool(end.converged)
        rows.append((end.trace, int(end.steps)))
        steps += int(end.steps)
    traces = [jax.tree.map(lambda a, n=n: np.asarray(a)[:n], trace) for trace, n in rows]
    trace = jax.tree.map(lambda *parts: np.concatenate(parts), *traces)
    pool = jax.tree.map(np.asarray, output.pool)
    found_at = int(output.found_at)
    return SearchRecord(pool, np.asarray(latents), trace, searched, steps, found_at, converged)


def no_rows(slots: int) -> Int[Array, "0 slots"]:
    """Skeletons where none are used."""
    return jnp.zeros((0, slots), jnp.uint8)
