"""Training problems drawn on the device from a table of skeletons.  (Chapter 2)"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import additive_terms, evaluate_nodes, structure
from refinemath.expression import OPERATOR_TOKEN, is_constant, nearest_constant

TERMS = 4  # additive terms that get a free coefficient


class SkeletonTable(NamedTuple):
    """Distinct skeletons sorted by length; `start[n]` is where those of n tokens begin."""

    tokens: Int[Array, "formulas slots"]  # uint8
    start: Int[Array, " slots2"]


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
    bank: SkeletonTable, weights: dict[int, float] | None = None
) -> Float[Array, " slots1"]:
    """How often each length is drawn: evenly from 3 to 13 tokens, 2 at weight 0.3, more than 13 at
    half weight, or as given; never one the bank lacks.
    """
    slots = bank.tokens.shape[1]
    wanted = (
        {n: (0.3 if n == 2 else 1.0 if n <= 13 else 0.5) for n in range(2, slots + 1)}
        if weights is None
        else weights
    )
    row = np.array([wanted.get(n, 0.0) for n in range(slots + 1)], np.float32)
    return jnp.where(jnp.diff(bank.start) > 0, row, 0.0)


def draw_examples(
    key: Array,
    bank: SkeletonTable,
    batch: int,
    *,
    points: int = 64,
    variables: int = 1,
    weights: Float[Array, " slots1"],
    probes: Array | None = None,
) -> Examples:
    """`batch` problems for one training step, made on the device.

    Twice as many are drawn as needed and the valid ones kept: finite everywhere, every term
    matters, not nearly constant or linear, and (given `probes`, see
    `exclusions.training_exclusions`) not a held-out function by its values.  Chapter 2.
    """
    k = jax.random.split(key, 14)
    n = 2 * batch
    length = jax.random.categorical(k[0], jnp.log(weights), shape=(n,))
    low, high = bank.start[length], bank.start[length + 1]
    tokens = bank.tokens[
        low + (jax.random.uniform(k[1], (n,)) * (high - low).astype(jnp.float32)).astype(jnp.int32)
    ].astype(jnp.int32)
    values = draw_constants(k[2], tokens)
    tokens = jnp.where(is_constant(tokens), nearest_constant(values), tokens)

    tries = 3
    x_all = draw_points(k[3], n * tries, variables, points).reshape(tries, n, variables, points)
    x_all = x_all.at[2].set(jnp.abs(x_all[2]))
    slots_of, term = additive_terms(tokens, TERMS)
    row = jnp.arange(n)[:, None]
    used = jax.random.randint(k[4], (n, 1), 16, points + 1)
    mask = jnp.arange(points)[None] < used
    used = used.astype(jnp.float32)

    def basis_of(x: Array) -> tuple[Array, Array]:
        basis = evaluate_nodes(tokens, values, x)[slots_of, row]
        good = jnp.all(jnp.isfinite(basis) & (jnp.abs(basis) < 1e5) | ~term[..., None], axis=(1, 2))
        return basis, good

    bases, goods = jax.lax.map(basis_of, x_all)
    pick = jnp.argmax(goods, axis=0)
    x, basis, good = (
        x_all[pick, jnp.arange(n)],
        bases[pick, jnp.arange(n)],
        goods[pick, jnp.arange(n)],
    )
    basis = jnp.where(term[..., None] & good[:, None, None], basis, 0.0)

    def spread(v: Array) -> Array:
        m = mask if v.ndim == 2 else mask[:, None]
        mean = (
            jnp.sum(jnp.where(m, v, 0.0), -1, keepdims=True)
            / used[(...,) if v.ndim == 2 else (slice(None), None)]
        )
        return jnp.sqrt(
            jnp.sum(jnp.where(m, (v - mean) ** 2, 0.0), -1)
            / used[:, 0].reshape(-1, *[1] * (v.ndim - 2))
        )

    deviation = spread(basis)
    shape = deviation.shape
    sign = jnp.where(jax.random.bernoulli(k[5], 0.3, shape), -1.0, 1.0)
    natural = jnp.where(
        jax.random.bernoulli(k[6], 0.5, (n, 1)),
        1.0,
        jnp.exp(jax.random.uniform(k[7], shape, minval=np.log(0.2), maxval=np.log(5.0))),
    )
    balanced = jnp.exp(
        jax.random.uniform(k[7], shape, minval=np.log(0.1), maxval=0.0)
    ) / jnp.maximum(deviation, 1e-6)
    coefficient = sign * jnp.where(jax.random.bernoulli(k[8], 0.4, (n, 1)), balanced, natural)
    y = jnp.sum(coefficient[..., None] * basis, axis=1)
    size = spread(y)
    offset = jnp.where(
        jax.random.bernoulli(k[9], 0.5, (n,)), 0.0, jax.random.normal(k[12], (n,)) * 2 * size
    )

    good &= jnp.all((jnp.abs(coefficient) * deviation > 3e-3 * size[:, None]) | ~term, axis=1)
    good &= (size > 1e-3 * jnp.max(jnp.abs(jnp.where(mask, y, 0.0)), axis=1)) & (size > 1e-6)
    xm = jnp.where(mask, x[:, 0], 0.0)
    xc = jnp.where(mask, x[:, 0] - jnp.sum(xm, 1, keepdims=True) / used, 0.0)
    yc = jnp.where(mask, y - jnp.sum(jnp.where(mask, y, 0.0), 1, keepdims=True) / used, 0.0)
    slope = jnp.sum(xc * yc, 1) / jnp.maximum(jnp.sum(xc**2, 1), 1e-9)
    leftover = jnp.sum((yc - slope[:, None] * xc) ** 2, 1) / jnp.maximum(jnp.sum(yc**2, 1), 1e-12)
    good &= (leftover > 1e-3) | (variables > 1)
    if probes is not None:
        good &= ~matches_probes(tokens, values, coefficient, slots_of, term, probes, variables)

    noise = jnp.where(
        jax.random.bernoulli(k[10], 0.5, (n, 1)),
        0.0,
        jnp.exp(jax.random.uniform(k[13], (n, 1), minval=np.log(1e-3), maxval=np.log(0.05))),
    )
    y = y + offset[:, None] + noise * size[:, None] * jax.random.normal(k[11], y.shape)
    y = jnp.where(mask, y, 0.0)
    keep = jnp.argsort(~good, stable=True)[:batch]
    everything = Examples(
        tokens,
        values,
        jnp.where(mask[:, None], x, 0.0),
        y,
        mask,
        good.astype(jnp.float32),
        coefficient,
        offset,
    )
    return Examples(*(a[keep] for a in everything))


_HELDOUT_PROBES = np.linspace(0.3, 2.2, 24)


def standardized_probe(y: Float[Array, "batch probes"]) -> Float[Array, "batch probes"]:
    """Values at the probe points, scaled to mean 0 and length 1 over the points where they are
    defined; zero where they are not.

    The dot product of two rows is then the correlation of two functions that are defined at the
    same points, and less for others.
    """
    good = jnp.isfinite(y)
    count = jnp.maximum(jnp.sum(good, axis=-1, keepdims=True), 1).astype(y.dtype)
    y = jnp.where(good, y, 0.0)
    y = y / jnp.maximum(
        jnp.max(jnp.abs(y), axis=-1, keepdims=True), 1e-30
    )  # so that squares do not overflow
    y = jnp.where(good, y - jnp.sum(y, axis=-1, keepdims=True) / count, 0.0)
    return jnp.where(count >= 8, y / (jnp.sqrt(jnp.sum(y**2, -1, keepdims=True)) + 1e-12), 0.0)


def probe_points(variables: int = 1) -> Float[Array, "1 variables probes"]:
    """The 24 points at which a function is compared with the held-out ones."""
    return jnp.stack(
        [jnp.asarray(np.roll(_HELDOUT_PROBES, 5 * v), jnp.float32) for v in range(variables)]
    )[None]


def matches_probes(
    tokens: Array,
    values: Array,
    coefficient: Array,
    slots_of: Array,
    term: Array,
    probes: Array,
    variables: int,
) -> Array:
    """True where an example equals an excluded function up to scale and offset: |correlation| > 1 -
    1e-6 on the probe points.

    `probes` (excluded, probes) are the rows of `exclusions.training_exclusions` for the same number
    of variables.
    """
    basis = evaluate_nodes(tokens, values, probe_points(variables))[
        slots_of, jnp.arange(tokens.shape[0])[:, None]
    ]
    y = jnp.sum(jnp.where(term[..., None], coefficient[..., None] * basis, 0.0), axis=1)
    return jnp.any(jnp.abs(standardized_probe(y) @ probes.T) > 1 - 1e-6, axis=1)
