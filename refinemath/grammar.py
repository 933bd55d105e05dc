"""Grammar-exact decoding: the best formula, and exact samples, from independent slot logits; and
reading token after token.  (Chapter 8)

A prefix sequence is a formula exactly when its count of open operands, 1 at the start and changed
by arity - 1 at every token, reaches 0 at the last token and not before.  So a legal formula is a
path through the states (slot, open count), and a backward pass over these few states gives every
probability that decoding needs.

Where the choice of a token may depend on those before it there is no such backward pass, but a
formula can still be read from left to right: `ParseState` keeps what stands above and beside the
next token in the tree, `allowed` says which tokens can still become a formula.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath.expression import ARITY, END, VOCABULARY_SIZE

_CLASS = tuple(
    tuple(t for t in range(VOCABULARY_SIZE) if ARITY[t] == a and t != END) for a in range(3)
)


def backward(
    logits: Float[Array, "batch slots vocabulary"], reduce: Callable[..., Array] = jax.nn.logsumexp
) -> Float[Array, "slots1 batch open"]:
    """Backward messages beta[i, :, o]: the log-weight of all ways to finish a formula from slot i
    with o operands open.

    With `reduce=jnp.max` it is the log-weight of the best way.  Shape (slots + 1, batch, slots +
    1).  Chapter 8.
    """
    batch, slots, _ = logits.shape
    mass = jnp.stack([reduce(logits[..., jnp.asarray(c)], axis=-1) for c in _CLASS], axis=-1)
    end = logits[..., END]
    far = jnp.full((batch, 1), -jnp.inf, logits.dtype)

    def step(beta: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        m, e = inputs  # (batch, 3), (batch,)
        after = jnp.stack(
            [beta[:, :-1], beta[:, 1:], jnp.concatenate([beta[:, 2:], far], 1)], axis=-1
        )  # open 1..slots
        some = reduce(m[:, None, :] + after, axis=-1)
        beta = jnp.concatenate([(e + beta[:, 0])[:, None], some], axis=1)
        return beta, beta

    last = jnp.concatenate(
        [jnp.zeros((batch, 1), logits.dtype), jnp.full((batch, slots), -jnp.inf, logits.dtype)],
        axis=1,
    )
    _, betas = jax.lax.scan(
        step, last, (jnp.swapaxes(mass, 0, 1), jnp.swapaxes(end, 0, 1)), reverse=True
    )
    return jnp.concatenate([betas, last[None]], axis=0)


def choices(
    logits: Float[Array, "batch slots vocabulary"], beta: Float[Array, "slots1 batch open"]
) -> Float[Array, "slots batch open vocabulary"]:
    """The log-weight of every token in every state (slot, open count): its own logit plus what the
    formula can still become after it.

    Given the messages of `backward`, these minus the state's own message are the exact
    log-probabilities of the next token.  Chapter 8.
    """
    slots = logits.shape[1]
    open_ = jnp.arange(slots + 1, dtype=jnp.int32)
    after = jnp.stack([beta[1:, :, jnp.clip(open_ + a - 1, 0, slots)] for a in range(3)], axis=-1)
    after = after.at[:, :, slots, 2].set(-jnp.inf)  # more operands than slots
    weight = jnp.swapaxes(logits, 0, 1)[:, :, None] + after[..., ARITY]
    complete = (open_ == 0)[:, None]
    is_end = (jnp.arange(VOCABULARY_SIZE, dtype=jnp.int32) == END)[None]
    return jnp.where((complete == is_end)[None, None], weight, -jnp.inf)


@functools.partial(jax.jit, static_argnames="count")
def sample(
    key: Array, logits: Float[Array, "batch slots vocabulary"], count: int
) -> Int[Array, "batch count slots"]:
    """`count` exact samples for every row of logits, each a legal formula: p(e) is proportional to
    exp(sum of its logits).

    The messages and the table of next-token probabilities are computed once a row; each sample then
    costs one pass forward.  Chapter 8.
    """
    batch, slots, _ = logits.shape
    weight = choices(logits, backward(logits))
    weight = weight - jnp.max(
        weight, axis=-1, keepdims=True
    )  # a state that nothing leads out of becomes NaN, and nothing leads into it
    cumulative = jnp.cumsum(jnp.exp(weight), axis=-1)
    uniform = jax.random.uniform(key, (slots, batch, count), maxval=1 - 1e-6)
    row = jnp.arange(batch, dtype=jnp.int32)[:, None]
    change = jnp.asarray(ARITY) - 1

    def step(open_: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        cumulative, u = inputs
        mass = cumulative[row, open_]
        token = jnp.sum(mass <= u[..., None] * mass[..., -1:], axis=-1, dtype=jnp.int32)
        return jnp.where(token == END, 0, open_ + change[token]), token

    _, tokens = jax.lax.scan(step, jnp.ones((batch, count), jnp.int32), (cumulative, uniform))
    return jnp.moveaxis(tokens, 0, -1)


@jax.jit
def best(logits: Float[Array, "batch slots vocabulary"]) -> Int[Array, "batch slots"]:
    """The legal formula of highest total logit for every row, exactly.  Chapter 8."""
    batch = logits.shape[0]
    top = jnp.argmax(choices(logits, backward(logits, jnp.max)), axis=-1).astype(jnp.int32)
    row = jnp.arange(batch, dtype=jnp.int32)
    change = jnp.asarray(ARITY) - 1

    def step(open_: Array, top: Array) -> tuple[Array, Array]:
        token = top[row, open_]
        return jnp.where(token == END, 0, open_ + change[token]), token

    _, tokens = jax.lax.scan(step, jnp.ones(batch, jnp.int32), top)
    return tokens.T


NONE = VOCABULARY_SIZE  # in a context: there is no such token


CONTEXTS = 2 * (VOCABULARY_SIZE + 1)  # a parent, or none, and which of its operands is meant


class ParseState(NamedTuple):
    """Formulas read up to some slot.  An operator of two operands is remembered by the open count
    at which its second operand will begin.
    """

    open: Int[Array, " batch"]  # operands that are still missing
    previous: Int[Array, " batch"]  # the last token
    waiting: Int[
        Array, "batch open"
    ]  # the operator whose second operand begins when so many are open
    beside: Int[Array, "batch open"]  # the token at the root of its first operand


def begin(batch: int, slots: int) -> ParseState:
    """Nothing read, one formula missing."""
    nowhere = jnp.full((batch, slots + 1), NONE, jnp.int32)
    return ParseState(
        jnp.ones(batch, jnp.int32), jnp.full(batch, NONE, jnp.int32), nowhere, nowhere
    )


def advance(reading: ParseState, token: Int[Array, " batch"]) -> ParseState:
    """The reading after one more token."""
    arity = jnp.asarray(ARITY)
    binary = (token < NONE) & (arity[token] == 2)
    after_binary = (reading.previous < NONE) & (arity[reading.previous] == 2)
    level = jnp.arange(reading.waiting.shape[1], dtype=jnp.int32)[None]
    here, above = level == reading.open[:, None], level == reading.open[:, None] - 1
    waiting = jnp.where(here & binary[:, None], token[:, None], reading.waiting)
    beside = jnp.where(above & after_binary[:, None], token[:, None], reading.beside)
    return ParseState(
        jnp.where(token == END, 0, reading.open + arity[token] - 1), token, waiting, beside
    )


def context(reading: ParseState) -> tuple[Array, Array, Array]:
    """What surrounds the next token in the tree, each (batch,): its parent and which operand it is,
    the root of the operand before it, the last token.

    The first is parent + (vocabulary + 1) * (1 for a second operand); `NONE` where there is
    nothing.
    """
    previous = reading.previous
    first = (previous < NONE) & (jnp.asarray(ARITY)[previous] > 0)
    at = jnp.minimum(reading.open, reading.waiting.shape[1] - 1)[:, None]
    second = ~first & (previous < NONE) & (reading.open > 0)
    parent = jnp.where(
        first,
        previous,
        jnp.where(second, jnp.take_along_axis(reading.waiting, at, axis=1)[:, 0], NONE),
    )
    sibling = jnp.where(second, jnp.take_along_axis(reading.beside, at, axis=1)[:, 0], NONE)
    return parent + (VOCABULARY_SIZE + 1) * second.astype(jnp.int32), sibling, previous


def contexts(tokens: Int[Array, "batch slots"]) -> tuple[Array, Array, Array, Array]:
    """The open count and the `context` before every slot of given formulas, each (batch, slots)."""

    def step(reading: ParseState, token: Array) -> tuple[ParseState, tuple[Array, ...]]:
        return advance(reading, token), (reading.open, *context(reading))

    _, seen = jax.lax.scan(step, begin(*tokens.shape), tokens.T)
    return tuple(a.T for a in seen)  # type: ignore[return-value]


def allowed(open_: Int[Array, "*batch"], left: Int[Array, " slots"] | int) -> Array:
    """Which tokens can stand next, (*batch, vocabulary), with `left` slots after this one: END once
    complete, else what leaves no more open than that.

    `left` is one number, or one for each place along the last axis.
    """
    every = (*[1] * open_.ndim, VOCABULARY_SIZE)
    is_end = (jnp.arange(VOCABULARY_SIZE, dtype=jnp.int32) == END).reshape(every)
    room = jnp.asarray(left, jnp.int32).reshape(
        *[1] * (open_.ndim - jnp.ndim(left)), *jnp.shape(left), 1
    )
    fits = open_[..., None] + (jnp.asarray(ARITY) - 1).reshape(every) <= room
    return jnp.where((open_ == 0)[..., None], is_end, fits & ~is_end)
