"""Does Muon train faster?  Muon against AdamW: the same learning rates for both, two batch sizes,
loss against steps and against seconds.

Every run gets the same seconds of one core; the cost of a step is measured first for each optimizer
and batch, so the schedule ends at zero.  The rate with the lowest final loss is then repeated with
further seeds.  Data and seeds are paired.  The cost of the update alone is measured as well.
"""

from __future__ import annotations

import argparse
import functools
import time
from typing import Any

import jax
import numpy as np

from experiments import harness
from refinemath.evaluation import environment
from refinemath.model import ModelConfig
from refinemath.training import TrainConfig, make_optimizer, make_trainer

OPTIMIZERS = ("muon", "adamw")


def config_of(options: argparse.Namespace) -> ModelConfig:
    """The model of a run."""
    return (
        harness.TINY
        if options.quick
        else ModelConfig(latent_dim=options.latent_dim, width=options.width)
    )


def calibrate(options: argparse.Namespace, batch: int, rounds: int = 8) -> dict[str, float]:
    """CPU seconds of a training step with each optimizer, in turns."""
    bank, probes = harness.training_bank(options.work, options.bank), harness.exclusions()[1]
    trainers = {
        o: make_trainer(config_of(options), TrainConfig(batch=batch, optimizer=o), bank, probes)
        for o in OPTIMIZERS
    }
    states = {o: trainers[o].step(trainers[o].init())[0] for o in OPTIMIZERS}
    seconds: dict[str, list[float]] = {o: [] for o in OPTIMIZERS}
    for _ in range(rounds):
        for o in OPTIMIZERS:
            began = time.process_time()
            states[o], metrics = trainers[o].step(states[o])
            jax.block_until_ready(metrics)
            seconds[o].append(time.process_time() - began)
    return {o: float(np.median(s)) for o, s in seconds.items()}


