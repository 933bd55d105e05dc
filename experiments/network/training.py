"""Training: new problems at every step, random depth, candidates for half of them; a run that
resumes bit for bit.

python -m experiments.network.training run FOLDER [--minutes M]        # start or go on at a constant learning rate
python -m experiments.network.training release FOLDER --steps N        # a copy whose rate falls to 0 over N steps:
weights.npz
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from refinemath.examples import SkeletonTable

from experiments.network.candidates import draw_candidates
from experiments.network.examples import Examples, draw_examples, length_weights
from experiments.network.model import Config, Items, Model
from experiments.network.moments import Points
from experiments.network.optimizer import make_optimizer
from experiments.network.spine import END, SLOTS
from experiments.network.store import load, save


@dataclass(frozen=True)
class Recipe:
    """A training run."""

    batch: int = 512  # problems a step, shared by the tables
    tables: tuple[int, ...] = (1, 3)  # columns of each table of formulas
    points: tuple[int, ...] = (64, 96)
    learning_rate: float = 2e-3
    warmup: int = 100
    depths: tuple[int, ...] = (1, 1, 1, 2, 2, 4, 8)  # refiner steps before the loss, drawn evenly
    state_share: float = 0.4  # problems that are later states of a recursion
    rest_weight: float = 0.02  # weight of the relative velocity where nothing new was shown
    seed: int = 0


class State(NamedTuple):
    """Everything that a resumed run needs."""

    params: Any
    optimizer: Any
    step: Array


# ---------------------------------------------------------------- loss


BUCKETS = (
    (4, 8),
    (2, 13),
    (2, SLOTS),
)  # eighths of a batch sorted by length, read over so many slots


def nats(model: Model, e: Examples, z: Array, items: Items) -> Array:
    """-log p of every problem's target, (batch,); short ones are read over few slots."""
    length = jnp.sum(e.target != END, axis=1)
    order, cost, first = jnp.argsort(length), [], 0
    for eighths, n in BUCKETS:
        rows = order[first : first + len(order) * eighths // 8]
        log_p = model.decoder.log_prob(e.target[rows, :n], z[rows], items.columns[rows])
        cost.append(jnp.where(length[rows] <= n, -jnp.sum(log_p, axis=1), 0.0))
        first += len(rows)
    return jnp.zeros(len(order)).at[order].set(jnp.concatenate(cost))


def loss_fn(params: Any, graph: Any, e: Examples, key: Array, recipe: Recipe) -> tuple[Array, dict]:
    """Sum of the nats after a random number of steps, the last of which has the gradient.

    Half of the time the candidate is seen in all steps, else in the last one alone, by a latent
    that has moved.
    """
    model = nnx.merge(graph, params)
    k = jax.random.split(key, 3)
    points = Points(e.x, e.y, e.mask)
    candidate = draw_candidates(k[0], e)
    items = model.encoder(points, candidate)
    depth = jnp.asarray(recipe.depths)[jax.random.randint(k[1], (), 0, len(recipe.depths))]
    see = jax.random.bernoulli(k[2])
    hidden = model.encoder.without_candidate(items)
    before = jax.tree.map(lambda a, b: jnp.where(see, a, b), items, hidden)
    start = model.refiner.start(len(e.y))
    moved = model.refiner.run(*jax.lax.stop_gradient((start, before)), depth - 1)
    z0 = jnp.where(depth > 1, jax.lax.stop_gradient(moved), start)
    z = model.refiner(z0, model.refiner.block.cross.read(items.rows), items.mask)
    cost = nats(model, e, z, items) * e.weight
    velocity = jnp.sum((z - z0) ** 2, axis=(1, 2)) / z.shape[1]
    still = e.weight * (see | ~candidate.known) * (depth > 3)
    rest = jnp.sum(jnp.sqrt(velocity + 1e-12) * still)
    blank = e.weight * ~candidate.known
    eighth = len(cost) // 8
    groups = (
        ("none", blank),
        ("substituted", _rows(len(cost), 0, eighth)),
        ("cut", _rows(len(cost), eighth, 2 * eighth)),
        ("retrieved", _rows(len(cost), 2 * eighth, 4 * eighth)),
    )
    metrics = {name: (jnp.sum(cost * w), jnp.sum(w * e.weight)) for name, w in groups}
    metrics["velocity"] = (rest, jnp.sum(still))
    return jnp.sum(cost) + recipe.rest_weight * rest, metrics


def _rows(n: int, a: int, b: int) -> Array:
    return ((jnp.arange(n) >= a) & (jnp.arange(n) < b)).astype(jnp.float32)


# ---------------------------------------------------------------- the step and the run


def make_step(
    config: Config, recipe: Recipe, tables: list[tuple[Bank, Array]]
) -> tuple[Callable, Callable]:
    """The compiled step (state, rate) -> (state, metrics), and the first state."""
    graph, template = nnx.split(nnx.eval_shape(lambda: Model(config, rngs=nnx.Rngs(recipe.seed))))
    optimizer = make_optimizer(template)
    root = jax.random.key(recipe.seed)
    each = recipe.batch // len(tables)
    weights = [length_weights(bank) for bank, _ in tables]

    def init() -> State:
        params = nnx.state(Model(config, rngs=nnx.Rngs(recipe.seed)))
        return State(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def total(params: Any, drawn: list[Examples], keys: Array) -> tuple[Array, dict]:
        losses = [loss_fn(params, graph, e, k, recipe) for e, k in zip(drawn, keys, strict=True)]
        named = {
            f"{name}{v}": m
            for v, (_, ms) in zip(recipe.tables, losses, strict=True)
            for name, m in ms.items()
        }
        return sum(loss for loss, _ in losses) / recipe.batch, named

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: State, rate: Array) -> tuple[State, dict]:
        keys = jax.random.split(jax.random.fold_in(root, state.step), 2 * len(tables))
        drawn = [
            draw_examples(
                key,
                bank,
                each,
                points=p,
                variables=v,
                weights=w,
                probes=probes,
                state_share=recipe.state_share,
            )
            for key, (bank, probes), p, v, w in zip(
                keys[: len(tables)], tables, recipe.points, recipe.tables, weights, strict=True
            )
        ]
        (loss, metrics), grads = jax.value_and_grad(total, has_aux=True)(
            state.params, drawn, keys[len(tables) :]
        )
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        return State(params, optimizer_state, state.step + 1), {
            "loss": (loss, jnp.float32(1)),
            **metrics,
        }

    return step, init


def load_table(path: Path) -> tuple[Bank, Array]:
    """A table of formulas and the probe values that no example may equal."""
    with np.load(path) as file:
        return Bank(jnp.asarray(file["tokens"]), jnp.asarray(file["start"])), jnp.asarray(
            file["probes"]
        )


def run(
    folder: Path, data: Path, config: Config, recipe: Recipe, *, minutes: float, cooldown: int = 0
) -> State:
    """Go on from `checkpoint.npz` if there is one; a checkpoint every five minutes, a line of
    `log.jsonl` every 50 steps.

    With `cooldown` the checkpoint is only read, the rate falls to 0 over so many steps, and
    `weights.npz` is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step, init = make_step(
        config, recipe, [load_table(data / f"bank{v}.npz") for v in recipe.tables]
    )
    state, path = init(), folder / "checkpoint.npz"
    meta = {"config": asdict(config), "recipe": asdict(recipe)}
    if path.exists():
        state, old = load(path, state)
        if json.dumps([old[k] for k in meta]) != json.dumps(list(meta.values())):
            raise ValueError(f"{path} belongs to another run: {old}")
    first, started, saved, window = int(state.step), time.monotonic(), time.monotonic(), []
    now = first
    while (now < first + cooldown) if cooldown else (time.monotonic() - started < 60 * minutes):
        rate = recipe.learning_rate * min((now + 1) / recipe.warmup, 1.0)
        rate *= 1 - (now - first) / cooldown if cooldown else 1.0
        state, metrics = step(state, jnp.float32(rate))
        window.append(metrics)
        now += 1
        if now % 50 == 0:
            line: dict[str, Any] = {"step": now, "examples": now * recipe.batch, "rate": rate}
            sums = {k: [float(sum(m[k][i] for m in window)) for i in range(2)] for k in metrics}
            line.update({k: round(a / max(b, 1e-9), 4) for k, (a, b) in sums.items() if b > 0})
            line["examples_per_second"] = round(
                (now - first) * recipe.batch / (time.monotonic() - started), 1
            )
            line["time"] = time.strftime("%H:%M:%S")
            with (folder / ("cooldown.jsonl" if cooldown else "log.jsonl")).open("a") as log:
                log.write(json.dumps(line) + "\n")
            window = []
        if not cooldown and time.monotonic() - saved > 300:
            save(path, state, {**meta, "step": now})
            saved = time.monotonic()
    if cooldown:
        half = jax.tree.map(lambda a: a.astype(jnp.float16), state.params)
        save(folder / "weights.npz", half, {**meta, "step": now, "examples": now * recipe.batch})
    else:
        save(path, state, {**meta, "step": now})
    return state


def main() -> None:
    """The commands above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("run", "release"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("/work/lab/data"))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--config", type=json.loads, default={}, help="JSON: fields of Config")
    parser.add_argument("--recipe", type=json.loads, default={}, help="JSON: fields of Recipe")
    args = parser.parse_args()
    recipe = replace(
        Recipe(), **{k: tuple(v) if isinstance(v, list) else v for k, v in args.recipe.items()}
    )
    cooldown = args.steps if args.command == "release" else 0
    run(
        args.folder,
        args.data,
        Config(**args.config),
        recipe,
        minutes=args.minutes,
        cooldown=cooldown,
    )


if __name__ == "__main__":
    main()
