"""Writing formulas token by token on the device: concatenation of pieces, and x where none fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import Programs, lengths
from refinemath.expression import END


class Segment(NamedTuple):
    """A piece of a formula for each of a batch: tokens, values, and how many of them count."""

    tokens: Int[Array, "batch any"]
    values: Float[Array, "batch any"]
    length: Int[Array, " batch"]


def whole(programs: Programs, rows: Int[Array, " batch"] | None = None) -> Segment:
    """Whole formulas as segments; with `rows`, those of these rows."""
    tokens, values = (a if rows is None else a[rows] for a in programs)
    return Segment(tokens, values, lengths(tokens))


def single_token(token: Int[Array, " batch"], value: Array | None = None) -> Segment:
    """One token for each formula; `value` is its number where it is a constant."""
    number = jnp.zeros(token.shape, jnp.float32) if value is None else value
    return Segment(token[:, None], number[:, None], jnp.ones_like(token))


def segment(pieces: Sequence[Sequence[int]], row: Int[Array, " batch"]) -> Segment:
    """For each formula one of some pieces of tokens without numbers."""
    tokens = np.zeros((len(pieces), max(1, *map(len, pieces))), np.int32)
    for own, piece in zip(tokens, pieces, strict=True):
        own[: len(piece)] = piece
    chosen = jnp.asarray(tokens)[row]
    length = jnp.asarray([len(piece) for piece in pieces], jnp.int32)[row]
    return Segment(chosen, jnp.zeros(chosen.shape, jnp.float32), length)


def concat_tokens(slots: int, *segments: Segment) -> Programs:
    """Formulas that hold the segments one after the other, cut off at the last slot."""
    position = jnp.arange(slots, dtype=jnp.int32)[None]
    end = jnp.zeros_like(segments[0].length)[:, None]
    tokens = jnp.full((len(end), slots), END, jnp.int32)
    values = jnp.zeros((len(end), slots), jnp.float32)
    for own, numbers, length in segments:
        start, end = end, end + length[:, None]
        at = jnp.clip(position - start, 0, own.shape[1] - 1)
        inside = (position >= start) & (position < end)
        tokens = jnp.where(inside, jnp.take_along_axis(own, at, axis=1), tokens)
        values = jnp.where(inside, jnp.take_along_axis(numbers, at, axis=1), values)
    return Programs(tokens, values)


def mask_invalid(good: Array, programs: Programs) -> Programs:
    """The formulas that are good (batch,), and x1 in place of the others."""
    x = jnp.zeros_like(programs.tokens).at[:, 0].set(1)
    tokens = jnp.where(good[:, None], programs.tokens, x)
    return Programs(tokens, jnp.where(good[:, None], programs.values, 0.0))
