"""How sure the fitted numbers are: standard errors, intervals and prediction bands, from the
Jacobian of the last fit.  (Chapter 8)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
import sympy

from refinemath.answer.codes import TINY, fraction_code_length
from refinemath.answer.solution import LARGEST
from refinemath.expression import VARIABLES, Formula, fold, sympy_node, sympy_number

REDUNDANT = 1e-6  # share of a number's effect that no other number has, under which it is held
FEW = 20_000  # points up to which the numbers are fitted once more


class Interval(NamedTuple):
    """One number of a formula: its letter in `lettered`, the number as the formula holds it, the
    least-squares estimate, its standard error, and the ends of the interval.

    A number whose effect the others can have as well has the letter "" and no error (NaN): it is
    held at what the formula says.
    """

    name: str
    number: float
    estimate: float
    error: float
    low: float
    high: float

    def __str__(self) -> str:
        if not self.name:
            return f"{self.number:.6g} is held: the other numbers can do the same"
        digits = min(max(1, 2 + _decade(self.estimate) - _decade(self.error)), 12)
        number, low, high = (f"{v:.{digits}g}" for v in (self.estimate, self.low, self.high))
        return f"{self.name} = {number}, standard error {self.error:.2g}, {low} to {high}"


class Prediction(NamedTuple):
    """Values (points,) and the ends of the band in which a new measurement is expected."""

    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What the data say about the numbers of a formula, in the order of `Formula.constants`."""

    numbers: np.ndarray  # (numbers,): the least-squares estimates
    free: tuple[int, ...]  # which of them the data can tell apart
    covariance: np.ndarray  # (free, free)
    scale: float  # standard deviation of what is left over: in units of y, or of sigma if given
    freedom: int  # points without the free numbers

    def quantile(self, level: float) -> float:
        """Half the width, in standard errors, of the interval of Student's t that holds `level`."""
        return float(scipy.special.stdtrit(self.freedom, 0.5 + 0.5 * level))

    def intervals(
        self, formula: Formula, level: float = 0.95, taken: Sequence[str] = ()
    ) -> tuple[Interval, ...]:
        """An interval of each number of the formula, with letters that are not `taken`."""
        letters, found = number_letters(len(self.free), taken), []
        errors = dict(zip(self.free, np.sqrt(np.diag(self.covariance)).tolist(), strict=True))
        for i, number in enumerate(formula.constants()):
            value, error = float(self.numbers[i]), errors.get(i, np.nan)
            half = self.quantile(level) * error
            name = letters[self.free.index(i)] if i in errors else ""
            found.append(Interval(name, number, value, error, value - half, value + half))
        return tuple(found)

    def band(
        self, formula: Formula, x: np.ndarray, sigma: np.ndarray | float = 1.0, level: float = 0.95
    ) -> Prediction:
        """The formula at x (variables, points), and where a new measurement with errors of relative
        size `sigma` falls.
        """
        y = formula.evaluate(x)
        design = jacobian(formula, x, self.numbers)[:, list(self.free)]
        curve = np.einsum("ij,jk,ik->i", design, self.covariance, design)
        half = self.quantile(level) * np.sqrt(curve + (self.scale * np.asarray(sigma)) ** 2)
        return Prediction(y, y - half, y + half)


def estimate(
    formula: Formula, x: np.ndarray, y: np.ndarray, sigma: np.ndarray | None = None
) -> Uncertainty | None:
    """The uncertainty of all numbers in a formula fitted to x (variables, points), y (points,) with
    errors proportional to `sigma` (points,).

    Up to `FEW` points, the numbers are fitted once more from where they are, so that those which
    were rounded come with an estimate too.  Covariance: s^2 (J^T J)^-1 with s^2 = RSS / (points -
    numbers), J the Jacobian by central differences, rows divided by sigma.  As in
    `scipy.optimize.curve_fit`, only the ratios of the sigmas count.  None where there are no more
    points than numbers, or the formula is undefined at one.
    """
    sigma = np.ones(len(y)) if sigma is None else sigma
    numbers = np.array(formula.constants())
    free = determined(jacobian(formula, x, numbers) / sigma[:, None], numbers)
    if not len(free) < len(y) or not np.all(np.isfinite(formula.evaluate(x))):
        return None
    if len(y) <= FEW:
        numbers = least_squares_numbers(formula, x, y, sigma, free)
    design = jacobian(formula, x, numbers)[:, list(free)] / sigma[:, None]
    size = np.maximum(np.linalg.norm(design, axis=0), TINY)
    inverse = np.linalg.pinv(design / size, rcond=1e-12) / size[:, None]
    residual = (y - formula.evaluate(x, numbers.tolist())) / sigma
    freedom = len(y) - len(free)
    scale = float(np.sqrt(np.sum(residual**2) / freedom))
    return Uncertainty(numbers, free, scale**2 * inverse @ inverse.T, scale, freedom)


