"""Numeric signatures: which formulas are the same function, under any names.  (Chapter 2)

Both signatures here look at a formula one variable at a time: that variable takes the values `_OWN`
while all others share the values `_OTHERS`.  What is summed over the variables does not depend on
how they are named, so no permutation is ever tried.  Functions that agree on all these points are
taken for one, which for three and more variables keeps out a little more than it has to.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.examples import TERMS
from refinemath.execution import additive_terms, centre, evaluate_nodes
from refinemath.expression import MAX_VARIABLES, is_constant, is_variable

_OWN = np.concatenate([np.geomspace(0.13, 4.1, 8), -np.geomspace(0.17, 3.3, 8)])
_OTHERS = np.array(
    [
        1.9,
        0.37,
        2.83,
        0.71,
        1.31,
        3.47,
        0.23,
        0.97,
        2.29,
        0.53,
        1.61,
        0.83,
        -1.13,
        -0.41,
        -2.57,
        -0.29,
    ]
)
PROBE_CONSTANTS = (1.3717, 2.2311, 0.7193, 1.7917, 0.4339, 2.7119)
_HELDOUT_OWN = np.linspace(0.3, 2.2, 24)
_HELDOUT_OTHERS = np.roll(_HELDOUT_OWN, 5)
BLOCK = 256  # formulas whose signatures are taken at a time
MOST_TERMS = 6  # additive terms that a signature looks at


def probe_values(tokens: Int[Array, "batch slots"]) -> Float[Array, "batch slots"]:
    """Values for the signature: the k-th constant of a skeleton gets the k-th fixed
    irrational-looking number.
    """
    order = jnp.cumsum(is_constant(tokens), axis=1) - 1
    numbers = jnp.asarray(PROBE_CONSTANTS, jnp.float32)[
        jnp.clip(order, 0, len(PROBE_CONSTANTS) - 1)
    ]
    return jnp.where(is_constant(tokens), numbers, 0.0)


def _one_at_a_time(
    own: np.ndarray, others: np.ndarray, variables: int
) -> Float[Array, "1 variables points"]:
    """Points for each variable in turn: it takes the values `own`, all others take `others`."""
    x = np.tile(others, (variables, variables, 1))
    x[np.arange(variables), np.arange(variables)] = own
    return jnp.asarray(x.reshape(1, variables, -1), jnp.float32)


def _used(tokens: Int[Array, "batch slots"], variables: int) -> Array:
    """Whether each of the variables occurs, (batch, variables) bool."""
    return jnp.any(tokens[:, :, None] == jnp.arange(1, variables + 1)[None, None], axis=1)


def _mix(h: Array) -> Array:
    h = (h ^ (h >> 15)) * jnp.uint32(2246822519)
    h = (h ^ (h >> 13)) * jnp.uint32(3266489917)
    return h ^ (h >> 16)


def _digits(basis: Float[Array, "batch terms variables points"]) -> Array:
    """Each row of values scaled to mean 0, length 1 and a fixed sign, as whole numbers."""
    finite = jnp.isfinite(basis) & (jnp.abs(basis) < 1e6)
    centred, _ = centre(jnp.where(finite, basis, 0.0), finite)
    largest = jnp.max(jnp.where(finite, jnp.abs(basis), 0.0), axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.sum(centred**2, -1, keepdims=True))
    unit = centred / jnp.maximum(length, 1e-3 * largest + 1e-9)  # what is nearly constant is zero
    pivot = jnp.take_along_axis(unit, jnp.argmax(jnp.abs(unit) > 0.2, axis=-1)[..., None], axis=-1)
    unit = unit * jnp.where(pivot < 0, -1.0, 1.0)
    return jnp.where(finite, jnp.round(unit * 2000).astype(jnp.int32), 7919).astype(jnp.uint32)


@functools.partial(jax.jit, static_argnames="variables")
def signature(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"] | None = None,
    *,
    variables: int = 1,
) -> Int[Array, "batch 2"]:
    """Two 32-bit words a formula, equal for formulas that are the same function up to free
    coefficients and the names of their variables (to 4 digits on 16 points a variable).

    `variables`: how many there may be, x1 to x`variables`; more than occur change nothing.  Each
    additive term is scaled to unit size and sign, rounded and hashed; sums over the terms and then
    over the variables that occur depend on no order.
    """
    values = probe_values(tokens) if values is None else values
    nodes = evaluate_nodes(tokens, values, _one_at_a_time(_OWN, _OTHERS, variables))
    slots_of, term = additive_terms(tokens, MOST_TERMS)
    basis = nodes[slots_of, jnp.arange(len(tokens))[:, None]]
    digits = _digits(basis.reshape(*basis.shape[:2], variables, len(_OWN)))
    words = []
    for salt in (1, 2):
        weights = np.random.default_rng(salt).integers(1, 2**31, len(_OWN)) * 2 + 1
        weighted = digits * jnp.asarray(weights, jnp.uint32)[None, None, None]
        each = _mix(jnp.sum(weighted, axis=-1, dtype=jnp.uint32))
        one = jnp.sum(jnp.where(term[..., None], each, 0), axis=1, dtype=jnp.uint32)
        occurs = _used(tokens, variables)
        words.append(jnp.sum(jnp.where(occurs, _mix(one), 0), axis=-1, dtype=jnp.uint32))
    return jnp.stack(words, axis=-1).astype(jnp.int32)


def as_words(signatures: np.ndarray) -> np.ndarray:
    """Each signature as one 64-bit number, (batch,)."""
    return np.ascontiguousarray(signatures.astype(np.int32)).view(np.int64).ravel()


def _standardized(y: Float[Array, "batch points"]) -> Float[Array, "batch points"]:
    """Mean 0 and length 1 over the points where y is finite, zero where it is not; zero in all
    where these are fewer than 8.
    """
    good = jnp.isfinite(y)
    largest = jnp.max(jnp.where(good, jnp.abs(y), 0.0), axis=-1, keepdims=True)
    y, _ = centre(jnp.where(good, y / jnp.maximum(largest, 1e-30), 0.0), good)
    length = jnp.sqrt(jnp.sum(y**2, -1, keepdims=True)) + 1e-12
    return jnp.where(jnp.sum(good, axis=-1, keepdims=True) >= 8, y / length, 0.0)


def fingerprint(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    coefficient: Float[Array, "batch terms"] | None = None,
    *,
    variables: int = 1,
) -> Float[Array, "batch 24"]:
    """A function's values in a form that a factor, an offset and other names do not change.

    `coefficient` multiplies the additive terms.  Two rows have a dot product of 1 where the
    functions are the same and defined at the same points, less for others.  The values are scaled
    over all points of the variables that occur; at each of the 24 points their sizes are summed
    over the variables, and the sums scaled once more.
    """
    x = _one_at_a_time(_HELDOUT_OWN, _HELDOUT_OTHERS, variables)
    nodes = evaluate_nodes(tokens, values, x)
    y = nodes[0]
    if coefficient is not None:
        slots_of, term = additive_terms(tokens, TERMS)
        basis = nodes[slots_of, jnp.arange(len(tokens))[:, None]]
        y = jnp.sum(jnp.where(term[..., None], coefficient[..., None] * basis, 0.0), axis=1)
    occurs = jnp.repeat(_used(tokens, variables), len(_HELDOUT_OWN), axis=1)
    unit = _standardized(jnp.where(occurs, y, jnp.nan))
    defined = jnp.isfinite(y) & occurs & jnp.any(unit != 0, axis=1, keepdims=True)
    size = jnp.where(defined, jnp.abs(unit), 0.0).reshape(len(tokens), variables, -1)
    some = jnp.any(defined.reshape(size.shape), axis=1)
    return _standardized(jnp.where(some, jnp.sum(size, axis=1), jnp.nan))


def numbered(tokens: np.ndarray) -> np.ndarray:
    """Each row (batch, slots) with its variables renamed x1, x2, ... as they appear."""
    slots = tokens.shape[1]
    here = tokens[:, None] == np.arange(1, 1 + MAX_VARIABLES)[None, :, None]
    first = np.where(here.any(axis=2), here.argmax(axis=2), slots)
    rank = np.argsort(np.argsort(first, axis=1, kind="stable"), axis=1)
    place = np.clip(tokens - 1, 0, MAX_VARIABLES - 1)
    return np.where(is_variable(tokens), 1 + np.take_along_axis(rank, place, axis=1), tokens)


def used_variables(tokens: np.ndarray) -> np.ndarray:
    """How many variables each numbered skeleton has, (batch,)."""
    return np.max(np.where(is_variable(tokens), tokens, 0), axis=1)


def signature_words(tokens: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """The signatures of numbered formulas (batch, slots), each as one 64-bit number, in blocks of
    the same number of variables.
    """
    words = np.zeros(len(tokens), np.int64)
    used = used_variables(tokens)
    for variables in np.unique(used[used > 0]):
        rows = np.flatnonzero(used == variables)
        for block in np.split(rows, range(BLOCK, len(rows), BLOCK)):
            padded = np.resize(block, BLOCK)  # one shape, one compilation
            numbers = None if values is None else jnp.asarray(values[padded], jnp.float32)
            both = signature(jnp.asarray(tokens[padded]), numbers, variables=int(variables))
            words[block] = as_words(np.asarray(both))[: len(block)]
    return words
