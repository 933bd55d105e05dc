"""Numeric signatures: which formulas are the same function.  (Chapter 2)"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import additive_terms, evaluate_nodes
from refinemath.expression import MAX_VARIABLES, is_constant

_PROBES = np.concatenate([np.geomspace(0.13, 4.1, 8), -np.geomspace(0.17, 3.3, 8)])


PROBE_CONSTANTS = (1.3717, 2.2311, 0.7193, 1.7917, 0.4339, 2.7119)


def probe_values(tokens: Array) -> Array:
    """Values for the signature: the k-th constant of a skeleton gets the k-th fixed
    irrational-looking number.
    """
    order = jnp.cumsum(is_constant(tokens), axis=1) - 1
    numbers = jnp.asarray(PROBE_CONSTANTS, jnp.float32)[
        jnp.clip(order, 0, len(PROBE_CONSTANTS) - 1)
    ]
    return jnp.where(is_constant(tokens), numbers, 0.0)


@jax.jit
def signature(
    tokens: Int[Array, "batch slots"], values: Float[Array, "batch slots"] | None = None
) -> Int[Array, "batch 2"]:
    """Two 32-bit words a formula, equal for formulas that are the same function up to free
    coefficients (to 4 digits on 16 points).

    Each additive term is scaled to unit size and sign, rounded and hashed; the sum of the hashes
    does not depend on the terms' order.
    """
    batch = tokens.shape[0]
    values = probe_values(tokens) if values is None else values
    x = jnp.stack(
        [
            jnp.asarray(np.roll(_PROBES, 3 * v) * (1 + 0.1 * v), jnp.float32)
            for v in range(MAX_VARIABLES)
        ]
    )[None]
    nodes = evaluate_nodes(tokens, values, x)
    slots_of, term = additive_terms(tokens, 6)
    basis = nodes[slots_of, jnp.arange(batch)[:, None]]  # (batch, terms, probes)
    finite = jnp.isfinite(basis) & (jnp.abs(basis) < 1e6)
    clean = jnp.where(finite, basis, 0.0)
    count = jnp.maximum(jnp.sum(finite, -1, keepdims=True), 1).astype(clean.dtype)
    centred = jnp.where(finite, clean - jnp.sum(clean, -1, keepdims=True) / count, 0.0)
    scale = jnp.sqrt(jnp.sum(centred**2, -1, keepdims=True)) + 1e-9
    unit = centred / scale
    pivot = jnp.take_along_axis(unit, jnp.argmax(jnp.abs(unit) > 0.2, axis=-1)[..., None], axis=-1)
    unit = unit * jnp.where(pivot < 0, -1.0, 1.0)
    digits = jnp.where(finite, jnp.round(unit * 2000).astype(jnp.int32), 7919).astype(jnp.uint32)
    words = []
    for salt in (1, 2):
        weights = jnp.asarray(
            np.random.default_rng(salt).integers(1, 2**31, len(_PROBES)) * 2 + 1, jnp.uint32
        )
        h = jnp.sum(digits * weights[None, None], axis=-1, dtype=jnp.uint32)
        h = (h ^ (h >> 15)) * jnp.uint32(2246822519)
        h = (h ^ (h >> 13)) * jnp.uint32(3266489917)
        words.append(jnp.sum(jnp.where(term, h ^ (h >> 16), 0), axis=-1, dtype=jnp.uint32))
    return jnp.stack(words, axis=-1).astype(jnp.int32)


def _as_words(signatures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(signatures.astype(np.int32)).view(np.int64).ravel()
