"""Which stabiliser to train with: RMSNorm, soft, convergent or Muon's Newton-Schulz, at equal
training time.

Every stabiliser gets the same seconds of one core: a calibration measures the cost of a step of
each, in turns, and the number of steps follows, so that each learning-rate schedule runs to its
end.  Then the averaged weights answer a slice of the held-out formulas with the loop alone: no
sweep over short formulas, no edits, one search a problem, the same seeds.  Runs are
single-threaded, one to a core; a run whose record exists is skipped.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from experiments import harness
from refinemath import RefineMath, SearchConfig
from refinemath.evaluation import environment, heldout_problems
from refinemath.model import STABILISERS, ModelConfig
from refinemath.training import TrainConfig, make_trainer

LOOP = replace(
    SearchConfig(), edits=0, patience=0
)  # what the network finds, with as little help as possible


def model_config(options: argparse.Namespace, kind: str) -> ModelConfig:
    """The model of a run."""
    return (
        replace(harness.TINY, stabiliser=kind)
        if options.quick
        else ModelConfig(latent_dim=options.latent_dim, width=options.width, stabiliser=kind)
    )


def model_recipe(options: argparse.Namespace, seed: int, steps: int) -> TrainConfig:
    """The training of a run."""
    return TrainConfig(
        steps=steps, batch=options.batch, warmup=max(1, min(200, steps // 10)), seed=seed
    )


def calibrate(options: argparse.Namespace, rounds: int = 8) -> dict[str, Any]:
    """CPU seconds of a training step for each stabiliser, taken in turns: the median over rounds of
    two steps.
    """
    bank = harness.training_bank(options.work, options.bank)
    _, probes = harness.exclusions()
    trainers, states = {}, {}
    for kind in options.kinds:
        trainers[kind] = make_trainer(
            model_config(options, kind), model_recipe(options, 0, 1000), bank, probes
        )
        states[kind], _ = trainers[kind].step(trainers[kind].init())
    seconds: dict[str, list[float]] = {kind: [] for kind in options.kinds}
    for _ in range(rounds):
        for kind in options.kinds:
            began = time.process_time()
            for _ in range(2):
                states[kind], metrics = trainers[kind].step(states[kind])
            jax.block_until_ready(metrics)
            seconds[kind].append((time.process_time() - began) / 2)
    return {kind: float(np.median(s)) for kind, s in seconds.items()}


def one_run(options: argparse.Namespace, kind: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one model and let it answer; the record of the run."""
    folder = options.work / f"{kind}-{seed}-{steps}"
    config, recipe = model_config(options, kind), model_recipe(options, seed, steps)
    wall = time.perf_counter()
    log = harness.train_seconds(
        config, recipe, folder, harness.training_bank(options.work, options.bank), 0.0, steps=steps
    )
    log["wall_seconds"] = time.perf_counter() - wall
    budget = replace(harness.QUICK, edits=0) if options.quick else LOOP
    model = RefineMath(
        config.latent_dim,
        options.iterations,
        weights=folder / "weights.npz",
        budget=budget,
        sweep=False,
    )
    problems = heldout_problems(harness.DATA / "heldout.csv", every=options.every)
    names, right, fvu, iterations, converged, velocity = [], [], [], [], [], []
    for problem, result, good in harness.answers(model, problems, seed=seed):
        names.append(problem.name)
        right.append(good)
        fvu.append(result.fvu)
        iterations.append(result.iterations)
        converged.append(result.converged)
        curve = np.full(options.iterations, np.nan)
        curve[: len(result.velocity)] = np.median(result.velocity, axis=1)
        velocity.append(curve)
    curves = np.array(velocity)
    running = [c[np.isfinite(c)] for c in curves.T]
    return {
        "stabiliser": kind,
        "seed": seed,
        "commit": environment("")["commit"],
        **log,
        "problems": names,
        "recovered": right,
        "fvu": fvu,
        "iterations": iterations,
        "converged": converged,
        "velocity": [float(np.median(c)) if len(c) else None for c in running],
        "still_running": [len(c) for c in running],
    }


