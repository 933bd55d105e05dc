"""What RefineMath is compared with: a tiny recursive model, a token-by-token decoder, and two
programs that people use.

All networks share the encoder, the blocks, the training data, the optimizer's schedule, the
constant fitter and the search around them.
"""

from __future__ import annotations

import bisect
import functools
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from experiments import harness
from refinemath import Formula, RefineMath, Result, grammar, parse
from refinemath.corpus.exclusions import excludes
from refinemath.examples import SkeletonTable, draw_examples, length_weights
from refinemath.expression import ARITY, MAX_VARIABLES, VARIABLES, VOCABULARY_SIZE
from refinemath.fitting import Candidate, Points, no_candidate
from refinemath.model import (
    POINT_FEATURES,
    Block,
    Encoded,
    Encoder,
    Gain,
    KeyValue,
    Linear,
    Model,
    ModelConfig,
    Refiner,
)
from refinemath.problem import prepare, read_points
from refinemath.solver import device_points
from refinemath.training import TrainConfig
from refinemath.weights import Weights

# a tiny recursive model (Jolicoeur-Martineau 2025, arXiv 2510.04871)

PLAIN_FEATURES = (
    0,
    2,
    13,
    17,
    18,
)  # of `model.point_features` with one variable: standardised y, y, x, x as a share of its largest, the log of that
# updates of the latent before the answer is updated; 6 in the paper, whose problems are larger
INNER = 3


class Recursion(nnx.Module):
    """One recursion of a TRM, with the interface of `model.Refiner`: the state is [answer |
    latent], slots x 2 width.

    The latent is updated from the points, the answer and itself `INNER` times; then the answer from
    the latent.  One network does both. Nothing is orthogonalised, and no candidate is seen.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        w = config.width
        self.variables = config.variables
        self.seed = nnx.Param(jax.random.normal(rngs.params(), (config.slots, 2 * w), jnp.float32))
        self.place = nnx.Param(
            0.5 * jax.random.normal(rngs.params(), (config.slots, w), jnp.float32)
        )
        self.point_key_value = KeyValue(w, rngs=rngs)
        self.summary_key_value = KeyValue(w, rngs=rngs)
        self.blocks = nnx.List(
            [Block(w, config.heads, cross=True, rngs=rngs) for _ in range(config.refiner_blocks)]
        )
        self.norm = Gain(w)
        self.head = nnx.Param(
            jax.random.normal(rngs.params(), (w, VOCABULARY_SIZE), jnp.float32)
            / jnp.sqrt(jnp.float32(w))
        )
        self.bias = nnx.Param(jnp.zeros((config.slots, VOCABULARY_SIZE), jnp.float32))
        self.reader = None  # slots are read independently

    def start(self, noise: Float[Array, "batch slots dim"]) -> Float[Array, "batch slots dim"]:
        """The first answer and latent: learned, plus noise."""
        return self.seed[...][None] + noise

    def logits(self, z: Float[Array, "batch slots dim"]) -> Float[Array, "batch slots vocabulary"]:
        """What the answer says."""
        answer, _ = jnp.split(z, 2, axis=-1)
        return jnp.where(
            absent(self.variables), -1e9, answer @ self.head[...] + self.bias[...][None]
        )

    def sample(
        self, key: Array, z: Float[Array, "batch slots dim"], count: int, temperature: float = 1.0
    ) -> Int[Array, "batch count slots"]:
        """`count` legal formulas from each answer."""
        return grammar.sample(key, self.logits(z) / temperature, count)

    def __call__(
        self, z: Float[Array, "batch slots dim"], encoded: Encoded, candidate: Candidate
    ) -> Float[Array, "batch slots dim"]:
        """Latent `INNER` times, then the answer."""
        key_value, mask = both_key_values(self, encoded)
        answer, latent = jnp.split(z, 2, axis=-1)

        def network(key_value: Any) -> Array:
            h = answer + latent + self.place[...][None]
            for block in self.blocks:
                h = block(h, key_value, mask)
            return self.norm(h)

        for _ in range(INNER):
            latent = network(key_value)
        return jnp.concatenate([network(None), latent], axis=-1)


class TRM(nnx.Module):
    """Encoder and recursion; stands in for `model.Model`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.refiner = Recursion(config, rngs=rngs)


