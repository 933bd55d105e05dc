"""Newton-Schulz: matrices made orthogonal with products alone.  (Chapter 5)

Each step maps every singular value s of Z to s (a + b s^2 + c s^4) and leaves the singular vectors
alone.  A schedule that sends every s in (0, 1] to 1 ends at the polar factor of Z, the nearest
matrix with orthonormal rows.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

# Muon's quintic (Jordan 2024): fast growth from small singular values, but 1 is not a fixed point.
MUON = ((3.4445, -4.7750, 2.0315),) * 5


# Polar Express (Amsel et al. 2025, arXiv 2505.16932), then two steps of Taylor's quintic, which has
# 1 as a fixed point of third order.
POLAR = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (15 / 8, -10 / 8, 3 / 8),
    (15 / 8, -10 / 8, 3 / 8),
)


CUBIC = ((1.5, -0.5, 0.0),) * 12  # Newton's own: s (3 - s^2) / 2


def orthogonalize(
    z: Float[Array, "*batch slots dim"], schedule: tuple[tuple[float, float, float], ...] = POLAR
) -> Float[Array, "*batch slots dim"]:
    """Z (slots <= dim) to P Z with P a polynomial in Z Z^T; under `POLAR` the rows become
    orthonormal.

    The products stay on the small side: with G = Z Z^T a step is Q = a I + b G + c G^2, P <- Q P, G
    <- Q G Q, all slots x slots, and the wide matrix enters once at the start and once at the end.
    Singular values below 1e-3 of the Frobenius norm may stay under 1. Source: Jordan 2024 (Muon),
    Amsel et al. 2025; derived in chapter 5.
    """
    eye = jnp.eye(z.shape[-2], dtype=z.dtype).reshape(*[1] * (z.ndim - 2), z.shape[-2], z.shape[-2])
    norm = jnp.sqrt(jnp.sum(jnp.square(z), axis=(-2, -1), keepdims=True)) + 1e-12
    z = z / norm
    gram = z @ jnp.swapaxes(z, -1, -2)
    product = jnp.broadcast_to(eye, gram.shape)
    for a, b, c in schedule:
        q = a * eye + b * gram + c * (gram @ gram)
        product = q @ product
        gram = q @ gram @ q
    return product @ z
