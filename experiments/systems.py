"""Systems side by side: same data, same parameter count, same training time, same clock at
inference.

RefineMath as shipped; RefineMath, a tiny recursive model (TRM) and a token-by-token decoder,
trained here for the same seconds of one core; the search without a network (null) and blind draws
alone (blind); pyoperon and gplearn (`pip install -r experiments/requirements.txt`).  What stands in
`--work` is not done again.
"""

from __future__ import annotations

import argparse
import signal
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import sympy
from flax import nnx

from experiments import harness
from experiments.baselines import (
    TRM,
    Tokens,
    TokenSearch,
    Variant,
    gplearn,
    matched,
    operon,
    token_loss,
)
from experiments.latent_drift import watch
from refinemath import Formula, FormulaError, RefineMath, SearchConfig, weights
from refinemath.evaluation import (
    Problem,
    environment,
    heldout_problems,
    null_model,
    recovered,
    suite_problems,
)
from refinemath.model import Model, ModelConfig
from refinemath.training import TrainConfig

TRAINED: dict[str, Any] = {"own": Model, "trm": TRM, "tokens": Tokens}
SYSTEMS = ("refinemath", "own", "trm", "tokens", "null", "blind", "operon", "gplearn")
# relative difference at 200 random points under which two formulas count as the same function
ROUNDED = 1e-9


