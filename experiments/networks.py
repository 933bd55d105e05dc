"""Networks: what they are trained on, one trainer for all, files, and their nats."""

from __future__ import annotations

import functools
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float

from refinemath import grammar, weights
from refinemath.corpus.build import build_table
from refinemath.corpus.exclusions import training_exclusions
from refinemath.examples import Examples, SkeletonTable, draw_examples, length_weights
from refinemath.expression import END
from refinemath.fitting import Points, no_candidate
from refinemath.model import Model, ModelConfig
from refinemath.training import TrainConfig, Trainer, make_optimizer, make_trainer
from refinemath.weights import Weights

exclusions = functools.cache(training_exclusions)  # made once a process


def small_config(options: Namespace, **fields: Any) -> ModelConfig:
    """The configuration of a model that an experiment trains itself."""
    quick = {"heads": 2, "seeds": 4, "encoder_blocks": 1, "refiner_blocks": 1}
    shape = {"latent_dim": options.latent_dim, "width": options.width}
    return ModelConfig(**(shape | (quick if options.quick else {}) | fields))


def random_network(config: ModelConfig, kind: Any = Model, seed: int = 0) -> Weights:
    """A network before training."""
    graph, params = nnx.split(kind(config, rngs=nnx.Rngs(seed)))
    return Weights(params, graph, config)


def load(path: Path, kind: Any = Model) -> Weights:
    """The network of a weights file."""
    config = ModelConfig(**weights.read_meta(path)["config"])
    graph, template = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    return Weights(weights.load(path, template)[0], graph, config)


