"""Grafts: does exchanging subtrees, or keeping sums apart in every second search, find more at the same clock?

Formulas are drawn as the held-out ones were, with another seed, and none of their skeletons is held out; the shipped network may have met some in
training, which is the same for all sides.  Sides: the settings as shipped; grafts beside all edits; grafts in place of half of the edits, with sums
kept apart.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from experiments import harness
from refinemath import Budget, RefineMath
from refinemath.evaluate import heldout_problems, recovered, suite_problems, warm_up
from refinemath.heldout import make_heldout


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Every side on every problem; a side that was finished before is not run again."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--per-length", type=int, default=20, help="formulas of each length")
    parser.add_argument("--shortest", type=int, default=7, help="length of the shortest")
    parser.add_argument("--time-budget", type=float, default=8.0, help="seconds a problem")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    base, count = Budget(), 128
    if options.quick:
        base, count, options.per_length, options.shortest = harness.QUICK, 8, 1, 12
    sides = {"without": base, "grafts": replace(base, grafts=count), "apart": replace(base, edits=base.edits // 2, grafts=count, apart=1e3)}
    work = harness.folder(options, "grafts")
    path = work / f"formulas-{options.seed}-{options.per_length}.csv"
    if not path.exists():
        make_heldout(path, seed=778 + options.seed, per_length=options.per_length)
    held_out = {p.truth.skeleton() for p in (*heldout_problems(harness.DATA / "heldout.csv"), *suite_problems(harness.DATA / "suites.csv")) if p.truth}
    problems = [p for p in heldout_problems(path) if p.length >= options.shortest and p.truth and p.truth.skeleton() not in held_out]
    for side, budget in sides.items():
        if harness.task_path(work, side).exists():
            continue
        model, rows = RefineMath(budget=budget), []
        warm_up(model, problems)
        for problem in problems:
            result = model.solve(problem.x, problem.y, time_budget=options.time_budget, seed=options.seed)
            rows.append({"recovered": recovered(problem, result), "seconds": result.seconds, "found": str(result.sympy())})
            print("+" if rows[-1]["recovered"] else "-", side, problem.length, str(problem.truth)[:100], flush=True)
        harness.save_task(work, side, rows)
    answers = {side: harness.load_task(work, side) for side in sides}
    right = {side: np.array([r["recovered"] for r in rows]) for side, rows in answers.items()}
    others = [side for side in sides if side != "without"]
    report = {
        "problems": len(problems), "budgets": {side: asdict(budget) for side, budget in sides.items()},
        "recovered": {side: harness.interval(right[side]) for side in sides},
        "minus without": {side: harness.difference(right[side], right["without"]) for side in others},
        "won": {side: int(np.sum(right[side] & ~right["without"])) for side in others},
        "lost": {side: int(np.sum(right["without"] & ~right[side])) for side in others},
        "median seconds": {side: float(np.median([r["seconds"] for r in rows])) for side, rows in answers.items()},
        "each": [{"length": p.length, "formula": str(p.truth), **{side: answers[side][i] for side in sides}} for i, p in enumerate(problems)],
    }  # fmt: skip
    for side, row in report["recovered"].items():
        duel = "" if side == "without" else f", won {report['won'][side]}, lost {report['lost'][side]}"
        print(f"{side:8s} {row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of {row['n']}, median {report['median seconds'][side]:.1f} s{duel}")
    return harness.write("grafts", options, report, began)


if __name__ == "__main__":
    main()
