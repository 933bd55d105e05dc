"""Random edits of the best formulas: crossover, wrapping, substitution.  (Chapter 8)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from refinemath.execution import Programs, lengths, structure
from refinemath.expression import (
    CONSTANT_BINS,
    FIRST_CONSTANT,
    FIRST_OPERATOR,
    OPERATOR_TOKEN,
    TOKEN_VALUE,
    VOCABULARY_SIZE,
)
from refinemath.loop import Context, SearchState
from refinemath.proposers.splice import Segment, concat_tokens

CROSSOVER, SUBSTITUTION = 0.5, 0.2  # shares; the rest is wrapped by an operator
BINARY_WRAP = 0.6  # share of the wrapping operators
ARITHMETIC = 4  # add, sub, mul, div
UNARY = OPERATOR_TOKEN["neg"]  # the first operator of one operand


@dataclass(frozen=True)
class Edits:
    """`count` edits of formulas of the pool, the better ones more often (exponential ranks)."""

    count: int = 1024
    refine: int = 40

    def init(self, context: Context, key: Array) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def propose(
        self, model: Any, context: Context, memory: tuple[()], state: SearchState, key: Array
    ) -> tuple[Programs, tuple[()]]:
        """Edited formulas; the subtrees that are put in come from the pool and the last samples."""
        k_rank, k_edit = jax.random.split(key)
        size = len(state.pool.fvu)
        u = jax.random.uniform(k_rank, (self.count,), minval=1e-6)
        rank = jnp.minimum((-jnp.log(u) * size / 5).astype(jnp.int32), size - 1)
        parent = jnp.where(jnp.isfinite(state.pool.fvu[rank]), rank, 0)
        donors = jnp.concatenate([state.pool.tokens, state.samples.tokens[:size]])
        parents = Programs(state.pool.tokens[parent], state.pool.values[parent])
        return edit(k_edit, parents, donors, context.points.x.shape[1]), memory


def edit(
    key: Array, programs: Programs, donors: Int[Array, "donors slots"], variables: int = 1
) -> Programs:
    """Each formula with one random edit that keeps it legal: a subtree replaced by a subtree of a
    donor, a subtree wrapped by an operator, or a token replaced by another of its arity.

    All three are a splice: what stands before a token, something new, and the rest.  A formula that
    would not fit into the slots stays as it was.
    """
    batch, slots = programs.tokens.shape
    u = jax.random.uniform(key, (8, batch))
    row = jnp.arange(batch, dtype=jnp.int32)
    length = lengths(programs.tokens)
    at = _below(u[0], length)
    cut = from_position(programs, at)
    crossed, removed = donated(u, donors), structure(programs.tokens)[0][row, at]
    wrapped, swapped = replacements(u, programs.tokens[row, at], variables, slots)
    wraps, swaps = u[3] > CROSSOVER, u[3] > 1 - SUBSTITUTION
    inserted = jax.tree.map(
        lambda a, b, c: jnp.where(_as(swaps, a), c, jnp.where(_as(wraps, a), b, a)),
        crossed,
        wrapped,
        swapped,
    )
    skip = jnp.where(swaps, 1, jnp.where(wraps, 0, removed))
    before = Segment(programs.tokens, programs.values, at)
    after = from_position(programs, at + skip)
    new = concat_tokens(slots, before, inserted, after._replace(length=cut.length - skip))
    fits = length - skip + inserted.length <= slots
    return jax.tree.map(lambda a, b: jnp.where(fits[:, None], a, b), new, programs)


def _below(u: Array, high: Array | int) -> Array:
    """Whole numbers from 0 to high - 1 from uniform u."""
    return (u * jnp.asarray(high, jnp.float32)).astype(jnp.int32)


def _as(mask: Array, like: Array) -> Array:
    """The mask with as many axes as `like`."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def from_position(programs: Programs, start: Int[Array, " batch"]) -> Segment:
    """What stands from a position to the end."""
    slots = programs.tokens.shape[1]
    position = start[:, None] + jnp.arange(slots, dtype=jnp.int32)[None]
    tokens, values = (
        jnp.take_along_axis(a, jnp.minimum(position, slots - 1), axis=1) for a in programs
    )
    return Segment(tokens, values, lengths(programs.tokens) - start)


def donated(u: Array, donors: Int[Array, "donors slots"]) -> Segment:
    """A random subtree of a random donor for each formula; its constants are those of the bins."""
    donor = donors[_below(u[1], donors.shape[0])]
    start = _below(u[2], lengths(donor))
    size = structure(donor)[0][jnp.arange(len(donor), dtype=jnp.int32), start]
    subtree = from_position(Programs(donor, jnp.asarray(TOKEN_VALUE)[donor]), start)
    return subtree._replace(length=size)


def replacements(
    u: Array, token: Int[Array, " batch"], variables: int, slots: int
) -> tuple[Segment, Segment]:
    """What may stand before a wrapped subtree (op, or op and a leaf), and another token of the same
    arity; both padded to the slots.
    """
    unary = UNARY + _below(u[4], VOCABULARY_SIZE - UNARY)
    binary = OPERATOR_TOKEN["add"] + _below(u[4], ARITHMETIC)
    constant = FIRST_CONSTANT + _below(u[6], len(CONSTANT_BINS))
    leaf = jnp.where(u[5] < 0.5, 1 + _below(2 * u[5], variables), constant)
    both = u[7] < BINARY_WRAP
    other = jnp.where(token < UNARY, binary, unary)
    other = jnp.where(token < FIRST_OPERATOR, leaf, other)

    def padded(*columns: Array) -> Array:
        return jnp.pad(jnp.stack(columns, axis=1), ((0, 0), (0, slots - len(columns))))

    front, single = padded(jnp.where(both, binary, unary), leaf), padded(other)
    numbers = jnp.asarray(TOKEN_VALUE)
    size = jnp.where(both, 2, 1)
    return Segment(front, numbers[front], size), Segment(single, numbers[single], size * 0 + 1)
