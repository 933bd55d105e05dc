"""The search and its proposers as one compiled program, with what a proposer declares it uses."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from refinemath.fitting import Candidate, Points
from refinemath.loop import Context, Proposer, SearchConfig, SearchOutput, Trace, search, settle
from refinemath.proposers.library import make_library
from refinemath.proposers.short import initial_pool

# A first answer waits for the compiler.  XLA's newer code generator for the CPU and more
# optimisation than level 1 would make the loop somewhat faster, and that wait longer than they save
# in a few answers.
_QUICK_TO_COMPILE = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}


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
    proposers: tuple[Proposer, ...],
    config: SearchConfig,
) -> SearchOutput:
    """One search on one set of points (batch size 1).

    `params`, `graph`: the split model, or None where no proposer reads latents.  `skeletons`: short
    formulas for the library, `table`: skeletons for blind draws; no rows where nobody uses them.
    """
    k_library, k_search = jax.random.split(key)
    library = make_library(k_library, skeletons, points)
    size = min(config.pool, len(skeletons))
    pool = initial_pool(library, points, size) if size else None
    model = None if graph is None else nnx.merge(graph, params)
    context = Context(points, library, table)
    return search(model, context, pool, k_search, limit, proposers=proposers, config=config)


@functools.partial(jax.jit, static_argnames=("graph", "config"), compiler_options=_QUICK_TO_COMPILE)
def run_settle(
    params: Any,
    graph: Any,
    points: Points,
    latents: Float[Array, "latents slots dim"],
    best: Candidate,
    threshold: Array,
    *,
    config: SearchConfig,
) -> tuple[Trace, Array, Array]:
    """`loop.settle` compiled: the trace, the steps taken, and whether every latent stands still."""
    return settle(nnx.merge(graph, params), points, latents, best, threshold, config)


def no_rows(slots: int) -> Int[Array, "0 slots"]:
    """Skeletons where none are used."""
    return jnp.zeros((0, slots), jnp.uint8)
