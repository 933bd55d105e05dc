"""The few layers that the network is made of: matrices, tables, RMSNorm, attention, and a block of
them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float


def normalize(x: Array) -> Array:
    """Rows of root mean square 1."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def relu2(x: Array) -> Array:
    """Squared ReLU (So et al. 2021)."""
    return jnp.square(jax.nn.relu(x))


class Linear(nnx.Module):
    """x W: flattened to two dimensions, as XLA's weight gradients on CPUs need it."""

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, rngs: nnx.Rngs):
        kernel = jax.random.normal(rngs.params(), (inputs, outputs), jnp.float32)
        self.kernel = nnx.Param(kernel * np.float32(scale / np.sqrt(inputs)))

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The product."""
        out = x.reshape(-1, x.shape[-1]) @ self.kernel[...]
        return out.reshape(*x.shape[:-1], out.shape[-1])


class Table(nnx.Module):
    """Learned vectors."""

    def __init__(self, *shape: int, scale: float = 0.5, rngs: nnx.Rngs):
        self.rows = nnx.Param(
            np.float32(scale) * jax.random.normal(rngs.params(), shape, jnp.float32)
        )

    def __call__(self, index: Array) -> Array:
        """The rows of the given indices."""
        return self.rows[...][index]


class Norm(nnx.Module):
    """RMSNorm with a learned gain."""

    def __init__(self, width: int):
        self.gain = nnx.Param(jnp.ones(width, jnp.float32))

    def __call__(self, x: Array) -> Array:
        """Normalized rows times the gain."""
        return normalize(x) * self.gain[...].reshape(*[1] * (x.ndim - 1), -1)


KeyValue = tuple[Float[Array, "batch items heads head"], Float[Array, "batch items heads head"]]


class Attention(nnx.Module):
    """Multi-head attention with normalized queries and keys."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm = Norm(width)
        self.query = Linear(width, width, rngs=rngs)
        self.key_value = Linear(width, 2 * width, rngs=rngs)
        self.out = Linear(width, width, scale=0.5, rngs=rngs)

    def read(self, items: Float[Array, "batch items width"]) -> KeyValue:
        """Keys and values of a set."""
        both = self.key_value(self.norm(items)).reshape(*items.shape[:2], 2, self.heads, -1)
        return normalize(both[:, :, 0]), both[:, :, 1]

    def __call__(self, x: Array, key_value: KeyValue, mask: Array | None = None) -> Array:
        """What each normalized row of x (batch, rows, width) reads; `mask` broadcasts to (batch,
        heads, rows, items)."""
        k, v = key_value
        q = normalize(self.query(x).reshape(*x.shape[:2], self.heads, -1))
        score = jnp.einsum("bqhd,bkhd->bhqk", q, k) * np.float32(3.0 * q.shape[-1] ** -0.5)
        if mask is not None:
            score = jnp.where(mask, score, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(score, axis=-1), v)
        return self.out(mixed.reshape(x.shape))


class Block(nnx.Module):
    """Self-attention, cross-attention to items, feedforward; each added to its input."""

    def __init__(self, width: int, heads: int, expand: int, *, rngs: nnx.Rngs):
        self.own_norm, self.cross_norm, self.norm = Norm(width), Norm(width), Norm(width)
        self.own = Attention(width, heads, rngs=rngs)
        self.cross = Attention(width, heads, rngs=rngs)
        self.up = Linear(width, expand * width, rngs=rngs)
        self.down = Linear(expand * width, width, scale=0.5, rngs=rngs)

    def finish(self, h: Array, items: KeyValue, mask: Array | None = None) -> Array:
        """What follows self-attention."""
        h = h + self.cross(self.cross_norm(h), items, mask)
        return h + self.down(relu2(self.up(self.norm(h))))

    def __call__(
        self,
        h: Array,
        items: KeyValue,
        item_mask: Array | None = None,
        own_mask: Array | None = None,
    ) -> Array:
        """The rows after each has read from the others and from the items."""
        h = h + self.own(self.own_norm(h), self.own.read(h), own_mask)
        return self.finish(h, items, item_mask)
