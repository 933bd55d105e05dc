"""What `solve` returns: the formula, its fit, and how it was found.  (Chapter 8)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import sympy

from refinemath.answer.choose import FrontEntry
from refinemath.answer.solution import EXACT, evaluated_fvu
from refinemath.answer.statement import is_established
from refinemath.answer.symbolic import latex_name, latex_of, pretty, printed_text, python_of
from refinemath.compiled import SearchRecord
from refinemath.expression import VARIABLES, Formula
from refinemath.problem import Table, read_inputs

FOUND = 0.01  # FVU under which a formula counts as found


@dataclass(frozen=True, eq=False)
class Result:
    """What `solve` found.  Unpacks as `formula_latex, iterations`.

    `formula` is, number for number, what is printed; `fvu`: what it leaves unexplained on all
    points, evaluated as it stands.  `converged`: the latent velocity stayed under the threshold for
    two steps.  `exact`: the fit is exact to float64, and the points are such that this could have
    been otherwise.  `found`: the formula explains at least 99 % of the variance.  None of the three
    proves that the formula is the law behind the data.  Chapter 8. `iterations`: refiner steps of
    the search that found the formula; `steps`: of all `searches` together, which is what a hard
    problem costs.  `compile_seconds`: of `seconds`, those for which the compiler was waited for.
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
    compile_seconds: float = 0.0
    searches: int = 0
    steps: int = 0
    digits: int = 6  # significant digits with which numbers are printed
    names: tuple[str, ...] = ("x",)  # of the variables
    target: str = "y"  # the name of what the formula gives

    def __iter__(self) -> Iterator[Any]:
        return iter((self.latex, self.iterations))

    @property
    def is_mean(self) -> bool:
        """Whether the answer is a constant, since no formula is better than the mean of y."""
        return not any(part in VARIABLES for part in self.formula.parts)

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
        return f"{self.target} = {printed_text(self.sympy())}"


def judged(result: Result, x: np.ndarray, y: np.ndarray) -> Result:
    """The result with its fit measured on the points x (points, variables), y by its formula as it
    stands; infinite where that is undefined at one.
    """
    fvu = evaluated_fvu(result.formula, x.T, y)
    exact = fvu < EXACT and is_established(result.formula, x.T, y)
    return replace(result, fvu=fvu, exact=exact, found=fvu < FOUND, x=x, y=y)


def constant_result(table: Table) -> Result:
    """The answer for a y that does not change, up to rounding: no search, no step."""
    formula = Formula((float(np.median(table.y)),))
    fvu = evaluated_fvu(formula, table.x.T, table.y)
    return Result(
        latex=latex_of(formula, 17),
        iterations=0,
        formula=formula,
        fvu=fvu,
        converged=True,
        exact=fvu == 0.0,
        found=fvu == 0.0,
        candidates=(FrontEntry(1, fvu, printed_text(pretty(formula, 17))),),
        velocity=np.zeros((0, 1)),
        outcome=None,
        x=table.x,
        y=table.y,
        digits=17,
        names=table.names,
        target=table.target,
    )
