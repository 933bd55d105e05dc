"""Numbers rounded as far as the data allow, and what rounding makes superfluous removed.  (Chapter
8)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from refinemath.answer.solution import (
    EXACT,
    Solution,
    code_length,
    fraction_unexplained,
    least_squares,
    refine_constants,
    score_solution,
    term_values,
    with_numbers,
)
from refinemath.expression import Formula, fold

SAME = 1e-3  # nats: between exact fits no difference but rounding
Sized = tuple[tuple[str | float, ...], float]  # parts of a formula and the largest of their values


def simple_neighbours(v: float) -> list[float]:
    """Simple numbers near v, simplest first: integers, halves, thirds, quarters, tenths, small
    multiples of pi, then v with 2 to 4 digits; before these what log 2 times or over a small whole
    number is to four digits.
    """
    near = [round(v * q) / q for q in (1, 2, 3, 4, 5, 10) if abs(v) < 1e15]
    near += [
        round(v * q / math.pi) * math.pi / q for q in (1, 2, 3, 4) if abs(v) < 12.5 * math.pi / q
    ]
    near += [n for n in _halving(v) if abs(n - v) <= 1e-4 * abs(v)]
    near += [float(f"{v:.{d}g}") for d in (2, 3, 4)]
    return [n for n in dict.fromkeys(near) if n != 0 and abs(n - v) <= 0.05 * abs(v)]


def _halving(v: float) -> list[float]:
    """Log 2 times a fraction of small whole numbers, and over a whole number, as near to v."""
    log2 = math.log(2)
    if not 1e-3 < abs(v) < 12.5 * log2:
        return []
    whole = round(log2 / v)
    return [round(v * q / log2) * log2 / q for q in (1, 2, 3)] + ([log2 / whole] if whole else [])


def drop_negligible(term: Formula, x: np.ndarray, least: float = 1e-12) -> Formula:
    """The term without summands inside it that are rounding beside their partner: sqrt(x) for
    sqrt(x + 3e-17).  x: (variables, points).
    """

    def node(part: str | float, *operands: Sized) -> Sized:
        if part in ("add", "sub"):
            (first, a), (second, b) = operands
            if b <= least * a:
                return first, a
            if a <= least * b:
                return (second if part == "add" else ("neg", *second)), b
        parts = (part, *(p for own, _ in operands for p in own))
        return parts, float(np.max(np.abs(Formula(parts).evaluate(x))))

    return Formula(fold(term.parts, node)[0])


def round_constants(solution: Solution, x: np.ndarray, y: np.ndarray) -> Solution:
    """Replace numbers by simple ones near them, one after the other, as long as the description
    gets no longer.  x: (variables, points), y: (points,).

    After every replacement the other numbers are fitted again.  A number that the data pin down is
    thus left alone unless the simple one explains them as well.  Summands that are rounding, and
    terms whose removal shortens the description, go first.  All is done with an offset and without,
    and the shorter description counts.
    """
    best = _drop_terms(score_solution(solution, x, y), x, y)
    forms = [_round_inner(best, x, y, intercept=True)]
    without = _refit(best.terms, x, y, intercept=False)
    if without is not None:
        forms.append(_round_inner(without, x, y, intercept=False))
    best = min(forms, key=code_length)
    rounding = 1e-13 * float(np.max(np.abs(y)))
    return replace(best, offset=0.0) if abs(best.offset) < rounding else best


def _refit(
    terms: Sequence[Formula],
    x: np.ndarray,
    y: np.ndarray,
    *,
    frozen: frozenset[int] = frozenset(),
    intercept: bool = True,
) -> Solution | None:
    found = refine_constants(terms, x, y, frozen=frozen, intercept=intercept)
    return None if found is None else score_solution(found, x, y)


def _no_longer(trial: Solution, best: Solution) -> bool:
    """Whether the description has become no longer; rounding does not count."""
    slack = SAME if max(trial.fvu, best.fvu) < EXACT else 0.0
    return code_length(trial) <= code_length(best) + slack


def _length(trial: Solution | None) -> float:
    return math.inf if trial is None else code_length(trial)


def _drop_terms(best: Solution, x: np.ndarray, y: np.ndarray) -> Solution:
    """Without summands that are rounding, and without terms that cost more than they explain."""
    lean = tuple(drop_negligible(term, x) for term in best.terms)
    if lean != best.terms:
        best = min(best, _refit(lean, x, y) or best, key=code_length)
    while len(best.terms) > 1:
        shorter = [_refit([t for t in best.terms if t is not gone], x, y) for gone in best.terms]
        trial = min(shorter, key=_length)
        if trial is None or _length(trial) > code_length(best):
            break
        best = trial
    return best


def _round_inner(best: Solution, x: np.ndarray, y: np.ndarray, *, intercept: bool) -> Solution:
    """The numbers inside the terms rounded, the largest first, then the linear ones."""
    frozen: frozenset[int] = frozenset()
    for i in sorted(range(len(best.constants)), key=lambda i: -abs(best.constants[i])):
        numbers = best.constants
        for number in simple_neighbours(numbers[i]):
            numbers[i] = number
            terms = with_numbers(best.terms, numbers)
            trial = _refit(terms, x, y, frozen=frozen | {i}, intercept=intercept)
            if trial is not None and _no_longer(trial, best):
                best, frozen = trial, frozen | {i}
                break
    return _round_linear(best, x, y, intercept=intercept)


def _round_linear(best: Solution, x: np.ndarray, y: np.ndarray, *, intercept: bool) -> Solution:
    """Coefficients and offset rounded, those not yet rounded fitted again each time."""
    columns = term_values(best.terms, best.constants, x)
    if columns is None:
        return best
    columns = np.concatenate([columns, np.ones((len(y), 1))], axis=1)
    numbers = np.array([*best.coefficients, best.offset])
    loose = [i for i in range(len(numbers)) if intercept or i < len(numbers) - 1]
    for i in list(loose):
        rest = [j for j in loose if j != i]
        held = [j for j in range(len(numbers)) if j not in rest]
        for number in simple_neighbours(numbers[i]):
            fixed = numbers.copy()
            fixed[i] = number
            fixed[rest], _, residual = least_squares(
                columns[:, rest], y - columns[:, held] @ fixed[held], intercept=False
            )
            found = replace(
                best,
                coefficients=tuple(fixed[:-1].tolist()),
                offset=float(fixed[-1]),
                fvu=fraction_unexplained(residual, y),
            )
            trial = score_solution(found, x, y)
            if _no_longer(trial, best):
                best, numbers, loose = trial, fixed, rest
                break
    return best
