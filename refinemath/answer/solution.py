"""A formula with its numbers in float64: least squares, refinement and code length.  (Chapter 8)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import scipy.optimize

from refinemath.expression import TOKEN_CODE_LENGTH, Formula, combine

ROUNDING = 1e-24  # FVU in float64 under which nothing but rounding is left


@dataclass(frozen=True)
class Solution:
    """A formula with all its numbers: y ~ offset + sum_k coefficient_k term_k(x).

    `fvu`: what it leaves unexplained on the given points.  `number_code_length` and `nll`: nats to
    state its numbers and what it leaves over, NaN until `score_solution` works them out.
    """

    terms: tuple[Formula, ...]
    coefficients: tuple[float, ...]
    offset: float
    fvu: float
    number_code_length: float = math.nan
    nll: float = math.nan

    def formula(self) -> Formula:
        """One formula with the coefficients written in."""
        return combine(self.terms, self.coefficients, self.offset)

    @property
    def constants(self) -> np.ndarray:
        """The numbers inside the terms, from left to right."""
        return np.array([c for t in self.terms for c in t.constants()])

    @property
    def length(self) -> int:
        """Tokens of the skeleton, without the free coefficients."""
        return max(sum(len(t) for t in self.terms) + len(self.terms) - 1, 0)


def _columns(terms: Sequence[Formula], numbers: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """The terms' values (points, terms) with `numbers` in place of their constants; None where one
    is undefined or beyond 1e150.
    """
    left = iter(numbers)
    columns = (
        np.stack([t.evaluate(x, [next(left) for _ in t.constants()]) for t in terms], axis=1)
        if terms
        else np.zeros((x.shape[-1], 0))
    )
    return columns if np.all(np.abs(columns) <= 1e150) else None


def _linear(
    columns: np.ndarray, y: np.ndarray, *, intercept: bool
) -> tuple[np.ndarray, float, np.ndarray]:
    """Coefficients, offset and residual of the least-squares fit of y by the columns."""
    scale = np.maximum(np.max(np.abs(columns), axis=0, initial=0.0), 1e-300)
    design = columns / scale
    if intercept:
        design = np.concatenate([design, np.ones((len(y), 1))], axis=1)
    size = max(float(np.max(np.abs(y))), 1e-300)
    try:
        solved = (
            np.linalg.lstsq(design, y / size, rcond=1e-14)[0] * size
            if design.shape[1]
            else np.zeros(0)
        )
    except np.linalg.LinAlgError:  # the iteration for the singular values gave up
        return np.zeros(columns.shape[1]), 0.0, np.full(len(y), np.inf)
    residual = y - design @ solved if design.shape[1] else y
    with np.errstate(
        over="ignore"
    ):  # a coefficient beyond float64 belongs to a term that is 0 on the points
        coefficients = solved[: columns.shape[1]] / scale
    return (
        np.where(np.isfinite(coefficients), coefficients, 0.0),
        float(solved[-1]) if intercept else 0.0,
        residual,
    )


def linear_solution(
    terms: Sequence[Formula], x: np.ndarray, y: np.ndarray, *, intercept: bool = True
) -> Solution | None:
    """Least squares over the coefficients in float64; None where a term is undefined on the
    points.
    """
    return _solution(
        terms, np.array([c for t in terms for c in t.constants()]), x, y, intercept=intercept
    )


def _solution(
    terms: Sequence[Formula], numbers: np.ndarray, x: np.ndarray, y: np.ndarray, *, intercept: bool
) -> Solution | None:
    columns = _columns(terms, numbers, x)
    if columns is None:
        return None
    coefficients, offset, residual = _linear(columns, y, intercept=intercept)
    variance = float(np.sum((y - np.mean(y)) ** 2))
    fvu = float(np.sum(residual**2)) / max(variance, 1e-300)
    return Solution(_renumbered(terms, numbers), tuple(map(float, coefficients)), offset, fvu)


def refine_constants(
    terms: Sequence[Formula],
    x: np.ndarray,
    y: np.ndarray,
    *,
    frozen: frozenset[int] = frozenset(),
    intercept: bool = True,
) -> Solution | None:
    """All constants inside the terms, except the `frozen` ones, by SciPy's Levenberg-Marquardt in
    float64; coefficients projected out.
    """
    numbers = np.array([c for t in terms for c in t.constants()])
    free = [i for i in range(len(numbers)) if i not in frozen]
    first = _solution(terms, numbers, x, y, intercept=intercept)
    if first is None or not free or len(y) <= len(free):
        return first
    spread = float(np.std(y)) or 1.0

    def residual(theta: np.ndarray) -> np.ndarray:
        moved = numbers.copy()
        moved[free] = theta
        columns = _columns(terms, moved, x)
        return (
            np.full(len(y), 1e6)
            if columns is None
            else _linear(columns, y, intercept=intercept)[2] / spread
        )

    try:
        scale, tolerance = np.maximum(np.abs(numbers[free]), 1e-3), 1e-15
        found = scipy.optimize.least_squares(
            residual,
            numbers[free],
            method="lm",
            x_scale=scale,
            xtol=tolerance,
            ftol=tolerance,
            gtol=tolerance,
            max_nfev=40 * (len(free) + 1),
        )
    except (ValueError, np.linalg.LinAlgError):
        return first
    if not np.all(np.isfinite(found.x)):
        return first
    moved = numbers.copy()
    moved[free] = found.x
    second = _solution(terms, moved, x, y, intercept=intercept)
    return second if second is not None and second.fvu < first.fvu else first


def solution_values(solution: Solution, x: np.ndarray) -> np.ndarray:
    """The fitted values at x (variables, points), float64."""
    return solution.offset + sum(
        (a * t.evaluate(x) for a, t in zip(solution.coefficients, solution.terms, strict=True)),
        np.zeros(x.shape[-1]),
    )


def _renumbered(terms: Sequence[Formula], numbers: np.ndarray) -> tuple[Formula, ...]:
    following = iter(numbers)
    return tuple(t.with_constants(following) for t in terms)


def score_solution(solution: Solution, x: np.ndarray, y: np.ndarray) -> Solution:
    """The same solution with `number_code_length` and `nll`, both infinite where it has as many
    numbers as there are points.

    `nll` is asked of points predicted by a fit that has not seen them.  No fit is repeated: a
    point with leverage h pulls the curve towards itself, and without it its residual would be r /
    (1 - h), exactly so for coefficients and to first order for the numbers inside (Allen 1974).  A
    formula that bends to single points is found out by this: their leverage is near 1.

    `number_code_length` is what it costs to state the numbers.  A fraction p/q costs log(2 (1 +
    |p|) q), after Udrescu et al. (2020), with pi as a factor a token more.  Any number v can
    instead be given to the precision that the points warrant: steps of sqrt(12 / I), where I is its
    Fisher information. That costs log(2 |v| sqrt(I / 12)) + 1/2 (Wallace & Freeman 1987) and log(1
    + |log |v||) for its order of magnitude.  The cheaper of the two counts.  Chapter 8.
    """
    n, numbers, coefficients = len(y), solution.constants, np.array(solution.coefficients)
    nothing = replace(solution, number_code_length=math.inf, nll=math.inf)
    columns = _columns(solution.terms, numbers, x)
    if columns is None:
        return nothing
    fitted = columns @ coefficients
    tangents = np.zeros((n, len(numbers)))  # how the curve moves with each number inside
    for i, number in enumerate(numbers):
        moved, step = numbers.copy(), 1e-6 * max(abs(number), 1e-3)
        moved[i] += step
        shifted = _columns(solution.terms, moved, x)
        tangents[:, i] = 0.0 if shifted is None else (shifted @ coefficients - fitted) / step
    design = np.concatenate([tangents, columns, np.ones((n, 1))], axis=1)
    stated = np.array([*numbers, *coefficients, solution.offset])
    there = stated != 0.0
    there[len(numbers) : -1] &= coefficients != 1.0  # a factor 1 is no number
    design, stated = design[:, there], stated[there]
    if (
        design.shape[1] >= n
        or not np.all(np.abs(design) <= 1e150)
        or not np.all(np.isfinite(stated))
    ):
        return nothing
    size = np.linalg.norm(design, axis=0)
    try:
        left, singular, _ = np.linalg.svd(design / np.maximum(size, 1e-300), full_matrices=False)
    except np.linalg.LinAlgError:
        return nothing
    leverage = np.sum(left[:, singular > 1e-10] ** 2, axis=1)
    spread = max(float(np.std(y)), 1e-300)
    scale, nll = heavy_tailed(
        (y - solution.offset - fitted) / spread / np.maximum(1 - leverage, 1e-9)
    )
    steps = np.maximum(
        np.abs(stated) * size / (math.sqrt(12.0) * scale * spread), 1.0
    )  # by which the number is away from 0
    rounded = 0.5 + np.log(2 * steps) + np.log1p(np.abs(np.log(np.abs(stated))))
    number_code_length = float(
        sum(
            min(fraction_code_length(v), r)
            for v, r in zip(stated.tolist(), rounded.tolist(), strict=True)
        )
    )
    return replace(solution, number_code_length=number_code_length, nll=nll)


def heavy_tailed(
    residual: np.ndarray, freedom: float = 4.0, rounds: int = 20
) -> tuple[float, float]:
    """The scale s of Student's t that suits residuals (in units of the spread of y) best, and -log
    likelihood without its constants.

    With four degrees of freedom one reading that is far off does not decide between two formulas,
    as it would under a normal distribution (Lange, Little & Taylor 1989).  By expectation and
    maximisation: a residual weighs (f + 1) / (f + r^2 / s^2).  Rounding is the least scale.
    """
    square = residual**2 + ROUNDING
    scale = float(np.median(square))
    for _ in range(rounds):
        scale = float(np.mean((freedom + 1) * square / (freedom + square / scale)))
    return math.sqrt(scale), float(
        0.5 * len(square) * math.log(scale)
        + 0.5 * (freedom + 1) * np.sum(np.log1p(square / (freedom * scale)))
    )


def fraction_code_length(v: float) -> float:
    """Nats to state v as p/q, log(2 (1 + |p|) q), or as that times pi; infinite where v is neither
    with a q of at most 1000, or 12 beside pi.
    """
    price = math.inf
    for unit, most, extra in ((1.0, 1000, 0.0), (math.pi, 12, float(TOKEN_CODE_LENGTH[1]))):
        fraction = Fraction(v / unit).limit_denominator(most)
        if fraction and abs(float(fraction) * unit - v) <= 1e-9 * abs(v):
            price = min(
                price, math.log(2 * (1 + abs(fraction.numerator)) * fraction.denominator) + extra
            )
    return price


def code_length(solution: Solution) -> float:
    """Nats to state an appraised formula and what it leaves over: the score that picks a formula
    from the front.  Lower is better.

    The tokens cost their `Formula.code_length`, the numbers their `number_code_length`, what is
    left over its `nll`.
    """
    return solution.formula().code_length() + solution.number_code_length + solution.nll


EXACT = 1e-23  # FVU in float64 under which a fit counts as exact
