"""A formula with its numbers in float64: least squares, refinement and code length.  (Chapter 8)"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.optimize

from refinemath.answer.codes import TINY, fraction_code_length, left_out_code, number_code_lengths
from refinemath.expression import Formula, combine

EXACT = 1e-23  # FVU in float64 under which a fit counts as exact
LARGEST = 1e150  # values beyond this cannot be squared


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

    def skeleton(self) -> tuple[tuple[str, ...], ...]:
        """The terms without their numbers, in alphabetical order."""
        return tuple(sorted(t.skeleton() for t in self.terms))


def fraction_unexplained(residual: np.ndarray, y: np.ndarray) -> float:
    """FVU: the squared residuals over the squared distances of y from its mean."""
    return float(np.sum(residual**2)) / max(float(np.sum((y - np.mean(y)) ** 2)), TINY)


def evaluated_fvu(formula: Formula, x: np.ndarray, y: np.ndarray) -> float:
    """FVU of a formula at x (variables, points), y (points,); infinite where it is undefined."""
    residual = y - formula.evaluate(x)
    return fraction_unexplained(residual, y) if np.all(np.abs(residual) <= LARGEST) else math.inf


def term_values(terms: Sequence[Formula], numbers: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """The terms' values (points, terms) at x (variables, points) with `numbers` in place of their
    constants; None where one is undefined or beyond 1e150.
    """
    left = iter(numbers)
    columns = [t.evaluate(x, [next(left) for _ in t.constants()]) for t in terms]
    values = np.stack(columns, axis=1) if terms else np.zeros((x.shape[-1], 0))
    return values if np.all(np.abs(values) <= LARGEST) else None


def solution_values(solution: Solution, x: np.ndarray) -> np.ndarray:
    """The fitted values (points,) at x (variables, points), float64."""
    pairs = zip(solution.coefficients, solution.terms, strict=True)
    return solution.offset + sum((a * t.evaluate(x) for a, t in pairs), np.zeros(x.shape[-1]))


def least_squares(
    columns: np.ndarray, y: np.ndarray, *, intercept: bool
) -> tuple[np.ndarray, float, np.ndarray]:
    """Coefficients, offset and residual of the least-squares fit of y by (points, terms).

    The residual is that of the numbers returned.  A coefficient beyond 1e150, of a term that is
    next to 0 on the points, is no fit: the residual is infinite.
    """
    scale = np.maximum(np.max(np.abs(columns), axis=0, initial=0.0), TINY)
    design = columns / scale
    if intercept:
        design = np.concatenate([design, np.ones((len(y), 1))], axis=1)
    if not design.shape[1]:
        return np.zeros(0), 0.0, y
    size = max(float(np.max(np.abs(y))), TINY)
    try:
        solved = np.linalg.lstsq(design, y / size, rcond=1e-14)[0] * size
    except np.linalg.LinAlgError:  # the iteration for the singular values gave up
        return np.zeros(columns.shape[1]), 0.0, np.full(len(y), np.inf)
    with np.errstate(over="ignore"):
        coefficients = solved[: columns.shape[1]] / scale
    offset = float(solved[-1]) if intercept else 0.0
    if not np.all(np.abs(coefficients) <= LARGEST):
        return np.zeros(columns.shape[1]), 0.0, np.full(len(y), np.inf)
    return coefficients, offset, y - offset - columns @ coefficients


def linear_solution(
    terms: Sequence[Formula],
    x: np.ndarray,
    y: np.ndarray,
    *,
    numbers: np.ndarray | None = None,
    intercept: bool = True,
) -> Solution | None:
    """Least squares over the coefficients in float64, with `numbers` in place of the terms'
    constants; None where a term is undefined on the points, or so small that no coefficient fits.
    """
    if numbers is None:
        numbers = np.array([c for t in terms for c in t.constants()])
    columns = term_values(terms, numbers, x)
    if columns is None:
        return None
    coefficients, offset, residual = least_squares(columns, y, intercept=intercept)
    if not np.all(np.isfinite(residual)):
        return None
    return Solution(
        with_numbers(terms, numbers),
        tuple(map(float, coefficients)),
        offset,
        fraction_unexplained(residual, y),
    )


def with_numbers(terms: Sequence[Formula], numbers: Iterable[float]) -> tuple[Formula, ...]:
    """The terms with other numbers inside, from left to right."""
    following = iter(numbers)
    return tuple(t.with_constants(following) for t in terms)


def refine_constants(
    terms: Sequence[Formula],
    x: np.ndarray,
    y: np.ndarray,
    *,
    frozen: frozenset[int] = frozenset(),
    intercept: bool = True,
) -> Solution | None:
    """All constants inside the terms, except the `frozen` ones, by SciPy's Levenberg-Marquardt in
    float64; coefficients projected out.  None where a term is undefined on the points.
    """
    numbers = np.array([c for t in terms for c in t.constants()])
    free = [i for i in range(len(numbers)) if i not in frozen]
    first = linear_solution(terms, x, y, intercept=intercept)
    if first is None or not free or len(y) <= len(free):
        return first
    spread = float(np.std(y)) or 1.0

    def moved(theta: np.ndarray) -> np.ndarray:
        new = numbers.copy()
        new[free] = theta
        return new

    def residual(theta: np.ndarray) -> np.ndarray:
        columns = term_values(terms, moved(theta), x)
        if columns is None:
            return np.full(len(y), 1e6)
        left = least_squares(columns, y, intercept=intercept)[2] / spread
        return left if np.all(np.isfinite(left)) else np.full(len(y), 1e6)

    try:
        found = scipy.optimize.least_squares(
            residual,
            numbers[free],
            method="lm",
            x_scale=np.maximum(np.abs(numbers[free]), 1e-3),
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
            max_nfev=40 * (len(free) + 1),
        )
    except (ValueError, np.linalg.LinAlgError):
        return first
    if not np.all(np.isfinite(found.x)):
        return first
    second = linear_solution(terms, x, y, numbers=moved(found.x), intercept=intercept)
    return second if second is not None and second.fvu < first.fvu else first


def code_length(solution: Solution) -> float:
    """Nats to state a scored formula and what it leaves over: the score that picks a formula from
    the front.  Lower is better.

    The tokens cost their `Formula.code_length`, the numbers their `number_code_length`, what is
    left over its `nll`.
    """
    return solution.formula().code_length() + solution.number_code_length + solution.nll


def score_solution(
    solution: Solution, x: np.ndarray, y: np.ndarray, sigma: np.ndarray | None = None
) -> Solution:
    """The same solution with `number_code_length` and `nll`, both infinite where it has as many
    numbers as there are points.

    `nll` is asked of points predicted by a fit that has not seen them.  No fit is repeated: a
    point with leverage h pulls the curve towards itself, and without it its residual would be r /
    (1 - h), exactly so for coefficients and to first order for the numbers inside (Allen 1974).  A
    formula that bends to single points is found out by this: their leverage is near 1.  A point
    that alone decides a number is not predicted at all: it counts as far off as from the mean.

    `number_code_length`: see `codes.number_code_lengths`.  Chapter 8.

    `sigma` (points,): sizes of the errors where they differ; residuals and design are divided by
    them, in units of the smallest.
    """
    nothing = replace(solution, number_code_length=math.inf, nll=math.inf)
    columns = term_values(solution.terms, solution.constants, x)
    if columns is None:
        return nothing
    fitted = columns @ np.array(solution.coefficients)
    stated = _all_numbers(solution)
    there = stated != 0.0
    there[len(solution.constants) : -1] &= stated[len(solution.constants) : -1] != 1.0
    weight = np.ones(len(y)) if sigma is None else np.min(sigma) / sigma
    design = weight[:, None] * _sensitivities(solution, columns, x)[:, there]
    stated = stated[there]
    if (
        design.shape[1] >= len(y)
        or not np.all(np.abs(design) <= LARGEST)
        or not np.all(np.isfinite(stated))
    ):
        return nothing
    centre = float(np.average(y, weights=weight**2))
    spread = max(float(np.sqrt(np.mean((weight * (y - centre)) ** 2))), TINY)
    residual = weight * (y - solution.offset - fitted) / spread
    scale, nll = left_out_code(design, residual, np.abs(weight * (y - centre)) / spread)
    if nll == math.inf:
        return nothing
    effect = np.abs(stated) * np.linalg.norm(design, axis=0) / spread
    lengths = number_code_lengths(stated, effect, scale)
    return replace(solution, number_code_length=float(np.sum(lengths)), nll=nll)


def _all_numbers(solution: Solution) -> np.ndarray:
    """The numbers inside, the coefficients and the offset."""
    return np.array([*solution.constants, *solution.coefficients, solution.offset])


def _sensitivities(solution: Solution, columns: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How the fitted values move with each of `_all_numbers`, (points, numbers), by differences for
    those inside.
    """
    numbers, coefficients = solution.constants, np.array(solution.coefficients)
    fitted = columns @ coefficients
    tangents = np.zeros((x.shape[-1], len(numbers)))
    for i, number in enumerate(numbers):
        moved, step = numbers.copy(), 1e-6 * max(abs(number), 1e-3)
        moved[i] += step
        shifted = term_values(solution.terms, moved, x)
        tangents[:, i] = 0.0 if shifted is None else (shifted @ coefficients - fitted) / step
    return np.concatenate([tangents, columns, np.ones((x.shape[-1], 1))], axis=1)


