"""The causal decoder that reads the latents and writes a formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from refinemath.network.config import Config
from refinemath.network.layers import Block, KeyValue, Linear, Norm, Table
from refinemath.network.moments import is_variable
from refinemath.network.spine import ARITY, COLUMNS, END, SLOTS, VOCABULARY, allowed, open_counts


class Decoder(nnx.Module):
    """A causal transformer that writes a formula in spine order and reads nothing but the slots and
    column embeddings."""

    def __init__(self, c: Config, *, rngs: nnx.Rngs):
        w = c.width
        self.token, self.place = Table(len(VOCABULARY), w, rngs=rngs), Table(SLOTS, w, rngs=rngs)
        self.missing = Table(SLOTS + 2, w, rngs=rngs)  # by the number of operands that are missing
        self.column, self.point = Linear(w, w, scale=0.5, rngs=rngs), Linear(w, w, rngs=rngs)
        self.read = Linear(c.latent_dim, w, rngs=rngs)
        self.blocks = nnx.List([Block(w, c.heads, 4, rngs=rngs) for _ in range(c.decoder_blocks)])
        self.norm, self.head = Norm(w), Table(w, len(VOCABULARY), scale=0.02, rngs=rngs)

    def slots(self, z: Float[Array, "batch slots dim"]) -> list[KeyValue]:
        """Keys and values of the slots, for each block."""
        rows = self.read(z * np.float32(z.shape[-1] ** 0.5))
        return [block.cross.read(rows) for block in self.blocks]

    def embed(self, before: Array, place: Array, open_: Array, columns: Array) -> Array:
        """Rows for the last tokens (batch, n), their places, and the operands then missing."""
        at = jnp.clip(before - 1, 0, columns.shape[1] - 1)
        column = jnp.take_along_axis(self.column(columns), at[..., None], axis=1)
        token = jnp.where(is_variable(before)[..., None], column, self.token(before))
        return token + self.place(place) + self.missing(open_)

    def log_probs(self, h: Array, place: Array, open_: Array, columns: Array) -> Array:
        """Of every token of the vocabulary, (batch, n, vocabulary): a column's is that of a look at
        its embedding."""
        h = self.norm(h)
        plain = (h.reshape(-1, h.shape[-1]) @ self.head.rows[...]).reshape(*h.shape[:2], -1)
        looks = jnp.einsum("bnw,bvw->bnv", self.point(h), columns) * np.float32(0.1)
        absent = COLUMNS - columns.shape[1]
        looks = jnp.pad(
            looks + plain[..., 1:2], ((0, 0), (0, 0), (0, absent)), constant_values=-1e9
        )
        logits = jnp.concatenate([plain[..., :1], looks, plain[..., 1 + COLUMNS :]], axis=-1)
        mask = allowed(open_, SLOTS - 1 - place)
        return jax.nn.log_softmax(jnp.where(mask, logits, -1e9), axis=-1)

    def log_prob(
        self, tokens: Int[Array, "batch n"], z: Array, columns: Array
    ) -> Float[Array, "batch n"]:
        """log p of each token of given formulas, given those before it; 0 after the end."""
        n = tokens.shape[1]
        place, open_ = jnp.arange(n), open_counts(tokens)
        before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=END)
        h = self.embed(before, place, open_, columns)
        causal = jnp.tril(jnp.ones((n, n), bool))[None, None]
        for block, slots in zip(self.blocks, self.slots(z), strict=True):
            h = block(h, slots, own_mask=causal)
        log_p = self.log_probs(h, place, open_, columns)
        log_p = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        return jnp.where(open_ > 0, log_p, 0.0)

    def sample(
        self,
        key: Array,
        z: Array,
        columns: Array,
        count: int,
        temperature: float = 1.0,
        steps: int | None = None,
    ) -> tuple[Int[Array, "batch count slots"], Float[Array, "batch count"]]:
        """`count` legal formulas from each latent and their log p at temperature 1; keys and values
        are cached."""
        steps = SLOTS if steps is None else steps
        batch, width = len(z), self.head.rows[...].shape[0]
        read = self.slots(z)
        empty = jnp.zeros(
            (batch * count, steps, self.blocks[0].own.heads, width // self.blocks[0].own.heads)
        )
        caches = [(empty, empty) for _ in self.blocks]

        def step(carry: tuple, inputs: tuple[Array, Array]) -> tuple[tuple, Array]:
            caches, before, open_, total = carry
            place, u = inputs
            h = self.embed(before, place, open_, columns)
            new = []
            for block, slots, (keys, values) in zip(self.blocks, read, caches, strict=True):
                flat = h.reshape(batch * count, 1, width)
                key, value = block.own.read(flat)
                keys, values = (
                    keys.at[:, place].set(key[:, 0]),
                    values.at[:, place].set(value[:, 0]),
                )
                seen = (jnp.arange(steps) <= place)[None, None, None]
                flat = flat + block.own(block.own_norm(flat), (keys, values), seen)
                h = block.finish(flat.reshape(h.shape), slots)
                new.append((keys, values))
            log_p = self.log_probs(h, place[None], open_, columns)
            mass = jnp.cumsum(
                jnp.exp((log_p - jnp.max(log_p, -1, keepdims=True)) / temperature), axis=-1
            )
            token = jnp.sum(mass <= u[..., None] * mass[..., -1:], axis=-1, dtype=jnp.int32)
            total = total + jnp.where(
                open_ > 0, jnp.take_along_axis(log_p, token[..., None], -1)[..., 0], 0.0
            )
            open_ = jnp.where(token == END, 0, open_ + jnp.asarray(ARITY)[token] - 1)
            return (new, token, open_, total), token

        uniform = jax.random.uniform(key, (steps, batch, count), maxval=1 - 1e-6)
        nothing = jnp.full((batch, count), END, jnp.int32)
        start = (caches, nothing, jnp.ones_like(nothing), jnp.zeros((batch, count)))
        (_, _, _, total), tokens = jax.lax.scan(step, start, (jnp.arange(steps), uniform))
        return jnp.moveaxis(tokens, 0, -1), total
