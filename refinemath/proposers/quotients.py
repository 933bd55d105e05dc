"""Quotients whose denominator holds a free number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import centre
from refinemath.expression import END, OPERATOR_TOKEN, nearest_constant
from refinemath.fitting import Points
from refinemath.pool import best_per_group, skeleton_hash
from refinemath.proposers.library import Library, thin
from refinemath.proposers.splice import concat_tokens, mask_invalid, single_token

# entries of the library that stand above a denominator with a free number: x, and one function of
# it
NUMERATORS = 12


def quotients(
    library: Library, points: Points, most: int
) -> tuple[Int[Array, "most slots"], Float[Array, "most slots"]]:
    """The `most` best quotients 1 / (g + d) and f / (g + d) of different skeletons: g any entry of
    the library, f one of the first, d free.

    From (g + d) y = a f follows y = a f / g - d y / g, which is linear in a and d: one closed
    formula gives d for each pair.  Which pairs are good is asked of the quotients themselves, up to
    scale and offset.  A denominator that changes its sign does not count.  Chapter 8.
    """
    points, y_all = thin(points, library.y)
    mask, y = points.mask, jnp.where(points.mask, points.y, 0.0)
    count = jnp.sum(mask).astype(jnp.float32)
    target = centre(y, mask)[0][0]
    slots = library.tokens.shape[1]
    size = jnp.sum(library.tokens != END, axis=1, dtype=jnp.int32)
    top = jnp.maximum(jnp.max(jnp.abs(y_all), axis=1, keepdims=True), 1e-30)
    g = y_all / top  # so that squares stay in range
    usable = jnp.min(jnp.where(mask, jnp.abs(g), jnp.inf), axis=1) > 1e-6
    over_g = jnp.where(mask & usable[:, None], 1.0 / jnp.where(g == 0, 1.0, g), 0.0)
    name = skeleton_hash(library.tokens)
    each = min(most, len(size))

    def best_of(
        carry: None, numerator: tuple[Array, Array]
    ) -> tuple[None, tuple[Array, Array, Array]]:
        """The best entries under one numerator: their cost, index and d."""
        f, length = numerator
        u, v = f[None] * over_g, y * over_g
        uu, uv, vv, uy, vy = (
            jnp.sum(u * u, 1),
            jnp.sum(u * v, 1),
            jnp.sum(v * v, 1),
            u @ y[0],
            v @ y[0],
        )
        det = uu * vv - uv**2
        d = jnp.where(det > 1e-5 * uu * vv, (uv * uy - uu * vy) / jnp.maximum(det, 1e-30), 0.0)
        under = g + d[:, None]
        one_sign = (
            jnp.min(jnp.where(mask, under, jnp.inf), 1)
            * jnp.max(jnp.where(mask, under, -jnp.inf), 1)
            > 0
        )
        quotient = jnp.where(mask, f[None] / jnp.where(under == 0, 1.0, under), 0.0)
        quotient = centre(quotient, jnp.broadcast_to(mask, quotient.shape))[0]
        fvu = 1.0 - (quotient @ target) ** 2 / jnp.maximum(
            jnp.sum(quotient**2, 1) * jnp.sum(target**2), 1e-30
        )
        good = usable & one_sign & (d != 0) & jnp.isfinite(fvu) & (size + length + 3 <= slots)
        cost = jnp.where(
            good,
            jnp.maximum(fvu, 1e-6) * jnp.exp(5.0 / count * (size + length).astype(jnp.float32)),
            jnp.inf,
        )
        least, index = jax.lax.top_k(-cost, each)
        return None, (-least, index, d[index] * top[index, 0])

    first = min(NUMERATORS, len(size))
    above = jnp.concatenate([jnp.where(mask, 1.0, 0.0), y_all[:first]])
    length = jnp.concatenate([jnp.zeros(1, jnp.int32), size[:first]])
    _, (cost, entry, d) = jax.lax.scan(best_of, None, (above, length))
    cost, entry, d = cost.reshape(-1), entry.reshape(-1), d.reshape(-1)
    numerator = jnp.repeat(jnp.arange(first + 1, dtype=jnp.int32), each)
    word = (
        name[entry] * jnp.int32(16777619)
        + jnp.concatenate([jnp.zeros(1, jnp.int32), name[:first]])[numerator]
    )
    order, cost = best_per_group(word, cost)
    least, rank = jax.lax.top_k(-cost, most)
    best = order[rank]
    entry, numerator, d = entry[best], numerator[best], d[best]
    head = jnp.where(numerator == 0, OPERATOR_TOKEN["inv"], OPERATOR_TOKEN["div"])
    above = jnp.maximum(numerator - 1, 0)
    quotients = concat_tokens(
        slots,
        single_token(head),
        (library.tokens[above], library.values[above], length[numerator]),
        single_token(jnp.full_like(entry, OPERATOR_TOKEN["add"])),
        (library.tokens[entry], library.values[entry], size[entry]),
        single_token(nearest_constant(d), d),
    )
    return mask_invalid(jnp.isfinite(least), *quotients)