def jacobian(formula: Formula, x: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Derivatives (points, numbers) of the formula's values by its numbers, by central differences.

    Each step is the largest power of ten of the number, from 1e-4 down, at which the values move
    almost straight: a number such as 1.7e9 in sin(x - 1.7e9) needs a small one.  0 where undefined.
    """
    columns, middle = [], formula.evaluate(x, numbers.tolist())
    for i, number in enumerate(numbers):
        column = np.zeros(x.shape[-1])
        for share in 10.0 ** -np.arange(4, 13):
            step = share * (abs(number) or 1.0)
            ends = []
            for sign in (1, -1):
                moved = numbers.copy()
                moved[i] += sign * step
                ends.append(formula.evaluate(x, moved.tolist()))
            with np.errstate(all="ignore"):
                column = (ends[0] - ends[1]) / (2 * step)
                bent = np.max(np.abs(ends[0] + ends[1] - 2 * middle))
                straight = np.max(np.abs(ends[0] - ends[1]))
            if bent <= 1e-3 * straight:
                break
        columns.append(np.where(np.abs(column) <= LARGEST, column, 0.0))
    return np.stack(columns, axis=1) if columns else np.zeros((x.shape[-1], 0))


def determined(design: np.ndarray, numbers: np.ndarray) -> tuple[int, ...]:
    """Which numbers have an effect of their own on the points, by Gram-Schmidt over the columns of
    the Jacobian; of those that do the same, the one that is a simple fraction is left out.
    """
    order = sorted(range(len(numbers)), key=lambda i: -fraction_code_length(float(numbers[i])))
    basis: list[np.ndarray] = []
    free = []
    for i in order:
        size = float(np.linalg.norm(design[:, i]))
        column = design[:, i] / max(size, TINY)
        for _ in range(2):
            for known in basis:
                column = column - known * float(known @ column)
        left = float(np.linalg.norm(column))
        if size > TINY and left > REDUNDANT:
            basis.append(column / left)
            free.append(i)
    return tuple(sorted(free))


def robust_scale(residual: np.ndarray) -> float:
    """The standard deviation of normal residuals with the same median size."""
    return max(1.4826 * float(np.median(np.abs(residual))), 1e-12 * float(np.ptp(residual)), TINY)


@dataclass(frozen=True, eq=False)
class NumberFit:
    """Least squares of (y - f) / sigma over the `free` numbers of a formula."""

    formula: Formula
    x: np.ndarray  # (variables, points)
    y: np.ndarray  # (points,)
    sigma: np.ndarray  # (points,)
    free: Sequence[int]

    def moved(self, theta: np.ndarray) -> np.ndarray:
        """All numbers (numbers,), the free ones those of theta."""
        numbers = np.array(self.formula.constants())
        numbers[list(self.free)] = theta
        return numbers

    def residual(self, theta: np.ndarray) -> np.ndarray:
        """(f - y) / sigma (points,), 1e6 where f is undefined."""
        values = self.formula.evaluate(self.x, self.moved(theta).tolist())
        return np.where(np.abs(values) <= LARGEST, (values - self.y) / self.sigma, 1e6)

    def slopes(self, theta: np.ndarray) -> np.ndarray:
        """The Jacobian (points, free) of the residual."""
        design = jacobian(self.formula, self.x, self.moved(theta))
        return design[:, list(self.free)] / self.sigma[:, None]


def least_squares_numbers(
    formula: Formula,
    x: np.ndarray,
    y: np.ndarray,
    sigma: np.ndarray,
    free: Sequence[int],
    loss: str = "linear",
) -> np.ndarray:
    """The formula's numbers (numbers,) with the `free` ones at the least squares of (y - f) / sigma
    nearest to where they are, by SciPy's Levenberg-Marquardt; with another `loss`, from there by
    its trust region, with the scale of the residuals (`robust_scale`) found in three rounds.
    """
    size = max(float(np.sqrt(np.mean((y / sigma) ** 2))), TINY)
    fit = NumberFit(formula, x, y, sigma * size, free)
    start = np.array(formula.constants())[list(free)]
    if not len(start):
        return fit.moved(start)
    scale = np.maximum(np.abs(start), TINY)
    options = {"x_scale": scale, "max_nfev": 200, "ftol": 1e-14, "xtol": 1e-14}
    solve = functools.partial(scipy.optimize.least_squares, fit.residual, jac=fit.slopes, **options)
    with np.errstate(all="ignore"):
        theta = solve(start, method="lm").x
        if not np.sum(fit.residual(theta) ** 2) <= np.sum(fit.residual(start) ** 2):
            theta = start
        for _ in range(3 * (loss != "linear")):
            theta = solve(theta, loss=loss, f_scale=robust_scale(fit.residual(theta))).x
    return fit.moved(theta if np.all(np.isfinite(theta)) else start)


def number_letters(count: int, taken: Sequence[str] = ()) -> list[str]:
    """Letters for so many numbers, without those that are `taken`: a, b, c, d, f, and so on."""
    plain = "abcdfghjkmnpqrstuvw"
    letters = [*plain, *(f"{c}_{i}" for i in range(1, 2 + count // len(plain)) for c in plain)]
    return [c for c in letters if c not in taken][:count]


def lettered(formula: Formula, intervals: Sequence[Interval]) -> sympy.Expr:
    """The formula, in x1, x2, and so on, with the letters of its intervals in place of numbers."""
    left = list(intervals)
    symbols = {v: sympy.Symbol(v, real=True) for v in VARIABLES}

    def node(part: str | float, *operands: sympy.Expr) -> sympy.Expr:
        if not isinstance(part, str):  # fold goes from right to left
            name = left.pop().name
            return sympy.Symbol(name, real=True) if name else sympy_number(part)
        return symbols[part] if part in symbols else sympy_node(part, *operands)

    return fold(formula.parts, node)


def _decade(v: float) -> int:
    return int(np.floor(np.log10(max(abs(v), TINY))))
