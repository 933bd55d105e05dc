"""What do the choices of the model and of its training bring?  Small networks that differ in one
option from a base, trained for the same CPU seconds of one core.

Measured are the recovery by the network alone (one search), the nats of fresh true formulas, the
final loss, when it reaches the base's, and how the latents drift in 64 steps.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import jax
import numpy as np

from experiments import answers, measure, networks
from experiments.drift import drift, drifted
from experiments.runner import TRAINING, Experiment
from refinemath.training import OPTIMIZERS, TrainConfig

Variant = tuple[dict[str, Any], dict[str, Any], float]  # of ModelConfig, TrainConfig; share of time
GROUPS: dict[str, dict[str, Variant]] = {
    "stabiliser": {kind: ({"stabiliser": kind}, {}, 1.0) for kind in ("rms", "soft", "muon")},
    "weights": {f"no {w}": ({f"{w}_weight": 0.0}, {}, 1.0) for w in ("anchor", "residual")},
    "reader": {
        "reader": ({"reader": 64}, {}, 1.0),
        "looks back": ({"reader": 64, "reader_heads": 4}, {}, 1.0),
    },
    "training": {
        "no own candidates": ({}, {"own_samples": 1, "unroll": 1, "go_on": 0.0}, 1.0),
        "no stillness": ({}, {"stillness": 0.0}, 1.0),
    },
    "optimizer": {
        f"{o} {rate:g}": ({}, {"optimizer": o, "learning_rate": rate}, 1.0)
        for o in OPTIMIZERS
        for rate in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
    },
    "time": {f"1/{n} of the time": ({}, {}, 1 / n) for n in (2, 4, 8)},
}
BASE = "base"
VARIANTS: dict[str, Variant] = {BASE: ({}, {}, 1.0)}
VARIANTS |= {name: v for group in GROUPS.values() for name, v in group.items()}


def chosen(options: Namespace) -> list[str]:
    """The base and the variants of the chosen groups."""
    return [BASE, *(name for g in options.groups if g != BASE for name in GROUPS[g])]


def tasks(options: Namespace) -> list[str]:
    """Every variant with every seed."""
    networks.material(options)
    seeds = range(options.seed, options.seed + options.seeds)
    return [f"{variant}:{seed}" for seed in seeds for variant in chosen(options)]


def task(options: Namespace, name: str) -> dict[str, Any]:
    """Train one network, then ask what fresh truths cost it and let it answer."""
    variant, seed = name.split(":")
    of_model, of_training, share = VARIANTS[variant]
    config = networks.small_config(options, **of_model)
    recipe = TrainConfig(batch=options.batch, seed=int(seed), **of_training)
    params, log = networks.train_model(options, config, recipe, share)
    path = options.work / name.replace(":", "-") / "weights.npz"
    networks.save(path, params, config)
    graph, fresh = networks.random_network(config).graph, networks.fresh_examples(options)
    cost = networks.nats(params, graph, fresh, jax.random.key(10_001))
    own = {"latent_dim": config.latent_dim, "weights": path, "transforms": False, "patience": 0}
    model = answers.solver(options, ("network",), **own)
    solved = answers.answers(options, model, answers.problems(options), int(seed))
    return {
        "training": log,
        "nats": np.asarray(cost),
        "recovered": [good for _, _, good in solved],
        "drift": {w: drift(options, params, graph, once=w == "once") for w in ("each", "once")},
    }


def compared(runs: dict[str, Any], variant: str, base: str) -> dict[str, Any]:
    """A variant beside the base, paired by problem, the final loss paired by seed."""
    mine, other = (
        [r for name, r in runs.items() if name.split(":")[0] == v] for v in (variant, base)
    )
    row: dict[str, Any] = {}
    for what in ("recovered", "nats"):
        a, b = (np.mean([r[what] for r in several], axis=0) for several in (mine, other))
        row[what] = measure.interval(a)
        row[f"{what}, difference"] = measure.difference(a, b)
    a, b = ([networks.final_loss(r["training"]) for r in several] for several in (mine, other))
    row |= {"final loss": a, "loss, difference": measure.difference(a, b)}
    pairs = zip(mine, other, strict=True)
    row["reaches the base"] = [reaches(r["training"], o["training"]) for r, o in pairs]
    row["examples"] = float(np.mean([r["training"]["examples"] for r in mine]))
    for way in ("each", "once"):
        row[f"drift, points read {way}"] = drifted([r["drift"][way] for r in mine])
    return row


def reaches(log: dict[str, Any], other: dict[str, Any]) -> float | None:
    """After which share of the seconds of another training this one has its final loss."""
    goal = networks.final_loss(other)
    return next((s / other["seconds"] for _, s, loss in log["loss"] if loss <= goal), None)


def report(options: Namespace, runs: dict[str, Any]) -> dict[str, Any]:
    """A row a variant."""
    return {"table": {v: compared(runs, v, BASE) for v in chosen(options)}, "runs": runs}


EXPERIMENT = Experiment(
    "variants",
    __doc__,
    tasks,
    task,
    report,
    shared=(*TRAINING, "fresh", "every", "clock"),
    options={"groups": list(GROUPS)},
    quick={"groups": [BASE]},
    alone=("",),
)
