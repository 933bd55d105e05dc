"""Running a batch of formulas on the device: outputs, derivatives, additive terms and subtrees.
(Chapter 1)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath.expression import (
    ARITY,
    CONSTANT_BINS,
    END,
    FIRST_CONSTANT,
    FIRST_OPERATOR,
    OPERATOR_TOKEN,
    OPERATORS,
    TOKEN_VALUE,
    is_constant,
)


class Programs(NamedTuple):
    """A batch of formulas: token ids, padded with `END`, and the number behind each constant."""

    tokens: Int[Array, "batch slots"]
    values: Float[Array, "batch slots"]


class Subtrees(NamedTuple):
    """Subtrees of formulas with their outputs on the points (0 where there is no point)."""

    tokens: Int[Array, "batch slots"]
    values: Float[Array, "batch slots"]
    outputs: Float[Array, "batch points"]


def concat(*programs: Programs) -> Programs:
    """Several batches as one."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *programs)


def lengths(tokens: Int[Array, "*batch slots"]) -> Int[Array, "*batch"]:
    """How many tokens each formula has."""
    return jnp.sum(tokens != END, axis=-1, dtype=jnp.int32)


def masked_mean(v: Float[Array, "*batch points"], mask: Array) -> Float[Array, "*batch 1"]:
    """The mean over the points that count, along the last axis."""
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(v.dtype)
    return jnp.sum(jnp.where(mask, v, 0.0), axis=-1, keepdims=True) / count


def structure(
    tokens: Int[Array, "batch slots"],
) -> tuple[Int[Array, "batch slots"], Int[Array, "batch slots"]]:
    """Sizes of all subtrees and the slot of each second operand; one scan from the right.

    The first operand of slot i is slot i+1; the second starts where the first one ends, at i + 1 +
    size[i+1].  Chapter 1.
    """
    return structure_by_arity(jnp.asarray(ARITY)[tokens])


def structure_by_arity(
    operands: Int[Array, "batch slots"],
) -> tuple[Int[Array, "batch slots"], Int[Array, "batch slots"]]:
    """`structure` of rows of tokens of any vocabulary, given how many operands each token has."""
    batch, slots = operands.shape
    arity = operands.T
    row = jnp.arange(batch, dtype=jnp.int32)

    def step(size: Array, i: Array) -> tuple[Array, Array]:
        first = size[i + 1]
        second = jnp.minimum(i + 1 + first, slots)
        total = (
            1 + jnp.where(arity[i] > 0, first, 0) + jnp.where(arity[i] > 1, size[second, row], 0)
        )
        return size.at[i].set(total), second

    size, second = jax.lax.scan(
        step,
        jnp.zeros((slots + 1, batch), jnp.int32),
        jnp.arange(slots, dtype=jnp.int32),
        reverse=True,
    )
    return size[:slots].T, second.T


def with_drawn_constants(key: Array, tokens: Int[Array, "batch slots"]) -> Programs:
    """The same formulas with every constant drawn from the bins."""
    drawn = FIRST_CONSTANT + jax.random.randint(key, tokens.shape, 0, len(CONSTANT_BINS))
    tokens = jnp.where(is_constant(tokens), drawn, tokens)
    return Programs(tokens, jnp.asarray(TOKEN_VALUE)[tokens])


def apply_operator(
    token: Int[Array, "batch 1"], a: Float[Array, "batch points"], b: Float[Array, "batch points"]
) -> Float[Array, "batch points"]:
    """The operator that each row's token names, applied to a, or to a and b; rows with another
    token give NaN.
    """
    out = jnp.full_like(a, jnp.nan)
    for op in OPERATORS:
        out = jnp.where(
            token == OPERATOR_TOKEN[op.name], op.jax(a) if op.arity == 1 else op.jax(a, b), out
        )
    return out


