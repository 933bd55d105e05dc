"""Familiar families of curves, fitted on the host in float64.  (Chapter 8)"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refinemath.answer.solution import (
    TINY,
    Solution,
    least_squares,
    linear_solution,
    refine_constants,
    term_values,
)
from refinemath.expression import Formula
from refinemath.families import FAMILIES, Curve, Family, fixed_numbers, usual_exponents, write

POINTS = 256  # starting values are compared on no more points than this
SPIKE = 0.9  # share of a term's variance at one point from which on it serves this point alone


@dataclass(frozen=True)
class Families:
    """Every family of `refinemath.families` that the data allow, its numbers fitted from the
    `refine` best of its starting values.
    """

    refine: int = 2
    on_host: ClassVar[bool] = True

    def solutions(self, x: np.ndarray, y: np.ndarray) -> list[Solution]:
        """Fitted formulas for y (points,) at x (variables, points), in the units of both; none for
        several variables.
        """
        if len(x) != 1:
            return []
        order = np.argsort(x[0], kind="stable")
        curve = Curve(x[0][order], y[order])
        allowed = (f for f in FAMILIES if f.needs(curve.x))
        found = (fit_family(family, curve, self.refine) for family in allowed)
        return [s for s in found if s is not None]


def fit_family(family: Family, curve: Curve, refine: int = 2) -> Solution | None:
    """The best fit of one family from the `refine` best of its starts; None where none is defined
    on all points, an exponent is larger than people fit, or a term serves a single point.
    """
    reference, x = curve.reference, curve.x[None]
    fixed = fixed_numbers(family, reference)
    few = slice(None) if "sin" in family.form else slice(None, None, 1 + len(curve.x) // POINTS)
    starts = [write(family, numbers, reference) for numbers in family.starts(curve)]
    starts.sort(key=lambda terms: _left_over(terms, curve, few, offset=family.offset))
    best: Solution | None = None
    for terms in starts[:refine]:
        found = refine_constants(terms, x, curve.y, frozen=fixed, intercept=family.offset)
        if found is not None and _usual(found, x) and (best is None or found.fvu < best.fvu):
            best = found
    if best is None:
        return None
    plain = tuple(map(plain_numbers, best.terms, best.coefficients))
    return linear_solution(plain, x, curve.y, intercept=family.offset)


def _left_over(terms: list[Formula], curve: Curve, few: slice, *, offset: bool) -> float:
    """Squared residuals of the best coefficients; infinite where a term is undefined."""
    numbers = np.array([c for t in terms for c in t.constants()])
    columns = term_values(terms, numbers, curve.x[None, few])
    if columns is None:
        return math.inf
    return float(np.sum(least_squares(columns, curve.y[few], intercept=offset)[2] ** 2))


def _usual(solution: Solution, x: np.ndarray) -> bool:
    """Whether the exponents are such as people fit, and no term beside others is a spike."""
    columns = term_values(solution.terms, solution.constants, x)
    if columns is None or not usual_exponents(solution.terms):
        return False
    share = (columns - np.mean(columns, axis=0)) ** 2
    share = share / np.maximum(np.sum(share, axis=0), TINY)
    return len(solution.terms) == 1 or float(np.max(share)) < SPIKE


def plain_numbers(term: Formula, coefficient: float) -> Formula:
    """The same term up to its sign, with the simplest of equivalent numbers: frequencies, widths
    and the factor of a wave are positive, phases from -pi to pi.
    """
    parts = list(term.parts)
    for i in range(len(parts) - 5):
        match parts[i : i + 6]:
            case ["sin", "add", "mul", float(k), "x1", float(phase)]:
                phase = phase if k > 0 else math.pi - phase
                phase = phase if coefficient > 0 else phase + math.pi
                parts[i + 3], parts[i + 5] = abs(k), math.remainder(phase, 2 * math.pi)
            case ["square", "div", "sub", "x1", float(), float(width)]:
                parts[i + 5] = abs(width)
    return Formula(tuple(parts))