def one_run(
    options: argparse.Namespace, optimizer: str, rate: float, batch: int, seed: int, steps: int
) -> dict[str, Any]:
    """Train once; the loss after so many steps and CPU seconds."""
    recipe = TrainConfig(
        steps=steps,
        batch=batch,
        optimizer=optimizer,
        learning_rate=rate,
        warmup=max(1, min(200, steps // 10)),
        seed=seed,
    )
    where = options.work / f"{optimizer}-{rate}-{batch}-{seed}-{steps}"
    log = harness.train_seconds(
        config_of(options),
        recipe,
        where,
        harness.training_bank(options.work, options.bank),
        0.0,
        steps=steps,
    )
    return {
        "optimizer": optimizer,
        "rate": rate,
        "batch": batch,
        "seed": seed,
        "commit": environment("")["commit"],
        **log,
    }


def update_cost(config: ModelConfig, repeats: int) -> dict[str, Any]:
    """Milliseconds of the update alone, from gradients to new parameters."""
    params, _ = harness.parts_of(config)
    out: dict[str, Any] = {"parameters": harness.parameter_count(params)}
    for name in OPTIMIZERS:
        optimizer = make_optimizer(TrainConfig(optimizer=name), params)
        moments, update = optimizer.init(params), jax.jit(optimizer.update)
        jax.block_until_ready(update(params, moments, params))
        seconds = harness.times(functools.partial(update, params, moments, params), repeats=repeats)
        out[name] = harness.interval([1000 * s for s in seconds], np.median)
    return out


def final(run: dict[str, Any]) -> float:
    """The loss at the end of a run: the mean of its last windows."""
    return float(np.mean([loss for _, loss in run["loss"][-4:]]))


def reaches(run: dict[str, Any], loss: float) -> int | None:
    """The first logged step at which a run is at or under a loss."""
    return next((step for step, value in run["loss"] if value <= loss), None)


def task(options: argparse.Namespace, name: str) -> None:
    """`calibrate:128`, or `muon:0.002:128:0:1500` (optimizer, rate, batch, seed, steps)."""
    first, *rest = name.split(":")
    if first == "calibrate":
        record: Any = calibrate(options, int(rest[0]))
    else:
        record = one_run(options, first, float(rest[0]), int(rest[1]), int(rest[2]), int(rest[3]))
    harness.save_task(options.work, name, record)


def compare(
    batch: int, sweep: list[dict[str, Any]], repeated: list[dict[str, Any]], cost: dict[str, float]
) -> dict[str, Any]:
    """Both optimizers at their best rates: final loss paired by seed, and what Muon needs to reach
    AdamW's final loss.
    """
    rows: dict[str, Any] = {"batch": batch, "step_cpu_seconds": cost}
    runs = {
        o: sorted((r for r in repeated if r["optimizer"] == o), key=lambda r: r["seed"])
        for o in OPTIMIZERS
    }
    for o in OPTIMIZERS:
        rates = {r["rate"]: final(r) for r in sweep if r["optimizer"] == o}
        best = runs[o][0]["rate"]
        at_edge = best in (min(rates), max(rates))  # then a better one may lie outside
        rows[o] = {
            "rates": rates,
            "best_rate": best,
            "best_at_edge": at_edge,
            "steps": runs[o][0]["steps"],
            "final_loss": [final(r) for r in runs[o]],
        }
    rows["muon_minus_adamw"] = harness.difference(
        rows["muon"]["final_loss"], rows["adamw"]["final_loss"]
    )
    reached = [reaches(m, final(a)) for m, a in zip(runs["muon"], runs["adamw"], strict=True)]
    rows["muon_reaches_adamw_final"] = [
        None
        if s is None
        else {"steps": s / a["steps"], "seconds": s * cost["muon"] / (a["steps"] * cost["adamw"])}
        for s, a in zip(reached, runs["adamw"], strict=True)
    ]
    return rows


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    """Sweep, repeat the best, compare."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--latent-dim", type=int, default=256)
    parser.add_argument(
        "--seconds",
        type=float,
        default=180.0,
        help="training time of a run, in seconds of one core",
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--bank", type=int, default=20_000)
    options = parser.parse_args(arguments)
    if options.quick:
        options.rates, options.batches, options.seeds, options.bank = [2e-3], [8], 1, 40
    if options.only:
        harness.one_core(options.core)
        harness.keep_compiled(options.work / "compiled")
        task(options, options.only)
        return None
    began = time.perf_counter()
    options.work = harness.folder(options, "muon_vs_adamw")
    harness.training_bank(options.work, options.bank)
    passed = [
        *(["--quick"] if options.quick else []),
        "--width",
        str(options.width),
        "--latent-dim",
        str(options.latent_dim),
        "--bank",
        str(options.bank),
    ]

    def finish(names: list[str]) -> list[Any]:
        if options.quick:
            for name in names:
                task(options, name)
        harness.in_children("muon_vs_adamw", names, options.jobs, options.work, passed)
        return [harness.load_task(options.work, name) for name in names]

    if options.quick:
        costs = {b: dict.fromkeys(OPTIMIZERS, options.seconds / 4) for b in options.batches}
    else:
        costs = dict(
            zip(options.batches, finish([f"calibrate:{b}" for b in options.batches]), strict=True)
        )

    def name(optimizer: str, rate: float, batch: int, seed: int) -> str:
        return f"{optimizer}:{rate}:{batch}:{seed}:{max(4, round(options.seconds / costs[batch][optimizer]))}"

    sweep = finish(
        [name(o, rate, b, 0) for b in options.batches for rate in options.rates for o in OPTIMIZERS]
    )
    best = {
        (o, b): min((r for r in sweep if (r["optimizer"], r["batch"]) == (o, b)), key=final)["rate"]
        for o in OPTIMIZERS
        for b in options.batches
    }
    repeated = finish(
        [
            name(o, best[o, b], b, seed)
            for b in options.batches
            for seed in range(options.seeds)
            for o in OPTIMIZERS
        ]
    )
    rows = [
        compare(
            b,
            [r for r in sweep if r["batch"] == b],
            [r for r in repeated if r["batch"] == b],
            costs[b],
        )
        for b in options.batches
    ]
    update = {"this model": update_cost(config_of(options), 3 if options.quick else 20)}
    if not options.quick:
        update["shipped model"] = update_cost(harness.shipped()[2], 20)
    for row in rows:
        d = row["muon_minus_adamw"]
        each = ", ".join(
            f"{o} {np.mean(row[o]['final_loss']):.4f} at {row[o]['best_rate']:g}"
            for o in OPTIMIZERS
        )
        print(
            f"batch {row['batch']}: {each}, difference {d['value']:+.4f} [{d['low']:+.4f}, "
            f"{d['high']:+.4f}]"
        )
    return harness.write(
        "muon_vs_adamw",
        options,
        {"table": rows, "update_ms": update, "sweep": sweep, "repeated": repeated},
        began,
    )


if __name__ == "__main__":
    main()
