"""Quotients whose denominator holds a free number: 1/(g + d) and f/(g + d).  (Chapter 8)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from refinemath.execution import Programs, lengths
from refinemath.expression import OPERATOR_TOKEN, nearest_constant
from refinemath.loop import Context, SearchState
from refinemath.pool import best_per_group, skeleton_hash
from refinemath.proposers.library import in_rounds, next_round, thin, unit_rows
from refinemath.proposers.pairs import pair_loss
from refinemath.proposers.splice import concat_tokens, mask_invalid, single_token, whole


class Denominators(NamedTuple):
    """All g with outputs of at most 1, and what they divide."""

    g: Float[Array, "entries points"]
    inverse: Float[Array, "entries points"]  # 0 where g comes near 0
    usable: Array
    size: Array


@dataclass(frozen=True)
class Quotients:
    """The best quotients of different skeletons, a queue that is made once: g any short formula, f
    one of the first `numerators`, d in closed form.
    """

    refine: int = 16
    rounds: int = 8
    numerators: int = 12  # x, and one function of it
    uses_library: ClassVar[bool] = True

    def init(self, context: Context, key: Array) -> Programs:
        """The queue, (rounds, refine, slots)."""
        queue = self.best(context, self.rounds * self.refine)
        return in_rounds(queue, self.rounds)

    def propose(
        self, model: Any, context: Context, memory: Programs, state: SearchState, key: Array
    ) -> tuple[Programs, Programs]:
        """The next of the queue."""
        return next_round(memory, state), memory

    def best(self, context: Context, most: int) -> Programs:
        """The `most` best quotients; x1 where there are no more."""
        library, (points, step) = context.library, thin(context.points)
        outputs = library.outputs[:, ::step]
        top = jnp.maximum(jnp.max(jnp.abs(outputs), axis=1, keepdims=True), 1e-30)
        g = outputs / top  # so that squares stay in range
        usable = jnp.min(jnp.where(points.mask, jnp.abs(g), jnp.inf), axis=1) > 1e-6
        inverse = jnp.where(points.mask & usable[:, None], 1.0 / jnp.where(g == 0, 1.0, g), 0.0)
        under = Denominators(g, inverse, usable, lengths(library.tokens))
        first = min(self.numerators, len(g))
        each = min(most, len(g))

        def best_of(_: None, numerator: tuple[Array, Array]) -> tuple[None, tuple[Array, ...]]:
            """The best entries under one numerator: their loss, index and d."""
            d, loss = free_number(under, *numerator, points.y, points.mask)
            least, index = jax.lax.top_k(-loss, each)
            return None, (-least, index, d[index] * top[index, 0])

        above = jnp.concatenate([jnp.where(points.mask, 1.0, 0.0), outputs[:first]])
        length = jnp.concatenate([jnp.zeros(1, jnp.int32), under.size[:first]])
        _, found = jax.lax.scan(best_of, None, (above, length))
        loss, entry, d = (a.reshape(-1) for a in found)
        numerator = jnp.repeat(jnp.arange(first + 1, dtype=jnp.int32), each)
        name = skeleton_hash(library.tokens)
        names = jnp.concatenate([jnp.zeros(1, jnp.int32), name[:first]])
        order, loss = best_per_group(name[entry] * 16777619 + names[numerator], loss)
        least, rank = jax.lax.top_k(-loss, most)
        best = order[rank]
        written = write_quotients(library, numerator[best], length, entry[best], d[best])
        return mask_invalid(jnp.isfinite(least), written)


def free_number(
    under: Denominators, f: Array, length: Array, y: Array, mask: Array
) -> tuple[Float[Array, " entries"], Float[Array, " entries"]]:
    """The d of f/(g + d) for every g, and the loss of the quotient up to scale and offset.

    From (g + d) y = a f follows y = a f/g - d y/g, which is linear in a and d.  A denominator that
    changes its sign does not count.
    """
    y = jnp.where(mask, y, 0.0)
    u, v = f[None] * under.inverse, y * under.inverse
    uu, uv, vv = jnp.sum(u * u, 1), jnp.sum(u * v, 1), jnp.sum(v * v, 1)
    uy, vy = u @ y[0], v @ y[0]
    det = uu * vv - uv**2
    d = jnp.where(det > 1e-5 * uu * vv, (uv * uy - uu * vy) / jnp.maximum(det, 1e-30), 0.0)
    below = under.g + d[:, None]
    lowest = jnp.min(jnp.where(mask, below, jnp.inf), 1)
    one_sign = lowest * jnp.max(jnp.where(mask, below, -jnp.inf), 1) > 0
    quotient = jnp.where(mask, f[None] / jnp.where(below == 0, 1.0, below), 0.0)
    fvu = 1.0 - (unit_rows(quotient, mask) @ unit_rows(y, mask)[0]) ** 2
    loss = pair_loss(fvu, under.size + length, jnp.sum(mask))
    good = under.usable & one_sign & (d != 0) & jnp.isfinite(fvu)
    return d, jnp.where(good, loss, jnp.inf)


def write_quotients(
    library: Any, numerator: Array, length: Array, entry: Array, d: Array
) -> Programs:
    """Tokens of 1/(g + d) where `numerator` is 0, else of f/(g + d) with f entry numerator - 1."""
    slots = library.tokens.shape[1]
    short = Programs(library.tokens, library.values)
    head = jnp.where(numerator == 0, OPERATOR_TOKEN["inv"], OPERATOR_TOKEN["div"])
    above = whole(short, jnp.maximum(numerator - 1, 0))._replace(length=length[numerator])
    plus = single_token(jnp.full_like(entry, OPERATOR_TOKEN["add"]))
    number = single_token(nearest_constant(d), d)
    written = concat_tokens(slots, single_token(head), above, plus, whole(short, entry), number)
    fits = length[numerator] + lengths(library.tokens[entry]) + 3 <= slots
    return mask_invalid(fits, written)