def both_key_values(reader: Any, encoded: Encoded) -> tuple[tuple[Array, Array], Array]:
    """Keys and values of the points and of their summary, one after the other, and which of them
    exist.
    """
    pairs = zip(
        reader.point_key_value(encoded.each), reader.summary_key_value(encoded.summary), strict=True
    )
    key, value = (jnp.concatenate(pair, axis=1) for pair in pairs)
    return (key, value), jnp.concatenate(
        [encoded.points.mask, jnp.ones(encoded.summary.shape[:2], bool)], axis=1
    )


def absent(variables: int) -> Array:
    """True for the tokens of variables that the data do not have."""
    token = jnp.arange(VOCABULARY_SIZE)
    return (token > variables) & (token <= MAX_VARIABLES)


class BlindRefiner(Refiner):
    """The shipped refiner that is never shown a candidate: execution feedback off."""

    def __call__(
        self, z: Float[Array, "batch slots dim"], encoded: Encoded, candidate: Candidate
    ) -> Float[Array, "batch slots dim"]:
        """The step from no candidate, whatever there is."""
        return super().__call__(z, encoded, no_candidate(encoded.points, z.shape[1]))


class BlindModel(nnx.Module):
    """Encoder and refiner without execution feedback; stands in for `model.Model`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.refiner = BlindRefiner(config, rngs=rngs)


class PlainInputs(Linear):
    """The first matrix of the encoder, for which all features of a point but the plain ones are
    0.
    """

    def __call__(self, x: Array) -> Array:
        """x W with y (two scalings), x (two scalings) and the size of x alone."""
        return super().__call__(x * jnp.zeros(x.shape[-1]).at[jnp.asarray(PLAIN_FEATURES)].set(1.0))


class PlainModel(Model):
    """The shipped model without waves, logarithms and slopes of the points."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.encoder.first = PlainInputs(
            POINT_FEATURES[config.variables], 2 * config.width, rngs=rngs
        )


# ---------------------------------------------------------------- token by token


