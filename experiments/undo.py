"""Undo: does it pay that later searches look at the data with one operation undone, at the same clock?

Formulas are drawn as the held-out ones were, with another seed, and none of their skeletons is held out; the shipped network may have met some in
training, which is the same for both sides.  The sides take turns, problem by problem.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments import harness
from refinemath import Budget, RefineMath
from refinemath.evaluate import heldout_problems, recovered, suite_problems, warm_up
from refinemath.heldout import make_heldout


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Both sides on every problem; what was finished before is not run again."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--per-length", type=int, default=20, help="formulas of each length")
    parser.add_argument("--shortest", type=int, default=7, help="length of the shortest")
    parser.add_argument("--time-budget", type=float, default=8.0, help="seconds a problem")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    budget = Budget()
    if options.quick:
        budget, options.per_length, options.shortest = harness.QUICK, 1, 12
    sides = {"with": RefineMath(budget=budget), "without": RefineMath(budget=budget, undo=False)}
    work = harness.folder(options, "undo")
    path = work / f"formulas-{options.seed}-{options.per_length}.csv"
    if not path.exists():
        make_heldout(path, seed=779 + options.seed, per_length=options.per_length)
    held_out = {p.truth.skeleton() for p in (*heldout_problems(harness.DATA / "heldout.csv"), *suite_problems(harness.DATA / "suites.csv")) if p.truth}
    problems = [p for p in heldout_problems(path) if p.length >= options.shortest and p.truth and p.truth.skeleton() not in held_out]
    for model in sides.values():
        warm_up(model, problems)
    each: list[dict[str, Any]] = []
    for i, problem in enumerate(problems):
        if not harness.task_path(work, problem.name).exists():
            row: dict[str, Any] = {"length": problem.length, "formula": str(problem.truth)}
            for side in list(sides)[:: 1 if i % 2 else -1]:
                result = sides[side].solve(problem.x, problem.y, time_budget=options.time_budget, seed=options.seed)
                row[side] = {"recovered": recovered(problem, result), "settled": result.converged, "seconds": round(result.seconds, 3)}
            harness.save_task(work, problem.name, row)
            print(*("+" if row[side]["recovered"] else "-" for side in sides), problem.length, row["formula"][:100], flush=True)
        each.append(harness.load_task(work, problem.name))
    right = {side: np.array([row[side]["recovered"] for row in each]) for side in sides}
    report = {
        "problems": len(problems), "budget": asdict(budget),
        "recovered": {side: harness.interval(right[side]) for side in sides},
        "with minus without": harness.difference(right["with"], right["without"]),
        "won": int(np.sum(right["with"] & ~right["without"])), "lost": int(np.sum(right["without"] & ~right["with"])),
        "settled": {side: harness.interval(np.array([row[side]["settled"] for row in each])) for side in sides},
        "median seconds": {side: float(np.median([row[side]["seconds"] for row in each])) for side in sides}, "each": each,
    }  # fmt: skip
    for side, row in report["recovered"].items():
        print(f"{side:8s} {row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of {row['n']}, median {report['median seconds'][side]:.1f} s")
    print(f"won {report['won']}, lost {report['lost']}")
    return harness.write("undo", options, report, began)


if __name__ == "__main__":
    main()
