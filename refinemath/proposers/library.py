"""Short formulas with their outputs on the points: what other proposers build on.  (Chapter 8)"""

from __future__ import annotations

import functools
import itertools
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import Programs, centre, evaluate
from refinemath.expression import (
    CONSTANT_BINS,
    END,
    FIRST_CONSTANT,
    MAX_VARIABLES,
    SLOTS,
    TOKEN_VALUE,
    VOCABULARY_SIZE,
    Formula,
    encode,
    is_constant,
)
from refinemath.fitting import Points
from refinemath.loop import Library, SearchState
from refinemath.text import parse_prefix

ANY_CONSTANT = 255  # in a skeleton: a constant to be drawn
COMMON = (1, -1, 2, 0.5)  # constants that short formulas are always tried with
MOST_FIXED = 20_000  # rows of the library with given constants
MOST_DRAWN = 32_000  # and with drawn ones
FEW_POINTS = 32  # points at which pairs and quotients are compared
PAIR_COST = 5.0  # a token costs 5/2 nats of n/2 log FVU


@functools.cache
def short_formulas() -> list[Formula]:
    """All canonical skeletons of up to five tokens in up to three variables, shortest first.

    Variables are numbered by first appearance; 1 stands for a constant.
    """
    text = resources.files("refinemath").joinpath("short_formulas.txt").read_text(encoding="utf-8")
    return [parse_prefix(line) for line in text.splitlines() if line and line[0] != "#"]


@functools.cache
def short_skeletons(slots: int = SLOTS, variables: int = 1) -> np.ndarray:
    """The short formulas over all columns of the data, (rows, slots) uint8.

    The shortest come first, those with a constant once for each of `COMMON`.  At the end those with
    a constant come again, as often as there is room, with `ANY_CONSTANT` in its place.
    """
    tokens = instantiated(slots, variables)
    place = is_constant(tokens)
    numbers = place.any(axis=1)
    common = [FIRST_CONSTANT + CONSTANT_BINS.index(c) for c in COMMON]
    given = [np.where(place[numbers], token, tokens[numbers]) for token in common]
    fixed = np.concatenate([tokens[~numbers], *given])
    fixed = fixed[np.argsort((fixed != END).sum(axis=1), kind="stable")][:MOST_FIXED]
    free = np.where(place, ANY_CONSTANT, tokens)[numbers]
    copies = max(1, min(32, MOST_DRAWN // len(free)))
    return np.concatenate([fixed, np.repeat(free[:MOST_DRAWN], copies, axis=0)]).astype(np.uint8)


def instantiated(slots: int, variables: int) -> np.ndarray:
    """Every short formula with its variables replaced by columns in every way, (rows, slots) int32;
    one of those that are equal up to a factor and an offset.
    """
    tokens, _ = encode(short_formulas(), slots)
    used = np.where(tokens <= MAX_VARIABLES, tokens, 0).max(axis=1)
    rows = []
    for count in range(1, min(variables, int(used.max())) + 1):
        own = tokens[used == count]
        for columns in itertools.permutations(range(1, variables + 1), count):
            rename = np.arange(VOCABULARY_SIZE)
            rename[1 : count + 1] = columns
            rows.append(rename[own])
    every = np.concatenate(rows)
    every = every[np.argsort((every != END).sum(axis=1), kind="stable")][: 2 * MOST_FIXED]
    if variables == 1:
        return every
    return every[_first_of_each(every, variables)]


def _first_of_each(tokens: np.ndarray, variables: int) -> np.ndarray:
    """Rows whose function, up to a factor and an offset, has not come before."""
    x = np.random.default_rng(0).uniform(0.3, 2.2, (variables, 12)).astype(np.float32)
    numbers = np.where(is_constant(tokens), np.float32(1.37), np.float32(0))
    y = np.nan_to_num(
        np.asarray(evaluate(jnp.asarray(tokens), jnp.asarray(numbers), jnp.asarray(x[None])))
    )
    y = np.clip(y, -1e12, 1e12).astype(np.float64)
    y = y - y.mean(axis=1, keepdims=True)
    y = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-30)
    y = np.round(y * np.sign(y[:, :1] + 1e-12), 4) + 0.0
    return np.sort(np.unique(y, axis=0, return_index=True)[1])


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


def in_rounds(queue: Programs, rounds: int) -> Programs:
    """A queue of formulas as (rounds, formulas a round, slots)."""
    return Programs(*(a.reshape(rounds, -1, a.shape[1]) for a in queue))


def next_round(queue: Programs, state: SearchState) -> Programs:
    """The formulas of this step; after the last round the first one comes again."""
    return jax.tree.map(lambda a: a[state.step % len(a)], queue)


def scale_rows(v: Float[Array, "batch points"]) -> Float[Array, "batch points"]:
    """Rows of length 1; rows of zeros stay."""
    top = jnp.max(jnp.abs(v), axis=1, keepdims=True)  # so that squares stay in range
    v = jnp.where(top > 1e-30, v / jnp.maximum(top, 1e-30), 0.0)
    return v / jnp.maximum(jnp.sqrt(jnp.sum(v**2, axis=1, keepdims=True)), 1e-30)


def unit_rows(v: Float[Array, "batch points"], mask: Array) -> Float[Array, "batch points"]:
    """Centred rows of length 1: products of such rows are correlations."""
    return scale_rows(centre(v, jnp.broadcast_to(mask, v.shape))[0])


def thin(points: Points) -> tuple[Points, int]:
    """About `FEW_POINTS` of the points, evenly spread, and the step between them."""
    step = max(1, points.y.shape[1] // FEW_POINTS)
    few = Points(points.x[..., ::step], points.y[:, ::step], points.mask[:, ::step])
    return few, step
