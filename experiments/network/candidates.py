"""Candidates to train the repair on: the truth with faults, and the best of other problems'
formulas, all executed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from experiments.network.examples import Examples
from refinemath import fitting
from refinemath.fitting import Points
from refinemath.network.moments import Candidate
from refinemath.network.spine import (
    ARITY,
    COLUMNS,
    END,
    NUMBER,
    VOCABULARY,
    WRITTEN,
    from_spine,
    structure,
)

_NOT_DRAWN = ("END", *(f"x{k + 1}" for k in range(COLUMNS)))
_OPERATORS = [
    np.flatnonzero((a == ARITY) & WRITTEN & ~np.isin(VOCABULARY, _NOT_DRAWN)) for a in range(3)
]


def substitute(key: Array, tokens: Array, numbers: Array, variables: int) -> tuple[Array, Array]:
    """Tokens replaced by others of the same arity, at a rate drawn for each formula from [0.03,
    0.5]."""
    k = jax.random.split(key, 6)
    shape = tokens.shape
    rate = jax.random.uniform(k[0], (shape[0], 1), minval=0.03, maxval=0.5)
    hit = jax.random.bernoulli(k[1], jnp.broadcast_to(rate, shape)) & (tokens != END)
    variable = 1 + jax.random.randint(k[2], shape, 0, variables)
    other = jnp.where(jax.random.bernoulli(k[3], 0.3, shape), NUMBER, variable)
    for a in (1, 2):
        drawn = jax.random.randint(k[4], shape, 0, len(_OPERATORS[a]))
        other = jnp.where(jnp.asarray(ARITY)[tokens] == a, jnp.asarray(_OPERATORS[a])[drawn], other)
    changed = jnp.where(hit, other, tokens)
    fresh = jnp.exp(jax.random.uniform(k[5], shape, minval=-1.5, maxval=1.5))
    kept = jnp.where(tokens == NUMBER, numbers, fresh)
    return changed, jnp.where(changed == NUMBER, kept, 0.0)


def cut(key: Array, tokens: Array, numbers: Array, variables: int) -> tuple[Array, Array]:
    """One subtree, not the whole, replaced by a variable."""
    k = jax.random.split(key)
    batch, slots = tokens.shape
    length = jnp.sum(tokens != END, axis=1, keepdims=True)
    at = 1 + (jax.random.uniform(k[0], (batch, 1)) * (length - 1)).astype(jnp.int32)
    removed = jnp.take_along_axis(structure(tokens)[0], at, axis=1)
    place = jnp.arange(slots)[None]
    source = jnp.where(place <= at, place, place + removed - 1)
    beyond, source = source >= slots, jnp.minimum(source, slots - 1)
    leaf = 1 + jax.random.randint(k[1], (batch, 1), 0, variables)
    shorter = jnp.where(beyond, END, jnp.take_along_axis(tokens, source, axis=1))
    rest = jnp.where(beyond | (place == at), 0.0, jnp.take_along_axis(numbers, source, axis=1))
    return jnp.where(place == at, leaf, shorter), rest


def execute(
    tokens: Int[Array, "batch slots"], numbers: Float[Array, "batch slots"], points: Points
) -> tuple[Array, Array]:
    """Fitted values (batch, points) and FVU (batch,) of formulas in spine order; their terms'
    coefficients are fitted."""
    done = fitting.execute(*from_spine(tokens, numbers), points)
    return done.fitted, done.fvu


def draw_candidates(key: Array, e: Examples, *, retrieve: int = 4) -> Candidate:
    """What the network is shown: an eighth each of the batch gets the truth after `substitute` and
    after `cut`, a
    quarter the best of `retrieve` other problems' formulas, and half nothing.  All are executed."""
    k = jax.random.split(key, 3)
    batch, variables = len(e.y), e.x.shape[1]
    n, near = batch // 8, batch // 4
    other = jax.random.randint(k[2], (near, retrieve), 0, batch)
    other = jnp.where(
        other == near + jnp.arange(near)[:, None], (other + 1) % batch, other
    ).reshape(-1)
    parts = [
        substitute(k[0], e.target[:n], e.numbers[:n], variables),
        cut(k[1], e.target[n:near], e.numbers[n:near], variables),
        (e.target[other], e.numbers[other]),
    ]
    tokens, numbers = (jnp.concatenate(a) for a in zip(*parts, strict=True))
    rows = jnp.concatenate([jnp.arange(near), near + jnp.arange(near * retrieve) // retrieve])
    fitted, fvu = execute(tokens, numbers, Points(e.x[rows], e.y[rows], e.mask[rows]))
    best = jnp.argmin(fvu[near:].reshape(near, retrieve), axis=1) + retrieve * jnp.arange(near)
    chosen = jnp.concatenate([jnp.arange(near), near + best])
    shown = Candidate(tokens[chosen], fitted[chosen], fvu[chosen], jnp.isfinite(fvu[chosen]))
    blank = batch - 2 * near
    full = [jnp.pad(a, ((0, blank), *[(0, 0)] * (a.ndim - 1))) for a in shown]
    fvu = jnp.where(full[3], full[2], 1.0)
    return Candidate(full[0], jnp.where(full[3][:, None], full[1], 0.0), fvu, full[3])
