"""A token-by-token baseline: an autoregressive transformer behind the same encoder."""

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
from refinemath.expression import ARITY, VOCABULARY_SIZE
from refinemath.fitting import Points
from refinemath.model import Encoded, Encoder, ModelConfig
from refinemath.training import TrainConfig

BEGIN = VOCABULARY_SIZE  # the token before the first


class Tokens(nnx.Module):
    """Encoder and causal decoder."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        w, self.variables = config.width, config.variables
        self.encoder = Encoder(config, rngs=rngs)
        self.token = nnx.Param(0.5 * jax.random.normal(rngs.params(), (VOCABULARY_SIZE + 1, w)))
        self.place = nnx.Param(0.5 * jax.random.normal(rngs.params(), (config.slots, w)))
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.refiner_blocks)])
        self.norm = nnx.RMSNorm(w, rngs=rngs)
        self.head = nnx.Linear(w, VOCABULARY_SIZE, rngs=rngs)

    def logits(
        self, encoded: Encoded, tokens: Int[Array, "batch slots"]
    ) -> Float[Array, "batch slots vocabulary"]:
        """Of every token given those before it."""
        batch, slots = tokens.shape
        before = jnp.concatenate(
            [jnp.full((batch, 1), BEGIN, tokens.dtype), tokens[:, :-1]], axis=1
        )
        h = self.token[...][before] + self.place[...][None]
        causal = jnp.tril(jnp.ones((slots, slots), bool))[None, None]
        for layer in self.layers:
            h = layer.after(h, layer.own_parts(h), causal, memory_of(encoded))
        return only_present(self.head(self.norm(h)), self.variables)

    def sample(self, key: Array, encoded: Encoded, count: int) -> Int[Array, "count slots"]:
        """`count` formulas for one problem, left to right under the grammar, with a cache."""
        slots, w = self.place[...].shape
        memory = tuple(jnp.broadcast_to(a, (count, *a.shape[1:])) for a in memory_of(encoded))

        def step(carry: Any, i: Array) -> tuple[Any, Array]:
            token, open_, kept = carry
            h = (self.token[...][token] + self.place[...][i])[:, None]
            seen, now = (jnp.arange(slots) <= i)[None, None, None], []
            for layer, cache in zip(self.layers, kept, strict=True):
                query, *new = layer.own_parts(h)
                now.append(
                    [
                        jax.lax.dynamic_update_slice_in_dim(a, b, i, 1)
                        for a, b in zip(cache, new, strict=True)
                    ]
                )
                h = layer.after(h, (query, *now[-1]), seen, memory)
            logits = only_present(self.head(self.norm(h[:, 0])), self.variables)
            logits = jnp.where(grammar.allowed(open_, slots - 1 - i), logits, -jnp.inf)
            token = jax.random.categorical(jax.random.fold_in(key, i), logits).astype(jnp.int32)
            return (token, jnp.maximum(open_ + jnp.asarray(ARITY)[token] - 1, 0), now), token

        heads = self.layers[0].heads
        empty = [[jnp.zeros((count, slots, heads, w // heads))] * 2 for _ in self.layers]
        start = jnp.full(count, BEGIN, jnp.int32), jnp.ones(count, jnp.int32), empty
        return jax.lax.scan(step, start, jnp.arange(slots))[1].T


def make_loss(
    graph: Any, bank: SkeletonTable, probes: Array, recipe: TrainConfig
) -> Callable[[Any, Array], Array]:
    """Cross-entropy of the next token on fresh examples."""
    weights = length_weights(bank)

    def loss(params: Any, key: Array) -> Array:
        model = nnx.merge(graph, params)
        e = draw_examples(key, bank, recipe.batch, weights=weights, reject=excludes(probes))
        encoded = model.encoder(Points(e.x, e.y, e.mask))
        return networks.cross_entropy(model.logits(encoded, e.tokens), e)

    return loss
