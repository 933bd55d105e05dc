"""Short formulas: the first pool, and a queue of those whose constants are worth a fit.
(Chapter 8)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from refinemath.execution import Programs, centre
from refinemath.expression import is_constant
from refinemath.fitting import TERMS, Candidate, Points
from refinemath.loop import Context, Library, SearchState
from refinemath.pool import Pool, best_per_group, score, skeleton_hash, top_per_group
from refinemath.proposers.library import in_rounds, next_round

LEAST_FVU = 1e-7  # rounding of 1 - correlation^2: what looks exact is executed before it counts


@dataclass(frozen=True)
class Short:
    """A queue of the short formulas that hold a constant, best skeletons first."""

    refine: int = 32
    rounds: int = 8
    uses_library: ClassVar[bool] = True

    def init(self, context: Context, key: Array) -> Programs:
        """The queue, (rounds, refine, slots)."""
        rows = queue_order(context.library, context.points, self.rounds * self.refine)
        queue = Programs(context.library.tokens[rows], context.library.values[rows])
        return in_rounds(queue, self.rounds)

    def propose(
        self, model: Any, context: Context, memory: Programs, state: SearchState, key: Array
    ) -> tuple[Programs, Programs]:
        """The next of the queue."""
        return next_round(memory, state), memory


def correlations(library: Library, points: Points) -> tuple[Array, Array, Array]:
    """The centred target, its mean, and the product of it with each unit row of the library."""
    target, mean = centre(points.y, points.mask)
    return target[0], mean, library.unit @ target[0]


def initial_pool(library: Library, points: Points, size: int) -> Pool:
    """The library's `size` best formulas of different skeletons, up to scale and offset."""
    target, mean, gain = correlations(library, points)
    fvu = jnp.maximum(1.0 - gain**2 / jnp.maximum(jnp.sum(target**2), 1e-30), LEAST_FVU)
    fvu = jnp.where(gain == 0, jnp.inf, fvu)
    count = jnp.sum(points.mask).astype(jnp.float32)
    everything = Candidate(library.tokens, library.values, library.unit, fvu)
    best = top_per_group(everything, [(1, len(fvu), size)], count)[0]
    tokens, values, unit, fvu = jax.tree.map(lambda a: a[best], everything)
    rows = jnp.zeros((size, TERMS, unit.shape[1]), unit.dtype).at[:, 0].set(unit)
    fitted = jnp.where(points.mask, mean + gain[best, None] * unit, 0.0)
    return Pool(tokens, values, fitted, fvu, score(tokens, fvu, count), rows)


def queue_order(library: Library, points: Points, most: int) -> Int[Array, " most"]:
    """The best entry of each skeleton that holds a constant, the best skeletons first; entry 0
    where there are no more.
    """
    target, _, gain = correlations(library, points)
    explained = gain**2 / jnp.maximum(jnp.sum(target**2), 1e-30)
    explained = jnp.where(is_constant(library.tokens).any(axis=1), explained, -1.0)
    order, loss = best_per_group(skeleton_hash(library.tokens), -explained)
    best = jax.lax.top_k(-loss, min(most, len(order)))[1]
    rows = jnp.where(loss[best] <= 0, order[best], 0)
    return jnp.pad(rows, (0, most - len(rows)))
