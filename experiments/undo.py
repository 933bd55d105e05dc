"""Undo: does it pay that later searches look at the data with one operation undone, at the same
clock?

Formulas are drawn as the held-out ones were, with another seed, and none of their skeletons is held
out; the shipped network may have met some in training, which is the same for both sides.  The sides
take turns, problem by problem.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments import harness
from experiments.lists import make_heldout
from refinemath import RefineMath, SearchConfig
from refinemath.evaluation import heldout_problems, suite_problems


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Both sides on every problem; what was finished before is not run again."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--per-length", type=int, default=20, help="formulas of each length")
    parser.add_argument("--shortest", type=int, default=7, help="length of the shortest")
    parser.add_argument("--time-budget", type=float, default=8.0, help="seconds a problem")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    budget = SearchConfig()
    if options.quick:
        budget, options.per_length, options.shortest = harness.QUICK, 1, 12
    work = harness.folder(options, "undo")
    path = work / f"formulas-{options.seed}-{options.per_length}.csv"
    if not path.exists():
        make_heldout(path, seed=779 + options.seed, per_length=options.per_length)
    held_out = {
        p.truth.skeleton()
        for p in (
            *heldout_problems(harness.DATA / "heldout.csv"),
            *suite_problems(harness.DATA / "suites.csv"),
        )
        if p.truth
    }
    problems = [
        p
        for p in heldout_problems(path)
        if p.length >= options.shortest and p.truth and p.truth.skeleton() not in held_out
    ]
    models = {"with": RefineMath(budget=budget), "without": RefineMath(budget=budget, undo=False)}
    sides = {side: (model, options.time_budget) for side, model in models.items()}
    each, right = harness.side_by_side(sides, problems, work, seed=options.seed)
    report = {
        "problems": len(problems),
        "budget": asdict(budget),
        **harness.compared(right),
        "settled": {
            side: harness.interval(np.array([row[side]["settled"] for row in each]))
            for side in sides
        },
        "median seconds": {
            side: float(np.median([row[side]["seconds"] for row in each])) for side in sides
        },
        "each": each,
    }
    for side, row in report["recovered"].items():
        print(
            f"{side:8s} {row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of {row['n']}, "
            f"median {report['median seconds'][side]:.1f} s"
        )
    print(f"won {report['won']}, lost {report['lost']}")
    return harness.write("undo", options, report, began)


if __name__ == "__main__":
    main()
