"""Sums, products and quotients of a sampled subtree and a short formula, all pairs by matrix
products.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import centre, structure
from refinemath.expression import END, OPERATOR_TOKEN
from refinemath.fitting import Points
from refinemath.proposers.library import BLOCK, Library, thin
from refinemath.proposers.splice import concat_tokens, mask_invalid, single_token


class Subtrees(NamedTuple):
    """Formulas, or subtrees of formulas, with their values on the points (0 where there is no
    point).
    """

    tokens: Int[Array, "parts slots"]
    values: Float[Array, "parts slots"]
    y: Float[Array, "parts points"]


def distinct_subtrees(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    nodes: Float[Array, "slots batch points"],
    points: Points,
    most: int,
) -> Subtrees:
    """The `most` shortest subtrees with different values (`nodes`); one that is undefined or
    constant on the points does not count.

    Equal subtrees are executed by equal instructions, so their values agree bit for bit, and so
    does a hash of the bits.
    """
    batch, slots = tokens.shape
    mask = points.mask
    size = structure(tokens)[0].reshape(-1)
    y = jnp.swapaxes(nodes, 0, 1).reshape(batch * slots, -1)
    y = jnp.where(mask, y, 0.0)
    top = jnp.max(jnp.abs(y), axis=1)
    moves = (
        jnp.max(jnp.where(mask, y, -jnp.inf), axis=1) - jnp.min(jnp.where(mask, y, jnp.inf), axis=1)
        > 1e-3 * top
    )
    counts = (tokens.reshape(-1) != END) & jnp.isfinite(top) & (top < 1e9) & (top > 1e-9) & moves
    bits = (
        jax.lax.bitcast_convert_type(y.astype(jnp.float32), jnp.uint32) >> 4
    )  # all but the last digit
    odd = jax.random.bits(jax.random.key(11), (1, y.shape[1]), jnp.uint32) | jnp.uint32(1)
    name = jnp.where(
        counts, jnp.sum(bits * odd, axis=1, dtype=jnp.uint32) >> 1, jnp.uint32(2**32 - 1)
    )
    order = jnp.argsort(name)
    new = counts[order] & (name[order] != jnp.roll(name[order], 1))
    rank = jax.lax.top_k(jnp.where(new, -size[order], -(slots + 1)), most)[1]
    best, kept = order[rank], new[rank, None]
    place = jnp.arange(slots, dtype=jnp.int32)[None]
    row, at = (best // slots)[:, None], jnp.clip((best % slots)[:, None] + place, 0, slots - 1)
    inside = kept & (place < size[best, None])
    return Subtrees(
        jnp.where(inside, tokens[row, at], END),
        jnp.where(inside, values[row, at], 0.0),
        jnp.where(kept, y[best], 0.0),
    )


def pair_up(
    parts: Subtrees, library: Library, points: Points, most: int
) -> tuple[Int[Array, "batch slots"], Float[Array, "batch slots"]]:
    """Every part g beside every library entry f: as a sum, a product, and a quotient; the best
    `most` of each kind are written out as formulas.

    Up to scale and offset the fit of all pairs is a handful of matrix products.  For a product f g,
    for instance, the sums of f g y, of (f g)^2 and of f g over the points are F Y G^T, F^2 G^2^T
    and F G^T.  Rounding blurs an FVU under about 1e-5, so the formulas are executed and ranked anew
    by whoever calls this.  Chapter 8.
    """
    slots = parts.tokens.shape[1]
    points, parts_y, library_y = thin(points, parts.y, library.y)
    parts, library = parts._replace(y=parts_y), library._replace(y=library_y)
    mask = points.mask
    count = jnp.sum(mask).astype(jnp.float32)

    def scaled(y: Array) -> Array:
        return y / jnp.maximum(jnp.sqrt(jnp.sum(y**2, axis=1, keepdims=True)), 1e-30)

    def unit(y: Array) -> Array:
        return scaled(centre(y, jnp.broadcast_to(mask, y.shape))[0])

    def fee(size: Array) -> Array:
        """A token is paid for as 5/2 nats of n/2 log FVU; the exponential of both sides needs no
        logarithm of every pair.
        """
        return jnp.exp(5.0 / count * size.astype(jnp.float32))

    target = unit(points.y)
    size, entry_size = (
        jnp.sum(t != END, axis=1, dtype=jnp.int32) for t in (parts.tokens, library.tokens)
    )
    g, g_unit = scaled(parts.y), unit(parts.y)
    never_zero = jnp.min(jnp.where(mask, jnp.abs(parts.y), jnp.inf), axis=1) > 1e-9
    never_zero &= parts.tokens[:, 0] != OPERATOR_TOKEN["inv"]  # f / (1 / g) is f g
    over_g = scaled(
        jnp.where(mask & never_zero[:, None], 1.0 / jnp.where(parts.y == 0, 1.0, parts.y), 0.0)
    )
    alone = target @ g_unit.T
    of_product = jnp.stack([g, over_g])

    def block(
        best: tuple[Array, Array], entries: tuple[Array, Array, Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        """Fit all parts beside some entries; keep each part's cheapest partner of each kind."""
        f, f_unit, length, index = entries
        own, overlap = f_unit @ target.T, f_unit @ g_unit.T
        both = (own**2 + alone**2 - 2 * own * alone * overlap) / jnp.maximum(1.0 - overlap**2, 1e-4)
        of_sum = jnp.where(overlap**2 < 1 - 1e-4, 1.0 - both, 1.0)
        mixed, square, mean = (
            jnp.einsum("fn,kgn->kfg", a, b)
            for a, b in ((f * target, of_product), (f**2, of_product**2), (f, of_product))
        )
        spread = square - mean**2 / count
        of_others = jnp.where(
            spread > 1e-5 * square, 1.0 - mixed**2 / jnp.maximum(spread, 1e-30), 1.0
        )
        fvu = jnp.concatenate([of_sum[None], of_others])  # (kinds, entries, parts)
        fits = (length[:, None] + size[None] < slots) & (size[None] > 0)
        cost = jnp.where(
            fits[None],
            jnp.maximum(fvu, 1e-6) * (fee(length)[:, None] * fee(size)[None])[None],
            jnp.inf,
        )
        lowest = jnp.min(cost, axis=1)
        which = index[jnp.argmin(cost, axis=1)]
        better = lowest < best[0]
        return (jnp.where(better, lowest, best[0]), jnp.where(better, which, best[1])), None

    entries = (
        scaled(library.y),
        unit(library.y),
        entry_size,
        jnp.arange(len(entry_size), dtype=jnp.int32),
    )
    start = jnp.full((3, len(size)), jnp.inf), jnp.zeros((3, len(size)), jnp.int32)
    (cost, partner), _ = jax.lax.scan(
        block, start, jax.tree.map(lambda a: a.reshape(-1, BLOCK, *a.shape[1:]), entries)
    )
    part = jax.lax.top_k(-cost, min(most, cost.shape[1]))[1]
    entry = jnp.take_along_axis(partner, part, axis=1).reshape(-1)
    head = jnp.repeat(
        jnp.asarray([OPERATOR_TOKEN[kind] for kind in ("add", "mul", "div")], jnp.int32),
        part.shape[1],
    )
    part = part.reshape(-1)
    m, n = entry_size[entry], size[part]
    pairs = concat_tokens(
        slots,
        single_token(head),
        (library.tokens[entry], library.values[entry], m),
        (parts.tokens[part], parts.values[part], n),
    )
    return mask_invalid((m + n < slots) & (n > 0), *pairs)  # where no pair fits, the formula is x
