"""The best formulas so far: one score, one formula a skeleton, and how new ones are merged in.
(Chapter 8)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import Programs, lengths
from refinemath.expression import (
    FIRST_CONSTANT,
    IS_FUNCTION,
    NESTING_CODE_LENGTH,
    OPERATOR_TOKEN,
    TOKEN_CODE_LENGTH,
    is_constant,
)
from refinemath.fitting import TERMS, Candidate


class Pool(NamedTuple):
    """The best formulas so far, one of each skeleton, sorted by score (lower is better)."""

    tokens: Int[Array, "size slots"]
    values: Float[Array, "size slots"]
    fitted: Float[Array, "size points"]
    fvu: Float[Array, " size"]
    score: Float[Array, " size"]
    # orthonormal, spanning the centred terms: all that other coefficients could explain
    rows: Float[Array, "size terms points"]

    def candidates(self) -> Candidate:
        """The same formulas as the refiner wants them."""
        return Candidate(self.tokens, self.values, self.fitted, self.fvu)

    def programs(self) -> Programs:
        """The formulas alone."""
        return Programs(self.tokens, self.values)


def empty_pool(size: int, slots: int, points: int) -> Pool:
    """A pool of formulas x1 that count as infinitely bad."""
    nothing = jnp.zeros((size, slots), jnp.float32)
    never = jnp.full(size, jnp.inf, jnp.float32)
    flat = jnp.zeros((size, TERMS, points), jnp.float32)
    return Pool(
        jnp.zeros_like(nothing, jnp.int32).at[:, 0].set(1), nothing, flat[:, 0], never, never, flat
    )


def skeleton_hash(tokens: Int[Array, "batch slots"]) -> Int[Array, " batch"]:
    """One number for formulas that differ in their constants alone."""
    plain = jnp.where(is_constant(tokens), FIRST_CONSTANT, tokens).astype(jnp.uint32)
    h = jnp.zeros(tokens.shape[0], jnp.uint32)
    for i in range(tokens.shape[1]):
        h = (h ^ plain[:, i]) * jnp.uint32(16777619) + jnp.uint32(i)
    return (h >> 1).astype(jnp.int32)


def score(
    tokens: Int[Array, "batch slots"], fvu: Float[Array, " batch"], points: Array
) -> Float[Array, " batch"]:
    """Description length in nats, much as `solution.code_length`; infinite where undefined.

    Leverages are not known here; the numbers pay as in the corrected criterion of Akaike (Hurvich &
    Tsai 1989) instead, and every sum counts as one more term.
    """
    function = jnp.asarray(IS_FUNCTION)[tokens]
    nested = jnp.sum(function[:, :-1] & function[:, 1:], axis=1, dtype=jnp.float32)
    splits = (tokens == OPERATOR_TOKEN["add"]) | (tokens == OPERATOR_TOKEN["sub"])
    numbers = 2.0 + jnp.sum(is_constant(tokens) | splits, axis=1, dtype=jnp.float32)
    price = numbers * jnp.minimum(points / jnp.maximum(points - numbers - 1.0, 0.5), 8.0)
    price = price + jnp.sum(jnp.asarray(TOKEN_CODE_LENGTH)[tokens], axis=1)
    price = price + NESTING_CODE_LENGTH * nested
    return price + 0.5 * points * jnp.log(jnp.where(jnp.isfinite(fvu), fvu, jnp.inf) + 1e-13)


def best_per_group(
    group: Int[Array, "... formulas"], loss: Float[Array, "... formulas"]
) -> tuple[Array, Array]:
    """The order by group, then loss, and the losses in that order: infinite for all but the lowest
    of each group.  Along the last axis.
    """
    order = jnp.lexsort((loss, group), axis=-1)
    groups = jnp.take_along_axis(group, order, axis=-1)
    repeated = groups[..., 1:] == groups[..., :-1]
    repeated = jnp.concatenate([jnp.zeros_like(groups[..., :1], bool), repeated], axis=-1)
    return order, jnp.where(repeated, jnp.inf, jnp.take_along_axis(loss, order, axis=-1))


def merge(pool: Pool, new: Pool) -> Pool:
    """The pool with new formulas put in, in any order.

    What stays is the best of each skeleton and of each residual: the same function in other words
    leaves the same residual.  Of these, the best of all and the two best of every length stay.
    """
    everything = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), pool, new)
    order, loss = best_per_group(skeleton_hash(everything.tokens), everything.score)
    level = jnp.round(jnp.log(jnp.maximum(everything.fvu[order], 1e-14)) * 1e4)
    by_level = jnp.lexsort((loss, level))
    first, second = by_level[:-1], by_level[1:]
    loss = loss.at[second].set(jnp.where(level[second] == level[first], jnp.inf, loss[second]))
    length = lengths(everything.tokens[order])
    by_length = jnp.lexsort((loss, length))
    leads = length[by_length] != jnp.roll(length[by_length], 2)
    leads = jnp.zeros(len(loss), bool).at[by_length].set(leads) & jnp.isfinite(loss)
    best = jax.lax.top_k(-jnp.where(leads, loss - 1e6, loss), len(pool.fvu))[1]
    best = best[jnp.argsort(loss[best])]
    return jax.tree.map(lambda a: a[order[best]], everything)._replace(score=loss[best])


def top_per_group(
    candidates: Candidate, blocks: Sequence[tuple[int, int, int]], points: Array
) -> list[Int[Array, " chosen"]]:
    """Rows of the best formulas of different skeletons in each group of every block.

    The rows come in blocks of (groups, size of a group, how many are wanted of each).
    """
    loss = score(candidates.tokens, candidates.fvu, points)
    sizes = [size for groups, size, _ in blocks for _ in range(groups)]
    group = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    name = skeleton_hash(candidates.tokens) * 7919 + jnp.asarray(group)
    order, ranked = best_per_group(name, loss)
    unique = jnp.zeros_like(loss).at[order].set(ranked)  # infinite for all but the best
    chosen, start = [], 0
    for groups, size, most in blocks:
        part = unique[start : start + groups * size].reshape(groups, size)
        top = jax.lax.top_k(-part, min(most, size))[1].astype(jnp.int32)
        first = start + size * jnp.arange(groups, dtype=jnp.int32)
        chosen.append((top + first[:, None]).reshape(-1))
        start += groups * size
    return chosen
