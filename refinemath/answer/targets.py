"""Transforms of the target, such as log y where y is the exponential of something simple, and the
way back.  (Chapter 8)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refinemath.answer.solution import Solution, refine_constants
from refinemath.answer.symbolic import REFUSED, same_fit, sympy_terms
from refinemath.expression import VARIABLES, Formula, combine
from refinemath.problem import Problem, prepare


def _one_sign(y: np.ndarray, x: np.ndarray) -> bool:
    return bool(np.all(y > 0) or np.all(y < 0))


def _away_from_zero(y: np.ndarray, x: np.ndarray) -> bool:
    return bool(np.min(np.abs(y)) > 1e-4 * np.max(np.abs(y)))


def _usable(x: np.ndarray) -> np.ndarray:
    """The points at which x may be divided by."""
    return np.abs(x) > 1e-3 * np.max(np.abs(x))


class Rule(NamedTuple):
    """A transform t of y, or of y and a variable x, and the operator that leads back from t."""

    back: str
    allowed: Callable[[np.ndarray, np.ndarray], bool]
    forward: Callable[[np.ndarray, np.ndarray], np.ndarray]


RULES = {  # in the order in which searches look at them
    "log": Rule("exp", _one_sign, lambda y, x: np.log(np.abs(y))),
    "divide": Rule("mul", lambda y, x: float(np.mean(_usable(x))) > 0.8, lambda y, x: y / x),
    "inverse": Rule("inv", _away_from_zero, lambda y, x: 1.0 / y),
    "sqrt": Rule("square", _one_sign, lambda y, x: np.sqrt(np.abs(y))),
    "square": Rule("sqrt", _one_sign, lambda y, x: y * y),
    "multiply": Rule("div", lambda y, x: True, lambda y, x: y * x),
    "exp": Rule("log", lambda y, x: float(np.max(np.abs(y))) < 20.0, lambda y, x: np.exp(y)),
}
OF_VARIABLE = ("divide", "multiply")


@dataclass(frozen=True)
class TargetTransform:
    """What a search sees in place of y: t = log |y|, y / x_j, 1 / y, sqrt |y|, y^2, y x_j or e^y; y
    itself for the name "identity".  Chapter 8.
    """

    name: str
    variable: int | None = None  # the j of "divide" and "multiply"

    def forward(self, problem: Problem) -> Problem | None:
        """The points with t in place of y.

        None where y does not allow it: numbers of both signs under a root or a logarithm, a zero in
        a denominator, numbers beyond float64, or a t that is constant.  Where x_j is 0 at a few
        points, y / x_j leaves them out.
        """
        if self.name == "identity":
            return problem
        rule, y, x = RULES[self.name], problem.y, problem.u[self.variable or 0]
        if not rule.allowed(y, x):
            return None
        kept = _usable(x) if self.name == "divide" else np.full(len(y), True)
        with np.errstate(over="ignore"):
            t = rule.forward(y[kept], x[kept])
        if not np.all(np.abs(t) < 1e100) or np.ptp(t) <= 1e-9 * np.max(np.abs(t)):
            return None
        return prepare(problem.x.T[kept], t, problem.names)

    def inverse(self, solution: Solution, problem: Problem) -> Solution | None:
        """A formula for t made one for the problem's y, all its numbers fitted again, with a factor
        and an offset; None where it is undefined.
        """
        if self.name == "identity":
            return solution
        if not solution.terms:
            return None
        back = RULES[self.name].back
        if self.name in OF_VARIABLE:
            v = VARIABLES[self.variable or 0]
            terms = [Formula((back, *t.parts, v)) for t in solution.terms]
            rest = Formula((v,)) if back == "mul" else Formula(("inv", v))
            return refine_constants([*terms, rest], problem.u, problem.y)
        inner = Formula((back, *_inner(solution, back).parts))
        found = refine_constants([inner], problem.u, problem.y)
        return None if found is None else _as_sympy_writes_it(found, problem)


def _inner(solution: Solution, back: str) -> Formula:
    """The formula for t as the operand of an operator, with the factor taken out that can stand in
    front of the operator as well.
    """
    first = solution.coefficients[0]
    scale = {"exp": 1.0, "sqrt": abs(first), "log": abs(first)}.get(back, first) or 1.0
    rounding = 1e-12 * max(map(abs, solution.coefficients))
    there = back != "exp" and abs(solution.offset) >= rounding
    offset = solution.offset / scale if there else 0.0
    return combine(solution.terms, [a / scale for a in solution.coefficients], offset)


def _as_sympy_writes_it(found: Solution, problem: Problem) -> Solution:
    """The exponential of a sum of logarithms is a product, which is defined where the logarithms
    are not.
    """
    try:
        terms = sympy_terms(found.formula().sympy())
        plain = refine_constants(terms, problem.u, problem.y)
    except REFUSED:
        return found
    return plain if plain is not None and plain.terms and same_fit(plain, found) else found


IDENTITY = TargetTransform("identity")


def target_transforms(variables: int) -> tuple[TargetTransform, ...]:
    """All transforms for so many variables, in the order in which searches use them."""
    return tuple(
        TargetTransform(name, variable)
        for name in RULES
        for variable in (range(variables) if name in OF_VARIABLE else (None,))
    )
