"""Short formulas with their values on the points: what other proposers build on."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import centre, evaluate
from refinemath.expression import (
    CONSTANT_BINS,
    END,
    FIRST_CONSTANT,
    SLOTS,
    TOKEN_VALUE,
    encode,
    is_constant,
)
from refinemath.fitting import Points
from refinemath.text import parse_prefix

ANY_CONSTANT = 255  # in a skeleton: a constant to be drawn


# entries of the library that parts are paired with: up to four tokens, with common constants
SHORTEST = 544


BLOCK = 16  # of them at a time


PAIR_POINTS = 32  # points at which pairs are compared


class Library(NamedTuple):
    """Short formulas with numbers, and their values on the points (0 where undefined), as they are
    and centred and of length 1.
    """

    tokens: Int[Array, "entries slots"]
    values: Float[Array, "entries slots"]
    y: Float[Array, "entries points"]
    unit: Float[Array, "entries points"]


def make_library(key: Array, skeletons: Int[Array, "start slots"], points: Points) -> Library:
    """Each skeleton with constants from the bins where it asks for them (a token `ANY_CONSTANT`), a
    quarter of them ten times as large.

    The constants walk through all bins from row to row, so that a skeleton that is given many times
    meets them evenly.
    """
    row, slot = (jnp.arange(n, dtype=jnp.int32) for n in skeletons.shape)
    levels = 4 * len(CONSTANT_BINS)
    place = (
        37 * row[:, None] + 53 * slot[None] + jax.random.randint(key, (1, 1), 0, levels)
    ) % levels
    tokens = skeletons.astype(jnp.int32)
    drawn = tokens == ANY_CONSTANT
    tokens = jnp.where(drawn, FIRST_CONSTANT + place // 4, tokens)
    values = jnp.asarray(TOKEN_VALUE)[tokens] * jnp.where(drawn & (place % 4 == 0), 10.0, 1.0)
    y = jnp.where(points.mask, evaluate(tokens, values, points.x), 0.0)
    y = jnp.where(jnp.all(jnp.abs(y) < 1e12, axis=1, keepdims=True), y, 0.0)
    centred = centre(y, jnp.broadcast_to(points.mask, y.shape))[0]
    size = jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True))
    return Library(tokens, values, y, jnp.where(size > 0, centred / jnp.maximum(size, 1e-30), 0.0))


def thin(points: Points, *values: Float[Array, "... points"]) -> tuple[Any, ...]:
    """`PAIR_POINTS` of the points, evenly spread, and formulas' values there: enough to tell which
    pairs are worth a look.
    """
    step = max(1, points.y.shape[1] // PAIR_POINTS)
    return Points(points.x[..., ::step], points.y[:, ::step], points.mask[:, ::step]), *(
        y[..., ::step] for y in values
    )


COMMON = (1, -1, 2, 0.5)  # constants that short formulas are always tried with


@functools.cache
def short_skeletons(slots: int = SLOTS, copies: int = 1) -> np.ndarray:
    """All canonical skeletons of up to five tokens, (formulas, slots) uint8: what the search tries
    before it thinks.

    The shortest come first, those with a constant once for each of `COMMON`.  They come `copies`
    times more at the end, with `ANY_CONSTANT` in place of each constant: every copy is tried with
    other numbers.
    """
    text = resources.files("refinemath").joinpath("short_formulas.txt").read_text(encoding="utf-8")
    tokens, _ = encode(
        [parse_prefix(line) for line in text.splitlines() if line and not line.startswith("#")],
        slots,
    )
    place = is_constant(tokens)
    numbers = place.any(axis=1)
    common = [
        np.where(place[numbers], token, tokens[numbers])
        for token in (FIRST_CONSTANT + CONSTANT_BINS.index(c) for c in COMMON)
    ]
    fixed = np.concatenate([tokens[~numbers], *common])
    fixed = fixed[np.argsort((fixed != END).sum(axis=1), kind="stable")]
    drawn = np.repeat(np.where(place, ANY_CONSTANT, tokens)[numbers], copies, axis=0)
    return np.concatenate([fixed, drawn]).astype(np.uint8)
