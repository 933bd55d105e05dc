"""From points to a formula: reading and checking the data, the search, the choice, the answer.
(Chapters 0, 8, 10)
"""

from __future__ import annotations

import contextlib
import csv
import functools
import math
import numbers
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from refinemath import checkpoint
from refinemath.fit import Solution, appraise, description_length, linear_solution, polish, snap
from refinemath.language import (
    CONSTANT_BINS,
    END,
    FIRST_CONSTANT,
    SLOTS,
    VARIABLES,
    Formula,
    FormulaError,
    combine,
    decode,
    encode,
    is_constant,
    parse,
    parse_prefix,
    split_terms,
)
from refinemath.model import Config, Model, Points
from refinemath.search import ANY_CONSTANT, POINTS, Budget, Outcome, think

FEWEST_POINTS = 4
# numbers are fitted on no more points than this; the network and the search look at 64 of them
MOST_POINTS = 4096
COMMON = (1, -1, 2, 0.5)  # constants that short formulas are always tried with
EXACT = 1e-23  # FVU in float64 under which a fit counts as exact


class DataError(ValueError):
    """Points that cannot be used; the message says what was found and what is needed."""


# ---------------------------------------------------------------- points in


def read_points(data: Any, y: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """x (points, variables) and y (points,) in float64 from what a user has.

    Accepts an array or list of rows (x, y) or (x1, x2, y); a pair x, y; a DataFrame; or the path of
    a `.npy`, `.csv` or `.txt` file with the target in the last column.  Raises `DataError`.
    """
    if y is None and isinstance(data, str | Path):
        data = _read_file(Path(data))
    table: np.ndarray
    if y is not None:
        x_part, y_part = _numbers(data, "x"), _numbers(y, "y")
        if y_part.ndim == 2 and y_part.shape[1] == 1:
            y_part = y_part[:, 0]
        if y_part.ndim != 1:
            raise DataError(f"y has shape {y_part.shape}; it must be one number a point")
        x_part = x_part[:, None] if x_part.ndim == 1 else x_part
        if x_part.ndim != 2 or len(x_part) != len(y_part):
            raise DataError(
                f"x has shape {x_part.shape} and y has shape {y_part.shape}; they need the same number of points"
            )
        table = np.concatenate([x_part, y_part[:, None]], axis=1)
    else:
        table = _numbers(data, "data")
    if table.ndim != 2:
        raise DataError(
            f"the data have shape {table.shape}; expected rows of (x, y), or (x1, x2, y), or (x1, x2, x3, y)"
        )
    count, columns = table.shape
    if not 2 <= columns <= 1 + len(VARIABLES):
        raise DataError(
            f"the data have {columns} column(s); expected 2 to {1 + len(VARIABLES)}: one to three variables, then y"
        )
    if count < FEWEST_POINTS:
        raise DataError(
            f"{count} point(s) are too few for a formula; at least {FEWEST_POINTS} are needed"
        )
    bad = ~np.isfinite(table).all(axis=1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} row(s) hold NaN or infinity, the first is row {int(np.argmax(bad))}; remove them"
        )
    if np.max(np.abs(table)) > 1e100:
        raise DataError(
            f"the largest number is {np.max(np.abs(table)):.3g}; numbers beyond 1e100 are not supported, choose other units"
        )
    spans = np.ptp(table, axis=0)
    if np.any((spans > 0) & (spans < 1e-100)):
        raise DataError(
            f"a column spans only {np.min(spans[spans > 0]):.3g}; spans under 1e-100 are not supported, choose other units"
        )
    for i in range(columns - 1):
        if spans[i] == 0:
            raise DataError(
                f"variable {VARIABLES[i] if columns > 2 else 'x'} is {table[0, i]:g} at every point; a formula needs at least two different values"
            )
    return table[:, :-1], table[:, -1]