def fit_many_points(
    solution: Solution, x: np.ndarray, y: np.ndarray, *, passes: int = 6, chunk: int = 65_536
) -> Solution:
    """The solution with its numbers fitted to any count of points by Gauss-Newton steps, a chunk of
    x (variables, points) and y (points,) at a time; numbers that are simple stay as they are.

    A step that makes the fit worse is tried again at a quarter of its length.  `fvu` becomes that
    of the points given.
    """
    numbers, inside = _all_numbers(solution), len(solution.constants)
    free = [i for i, v in enumerate(numbers) if v and math.isinf(fraction_code_length(v))]
    spread = max(float(np.sum((y - np.mean(y)) ** 2)), TINY)
    best, move = replace(solution, fvu=math.inf), np.zeros(len(free))
    for _ in range(passes):
        sums = [
            _normal_equations(solution, free, x[:, i : i + chunk], y[i : i + chunk])
            for i in range(0, len(y), chunk)
        ]
        normal, gradient, squares = (sum(parts) for parts in zip(*sums, strict=True))
        if squares / spread < best.fvu:
            best, numbers = replace(solution, fvu=squares / spread), _all_numbers(solution)
            move = np.linalg.lstsq(normal, gradient, rcond=1e-14)[0]
        else:
            move = move / 4
        trial = numbers.copy()
        trial[free] += move * np.abs(numbers[free])
        *coefficients, offset = trial[inside:].tolist()
        terms = with_numbers(solution.terms, trial[:inside])
        solution = replace(best, terms=terms, coefficients=tuple(coefficients), offset=offset)
    return best


def _normal_equations(
    solution: Solution, free: list[int], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Matrix, right side and squared residuals of a Gauss-Newton step over the `free` numbers, each
    moved by a share of itself; infinite residuals where the formula is undefined.
    """
    columns = term_values(solution.terms, solution.constants, x)
    if columns is None:
        return np.zeros((len(free), len(free))), np.zeros(len(free)), math.inf
    residual = y - columns @ np.array(solution.coefficients) - solution.offset
    design = _sensitivities(solution, columns, x)[:, free] * np.abs(_all_numbers(solution)[free])
    return design.T @ design, design.T @ residual, float(residual @ residual)
