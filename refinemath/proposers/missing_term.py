"""One more additive term for the best formulas: orthogonal matching pursuit."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import centre
from refinemath.expression import END, OPERATOR_TOKEN
from refinemath.fitting import Points, without
from refinemath.pool import Pool
from refinemath.proposers.library import Library
from refinemath.proposers.splice import concat_tokens, single_token


def missing_terms(
    pool: Pool, library: Library, points: Points, most: int, choices: int = 4
) -> tuple[Int[Array, "batch slots"], Float[Array, "batch slots"]]:
    """The first `most` formulas of the pool, each plus a short term: from each of `choices` parts
    of the library the one that explains most of what the formula leaves over (orthogonal matching
    pursuit, Pati et al. 1993).  What would not fit into the slots gets no term.  Chapter 8.
    """
    tokens, values, rows = pool.tokens[:most], pool.values[:most], pool.rows[:most]
    slots = tokens.shape[1]
    mask = jnp.broadcast_to(points.mask, (most, points.mask.shape[1]))
    residual = without(centre(jnp.broadcast_to(points.y, mask.shape), mask)[0], rows)
    left_over = 1.0 - jnp.sum(
        (rows @ library.unit.T) ** 2, axis=1
    )  # of each entry, once the formula's own terms are taken out
    gain = jnp.where(
        left_over > 1e-3, (residual @ library.unit.T) ** 2 / jnp.maximum(left_over, 1e-3), 0.0
    )
    length = jnp.sum(tokens != END, axis=1, dtype=jnp.int32)
    entry_length = jnp.sum(library.tokens != END, axis=1, dtype=jnp.int32)
    gain = jnp.where(length[:, None] + entry_length[None] < slots, gain, 0.0)
    part = gain.shape[1] // choices
    best = (
        jnp.argmax(gain[:, : part * choices].reshape(most, choices, part), axis=-1).astype(
            jnp.int32
        )
        + part * jnp.arange(choices, dtype=jnp.int32)[None]
    )
    useful = jnp.take_along_axis(gain, best, axis=1) > 0
    best, useful = best.reshape(-1), useful.reshape(-1).astype(jnp.int32)
    tokens, values, length = (jnp.repeat(a, choices, axis=0) for a in (tokens, values, length))
    plus, plus_value, _ = single_token(jnp.full_like(best, OPERATOR_TOKEN["add"]))
    term = library.tokens[best], library.values[best], useful * entry_length[best]
    return concat_tokens(slots, (plus, plus_value, useful), term, (tokens, values, length))