def _read_file(path: Path) -> Any:
    try:
        there = path.is_file()
    except OSError as error:
        raise DataError(f"{str(path)[:80]!r} is not the path of a file: {error.strerror}") from None
    if not there:
        raise DataError(f"there is no file {path}")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if suffix in (".csv", ".txt", ".tsv", ".dat"):
            text = path.read_text(encoding="utf-8-sig")
            lines = [
                line for line in text.splitlines() if line.strip() and not line.startswith("#")
            ]
            delimiter = next((d for d in (",", ";", "\t") if lines and d in lines[0]), None)
            rows = (
                list(csv.reader(lines, delimiter=delimiter))
                if delimiter
                else [line.split() for line in lines]
            )
            if rows and not any(_is_number(cell) for cell in rows[0]):  # names of the columns
                rows = rows[1:]
            if not rows:
                raise DataError(f"{path} holds no numbers")
            for i, row in enumerate(rows):
                if len(row) != len(rows[0]):
                    raise DataError(
                        f"{path}: data row {i + 1} has {len(row)} column(s), the first has {len(rows[0])}"
                    )
                for cell in row:
                    if not _is_number(cell):
                        raise DataError(f"{path}: {cell!r} in data row {i + 1} is not a number")
            return np.array([[float(cell) for cell in row] for row in rows])
    except (OSError, ValueError, EOFError, MemoryError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path}: {error}") from None
    raise DataError(
        f"{path} ends in {suffix or 'nothing'}; known are .npy, .csv, .tsv, .txt and .dat"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(data: Any, name: str) -> np.ndarray:
    if hasattr(data, "to_numpy"):
        data = data.to_numpy()
    if np.ma.isMaskedArray(data) and np.ma.is_masked(data):
        raise DataError(f"{name} has masked entries; remove their rows")
    try:
        array = np.asarray(data)
        if array.dtype == object or array.dtype.kind in "SU":
            array = np.array(array.tolist(), np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{name} holds something that is not a number of float64, or rows of different lengths"
        ) from None
    if array.dtype.kind == "c":
        raise DataError(f"{name} holds complex numbers; the language is real")
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} has type {array.dtype}; numbers are needed")
    return array.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Prepared:
    """The points as the network sees them, and the factors that lead back."""

    points: Points
    scale: np.ndarray  # x = scale * u for every variable
    u: np.ndarray  # (variables, points): all points, scaled
    x: np.ndarray
    y: np.ndarray


