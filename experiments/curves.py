"""Made measurements: points of 15 families of curves with noise, in any units."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refinemath import parse

POINTS, NOISE = (6, 60), (0.01, 0.05)


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
