"""Training problems, drawn on the device: a formula, its points, the states of its recursion, and
candidates."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from refinemath import execution, expression
from refinemath.data import Bank, draw_constants, draw_points, probe_points, standardized_probe

from experiments.network.spine import (
    END,
    SLOTS,
    states,
    to_spine,
)

TERMS = 4  # additive terms of a formula that get a coefficient of their own


class Examples(NamedTuple):
    """A batch of states: what is left to find, and its points.  Points beyond `mask` are
    padding."""

    target: Int[Array, "batch slots"]  # spine order, what is left to find
    x: Float[Array, "batch variables points"]
    y: Float[Array, "batch points"]
    mask: Array  # (batch, points) bool
    weight: Float[Array, " batch"]  # 0 for an example that could not be drawn
    tokens: Int[Array, "batch slots"]  # the whole formula, tokens of the package in prefix order
    values: Float[Array, "batch slots"]  # its constants
    numbers: Float[Array, "batch slots"]  # the constants of the target, in spine order
    start: Int[
        Array, " batch"
    ]  # the slot of the whole formula, in spine order, at which the target begins


def length_weights(bank: Bank, most: int = SLOTS) -> Float[Array, " slots1"]:
    """How often each length is drawn: evenly from 3 to 12 tokens, less and less often beyond."""
    wanted = [0.0, 0.0, 0.3] + [1.0] * 10 + [0.9**k for k in range(1, SLOTS - 11)]
    row = np.array([w if n <= most else 0.0 for n, w in enumerate(wanted)], np.float32)
    return jnp.where(jnp.diff(bank.start) > 0, row, 0.0)


def _spread(v: Array, mask: Array) -> Array:
    """Standard deviation over the masked points, along the last axis."""
    n = jnp.sum(mask, axis=-1, dtype=jnp.float32)
    mean = jnp.sum(jnp.where(mask, v, 0.0), -1) / n
    return jnp.sqrt(jnp.sum(jnp.where(mask, (v - mean[..., None]) ** 2, 0.0), -1) / n)


def draw_examples(
    key: Array,
    bank: Bank,
    batch: int,
    *,
    points: int = 64,
    variables: int = 1,
    weights: Float[Array, " slots1"],
    probes: Array | None = None,
    state_share: float = 0.0,
    noisy: float = 0.3,
) -> Examples:
    """`batch` problems for one training step; a share `state_share` are later states of the
    recursion.

    More are drawn than needed and valid ones kept: finite everywhere, every term matters, not
    nearly
    constant, and not a held-out function by its values at `probes`.
    """
    k = jax.random.split(key, 14)
    n, slots = batch + batch // 2, bank.tokens.shape[1]
    row = jnp.arange(n)
    length = jax.random.categorical(k[0], jnp.log(weights), shape=(n,))
    low, high = bank.start[length], bank.start[length + 1]
    index = low + (jax.random.uniform(k[1], (n,)) * (high - low)).astype(jnp.int32)
    tokens = bank.tokens[index].astype(jnp.int32)
    values = draw_constants(k[2], tokens)

    # two ranges are tried, the second one positive; the held-out list's probe points ride along
    x_all = draw_points(k[3], 2 * n, variables, points).reshape(2, n, variables, points)
    x_all = x_all.at[1].set(jnp.abs(x_all[1]))
    probe_x = jnp.broadcast_to(probe_points(variables), (n, variables, 24))
    nodes = base.evaluate_nodes(tokens, values, jnp.concatenate([*x_all, probe_x], axis=-1))
    slots_of, term = base.additive_terms(tokens, TERMS)
    used = jax.random.randint(k[4], (n, 1), 16, points + 1)
    mask = jnp.arange(points)[None] < used
    bases = nodes[slots_of, row[:, None]]

    def usable(v: Array) -> Array:
        return jnp.all(jnp.isfinite(v) & (jnp.abs(v) < 1e5) | ~term[..., None], axis=(1, 2))

    first = usable(bases[..., :points])
    good = first | usable(bases[..., points : 2 * points])
    x = jnp.where(first[:, None, None], x_all[0], x_all[1])
    nodes_here = jnp.where(
        first[None, :, None], nodes[..., :points], nodes[..., points : 2 * points]
    )
    terms = jnp.where(
        term[..., None] & good[:, None, None], nodes_here[slots_of, row[:, None]], 0.0
    )
    deviation = _spread(terms, mask[:, None])
    coefficient = _coefficients(k[5:9], deviation)
    good &= jnp.all((jnp.abs(coefficient) * deviation > 1e-6) | ~term, axis=1)

    # the state: the whole, a tail of its sum, or a node of its last term
    target, place = to_spine(tokens)
    starts = states(target)
    choice = jax.random.categorical(k[9], jnp.where(starts, 0.0, -jnp.inf), axis=-1)
    start = jnp.where(jax.random.bernoulli(k[10], state_share, (n,)), choice, 0).astype(jnp.int32)
    term_place = jnp.take_along_axis(place, slots_of, axis=1)
    left = term & (term_place >= start[:, None])
    tail = jnp.sum(jnp.where(left, coefficient, 0.0)[..., None] * terms, axis=1)
    node = nodes_here[jnp.argmax(place == start[:, None], axis=1), row]
    inside = ~jnp.any(left, axis=1)
    y = jnp.where(inside[:, None], node, tail)
    size = _spread(y, mask)
    largest = jnp.max(jnp.abs(jnp.where(mask, y, 0.0)), axis=1)
    good &= (
        jnp.all(jnp.isfinite(y) & (jnp.abs(y) < 1e6), axis=1)
        & (size > 1e-3 * largest)
        & (size > 1e-6)
    )
    good &= inside | jnp.all(
        (jnp.abs(coefficient) * deviation > 3e-3 * size[:, None]) | ~left, axis=1
    )
    good &= _not_linear(x[:, 0], y, mask) | (variables > 1)
    if probes is not None:
        at_probes = jnp.sum(
            jnp.where(term, coefficient, 0.0)[..., None] * bases[..., 2 * points :], axis=1
        )
        good &= ~jnp.any(jnp.abs(standardized_probe(at_probes) @ probes.T) > 1 - 1e-6, axis=1)

    u = jax.random.uniform(k[11], (3, n, 1))
    scale = jnp.where(inside[:, None], jnp.exp(2.0 * u[0] - 1.0), 1.0)
    offset = jnp.where(u[1] < 0.5, 0.0, jax.random.normal(k[12], (n, 1)) * 2 * size[:, None])
    noise = jnp.where(u[2] < noisy, jnp.exp(jnp.log(1e-3) + u[2] / noisy * jnp.log(100.0)), 0.0)
    y = scale * (y + offset + noise * size[:, None] * jax.random.normal(k[13], y.shape))
    places = jnp.arange(slots)[None] + start[:, None]
    numbers = jnp.zeros_like(values).at[row[:, None], place].set(values)
    beyond, places = places >= slots, jnp.minimum(places, slots - 1)
    target = jnp.where(beyond, END, jnp.take_along_axis(target, places, axis=1))
    numbers = jnp.where(beyond, 0.0, jnp.take_along_axis(numbers, places, axis=1))
    if variables > 1:  # most columns that the formula does not use are absent
        used_columns = jnp.any(tokens[..., None] == 1 + jnp.arange(variables), axis=1)
        absent = ~used_columns & jax.random.bernoulli(k[8], 0.7, used_columns.shape)
        x = jnp.where(absent[..., None], 0.0, x)
    keep = jnp.argsort(~good, stable=True)[:batch]
    y, x = jnp.where(mask, y, 0.0), jnp.where(mask[:, None], x, 0.0)
    y = jnp.where(good[:, None], y, 0.0)
    everything = Examples(
        target, x, y, mask, good.astype(jnp.float32), tokens, values, numbers, start
    )
    return Examples(*(a[keep] for a in everything))


def _coefficients(k: Array, deviation: Float[Array, "batch terms"]) -> Float[Array, "batch terms"]:
    """Factors of the terms: ones and others in [0.2, 5], or such that all terms are of similar
    size."""
    shape = deviation.shape
    sign = jnp.where(jax.random.bernoulli(k[0], 0.3, shape), -1.0, 1.0)
    u = jax.random.uniform(k[1], shape)
    plain = jax.random.bernoulli(k[2], 0.5, (shape[0], 1))
    natural = jnp.where(plain, 1.0, jnp.exp((2 * u - 1) * jnp.log(5.0)))
    balanced = jnp.exp((u - 1) * jnp.log(10.0)) / jnp.maximum(deviation, 1e-6)
    return sign * jnp.where(jax.random.bernoulli(k[3], 0.4, (shape[0], 1)), balanced, natural)


def _not_linear(x: Array, y: Array, mask: Array) -> Array:
    """False where a straight line explains all but a thousandth of the variance."""
    n = jnp.sum(mask, -1, keepdims=True)
    xc = jnp.where(mask, x - jnp.sum(jnp.where(mask, x, 0.0), -1, keepdims=True) / n, 0.0)
    yc = jnp.where(mask, y - jnp.sum(jnp.where(mask, y, 0.0), -1, keepdims=True) / n, 0.0)
    explained = jnp.sum(xc * yc, -1) ** 2 / jnp.maximum(jnp.sum(xc**2, -1), 1e-12)
    return 1.0 - explained / jnp.maximum(jnp.sum(yc**2, -1), 1e-12) > 1e-3
