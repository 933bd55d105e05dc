"""Short formulas with their outputs on the points: what other proposers build on.  (Chapter 8)"""

from __future__ import annotations

import functools
from importlib import resources

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
from refinemath.loop import Library
from refinemath.text import parse_prefix

ANY_CONSTANT = 255  # in a skeleton: a constant to be drawn
COMMON = (1, -1, 2, 0.5)  # constants that short formulas are always tried with
COPIES = 32  # of each short skeleton with a constant, each with other numbers
FEW_POINTS = 32  # points at which pairs and quotients are compared
PAIR_COST = 5.0  # a token costs 5/2 nats of n/2 log FVU


@functools.cache
def short_skeletons(slots: int = SLOTS, copies: int = COPIES) -> np.ndarray:
    """All canonical skeletons of up to five tokens, (formulas, slots) uint8.

    The shortest come first, those with a constant once for each of `COMMON`.  They come `copies`
    times more at the end, with `ANY_CONSTANT` in place of each constant.
    """
    text = resources.files("refinemath").joinpath("short_formulas.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    tokens, _ = encode([parse_prefix(line) for line in lines], slots)
    place = is_constant(tokens)
    numbers = place.any(axis=1)
    common = [FIRST_CONSTANT + CONSTANT_BINS.index(c) for c in COMMON]
    given = [np.where(place[numbers], token, tokens[numbers]) for token in common]
    fixed = np.concatenate([tokens[~numbers], *given])
    fixed = fixed[np.argsort((fixed != END).sum(axis=1), kind="stable")]
    drawn = np.repeat(np.where(place, ANY_CONSTANT, tokens)[numbers], copies, axis=0)
    return np.concatenate([fixed, drawn]).astype(np.uint8)


def make_library(key: Array, skeletons: Int[Array, "entries slots"], points: Points) -> Library:
    """Each skeleton, with constants from the bins where it asks for them (a token `ANY_CONSTANT`),
    a quarter of them ten times as large.

    The constants walk through all bins from row to row, so that a skeleton that is given many times
    meets them evenly.
    """
    row, slot = (jnp.arange(n, dtype=jnp.int32) for n in skeletons.shape)
    levels = 4 * len(CONSTANT_BINS)
    walk = 37 * row[:, None] + 53 * slot[None]
    place = (walk + jax.random.randint(key, (1, 1), 0, levels)) % levels
    tokens = skeletons.astype(jnp.int32)
    drawn = tokens == ANY_CONSTANT
    tokens = jnp.where(drawn, FIRST_CONSTANT + place // 4, tokens)
    values = jnp.asarray(TOKEN_VALUE)[tokens] * jnp.where(drawn & (place % 4 == 0), 10.0, 1.0)
    outputs = jnp.where(points.mask, evaluate(tokens, values, points.x), 0.0)
    in_range = jnp.all(jnp.abs(outputs) < 1e12, axis=1, keepdims=True)
    outputs = jnp.where(in_range, outputs, 0.0)
    return Library(tokens, values, outputs, unit_rows(outputs, points.mask))


def scale_rows(v: Float[Array, "batch points"]) -> Float[Array, "batch points"]:
    """Rows of length 1; rows of zeros stay."""
    return v / jnp.maximum(jnp.sqrt(jnp.sum(v**2, axis=1, keepdims=True)), 1e-30)


def unit_rows(v: Float[Array, "batch points"], mask: Array) -> Float[Array, "batch points"]:
    """Centred rows of length 1: products of such rows are correlations."""
    return scale_rows(centre(v, jnp.broadcast_to(mask, v.shape))[0])


def thin(points: Points) -> tuple[Points, int]:
    """About `FEW_POINTS` of the points, evenly spread, and the step between them."""
    step = max(1, points.y.shape[1] // FEW_POINTS)
    few = Points(points.x[..., ::step], points.y[:, ::step], points.mask[:, ::step])
    return few, step
