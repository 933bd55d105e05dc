"""Training: denoising with execution feedback, deep supervision, Muon for the hidden matrices.
(Chapter 6)

Every step draws new problems, gives half of the batch a corrupted candidate formula and a fresh
thought, lets the other half go on from where the last step left it, runs two refiner steps with the
model's own best sample executed in between, and asks after each for the truth. Where the candidate
did not change, the latent should not move either: its relative velocity is a small part of the
loss, so that thoughts come to rest.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from refinemath import weights
from refinemath.corpus.build import build_table
from refinemath.corpus.exclusions import excludes, training_exclusions
from refinemath.examples import Examples, SkeletonTable, draw_examples, length_weights
from refinemath.expression import ARITY, END, TOKEN_VALUE, VARIABLES, VOCABULARY, VOCABULARY_SIZE
from refinemath.fitting import Candidate, Points, execute, no_candidate, tree_where
from refinemath.model import Model, ModelConfig

OPTIMIZERS = ("muon", "adamw")


COUNTS = (
    "steps",
    "batch",
    "unroll",
    "own_samples",
    "bank_per_length",
)  # dials of a recipe that are 1 at least


@dataclass(frozen=True)
class TrainConfig:
    """A training run.  Everything that changes the resulting weights is here or in
    `ModelConfig`.
    """

    steps: int = 10_000
    batch: int = 256
    learning_rate: float = 2e-3
    optimizer: str = "muon"
    decay: float = 0.3  # share of the steps over which the learning rate falls to zero
    warmup: int = 200
    unroll: int = 2  # refiner steps per training step
    own_samples: int = 8  # samples drawn from the thought, of which the best is executed next
    noise: float = 0.3  # size of the noise in Z_0
    go_on: float = 0.5  # share of the batch that continues from the step before
    blank: float = 0.3  # share of the others that start without a candidate
    # weight of the cross-entropy of slots that are read on their own, where the model has a reader
    slots_alone: float = 0.2
    # weight of the relative velocity of thoughts whose candidate did not change in the step before
    stillness: float = 0.2
    ema: float = 0.999
    seed: int = 0
    bank_per_length: int = 100_000
    # a weights file whose parameters the run starts from; those it lacks, and all if it is empty,
    # are random
    start_from: str = ""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer is {self.optimizer!r}; it must be one of {', '.join(OPTIMIZERS)}"
            )
        for name in COUNTS:
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be a positive whole number"
                )
        if self.start_from and not Path(self.start_from).is_file():
            raise ValueError(f"there is no weights file {self.start_from}")


class TrainBatch(NamedTuple):
    """A batch of problems with where each stands: its latent, its candidate, and whether (1.0 or
    0.0) that candidate outlived the last step.
    """

    examples: Examples
    z: Float[Array, "batch slots dim"]
    candidate: Candidate
    still: Float[Array, " batch"]


class TrainState(NamedTuple):
    """Everything that a resumed run needs to continue bit for bit."""

    params: Any
    ema: Any
    optimizer: Any
    thoughts: TrainBatch
    step: Array


_SAME_ARITY = [
    np.array(
        [
            t
            for t in range(VOCABULARY_SIZE)
            if ARITY[t] == a and VOCABULARY[t] not in ("END", *VARIABLES[1:])
        ]
    )
    for a in range(3)
]


def corrupt(key: Array, tokens: Int[Array, "batch slots"]) -> Int[Array, "batch slots"]:
    """Candidates to start from: another problem's formula (36 %), or the truth with tokens replaced
    by others of the same arity.  Chapter 6.
    """
    k = jax.random.split(key, 4)
    batch, _ = tokens.shape
    rate = jax.random.uniform(k[0], (batch, 1), minval=0.05, maxval=0.7)
    hit = jax.random.bernoulli(k[1], jnp.broadcast_to(rate, tokens.shape)) & (tokens != END)
    arity = jnp.asarray(ARITY)[tokens]
    other = tokens
    for a, members in enumerate(_SAME_ARITY):
        draw = jnp.asarray(members, jnp.int32)[
            jax.random.randint(k[2], tokens.shape, 0, len(members))
        ]
        other = jnp.where(arity == a, draw, other)
    changed = jnp.where(hit, other, tokens)
    return jnp.where(
        jax.random.bernoulli(k[3], 0.36, (batch, 1)), jnp.roll(tokens, 1, axis=0), changed
    )


def fresh_batch(
    key: Array,
    model: Model,
    bank: SkeletonTable,
    recipe: TrainConfig,
    weights: Array,
    probes: Array | None,
    config: ModelConfig,
) -> TrainBatch:
    """New problems with a seed thought each and a first candidate: none (a share `blank`) or a
    corrupted one.
    """
    k = jax.random.split(key, 4)
    reject = None if probes is None else excludes(probes, config.variables)
    examples = draw_examples(
        k[0], bank, recipe.batch, variables=config.variables, weights=weights, reject=reject
    )
    points = Points(examples.x, examples.y, examples.mask)
    tokens = corrupt(k[1], examples.tokens)
    started = execute(
        tokens,
        jnp.where(tokens == examples.tokens, examples.values, jnp.asarray(TOKEN_VALUE)[tokens]),
        points,
    )
    nothing = jax.random.bernoulli(k[2], recipe.blank, (recipe.batch,))
    candidate = tree_where(nothing, no_candidate(points, config.slots), started)
    noise = recipe.noise * jax.random.normal(k[3], (recipe.batch, config.slots, config.latent_dim))
    return TrainBatch(
        examples, model.refiner.start(noise), candidate, jnp.zeros(recipe.batch, jnp.float32)
    )


def best_own_sample(
    key: Array, drawn: Int[Array, "batch count slots"], points: Points, current: Candidate
) -> Candidate:
    """Execute what was drawn from each thought and keep the best; a fifth of the time even if
    `current` fits better.
    """
    batch, count, slots = drawn.shape
    tokens = drawn.reshape(batch * count, slots)
    repeated = Points(*(jnp.repeat(a, count, axis=0) for a in points))
    executed = execute(tokens, jnp.asarray(TOKEN_VALUE)[tokens], repeated)
    best = jnp.argmin(executed.fvu.reshape(batch, count), axis=1) + jnp.arange(batch) * count
    own = jax.tree.map(lambda a: a[best], executed)
    better = (own.fvu < current.fvu) | jax.random.bernoulli(
        jax.random.fold_in(key, 1), 0.2, (batch,)
    )
    return tree_where(better, own, current)


def loss_fn(
    params: Any, graph: Any, thoughts: TrainBatch, key: Array, recipe: TrainConfig
) -> tuple[Array, tuple[TrainBatch, dict[str, Array]]]:
    """Mean cross-entropy of the true token in every slot after each of `unroll` refiner steps, and
    the thoughts to go on from.
    """
    model, fixed = nnx.merge(graph, params), nnx.merge(graph, jax.lax.stop_gradient(params))
    e = thoughts.examples
    points = Points(e.x, e.y, e.mask)
    encoded = model.encoder(points)
    z, candidate = thoughts.z, thoughts.candidate
    length = jnp.sum(e.tokens != END, axis=1, keepdims=True)
    slot_weight = (
        jnp.where(jnp.arange(e.tokens.shape[1])[None] <= length, 1.0, 0.1) * e.weight[:, None]
    )
    slot_weight = slot_weight / jnp.maximum(jnp.sum(slot_weight), 1e-6)
    total = jnp.float32(0)
    metrics: dict[str, Array] = {}
    still = thoughts.still
    for t in range(recipe.unroll):
        before, z = z, model.refiner(z, encoded, candidate)
        velocity = jnp.sum((z - before) ** 2, axis=(1, 2)) / jnp.sum(before**2, axis=(1, 2))
        metrics[f"velocity_{t + 1}"] = jnp.sqrt(
            jnp.sum(velocity * still) / jnp.maximum(jnp.sum(still), 1.0)
        )
        total = total + recipe.stillness * jnp.mean(jnp.sqrt(velocity + 1e-12) * still)
        logits = model.refiner.logits(z)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        cross_entropy = -jnp.sum(
            jnp.take_along_axis(log_p, e.tokens[..., None], axis=-1)[..., 0] * slot_weight
        )
        if model.refiner.reader is None:
            total = total + cross_entropy
        # what counts is what the reader reads; the slots alone are held to the truth as well, so
        # that each can be asked on its own
        else:
            read = model.refiner.log_probability(z, e.tokens)
            per_formula = -jnp.sum(read, axis=1) * e.weight
            metrics[f"nats_{t + 1}"] = jnp.sum(per_formula) / jnp.maximum(jnp.sum(e.weight), 1.0)
            total = total + recipe.slots_alone * cross_entropy - jnp.sum(read * slot_weight)
        metrics[f"loss_{t + 1}"] = cross_entropy
        old = candidate
        k_own = jax.random.fold_in(key, t)
        candidate = best_own_sample(
            k_own,
            fixed.refiner.sample(k_own, jax.lax.stop_gradient(z), recipe.own_samples),
            points,
            old,
        )
        still = jnp.all(candidate.tokens == old.tokens, axis=1).astype(jnp.float32)
    blank = thoughts.candidate.tokens[:, 0] == VOCABULARY_SIZE
    if model.refiner.reader is not None:
        metrics["nats_from_nothing"] = jnp.sum(per_formula * blank) / jnp.maximum(
            jnp.sum(blank * e.weight), 1.0
        )
    per = jnp.sum(
        -jnp.take_along_axis(log_p, e.tokens[..., None], axis=-1)[..., 0] * slot_weight, axis=1
    ) / jnp.maximum(jnp.sum(slot_weight, axis=1), 1e-9)
    metrics["from_nothing"] = jnp.sum(per * blank) / jnp.maximum(jnp.sum(blank), 1)
    metrics["solved"] = jnp.mean(candidate.fvu < 1e-6)
    metrics["loss"] = total / recipe.unroll
    after = TrainBatch(e, jax.lax.stop_gradient(z), candidate, still)
    return total / recipe.unroll, (after, metrics)


_ADAM_KERNELS = ("encoder/first", "refiner/number", "refiner/feedback/")


def uses_muon(name: str) -> bool:
    """Muon gets the hidden matrices: every `kernel` that maps hidden width to hidden width.
    Embeddings, heads, gains and first layers do not.
    """
    return name.endswith("kernel") and not name.startswith(_ADAM_KERNELS)


def make_optimizer(recipe: TrainConfig, params: Any) -> optax.GradientTransformation:
    """Warm-up, constant, linear decay to zero; Muon (optax) for the matrices of `uses_muon`, AdamW
    for the rest.  Chapter 6.
    """
    hold = int(recipe.steps * (1 - recipe.decay))
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, recipe.learning_rate, recipe.warmup),
            optax.constant_schedule(recipe.learning_rate),
            optax.linear_schedule(recipe.learning_rate, 0.0, max(recipe.steps - hold, 1)),
        ],
        [recipe.warmup, max(hold, recipe.warmup)],
    )
    if recipe.optimizer == "adamw":
        inner = optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=0.01)
    else:
        names = list(weights.named_leaves(params))
        spec = [optax.contrib.MuonDimensionNumbers() if uses_muon(n) else None for n in names]
        dimensions = jax.tree.unflatten(jax.tree.structure(params), spec)
        inner = optax.contrib.muon(
            schedule,
            adam_learning_rate=schedule,
            adam_b2=0.99,
            weight_decay=0.01,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=lambda _: dimensions,
        )
    return optax.chain(optax.clip_by_global_norm(1.0), inner)


@dataclass(frozen=True)
class Trainer:
    """The compiled step, its first state, and how a state lies on the devices."""

    step: Callable[[TrainState], tuple[TrainState, dict[str, Array]]]
    init: Callable[[], TrainState]
    place: Callable[
        [TrainState], TrainState
    ]  # the share of every device: its problems, and all of the rest


def make_trainer(
    config: ModelConfig, recipe: TrainConfig, bank: SkeletonTable, probes: Array | None
) -> Trainer:
    """Build the jitted training step.  Its batch is split over all devices of a mesh; with one
    device that changes nothing.
    """
    if recipe.batch % jax.device_count():
        raise ValueError(
            f"batch is {recipe.batch}; it must be a multiple of the {jax.device_count()} devices"
        )
    graph, template = nnx.split(nnx.eval_shape(lambda: Model(config, rngs=nnx.Rngs(recipe.seed))))
    optimizer = make_optimizer(recipe, template)
    lengths = length_weights(bank)
    root = jax.random.key(recipe.seed)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    layout = TrainState(whole, whole, whole, split, whole)  # type: ignore[arg-type]

    def init() -> TrainState:
        model = Model(config, rngs=nnx.Rngs(recipe.seed))
        params = nnx.state(model)
        if recipe.start_from:
            params, _ = weights.load(Path(recipe.start_from), params, grown=True)
        thoughts = fresh_batch(
            jax.random.fold_in(root, 2**32 - 1), model, bank, recipe, lengths, probes, config
        )
        return TrainState(
            params,
            jax.tree.map(jnp.copy, params),
            optimizer.init(params),
            thoughts,
            jnp.zeros((), jnp.int32),
        )

    @functools.partial(
        jax.jit, donate_argnums=0, out_shardings=(layout, whole) if jax.device_count() > 1 else None
    )
    def step(state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(root, state.step)
        k_new, k_go, k_loss = jax.random.split(key, 3)
        new = fresh_batch(
            k_new, nnx.merge(graph, state.params), bank, recipe, lengths, probes, config
        )
        go_on = jax.random.bernoulli(k_go, recipe.go_on, (recipe.batch,)) & (
            state.thoughts.examples.weight > 0
        )
        thoughts = tree_where(go_on, state.thoughts, new)
        if jax.device_count() > 1:
            thoughts = jax.lax.with_sharding_constraint(thoughts, split)
        gradient, (after, metrics) = jax.grad(loss_fn, has_aux=True)(
            state.params, graph, thoughts, k_loss, recipe
        )
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = jnp.minimum(recipe.ema, (1.0 + state.step) / (10.0 + state.step)).astype(jnp.float32)
        ema = jax.tree.map(lambda a, b: rate * a + (1 - rate) * b, state.ema, params)
        metrics["gradient_norm"] = optax.global_norm(gradient)
        return TrainState(params, ema, moments, after, state.step + 1), metrics

    def place(state: TrainState) -> TrainState:
        return jax.device_put(state, layout) if jax.device_count() > 1 else state

    return Trainer(step, lambda: place(jax.jit(init)()), place)


def train(
    config: ModelConfig,
    recipe: TrainConfig,
    folder: Path,
    *,
    save_seconds: float = 300.0,
    bank: SkeletonTable | None = None,
    show: bool = True,
    stop_after: int | None = None,
) -> TrainState:
    """Run a recipe in `folder`, resuming its checkpoint if there is one; writes `log.jsonl`,
    `checkpoint.npz` and at the end `weights.npz`.

    A resumed run gives the same weights, bit for bit, as one that was never interrupted.
    `stop_after` ends early after that many steps.
    """
    from tqdm.auto import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    words, probes = training_exclusions(config.variables)
    if bank is None:
        cache = folder / "bank.npz"
        made_for = json.dumps([recipe.bank_per_length, recipe.seed, config.variables, config.slots])
        if cache.exists():
            with np.load(cache) as file:
                if "made_for" in file.files and str(file["made_for"]) != made_for:
                    raise weights.CheckpointError(
                        f"{cache} was made for another run; use another folder, or delete the file"
                    )
                bank = SkeletonTable(jnp.asarray(file["tokens"]), jnp.asarray(file["start"]))
        else:
            bank = build_table(
                recipe.bank_per_length,
                seed=recipe.seed,
                variables=config.variables,
                slots=config.slots,
                excluded=words,
            )
            with weights.in_one_step(cache) as file:
                np.savez(file, tokens=bank.tokens, start=bank.start, made_for=np.array(made_for))
    trainer = make_trainer(config, recipe, bank, probes)
    state = trainer.init()
    path = folder / "checkpoint.npz"
    record = {"config": asdict(config), "recipe": asdict(recipe)}
    if path.exists():
        state, meta = weights.load(path, state)
        if ModelConfig(**meta["config"]) != config or {
            **meta["recipe"],
            "steps": 0,
            "decay": 0,
        } != {**record["recipe"], "steps": 0, "decay": 0}:
            raise weights.CheckpointError(
                f"{path} belongs to another run: {meta['config']}, {meta['recipe']}; use another "
                "folder"
            )
        state = trainer.place(state)
    first = int(state.step)
    if first > recipe.steps:
        raise weights.CheckpointError(
            f"{path} has {first} steps already; ask for at least as many, not {recipe.steps}"
        )
    last = recipe.steps if stop_after is None else min(recipe.steps, first + stop_after)
    started = saved = time.monotonic()
    window: list[dict[str, Array]] = []
    with (
        tqdm(
            total=recipe.steps, initial=first, disable=not show, unit="step", mininterval=5
        ) as bar,
        (folder / "log.jsonl").open("a") as log,
    ):
        for step in range(first, last):
            state, metrics = trainer.step(state)
            window.append(metrics)
            bar.update()
            if (step + 1) % 50 == 0 or step + 1 == last:
                mean = {k: float(np.mean([w[k] for w in window])) for k in metrics}
                window = []
                mean["step"] = step + 1
                mean["examples_per_second"] = (
                    recipe.batch * (step + 1 - first) / (time.monotonic() - started)
                )
                bar.set_postfix(
                    loss=f"{mean['loss']:.3f}", ex_s=f"{mean['examples_per_second']:.0f}"
                )
                log.write(json.dumps({k: round(v, 5) for k, v in mean.items()}) + "\n")
                log.flush()
                if not np.isfinite(mean["loss"]):
                    raise FloatingPointError(
                        f"the loss is {mean['loss']} at step {step + 1}; the last checkpoint is "
                        f"{path}"
                    )
            if step + 1 == last or time.monotonic() - saved > save_seconds:
                weights.save(path, state, {**record, "step": step + 1})
                saved = time.monotonic()
    if last == recipe.steps:
        weights.save(
            folder / "weights.npz",
            state.ema,
            {**record, "examples": recipe.steps * recipe.batch},
            dtype=np.float16,
        )
    return state