def save(path: Path, params: Any, config: ModelConfig) -> None:
    """Write a trained network as a weights file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.save(path, params, {"config": asdict(config)}, dtype=np.float16)


def shipped() -> Weights:
    """The network in the package."""
    return weights.shipped_weights(512)


def size_of(config: ModelConfig, kind: Any = Model) -> int:
    """How many numbers a network has."""
    state = nnx.state(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state))


@functools.cache
def built(per_length: int, seed: int) -> SkeletonTable:
    """The training formulas, without anything held out."""
    few = {"chunk": 1024, "patience": 2} if per_length < 100 else {}
    return build_table(per_length, seed=seed, excluded=exclusions()[0], **few)


def training_bank(folder: Path, per_length: int, seed: int = 0) -> SkeletonTable:
    """The training formulas, made once and kept in the folder."""
    path = folder / f"bank-{per_length}-{seed}.npz"
    if not path.exists():
        made = built(per_length, seed)
        with weights.in_one_step(path) as file:
            np.savez(file, tokens=made.tokens, start=made.start)
    with np.load(path, allow_pickle=False) as file:
        return SkeletonTable(jnp.asarray(file["tokens"]), jnp.asarray(file["start"]))


def material(options: Namespace) -> tuple[SkeletonTable, Array]:
    """The bank of an experiment, and the probe values that no example may equal."""
    return training_bank(options.work, options.bank), exclusions()[1]


class Run(NamedTuple):
    """The state of `loss_trainer`."""

    params: Any
    ema: Any
    optimizer: Any
    step: Array


def loss_trainer(loss: Callable[[Any, Array], Array], params: Any, recipe: TrainConfig) -> Trainer:
    """Like `training.make_trainer`, for any other `loss(params, key)`."""
    optimizer, root = make_optimizer(recipe, params), jax.random.key(recipe.seed)

    @jax.jit
    def step(run: Run) -> tuple[Run, dict[str, Array]]:
        key = jax.random.fold_in(root, run.step)
        value, gradient = jax.value_and_grad(loss)(run.params, key)
        updates, moments = optimizer.update(gradient, run.optimizer, run.params)
        new = optax.apply_updates(run.params, updates)
        rate = jnp.minimum(recipe.ema, (1.0 + run.step) / (10.0 + run.step)).astype(jnp.float32)
        ema = jax.tree.map(lambda a, b: rate * a + (1 - rate) * b, run.ema, new)
        return Run(new, ema, moments, run.step + 1), {"loss": value}

    def init() -> Run:
        return Run(params, params, optimizer.init(params), jnp.int32(0))

    return Trainer(step, init, lambda state: state)  # type: ignore[arg-type]


def train(
    make: Callable[[TrainConfig], Trainer], recipe: TrainConfig, *, seconds: float, steps: int = 0
) -> tuple[Any, dict[str, Any]]:
    """Train for so many CPU seconds; averaged weights and a log [[step, seconds, loss], ...].

    The cost of a step is measured first and the number of steps follows, so that the learning rate
    falls to zero at the end; `steps` skips that measurement.
    """
    if not steps:
        trainer = make(replace(recipe, steps=1000))
        state, _ = trainer.step(trainer.init())
        costs = []
        for _ in range(6):
            began = time.process_time()
            state, metrics = trainer.step(state)
            jax.block_until_ready(metrics)
            costs.append(time.process_time() - began)
        steps = max(3, round(seconds / float(np.median(costs))))
    recipe = replace(recipe, steps=steps, warmup=max(1, min(recipe.warmup, steps // 10)))
    trainer = make(recipe)
    state, log, window, began = trainer.init(), [], [], 0.0
    for i in range(1, steps + 1):
        state, metrics = trainer.step(state)
        window.append(metrics["loss"])
        if i == 1:  # it was compiled
            jax.block_until_ready(metrics)
            began = time.process_time()
        if i % max(1, steps // 40) == 0 or i == steps:
            log.append([i, time.process_time() - began, float(np.mean(window))])
            window = []
    cost = {"steps": steps, "examples": steps * recipe.batch, "seconds": log[-1][1]}
    return state.ema, {**cost, "loss": log}


def train_model(
    options: Namespace, config: ModelConfig, recipe: TrainConfig, share: float = 1.0
) -> tuple[Any, dict[str, Any]]:
    """Train a model of ours as the package does, for a share of `options.seconds`."""
    bank, probes = material(options)

    def make(recipe: TrainConfig) -> Trainer:
        return make_trainer(config, recipe, bank, probes)

    return train(make, recipe, seconds=share * options.seconds, steps=3 * options.quick)


def train_loss(
    options: Namespace, loss: Callable[[Any, Array], Array], params: Any, recipe: TrainConfig
) -> tuple[Any, dict[str, Any]]:
    """Train anything else, for `options.seconds`."""

    def make(recipe: TrainConfig) -> Trainer:
        return loss_trainer(loss, params, recipe)

    return train(make, recipe, seconds=options.seconds, steps=3 * options.quick)


def final_loss(log: dict[str, Any]) -> float:
    """The loss at the end of a training: the mean of its last windows."""
    return float(np.mean([loss for _, _, loss in log["loss"][-4:]]))


def cross_entropy(logits: Float[Array, "batch slots vocabulary"], e: Examples) -> Array:
    """Cross-entropy of the true tokens, the slots behind the formula at a tenth."""
    length = jnp.sum(e.tokens != END, axis=1, keepdims=True)
    weight = jnp.where(jnp.arange(e.tokens.shape[1])[None] <= length, 1.0, 0.1) * e.weight[:, None]
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_p = jnp.take_along_axis(log_p, e.tokens[..., None], axis=-1)[..., 0]
    return -jnp.sum(log_p * weight) / jnp.maximum(jnp.sum(weight), 1e-6)


def fresh_examples(options: Namespace) -> Examples:
    """Plots of formulas of the bank that no training has drawn, `options.fresh` at most."""
    bank, _ = material(options)
    e = draw_examples(jax.random.key(10_000), bank, options.fresh, weights=length_weights(bank))
    return jax.tree.map(lambda a: a[np.asarray(e.weight) > 0], e)


def from_nothing(model: Any, points: Points, key: Array, noise: float = 0.3) -> Array:
    """Latents after two steps without a candidate."""
    encoded, (slots, dim) = model.encoder(points), model.refiner.seed[...].shape
    z = model.refiner.start(noise * jax.random.normal(key, (points.y.shape[0], slots, dim)))
    for _ in range(2):
        z = model.refiner(z, encoded, no_candidate(points, slots))
    return z


@functools.partial(jax.jit, static_argnames="graph")
def nats(params: Any, graph: Any, e: Examples, key: Array, noise: float = 0.3) -> Array:
    """Minus log of the probability of sampling the truth, two steps from nothing."""
    model = nnx.merge(graph, params)
    z = from_nothing(model, Points(e.x, e.y, e.mask), key, noise)
    if model.refiner.reader is not None:
        return -jnp.sum(model.refiner.log_probability(z, e.tokens), axis=1)
    logits = model.refiner.logits(z)
    chosen = jnp.take_along_axis(logits, e.tokens[..., None], axis=-1)[..., 0]
    return grammar.backward(logits)[0, :, 1] - jnp.sum(chosen, axis=1)
