"""Grammar-exact decoding: the best formula, and exact samples, from independent slot logits.  (Chapter 8)

A prefix sequence is a formula exactly when its count of open operands, 1 at the start and changed by arity - 1 at every token, reaches 0 at
the last token and not before.  So a legal formula is a path through the states (slot, open count), and a backward pass over these few
states gives every probability that decoding needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath.language import ARITY, END, VOCABULARY_SIZE

_CLASS = tuple(tuple(t for t in range(VOCABULARY_SIZE) if ARITY[t] == a and t != END) for a in range(3))


def backward(logits: Float[Array, "batch slots vocabulary"], reduce: Callable[..., Array] = jax.nn.logsumexp) -> Float[Array, "slots1 batch open"]:
    """Backward messages beta[i, :, o]: the log-weight of all ways to finish a formula from slot i with o operands open.

    With `reduce=jnp.max` it is the log-weight of the best way.  Shape (slots + 1, batch, slots + 1).  Chapter 8.
    """
    batch, slots, _ = logits.shape
    mass = jnp.stack([reduce(logits[..., jnp.asarray(c)], axis=-1) for c in _CLASS], axis=-1)
    end = logits[..., END]
    far = jnp.full((batch, 1), -jnp.inf, logits.dtype)

    def step(beta: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        m, e = inputs  # (batch, 3), (batch,)
        after = jnp.stack([beta[:, :-1], beta[:, 1:], jnp.concatenate([beta[:, 2:], far], 1)], axis=-1)  # open 1..slots
        some = reduce(m[:, None, :] + after, axis=-1)
        beta = jnp.concatenate([(e + beta[:, 0])[:, None], some], axis=1)
        return beta, beta

    last = jnp.concatenate([jnp.zeros((batch, 1), logits.dtype), jnp.full((batch, slots), -jnp.inf, logits.dtype)], axis=1)
    _, betas = jax.lax.scan(step, last, (jnp.swapaxes(mass, 0, 1), jnp.swapaxes(end, 0, 1)), reverse=True)
    return jnp.concatenate([betas, last[None]], axis=0)


@functools.partial(jax.jit, static_argnames="count")
def sample(key: Array, logits: Float[Array, "batch slots vocabulary"], count: int) -> Int[Array, "batch count slots"]:
    """`count` exact samples for every row of logits, each a legal formula: p(e) is proportional to exp(sum of its logits).

    The backward messages are computed once a row; each sample then costs one pass forward.  Chapter 8.
    """
    batch, slots, _ = logits.shape
    beta = backward(logits)
    # cumulative weights within each arity class, so that one uniform number picks a token
    weights = [jax.nn.softmax(logits[..., jnp.asarray(c)], axis=-1) for c in _CLASS]
    cumulative = [jnp.cumsum(w, axis=-1) for w in weights]
    mass = jnp.stack([jax.nn.logsumexp(logits[..., jnp.asarray(c)], axis=-1) for c in _CLASS], axis=-1)
    uniform = jax.random.uniform(key, (slots, 2, batch, count))
    row = jnp.arange(batch)[:, None]

    def step(open_: Array, i: Array) -> tuple[Array, Array]:
        after = jnp.stack([beta[i + 1][row, jnp.clip(open_ + a - 1, 0, slots)] for a in range(3)], axis=-1)
        after = after.at[..., 2].set(jnp.where(open_ + 1 > slots, -jnp.inf, after[..., 2]))
        chance = jax.nn.softmax(mass[:, i][:, None, :] + after, axis=-1)
        chance = jnp.where(open_[..., None] > 0, chance, 0.0)
        u = uniform[i, 0]
        arity = (u > chance[..., 0]).astype(jnp.int32) + (u > chance[..., 0] + chance[..., 1]).astype(jnp.int32)
        arity = jnp.where(chance[..., 2] <= 0, jnp.minimum(arity, 1), arity)
        arity = jnp.where((arity == 1) & (chance[..., 1] <= 0), jnp.where(chance[..., 0] > 0, 0, 2), arity)
        token = jnp.zeros_like(open_)
        for a, members in enumerate(_CLASS):
            rank = jnp.sum(cumulative[a][:, i][:, None, :] < uniform[i, 1][..., None], axis=-1)
            choice = jnp.asarray(members, jnp.int32)[jnp.minimum(rank, len(members) - 1)]
            token = jnp.where(arity == a, choice, token)
        token = jnp.where(open_ == 0, END, token)
        return jnp.where(open_ == 0, 0, open_ + arity - 1), token

    _, tokens = jax.lax.scan(step, jnp.ones((batch, count), jnp.int32), jnp.arange(slots))
    return jnp.moveaxis(tokens, 0, -1)


@jax.jit
def best(logits: Float[Array, "batch slots vocabulary"]) -> Int[Array, "batch slots"]:
    """The legal formula of highest total logit for every row, exactly.  Chapter 8."""
    batch, slots, _ = logits.shape
    beta = backward(logits, jnp.max)
    top = [jnp.asarray(c)[jnp.argmax(logits[..., jnp.asarray(c)], axis=-1)] for c in _CLASS]
    mass = jnp.stack([jnp.max(logits[..., jnp.asarray(c)], axis=-1) for c in _CLASS], axis=-1)
    row = jnp.arange(batch)

    def step(open_: Array, i: Array) -> tuple[Array, Array]:
        after = jnp.stack([beta[i + 1][row, jnp.clip(open_ + a - 1, 0, slots)] for a in range(3)], axis=-1)
        after = after.at[:, 2].set(jnp.where(open_ + 1 > slots, -jnp.inf, after[:, 2]))
        arity = jnp.argmax(mass[:, i] + after, axis=-1)
        token = jnp.where(open_ == 0, END, jnp.stack(top)[arity, row, i])
        return jnp.where(open_ == 0, 0, open_ + arity - 1).astype(jnp.int32), token.astype(jnp.int32)

    _, tokens = jax.lax.scan(step, jnp.ones(batch, jnp.int32), jnp.arange(slots))
    return tokens.T
