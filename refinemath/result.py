"""What `solve` returns: the formula, its fit, and how it was found.  (Chapter 8)"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import sympy

from refinemath.answer.choose import FrontEntry
from refinemath.answer.solution import EXACT, fraction_unexplained
from refinemath.answer.symbolic import latex_name, latex_of, pretty, python_of
from refinemath.compiled import SearchRecord
from refinemath.expression import VARIABLES, Formula
from refinemath.problem import Table, read_inputs

FOUND = 0.01  # FVU under which a formula counts as found


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
    velocity: np.ndarray = field(repr=False)  # (steps, thoughts): relative, of every thought
    outcome: SearchRecord | None = field(repr=False)
    x: np.ndarray = field(repr=False)  # (points, variables)
    y: np.ndarray = field(repr=False)
    seconds: float = 0.0
    searches: int = 0
    steps: int = 0
    digits: int = 6  # significant digits with which numbers are printed
    names: tuple[str, ...] = ("x",)  # of the variables
    target: str = "y"  # the name of what the formula gives
    units: dict[str, str] = field(default_factory=dict)  # of columns, by name

    def __iter__(self) -> Iterator[Any]:
        return iter((self.latex, self.iterations))

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the variables that the formula does not use."""
        pairs = zip(VARIABLES, self.names, strict=False)
        return tuple(name for variable, name in pairs if variable not in self.formula.parts)

    def sympy(self) -> sympy.Expr:
        """The formula as a SymPy expression in symbols with the columns' names, its numbers rounded
        as they are printed.
        """
        return pretty(self.formula, self.digits, self.names)

    def python(self) -> str:
        """The formula as a line of Python that needs `import math`, with all digits of its numbers
        and the columns' names as identifiers.
        """
        return python_of(self.formula, self.names)

    def predict(self, x: Any) -> np.ndarray:
        """Values at x: numbers (points,), rows (points, variables), or a DataFrame with columns of
        the variables' names.  NaN where the formula is undefined.  Raises `DataError`.
        """
        return self.formula.evaluate(read_inputs(x, self.names).T)

    def plot(self, path: str | Path | None = None) -> Any:
        """Fit against data, as a Matplotlib figure; saved if a path is given."""
        from refinemath.plots import plot_fit

        figure = plot_fit(self)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {latex_name(self.target)} = {self.latex}$"

    def __str__(self) -> str:
        return f"{self.target} = {self.sympy()}"


def judged(result: Result, x: np.ndarray, y: np.ndarray) -> Result:
    """The result of some of the points x (points, variables), y, with its fit measured on all of
    them; infinite where the formula is undefined at one.
    """
    residual = y - result.formula.evaluate(x.T)
    fvu = fraction_unexplained(residual, y) if np.all(np.isfinite(residual)) else math.inf
    return replace(result, fvu=fvu, exact=fvu < EXACT, found=fvu < FOUND, x=x, y=y)


def constant_result(table: Table) -> Result:
    """The answer for a y that does not change: no search, no step."""
    formula = Formula((float(np.mean(table.y)),))
    return Result(
        latex=latex_of(formula),
        iterations=0,
        formula=formula,
        fvu=0.0,
        converged=True,
        exact=True,
        found=True,
        candidates=(FrontEntry(1, 0.0, str(pretty(formula))),),
        velocity=np.zeros((0, 1)),
        outcome=None,
        x=table.x,
        y=table.y,
        names=table.names,
        target=table.target,
    )
