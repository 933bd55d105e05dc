"""Moments of the points, and of a candidate, to items that the latents read."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from refinemath.fitting import Points
from refinemath.network import moments
from refinemath.network.config import Config
from refinemath.network.layers import Linear, Norm, Table, normalize, relu2
from refinemath.network.moments import Candidate, is_variable
from refinemath.network.spine import END, SLOTS, VOCABULARY


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
        return self.with_candidate(points, fx, items, candidate)

    def with_candidate(
        self, points: Points, fx: Array, items: Items, candidate: Candidate
    ) -> Items:
        """The items of the points and those of the candidate."""
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
        shown = [residual.reshape(batch, 2 * variables, -1), spelled, self.score(scores)[:, None]]
        rows = jnp.where(known[..., None], jnp.concatenate(shown, axis=1), 0.0)
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
