"""Measured data of known form: is the family found, and how far off is the answer beyond the data?

15 families of curves, 6 to 60 points, noise of 1 to 5 % of the spread, any units;
`--proposers families` answers with the familiar families alone, without a compiled search.
The answer is right where it is of the true form or can be the true curve with at most one number
more.  Its error on the half range beyond the points is compared with that of the true form fitted
to the same points.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np

from experiments.curves import TRUTHS, Made, make
from experiments.runner import Experiment
from refinemath import RefineMath, Result
from refinemath.answer.solution import fraction_unexplained, refine_constants
from refinemath.proposers.registry import DEFAULT

SAME = 1e-9  # FVU of the answer fitted to the true curve under which it can be that curve


def judge(made: Made, result: Result) -> dict[str, Any]:
    """Whether the answer is of the true form or can be the true curve, and its error beyond the
    points in units of that of the true form.
    """
    x, ahead = (np.asarray(v)[None] for v in (np.concatenate([made.x, made.beyond]), made.beyond))
    curve = np.concatenate([made.curve, made.curve_beyond])
    own = refine_constants([made.term], made.x[None], made.y, intercept=made.offset)
    again = refine_constants([result.formula], x, curve, intercept=False)
    answer = result.formula.evaluate(x)
    member = refine_constants([made.term], x, answer, intercept=made.offset)
    free = [v for v in result.formula.constants() if v != 1.0]
    simple = len(free) <= len(TRUTHS[made.name].ranges) + 2 + made.offset
    covers = again is not None and again.fvu < SAME and simple
    assert own is not None
    errors = [f.evaluate(ahead) - made.curve_beyond for f in (result.formula, own.formula())]
    error, least = (fraction_unexplained(e, curve) for e in errors)
    floor = 0.01 * fraction_unexplained(made.y - made.curve, curve)
    return {
        "right": bool(covers or (member is not None and member.fvu < SAME)),
        "ratio": float(np.sqrt(error / max(least, floor))),
    }


def tasks(options: Namespace) -> list[str]:
    """A task for each family."""
    return list(TRUTHS)


def task(options: Namespace, name: str) -> list[dict[str, Any]]:
    """All sets of a family."""
    model = RefineMath(proposers=DEFAULT if options.proposers == "all" else [options.proposers])
    found = []
    for seed in range(options.sets):
        made = make(name, seed)
        result = model.solve(made.x, made.y, time_budget=options.clock)
        found.append({**judge(made, result), "points": len(made.x), "answer": str(result)})
    return found


def report(options: Namespace, done: dict[str, Any]) -> dict[str, Any]:
    """Shares of right answers and of errors within three times that of the true form."""
    every = [entry for entries in done.values() for entry in entries]
    return {
        "right": float(np.mean([e["right"] for e in every])),
        "within_three": float(np.mean([e["ratio"] <= 3 for e in every])),
        "families": {n: sum(e["right"] for e in entries) for n, entries in done.items()},
        "answers": done,
    }


EXPERIMENT = Experiment(
    "familiar",
    __doc__,
    tasks,
    task,
    report,
    shared=("clock",),
    options={"sets": 10, "proposers": "all"},
    quick={"sets": 1, "proposers": "families"},  # without a compiled search
)
