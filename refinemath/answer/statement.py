"""The formula as it is printed: parts that are rounding removed, the shortest of SymPy's forms, as
few digits as the points need, and measured once more exactly as it stands.  (Chapter 8)
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import sympy

from refinemath.answer.codes import TINY
from refinemath.answer.solution import EXACT, evaluated_fvu, refine_constants
from refinemath.answer.symbolic import REFUSED, is_simple, pretty, printed_text
from refinemath.expression import VARIABLES, Formula, split_terms, subtree_stop
from refinemath.text import parse

DIGITS = (6, 9, 12, 15, 17)  # with which the numbers of a formula are tried
SAME = 1e-6  # a fit that gets worse by less than this share of itself is the same fit
MOST_OPERATIONS = 40  # SymPy is asked for other forms of nothing longer than this
MOST_DEGREE = 10  # nor of higher powers
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+\.?\d*(?:e[+-]?\d+)?|\*\*|\S")


Parts = Mapping[str | float, tuple[str | float, ...]]


class Statement(NamedTuple):
    """A formula that is, number for number, what its print says, and its FVU on the points."""

    formula: Formula
    fvu: float
    digits: int  # significant digits of its numbers


class Bound(NamedTuple):
    """Points x (variables, points), y (points,), and the largest FVU that counts as no worse."""

    x: np.ndarray
    y: np.ndarray
    most: float

    def keeps(self, formula: Formula | None) -> bool:
        """Whether there is a formula and it fits the points no worse."""
        return formula is not None and evaluated_fvu(formula, self.x, self.y) <= self.most


def state(formula: Formula, x: np.ndarray, y: np.ndarray, *, forms: bool = True) -> Statement:
    """A formula as it shall be printed, no worse on x (variables, points), y (points,) than before.

    Among the function as it is and SymPy's expanded, common and factored forms of it (`forms`), the
    one of the fewest tokens, then characters, is taken.  An exact fit stays exact.  Where rounding
    makes every print worse, the one of 17 digits counts, with its own FVU.
    """
    bound = _bound(formula, x, y)
    formula = prune(formula, bound)
    digits = next((d for d in DIGITS if bound.keeps(as_printed(formula, d))), DIGITS[-1])
    plain = as_printed(formula, digits)
    if plain is None or not bound.keeps(plain):
        best = plain or formula
        return Statement(best, evaluated_fvu(best, x, y), digits)
    written = [plain, as_printed(formula, digits, halves=True)]
    for other in other_forms(formula) if forms else ():
        written += [as_printed(other, digits), as_printed(other, digits, halves=True)]
    kept = [f for f in dict.fromkeys(written) if f is not None and bound.keeps(f)]
    shortest = min(kept, key=printed_length)
    return Statement(shortest, evaluated_fvu(shortest, x, y), digits)


def _bound(formula: Formula, x: np.ndarray, y: np.ndarray) -> Bound:
    fvu = evaluated_fvu(formula, x, y)
    return Bound(x, y, EXACT * (1 - SAME) if fvu < EXACT else fvu * (1 + SAME))


def printed_length(formula: Formula) -> tuple[int, int]:
    """Tokens and characters of the print; what is between two spaces may be several tokens."""
    text = printed_text(pretty(formula, 17))
    return len(_TOKEN.findall(text)), len(text)


def free_length(formula: Formula) -> int:
    """Tokens of the terms and the signs between them, without coefficients and offset."""
    lengths = []
    for term in split_terms(formula):
        parts = term.parts
        if parts[0] in ("mul", "div"):
            middle = subtree_stop(parts, 1)
            if not isinstance(parts[1], str):
                parts = parts[middle:]
            elif not isinstance(parts[middle], str):
                parts = parts[1:middle]
        if any(p in VARIABLES for p in parts):
            lengths.append(len(parts))
    return max(sum(lengths) + len(lengths) - 1, 0)


def as_printed(formula: Formula, digits: int, *, halves: bool = False) -> Formula | None:
    """The formula that a print with so many digits says; printed again it says the same.  None
    where the print is outside the language.  `halves`: 1/2 in place of 0.5.
    """
    try:
        said = parse(printed_text(pretty(formula, digits, halves=halves)))
        for _ in range(3):
            again = parse(printed_text(pretty(said, digits)))
            if again == said:
                return said
            said = again
    except REFUSED:
        pass
    return None


def other_forms(formula: Formula) -> Iterator[Formula]:
    """SymPy's expanded, common and factored forms of a formula, where they are in the language and
    their size is bounded.

    Measured numbers stand in them as symbols, since SymPy would take a decimal for a fraction of
    very large whole numbers; so do functions where polynomials are worked with.
    """
    decimals = [v for v in formula.constants() if not is_simple(v)]
    free = [v for v in VARIABLES if v not in formula.parts]
    symbol = {v: free.pop() for v in dict.fromkeys(map(abs, decimals)) if free}
    if not {abs(v) for v in decimals} <= symbol.keys():
        return
    number: Parts = {name: (v,) for v, name in symbol.items()}
    expression = pretty(_replaced(formula, {v: _signed(v, symbol) for v in decimals}), halves=True)
    if not _is_tame(expression):
        return
    calls = sorted(expression.atoms(sympy.Function), key=str)
    if len(calls) <= len(free):
        hidden = dict(zip(calls, (sympy.Symbol(v, real=True) for v in free), strict=False))
        whole = {s.name: parse(printed_text(f)).parts for f, s in hidden.items()}
        plain = expression.xreplace(hidden)
        for form in (sympy.together, sympy.cancel, sympy.factor):
            with contextlib.suppress(*REFUSED, sympy.PolynomialError):
                yield _replaced(_replaced(parse(printed_text(form(plain))), whole), number)
    with contextlib.suppress(*REFUSED):
        yield _replaced(parse(printed_text(sympy.expand(expression, power_exp=False))), number)


def _signed(v: float, symbol: dict[float, str]) -> tuple[str, ...]:
    return (symbol[abs(v)],) if v > 0 else ("neg", symbol[abs(v)])


def _replaced(formula: Formula, new: Parts) -> Formula:
    """The formula with other parts in place of some."""
    return Formula(tuple(q for p in formula.parts for q in new.get(p, (p,))))


def _is_tame(expression: sympy.Expr) -> bool:
    """Whether the polynomials behind an expression are small: SymPy would take long on others."""
    powers = [p.exp for p in expression.atoms(sympy.Pow) if p.exp.is_Rational]
    powers += [
        part.as_coeff_Mul(rational=True)[0]
        for e in expression.atoms(sympy.exp)
        for part in sympy.Add.make_args(e.args[0])
    ]
    small = all(abs(p.p) <= MOST_DEGREE and p.q <= MOST_DEGREE for p in powers)
    return small and int(expression.count_ops()) <= MOST_OPERATIONS


def prune(formula: Formula, bound: Bound) -> Formula:
    """Without terms, factors, inner summands and whole parts that change nothing at the precision
    of the points: one operand in place of a sum or product, a number in place of what does not vary
    there.  Where the fit is exact, the other numbers may be fitted again for it.
    """
    shorter = True
    while shorter:
        shorter = False
        for trial, close in _shorter_ones(formula, bound.x):
            better = trial if bound.keeps(trial) else _refitted(trial, bound) if close else None
            if better is not None:
                formula, shorter = better, True
                break
    return formula


def _refitted(formula: Formula, bound: Bound) -> Formula | None:
    """The formula with all numbers fitted again, where that makes it exact."""
    if bound.most > EXACT:
        return None
    found = refine_constants(split_terms(formula), bound.x, bound.y)
    again = None if found is None else found.formula()
    shorter = again is not None and len(again) <= len(formula) and bound.keeps(again)
    return again if shorter else None


def _shorter_ones(formula: Formula, x: np.ndarray) -> Iterator[tuple[Formula, bool]]:
    """Formulas with one part less, and whether their values are close to those before: within 1e-6
    of their spread.
    """
    parts, values = formula.parts, formula.evaluate(x)
    near = 1e-6 * float(np.std(values))
    for start in range(len(parts)):
        stop = subtree_stop(parts, start)
        for new in _replacements(parts[start:stop], x):
            trial = Formula((*parts[:start], *new, *parts[stop:]))
            yield trial, float(np.max(np.abs(trial.evaluate(x) - values))) <= near


def _replacements(
    part: tuple[str | float, ...], x: np.ndarray
) -> Iterator[tuple[str | float, ...]]:
    """What may stand in place of a part: one of its operands, or the number that it is nearly."""
    if part[0] in ("add", "sub", "mul", "div"):
        middle = subtree_stop(part, 1)
        sign = {"sub": ("neg",), "div": ("inv",)}.get(str(part[0]), ())
        yield part[1:middle]
        yield (*sign, *part[middle:])
    if len(part) > 1:
        values = Formula(part).evaluate(x)
        mean = float(np.mean(values))
        varies = any(p in VARIABLES for p in part)
        if np.ptp(values) <= 1e-6 * abs(mean) or (not varies and np.isfinite(mean)):
            yield (mean,)


def is_established(formula: Formula, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether a fit without residual says something about the formula at x (variables, points), y
    (points,), as far as the points alone can tell.

    It says nothing where y itself is coarser than a millionth of its spread; where a number of the
    formula, or a factor in front of it, may change without a change at the points, or is decided by
    as few points as there are numbers; and where rounding moves the formula between the points.
    """
    spread = max(float(np.std(y)), TINY)
    if np.spacing(np.max(np.abs(y))) > 1e-6 * spread:
        return False
    design = np.stack([formula.evaluate(x), *_moves(formula, x)], axis=1) / spread
    size = np.max(np.abs(design), axis=0)
    if not np.all(np.isfinite(size) & (size > 1e-11)) or design.shape[1] >= len(y):
        return False
    left, singular, _ = np.linalg.svd(design / size, full_matrices=False)
    leverage = np.sum(left[:, singular > 1e-12 * singular[0]] ** 2, axis=1)
    order = np.argsort(x[0], kind="stable")
    shares = np.linspace(0.21, 0.83, x.shape[1] - 1)
    between = x[:, order[:-1]] + shares * np.diff(x[:, order], axis=1)
    finer = formula.evaluate(between, dtype=np.longdouble)
    rounding = np.abs(np.asarray(finer - formula.evaluate(between), np.float64))
    steady = np.max(np.nan_to_num(rounding), initial=0.0) <= 1e-6 * spread
    return bool(np.max(leverage) < 1 - 1e-12) and bool(steady)


def _moves(formula: Formula, x: np.ndarray) -> list[np.ndarray]:
    """How the values (points,) move with a relative change of each of the formula's numbers."""
    numbers, values = formula.constants(), formula.evaluate(x)
    moved = []
    for i, number in enumerate(numbers):
        changed = [*numbers[:i], number * (1 + 1e-6), *numbers[i + 1 :]]
        if number:
            moved.append((formula.evaluate(x, changed) - values) / 1e-6)
    return moved