def problems_of(part: str, every: int) -> list[Problem]:
    """The problems of a part."""
    if part == "suites":
        return suite_problems(harness.DATA / "suites.csv")[:: max(1, every // 25)]
    return heldout_problems(
        harness.DATA / "heldout.csv", noise=0.01 if part == "noise" else 0.0, every=every
    )


def symbolic(problem: Problem, found: Formula, seconds: int = 5) -> str:
    """`yes` if the difference is zero (200 random points agree to 1e-9, or SymPy proves it in
    time), `no` if a point disproves it, else `undecided`.
    """
    assert problem.truth is not None
    x = np.random.default_rng(2).uniform(problem.x.min(), problem.x.max(), 200)[None]
    a, b = problem.truth.evaluate(x), found.evaluate(x)
    both = np.isfinite(a) & np.isfinite(b)
    apart = (
        np.max(np.abs(a - b)[both] / (np.abs(a[both]) + np.std(a[both]) + 1e-300))
        if both.sum() >= 20
        else np.inf
    )
    if apart <= ROUNDED:
        return "yes"
    if apart > 1e-6 or not hasattr(signal, "SIGALRM"):
        return "no" if apart > 1e-6 else "undecided"

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        return (
            "yes"
            if sympy.simplify(sympy.nsimplify(problem.truth.sympy() - found.sympy(), rational=True))
            == 0
            else "undecided"
        )
    except (TimeoutError, ValueError, TypeError, ArithmeticError, RecursionError):
        return "undecided"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- training


def sizes(options: argparse.Namespace) -> dict[str, ModelConfig]:
    """Configurations of the three networks trained here, of equal parameter count."""
    own = (
        harness.TINY
        if options.quick
        else ModelConfig(latent_dim=options.latent_dim, width=options.width)
    )
    target = harness.parameter_count(harness.parts_of(own)[0])
    return {
        "own": own,
        "trm": matched(TRM, own, target, square=True),
        "tokens": matched(Tokens, own, target, square=False),
    }


def train_one(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train a network for the given seconds of one core."""
    config = sizes(options)[name]
    bank = harness.training_bank(options.work, options.bank)
    folder = options.work / f"{name}-{seed}"
    recipe = TrainConfig(batch=options.batch, seed=seed, warmup=1 if options.quick else 200)
    steps = 3 if options.quick else None
    if name == "tokens":
        recipe = replace(recipe, optimizer="adamw", learning_rate=options.rate)
        params, graph = harness.parts_of(config, Tokens, seed)
        loss = token_loss(graph, bank, harness.exclusions()[1], recipe)
        params, log = harness.fit(loss, params, recipe, seconds=options.seconds, steps=steps)
        folder.mkdir(parents=True, exist_ok=True)
        weights.save(folder / "weights.npz", params, {}, dtype=np.float16)
        log["examples"] = log["steps"] * recipe.batch
    else:
        if (
            name == "trm"
            # its recipe: AdamW, more supervision of the same problem, no feedback to execute, no
            # stillness
        ):
            recipe = replace(
                recipe,
                optimizer="adamw",
                learning_rate=options.rate,
                go_on=0.75,
                own_samples=1,
                stillness=0.0,
            )
        log = harness.train_seconds(
            config, recipe, folder, bank, options.seconds, model=TRAINED[name], steps=steps
        )
    return {
        "system": name,
        "seed": seed,
        "commit": environment("")["commit"],
        "config": vars(config),
        "training": log,
    }


# ---------------------------------------------------------------- answers


def solver(options: argparse.Namespace, system: str, seed: int) -> RefineMath:
    """A system as an object that solves."""
    budget = harness.QUICK if options.quick else SearchConfig()
    shipped = RefineMath(budget=budget)
    if system == "refinemath":
        return shipped
    if system in ("null", "blind"):
        return null_model(
            shipped, per_length=200 if options.quick else 60_000, search=system == "null"
        )
    config = sizes(options)[system]
    parts = harness.load_parts(
        options.work / f"{system}-{seed}" / "weights.npz", config, TRAINED[system]
    )
    if system == "tokens":
        return TokenSearch(
            parts, samples=64 if options.quick else options.token_samples, budget=budget
        )
    if system == "trm":  # its recipe knows no leaps
        return Variant(parts, fixed_steps=True, budget=replace(budget, leap=0.0))
    return Variant(parts, budget=budget)


def answer_all(options: argparse.Namespace, system: str, seed: int, part: str) -> dict[str, Any]:
    """One record a problem."""
    problems = problems_of(part, options.every)
    records = []
    if system in ("operon", "gplearn"):
        program = operon if system == "operon" else gplearn
        for problem in problems:
            began = time.perf_counter()
            try:
                found = program(problem.x, problem.y, seconds=options.time_budget, seed=seed)
            except FormulaError as error:
                found = Formula((float(np.mean(problem.y)),))
                print(f"{system} on {problem.name}: {error}")
            seconds = time.perf_counter() - began
            records.append(
                {
                    "name": problem.name,
                    "recovered": recovered(problem, SimpleNamespace(formula=found)),
                    "seconds": seconds,  # type: ignore[arg-type]
                    "symbolic": symbolic(problem, found),
                    "length": len(found),
                    "formula": str(found),
                }
            )
    else:
        model = solver(options, system, seed)
        for problem, result, good in harness.answers(
            model, problems, time_budget=options.time_budget, seed=seed
        ):
            records.append(
                {
                    "name": problem.name,
                    "recovered": good,
                    "seconds": result.seconds,
                    "symbolic": symbolic(problem, result.formula),
                    "length": len(result.formula),
                    "formula": str(result.formula),
                }
            )
    return {
        "system": system,
        "seed": seed,
        "part": part,
        "commit": environment("")["commit"],
        "records": records,
    }


def drift(options: argparse.Namespace, system: str, seed: int) -> dict[str, Any]:
    """Velocity and rank after 8 and 64 steps of the latent, and the refiner's milliseconds."""
    parts = (
        harness.shipped() if system == "refinemath" else solver(options, system, seed).parameters()
    )
    problems = problems_of("heldout", 100 if options.quick else 10)
    most = 8 if options.quick else 64
    seen = watch(
        parts[0],
        parts[1],
        harness.stack(problems),
        jax.random.key(seed),
        steps=most,
        injected=True,
        feedback=True,
    )
    at = {
        t: {k: harness.interval(seen[k][t - 1], np.median) for k in ("velocity", "rank", "cosine")}
        for t in (8, most)
    }
    return {"system": system, "seed": seed, "at": at}


def task(options: argparse.Namespace, name: str) -> None:
    """`train:trm:0`, `answer:trm:0:suites` or `drift:trm:0`."""
    what, system, seed, *part = name.split(":")
    if what == "train":
        record = train_one(options, system, int(seed))
    else:
        record = (
            drift(options, system, int(seed))
            if what == "drift"
            else answer_all(options, system, int(seed), *part)
        )
    harness.save_task(options.work, name, record)


def table(trainings: list[dict[str, Any]], answered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each system and part: seeds averaged a problem, intervals over problems."""
    rows = []
    for system, part in dict.fromkeys((a["system"], a["part"]) for a in answered):
        mine = [a["records"] for a in answered if (a["system"], a["part"]) == (system, part)]
        reference = [a["records"] for a in answered if (a["system"], a["part"]) == ("null", part)]
        share = np.mean([[r["recovered"] for r in records] for records in mine], axis=0)
        decided = [[r["symbolic"] for r in records] for records in mine]
        row = {
            "system": system,
            "part": part,
            "seeds": len(mine),
            "recovered": harness.interval(share),
            "symbolic": harness.interval(
                np.mean([[s == "yes" for s in d] for d in decided], axis=0)
            ),
            "undecided": float(np.mean([[s == "undecided" for s in d] for d in decided])),
            "seconds_median": float(
                np.median([[r["seconds"] for r in records] for records in mine])
            ),
            "length_median": float(np.median([[r["length"] for r in records] for records in mine])),
        }
        if reference:
            row["over_null"] = harness.difference(
                share, np.mean([[r["recovered"] for r in records] for records in reference], axis=0)
            )
        cost = [t["training"] for t in trainings if t["system"] == system]
        if cost:
            row["training"] = {
                k: float(np.mean([c[k] for c in cost])) for k in ("steps", "examples", "seconds")
            }
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    """Train, answer, compare."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--latent-dim", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--rate", type=float, default=1e-3, help="learning rate of the baselines (AdamW)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1800.0,
        help="training time of each network, in seconds of one core",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--jobs", type=int, default=2, help="trainings at a time, each on a core of its own"
    )
    parser.add_argument("--bank", type=int, default=20_000)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["suites", "heldout", "noise"],
        choices=["suites", "heldout", "noise"],
    )
    parser.add_argument("--every", type=int, default=6, help="each N-th held-out formula")
    parser.add_argument("--time-budget", type=float, default=8.0, help="seconds for each problem")
    parser.add_argument("--token-samples", type=int, default=4096)
    options = parser.parse_args(arguments)
    if options.quick:
        (
            options.batch,
            options.bank,
            options.seeds,
            options.every,
            options.time_budget,
            options.parts,
        ) = 8, 40, 1, 150, 0.5, ["heldout"]
        options.systems = ["tokens", "null"]
    if options.only:
        harness.one_core(options.core)
        harness.keep_compiled(options.work / "compiled")
        task(options, options.only)
        return None
    began = time.perf_counter()
    options.work = harness.folder(options, "systems")
    harness.training_bank(options.work, options.bank)
    seeds = range(options.seeds)
    training = [f"train:{s}:{seed}" for seed in seeds for s in options.systems if s in TRAINED]
    answering = [
        f"answer:{s}:{seed}:{part}"
        for s in options.systems
        for seed in (seeds if s in TRAINED else [0])
        for part in options.parts
    ]
    drifting = (
        []
        if options.quick
        else [f"drift:{s}:0" for s in options.systems if s in ("refinemath", "own", "trm")]
    )
    if not options.quick:
        passed = []
        for name in ("width", "latent_dim", "batch", "rate", "seconds", "bank"):
            passed += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        harness.in_children("systems", training, options.jobs, options.work, passed)
    for name in [*training, *drifting, *answering]:
        if not harness.task_path(options.work, name).exists():
            task(options, name)
            print(f"done: {name}", flush=True)
    trainings, answered = (
        [harness.load_task(options.work, n) for n in names] for names in (training, answering)
    )
    configs = sizes(options)
    used = [n for n in TRAINED if n == "own" or n in options.systems]
    counts = {
        n: harness.parameter_count(
            nnx.state(nnx.eval_shape(lambda n=n: TRAINED[n](configs[n], rngs=nnx.Rngs(0))))
        )
        for n in used
    }
    assert max(counts.values()) <= 1.05 * min(counts.values()), (
        f"parameter counts differ by more than 5 %: {counts}"
    )
    rows = table(trainings, answered)
    for row in rows:
        r = row["recovered"]
        print(
            f"{row['system']:10s} {row['part']:8s} {r['value']:.3f} [{r['low']:.3f}, "
            f"{r['high']:.3f}] in {row['seconds_median']:.2f} s, symbolic "
            f"{row['symbolic']['value']:.3f}, length {row['length_median']:.0f}"
        )
    report = {
        "parameters": counts,
        "table": rows,
        "trainings": trainings,
        "drift": [harness.load_task(options.work, n) for n in drifting],
        "answers": answered,
    }
    return harness.write("systems", options, report, began)


if __name__ == "__main__":
    main()
