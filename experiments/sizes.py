"""Time and memory of an answer against the number of columns and of rows, with their exponents.

Every table is solved in a process of its own: first in a search that compiles, then again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from typing import Any

import numpy as np

from experiments import measure
from experiments.runner import ROOT, Experiment

ONE = """
import json, resource, sys, time
import numpy as np
from refinemath import RefineMath
columns, rows, seed, budget = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), 0.01
x = np.random.default_rng(seed).uniform(1, 3, (rows, columns))
y = x[:, 0] * x[:, -1] + np.exp(-x[:, columns // 2])
model, seconds = RefineMath(), []
for _ in range(2):
    began = time.perf_counter()
    result = model.solve(x, y, time_budget=budget)
    seconds.append(time.perf_counter() - began)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak *= 1 if sys.platform == "darwin" else 1024
fvu = min(result.fvu, 1e300)
print(json.dumps({"first": seconds[0], "again": seconds[1], "bytes": peak, "fvu": fvu}))
"""


def names(options: Namespace) -> list[str]:
    """A task for each number of columns at the fewest rows, and of rows at five columns."""
    columns = [(c, min(options.rows)) for c in options.columns]
    both = dict.fromkeys([*columns, *((options.fixed, r) for r in options.rows)])
    return [f"{c} columns, {r} rows, {k}" for c, r in both for k in range(options.repeats)]


def solve(options: Namespace, name: str) -> dict[str, float]:
    """Seconds of one search with and without the compiler, peak memory and fit of one table."""
    columns, _, rows, _, repeat = name.replace(",", "").split()
    arguments = [columns, rows, str(options.seed + int(repeat))]
    done = subprocess.run(
        [sys.executable, "-c", ONE, *arguments],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def exponent(size: np.ndarray, value: np.ndarray) -> float:
    """The slope of log value against log size; 0 where there is one size."""
    spread = np.log(size) - np.mean(np.log(size))
    return float(spread @ np.log(value) / max(float(spread @ spread), 1e-12))


def report(options: Namespace, records: dict[str, Any]) -> dict[str, Any]:
    """All records, and the exponents of seconds and memory with their intervals."""
    sizes = np.array([[int(w) for w in n.replace(",", "").split()[::2]][:2] for n in records])
    found: dict[str, Any] = {"tables": records}
    for axis, name in enumerate(("columns", "rows")):
        other = min(options.rows) if axis == 0 else options.fixed
        chosen = sizes[:, 1 - axis] == other
        for field in ("again", "bytes"):
            values = np.array([r[field] for r in records.values()])[chosen]
            pair = sizes[chosen, axis].astype(float), values
            found[f"{field} against {name}"] = measure.interval(pair, exponent)
    return found


EXPERIMENT = Experiment(
    "sizes",
    __doc__,
    names,
    solve,
    report,
    options={
        "columns": [1, 2, 3, 5, 8, 10],
        "rows": [100, 1000, 10_000, 100_000, 1_000_000],
        "fixed": 5,
        "repeats": 3,
    },
    quick={"columns": [1], "rows": [100], "fixed": 1, "repeats": 1},
)
