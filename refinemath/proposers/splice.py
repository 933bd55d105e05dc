"""Writing formulas token by token on the device."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath.expression import END

# tokens and values, each (formulas, anything), and how many of the first of them count: (formulas,)
Segment = tuple[Array, Array, Array]


def single_token(token: Int[Array, " formulas"], value: Array | None = None) -> Segment:
    """One token for each formula."""
    return (
        token[:, None],
        jnp.zeros((*token.shape, 1)) if value is None else value[:, None],
        jnp.ones_like(token),
    )


def concat_tokens(
    slots: int, *pieces: Segment
) -> tuple[Int[Array, "formulas slots"], Float[Array, "formulas slots"]]:
    """Formulas that hold the pieces one after the other; what goes beyond the slots is cut off."""
    place = jnp.arange(slots, dtype=jnp.int32)[None]
    end = jnp.zeros_like(pieces[0][2])[:, None]
    tokens, values = (
        jnp.full((len(end), slots), END, jnp.int32),
        jnp.zeros((len(end), slots), jnp.float32),
    )
    for own, numbers, length in pieces:
        start, end = end, end + length[:, None]
        at = jnp.clip(place - start, 0, own.shape[1] - 1)
        inside = (place >= start) & (place < end)
        tokens = jnp.where(inside, jnp.take_along_axis(own, at, axis=1), tokens)
        values = jnp.where(inside, jnp.take_along_axis(numbers, at, axis=1), values)
    return tokens, values


def mask_invalid(
    good: Array, tokens: Int[Array, "formulas slots"], values: Float[Array, "formulas slots"]
) -> tuple[Array, Array]:
    """The formulas that are good (formulas,), and x in place of the others."""
    x = jnp.zeros_like(tokens).at[:, 0].set(1)
    return jnp.where(good[:, None], tokens, x), jnp.where(good[:, None], values, 0.0)


def concat(
    *formulas: tuple[Array, Array],
) -> tuple[Int[Array, "batch slots"], Float[Array, "batch slots"]]:
    """Several groups of formulas, as tokens and values, as one."""
    return jnp.concatenate([tokens for tokens, _ in formulas]), jnp.concatenate(
        [values for _, values in formulas]
    )
