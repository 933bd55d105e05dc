"""Halting: does late velocity say whether the answer is right, do hard problems take more steps,
and how much work does stopping save?

After one search the latents settle, with Anderson's steps and without.  Then a search that never
stops: from its curves of velocity and fit every stopping rule is replayed, and each is given the
setting that is cheapest while it keeps 95 % of what the whole run solves.
"""

from __future__ import annotations

import functools
from argparse import Namespace
from dataclasses import replace
from typing import Any

import numpy as np

from experiments import answers, measure, networks
from experiments.runner import Experiment
from experiments.stopping import SOLVED, auc, cheapest, rank_correlation, rules
from refinemath import RefineMath, SearchConfig
from refinemath.compiled import record_search
from refinemath.engine import device_points
from refinemath.evaluation import Problem, recovered
from refinemath.problem import prepare

THRESHOLD = 1e-5


@functools.cache
def problems(every: int, quick: bool) -> dict[str, Problem]:
    """Held-out problems and, unless quick, the suites."""
    options = Namespace(every=every, quick=quick)
    parts = ("heldout",) if quick else ("heldout", "suites")
    return {p.name: p for part in parts for p in answers.problems(options, part)}


@functools.cache
def solver(quick: bool, steps: int) -> RefineMath:
    """One search a problem."""
    return answers.solver(Namespace(quick=quick), patience=0, max_iters=steps)


def tasks(options: Namespace) -> list[str]:
    """A task a problem."""
    return list(problems(options.every, options.quick))


def task(options: Namespace, name: str) -> dict[str, Any]:
    """One search and how its latents settle, then one that never stops."""
    problem = problems(options.every, options.quick)[name]
    model = solver(options.quick, options.steps)
    result = model.solve(problem.x, problem.y, time_budget=options.clock, seed=options.seed)
    points = device_points(prepare(problem.x, problem.y))
    record: dict[str, Any] = {"length": problem.length, "recovered": recovered(problem, result)}
    (params, graph, _), config = networks.shipped(), model.config
    found = answers.search(problem, config, seed=options.seed)
    for label, leap in (("settled", config.leap), ("without leaps", 0.0)):
        end = record_search(params, graph, points, found, THRESHOLD, replace(config, leap=leap))
        curve = np.median(end.trace.velocity[end.searched :], axis=1)
        late = float(curve[curve > 0][-1]) if np.any(curve > 0) else 1e-9
        record[label] = {"all": end.converged, "steps": end.steps, "late velocity": late}
    base = answers.QUICK if options.quick else SearchConfig()
    endless = replace(base, solved=0.0, search_steps=options.steps, shorten=options.steps)
    whole = answers.search(problem, endless, seed=options.seed)
    record["velocity"] = np.median(np.asarray(whole.trace.velocity), axis=1)
    # the trace holds the fit before each step
    fvu = np.append(np.asarray(whole.trace.fvu)[1:], float(whole.pool.fvu[0]))
    return {**record, "fvu": np.minimum.accumulate(np.nan_to_num(fvu, nan=1e30, posinf=1e30))}


def report(options: Namespace, records: dict[str, Any]) -> dict[str, Any]:
    """Velocity against success, steps against length, and what each rule saves."""
    rows = list(records.values())
    right = np.array([r["recovered"] for r in rows])
    length = np.array([r["length"] for r in rows])
    taken = np.array([r["settled"]["steps"] for r in rows])
    late = np.array([r["settled"]["late velocity"] for r in rows])
    curves, fits = np.array([r["velocity"] for r in rows]), np.array([r["fvu"] for r in rows])

    def saved(name: str) -> dict[str, Any]:
        def of(chosen: np.ndarray) -> float:
            i = chosen.astype(int)
            return cheapest(rules(curves[i], fits[i])[name], fits[i])["saved"]

        count = 20 if options.quick else 300
        interval = measure.interval(np.arange(len(fits)), of, count=count)
        return {**cheapest(rules(curves, fits)[name], fits), "saved_interval": interval}

    return {
        "recovered": measure.interval(right),
        "settled": {
            way: {
                "all latents": measure.interval([r[way]["all"] for r in rows]),
                "steps": measure.interval([r[way]["steps"] for r in rows]),
            }
            for way in ("settled", "without leaps")
        },
        "late velocity against success, AUC": measure.interval((-late, right), auc),
        "steps against length, rank correlation": measure.interval(
            (taken, length), rank_correlation
        ),
        "replay": {name: saved(name) for name in rules(curves, fits)},
        "velocity_median": np.median(curves, axis=0),
        "solved_share": np.mean(fits < SOLVED, axis=0),
        "each": records,
    }


EXPERIMENT = Experiment(
    "halting",
    __doc__,
    tasks,
    task,
    report,
    shared=("clock",),
    options={"every": 3, "steps": 32},
    quick={"steps": 4},
)
