"""What the networks that RefineMath is compared with share: layers, a proposer, equal size.

A baseline is a module with an `encoder` (that of the package) and `sample(key, encoded, count)`,
which draws `count` legal formulas for the points of one problem; `Sampled` puts it into the search.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Int

from experiments import networks
from refinemath.execution import Programs
from refinemath.expression import MAX_VARIABLES, TOKEN_VALUE, VOCABULARY_SIZE
from refinemath.loop import Context, SearchState
from refinemath.model import Encoded, ModelConfig
from refinemath.weights import Weights


class Layer(nnx.Module):
    """Self-attention, cross-attention to the encoded points, feedforward, each added."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        w, self.heads = config.width, config.heads

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)

        self.norms = nnx.List([nnx.RMSNorm(w, rngs=rngs) for _ in range(3)])
        self.own, self.own_out = linear(w, 3 * w), linear(w, w)
        self.query, self.cross, self.cross_out = linear(w, w), linear(w, 2 * w), linear(w, w)
        self.up, self.down = linear(w, 4 * w), linear(4 * w, w)

    def split(self, h: Array) -> Array:
        """(batch, rows, heads, head)."""
        return h.reshape(*h.shape[:2], self.heads, -1)

    def own_parts(self, h: Array) -> tuple[Array, Array, Array]:
        """Query, key and value of every row of h (batch, rows, width)."""
        return tuple(map(self.split, jnp.split(self.own(self.norms[0](h)), 3, axis=-1)))

    def after(self, h: Array, own: Any, seen: Array | None, memory: Any) -> Array:
        """The rows h (batch, rows, width), having read from one another (`own`: their query, key
        and value, where `seen`) and from the memory, see `memory_of`, if there is one.
        """
        read = jax.nn.dot_product_attention(*own, mask=seen)
        h = h + self.own_out(read.reshape(h.shape))
        if memory is not None:
            rows, there = memory
            key, value = map(self.split, jnp.split(self.cross(rows), 2, axis=-1))
            query = self.split(self.query(self.norms[1](h)))
            mask = there[:, None, None]
            read = jax.nn.dot_product_attention(query, key, value, mask=mask)
            h = h + self.cross_out(read.reshape(h.shape))
        return h + self.down(jnp.square(jax.nn.relu(self.up(self.norms[2](h)))))


def memory_of(encoded: Encoded) -> tuple[Array, Array]:
    """What the encoder keeps as one set of rows, and which of them exist."""
    there = jnp.ones(encoded.summary.shape[:2], bool)
    rows = jnp.concatenate([encoded.each, encoded.summary], axis=1)
    return rows, jnp.concatenate([encoded.points.mask, there], axis=1)


def only_present(logits: Array, variables: int) -> Array:
    """The logits without the tokens of variables that the data do not have."""
    token = jnp.arange(VOCABULARY_SIZE)
    return jnp.where((token > variables) & (token <= MAX_VARIABLES), -1e9, logits)


@dataclass(frozen=True, eq=False)
class Sampled:
    """Proposals of a network beside the shipped one: all that it will propose in a search is drawn
    when the search begins, `count` for each of `rounds` steps.
    """

    network: Weights
    count: int = 512
    rounds: int = 8
    refine: int = 128
    samples: ClassVar[bool] = True

    def init(self, context: Context, key: Array) -> Int[Array, "rounds count slots"]:
        """Encode the points and draw."""
        model = nnx.merge(self.network.graph, self.network.params)
        tokens = model.sample(key, model.encoder(context.points), self.rounds * self.count)
        return tokens.reshape(self.rounds, self.count, -1)

    def propose(
        self, model: Any, context: Context, memory: Array, state: SearchState, key: Array
    ) -> tuple[Programs, Array]:
        """The next `count`."""
        tokens = memory[state.step % self.rounds]
        room = state.pool.tokens.shape[1] - tokens.shape[1]
        tokens = jnp.pad(tokens, ((0, 0), (0, room)))
        return Programs(tokens, jnp.asarray(TOKEN_VALUE)[tokens]), memory


def matched(kind: Any, config: ModelConfig, target: int) -> ModelConfig:
    """The configuration whose parameter count is nearest to `target`, by its width."""
    heads = max(1, config.heads // 2)  # fewer heads allow finer widths
    widths = [replace(config, heads=heads, width=w) for w in range(heads, 4 * config.width, heads)]
    above = bisect.bisect_left(widths, target, key=lambda c: networks.size_of(c, kind))
    near = widths[max(above - 1, 0) : above + 1] or widths[-1:]
    return min(near, key=lambda c: abs(networks.size_of(c, kind) - target))
