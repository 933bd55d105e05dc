"""The last fit where a user says how the errors are: weights, a robust loss, through the origin.
(Chapter 10)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from refinemath.answer.rounding import simple_neighbours
from refinemath.answer.solution import (
    TINY,
    Solution,
    code_length,
    fraction_unexplained,
    score_solution,
)
from refinemath.answer.uncertainty import determined, jacobian, least_squares_numbers, robust_scale
from refinemath.expression import VARIABLES, Formula

LOSSES = ("linear", "soft_l1")
DOWN_WEIGHTED = 1 / 3  # weight under which a point of a robust fit is named


@dataclass(frozen=True, eq=False)
class Errors:
    """What is known of the errors of y, and through where the curve goes.

    `sigma`: (points,) their sizes, of which only the ratios count; None where they are equal.
    `loss`: "linear" for least squares, or "soft_l1", rho(z) = 2 (sqrt(1 + z) - 1) of z = (residual
    / scale)^2, which grows like the residual itself where that is large.
    """

    sigma: np.ndarray | None = None
    loss: str = "linear"
    through_origin: bool = False

    @property
    def plain(self) -> bool:
        """Whether this is least squares with equal errors and no condition."""
        return self.sigma is None and self.loss == "linear" and not self.through_origin


@dataclass(frozen=True, eq=False)
class Points:
    """The points of the last fit.  The origin, where it is asked for, is one more point whose error
    is a millionth of the others'.
    """

    x: np.ndarray  # (variables, points)
    y: np.ndarray  # (points,)
    sigma: np.ndarray  # (points,)
    loss: str
    origin: bool

    @staticmethod
    def of(x: np.ndarray, y: np.ndarray, errors: Errors) -> Points:
        """From x (variables, points), y (points,)."""
        sigma = np.ones(len(y)) if errors.sigma is None else errors.sigma
        if errors.through_origin:
            x = np.concatenate([x, np.zeros((len(x), 1))], axis=1)
            y, sigma = np.append(y, 0.0), np.append(sigma, 1e-6 * np.min(sigma))
        return Points(x, y, sigma, errors.loss, errors.through_origin)


def choose_refitted(
    forms: Iterable[Formula],
    x: np.ndarray,
    y: np.ndarray,
    errors: Errors,
    allowed: Callable[[Formula], bool],
    *,
    most: int = 6,
) -> list[Solution]:
    """The formulas with their numbers fitted as `errors` says, the `most` best of them rounded, the
    shortest code first.  The straight line (plane) is always among them.

    Each solution is one term without a coefficient.  What is undefined, or does not go through the
    origin although it should, is left out.
    """
    points = Points.of(x, y, errors)
    line: tuple[str | float, ...] = () if errors.through_origin else (float(np.mean(y)) or 1.0,)
    for name in VARIABLES[: len(x)]:
        line = ("add", "mul", 1.0, name, *line) if line else ("mul", 1.0, name)
    fitted = [refit_formula(f, points) for f in dict.fromkeys([*forms, Formula(line)])]
    scored = [scored_formula(f, points) for f in fitted if f is not None]
    best = sorted((s for s in scored if np.isfinite(code_length(s))), key=code_length)[:most]
    rounded = [round_refitted(s, points) for s in best]
    return sorted((s for s in rounded if allowed(s.terms[0])), key=code_length)


def refit_formula(
    formula: Formula, points: Points, held: frozenset[int] = frozenset()
) -> Formula | None:
    """The formula with all numbers but the `held` ones fitted; None where it is undefined."""
    numbers = np.array(formula.constants())
    start = formula.evaluate(points.x)
    if not np.all(np.isfinite(start)):
        return None
    slopes = jacobian(formula, points.x, numbers) / points.sigma[:, None]
    free = [i for i in determined(slopes, numbers) if i not in held]
    if len(free) >= len(points.y):
        return None
    found = least_squares_numbers(formula, points.x, points.y, points.sigma, free, points.loss)
    fitted = formula.with_constants(found)
    return _through_origin(fitted) if points.origin and not held else fitted


def _through_origin(formula: Formula) -> Formula:
    """The formula with what it leaves at the origin, which is rounding, taken from its offset."""
    left = formula.evaluate(np.zeros((len(VARIABLES), 1)))[0]
    offset = formula.parts[-1]
    if left == 0 or isinstance(offset, str):
        return formula
    moved = Formula((*formula.parts[:-1], offset - float(left)))
    better = abs(moved.evaluate(np.zeros((len(VARIABLES), 1)))[0]) < abs(left)
    return moved if better else formula


def scored_formula(formula: Formula, points: Points) -> Solution:
    """The formula as a solution of one term, scored with the residuals over sigma."""
    own = Solution((formula,), (1.0,), 0.0, np.nan)
    count = len(points.y) - points.origin
    x, y, sigma = points.x[:, :count], points.y[:count], points.sigma[:count]
    if points.origin:
        at_origin = abs(formula.evaluate(points.x[:, count:])[0])
        if not at_origin <= 1e-4 * float(np.max(np.abs(y))):
            return replace(own, number_code_length=np.inf, nll=np.inf)
    return score_solution(own, x, y, sigma)


def round_refitted(best: Solution, points: Points) -> Solution:
    """Numbers replaced by simple ones near them, the largest first, as long as the description gets
    no longer; the others are fitted again each time.
    """
    held: frozenset[int] = frozenset()
    numbers = best.terms[0].constants()
    for i in sorted(range(len(numbers)), key=lambda i: -abs(numbers[i])):
        for number in simple_neighbours(best.terms[0].constants()[i]):
            trial = list(best.terms[0].constants())
            trial[i] = number
            formula = best.terms[0].with_constants(trial)
            fitted = refit_formula(formula, points, held | {i})
            scored = None if fitted is None else scored_formula(fitted, points)
            if scored is not None and code_length(scored) <= code_length(best):
                best, held = scored, held | {i}
                break
    return best


def weighted_fvu(formula: Formula, x: np.ndarray, y: np.ndarray, errors: Errors) -> float:
    """What the formula leaves unexplained: squares are divided by sigma^2, and points that a robust
    loss lets count for less than a third are left out.  Infinite where it is undefined.
    """
    residual = y - formula.evaluate(x)
    if not np.all(np.isfinite(residual)):
        return math.inf
    if errors.loss == "linear" and errors.sigma is None:
        return fraction_unexplained(residual, y)
    sigma = np.ones(len(y)) if errors.sigma is None else errors.sigma / np.min(errors.sigma)
    weight = (point_weights(formula, x, y, errors) >= DOWN_WEIGHTED) / sigma**2
    spread = np.sum(weight * (y - np.average(y, weights=weight)) ** 2)
    return float(np.sum(weight * residual**2)) / max(float(spread), TINY)


def point_weights(formula: Formula, x: np.ndarray, y: np.ndarray, errors: Errors) -> np.ndarray:
    """The weight (points,) of each point in the fit: 1, or 1 / sqrt(1 + (residual / scale)^2) under
    a robust loss.
    """
    if errors.loss == "linear":
        return np.ones(len(y))
    sigma = np.ones(len(y)) if errors.sigma is None else errors.sigma
    residual = (y - formula.evaluate(x)) / sigma
    return 1 / np.sqrt(1 + (residual / robust_scale(residual)) ** 2)
