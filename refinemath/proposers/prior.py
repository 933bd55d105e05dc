"""Blind draws from a table of skeletons: the null model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from refinemath.expression import CONSTANT_BINS, FIRST_CONSTANT, is_constant


def draw_prior(
    key: Array, prior: Int[Array, "formulas slots"], count: int
) -> Int[Array, "count slots"]:
    """Blind candidates: skeletons of the prior with constants drawn from the bins.  The null
    model's whole wisdom.
    """
    k = jax.random.split(key)
    tokens = prior[jax.random.randint(k[0], (count,), 0, prior.shape[0])].astype(jnp.int32)
    constants = FIRST_CONSTANT + jax.random.randint(k[1], tokens.shape, 0, len(CONSTANT_BINS))
    return jnp.where(is_constant(tokens), constants, tokens)
