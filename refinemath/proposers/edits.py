"""Random edits of the best formulas: crossover, wrapping, substitution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import structure
from refinemath.expression import (
    CONSTANT_BINS,
    END,
    FIRST_CONSTANT,
    FIRST_OPERATOR,
    OPERATOR_TOKEN,
    TOKEN_VALUE,
    VOCABULARY_SIZE,
)


def edit(
    key: Array,
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    donors: Int[Array, "donors slots"],
    variables: int = 1,
) -> tuple[Array, Array]:
    """Random edits that keep a formula legal: a subtree is replaced by a subtree of a donor,
    wrapped by an operator, or a token by another of its arity.  What would not fit into the slots
    stays as it was.  Chapter 8.
    """
    batch, slots = tokens.shape
    u = jax.random.uniform(key, (8, batch))

    def below(u: Array, high: Array | int) -> Array:
        """Whole numbers from 0 to high - 1."""
        return (u * jnp.asarray(high, jnp.float32)).astype(jnp.int32)

    row = jnp.arange(batch, dtype=jnp.int32)
    size, _ = structure(tokens)
    length = jnp.sum(tokens != END, axis=1, dtype=jnp.int32)
    at = below(u[0], length)
    donor = donors[below(u[1], donors.shape[0])]
    donor_size, _ = structure(donor)
    start = below(u[2], jnp.sum(donor != END, axis=1, dtype=jnp.int32))
    insert_size = donor_size[row, start]
    removed = size[row, at]
    place = jnp.arange(slots, dtype=jnp.int32)[None]

    # 0: subtree of the donor in place of the subtree at `at`; 1: `at` wrapped as op(at) or op(at,
    # leaf); 2: same arity
    kind = (u[3] > 0.5).astype(jnp.int32) + (u[3] > 0.8).astype(jnp.int32)
    unary = OPERATOR_TOKEN["neg"] + below(u[4], VOCABULARY_SIZE - OPERATOR_TOKEN["neg"])
    binary = OPERATOR_TOKEN["add"] + below(u[4], 4)
    leaf = jnp.where(
        u[5] < 0.5, 1 + below(2 * u[5], variables), FIRST_CONSTANT + below(u[6], len(CONSTANT_BINS))
    )
    wrap_binary = u[7] < 0.6

    def splice(
        head: Array, inserted: Array, inserted_size: Array, skip: Array
    ) -> tuple[Array, Array]:
        """tokens[:head] + inserted[:inserted_size] + tokens[head + skip:], with values; True where
        it fits.
        """
        h, m, s = head[:, None], inserted_size[:, None], skip[:, None]
        source = jnp.clip(jnp.where(place < h, place, place - m + s), 0, slots - 1)
        inside = (place >= h) & (place < h + m)
        new = jnp.where(
            inside,
            jnp.take_along_axis(inserted, jnp.clip(place - h, 0, slots - 1), axis=1),
            jnp.take_along_axis(tokens, source, axis=1),
        )
        numbers = jnp.where(
            inside, jnp.asarray(TOKEN_VALUE)[new], jnp.take_along_axis(values, source, axis=1)
        )
        total = length - skip + inserted_size
        beyond = place >= total[:, None]
        return jnp.where(beyond, END, new), jnp.where(beyond, 0.0, numbers)

    cut, cut_values = splice(
        at,
        jnp.take_along_axis(donor, jnp.clip(start[:, None] + place, 0, slots - 1), axis=1),
        insert_size,
        removed,
    )
    cut_length = length - removed + insert_size
    front = jnp.stack([jnp.where(wrap_binary, binary, unary), leaf], axis=1)
    front = jnp.pad(front, ((0, 0), (0, slots - 2)))
    wrapped, wrapped_values = splice(at, front, jnp.where(wrap_binary, 2, 1), jnp.zeros_like(at))
    wrapped_length = length + jnp.where(wrap_binary, 2, 1)
    token = tokens[row, at]
    swapped = jnp.where(
        token < FIRST_OPERATOR, leaf, jnp.where(token < OPERATOR_TOKEN["neg"], binary, unary)
    )
    swap = tokens.at[row, at].set(swapped)
    swap_values = values.at[row, at].set(jnp.asarray(TOKEN_VALUE)[swapped])

    chosen = jnp.where((kind == 0)[:, None], cut, jnp.where((kind == 1)[:, None], wrapped, swap))
    numbers = jnp.where(
        (kind == 0)[:, None],
        cut_values,
        jnp.where((kind == 1)[:, None], wrapped_values, swap_values),
    )
    fits = jnp.where(kind == 0, cut_length, jnp.where(kind == 1, wrapped_length, length)) <= slots
    return jnp.where(fits[:, None], chosen, tokens), jnp.where(fits[:, None], numbers, values)
