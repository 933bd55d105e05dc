"""Where the time of an answer goes, and that of the first answer of a fresh process.

What a step of the search costs with each proposer is in `ablation`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from typing import Any

import jax
import numpy as np

from experiments import answers, measure
from experiments.runner import ROOT, Experiment
from refinemath import RefineMath
from refinemath.answer.choose import Answers, refit
from refinemath.engine import pool_candidates
from refinemath.problem import prepare

FIRST = """
import time; a = time.time(); import refinemath; b = time.time()
model = refinemath.RefineMath(); model.solve("data/physics_data.npy", time_budget={seconds})
print(b - a, time.time() - a)
"""


def solving(options: Namespace) -> dict[str, Any]:
    """Seconds of the phases of one search over some held-out problems, and of a whole answer."""
    config, chosen = answers.solver(options).config, answers.problems(options)
    phases: dict[str, list[float]] = {n: [] for n in ("prepare", "search", "refit", "choose")}
    jax.block_until_ready(answers.search(chosen[0], config))
    for problem in chosen:
        stamps = [time.perf_counter()]

        def done(value: Any, stamps: list[float] = stamps) -> Any:
            stamps.append(time.perf_counter())
            return value

        prepared = done(prepare(problem.x, problem.y))
        outcome = done(jax.block_until_ready(answers.search(problem, config)))
        front = done(refit(pool_candidates(outcome), prepared))
        done(Answers(prepared).choose(front))
        for name, spent in zip(phases, np.diff(stamps), strict=True):
            phases[name].append(float(spent))
    report: dict[str, Any] = {"phases": measure.medians(phases)}
    if not options.quick:
        solved = answers.answers(options, RefineMath(), chosen)
        report["warm answer"] = measure.interval([r.seconds for _, r, _ in solved], np.median)
    return report


def first_answer(repeats: int) -> dict[str, Any]:
    """Seconds from the start of Python's imports to the formula of the first search, in fresh
    processes: the first one on a machine, which compiles, and a later one; and to the end of a
    whole answer, which for measured data lasts as long as its `time_budget` of 8 seconds allows.
    """
    names = {"first formula on a machine": 0.01, "first formula later": 0.01}
    names["whole answer later"] = 8.0
    rows: dict[str, list[float]] = {name: [] for name in ("import", *names)}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name, budget in names.items():
                imports, total = subprocess.run(
                    [sys.executable, "-c", FIRST.format(seconds=budget)],
                    check=True,
                    cwd=ROOT,
                    env={**os.environ, "XDG_CACHE_HOME": cache},
                    capture_output=True,
                    text=True,
                ).stdout.split()
                rows["import"].append(float(imports))
                rows[name].append(float(total))
    return measure.medians(rows)


EXPERIMENT = Experiment(
    "profile",
    __doc__,
    lambda options: ["solve", *([] if options.quick else ["fresh process"])],
    lambda options, name: solving(options) if name == "solve" else first_answer(3),
    lambda options, records: records,
    shared=("clock",),
    options={"every": 15},
)
