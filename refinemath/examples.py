"""Training problems drawn on the device from a table of skeletons.  (Chapter 2)"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import additive_terms, centre, evaluate_nodes, structure
from refinemath.expression import OPERATOR_TOKEN, is_constant, is_variable, nearest_constant

TERMS = 4  # additive terms that get a free coefficient


# tokens (batch, slots), values (batch, slots), coefficient (batch, terms) -> (batch,) bool
Reject = Callable[[Array, Array, Array], Array]


class SkeletonTable(NamedTuple):
    """Distinct skeletons, sorted by length and then by how many variables they have; variables are
    numbered as they appear.

    Those of n tokens with v variables begin at `start[n, v - 1]` and end where the next ones begin.
    """

    tokens: Int[Array, "formulas slots"]  # uint8
    start: Int[Array, "slots2 variables"]


class Examples(NamedTuple):
    """A batch of problems.  Points beyond `mask` are padding."""

    tokens: Int[Array, "batch slots"]  # the truth; its constants are bins
    values: Float[Array, "batch slots"]  # the true constants
    x: Float[Array, "batch variables points"]
    y: Float[Array, "batch points"]
    mask: Array  # (batch, points) bool
    weight: Float[Array, " batch"]  # 0 for an example that could not be drawn
    coefficient: Float[Array, "batch terms"]  # y = offset + sum_k coefficient_k term_k + noise
    offset: Float[Array, " batch"]


def draw_constants(key: Array, tokens: Int[Array, "batch slots"]) -> Float[Array, "batch slots"]:
    """Half small integers, half log-uniform in [0.1, 10]; a quarter negative; exponents in [-3,
    3].
    """
    k = jax.random.split(key, 5)
    shape = tokens.shape
    size = jnp.where(
        jax.random.bernoulli(k[0], 0.5, shape),
        jnp.asarray([1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 0.5])[
            jax.random.randint(k[1], shape, 0, 9)
        ],
        jnp.exp(jax.random.uniform(k[2], shape, minval=np.log(0.1), maxval=np.log(10.0))),
    )
    value = jnp.where(jax.random.bernoulli(k[3], 0.25, shape), -size, size)
    power = jnp.round(jax.random.uniform(k[4], shape, minval=-3.0, maxval=3.0) * 4) / 4 + 0.0
    _, second = structure(tokens)
    row = jnp.arange(shape[0])[:, None]
    exponent = (
        jnp.zeros((shape[0], shape[1] + 1), bool)
        .at[row, second]
        .max(tokens == OPERATOR_TOKEN["pow"])[:, : shape[1]]
    )
    power = jnp.where(jnp.abs(power) < 0.2, 1.5, power)
    value = jnp.where(
        exponent,
        jnp.where(jax.random.bernoulli(k[0], 0.5, shape), power, jnp.clip(value, -3, 3)),
        value,
    )
    return jnp.where(is_constant(tokens), value, 0.0)


def draw_points(
    key: Array, batch: int, variables: int, points: int
) -> Float[Array, "batch variables points"]:
    """Ranges [-a, a], [0.001 or 0.05, a], [a/5, a/5 + b] or [-b, a] with a, b log-uniform in [0.7,
    12]; uniform, even or logarithmic spacing.
    """
    k = jax.random.split(key, 6)
    shape = (batch, variables, 1)
    a, b = jnp.exp(jax.random.uniform(k[0], (2, *shape), minval=np.log(0.7), maxval=np.log(12.0)))
    kind = jax.random.randint(k[1], shape, 0, 5)
    low = jnp.select(
        [kind == 0, kind == 1, kind == 2],
        [-a, jnp.full(shape, 1e-3), a * 0.2],
        jnp.where(kind == 3, -b, jnp.full(shape, 0.05)),
    )
    high = jnp.maximum(jnp.select([kind == 2], [a * 0.2 + b], a), low + 0.5)
    u = jax.random.uniform(k[2], (batch, variables, points))
    grid = ((jnp.arange(points, dtype=jnp.float32) + 0.5) / points)[None, None]
    even = jax.random.bernoulli(k[3], 0.4 if variables == 1 else 0.0, (batch, 1, 1))
    u = jnp.where(
        even,
        jnp.take_along_axis(jnp.broadcast_to(grid, u.shape), jnp.argsort(u, axis=-1), axis=-1),
        u,
    )
    linear = low + (high - low) * u
    logarithmic = jnp.exp(
        jnp.log(jnp.maximum(low, 0.02)) * (1 - u) + jnp.log(jnp.maximum(high, 0.05)) * u
    )
    return jnp.where(jax.random.bernoulli(k[4], 0.15, shape) & (low > 0), logarithmic, linear)


def length_weights(
    table: SkeletonTable, weights: dict[int, float] | None = None, variables: int | None = None
) -> Float[Array, "slots1 variables"]:
    """How often skeletons of each length and number of variables are drawn, never one that the
    table lacks.

    Lengths: evenly from 3 to 13 tokens, 2 at weight 0.3, more than 13 at half weight, or as given.
    Of one length all numbers of variables up to `variables` (all, if None) are drawn evenly.
    """
    begin = np.asarray(table.start)
    slots, most = begin.shape[0] - 2, begin.shape[1]
    default = {n: (0.3 if n == 2 else 1.0 if n <= 13 else 0.5) for n in range(2, slots + 1)}
    wanted = default if weights is None else weights
    count = np.diff(begin.ravel())[: (slots + 1) * most].reshape(slots + 1, most)
    there = (count > 0) & (np.arange(most) < (most if variables is None else variables))
    row = np.array([wanted.get(n, 0.0) for n in range(slots + 1)], np.float32)[:, None]
    return jnp.asarray(there * row / np.maximum(there.sum(axis=1, keepdims=True), 1), jnp.float32)


def draw_skeletons(
    key: Array, table: SkeletonTable, weights: Float[Array, "slots1 variables"], count: int
) -> Int[Array, "count slots"]:
    """A length and a number of variables by `weights`, then any skeleton of that kind."""
    k = jax.random.split(key)
    kind = jax.random.categorical(k[0], jnp.log(weights.ravel()), shape=(count,))
    low, high = table.start.ravel()[kind], table.start.ravel()[kind + 1]
    place = jax.random.uniform(k[1], (count,)) * (high - low).astype(jnp.float32)
    return table.tokens[low + place.astype(jnp.int32)].astype(jnp.int32)


def rename(
    tokens: Int[Array, "batch slots"], columns: Int[Array, "batch variables"]
) -> Int[Array, "batch slots"]:
    """Each skeleton with `columns[:, j]`, counted from 0, in place of its variable x(j+1)."""
    place = jnp.clip(tokens - 1, 0, columns.shape[1] - 1)
    return jnp.where(is_variable(tokens), 1 + jnp.take_along_axis(columns, place, 1), tokens)


def _defined_points(
    key: Array, tokens: Array, values: Array, variables: int, points: int
) -> tuple[Array, Array, Array]:
    """Points at which every term is finite, from three tries, the last with x > 0: x (batch,
    variables, points), the terms (batch, terms, points), and whether a try succeeded (batch,).
    """
    n, tries = len(tokens), 3
    x = draw_points(key, n * tries, variables, points).reshape(tries, n, variables, points)
    x = x.at[2].set(jnp.abs(x[2]))
    slots_of, term = additive_terms(tokens, TERMS)
    row = jnp.arange(n)

    def terms_at(x: Array) -> tuple[Array, Array]:
        basis = evaluate_nodes(tokens, values, x)[slots_of, row[:, None]]
        good = jnp.isfinite(basis) & (jnp.abs(basis) < 1e5) | ~term[..., None]
        return basis, jnp.all(good, axis=(1, 2))

    bases, goods = jax.lax.map(terms_at, x)
    pick = jnp.argmax(goods, axis=0)
    good = goods[pick, row]
    basis = jnp.where(term[..., None] & good[:, None, None], bases[pick, row], 0.0)
    return x[pick, row], basis, good


def _spread(v: Float[Array, "*batch points"], mask: Array) -> Float[Array, "*batch"]:
    """The standard deviation over the points that count."""
    centred, _ = centre(v, mask)
    return jnp.sqrt(jnp.sum(centred**2, -1) / jnp.sum(mask, axis=-1).astype(v.dtype))


def _coefficients(key: Array, deviation: Float[Array, "batch terms"]) -> Array:
    """Signs, 30 % negative, times: in 60 % of the problems 1 or log-uniform in [0.2, 5], in the
    others such that the terms' shares of y are log-uniform in [0.1, 1].
    """
    k = jax.random.split(key, 5)
    shape, one = deviation.shape, (len(deviation), 1)
    sign = jnp.where(jax.random.bernoulli(k[0], 0.3, shape), -1.0, 1.0)
    size = jnp.exp(jax.random.uniform(k[1], shape, minval=np.log(0.2), maxval=np.log(5.0)))
    natural = jnp.where(jax.random.bernoulli(k[2], 0.5, one), 1.0, size)
    share = jnp.exp(jax.random.uniform(k[3], shape, minval=np.log(0.1), maxval=0.0))
    balanced = share / jnp.maximum(deviation, 1e-6)
    return sign * jnp.where(jax.random.bernoulli(k[4], 0.4, one), balanced, natural)


def _nearly_linear(x: Float[Array, "batch points"], y: Array, mask: Array) -> Array:
    """True where a line in x explains all but a thousandth of the variance of y."""
    xc, yc = centre(x, mask)[0], centre(y, mask)[0]
    slope = jnp.sum(xc * yc, 1) / jnp.maximum(jnp.sum(xc**2, 1), 1e-9)
    rest = jnp.sum((yc - slope[:, None] * xc) ** 2, 1) / jnp.maximum(jnp.sum(yc**2, 1), 1e-12)
    return rest <= 1e-3


def draw_examples(
    key: Array,
    table: SkeletonTable,
    batch: int,
    *,
    points: int = 64,
    variables: int = 1,
    weights: Float[Array, "slots1 variables"],
    reject: Reject | None = None,
) -> Examples:
    """`batch` problems for one training step, made on the device, with `variables` columns of which
    the formula uses some: each skeleton's variables are given different columns at random.

    `weights` come from `length_weights(table, variables=variables)`.  Twice as many are drawn as
    needed and the valid ones kept: finite everywhere, every term matters, not nearly constant or
    linear, and not what `reject` is true for (see `corpus.exclusions.excludes`).  Chapter 2.
    """
    k = jax.random.split(key, 9)
    n = 2 * batch
    skeletons = draw_skeletons(k[0], table, weights, n)
    values = draw_constants(k[1], skeletons)
    skeletons = jnp.where(is_constant(skeletons), nearest_constant(values), skeletons)
    columns = jnp.argsort(jax.random.uniform(k[2], (n, variables)), axis=1).astype(jnp.int32)
    tokens = rename(skeletons, columns)
    x, basis, good = _defined_points(k[3], tokens, values, variables, points)
    mask = jnp.arange(points)[None] < jax.random.randint(k[4], (n, 1), 16, points + 1)

    deviation = _spread(basis, mask[:, None])
    coefficient = _coefficients(k[5], deviation)
    y = jnp.sum(coefficient[..., None] * basis, axis=1)
    size = _spread(y, mask)
    _, term = additive_terms(tokens, TERMS)
    good &= jnp.all((jnp.abs(coefficient) * deviation > 3e-3 * size[:, None]) | ~term, axis=1)
    good &= (size > 1e-3 * jnp.max(jnp.abs(jnp.where(mask, y, 0.0)), axis=1)) & (size > 1e-6)
    one = jnp.all(~is_variable(skeletons) | (skeletons == 1), axis=1)
    good &= ~(one & _nearly_linear(x[jnp.arange(n), columns[:, 0]], y, mask))
    if reject is not None:
        good &= ~reject(skeletons, values, coefficient)

    offset = jax.random.normal(k[6], (n,)) * 2 * size
    offset = jnp.where(jax.random.bernoulli(k[7], 0.5, (n,)), 0.0, offset)
    y = y + offset[:, None] + size[:, None] * _noise(k[8], y.shape)
    x, y = jnp.where(mask[:, None], x, 0.0), jnp.where(mask, y, 0.0)
    kept = jnp.argsort(~good, stable=True)[:batch]
    weight = good.astype(jnp.float32)
    drawn = Examples(tokens, values, x, y, mask, weight, coefficient, offset)
    return Examples(*(a[kept] for a in drawn))


def _noise(key: Array, shape: tuple[int, ...]) -> Array:
    """None in half of the rows, else normal with a deviation log-uniform in [0.001, 0.05]."""
    k = jax.random.split(key, 3)
    one = (shape[0], 1)
    level = jnp.exp(jax.random.uniform(k[0], one, minval=np.log(1e-3), maxval=np.log(0.05)))
    level = jnp.where(jax.random.bernoulli(k[1], 0.5, one), 0.0, level)
    return level * jax.random.normal(k[2], shape)
