"""The best formulas so far: one score, one formula a skeleton, and how new ones are merged in.
(Chapter 8)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath.expression import (
    END,
    FIRST_CONSTANT,
    IS_FUNCTION,
    NESTING_CODE_LENGTH,
    OPERATOR_TOKEN,
    TOKEN_CODE_LENGTH,
    is_constant,
)
from refinemath.fitting import Candidate


class Pool(NamedTuple):
    """The best formulas so far, one of each skeleton, by description length."""

    tokens: Int[Array, "keep slots"]
    values: Float[Array, "keep slots"]
    fitted: Float[Array, "keep points"]
    fvu: Float[Array, " keep"]
    cost: Float[Array, " keep"]
    # orthonormal, spanning the centred terms: all that other coefficients could explain
    rows: Float[Array, "keep terms points"]

    def candidate(self) -> Candidate:
        """The same formulas as the refiner wants them."""
        return Candidate(self.tokens, self.values, self.fitted, self.fvu)


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
    """Description length in nats, much as `solution.code_length`; infinite where the formula is
    undefined.

    Leverages are not known here; the numbers pay as in the corrected criterion of Akaike (Hurvich &
    Tsai 1989) instead.
    """
    function = jnp.asarray(IS_FUNCTION)[tokens]
    nested = jnp.sum(function[:, :-1] & function[:, 1:], axis=1, dtype=jnp.int32).astype(
        jnp.float32
    )
    splits = (tokens == OPERATOR_TOKEN["add"]) | (tokens == OPERATOR_TOKEN["sub"])
    numbers = 2.0 + jnp.sum(is_constant(tokens) | splits, axis=1, dtype=jnp.int32).astype(
        jnp.float32
    )  # every sum counted as one more term
    price = numbers * jnp.minimum(points / jnp.maximum(points - numbers - 1.0, 0.5), 8.0)
    price = (
        price
        + jnp.sum(jnp.asarray(TOKEN_CODE_LENGTH)[tokens], axis=1)
        + NESTING_CODE_LENGTH * nested
    )
    return price + 0.5 * points * jnp.log(jnp.where(jnp.isfinite(fvu), fvu, jnp.inf) + 1e-13)


def best_per_group(
    name: Int[Array, "... formulas"], cost: Float[Array, "... formulas"]
) -> tuple[Array, Array]:
    """The order by name, then cost, and the costs in that order: infinite for all but the cheapest
    of each name.  Along the last axis.
    """
    order = jnp.lexsort((cost, name), axis=-1)
    names = jnp.take_along_axis(name, order, axis=-1)
    repeated = jnp.concatenate(
        [jnp.zeros_like(names[..., :1], bool), names[..., 1:] == names[..., :-1]], axis=-1
    )
    return order, jnp.where(repeated, jnp.inf, jnp.take_along_axis(cost, order, axis=-1))


def merge(pool: Pool, new: Pool) -> Pool:
    """The pool with new formulas put in, in any order.

    What stays is the best of each skeleton and of each residual, and of these the `keep` best and
    the two best of every length.
    """
    keep = pool.fvu.shape[0]
    everything = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), pool, new)
    order, cost = best_per_group(skeleton_hash(everything.tokens), everything.cost)
    # the same function in other words leaves the same residual; of such formulas the cheapest stays
    level = jnp.round(jnp.log(jnp.maximum(everything.fvu[order], 1e-14)) * 1e4)
    by_level = jnp.lexsort((cost, level))
    cost = cost.at[by_level[1:]].set(
        jnp.where(level[by_level[1:]] == level[by_level[:-1]], jnp.inf, cost[by_level[1:]])
    )
    length = jnp.sum(everything.tokens[order] != END, axis=1, dtype=jnp.int32)
    by_length = jnp.lexsort((cost, length))
    leads = (
        jnp.zeros(len(cost), bool)
        .at[by_length]
        .set(length[by_length] != jnp.roll(length[by_length], 2))
    )
    best = jax.lax.top_k(-jnp.where(leads & jnp.isfinite(cost), cost - 1e6, cost), keep)[1]
    best = best[jnp.argsort(cost[best])]
    return jax.tree.map(lambda a: a[order[best]], everything)._replace(cost=cost[best])


def top_per_group(
    candidates: Candidate, groups: int, most: int, points: Array
) -> Int[Array, " chosen"]:
    """Indices of the `most` best formulas with different skeletons in each of `groups` groups of
    one size.
    """
    count = len(candidates.fvu)
    rest = -count % groups  # the last group may be smaller
    cost = jnp.pad(
        score(candidates.tokens, candidates.fvu, points), (0, rest), constant_values=jnp.inf
    ).reshape(groups, -1)
    name = jnp.pad(skeleton_hash(candidates.tokens), (0, rest)).reshape(groups, -1)
    order, ranked = best_per_group(name, cost)
    top = jnp.take_along_axis(order, jax.lax.top_k(-ranked, most)[1], axis=1)
    return jnp.minimum((top + jnp.arange(groups)[:, None] * cost.shape[1]).reshape(-1), count - 1)