def partial_derivatives(
    token: Int[Array, "batch 1"], a: Float[Array, "batch points"], b: Float[Array, "batch points"]
) -> tuple[Array, Array]:
    """The derivatives of `apply_operator` by a and by b; 0 by an operand that the operator does not
    have.
    """
    by_a, by_b = jnp.zeros_like(a), jnp.zeros_like(a)
    one, zero = jnp.ones_like(a), jnp.zeros_like(a)
    for op in OPERATORS:
        here = token == OPERATOR_TOKEN[op.name]
        if op.arity == 1:
            by_a = jnp.where(here, jax.jvp(op.jax, (a,), (one,))[1], by_a)
        else:
            by_a = jnp.where(here, jax.jvp(op.jax, (a, b), (one, zero))[1], by_a)
            by_b = jnp.where(here, jax.jvp(op.jax, (a, b), (zero, one))[1], by_b)
    return by_a, by_b


def evaluate_nodes(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    x: Float[Array, "batch variables points"],
) -> Float[Array, "slots batch points"]:
    """The value of every subtree at every point: a register program with one register a slot.

    `x` may have batch size 1 and is then shared.  Real arithmetic only: what is undefined or
    overflows is NaN. Row 0 is the value of the whole formula.  Chapter 1.
    """
    batch, slots = tokens.shape
    points = x.shape[-1]
    _, second = structure(tokens)
    row = jnp.arange(batch, dtype=jnp.int32)
    inputs = jnp.broadcast_to(x, (batch, *x.shape[1:]))

    def step(registers: Array, i: Array) -> tuple[Array, None]:
        token = tokens[:, i][:, None]
        a = registers[i + 1]
        b = registers[second[:, i], row]
        out = jnp.broadcast_to(values[:, i][:, None], (batch, points))
        for v in range(x.shape[1]):
            out = jnp.where(token == 1 + v, inputs[:, v], out)
        out = jnp.where(token >= FIRST_OPERATOR, apply_operator(token, a, b), out)
        out = jnp.where(jnp.isfinite(out), out, jnp.nan)
        return jax.lax.dynamic_update_index_in_dim(registers, out, i, 0), None

    start = jnp.zeros((slots + 1, batch, points), x.dtype)
    registers, _ = jax.lax.scan(step, start, jnp.arange(slots, dtype=jnp.int32), reverse=True)
    return registers[:slots]


def sensitivities(
    tokens: Int[Array, "batch slots"],
    nodes: Float[Array, "slots batch points"],
    weights: Float[Array, "slots batch points"],
) -> Float[Array, "slots batch points"]:
    """How sum_i weights_i nodes_i changes with the value of every slot: reverse-mode
    differentiation of `evaluate_nodes`, point by point.

    One sweep from the left, for any number of constants: a slot passes on its own sensitivity times
    a partial derivative.  Chapter 8.
    """
    slots, batch, _ = nodes.shape
    row = jnp.arange(batch, dtype=jnp.int32)
    place = jnp.arange(slots, dtype=jnp.int32)
    second = structure(tokens)[1]
    arity = jnp.asarray(ARITY)[tokens]
    padded = jnp.concatenate([nodes, jnp.zeros_like(nodes[:1])])
    by_a, by_b = partial_derivatives(tokens.T[..., None], padded[1:], padded[second.T, row])
    is_first = (
        arity[:, :-1] > 0
        # the slot after an operator is its first operand; another operand is the second one of some
        # slot before
    ).T
    points_here = (arity[:, :, None] > 1) & (second[:, :, None] == place[None, None])
    parent = jnp.argmax(points_here, axis=1).astype(jnp.int32).T
    factor = jnp.where(jnp.any(points_here, axis=1).T[..., None], by_b[parent, row], 0.0)
    factor = factor.at[1:].set(jnp.where(is_first[..., None], by_a[:-1], factor[1:]))
    parent = parent.at[1:].set(jnp.where(is_first, place[:-1, None], parent[1:]))

    def step(out: Array, i: Array) -> tuple[Array, None]:
        return out.at[i].add(factor[i] * out[parent[i], row]), None

    return jax.lax.scan(step, weights, place[1:])[0]


