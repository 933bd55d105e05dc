"""What the network sees of a scatter plot: correlations of functions of x with functions of y.

Every row of functions is centred and scaled to length 1 over the points, so a moment is a
correlation: it knows
neither the scale nor the offset of y, and no order of the points.  All columns share one table.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from refinemath.fitting import Points
from refinemath.network.spine import COLUMNS, END

X_FUNCTIONS, Y_FUNCTIONS, RATIO_FUNCTIONS, STATISTICS, SCORES = 68, 28, 4, 12, 5
EXACT = jax.lax.Precision.HIGHEST  # a correlation near 1 loses its meaning in bfloat16
# x, x^2, 1/x, log|x|, sqrt|x|, x^3, sin x, cos x, exp x, exp -x;
# y, y^2, log|y|, 1/y, y^2 about the mean, sqrt|y|
PAIR_X, PAIR_Y = (0, 1, 7, 9, 5, 2, 13, 14, 29, 30), (0, 7, 10, 11, 1, 9)


def standardized(v: Array, mask: Array) -> Array:
    """Rows of mean 0 and length 1 over the masked points (last axis); what is not finite counts as
    0."""
    n = jnp.sum(mask, -1, keepdims=True).astype(v.dtype)
    v = jnp.clip(jnp.nan_to_num(v, nan=0.0, posinf=1e6, neginf=-1e6), -1e6, 1e6)
    v = jnp.where(mask, v - jnp.sum(jnp.where(mask, v, 0.0), -1, keepdims=True) / n, 0.0)
    return v * jax.lax.rsqrt(jnp.sum(v * v, -1, keepdims=True) + 1e-12)


def masked_range(v: Array, mask: Array) -> tuple[Array, Array]:
    """Least and largest value over the masked points, along the last axis, which stays."""
    low = jnp.min(jnp.where(mask, v, jnp.inf), -1, keepdims=True)
    return low, jnp.max(jnp.where(mask, v, -jnp.inf), -1, keepdims=True)


def _size(y: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Mean, standard deviation and root mean square of y, each (batch, 1)."""
    n = jnp.sum(mask, -1, keepdims=True).astype(y.dtype)
    mean = jnp.sum(jnp.where(mask, y, 0.0), -1, keepdims=True) / n
    variance = jnp.sum(jnp.where(mask, (y - mean) ** 2, 0.0), -1, keepdims=True) / n
    return mean, jnp.sqrt(variance) + 1e-12, jnp.sqrt(variance + mean**2) + 1e-12


def functions_of_x(
    x: Float[Array, "batch variables points"], mask: Array
) -> Float[Array, "batch variables functions points"]:
    """Powers, waves, exponentials, bells, quotients, products of these, and the place of x in its
    range."""
    mask = mask[:, None]
    a = jnp.abs(x)
    inv, log = x / (x * x + 1e-6), jnp.log(a + 1e-4)
    f = [x, x**2, x**3, x**4, x**5, jnp.sqrt(a), a, inv, inv**2, log, x * log, x * a, a**1.5]
    s, c = jnp.sin(x), jnp.cos(x)
    sh, ch = jnp.sin(0.5 * x), jnp.cos(0.5 * x)
    s2, c2 = 2 * s * c, 1 - 2 * s * s
    s3, c3 = s2 * c + c2 * s, c2 * c - s2 * s
    f += [s, c, s2, c2, s3, c3, 2 * s2 * c2, 1 - 2 * s2 * s2, 2 * s3 * c3, 1 - 2 * s3 * s3, sh, ch]
    f += [s * ch + c * sh, c * ch - s * sh, jnp.sin(x * x), jnp.cos(x * x)]
    e, eh = jnp.exp(jnp.clip(x, -12, 12)), jnp.exp(jnp.clip(0.5 * x, -12, 12))
    f += [
        e,
        1 / e,
        eh,
        1 / eh,
        jnp.minimum(e * e, 1e6),
        jnp.minimum(1 / (e * e), 1e6),
        x * e,
        x / e,
    ]
    bell = jnp.exp(-jnp.minimum(x * x, 20.0))
    f += [bell, jnp.sqrt(bell), x * bell, (e - 1 / e) / (e + 1 / e), (eh - 1 / eh) / (eh + 1 / eh)]
    f += [1 / (1 + x * x), x / (1 + x * x), jnp.log(1 + x * x), 1 / (0.5 + a), 1 / (2 + a)]
    f += [jnp.log(1 + a), jnp.sqrt(1 + x * x), x * s, x * c, s / (a + 0.1), s / e, s * e]
    low, high = masked_range(x, mask)
    u = (x - low) / jnp.maximum(high - low, 1e-6)
    wave = jnp.cos(jnp.pi * u)
    before, now = jnp.ones_like(wave), wave
    for _ in range(7):  # Chebyshev's recursion: cos(pi k u)
        before, now = now, 2 * wave * now - before
        f.append(now)
    f += [jnp.maximum(0.0, 1 - jnp.abs(6 * u - i)) for i in range(7)]
    return standardized(jnp.stack(f, axis=2), mask[:, :, None])