class Tokens(nnx.Module):
    """The same encoder and an autoregressive transformer decoder over the same tokens."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        w = config.width
        self.variables = config.variables
        self.encoder = Encoder(config, rngs=rngs)
        self.token = nnx.Param(
            0.5 * jax.random.normal(rngs.params(), (VOCABULARY_SIZE + 1, w), jnp.float32)
        )
        self.place = nnx.Param(
            0.5 * jax.random.normal(rngs.params(), (config.slots, w), jnp.float32)
        )
        self.point_key_value = KeyValue(w, rngs=rngs)
        self.summary_key_value = KeyValue(w, rngs=rngs)
        self.blocks = nnx.List(
            [Block(w, config.heads, cross=True, rngs=rngs) for _ in range(config.refiner_blocks)]
        )
        self.norm = Gain(w)
        self.head = nnx.Param(
            jax.random.normal(rngs.params(), (w, VOCABULARY_SIZE), jnp.float32)
            / jnp.sqrt(jnp.float32(w))
        )
        self.bias = nnx.Param(jnp.zeros(VOCABULARY_SIZE, jnp.float32))

    def score(self, h: Array) -> Array:
        """Logits of the next token."""
        return jnp.where(
            absent(self.variables), -1e9, self.norm(h) @ self.head[...] + self.bias[...]
        )

    def logits(
        self, encoded: Encoded, tokens: Int[Array, "batch slots"]
    ) -> Float[Array, "batch slots vocabulary"]:
        """Logits of every token given those before it."""
        batch, slots = tokens.shape
        key_value, mask = both_key_values(self, encoded)
        before = jnp.concatenate(
            [jnp.full((batch, 1), VOCABULARY_SIZE, tokens.dtype), tokens[:, :-1]], axis=1
        )
        h = self.token[...][before] + self.place[...][None]
        causal = jnp.tril(jnp.ones((slots, slots), bool))
        for block in self.blocks:
            own = block.own(h)
            read = jax.vmap(
                lambda q, m, block=block, own=own: block.attend(
                    q[:, None], own, jnp.broadcast_to(m, (batch, slots))
                )[:, 0],
                (1, 0),
                1,
            )
            h = h + read(block.norm(h), causal)
            h = h + block.cross(block.cross_norm(h), key_value, mask)
            h = h + block.feedforward(h)
        return self.score(h)

    def sample(self, key: Array, encoded: Encoded, count: int) -> Int[Array, "count slots"]:
        """`count` formulas for one scatter plot, token by token with the grammar's mask; keys and
        values are kept.
        """
        slots, w = self.place[...].shape
        one, mask = both_key_values(self, encoded)
        key_value = tuple(jnp.broadcast_to(a, (count, *a.shape[1:])) for a in one)
        mask = jnp.broadcast_to(mask, (count, mask.shape[1]))

        def step(carry: Any, i: Array) -> tuple[Any, Array]:
            token, open_, kept = carry
            h = (self.token[...][token] + self.place[...][i])[:, None]
            seen = jnp.broadcast_to(jnp.arange(slots) <= i, (count, slots))
            now = []
            for block, own in zip(self.blocks, kept, strict=True):
                own = tuple(
                    jax.lax.dynamic_update_index_in_dim(a, new[:, 0], i, 1)
                    for a, new in zip(own, block.own(h), strict=True)
                )
                h = h + block.attend(block.norm(h), own, seen)
                h = h + block.cross(block.cross_norm(h), key_value, mask)
                h = h + block.feedforward(h)
                now.append(own)
            logits = jnp.where(grammar.allowed(open_, slots - 1 - i), self.score(h)[:, 0], -jnp.inf)
            token = jax.random.categorical(jax.random.fold_in(key, i), logits).astype(jnp.int32)
            return (token, jnp.maximum(open_ + jnp.asarray(ARITY)[token] - 1, 0), now), token

        kept = [tuple(jnp.zeros((count, slots, w)) for _ in range(2)) for _ in self.blocks]
        start = jnp.full(count, VOCABULARY_SIZE, jnp.int32), jnp.ones(count, jnp.int32), kept
        return jax.lax.scan(step, start, jnp.arange(slots))[1].T


def token_loss(
    graph: Any, bank: SkeletonTable, probes: Array, recipe: TrainConfig
) -> Callable[[Any, Array], Array]:
    """Cross-entropy of the next token on fresh examples."""
    weights = length_weights(bank)

    def loss(params: Any, key: Array) -> Array:
        model = nnx.merge(graph, params)
        e = draw_examples(key, bank, recipe.batch, weights=weights, reject=excludes(probes))
        return harness.cross_entropy(
            model.logits(model.encoder(Points(e.x, e.y, e.mask)), e.tokens), e
        )

    return loss


@functools.partial(jax.jit, static_argnames=("graph", "count"))
def token_samples(
    params: Any, graph: Any, points: Points, key: Array, *, count: int
) -> Int[Array, "count slots"]:
    """Encode one plot and sample formulas for it."""
    model = nnx.merge(graph, params)
    return model.sample(key, model.encoder(points), count)


# ---------------------------------------------------------------- solvers


class Variant(RefineMath):
    """RefineMath's search around other parameters and another graph."""

    def __init__(
        self, parts: tuple[Any, Any, ModelConfig], *, fixed_steps: bool = False, **options: Any
    ):
        super().__init__(parts[2].latent_dim, **options)
        self.parts = parts
        if fixed_steps:  # no halting: the search takes all its steps
            self.budget = replace(self.budget, steps=self.budget.search_steps)

    def parameters(self) -> Weights:
        """The weights that were given."""
        return Weights(*self.parts)


class TokenSearch(RefineMath):
    """The null model's search with the samples of a token-by-token decoder for a prior.

    The samples of one call are drawn once, on the clock; each search then draws from them, with
    constants drawn again as for the null model.
    """

    def __init__(self, parts: tuple[Any, Any, ModelConfig], *, samples: int = 4096, **options: Any):
        super().__init__(**options)
        self.parts, self.samples = parts, samples
        self.budget = replace(self.budget, network=False)

    def solve(
        self,
        data: Any,
        y: Any = None,
        *,
        threshold: float = 1e-5,
        seed: int = 0,
        time_budget: float = 8.0,
    ) -> Result:
        """Sample, then search among the samples until the clock is up."""
        began = time.perf_counter()
        params, graph, _ = self.parts
        points = device_points(prepare(*read_points(data, y)))
        self.prior = np.asarray(
            token_samples(params, graph, points, jax.random.key(seed), count=self.samples)
        ).astype(np.uint8)
        spent = time.perf_counter() - began
        result = super().solve(
            data, y, threshold=threshold, seed=seed, time_budget=max(time_budget - spent, 1e-3)
        )
        return replace(result, seconds=result.seconds + spent)


