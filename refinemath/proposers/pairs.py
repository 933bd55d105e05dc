"""Sums, products and quotients of a sampled subtree and a short formula: all pairs are compared by
matrix products.  (Chapter 8)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from refinemath.execution import Programs, Subtrees, lengths
from refinemath.expression import OPERATOR_TOKEN
from refinemath.fitting import Points
from refinemath.loop import Context, SearchState
from refinemath.proposers.library import PAIR_COST, scale_rows, thin, unit_rows
from refinemath.proposers.splice import concat_tokens, mask_invalid, single_token, whole

BLOCK = 16  # short formulas at a time
KINDS = ("add", "mul", "div")
LEAST_FVU = 1e-6  # rounding blurs smaller ones: formulas are executed before they count


class Side(NamedTuple):
    """One operand of all pairs: outputs as they are (length 1), centred (length 1), and sizes."""

    scaled: Float[Array, "formulas points"]
    unit: Float[Array, "formulas points"]
    size: Array


@dataclass(frozen=True)
class Pairs:
    """The best `per_kind` sums, products and quotients of subtrees and short formulas."""

    per_kind: int = 64
    # entries of the library for every column: up to four tokens, common constants
    shortest: int = 544
    most: int = 2048
    refine: int = 20
    uses_library: ClassVar[bool] = True

    def init(self, context: Context, key: Array) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def propose(
        self, model: Any, context: Context, memory: tuple[()], state: SearchState, key: Array
    ) -> tuple[Programs, tuple[()]]:
        """(kinds x per_kind) formulas, to be executed by whoever asks."""
        wanted = min(self.shortest * context.points.x.shape[1], self.most)
        count = min(wanted, len(context.library.tokens)) // BLOCK * BLOCK
        short = Subtrees(*(a[:count] for a in context.library[:3]))
        slots = short.tokens.shape[1]
        loss, partner = best_partners(state.subtrees, short, context.points)
        part = jax.lax.top_k(-loss, min(self.per_kind, loss.shape[1]))[1]
        entry = jnp.take_along_axis(partner, part, axis=1).reshape(-1)
        kinds = jnp.asarray([OPERATOR_TOKEN[kind] for kind in KINDS], jnp.int32)
        head = single_token(jnp.repeat(kinds, part.shape[1]))
        first = whole(Programs(short.tokens, short.values), entry)
        second = whole(Programs(state.subtrees.tokens, state.subtrees.values), part.reshape(-1))
        good = (first.length + second.length < slots) & (second.length > 0)
        return mask_invalid(good, concat_tokens(slots, head, first, second)), memory


def best_partners(subtrees: Subtrees, short: Subtrees, points: Points) -> tuple[Array, Array]:
    """For each subtree g and kind (kinds, subtrees): the loss of its best partner f, and which.

    Up to scale and offset the fit of all pairs is a handful of matrix products.  For a product f g,
    for instance, the sums of f g y, of (f g)^2 and of f g over the points are F Y G^T, F^2 G^2^T
    and F G^T.  Chapter 8.
    """
    points, step = thin(points)
    mask = points.mask
    outputs = subtrees.outputs[:, ::step]
    g = Side(scale_rows(outputs), unit_rows(outputs, mask), lengths(subtrees.tokens))
    never_zero = jnp.min(jnp.where(mask, jnp.abs(outputs), jnp.inf), axis=1) > 1e-9
    never_zero &= subtrees.tokens[:, 0] != OPERATOR_TOKEN["inv"]  # f / (1 / g) is f g
    inverse = jnp.where(outputs == 0, 1.0, outputs)
    over_g = scale_rows(jnp.where(mask & never_zero[:, None], 1.0 / inverse, 0.0))
    factors = jnp.stack([g.scaled, over_g])
    target, slots = unit_rows(points.y, mask), short.tokens.shape[1]

    def block(best: tuple[Array, Array], entries: tuple[Side, Array]) -> tuple[Any, None]:
        """Fit all subtrees beside some entries; keep each subtree's best partner of each kind."""
        f, index = entries
        fvu = jnp.concatenate(
            [sum_fvu(f, g, target)[None], product_fvu(f, factors, target, jnp.sum(mask))]
        )
        loss = pair_loss(fvu, f.size[:, None] + g.size[None], jnp.sum(mask))
        fits = (f.size[:, None] + g.size[None] < slots) & (g.size[None] > 0)
        loss = jnp.where(fits[None], loss, jnp.inf)
        lowest, which = jnp.min(loss, axis=1), index[jnp.argmin(loss, axis=1)]
        better = lowest < best[0]
        return (jnp.where(better, lowest, best[0]), jnp.where(better, which, best[1])), None

    few = short.outputs[:, ::step]
    f = Side(scale_rows(few), unit_rows(few, mask), lengths(short.tokens))
    entries = f, jnp.arange(len(f.size), dtype=jnp.int32)
    blocks = jax.tree.map(lambda a: a.reshape(-1, BLOCK, *a.shape[1:]), entries)
    shape = (len(KINDS), len(g.size))
    start = jnp.full(shape, jnp.inf), jnp.zeros(shape, jnp.int32)
    return jax.lax.scan(block, start, blocks)[0]


def sum_fvu(f: Side, g: Side, target: Float[Array, "1 points"]) -> Float[Array, "short subtrees"]:
    """FVU of y ~ a f + b g + c; 1 where f and g are nearly proportional."""
    own, alone, overlap = f.unit @ target.T, target @ g.unit.T, f.unit @ g.unit.T
    both = own**2 + alone**2 - 2 * own * alone * overlap
    both = both / jnp.maximum(1.0 - overlap**2, 1e-4)
    return jnp.where(overlap**2 < 1 - 1e-4, 1.0 - both, 1.0)


def product_fvu(
    f: Side, factors: Float[Array, "kinds subtrees points"], target: Array, count: Array
) -> Float[Array, "kinds short subtrees"]:
    """FVU of y ~ a f h + c for every factor h."""
    sides = (f.scaled * target, factors), (f.scaled**2, factors**2), (f.scaled, factors)
    mixed, square, mean = (jnp.einsum("fn,kgn->kfg", a, b) for a, b in sides)
    spread = square - mean**2 / count.astype(jnp.float32)
    fvu = 1.0 - mixed**2 / jnp.maximum(spread, 1e-30)
    return jnp.where(spread > 1e-5 * square, fvu, 1.0)


def pair_loss(fvu: Array, size: Array, count: Array) -> Array:
    """FVU times the price of the tokens: the exponential of the score, which needs no logarithm."""
    price = jnp.exp(PAIR_COST / count.astype(jnp.float32) * size.astype(jnp.float32))
    return jnp.maximum(fvu, LEAST_FVU) * jnp.broadcast_to(price, fvu.shape)
