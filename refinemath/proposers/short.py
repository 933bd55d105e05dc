"""All short formulas: the first pool, and a queue of those whose constants are worth a fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from refinemath.execution import centre
from refinemath.expression import is_constant
from refinemath.fitting import TERMS, Candidate, Points
from refinemath.pool import Pool, best_per_group, score, skeleton_hash, top_per_group
from refinemath.proposers.library import Library


def initial_pool(library: Library, points: Points, most: int) -> Pool:
    """The library's `most` best formulas of different skeletons, each fitted up to scale and
    offset.
    """
    mask = points.mask
    target, mean = centre(points.y, mask)
    gain = library.unit @ target[0]
    total = jnp.maximum(jnp.sum(target**2), 1e-30)
    fvu = jnp.maximum(
        1.0 - gain**2 / total, 1e-7
    )  # which is the rounding of this difference: what looks exact is executed before it counts
    fvu = jnp.where(gain == 0, jnp.inf, fvu)
    all_of_it = Candidate(library.tokens, library.values, library.unit, fvu)
    count = jnp.sum(mask).astype(jnp.float32)
    best = top_per_group(all_of_it, 1, most, count)
    unit = library.unit[best]
    rows = jnp.zeros((most, TERMS, unit.shape[1]), unit.dtype).at[:, 0].set(unit)
    fitted = jnp.where(mask, mean + gain[best, None] * unit, 0.0)
    return Pool(
        library.tokens[best],
        library.values[best],
        fitted,
        fvu[best],
        score(library.tokens[best], fvu[best], count),
        rows,
    )


def queue_order(library: Library, points: Points, most: int) -> Int[Array, " most"]:
    """The best entry of each skeleton that holds a constant, the best skeletons first; entry 0
    where there are no more.
    """
    target = centre(points.y, points.mask)[0][0]
    gain = jnp.where(
        is_constant(library.tokens).any(axis=1),
        (library.unit @ target) ** 2 / jnp.maximum(jnp.sum(target**2), 1e-30),
        -1.0,
    )
    order, loss = best_per_group(skeleton_hash(library.tokens), -gain)
    best = jax.lax.top_k(-loss, min(most, len(order)))[1]
    rows = jnp.where(loss[best] <= 0, order[best], 0)
    return jnp.pad(rows, (0, most - len(rows)))
