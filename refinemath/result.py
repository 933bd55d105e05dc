"""What `solve` returns: the formula, its fit, how sure it is, and how it was found.  (Chapter 8)"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import sympy

from refinemath.answer.regression import DOWN_WEIGHTED, Errors, point_weights, weighted_fvu
from refinemath.answer.solution import EXACT, evaluated_fvu
from refinemath.answer.statement import is_established
from refinemath.answer.symbolic import latex_name, latex_of, pretty, printed_text
from refinemath.answer.uncertainty import (
    Interval,
    Prediction,
    Uncertainty,
    estimate,
    lettered,
    robust_scale,
)
from refinemath.compiled import SearchRecord
from refinemath.export import Written, latex_row
from refinemath.expression import VARIABLES, Formula
from refinemath.front import Candidate, Front, odds_in_words, save_figure
from refinemath.problem import DataError, Origin, Table
from refinemath.reading import read_inputs
from refinemath.text import parse_prefix

FOUND = 0.01  # FVU under which a formula counts as found
CLOSE = 20.0  # odds from which a runner-up counts as ruled out
FAR = 8.0  # robust standard deviations from which a row is named


@dataclass(frozen=True, eq=False)
class Result(Written):
    """What `solve` found.  Unpacks as `formula_latex, iterations`.

    `formula` is, number for number, what is printed; `fvu`: what it leaves unexplained on all
    points, evaluated as it stands, weighted where the errors differ.  `converged`: the latent
    velocity stayed under the threshold for two steps.  `exact`: the fit is exact to float64, and
    the points are such that this could have been otherwise.  `found`: the formula explains at least
    99 % of the variance.  None of the three proves that the formula is the law behind the data.
    Chapter 8.  `iterations`: refiner steps of the search that found the formula; `steps`: of all
    `searches` together, which is what a hard problem costs.  `compile_seconds`: of `seconds`, those
    for which the compiler was waited for.  `candidates`: the front over length and fit;
    `runners_up`: what else was considered at the end, with the odds against it; `notes`: what
    reading changed.
    """

    latex: str
    iterations: int
    formula: Formula
    fvu: float
    converged: bool
    exact: bool
    found: bool
    candidates: tuple[Any, ...]  # a Front of Candidates
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
    origins: tuple[Origin | None, ...] = ()  # of variables that were dates
    errors: Errors = field(default=Errors(), repr=False)
    runners_up: tuple[Candidate, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)  # of columns, by name

    def __iter__(self) -> Iterator[Any]:
        return iter((self.latex, self.iterations))

    @property
    def law(self) -> Formula:  # type: ignore[override]
        """The formula, as `Written` calls it."""
        return self.formula

    @property
    def is_mean(self) -> bool:
        """Whether the answer is a constant, since no formula is better than the mean of y."""
        return not any(part in VARIABLES for part in self.formula.parts)

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the variables that the formula does not use."""
        pairs = zip(VARIABLES, self.names, strict=False)
        return tuple(name for variable, name in pairs if variable not in self.formula.parts)

    @cached_property
    def uncertainty(self) -> Uncertainty | None:
        """How sure the numbers are; None where there are no more points than numbers."""
        sigma = np.ones(len(self.y)) if self.errors.sigma is None else self.errors.sigma
        weights = point_weights(self.formula, self.x.T, self.y, self.errors)
        return estimate(self.formula, self.x.T, self.y, sigma / np.sqrt(weights))

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """An interval that holds each number with 95 %, for the right form; see `form`."""
        found = self.uncertainty
        return () if found is None else found.intervals(self.formula, taken=self.names)

    @property
    def form(self) -> sympy.Expr:
        """The formula with the letters of `intervals` in place of its numbers."""
        names = zip(VARIABLES, self.names, strict=False)
        symbols = {sympy.Symbol(v, real=True): sympy.Symbol(n, real=True) for v, n in names}
        return lettered(self.formula, self.intervals).xreplace(symbols)

    @property
    def down_weighted(self) -> tuple[int, ...]:
        """Rows that a robust loss lets count for less than a third."""
        weights = point_weights(self.formula, self.x.T, self.y, self.errors)
        return tuple(np.flatnonzero(weights < DOWN_WEIGHTED).tolist())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the data do not decide, in words; empty where nothing is in doubt."""
        return tuple(_warnings(self))

    def predict(self, x: Any, interval: float | None = None) -> Any:
        """Values at x: numbers (points,), rows (points, variables), or a data frame with columns of
        the variables' names.  NaN where the formula is undefined.  Raises `DataError`.

        With `interval=0.95`, a `Prediction`: the values y and the ends, low and high, of a band
        that holds a new measurement with this probability, for the right form.
        """
        if interval is None:
            return super().predict(x)
        if not 0 < interval < 1:
            raise ValueError(f"interval is {interval!r}; it must be a number between 0 and 1")
        points = read_inputs(x, self.names, self.origins).T
        y, found = self.formula.evaluate(points), self.uncertainty
        if found is None:
            return Prediction(y, np.full_like(y, -np.inf), np.full_like(y, np.inf))
        return found.band(self.formula, points, self._sigma_at(y), interval)

    def _sigma_at(self, y: np.ndarray) -> np.ndarray | float:
        """Sizes of the errors of new measurements: relative ones follow y, else the median."""
        sigma = self.errors.sigma
        if sigma is None:
            return 1.0
        relative = np.array_equal(sigma, np.abs(self.y))
        return np.abs(y) if relative else float(np.median(sigma))

    def choose(self, number: int) -> Result:
        """The result with another formula of `candidates`, by its number there."""
        if not -len(self.candidates) <= number < len(self.candidates):
            raise ValueError(f"there are {len(self.candidates)} candidates; there is no {number!r}")
        other: Candidate = self.candidates[number]
        latex = latex_of(other.law, self.digits, self.names)
        return judged(replace(self, formula=other.law, latex=latex), self.x, self.y)

    def latex_table(self) -> str:
        """The numbers with their standard errors and 95 % intervals as a LaTeX table (booktabs)."""
        rows = [
            f"${i.name}$ & {i.estimate:.5g} & {i.error:.2g} & {i.low:.5g} & {i.high:.5g} \\\\"
            for i in self.intervals
            if i.name
        ]
        form = f"% {latex_name(self.target)} = {sympy.latex(self.form)}"
        head = r"number & estimate & standard error & 2.5\,\% & 97.5\,\% \\"
        body = [r"\begin{tabular}{lrrrr}", r"\toprule", head, r"\midrule", *rows]
        return "\n".join([form, *body, r"\bottomrule", r"\end{tabular}"])

    def candidates_latex(self) -> str:
        """The front as a LaTeX table (booktabs)."""
        rows = [latex_row(c, str(c.length), f"{c.fvu:.2g}") for c in self.candidates]
        head = [r"\begin{tabular}{lrr}", r"\toprule", r"formula & tokens & FVU \\", r"\midrule"]
        return "\n".join([*head, *rows, r"\bottomrule", r"\end{tabular}"])

    def plot(self, path: str | Path | None = None) -> Any:
        """Fit against data, as a Matplotlib figure; saved if a path is given."""
        from refinemath.plots import plot_fit

        return save_figure(plot_fit(self), path)

    def to_dict(self) -> dict[str, Any]:
        """All of it but the record of the search, as JSON can write it."""
        plain = "latex iterations converged exact found seconds searches steps digits names target"
        intervals = [{k: _finite(v) for k, v in i._asdict().items()} for i in self.intervals]
        return {name: getattr(self, name) for name in plain.split()} | {
            "notes": self.notes,
            "warnings": self.warnings,
            "refinemath": version("refinemath"),
            "formula": str(self),
            "prefix": self.formula.prefix(),
            "python": self.python(),
            "fvu": _finite(self.fvu),
            "form": str(self.form),
            "intervals": intervals,
            "candidates": [c.to_dict() for c in self.candidates],
            "runners_up": [c.to_dict() for c in self.runners_up],
            "origins": [None if o is None else [str(o.first), o.unit] for o in self.origins],
            "x": self.x.tolist(),
            "y": self.y.tolist(),
            "sigma": None if self.errors.sigma is None else self.errors.sigma.tolist(),
            "loss": self.errors.loss,
            "through_origin": self.errors.through_origin,
        }

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, which `load_result` reads; without the record of the search."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        Path(path).write_text(text, encoding="utf-8")

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {latex_name(self.target)} = {self.latex}$"

    def __str__(self) -> str:
        return f"{self.target} = {printed_text(self.sympy())}"


def _warnings(result: Result) -> Iterator[str]:
    if result.is_mean and not result.found:
        yield "no formula is better than the mean"
    elif not result.found:
        yield "no formula explains 99 % of the variance; this is the best attempt"
    for other in result.runners_up:
        if other.odds < CLOSE and not result.exact:
            yield f"the data do not decide: {odds_in_words(other)}"
    for i in result.intervals:
        if i.name and not result.exact and i.low <= 0 <= i.high:
            yield f"{i.name} may as well be 0 ({i.low:.3g} to {i.high:.3g})"
    if result.uncertainty is None and not result.exact:
        yield "there are no more points than numbers in the formula: nothing tests it"
    yield from _far_rows(result)
    if result.down_weighted:
        rows = ", ".join(map(str, result.down_weighted[:20]))
        yield f"these rows lie far off and count for less than a third: {rows}"


def _far_rows(result: Result) -> Iterator[str]:
    """Rows that lie eight robust standard deviations off a least-squares fit."""
    if result.errors.loss != "linear" or result.exact:
        return
    sigma = 1.0 if result.errors.sigma is None else result.errors.sigma
    left = np.abs(result.y - result.formula.evaluate(result.x.T)) / sigma
    rows = np.flatnonzero(left > FAR * robust_scale(left)).tolist()
    if 0 < len(rows) <= len(left) // 10:
        some = ", ".join(map(str, rows[:20]))
        yield f"these rows lie far off: {some}; loss='soft_l1' lets them count for less"


def _finite(v: Any) -> Any:
    return None if isinstance(v, float) and not math.isfinite(v) else v


def load_result(path: str | Path) -> Result:
    """What `Result.save` wrote; `outcome` is None and `velocity` empty.  Raises `DataError`."""
    try:
        return _from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is not a saved result: {error!r}"[:500]) from None


def _from_dict(record: dict[str, Any]) -> Result:
    """The inverse of `Result.to_dict`.  Raises what a wrong record raises."""
    kept = ("latex", "iterations", "converged", "seconds", "searches", "steps", "digits", "target")
    origins = tuple(o and Origin(np.datetime64(o[0], "us"), o[1]) for o in record["origins"])
    sigma = record["sigma"]
    sigma = None if sigma is None else np.array(sigma, np.float64)
    result = Result(
        **{name: record[name] for name in kept},
        formula=parse_prefix(record["prefix"]),
        fvu=math.nan,
        exact=False,
        found=False,
        candidates=(),
        velocity=np.zeros((0, 1)),
        outcome=None,
        x=np.array(record["x"], np.float64),
        y=np.array(record["y"], np.float64),
        names=tuple(record["names"]),
        origins=origins,
        errors=Errors(sigma, record["loss"], record["through_origin"]),
        notes=tuple(record["notes"]),
    )
    front = Front(_candidate(c, result) for c in record["candidates"])
    others = tuple(_candidate(c, result) for c in record["runners_up"])
    return judged(replace(result, candidates=front, runners_up=others), result.x, result.y)


def _candidate(record: dict[str, Any], result: Result) -> Candidate:
    odds = math.nan if record["odds"] is None else float(record["odds"])
    own = (result.names, result.target, result.digits, result.origins)
    law = parse_prefix(record["prefix"])
    return Candidate(record["length"], record["fvu"], record["formula"], law, odds, *own)


def judged(result: Result, x: np.ndarray, y: np.ndarray) -> Result:
    """The result with its fit measured on the points x (points, variables), y by its formula as it
    stands; infinite where that is undefined at one.
    """
    fvu = weighted_fvu(result.formula, x.T, y, result.errors)
    exact = fvu < EXACT and is_established(result.formula, x.T, y)
    return replace(result, fvu=fvu, exact=exact, found=fvu < FOUND, x=x, y=y)


def constant_result(table: Table) -> Result:
    """The answer for a y that does not change, up to rounding: no search, no step."""
    formula = Formula((float(np.median(table.y)),))
    fvu = evaluated_fvu(formula, table.x.T, table.y)
    result = Result(
        latex=latex_of(formula, 17),
        iterations=0,
        formula=formula,
        fvu=fvu,
        converged=True,
        exact=fvu == 0.0,
        found=fvu == 0.0,
        candidates=(),
        velocity=np.zeros((0, 1)),
        outcome=None,
        x=table.x,
        y=table.y,
        digits=17,
        names=table.names,
        target=table.target,
        origins=table.origins,
        notes=table.notes,
    )
    text = printed_text(pretty(formula, 17))
    front = Candidate(1, fvu, text, formula, math.nan, table.names, table.target)
    return replace(result, candidates=Front([front]))
