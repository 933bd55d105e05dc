"""Halting: does late velocity say whether the answer is right, do hard problems take more steps,
and how much work does stopping save?

First the search as shipped, one search a problem, with and without leaps.  Then a search that never
stops: from its curves of velocity and fit every stopping rule is replayed, the velocity's, the
fit's and a fixed number of steps, and each is given the setting that is cheapest while it keeps 95
% of what the whole run solves.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata, spearmanr

from experiments import harness
from refinemath import RefineMath, SearchConfig
from refinemath.evaluation import heldout_problems, suite_problems
from refinemath.loop import search
from refinemath.problem import prepare
from refinemath.proposers.library import short_skeletons
from refinemath.solver import device_points

SOLVED = 1e-9  # FVU in float32 of the best formula so far that counts as solved in the replay
KEPT = 0.95  # share of the solved problems that a rule must keep


def auc(score: np.ndarray, good: np.ndarray) -> float:
    """Chance that a good case scores above a bad one, ties half (Mann-Whitney); NaN without
    both.
    """
    good = np.asarray(good, bool)
    positives, negatives = good.sum(), (~good).sum()
    if positives == 0 or negatives == 0:
        return float("nan")
    return float(
        (rankdata(score)[good].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, NaN where one side is constant."""
    return float(spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def stops(curve: np.ndarray, threshold: float, hits: int) -> np.ndarray:
    """Steps taken by each problem that stops once its curve (problems, steps) lay under the
    threshold `hits` times in a row.
    """
    under = curve < threshold
    row = under.copy()
    for k in range(1, hits):
        row[:, k:] &= under[:, :-k]
        row[:, :k] = False
    return np.where(row.any(1), row.argmax(1) + 1, curve.shape[1])


def cheapest(rule: list[np.ndarray], fvu: np.ndarray) -> dict[str, float]:
    """Mean steps of the cheapest setting of a rule that keeps `KEPT` of what the whole run solves,
    and what it saves.
    """
    whole = fvu[:, -1] < SOLVED
    best = {"steps": float(fvu.shape[1]), "solved": float(whole.mean())}
    for taken in rule:
        solved = fvu[np.arange(len(fvu)), taken - 1] < SOLVED
        if solved.sum() >= KEPT * whole.sum() and taken.mean() < best["steps"]:
            best = {"steps": float(taken.mean()), "solved": float(solved.mean())}
    return {**best, "saved": 1 - best["steps"] / fvu.shape[1]}


def rules(velocity: np.ndarray, fvu: np.ndarray) -> dict[str, list[np.ndarray]]:
    """For every stopping rule, the steps each problem would take under each of its settings."""
    n, steps = fvu.shape
    return {
        "fixed number of steps": [np.full(n, t) for t in range(1, steps + 1)],
        "velocity, two hits": [
            stops(velocity, t, 2) for t in np.quantile(velocity, np.linspace(0, 1, 60))
        ],
        "fit": [stops(fvu, t, 1) for t in np.geomspace(1e-13, 1e-2, 45)],
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Both parts."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--every", type=int, default=3, help="each N-th held-out formula")
    parser.add_argument("--steps", type=int, default=32)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    budget = replace(SearchConfig(), patience=0)
    if options.quick:
        options.every, options.steps = 60, 6
        budget = harness.QUICK
    problems = heldout_problems(harness.DATA / "heldout.csv", every=options.every)
    if not options.quick:
        problems += suite_problems(harness.DATA / "suites.csv")
    model = RefineMath(max_iters=options.steps, budget=budget)
    length, right, iterations, converged, late = [], [], [], [], []
    for problem, result, good in harness.answers(model, problems, seed=options.seed):
        length.append(problem.length)
        right.append(good)
        iterations.append(result.iterations)
        converged.append(result.converged)
        curve = np.median(result.velocity, axis=1) if len(result.velocity) else np.zeros(1)
        late.append(curve[curve > 0][-1] if np.any(curve > 0) else 1e-9)
    plain = RefineMath(max_iters=options.steps, budget=replace(budget, leap=0.0))
    creeping = [
        (result.converged, result.iterations)
        for _, result, _ in harness.answers(plain, problems, seed=options.seed)
    ]
    lengths, rights, taken, lates = (
        np.array(length),
        np.array(right),
        np.array(iterations),
        np.array(late),
    )

    params, graph, config = harness.shipped()
    endless = replace(model.budget, solved=0.0, search_steps=options.steps, steps=options.steps)
    start, prior = (
        jnp.asarray(short_skeletons(config.slots, 32)),
        jnp.zeros((1, config.slots), jnp.uint8),
    )
    velocity, fvu = [], []
    for problem in problems:
        points = device_points(prepare(problem.x[:, None], problem.y))
        outcome = search(
            params,
            graph,
            points,
            jax.random.key(options.seed),
            jnp.float32(1e-5),
            start,
            prior,
            budget=endless,
        )
        v = np.asarray(outcome.trace.velocity)
        velocity.append(np.median(np.where(np.isfinite(v), v, 0.0), axis=1))
        f = np.asarray(outcome.trace.fvu)[
            1:
        ]  # what stands before a step was found by the steps before it
        fvu.append(np.minimum.accumulate(np.append(f, float(outcome.pool.fvu[0]))))
    curves, fits = np.array(velocity), np.nan_to_num(np.array(fvu), nan=np.inf)
    solved = fits[:, -1] < SOLVED
    at = [t for t in (2, 4, 8, 16, 24, 32) if t <= options.steps]

    def saved(name: str) -> dict[str, Any]:
        index = np.arange(len(fits))

        def of(rows: np.ndarray) -> float:
            i = rows.astype(int)
            return cheapest(rules(curves[i], fits[i])[name], fits[i])["saved"]

        return {
            **cheapest(rules(curves, fits)[name], fits),
            "saved_interval": harness.interval(index, of, count=20 if options.quick else 300),
        }

    report = {
        "problems": len(problems),
        "recovered": harness.interval(rights),
        "converged": harness.interval(converged),
        "without leaps": {
            "converged": harness.interval([c for c, _ in creeping]),
            "steps": harness.interval([n for _, n in creeping]),
        },
        "late velocity against success, AUC": harness.interval((-lates, rights), auc),
        "velocity at a step against success, AUC": {
            t: harness.interval((-curves[:, t - 1], solved), auc) for t in at
        },
        "fit at a step against success, AUC": {
            t: harness.interval((-fits[:, t - 1], solved), auc) for t in at
        },
        "iterations against length, rank correlation": harness.interval(
            (taken, lengths), rank_correlation
        ),
        "iterations against length, solved ones": harness.interval(
            (taken[rights], lengths[rights]), rank_correlation
        )
        if rights.any()
        else None,
        "iterations by length": {
            int(n): [int(np.median(taken[lengths == n])), int((lengths == n).sum())]
            for n in np.unique(lengths)
        },
        "steps of the shipped rule": harness.interval(taken),
        "replay": {name: saved(name) for name in rules(curves, fits)},
        "velocity_median": np.median(curves, axis=0),
        "solved_share": np.mean(fits < SOLVED, axis=0),
        "each": [
            {
                "name": p.name,
                "length": p.length,
                "recovered": bool(r),
                "iterations": i,
                "late_velocity": v,
            }
            for p, r, i, v in zip(problems, right, iterations, late, strict=True)
        ],
    }
    for name, row in (
        ("with leaps", report["converged"]),
        ("without", report["without leaps"]["converged"]),
    ):
        print(
            f"all thoughts settled {name}: {row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"
        )
    for name in (
        "late velocity against success, AUC",
        "iterations against length, rank correlation",
    ):
        print(
            f"{name}: {report[name]['value']:.2f} [{report[name]['low']:.2f}, "
            f"{report[name]['high']:.2f}]"
        )
    for name, row in report["replay"].items():
        print(
            f"{name:22s} {row['steps']:5.1f} steps, solved {row['solved']:.2f}, saved "
            f"{row['saved']:.0%}"
        )
    return harness.write("halting", options, report, began)


if __name__ == "__main__":
    main()
