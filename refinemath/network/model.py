"""The network: moments are encoded, latent slots refined in a loop, and a causal decoder writes a
formula.

Letters: x columns, Z latents (batch, slots, latent_dim), w width, items (batch, items, w) what the
slots can read.
One model answers three questions.  The whole formula: decode to the end.  The next operation: stop
after an operator and its short operand.  A repair: the same, with a candidate and its residual
among the items.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from refinemath import expression, fitting
from refinemath.execution import Programs, with_drawn_constants
from refinemath.fitting import Points
from refinemath.network import moments
from refinemath.network.config import Config
from refinemath.network.decoder import Decoder
from refinemath.network.encoder import Encoder, Items
from refinemath.network.moments import Candidate
from refinemath.network.refiner import Refiner, stabilise
from refinemath.network.spine import END, SLOTS, from_spine, to_spine

REPEATS = 8  # of every skeleton, with other numbers


class Seen(NamedTuple):
    """What the latents of a search can read."""

    points: Points
    fx: Array  # functions of the columns
    items: Items


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

    # ---- what the search asks

    def look(self, points: Points, count: int) -> Seen:
        """Functions of the columns and items of the points (batch size 1), once for every
        latent.
        """
        fx = moments.functions_of_x(points.x, points.mask)
        one = points, fx, self.encoder.read_points(points, fx)
        return Seen(*jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape[1:])), one))

    def begin(self, key: Array, count: int, noise: float) -> Float[Array, "latents slots dim"]:
        """The seed, with noise of this length in every slot."""
        z = self.refiner.start(count)
        moved = z + noise * jax.random.normal(key, z.shape) / np.float32(z.shape[-1] ** 0.5)
        return stabilise(moved, self.config.stabiliser)

    def refine(self, z: Array, seen: Seen, candidates: fitting.Candidate) -> Array:
        """One step; the first half of the latents sees no candidate."""
        count = len(z)
        hidden = jnp.arange(count) < (count + 1) // 2
        known = ~hidden & (candidates.tokens[:, 0] < expression.VOCABULARY_SIZE)
        tokens = to_spine(jnp.where(known[:, None], candidates.tokens, END)[:, :SLOTS])[0]
        fitted = jnp.where(known[:, None], candidates.fitted, 0.0)
        shown = Candidate(tokens, fitted, jnp.clip(candidates.fvu, 0.0, 1.0), known)
        items = self.encoder.with_candidate(seen.points, seen.fx, seen.items, shown)
        return self.refiner(z, self.refiner.block.cross.read(items.rows), items.mask)

    def stabilise(self, z: Array) -> Array:
        """Slots as the refiner writes them."""
        return stabilise(z, self.config.stabiliser)

    def sample(self, key: Array, z: Array, seen: Seen, count: int) -> Programs:
        """`count` formulas from each latent: an eighth so many skeletons, with eight draws of their
        numbers.
        """
        k = jax.random.split(key)
        drawn, _ = self.decoder.sample(k[0], z, seen.items.columns, max(1, count // REPEATS))
        repeated = jnp.tile(drawn, (1, -(-count // drawn.shape[1]), 1))[:, :count]
        tokens = from_spine(repeated.reshape(-1, SLOTS))[0]
        return with_drawn_constants(k[1], tokens)
