"""Grafts: does exchanging subtrees, with sums kept apart in every second search, find more at the same clock?

Formulas are drawn as the held-out ones were, with another seed, and none of their skeletons is held out; the shipped network may have met some in
training, which is the same for both sides.  Every problem is solved by the settings as shipped and with grafts, one right after the other.
"""

from __future__ import annotations

import csv
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from experiments import harness
from refinemath import Budget, RefineMath, parse
from refinemath.evaluate import heldout_problems, recovered, suite_problems, warm_up
from refinemath.heldout import make_heldout


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Both sides on every problem."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--per-length", type=int, default=24, help="formulas of each length")
    parser.add_argument("--shortest", type=int, default=7, help="length of the shortest")
    parser.add_argument("--time-budget", type=float, default=8.0, help="seconds a problem")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    base = Budget()
    if options.quick:
        base, options.per_length, options.shortest = harness.QUICK, 1, 11
    sides = {"without": replace(base, grafts=0, apart=0.0), "with": replace(base, edits=base.edits // 2, grafts=8 if options.quick else 128, apart=1e3)}
    path = harness.folder(options, "grafts") / f"formulas-{options.seed}-{options.per_length}.csv"
    if not path.exists():
        make_heldout(path, seed=778 + options.seed, per_length=options.per_length)
    held_out = {p.truth.skeleton() for p in (*heldout_problems(harness.DATA / "heldout.csv"), *suite_problems(harness.DATA / "suites.csv")) if p.truth}
    with path.open(encoding="utf-8", newline="") as file:
        lengths = [int(row["length"]) for row in csv.DictReader(file)]
    problems = [p for p, n in zip(heldout_problems(path), lengths, strict=True) if n >= options.shortest and p.truth.skeleton() not in held_out]
    models = {side: RefineMath(budget=budget) for side, budget in sides.items()}
    for model in models.values():
        warm_up(model, problems)
    each = []
    for problem in problems:
        row: dict[str, Any] = {"length": problem.length, "formula": str(parse(str(problem.truth)))}
        for side, model in models.items():
            result = model.solve(problem.x, problem.y, time_budget=options.time_budget, seed=options.seed)
            row[side] = {"recovered": recovered(problem, result), "seconds": result.seconds, "found": str(result.sympy())}
        each.append(row)
        print(*("+" if row[side]["recovered"] else "-" for side in sides), problem.length, row["formula"][:100], flush=True)
    right = {side: np.array([r[side]["recovered"] for r in each]) for side in sides}
    report = {
        "problems": len(each), "budgets": {side: asdict(budget) for side, budget in sides.items()},
        "recovered": {side: harness.interval(right[side]) for side in sides},
        "difference": harness.difference(right["with"], right["without"]),
        "won": int(np.sum(right["with"] & ~right["without"])), "lost": int(np.sum(right["without"] & ~right["with"])),
        "median seconds": {side: float(np.median([r[side]["seconds"] for r in each])) for side in sides},
        "each": each,
    }  # fmt: skip
    for side, row in report["recovered"].items():
        print(f"{side:8s} {row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of {row['n']}, median {report['median seconds'][side]:.1f} s")
    print(f"won {report['won']}, lost {report['lost']}")
    return harness.write("grafts", options, report, began)


if __name__ == "__main__":
    main()