def table(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a stabiliser; the difference to RMSNorm is paired by seed and problem."""

    def share(kind: str) -> np.ndarray:
        return np.mean([r["recovered"] for r in runs if r["stabiliser"] == kind], axis=0)

    kinds = [k for k in STABILISERS if any(r["stabiliser"] == k for r in runs)]
    rows = []
    for kind in kinds:
        mine = [r for r in runs if r["stabiliser"] == kind]
        last = [float(np.mean([e[1] for e in r["loss"][-4:]])) for r in mine]
        rows.append(
            {
                "stabiliser": kind,
                "seeds": len(mine),
                "steps": mine[0]["steps"],
                "recovered": harness.interval(share(kind)),
                "recovered_by_seed": [float(np.mean(r["recovered"])) for r in mine],
                "over_rms": harness.difference(share(kind), share("rms"))
                if "rms" in kinds
                else None,
                "final_loss": float(np.mean(last)),
                "final_loss_by_seed": last,
                "converged": harness.interval(np.mean([r["converged"] for r in mine], axis=0)),
                "iterations_median": float(np.median([r["iterations"] for r in mine])),
                "last_velocity": [
                    next((v for v in reversed(r["velocity"]) if v is not None), None) for r in mine
                ],
            }
        )
    return rows


def task(options: argparse.Namespace, name: str) -> None:
    """`calibrate`, or a run such as `polar:2:1500` (kind, seed, steps)."""
    kind, *rest = name.split(":")
    harness.save_task(
        options.work, name, one_run(options, kind, *map(int, rest)) if rest else calibrate(options)
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with the sizes of the quick mode put in."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--latent-dim", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--seconds",
        type=float,
        default=900.0,
        help="training time of a run, in seconds of one core",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(STABILISERS), choices=STABILISERS)
    parser.add_argument(
        "--jobs", type=int, default=2, help="runs at a time, each on a core of its own"
    )
    parser.add_argument(
        "--bank", type=int, default=20_000, help="formulas of each length to train on"
    )
    parser.add_argument("--every", type=int, default=4, help="answer each N-th held-out formula")
    parser.add_argument("--iterations", type=int, default=32)
    options = parser.parse_args(arguments)
    if options.quick:
        (
            options.batch,
            options.bank,
            options.seeds,
            options.every,
            options.iterations,
            options.kinds,
        ) = 8, 40, 1, 100, 4, ["polar"]
    return options


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    """Run what is missing, then write the table."""
    options = parse(arguments)
    if options.only:
        harness.one_core(options.core)
        harness.keep_compiled(options.work / "compiled")
        task(options, options.only)
        return None
    began = time.perf_counter()
    options.work = harness.folder(options, "stabiliser")
    harness.training_bank(options.work, options.bank)
    passed = ["--kinds", *options.kinds, *(["--quick"] if options.quick else [])]
    for name in ("width", "latent_dim", "batch", "bank", "every", "iterations"):
        passed += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    cost = dict.fromkeys(options.kinds, options.seconds / 4)
    if not options.quick:
        harness.in_children("stabiliser", ["calibrate"], 1, options.work, passed)
        cost = harness.load_task(options.work, "calibrate")
    tasks = [
        f"{kind}:{seed}:{max(4, round(options.seconds / cost[kind]))}"
        for seed in range(options.seeds)
        for kind in options.kinds
    ]
    if options.quick:
        for name in tasks:
            task(options, name)
    harness.in_children("stabiliser", tasks, options.jobs, options.work, passed)
    runs = [harness.load_task(options.work, name) for name in tasks]
    rows = table(runs)
    for row in rows:
        r, d = row["recovered"], row["over_rms"]
        against = f"; over rms {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]" if d else ""
        print(
            f"{row['stabiliser']:6s} recovered {r['value']:.3f} [{r['low']:.3f}, "
            f"{r['high']:.3f}], settled {row['converged']['value']:.2f}{against}"
        )
    return harness.write(
        "stabiliser", options, {"step_cpu_seconds": cost, "table": rows, "runs": runs}, began
    )


if __name__ == "__main__":
    main()