def matched(kind: Any, config: ModelConfig, target: int, *, square: bool) -> ModelConfig:
    """The configuration whose parameter count is nearest to `target`, by width; `square` sets
    latent_dim to twice the width, as a TRM needs.
    """

    def at(width: int, heads: int) -> ModelConfig:
        return replace(
            config,
            width=width,
            heads=heads,
            latent_dim=max(2 * width, 4 * config.slots) if square else config.latent_dim,
        )

    def count(width: int, heads: int) -> int:
        return harness.parameter_count(
            nnx.state(nnx.eval_shape(lambda: kind(at(width, heads), rngs=nnx.Rngs(0))))
        )

    for heads in (config.heads, max(1, config.heads // 2)):  # half the heads allow finer widths
        widths = range(2 * config.slots if square else heads, 3 * config.width, heads)
        above = bisect.bisect_left(widths, target, key=functools.partial(count, heads=heads))
        error, nearest = min(
            (abs(count(w, heads) / target - 1), w)
            for w in widths[max(above - 1, 0) : above + 1] or widths[-1:]
        )
        if error <= 0.05:
            break
    return at(nearest, heads)


# ---------------------------------------------------------------- programs that people use

OPERON_SYMBOLS = "add,sub,mul,div,constant,variable,pow,square,sqrt,exp,log,sin,cos,tanh"
GPLEARN_FUNCTIONS = ("add", "sub", "mul", "div", "sqrt", "log", "neg", "inv", "sin", "cos")


def operon(x: np.ndarray, y: np.ndarray, *, seconds: float, seed: int) -> Formula:
    """pyoperon with its clock, two threads, local search by Levenberg-Marquardt, and the best error
    it found.
    """
    from pyoperon.sklearn import SymbolicRegressor  # type: ignore[import-not-found]

    model = SymbolicRegressor(
        allowed_symbols=OPERON_SYMBOLS,
        optimizer_iterations=5,
        max_length=30,
        max_time=max(1, round(seconds)),
        generations=10**6,
        max_evaluations=10**9,
        n_threads=2,
        model_selection_criterion="mean_squared_error",
        random_state=seed,
    )
    model.fit(x[:, None], y)
    return parse(model.get_model_string(model.model_, 17).replace("X1", "x1"))


def gplearn(x: np.ndarray, y: np.ndarray, *, seconds: float, seed: int) -> Formula:
    """gplearn, generation after generation until the clock is up, with the best program of all
    generations.
    """
    from gplearn.functions import make_function  # type: ignore[import-not-found]
    from gplearn.genetic import SymbolicRegressor  # type: ignore[import-not-found]

    def exponential(a: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.minimum(np.exp(a), 1e10)

    began = time.perf_counter()
    functions = (
        *GPLEARN_FUNCTIONS,
        make_function(function=exponential, name="exp", arity=1),
        make_function(function=np.tanh, name="tanh", arity=1),
    )
    model = SymbolicRegressor(
        population_size=1000,
        generations=1,
        warm_start=True,
        function_set=functions,
        metric="mse",
        parsimony_coefficient=1e-3,
        const_range=(-5.0, 5.0),
        random_state=seed,
    )
    best, error = None, np.inf
    while best is None or time.perf_counter() - began < seconds:
        model.fit(x[:, None], y)
        if model._program.raw_fitness_ < error:
            best, error = str(model._program), model._program.raw_fitness_
        model.set_params(generations=model.generations + 1)
    return from_gplearn(best)


def from_gplearn(text: str) -> Formula:
    """A gplearn program such as `add(mul(X0, 0.5), sin(X0))` as a formula; its square root and
    logarithm take absolute values.
    """
    parts: list[str | float] = []
    for word in re.findall(r"[A-Za-z]\w*|-?\d[\d.e+\-]*", text):
        if word == "X0":
            parts.append(VARIABLES[0])
        elif word in ("sqrt", "log"):
            parts += [word, "sqrt", "square"]
        elif word[0].isalpha():
            parts.append(word)
        else:
            parts.append(float(word))
    return Formula(tuple(parts))
