"""A tiny recursive model (Jolicoeur-Martineau 2025, arXiv 2510.04871) that proposes formulas.

An answer and a latent are kept for every slot.  In a recursion one network updates the latent
`INNER` times from the points, the answer and itself, then the answer from the latent.  Nothing is
orthogonalised, no candidate is seen, and slots are decoded independently, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from experiments import networks
from experiments.baselines import Layer, memory_of, only_present
from refinemath import grammar
from refinemath.corpus.exclusions import excludes
from refinemath.examples import SkeletonTable, draw_examples, length_weights
from refinemath.expression import VOCABULARY_SIZE
from refinemath.fitting import Points
from refinemath.model import Encoded, Encoder, ModelConfig
from refinemath.training import TrainConfig

INNER = 3  # updates of the latent before the answer's; 6 in the paper, whose problems are larger
RECURSIONS = 8  # before formulas are sampled
SUPERVISED = 4  # recursions in a training step, each asked for the truth
NOISE = 0.3  # of the first state, so that several starts differ


class TRM(nnx.Module):
    """Encoder and recursion; the state is [answer | latent], slots x 2 width."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        w, self.variables = config.width, config.variables
        self.encoder = Encoder(config, rngs=rngs)
        self.seed = nnx.Param(jax.random.normal(rngs.params(), (config.slots, 2 * w)))
        self.place = nnx.Param(0.5 * jax.random.normal(rngs.params(), (config.slots, w)))
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.refiner_blocks)])
        self.norm = nnx.RMSNorm(w, rngs=rngs)
        self.head = nnx.Linear(w, VOCABULARY_SIZE, rngs=rngs)

    def start(self, key: Array, batch: int) -> Float[Array, "batch slots two_widths"]:
        """The first answer and latent: learned, plus noise."""
        seed = self.seed[...]
        return seed[None] + NOISE * jax.random.normal(key, (batch, *seed.shape))

    def recurse(
        self, state: Float[Array, "batch slots two_widths"], memory: tuple[Array, Array]
    ) -> Float[Array, "batch slots two_widths"]:
        """The latent `INNER` times, then the answer."""
        answer, latent = jnp.split(state, 2, axis=-1)

        def network(memory: tuple[Array, Array] | None) -> Array:
            h = answer + latent + self.place[...][None]
            for layer in self.layers:
                h = layer.after(h, layer.own_parts(h), None, memory)
            return self.norm(h)

        for _ in range(INNER):
            latent = network(memory)
        return jnp.concatenate([network(None), latent], axis=-1)

    def logits(
        self, state: Float[Array, "batch slots two_widths"]
    ) -> Float[Array, "batch slots vocabulary"]:
        """Of the answer alone."""
        return only_present(self.head(jnp.split(state, 2, axis=-1)[0]), self.variables)

    def sample(
        self, key: Array, encoded: Encoded, count: int, starts: int = 32
    ) -> Int[Array, "count slots"]:
        """`count` legal formulas for one problem, equally many from each of some starts."""
        starts = next(n for n in range(min(starts, count), 0, -1) if count % n == 0)
        memory = tuple(jnp.repeat(a, starts, axis=0) for a in memory_of(encoded))
        state = self.start(key, starts)
        state = jax.lax.fori_loop(0, RECURSIONS, lambda _, s: self.recurse(s, memory), state)
        tokens = grammar.sample(key, self.logits(state), count // starts)
        return tokens.reshape(count, -1)


def make_loss(
    graph: Any, bank: SkeletonTable, probes: Array, recipe: TrainConfig
) -> Callable[[Any, Array], Array]:
    """Cross-entropy after each recursion; the gradient goes through one, as in the paper."""
    weights = length_weights(bank)

    def loss(params: Any, key: Array) -> Array:
        model = nnx.merge(graph, params)
        e = draw_examples(key, bank, recipe.batch, weights=weights, reject=excludes(probes))
        memory = memory_of(model.encoder(Points(e.x, e.y, e.mask)))
        state, total = model.start(jax.random.fold_in(key, 1), recipe.batch), jnp.float32(0)
        for _ in range(SUPERVISED):
            state = model.recurse(jax.lax.stop_gradient(state), memory)
            total = total + networks.cross_entropy(model.logits(state), e)
        return total / SUPERVISED

    return loss