def functions_of_y(
    x: Float[Array, "batch variables points"], y: Float[Array, "batch points"], mask: Array
) -> Float[Array, "batch variables functions points"]:
    """Functions of y about its mean, about zero and about its ends; and y times functions of each
    x."""
    mean, deviation, rms = _size(y, mask)
    s, r = (y - mean) / deviation, y / rms
    a, inv = jnp.abs(r), r / (r * r + 1e-4)
    f = [
        s,
        s * s,
        s**3,
        jnp.abs(s),
        jnp.exp(-jnp.minimum(s * s, 20.0)),
        jnp.sin(2 * s),
        jnp.cos(2 * s),
    ]
    f += [r * r, a, jnp.sqrt(a), jnp.log(a + 1e-3), inv, inv * inv, jnp.sign(r)]
    low, high = masked_range(s, mask)
    p, q = s - low, high - s
    f += [p * p, jnp.sqrt(p), jnp.log(p + 1e-2), jnp.log(q + 1e-2), jnp.exp(s), jnp.exp(-s)]
    f += [1 / (p + 0.1), 1 / (q + 0.1)]
    alone = jnp.stack(f, axis=1)[:, None]
    alone = jnp.broadcast_to(alone, (len(y), x.shape[1], *alone.shape[2:]))
    r, inv = r[:, None], inv[:, None]
    xi, ax = x / (x * x + 1e-4), jnp.abs(x)
    both = [r * x, r * xi, r * jnp.sqrt(ax), r * jnp.exp(jnp.clip(-x, -6, 6)), inv * x, r * x * x]
    return standardized(
        jnp.concatenate([alone, jnp.stack(both, axis=2)], axis=2), mask[:, None, None]
    )


def sharpened(r: Array) -> Array:
    """-log(1 - r^2) / 10, from 0 to 1.4: tells a correlation of 0.999 from one of 1."""
    return -jnp.log(jnp.maximum(1 - r * r, 0.0) + 1e-6) / 10.0


def statistics(points: Points) -> Float[Array, "batch variables statistics"]:
    """What correlations do not say: the range of x, the position of 0 in that of y, the count of
    points."""
    x, y, mask = points
    low, high = (v[..., 0] for v in masked_range(x, mask[:, None]))
    y_low, y_high = masked_range(y, mask)
    mean, deviation, _ = _size(y, mask)
    n = jnp.sum(mask, -1, keepdims=True).astype(y.dtype)
    of_y = [n / 64, jnp.arcsinh(mean / deviation) / 2, (y_low - mean) / deviation / 3]
    of_y += [(y_high - mean) / deviation / 3, jnp.arcsinh(y_low / deviation) / 2]
    of_y += [jnp.arcsinh(y_high / deviation) / 2, jnp.sign(y_low)]
    of_x = [
        low / 5,
        high / 5,
        jnp.arcsinh(10 * low) / 3,
        jnp.log(high - low + 1e-3) / 2,
        jnp.sign(low),
    ]
    return jnp.stack([*of_x, *(jnp.broadcast_to(f, low.shape) for f in of_y)], axis=-1)


def correlations(fx: Array, fy: Array) -> Float[Array, "batch variables moments"]:
    """All products of rows of functions of x and of y, as one flat vector a column."""
    products = jnp.einsum("bvfp,bvgp->bvfg", fx, fy, precision=EXACT)
    return products.reshape(*fx.shape[:2], -1)


def pair_moments(fx: Array, fy: Array, mask: Array) -> Float[Array, "batch pairs2 moments"]:
    """Correlations of products of functions of two columns with y: every pair (i, j), then every
    (j, i)."""
    batch, variables, _, points = fx.shape
    n = len(PAIR_X)
    i, j = np.triu_indices(variables, 1)
    px, py = fx[:, :, jnp.array(PAIR_X)] * points, fy[:, 0, jnp.array(PAIR_Y)]
    product = (px[:, i][:, :, :, None] * px[:, j][:, :, None]).reshape(batch, len(i), n * n, points)
    product = standardized(product, mask[:, None, None])
    m = jnp.einsum("bqfp,bgp->bqfg", product, py, precision=EXACT)
    m = m.reshape(batch, len(i), n, n, len(PAIR_Y))
    m = jnp.stack([m * 2, sharpened(m) * 3], axis=-1)
    return jnp.concatenate([m, jnp.swapaxes(m, 2, 3)], axis=1).reshape(batch, 2 * len(i), -1)


class Candidate(NamedTuple):
    """A formula in spine order and what executing it gave; where `known` is False there is none
    yet."""

    tokens: Array  # (batch, slots) int
    fitted: Float[Array, "batch points"]
    fvu: Float[Array, " batch"]  # fraction of variance unexplained
    known: Array  # (batch,) bool


def no_candidate(points: Points, slots: int) -> Candidate:
    """The candidate before there is one."""
    batch = len(points.y)
    empty = jnp.full((batch, slots), END, jnp.int32)
    return Candidate(empty, jnp.zeros_like(points.y), jnp.ones(batch), jnp.zeros(batch, bool))


def residual_moments(fx: Array, points: Points, candidate: Candidate) -> tuple[Array, Array]:
    """Correlations with functions of the residual and of y / fitted; and scores of the fit, (batch,
    scores)."""
    x, y, mask = points
    f = jnp.where(mask, candidate.fitted, 0.0)
    residual = jnp.where(mask, y - f, 0.0)
    ratio = y * f / (f * f + 1e-6 * jnp.mean(y * y, -1, keepdims=True) + 1e-30)
    more = jnp.stack([ratio, jnp.log(jnp.abs(ratio) + 1e-4), f, f * residual], axis=1)[:, None]
    more = jnp.broadcast_to(more, (len(y), x.shape[1], RATIO_FUNCTIONS, y.shape[1]))
    more = standardized(more, mask[:, None, None])
    fr = jnp.concatenate([functions_of_y(x, residual, mask), more], axis=2)
    log = jnp.log10(jnp.clip(candidate.fvu, 1e-8, 1.0))[:, None]
    scores = [log / 4, 10**log, (log < -5) * 1.0, jax.nn.relu(log + 2), jnp.ones_like(log)]
    return correlations(fx, fr), jnp.concatenate(scores, axis=1)


def is_variable(tokens: Array) -> Array:
    """True where a token names a column."""
    return (tokens >= 1) & (tokens <= COLUMNS)
