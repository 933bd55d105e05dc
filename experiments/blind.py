"""Blind candidates by the million: what do they recover when the clock hardly counts, and what does
the machine recover in its usual seconds?

The blind side has neither network nor edits nor pairs nor operations undone; its formulas come from
the training prior, and it goes on, search after search, until one is exact or its long clock has
run out.  Short formulas and the fit of constants are the same on both sides.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from experiments import harness
from refinemath import RefineMath, SearchConfig
from refinemath.evaluation import heldout_problems, null_model

NEVER = 10**6  # searches without a better formula before giving up


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Both sides on every problem; what was finished before is not run again."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--every", type=int, default=12, help="each N-th held-out formula")
    parser.add_argument(
        "--time-budget", type=float, default=8.0, help="seconds a problem for the machine"
    )
    parser.add_argument(
        "--long", type=float, default=60.0, help="seconds a problem for blind draws"
    )
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    budget = SearchConfig()
    if options.quick:
        budget, options.every, options.time_budget, options.long = harness.QUICK, 150, 0.2, 0.5
    machine = RefineMath(budget=budget)
    blind = null_model(
        RefineMath(budget=replace(budget, patience=NEVER), undo=False),
        per_length=200 if options.quick else 60_000,
    )
    sides = {"machine": (machine, options.time_budget), "blind": (blind, options.long)}
    problems = heldout_problems(harness.DATA / "heldout.csv", every=options.every)
    each, right = harness.side_by_side(
        sides, problems, harness.folder(options, "blind"), seed=options.seed
    )
    searches = np.array([row["blind"]["searches"] for row in each])
    missed = searches[~right["blind"]]
    most = int(missed.min()) if len(missed) else int(searches.max())
    levels = sorted({n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if n < most} | {most})
    both = harness.compared(right)
    report = {
        "problems": len(problems),
        "candidates of a search": budget.thoughts * budget.samples * budget.search_steps,
        "machine": both.pop("recovered")["machine"],
        "machine seconds": harness.interval([row["machine"]["seconds"] for row in each], np.median),
        "blind": [
            {"searches": n, "recovered": harness.interval(right["blind"] & (searches <= n))}
            for n in levels
        ],
        **both,
        "each": each,
    }
    for row in report["blind"]:
        r = row["recovered"]
        print(
            f"{row['searches']:4d} blind searches: {r['value']:.0%} [{r['low']:.0%}, "
            f"{r['high']:.0%}] of {r['n']}"
        )
    print(
        f"the machine: {report['machine']['value']:.0%}; won {report['won']}, lost {report['lost']}"
    )
    return harness.write("blind", options, report, began)


if __name__ == "__main__":
    main()
