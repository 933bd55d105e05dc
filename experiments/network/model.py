"""The network: moments are encoded, latent slots refined in a loop, and a causal decoder writes a
formula.

Letters: x columns, Z latents (batch, slots, latent_dim), w width, items (batch, items, w) what the
slots can read.
One model answers three questions.  The whole formula: decode to the end.  The next operation: stop
after an operator
and its short operand.  A repair: the same, with a candidate and its residual among the items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from experiments.network import moments
from experiments.network.layers import Block, KeyValue, Linear, Norm, Table, normalize, relu2
from experiments.network.moments import Candidate, is_variable
from experiments.network.spine import ARITY, COLUMNS, END, SLOTS, VOCABULARY, allowed, open_counts
from refinemath.fitting import Points
from refinemath.newton_schulz import POLAR, orthogonalize

STABILISERS = ("polar", "rms")


@dataclass(frozen=True)
class Config:
    """What defines a model; stored with its weights."""

    width: int = 128
    hidden: int = 256  # width of a column's code
    heads: int = 4
    latents: int = 16  # slots
    latent_dim: int = 512
    decoder_blocks: int = 2
    column_items: int = 4  # items that the slots can read of each column
    stabiliser: str = "polar"
    feedback: bool = True  # False: candidates are not looked at
    blind: bool = False  # True: the points are not looked at, the null model

    def __post_init__(self) -> None:
        if self.stabiliser not in STABILISERS:
            raise ValueError(f"stabiliser is {self.stabiliser!r}; it must be one of {STABILISERS}")
        if self.latent_dim < 4 * self.latents:
            raise ValueError(
                f"{self.latents} orthogonal slots need a latent_dim of {4 * self.latents}"
            )


# ---------------------------------------------------------------- encoder


class Items(NamedTuple):
    """What the slots can read."""

    rows: Float[Array, "batch items width"]
    mask: Array  # (batch, items) bool
    columns: Float[
        Array, "batch variables width"
    ]  # an embedding of each column, for the decoder to point at


class Encoder(nnx.Module):
    """Moments of every column and pair of columns, and of a candidate's residual, to items.

    The weights are shared by all columns: permuting them permutes their embeddings and changes
    nothing else.
    """

    def __init__(self, c: Config, *, rngs: nnx.Rngs):
        self.config = c
        w, h, narrow = c.width, c.hidden, c.width
        x, y = moments.X_FUNCTIONS, moments.Y_FUNCTIONS
        self.wide = Linear(2 * x * y + moments.STATISTICS, h, rngs=rngs)
        self.wide_pair = Linear(
            2 * len(moments.PAIR_X) ** 2 * len(moments.PAIR_Y), narrow, rngs=rngs
        )
        self.bias, self.bias_pair = (
            Table(h, scale=0.0, rngs=rngs),
            Table(narrow, scale=0.0, rngs=rngs),
        )
        self.pair_to_column = Linear(narrow, h, rngs=rngs)
        self.norm, self.out_norm = Norm(h), Norm(h)
        self.up, self.down = Linear(h, h, rngs=rngs), Linear(h, h, scale=0.5, rngs=rngs)
        self.to_items = Linear(h, c.column_items * w, rngs=rngs)
        self.to_column, self.tag = Linear(h, w, rngs=rngs), Linear(w, w, rngs=rngs)
        self.pair_to_item = Linear(narrow, w, rngs=rngs)
        if c.feedback:
            wide = x * (y + moments.RATIO_FUNCTIONS) + moments.SCORES
            self.wide_residual = Linear(wide, narrow, rngs=rngs)
            self.bias_residual = Table(narrow, scale=0.0, rngs=rngs)
            self.residual_to_items = Linear(narrow, 2 * w, rngs=rngs)
            self.token, self.place = (
                Table(len(VOCABULARY), w, rngs=rngs),
                Table(SLOTS, w, rngs=rngs),
            )
            self.score = Linear(moments.SCORES, w, rngs=rngs)
            self.nothing = Table(w, rngs=rngs)

    def __call__(self, points: Points, candidate: Candidate | None = None) -> Items:
        """Everything that can be read of the points and, if there is one, of the candidate."""
        fx = moments.functions_of_x(points.x, points.mask)
        items = self.read_points(points, fx)
        if not self.config.feedback:
            return items
        candidate = moments.no_candidate(points, SLOTS) if candidate is None else candidate
        rows, mask = self.read_candidate(points, fx, items, candidate)
        rows, mask = jnp.concatenate([items.rows, rows], 1), jnp.concatenate([items.mask, mask], 1)
        return Items(rows, mask, items.columns)

    def read_points(self, points: Points, fx: Array) -> Items:
        """`column_items` items of each column, and one of each pair of columns."""
        c = self.config
        batch, variables, _ = points.x.shape
        seen = 0.0 if c.blind else 1.0
        fy = moments.functions_of_y(points.x, points.y, points.mask)
        m = moments.correlations(fx, fy)
        m = jnp.concatenate([2 * m, 3 * moments.sharpened(m), moments.statistics(points)], axis=-1)
        h = self.wide(m) * seen + self.bias.rows[...][None, None]
        pairs = None
        if variables > 1:
            m = moments.pair_moments(fx, fy, points.mask)
            pairs = relu2(self.wide_pair(m) * seen + self.bias_pair.rows[...][None, None])
            i, j = np.triu_indices(variables, 1)
            of = np.concatenate([i, j])[None] == np.arange(variables)[:, None]
            mean = jnp.einsum("vq,bqw->bvw", of.astype(np.float32) / (variables - 1), pairs)
            h = h + self.pair_to_column(mean)
        h = relu2(h)
        h = self.out_norm(h + self.down(relu2(self.up(self.norm(h)))))
        columns = normalize(self.to_column(h))
        tag = self.tag(columns)
        rows = self.to_items(h).reshape(batch, variables, c.column_items, -1) + tag[:, :, None]
        rows = rows.reshape(batch, -1, rows.shape[-1])
        present = jnp.any(points.x != 0, axis=-1)
        mask = jnp.repeat(present, c.column_items, axis=1)
        if pairs is not None:
            pair = (
                self.pair_to_item(pairs[:, : len(i)] + pairs[:, len(i) :]) + tag[:, i] + tag[:, j]
            )
            rows = jnp.concatenate([rows, pair], axis=1)
            mask = jnp.concatenate([mask, present[:, i] & present[:, j]], axis=1)
        return Items(rows, mask, columns)

    def read_candidate(
        self, points: Points, fx: Array, items: Items, candidate: Candidate
    ) -> tuple[Array, Array]:
        """Two items of residual moments a column, one a token, one of scores; or one that says
        there is none."""
        batch, variables, _ = points.x.shape
        tokens, known = candidate.tokens, candidate.known[:, None]
        m, scores = moments.residual_moments(fx, points, candidate)
        each = jnp.broadcast_to(scores[:, None], (batch, variables, scores.shape[1]))
        h = self.wide_residual(jnp.concatenate([2 * m, each], axis=-1))
        h = relu2(h + self.bias_residual.rows[...][None, None])
        tag = self.tag(items.columns)
        residual = (
            normalize(self.residual_to_items(h).reshape(batch, variables, 2, -1)) + tag[:, :, None]
        )
        column = jnp.take_along_axis(tag, jnp.clip(tokens - 1, 0, variables - 1)[..., None], axis=1)
        spelled = jnp.where(is_variable(tokens)[..., None], column, self.token(tokens))
        spelled = spelled + self.place.rows[...][None]
        rows = [residual.reshape(batch, 2 * variables, -1), spelled, self.score(scores)[:, None]]
        rows = jnp.where(known[..., None], jnp.concatenate(rows, axis=1), 0.0)
        nothing = jnp.broadcast_to(self.nothing.rows[...], (batch, 1, rows.shape[-1]))
        present = jnp.repeat(jnp.any(points.x != 0, axis=-1), 2, axis=1)
        mask = jnp.concatenate([known & present, known & (tokens != END), known, ~known], axis=1)
        return jnp.concatenate([rows, nothing], axis=1), mask

    def without_candidate(self, items: Items) -> Items:
        """The same items as if there were no candidate."""
        if not self.config.feedback:
            return items
        count = items.mask.shape[1]
        place = jnp.arange(count)
        first = count - 2 - SLOTS - 2 * items.columns.shape[1]
        mask = jnp.where(place < first, items.mask, place == count - 1)
        return items._replace(mask=mask)


# ---------------------------------------------------------------- latents


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


# ---------------------------------------------------------------- decoder


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


class Model(nnx.Module):
    """Encoder, refiner and decoder together."""

    def __init__(self, c: Config, *, rngs: nnx.Rngs):
        self.config = c
        self.encoder = Encoder(c, rngs=rngs)
        self.refiner = Refiner(c, rngs=rngs)
        self.decoder = Decoder(c, rngs=rngs)

    def latents(self, items: Items, depth: Array | int = 1, z: Array | None = None) -> Array:
        """Z after `depth` steps from z, or from the seed."""
        return self.refiner.run(
            self.refiner.start(len(items.rows)) if z is None else z, items, depth
        )
