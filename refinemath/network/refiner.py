"""Latent slots and the one step that refines them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from refinemath.network.config import Config
from refinemath.network.encoder import Items
from refinemath.network.layers import Block, KeyValue, Linear, Norm, Table
from refinemath.newton_schulz import POLAR, orthogonalize


def stabilise(z: Float[Array, "batch slots dim"], kind: str) -> Float[Array, "batch slots dim"]:
    """Orthonormal slots (polar factor, by Newton-Schulz), or slots of length 1 alone."""
    unit = z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)
    return orthogonalize(unit, POLAR) if kind == "polar" else unit


class Refiner(nnx.Module):
    """One step Z_{t+1} = stabilise(Z_t + write(block(read(Z_t), items))), the same weights at every
    step."""

    def __init__(self, c: Config, *, rngs: nnx.Rngs):
        w, d = c.width, c.latent_dim
        self.stabiliser = c.stabiliser
        self.seed, self.place = (
            Table(c.latents, d, scale=1.0, rngs=rngs),
            Table(c.latents, w, rngs=rngs),
        )
        self.read, self.write = Linear(d, w, rngs=rngs), Linear(w, d, rngs=rngs)
        self.block = Block(w, c.heads, 2, rngs=rngs)
        self.write_norm = Norm(w)

    def start(self, batch: int) -> Float[Array, "batch slots dim"]:
        """Z_0, the same for every problem."""
        z = stabilise(self.seed.rows[...][None], self.stabiliser)
        return jnp.broadcast_to(z, (batch, *z.shape[1:]))

    def __call__(self, z: Float[Array, "batch slots dim"], items: KeyValue, mask: Array) -> Array:
        """Look at the items again and move."""
        unit = np.float32(z.shape[-1] ** 0.5)
        h = self.read(z * unit) + self.place.rows[...][None]
        h = self.block(h, items, mask[:, None, None])
        return stabilise(z + self.write(self.write_norm(h)) / unit, self.stabiliser)

    def run(self, z: Array, items: Items, steps: Array | int) -> Array:
        """`steps` applications in one compiled loop; no gradient passes through them."""
        key_value = self.block.cross.read(items.rows)
        return jax.lax.fori_loop(0, steps, lambda _, z: self(z, key_value, items.mask), z)