def prepare(x: np.ndarray, y: np.ndarray, *, room: int | None = None) -> Prepared:
    """Scale each variable into the range the model was trained on, choose at most 64 points, sort,
    pad to 32 or 64, or to `room`.
    """
    top = np.max(np.abs(x), axis=0)
    factor = np.array([1.0 if 0.4 <= t <= 13 else float(f"{t / 5:.0e}") for t in top])
    u = (x / factor).T
    n = len(y)
    order = np.argsort(x[:, 0], kind="stable")
    chosen = (
        order
        if n <= POINTS
        else order[np.unique(np.round(np.linspace(0, n - 1, POINTS)).astype(int))]
    )
    target = y[chosen]
    centre = float(np.mean(target))
    target = target - centre if abs(centre) > 10 * float(np.std(target)) else target
    target = target / (float(np.sqrt(np.mean(target**2))) or 1.0)
    room = room or (POINTS // 2 if n <= POINTS // 2 else POINTS)
    pad = room - len(chosen)
    points = Points(
        jnp.asarray(np.pad(u[:, chosen], ((0, 0), (0, pad)))[None], jnp.float32),
        jnp.asarray(np.pad(target, (0, pad))[None], jnp.float32),
        jnp.asarray((np.arange(room) < len(chosen))[None]),
    )
    return Prepared(points, factor, u, x.T, y)


# ---------------------------------------------------------------- one operation undone

UNDO: dict[
    str, Callable[[np.ndarray, np.ndarray], np.ndarray]
] = {  # what later searches undo, in this order: t from y and x1
    "exp": lambda y, x: np.log(np.abs(y)),
    "mul": lambda y, x: y / x,
    "inv": lambda y, x: 1.0 / y,
    "square": lambda y, x: np.sqrt(np.abs(y)),
    "sqrt": lambda y, x: y * y,
    "div": lambda y, x: y * x,
    "log": lambda y, x: np.exp(y),
}
SHORT_SEARCH = 4  # search steps where one operation is undone: what is left is shorter


def undone(operation: str, prepared: Prepared) -> Prepared | None:
    """The points with t in place of y, where y = operation(t): log |y| for "exp", y / x1 for "mul",
    y x1 for "div", and so on.  Chapter 8.

    None where y does not allow it: numbers of both signs under a root or a logarithm, a zero in a
    denominator, numbers beyond float64. Where x1 is 0 at a few points, y / x1 leaves them out.
    """
    y, x = prepared.y, prepared.u[0]
    size = np.abs(y)
    kept = np.abs(x) > 1e-3 * np.max(np.abs(x)) if operation == "mul" else np.full(len(y), True)
    if operation in ("exp", "square", "sqrt"):
        allowed = bool(np.all(y > 0) or np.all(y < 0))
    elif operation == "inv":
        allowed = bool(np.min(size) > 1e-4 * np.max(size))
    elif operation == "mul":
        allowed = bool(np.mean(kept) > 0.8)
    else:
        allowed = operation == "div" or bool(np.max(size) < 20.0)
    if not allowed:
        return None
    with np.errstate(over="ignore"):
        t = UNDO[operation](y[kept], x[kept])
    if not np.all(np.abs(t) < 1e100) or np.ptp(t) <= 1e-9 * np.max(np.abs(t)):
        return None
    return prepare(prepared.x.T[kept], t, room=prepared.points.y.shape[1])


def redone(operation: str, solution: Solution, prepared: Prepared) -> Solution | None:
    """A formula for t made one for y, all its numbers fitted again, with a factor and an offset;
    None where it is undefined.
    """
    if not solution.terms:
        return None
    if operation == "mul":
        return polish(
            [*(Formula(("mul", "x1", *t.parts)) for t in solution.terms), Formula(("x1",))],
            prepared.u,
            prepared.y,
        )
    if operation == "div":
        return polish(
            [*(Formula(("div", *t.parts, "x1")) for t in solution.terms), Formula(("inv", "x1"))],
            prepared.u,
            prepared.y,
        )
    # a factor inside is none of exp's own, but one in front of the other operations
    scale = {
        "exp": 1.0,
        "sqrt": abs(solution.coefficients[0]),
        "log": abs(solution.coefficients[0]),
    }.get(operation, solution.coefficients[0]) or 1.0
    rounding = 1e-12 * max(map(abs, solution.coefficients))
    offset = (
        0.0 if operation == "exp" or abs(solution.offset) < rounding else solution.offset / scale
    )
    inner = combine(solution.terms, [a / scale for a in solution.coefficients], offset)
    found = polish([Formula((operation, *inner.parts))], prepared.u, prepared.y)
    if found is None:
        return None
    # as SymPy writes it: exp of a sum of logarithms is a product, which is defined where the
    # logarithms are not
    try:
        plain = polish(_terms_of(found.formula().sympy()), prepared.u, prepared.y)
    except (FormulaError, TypeError, ValueError, ArithmeticError, RecursionError):
        return found
    return (
        plain if plain is not None and plain.terms and plain.fvu <= 4 * found.fvu + 1e-18 else found
    )


def planned(prepared: Prepared, operations: Sequence[str]) -> Callable[[int], tuple[str, Prepared]]:
    """What each search looks at: the points as they are ("") first and after every four others,
    which undo the `operations` that y allows.
    """

    @functools.cache
    def turns() -> list[tuple[str, Prepared]]:
        views = [
            (name, view) for name in operations if (view := undone(name, prepared)) is not None
        ]
        turns: list[tuple[str, Prepared]] = []
        for i in range(0, max(len(views), 1), 4):
            turns += [("", prepared), *views[i : i + 4]]
        return turns

    # most problems need one search, and no view is made for them
    return lambda attempt: turns()[attempt % len(turns())] if attempt else ("", prepared)


# ---------------------------------------------------------------- the choice


def fit_double(
    outcome: Outcome, prepared: Prepared, *, most: int = 12, each: int = 2
) -> list[Solution]:
    """The `most` best formulas of a search and the `each` best of every length, numbers fitted
    again in float64; best description first.
    """
    tokens, cost = np.asarray(outcome.pool.tokens), np.asarray(outcome.pool.cost)
    values, length = (
        np.asarray(outcome.pool.values, np.float64),
        np.count_nonzero(tokens != END, axis=1),
    )
    seen = dict.fromkeys(length.tolist(), 0)
    solutions: list[Solution] = []
    for i in np.flatnonzero(np.isfinite(cost)):
        seen[int(length[i])] += 1
        if i >= most and seen[int(length[i])] > each:
            continue
        solution = polish(split_terms(decode(tokens[i], values[i])), prepared.u, prepared.y)
        if solution is not None:
            solutions.append(appraise(solution, prepared.u, prepared.y))
            if len(solutions) >= 4 and min(s.fvu for s in solutions) < EXACT:
                break
    return sorted(solutions, key=description_length)


def read(
    outcome: Outcome, operation: str, view: Prepared, prepared: Prepared, *, most: int = 6
) -> list[Solution]:
    """What `fit_double` finds in a search; where that looked at points with an operation undone,
    its `most` best formulas with it done again.
    """
    solutions = fit_double(outcome, view)
    if not operation:
        return solutions
    if solutions and solutions[0].fvu < EXACT:
        solutions = [snap(solutions[0], view.u, view.y)]
    again = [redone(operation, solution, prepared) for solution in solutions[:most]]
    return [
        appraise(solution, prepared.u, prepared.y) for solution in again if solution is not None
    ]


def _terms_of(expression: sympy.Expr) -> list[Formula]:
    """The additive terms of an expression without their coefficients; what holds no variable is
    left out.  Raises `FormulaError`.
    """
    return [
        parse(str(p.as_coeff_Mul()[1])) for p in sympy.Add.make_args(expression) if p.free_symbols
    ]


def _monic(expression: sympy.Expr) -> sympy.Expr:
    """(c f + d)^k with numbers c, d and k becomes c^k (f + d/c)^k: a factor in front instead of a
    number inside.
    """

    def pulled_out(power: sympy.Pow) -> sympy.Expr:
        number, rest = power.base.as_coeff_Add()
        factor, f = rest.as_coeff_Mul()
        if f.is_Add or not (factor > 0 or power.exp.is_integer):
            return power
        return factor**power.exp * (f + number / factor) ** power.exp

    return expression.replace(lambda e: e.is_Pow and e.base.is_Add and e.exp.is_number, pulled_out)


def rescale(solution: Solution, prepared: Prepared) -> Solution | None:
    """The same function in the user's x: powers, logarithms and factors absorb the scale where they
    can.
    """
    if np.all(prepared.scale == 1.0):
        return solution
    names = VARIABLES[: len(prepared.scale)]
    symbols = {
        v: sympy.Symbol(v, positive=True)
        if np.all(prepared.x[i] > 0)
        else sympy.Symbol(v, real=True)
        for i, v in enumerate(names)
    }
    terms: list[Formula] = []
    try:
        for term in solution.terms:
            expression = term.sympy().subs(
                {
                    sympy.Symbol("x", real=True): symbols["x1"],
                    **{sympy.Symbol(v, real=True): s for v, s in symbols.items()},
                }
            )
            expression = expression.subs(
                {s: s / sympy.Float(prepared.scale[i], 17) for i, s in enumerate(symbols.values())},
                simultaneous=True,
            )
            terms += _terms_of(_monic(sympy.expand_log(sympy.expand_power_base(expression))))
    except (FormulaError, TypeError, ValueError, ArithmeticError, RecursionError):
        terms = []
    direct = linear_solution(terms, prepared.x, prepared.y) if terms else None
    if direct is not None and direct.fvu <= 4 * solution.fvu + 1e-18:
        return polish(direct.terms, prepared.x, prepared.y)
    scaled = [
        Formula(
            tuple(
                q
                for p in t.parts
                for q in (
                    ("mul", 1 / prepared.scale[VARIABLES.index(p)], p) if p in VARIABLES else (p,)
                )
            )
        )
        for t in solution.terms
    ]  # type: ignore[arg-type]
    return linear_solution(scaled, prepared.x, prepared.y)


def multiplied_out(solution: Solution, prepared: Prepared, *, most: int = 6) -> Solution | None:
    """The same function as a sum of powers and products, such as x^2 + x for (x + 1/2)^2; None
    where that is nothing new or has over `most` terms.
    """
    expression = sympy.Add(
        *(a * t.sympy() for a, t in zip(solution.coefficients, solution.terms, strict=True))
    )
    try:
        terms = list(dict.fromkeys(_terms_of(_monic(sympy.expand(expression)))))
    except (FormulaError, TypeError, ValueError, ArithmeticError, RecursionError):
        return None
    if (
        not 0 < len(terms) <= most
        or {t.parts for t in terms} == {t.parts for t in solution.terms}
        or max(map(len, terms)) > SLOTS
    ):
        return None
    found = linear_solution(terms, prepared.x, prepared.y)
    return found if found is not None and found.fvu <= 4 * solution.fvu + 1e-18 else None


def one_fraction(solution: Solution, prepared: Prepared) -> Solution | None:
    """g / (g + d) in place of b + a / (g + d), which is the same where a = -b d; None where the
    formula is not of that kind.
    """
    if len(solution.terms) != 1:
        return None
    power = _monic(solution.terms[0].sympy()).as_coeff_Mul()[1]
    number, g = (
        power.base.as_coeff_Add()
        if power.is_Pow and power.exp.is_number and float(power.exp) == -1
        else (sympy.S.Zero, power)
    )
    if number == 0:
        return None
    try:
        return polish([parse(str(g * power))], prepared.x, prepared.y, intercept=False)
    except FormulaError:
        return None


Known = tuple[
    dict[Solution, list[Solution]], dict[Solution, Solution]
]  # forms of a solution in the user's units; what a form snaps to


def choose_solution(
    front: list[Solution], prepared: Prepared, *, most: int = 8, known: Known | None = None
) -> Solution | None:
    """The formula of least description length among the `most` best, their numbers polished in the
    user's units and snapped.

    `known` remembers what was worked out, for the next call on the same points.
    """
    forms_of, snapped = known or ({}, {})
    seen: list[float] = []
    forms: list[Solution] = []
    for solution in front[: 3 * most]:
        if any(abs(solution.fvu - fvu) <= 1e-6 * fvu for fvu in seen):
            continue  # the same function in other words
        if solution not in forms_of:
            own = rescale(solution, prepared)
            variants = (
                []
                if own is None
                else [own, multiplied_out(own, prepared), one_fraction(own, prepared)]
            )
            forms_of[solution] = [
                appraise(form, prepared.x, prepared.y) for form in variants if form is not None
            ]
        if forms_of[solution]:
            seen.append(solution.fvu)
            forms += forms_of[solution]
            if forms_of[solution][0].fvu < EXACT:
                break
    finished: list[Solution] = []
    for form in sorted(forms, key=description_length)[:most]:
        if form not in snapped:
            snapped[form] = snap(form, prepared.x, prepared.y)
        finished.append(snapped[form])
        if finished[-1].fvu < EXACT and len(finished) >= 3:
            break
    return min(finished, key=description_length) if finished else None


# ---------------------------------------------------------------- the answer


@dataclass(frozen=True)
class Attempt:
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
    candidates: tuple[Attempt, ...]
    velocity: np.ndarray = field(
        repr=False
    )  # (steps, thoughts): relative velocity of every thought
    outcome: Outcome | None = field(repr=False)
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
        return tidy(self.formula, self.digits)

    def python(self) -> str:
        """The formula as a line of Python that needs `import math`, with all digits of its numbers."""
        return str(sympy.pycode(tidy(self.formula, 17), fully_qualified_modules=True))

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
        from refinemath.vis import plot_fit

        figure = plot_fit(self)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle y = {self.latex}$"

    def __str__(self) -> str:
        return f"y = {self.sympy()}"


def tidy(formula: Formula, digits: int = 6) -> sympy.Expr:
    """The SymPy form that is printed: numbers to `digits` significant digits, multiples of pi and
    whole numbers exact.
    """
    expression = formula.sympy()
    numbers = {}
    for number in expression.atoms(sympy.Float):
        v = float(number)
        share = sympy.Rational(round(v / math.pi * 12), 12) if abs(v) < 40 else sympy.Integer(0)
        if 0 < abs(share.p) <= 12 and abs(v - float(share) * math.pi) < 1e-9 * abs(v):
            numbers[number] = share * sympy.pi
        elif abs(v) < 1e9 and abs(v - round(v)) < 1e-9 * abs(v):
            numbers[number] = sympy.Integer(round(v))
        else:
            numbers[number] = sympy.Float(repr(v) if digits >= 17 else f"{v:.{digits}g}")
    return expression.xreplace(numbers)


def digits_needed(formula: Formula, x: np.ndarray, y: np.ndarray) -> int:
    """Significant digits with which a printed formula still says what it says: 6, or more where
    rounding to 6 would move it.  x: (variables, points).
    """
    exact, variance = formula.evaluate(x), float(np.var(y))
    for digits in (6, 9, 12):
        rounded = formula.with_constants(float(f"{v:.{digits}g}") for v in formula.constants())
        with np.errstate(over="ignore", invalid="ignore"):
            if np.mean((rounded.evaluate(x) - exact) ** 2) <= 1e-8 * variance:
                return digits
    return 17


def latex_of(formula: Formula, digits: int = 6) -> str:
    """LaTeX of a formula, short numbers."""
    return str(sympy.latex(tidy(formula, digits), mul_symbol=r"\,", ln_notation=False))


# ---------------------------------------------------------------- the model


def shipped_widths() -> list[int]:
    """The latent widths whose weights are in the package."""
    folder = resources.files("refinemath") / "weights"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(
        int(n.removeprefix("refinemath-").removesuffix(".npz"))
        for n in names
        if n.startswith("refinemath-") and n.endswith(".npz")
    )


@contextlib.contextmanager
def kept_compiled() -> Iterator[None]:
    """Inside, JAX keeps what it compiles on disk: the first process on a machine waits for the
    compiler, the next ones do not.

    The folder is `refinemath` in the user's cache, one for each machine.  Nothing changes where a
    place was chosen already (`JAX_COMPILATION_CACHE_DIR`), the cache is switched off
    (`JAX_ENABLE_COMPILATION_CACHE=0`), or the folder cannot be written.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        yield
        return
    try:
        base = (
            os.environ.get("XDG_CACHE_HOME")
            or os.environ.get("LOCALAPPDATA")
            or Path.home() / ".cache"
        )
        folder = Path(base) / "refinemath" / f"{platform.node()}-{platform.machine()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # there may be no home folder
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def plain_float32() -> Iterator[None]:
    """Inside, JAX computes in float32 all through, also where 64-bit numbers are switched on or a
    GPU would round the factors of its products.
    """
    narrow = jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64()  # type: ignore[attr-defined]
    with (
        narrow,
        contextlib.nullcontext()
        if jax.default_backend() == "cpu"
        else jax.default_matmul_precision("highest"),
    ):
        yield


@functools.lru_cache(maxsize=4)
def _load(
    path: Path, changed: int
) -> tuple[Any, Any, Config]:  # `changed`: what was written anew is read anew
    meta = checkpoint.read_meta(path)
    try:
        config = Config(**meta["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(
            f"{path} describes a model that this version does not know: {error}"
        ) from None
    graph, template = nnx.split(nnx.eval_shape(lambda: Model(config, rngs=nnx.Rngs(0))))
    params, _ = checkpoint.load(path, template)
    return params, graph, config


@functools.cache
def short_skeletons(slots: int = SLOTS, copies: int = 1) -> np.ndarray:
    """All canonical skeletons of up to five tokens, (formulas, slots) uint8: what the search tries
    before it thinks.

    The shortest come first, those with a constant once for each of `COMMON`.  They come `copies`
    times more at the end, with `ANY_CONSTANT` in place of each constant: every copy is tried with
    other numbers.
    """
    text = resources.files("refinemath").joinpath("short_formulas.txt").read_text(encoding="utf-8")
    tokens, _ = encode(
        [parse_prefix(line) for line in text.splitlines() if line and not line.startswith("#")],
        slots,
    )
    place = is_constant(tokens)
    numbers = place.any(axis=1)
    common = [
        np.where(place[numbers], token, tokens[numbers])
        for token in (FIRST_CONSTANT + CONSTANT_BINS.index(c) for c in COMMON)
    ]
    fixed = np.concatenate([tokens[~numbers], *common])
    fixed = fixed[np.argsort((fixed != END).sum(axis=1), kind="stable")]
    drawn = np.repeat(np.where(place, ANY_CONSTANT, tokens)[numbers], copies, axis=0)
    return np.concatenate([fixed, drawn]).astype(np.uint8)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral)  # NumPy's whole numbers as well


_COMPILED: set[Any] = set()  # the searches that this process has compiled


class RefineMath:
    """A model that turns points into a formula.

    `latent_dim`: the width of the latent; weights of this width must be in the package or given as
    `weights`, the path of a file that training wrote.  `max_iters`: the most refiner steps of one
    search.  `budget`: how much each step may do, see `search.Budget`; its `steps` become
    `max_iters`, and its `search_steps` half of them if they are more. `sweep`: whether all formulas
    of up to five tokens are tried before the first step.  `undo`: whether searches after the first
    also look at the data with one operation undone, such as log y, which is the rest where y is exp
    of it.
    """

    def __init__(
        self,
        latent_dim: int = 512,
        max_iters: int = 32,
        *,
        weights: str | Path | None = None,
        budget: Budget | None = None,
        sweep: bool = True,
        undo: bool = True,
    ):
        if not _is_whole(max_iters) or not 1 <= max_iters <= 1024:
            raise ValueError(
                f"max_iters is {max_iters!r}; it must be a whole number from 1 to 1024"
            )
        if not _is_whole(latent_dim) or latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim!r}; it must be a positive whole number")
        self.latent_dim = int(latent_dim)
        self.max_iters = int(max_iters)
        self.weights = None if weights is None else Path(weights)
        self.sweep = sweep
        self.undo = undo
        self.prior: np.ndarray | None = None  # skeletons for the null model
        base = budget or Budget()
        self.budget = replace(
            base,
            steps=self.max_iters,
            search_steps=min(base.search_steps, max(1, self.max_iters // 2)),
        )

    def _parameters(self) -> tuple[Any, Any, Config]:
        if self.weights is not None:
            if not self.weights.is_file():
                raise checkpoint.CheckpointError(f"there is no weights file {self.weights}")
            params, graph, config = _load(self.weights, self.weights.stat().st_mtime_ns)
            if config.latent_dim != self.latent_dim:
                raise checkpoint.CheckpointError(
                    f"{self.weights} has latent_dim {config.latent_dim}, not {self.latent_dim}"
                )
            return params, graph, config
        widths = shipped_widths()
        if self.latent_dim not in widths:
            raise checkpoint.CheckpointError(
                f"no weights of latent_dim {self.latent_dim} are shipped; shipped: {', '.join(map(str, widths)) or 'none'}. "
                f"Train your own with `python -m refinemath train --latent-dim {self.latent_dim} --out FOLDER` and pass weights='FOLDER/weights.npz'"
            )
        return _load(
            Path(
                str(resources.files("refinemath") / "weights" / f"refinemath-{self.latent_dim}.npz")
            ),
            0,
        )

    @plain_float32()
    def solve(
        self,
        data: Any,
        y: Any = None,
        *,
        threshold: float = 1e-5,
        seed: int = 0,
        time_budget: float = 8.0,
    ) -> Result:
        """Find a formula for the points; returns a `Result` that unpacks as `formula_latex,
        iterations`.

        `data`: rows (x, y), see `read_points` for all forms.  `threshold`: the relative latent
        velocity |Z_t - Z_{t-1}| / |Z_{t-1}| under which a thought has settled.  `seed`: makes the
        answer repeatable, where the same number of searches fits into the time; its last 32 bits
        count.  `time_budget`: seconds within which the last search should end (the first always
        runs).  A poor fit is a result with `found` False, not an error.  Raises `DataError`,
        `CheckpointError`, `ValueError`.
        """
        began = time.perf_counter()
        if not isinstance(threshold, numbers.Real) or not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold!r}; it must be a number between 0 and 1")
        if not isinstance(time_budget, numbers.Real) or not time_budget > 0:
            raise ValueError(
                f"time_budget is {time_budget!r}; it must be a positive number of seconds"
            )
        if not _is_whole(seed) or not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed is {seed!r}; it must be a whole number of at most 64 bits")
        x, target = read_points(data, y)
        params, graph, config = self._parameters()
        if x.shape[1] != config.variables:
            raise DataError(
                f"the data have {x.shape[1]} variables; these weights handle {config.variables}. "
                f"Train others with `python -m refinemath train --variables {x.shape[1]}`"
            )
        if np.ptp(target) <= 1e-14 * max(1e-300, float(np.max(np.abs(target)))):
            return _constant(x, target, began)
        spaced = np.round(np.linspace(0, len(x) - 1, MOST_POINTS)).astype(int)
        few = np.argsort(x[:, 0], kind="stable")[spaced] if len(x) > MOST_POINTS else slice(None)
        prepared = prepare(x[few], target[few])
        start = jnp.asarray(
            short_skeletons(config.slots, 32)
            if self.sweep
            else np.zeros((0, config.slots), np.uint8)
        )
        prior = jnp.asarray(
            np.zeros((1, config.slots), np.uint8) if self.prior is None else self.prior
        )
        front: dict[tuple[str, ...], Solution] = {}
        known: Known = ({}, {})
        chosen: Solution | None = None
        kept: Outcome | None = None
        program = (config, self.budget, prepared.points.y.shape, start.shape, prior.shape)
        compiled = (
            program in _COMPILED
        )  # if not, the first search also compiles, and its time predicts nothing

        plan = planned(prepared, tuple(UNDO) if self.undo else ())

        def search(attempt: int) -> Outcome:
            operation, view = plan(attempt)
            key = jax.random.fold_in(jax.random.key(int(seed) % 2**63), attempt)
            most = jnp.int32(SHORT_SEARCH if operation else self.budget.search_steps)
            return think(
                params,
                graph,
                view.points,
                key,
                jnp.float32(threshold),
                start,
                prior,
                budget=self.budget,
                at_most=most,
            )

        agreed = attempt = taken = 0
        reading = 0.0  # seconds of the host for one outcome
        searched = time.perf_counter()
        with contextlib.nullcontext() if compiled else kept_compiled():
            outcome = search(0)
        while True:
            solved = float(outcome.pool.fvu[0]) <= self.budget.solved  # waits for the device
            taken += int(outcome.steps)
            found = time.perf_counter()
            one_more = (
                found - began + reading + (found - searched if compiled or attempt else 0.0)
                <= time_budget
            )
            searched = found
            # the device searches on while the host reads, unless this is likely to be the end
            counts = (
                plan(attempt)[0] == ""
            )  # only searches of the data themselves use up the patience
            following = (
                search(attempt + 1)
                if one_more and not solved and agreed + counts < self.budget.patience
                else None
            )
            for solution in read(outcome, *plan(attempt), prepared):
                name = tuple(
                    p for t in sorted(t.skeleton() for t in solution.terms) for p in (*t, ";")
                )
                if name not in front or description_length(solution) < description_length(
                    front[name]
                ):
                    front[name] = solution
            now = choose_solution(
                sorted(front.values(), key=description_length), prepared, known=known
            )
            better = now is not None and (
                chosen is None or description_length(now) < description_length(chosen) - 0.5
            )
            agreed = 0 if better else agreed + counts
            if better:
                chosen, kept = now, outcome
            reading = time.perf_counter() - found
            if (
                (chosen is not None and chosen.fvu < EXACT)
                or agreed >= self.budget.patience
                or not one_more
            ):
                break
            if following is None:
                searched = time.perf_counter()
            attempt += 1
            outcome = search(attempt) if following is None else following
        _COMPILED.add(program)
        result = _result(
            chosen,
            sorted(front.values(), key=lambda s: s.length),
            kept or outcome,
            prepared,
            began,
            searches=attempt + 1,
            steps=taken,
        )
        return result if len(x) <= MOST_POINTS else judged(result, x, target)


def _result(
    chosen: Solution | None,
    front: list[Solution],
    outcome: Outcome,
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
    records: list[Attempt] = []
    for solution in front:
        if not records or solution.fvu < 0.9 * records[-1].fvu:
            back = (
                solution.formula()
                if np.all(prepared.scale == 1.0)
                else (rescale(solution, prepared) or solution).formula()
            )
            entry = Attempt(solution.length, solution.fvu, str(tidy(back, digits - 1)))
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
        bool(outcome.converged),
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
        (Attempt(1, 0.0, str(tidy(formula))),),
        np.zeros((0, 1)),
        None,
        x,
        y,
        time.perf_counter() - began,
    )