def evaluate(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    x: Float[Array, "batch variables points"],
) -> Float[Array, "batch points"]:
    """The value of every formula at every point; NaN where it is undefined over the reals.  Chapter
    1.
    """
    return evaluate_nodes(tokens, values, x)[0]


def additive_terms(
    tokens: Int[Array, "batch slots"], most: int
) -> tuple[Int[Array, "batch most"], Array]:
    """Slots of the first `most` additive terms at the top of each formula, and a mask.

    `add x square x` has the terms x and x^2.  Each may take a coefficient of its own for free, see
    `fitting.project`.  Chapter 8.
    """
    batch, slots = tokens.shape
    _, second = structure(tokens)
    splits = (tokens == OPERATOR_TOKEN["add"]) | (tokens == OPERATOR_TOKEN["sub"])
    row = jnp.arange(batch, dtype=jnp.int32)

    def step(open_: Array, i: Array) -> tuple[Array, Array]:
        is_open = open_[row, i]
        passes = is_open & splits[:, i]
        open_ = open_.at[row, jnp.minimum(i + 1, slots)].max(passes)
        open_ = open_.at[row, second[:, i]].max(passes)
        return open_, is_open & ~splits[:, i]

    start = jnp.zeros((batch, slots + 1), bool).at[:, 0].set(True)
    _, term = jax.lax.scan(step, start, jnp.arange(slots, dtype=jnp.int32))
    term = term.T & (tokens != END)
    order = jnp.argsort(~term, axis=1, stable=True)[:, :most]
    return order.astype(jnp.int32), jnp.take_along_axis(term, order, axis=1)


def centre(
    v: Float[Array, "*batch points"], mask: Array
) -> tuple[Float[Array, "*batch points"], Float[Array, "*batch 1"]]:
    """v minus its mean over the points that count, 0 elsewhere; and the mean."""
    mean = masked_mean(v, mask)
    return jnp.where(mask, v - mean, 0.0), mean


def distinct_subtrees(
    programs: Programs, nodes: Float[Array, "slots batch points"], mask: Array, most: int
) -> Subtrees:
    """The `most` shortest subtrees with different outputs (`nodes`, of `evaluate_nodes`).

    One that is undefined or constant on the points does not count.  Equal subtrees are executed by
    equal instructions, so their outputs agree bit for bit, and so does a hash of the bits.
    """
    batch, slots = programs.tokens.shape
    size = structure(programs.tokens)[0].reshape(-1)
    y = jnp.where(mask, jnp.swapaxes(nodes, 0, 1).reshape(batch * slots, -1), 0.0)
    top = jnp.max(jnp.abs(y), axis=1)
    highest = jnp.max(jnp.where(mask, y, -jnp.inf), axis=1)
    moves = highest - jnp.min(jnp.where(mask, y, jnp.inf), axis=1) > 1e-3 * top
    in_range = jnp.isfinite(top) & (top < 1e9) & (top > 1e-9)
    counts = (programs.tokens.reshape(-1) != END) & in_range & moves
    bits = (
        jax.lax.bitcast_convert_type(y.astype(jnp.float32), jnp.uint32) >> 4
    )  # but the last digit
    odd = jax.random.bits(jax.random.key(11), (1, y.shape[1]), jnp.uint32) | jnp.uint32(1)
    hashed = jnp.sum(bits * odd, axis=1, dtype=jnp.uint32) >> 1
    name = jnp.where(counts, hashed, jnp.uint32(2**32 - 1))
    order = jnp.argsort(name)
    new = counts[order] & (name[order] != jnp.roll(name[order], 1))
    rank = jax.lax.top_k(jnp.where(new, -size[order], -(slots + 1)), most)[1]
    best, kept = order[rank], new[rank, None]
    position = jnp.arange(slots, dtype=jnp.int32)[None]
    row, at = (best // slots)[:, None], jnp.clip((best % slots)[:, None] + position, 0, slots - 1)
    inside = kept & (position < size[best, None])
    tokens, values = (jnp.where(inside, a[row, at], 0) for a in programs)
    return Subtrees(tokens, values, jnp.where(kept, y[best], 0.0))
