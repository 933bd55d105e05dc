"""Numbers for a skeleton: linear coefficients in closed form, the others by Levenberg-Marquardt, then snapped.  (Chapter 8)"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def project(
    basis: Float[Array, "batch terms points"], term: Array, y: Float[Array, "batch points"], mask: Array
) -> tuple[Float[Array, "batch points"], Float[Array, "batch"]]:
    """The least-squares fit y ~ b + sum_k a_k basis_k, and its fraction of variance unexplained (FVU).

    Modified Gram-Schmidt on the centred terms, so that nearly dependent terms cost no accuracy; a term that adds nothing is dropped, and an
    undefined one makes the FVU infinite.  This is the inner, linear half of variable projection (Golub & Pereyra 1973).  Chapter 8.
    """
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1)

    def centre(v: Array) -> tuple[Array, Array]:
        mean = jnp.sum(jnp.where(mask, v, 0.0), axis=-1) / count
        return jnp.where(mask, v - mean[..., None], 0.0), mean

    residual, mean = centre(y)
    total = jnp.sum(residual**2, axis=-1)
    finite = jnp.all(jnp.isfinite(basis) & (jnp.abs(basis) < 1e12) | ~term[..., None] | ~mask[:, None], axis=(1, 2))
    columns = []
    for k in range(basis.shape[1]):
        column, _ = centre(jnp.where(term[:, k, None] & finite[:, None], basis[:, k], 0.0))
        size = jnp.sqrt(jnp.sum(column**2, axis=-1, keepdims=True))
        column = column / jnp.maximum(size, 1e-30)
        for earlier in columns:
            column = column - jnp.sum(column * earlier, axis=-1, keepdims=True) * earlier
        left = jnp.sqrt(jnp.sum(column**2, axis=-1, keepdims=True))
        column = jnp.where(left > 1e-4, column / jnp.maximum(left, 1e-30), 0.0)
        residual = residual - jnp.sum(column * residual, axis=-1, keepdims=True) * column
        columns.append(column)
    fvu = jnp.sum(residual**2, axis=-1) / jnp.maximum(total, 1e-30)
    fitted = jnp.where(mask, y - residual, 0.0)
    return jnp.where(finite[:, None], fitted, mean[:, None] * mask), jnp.where(finite, fvu, jnp.inf)
