"""The numbers of a form that the user gives, with their standard errors.  (Chapter 10)"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize

from refinemath.answer.solution import fraction_unexplained
from refinemath.expression import MAX_VARIABLES, OPERATOR_TOKEN, VARIABLES, Formula, FormulaError
from refinemath.families import Curve
from refinemath.problem import DataError, Table, spread_out
from refinemath.reading import read_inputs, read_table
from refinemath.spectrum import main_frequencies
from refinemath.text import parse

SCREENED, REFINED, FEW = 3000, 5, 64  # starts compared, starts refined, points to compare them on
STEP = 1e-6  # of a number, for derivatives


@dataclass(frozen=True, eq=False)
class FittedForm:
    """A form with its numbers: `numbers` and their standard `errors` by name, the `formula` with
    the numbers in it, and the share `fvu` of the variance of y that it leaves.

    A standard error is infinite where the points do not determine the number.
    """

    form: str
    numbers: dict[str, float]
    errors: dict[str, float]
    formula: Formula
    fvu: float
    names: tuple[str, ...]

    def predict(self, x: Any) -> np.ndarray:
        """Values (points,) at x, as `Result.predict`.  Raises `DataError`."""
        return self.formula.evaluate(read_inputs(x, self.names).T)

    def __str__(self) -> str:
        fitted = (f"{n} = {v:.6g} ± {self.errors[n]:.2g}" for n, v in self.numbers.items())
        return f"{self.form} with {', '.join(fitted)}"


def fit_form(form: str, data: Any, y: Any = None) -> FittedForm:
    """Fit the numbers of a form such as `a*exp(-b*x) + c` by least squares.

    Every name in it that is neither a column (x, or x1, x2 and so on) nor a function is a number to
    fit.  The numbers that enter linearly are projected out (Golub & Pereyra 1973); the others start
    from places, rates and frequencies of the data.  `data`, `y`: as in `RefineMath.solve`.  Raises
    `FormulaError`, `DataError`.
    """
    table = read_table(data, y)
    names, formula = _read_form(form, table)
    if len(table.y) <= len(names):
        raise DataError(f"{len(table.y)} points cannot determine {len(names)} numbers; give more")
    problem = _Fit(formula, len(names), table.x.T, table.y)
    found = problem.solve()
    if found is None:
        raise DataError(f"{form!r} is undefined at some point for all numbers that were tried")
    values = dict(zip(names, found.tolist(), strict=True))
    slots = dict(zip(VARIABLES[len(table.names) :], found.tolist(), strict=False))
    filled = Formula(tuple(slots.get(str(p), p) for p in formula.parts))
    residual = table.y - problem.values(found)
    errors = dict(zip(names, problem.standard_errors(found), strict=True))
    fvu = fraction_unexplained(residual, table.y)
    return FittedForm(form, values, errors, filled, fvu, table.names)


def _read_form(form: str, table: Table) -> tuple[list[str], Formula]:
    """The names of the numbers in order of appearance, and the form with them as further variables,
    x2 and so on for one column.
    """
    try:
        tree = ast.parse(form.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FormulaError(f"cannot read {form!r} as a formula: {error}") from None
    columns = dict(zip(table.names, VARIABLES, strict=False))
    columns |= dict(zip(VARIABLES, VARIABLES[: len(table.names)], strict=False))
    known = {"pi", "ln", *OPERATOR_TOKEN}
    called = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    words = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n not in called]
    words.sort(key=lambda n: (n.lineno, n.col_offset))
    names = [n for n in dict.fromkeys(w.id for w in words) if n not in known | columns.keys()]
    if not names:
        raise FormulaError(f"{form!r} has no numbers to fit; name them, as in a*exp(-b*x) + c")
    if len(names) + len(table.names) > MAX_VARIABLES:
        most = MAX_VARIABLES - len(table.names)
        raise FormulaError(f"{form!r} has {len(names)} numbers to fit; at most {most} are possible")
    columns |= dict(zip(names, VARIABLES[len(table.names) :], strict=False))
    for word in words:
        word.id = columns.get(word.id, word.id)
    return names, parse(ast.unparse(tree))


@dataclass(frozen=True, eq=False)
class _Fit:
    """A formula over the columns x (variables, points) and `count` numbers, for y (points,)."""

    formula: Formula
    count: int
    x: np.ndarray
    y: np.ndarray

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """The formula's values (points,) with these numbers."""
        rows = np.broadcast_to(np.asarray(numbers)[:, None], (self.count, self.x.shape[1]))
        return self.formula.evaluate(np.concatenate([self.x, rows]))

    def linear(self) -> list[int]:
        """Numbers in which the formula is linear, all of them together."""
        rng = np.random.default_rng(0)
        chosen: list[int] = []
        for i in range(self.count):
            trial = [*chosen, i]
            start = rng.uniform(0.5, 1.5, self.count)
            moves = np.zeros((2, self.count))
            moves[:, trial] = rng.uniform(0.5, 1.5, (2, len(trial)))
            a, b = moves
            with np.errstate(all="ignore"):
                corners = [self.values(start + m) for m in (0 * a, a, b, a + b, 2 * a)]
            bend = np.abs(corners[3] - corners[1] - corners[2] + corners[0])
            bend = bend + np.abs(corners[4] - 2 * corners[1] + corners[0])
            size = np.max(np.abs(corners), axis=0) + 1e-300
            if np.all(bend <= 1e-9 * size):
                chosen = trial
        return chosen

    def completed(self, inner: np.ndarray, linear: list[int]) -> np.ndarray | None:
        """All numbers, the linear ones fitted beside the `inner` ones; None where undefined."""
        numbers = np.zeros(self.count)
        numbers[[i for i in range(self.count) if i not in linear]] = inner
        base = self.values(numbers)
        columns = [self.values(numbers + np.eye(self.count)[i]) - base for i in linear]
        design = np.stack([base, *columns], axis=1)
        if not np.all(np.abs(design) < 1e150):
            return None
        size = np.maximum(np.max(np.abs(design[:, 1:]), axis=0, initial=0.0), 1e-300)
        solved = np.linalg.lstsq(design[:, 1:] / size, self.y - base, rcond=1e-14)[0] / size
        numbers[linear] = solved
        return numbers

    def residual(self, numbers: np.ndarray | None) -> np.ndarray:
        """What is left over, in units of the spread of y; large where undefined."""
        left = np.full(len(self.y), 1e6) if numbers is None else self.y - self.values(numbers)
        spread = float(np.std(self.y)) or 1.0
        return np.where(np.isfinite(left), left / spread, 1e6)

    def solve(self) -> np.ndarray | None:
        """The numbers of least squares; None where no start is defined on all points."""
        linear = self.linear()
        inner = self.count - len(linear)
        few = spread_out(self.x, FEW)
        rough = _Fit(self.formula, self.count, self.x[:, few], self.y[few])

        def quality(start: tuple[float, ...]) -> float:
            return float(np.sum(rough.residual(rough.completed(np.array(start), linear)) ** 2))

        starts = sorted(_starts(self.x, self.y, inner), key=quality)[:REFINED]
        ends = [self.refined(np.array(start), linear) for start in starts]
        there = [e for e in ends if e is not None and np.all(np.isfinite(e))]
        return min(there, key=lambda e: float(np.sum(self.residual(e) ** 2)), default=None)

    def refined(self, start: np.ndarray, linear: list[int]) -> np.ndarray | None:
        """All numbers after Levenberg-Marquardt steps over the inner ones."""
        unit = np.where(start == 0.0, 1.0, np.abs(start))
        if not len(start) or self.completed(start, linear) is None:
            return self.completed(start, linear)
        found = scipy.optimize.least_squares(
            lambda t: self.residual(self.completed(t * unit, linear)),
            start / unit,
            method="lm",
            xtol=1e-14,
            ftol=1e-14,
            max_nfev=400,
        )
        return self.completed(found.x * unit, linear)

    def standard_errors(self, numbers: np.ndarray) -> list[float]:
        """Of each number, from the Jacobian J: the root of the diagonal of s^2 (J^T J)^-1."""
        steps = STEP * np.maximum(np.abs(numbers), 1e-12)
        moves = np.diag(steps)
        jacobian = [(self.values(numbers + m) - self.values(numbers - m)) for m in moves]
        design = np.stack(jacobian, axis=1) / (2 * steps)
        size = np.linalg.norm(design, axis=0)
        if not np.all(np.isfinite(size)):
            return [math.inf] * self.count
        size = np.where(size == 0, 1.0, size)
        _, singular, right = np.linalg.svd(design / size, full_matrices=False)
        weak = singular <= 1e-9
        spread = np.where(weak, 0.0, 1.0 / np.where(weak, 1.0, singular))
        left = self.y - self.values(numbers)
        noise = float(np.sum(left**2)) / (len(self.y) - self.count)
        errors = math.sqrt(noise) * np.linalg.norm(right * spread[:, None], axis=0) / size
        lost = np.any(np.abs(right[weak]) > 1e-6, axis=0)
        return np.where(lost | (np.linalg.norm(design, axis=0) == 0), math.inf, errors).tolist()


def _starts(x: np.ndarray, y: np.ndarray, inner: int) -> Iterable[tuple[float, ...]]:
    """Starting values of so many numbers: combinations of what the data suggest, or a sample."""
    axis: list[float] = [1.0, -1.0, 0.5, 2.0, 3.0, -2.0]
    for column in x:
        order = np.argsort(column, kind="stable")
        curve = Curve(column[order], y[order])
        axis += [*curve.places(), *curve.rates(0.05, 0.2, 0.7)]
        axis += [share * curve.span for share in (0.05, 0.15, 0.4)]
        axis += main_frequencies(curve.x, curve.y)[:4] if len(x) == 1 else []
    if len(axis) ** inner <= SCREENED:
        return itertools.product(axis, repeat=inner)
    return _sampled(axis, inner)


def _sampled(axis: Sequence[float], inner: int) -> list[tuple[float, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(row) for row in rng.choice(axis, (SCREENED, inner)).tolist()]
