"""What `solve` returns: the formula, its fit, and how it was found.  (Chapter 8)"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import sympy

from refinemath.answer.rounding import digits_needed
from refinemath.answer.solution import EXACT, Solution
from refinemath.answer.symbolic import latex_of, pretty, rescale
from refinemath.expression import Formula
from refinemath.loop import SearchOutput
from refinemath.problem import DataError, Prepared, _numbers


@dataclass(frozen=True)
class FrontEntry:
    """One formula of the front: how long, how good, what; its numbers are rounded, for reading."""

    length: int
    fvu: float
    formula: str


@dataclass(frozen=True, eq=False)
class Result:
    """What `solve` found.  Unpacks as `formula_latex, iterations`.

    `converged`: the latent velocity stayed under the threshold for two steps.  `exact`: the fit is
    exact to float64.  `found`: the formula explains at least 99 % of the variance.  None of the
    three proves that the formula is the law behind the data.  Chapter 8. `iterations`: refiner
    steps of the search that found the formula; `steps`: of all `searches` together, which is what a
    hard problem costs.
    """

    latex: str
    iterations: int
    formula: Formula
    fvu: float
    converged: bool
    exact: bool
    found: bool
    candidates: tuple[FrontEntry, ...]
    velocity: np.ndarray = field(
        repr=False
    )  # (steps, thoughts): relative velocity of every thought
    outcome: SearchOutput | None = field(repr=False)
    x: np.ndarray = field(repr=False)  # (points, variables)
    y: np.ndarray = field(repr=False)
    seconds: float = 0.0
    searches: int = 0
    steps: int = 0
    digits: int = 6  # significant digits with which numbers are printed

    def __iter__(self) -> Iterator[Any]:
        return iter((self.latex, self.iterations))

    def sympy(self) -> sympy.Expr:
        """The formula as a SymPy expression, its numbers rounded as they are printed."""
        return pretty(self.formula, self.digits)

    def python(self) -> str:
        """The formula as a line of Python that needs `import math`, with all digits of its
        numbers.
        """
        return str(sympy.pycode(pretty(self.formula, 17), fully_qualified_modules=True))

    def predict(self, x: Any) -> np.ndarray:
        """Values at x: numbers (points,) or rows (points, variables).  NaN where the formula is
        undefined.  Raises `DataError`.
        """
        array = _numbers(x, "x")
        array = array[None] if array.ndim == 0 else array
        array = array[:, None] if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != self.x.shape[1]:
            raise DataError(
                f"x has shape {array.shape}; this formula has {self.x.shape[1]} variable(s)"
            )
        return self.formula.evaluate(array.T)

    def plot(self, path: str | Path | None = None) -> Any:
        """Fit against data, as a Matplotlib figure; saved if a path is given."""
        from refinemath.plots import plot_fit

        figure = plot_fit(self)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle y = {self.latex}$"

    def __str__(self) -> str:
        return f"y = {self.sympy()}"


def _result(
    chosen: Solution | None,
    front: list[Solution],
    outcome: SearchOutput,
    prepared: Prepared,
    began: float,
    *,
    searches: int,
    steps: int,
) -> Result:
    if chosen is None:
        chosen = Solution((), (), float(np.mean(prepared.y)), 1.0)
    formula = chosen.formula()
    digits = digits_needed(formula, prepared.x, prepared.y)
    records: list[FrontEntry] = []
    for solution in front:
        if not records or solution.fvu < 0.9 * records[-1].fvu:
            back = (
                solution.formula()
                if np.all(prepared.scale == 1.0)
                else (rescale(solution, prepared) or solution).formula()
            )
            entry = FrontEntry(solution.length, solution.fvu, str(pretty(back, digits - 1)))
            if records and records[-1].length == entry.length:
                records[-1] = entry
            else:
                records.append(entry)
    iterations = int(outcome.steps)
    velocity = np.asarray(outcome.trace.velocity)[:iterations]
    return Result(
        latex_of(formula, digits),
        iterations,
        formula,
        chosen.fvu,
        False,
        chosen.fvu < EXACT,
        chosen.fvu < 0.01,
        tuple(records),
        velocity,
        outcome,
        prepared.x.T,
        prepared.y,
        time.perf_counter() - began,
        searches,
        steps,
        digits,
    )


def judged(result: Result, x: np.ndarray, y: np.ndarray) -> Result:
    """The result of some of the points x (points, variables), y, with its fit measured on all of
    them; infinite where the formula is undefined at one.
    """
    residual = y - result.formula.evaluate(x.T)
    fvu = float(np.mean(residual**2) / np.var(y)) if np.all(np.isfinite(residual)) else math.inf
    return replace(result, fvu=fvu, exact=fvu < EXACT, found=fvu < 0.01, x=x, y=y)


def _constant(x: np.ndarray, y: np.ndarray, began: float) -> Result:
    value = float(np.mean(y))
    formula = Formula((value,))
    return Result(
        latex_of(formula),
        0,
        formula,
        0.0,
        True,
        True,
        True,
        (FrontEntry(1, 0.0, str(pretty(formula))),),
        np.zeros((0, 1)),
        None,
        x,
        y,
        time.perf_counter() - began,
    )
