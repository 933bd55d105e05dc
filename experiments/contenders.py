"""The systems that are compared: sets of proposers, and networks trained here at equal size."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

from experiments import answers, networks, tokens, trm
from experiments.baselines import Sampled, matched
from refinemath import RefineMath, SearchConfig
from refinemath.evaluation import systems
from refinemath.model import Model, ModelConfig
from refinemath.proposers.network import Network
from refinemath.proposers.prior import Prior
from refinemath.proposers.registry import DEFAULT
from refinemath.training import TrainConfig

KINDS: dict[str, Any] = {"own": Model, "trm": trm.TRM, "tokens": tokens.Tokens}
LOSSES = {"trm": trm.make_loss, "tokens": tokens.make_loss}
TRAINED = tuple(KINDS)
SEARCHES = ("refinemath", "null", "prior")
RATE = 1e-3  # learning rate of the baselines, with AdamW


System = dict[str, Any]  # options of `RefineMath`


def network_and_prior(latents: int = 32, steps: int = 8) -> dict[str, System]:
    """The network alone, and as many blind draws."""
    network, config = Network(), SearchConfig(latents=latents, search_steps=steps)
    prior = Prior(count=latents * network.per_latent, refine=latents * network.refine)
    usual: System = {"config": config, "max_iters": 2 * steps, "transforms": False, "patience": 0}
    label = f"{latents} latents, {steps} steps"
    both = {"network": network, "prior": prior}
    return {f"{name}, {label}": {"proposers": [p], **usual} for name, p in both.items()}


SIZES = ((32, 8), (2, 8), (8, 8), (32, 2), (32, 4), (32, 16))
TABLES: dict[str, dict[str, System]] = {
    "proposers": {name: {"proposers": set_} for name, set_ in systems(ablation=True).items()}
    | {"without transforms": {"transforms": False}},
    "depth": {k: v for size in SIZES for k, v in network_and_prior(*size).items()},
}
SYSTEMS = {name: system for table in TABLES.values() for name, system in table.items()}


def sizes(options: Namespace) -> dict[str, ModelConfig]:
    """Configurations of the networks trained here, of equal parameter count."""
    own = networks.small_config(options)
    target = networks.size_of(own)
    return {"own": own} | {n: matched(KINDS[n], own, target) for n in LOSSES}


def train_one(options: Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train a network for the given seconds of one core."""
    config, recipe = sizes(options)[name], TrainConfig(batch=options.batch, seed=seed)
    if name == "own":
        params, log = networks.train_model(options, config, recipe)
    else:
        network = networks.random_network(config, KINDS[name], seed)
        loss = LOSSES[name](network.graph, *networks.material(options), recipe)
        recipe = replace(recipe, optimizer="adamw", learning_rate=RATE)
        params, log = networks.train_loss(options, loss, network.params, recipe)
    networks.save(options.work / f"{name}-{seed}" / "weights.npz", params, config)
    return {"config": vars(config), **log}


def solver(options: Namespace, system: str, seed: int) -> RefineMath:
    """A system as an object that solves."""
    others = DEFAULT - {"network"} if options.others == "all" else frozenset[str]()
    path = options.work / f"{system}-{seed}" / "weights.npz"
    if system == "prior":
        return answers.solver(options, {"prior"})
    if system in ("refinemath", "null"):
        return answers.solver(options, others | {"network" if system == "refinemath" else "prior"})
    if system == "own":
        width = sizes(options)["own"].latent_dim
        return answers.solver(options, others | {"network"}, latent_dim=width, weights=path)
    network = networks.load(path, KINDS[system])
    sampled = Sampled(network, count=max(1, options.samples // 8))
    return answers.solver(options, [*others, sampled])
