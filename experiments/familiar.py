"""Measured data of known form: is the family found, and how far off is the answer beyond the data?

15 families of curves, 6 to 60 points, noise of 1 to 5 % of the spread, any units;
`--proposers families` answers with the familiar families alone, without a compiled search.
The answer is right where it is of the true form or can be the true curve with at most one number
more.  Its error on the half range beyond the points is compared with that of the true form fitted
to the same points.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any, NamedTuple

import numpy as np

from experiments.runner import Experiment
from refinemath import RefineMath, Result, parse
from refinemath.answer.solution import fraction_unexplained, refine_constants
from refinemath.proposers.registry import DEFAULT

POINTS, NOISE = (6, 60), (0.01, 0.05)
SAME = 1e-9  # FVU of the answer fitted to the true curve under which it can be that curve


class Truth(NamedTuple):
    """A form over X from `low` to 1; each {} is a number from its range."""

    form: str
    ranges: tuple[tuple[float, float], ...]
    low: float = 0.0
    fewest: int = 6


TRUTHS = {
    "line": Truth("X", ()),
    "parabola": Truth("(X - {})**2", ((0.2, 0.8),)),
    "exponential": Truth("exp({}*X)", ((-5, -1.5),)),
    "saturation": Truth("1 - exp({}*X)", ((-5, -1.5),)),
    "power law": Truth("X**{}", ((1.3, 3),), 0.05),
    "logarithm": Truth("log(X)", (), 0.05),
    "logistic": Truth("inv(1 + exp({}*(X - {})))", ((-15, -7), (0.35, 0.65))),
    "dose-response": Truth("inv(1 + exp({}*(X - {})))", ((7, 15), (0.35, 0.65)), fewest=8),
    "Michaelis-Menten": Truth("X/(X + {})", ((0.1, 0.6),)),
    "Hill": Truth("inv(1 + ({}/X)**{})", ((0.3, 0.6), (1.8, 4)), fewest=8),
    "Gaussian": Truth("exp(-((X - {})/{})**2)", ((0.3, 0.7), (0.1, 0.2)), fewest=12),
    "Lorentzian": Truth("inv(1 + ((X - {})/{})**2)", ((0.3, 0.7), (0.06, 0.15)), fewest=12),
    "sinusoid": Truth("sin({}*X + {})", ((6, 20), (0, 6.28)), fewest=12),
    "damped wave": Truth("exp({}*X)*sin({}*X + {})", ((-4, -1), (12, 25), (0, 6.28)), fewest=16),
    "Arrhenius": Truth("exp({}/X)", ((-12, -4),), 0.7),
}
NO_OFFSET = ("saturation", "power law", "logistic", "Michaelis-Menten", "Hill", "Arrhenius")


class Made(NamedTuple):
    """A made data set: points, the true curve there and beyond, and the true term."""

    name: str
    x: np.ndarray
    y: np.ndarray
    curve: np.ndarray
    beyond: np.ndarray
    curve_beyond: np.ndarray
    term: Any
    offset: bool


def make(name: str, seed: int) -> Made:
    """The data set of a family with this seed."""
    truth, rng = TRUTHS[name], np.random.default_rng([seed, *name.encode()])
    few = max(POINTS[0], truth.fewest)
    points = int(np.exp(rng.uniform(np.log(few), np.log(POINTS[1] + 1))))
    unit = 10.0 ** rng.uniform(-3, 3)
    u, later = np.linspace(truth.low, 1, points), np.linspace(1, 1 + (1 - truth.low) / 2, 30)
    inner = [f"({rng.uniform(*r)!r})" for r in truth.ranges]
    term = parse(truth.form.format(*inner).replace("X", f"(x/{unit!r})"))
    size, base = 10.0 ** rng.uniform(-3, 3) * rng.choice([1, -1]), rng.uniform(-1, 2)
    base = 0.0 if name in NO_OFFSET else base
    curve, ahead = (size * (term.evaluate(v[None] * unit) + base) for v in (u, later))
    noise = rng.uniform(*NOISE) * float(np.std(curve)) * rng.normal(size=points)
    return Made(name, u * unit, curve + noise, curve, later * unit, ahead, term, base != 0.0)


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
