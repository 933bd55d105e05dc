"""Numbers rounded as far as the data allow, and what rounding makes superfluous removed.  (Chapter
8)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from refinemath.answer.solution import (
    Solution,
    _linear,
    _renumbered,
    code_length,
    refine_constants,
    score_solution,
)
from refinemath.expression import Formula, fold


def simple_neighbours(v: float) -> list[float]:
    """Simple numbers near v, simplest first: integers, halves, thirds, quarters, tenths, small
    multiples of pi, then v with 2 to 4 digits.
    """
    near = [round(v * q) / q for q in (1, 2, 3, 4, 5, 10) if abs(v) < 1e15]
    near += [
        round(v * q / math.pi) * math.pi / q for q in (1, 2, 3, 4) if abs(v) < 12.5 * math.pi / q
    ]
    near += [float(f"{v:.{d}g}") for d in (2, 3, 4)]
    return [n for n in dict.fromkeys(near) if n != 0 and abs(n - v) <= 0.05 * abs(v)]


def drop_negligible(term: Formula, x: np.ndarray, least: float = 1e-12) -> Formula:
    """The term without summands inside it that are rounding beside their partner: sqrt(x) for
    sqrt(x + 3e-17).  x: (variables, points).
    """

    def node(
        part: str | float, *operands: tuple[tuple[str | float, ...], float]
    ) -> tuple[tuple[str | float, ...], float]:
        """The parts kept, and the largest size of their values."""
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
    gets no longer.

    After every replacement the other numbers are fitted again.  A number that the data pin down is
    thus left alone unless the simple one explains them as well.  Summands that are rounding, and
    terms whose removal shortens the description, go first.  All is done with an offset and without,
    and the shorter description counts.
    """

    def length(trial: Solution | None) -> float:
        return math.inf if trial is None else code_length(trial)

    def fitted(
        terms: Sequence[Formula], frozen: frozenset[int] = frozenset(), *, intercept: bool
    ) -> Solution | None:
        found = refine_constants(terms, x, y, frozen=frozen, intercept=intercept)
        return None if found is None else score_solution(found, x, y)

    best = score_solution(solution, x, y)
    lean = tuple(drop_negligible(term, x) for term in best.terms)
    if lean != best.terms:
        best = min(best, fitted(lean, intercept=True) or best, key=code_length)
    while len(best.terms) > 1:
        finest = min(
            (
                fitted([t for t in best.terms if t is not gone], intercept=True)
                for gone in best.terms
            ),
            key=length,
        )
        if finest is None or length(finest) > length(best):
            break
        best = finest

    def rounded(best: Solution, *, intercept: bool) -> Solution:
        frozen: frozenset[int] = frozenset()
        for i in sorted(range(len(best.constants)), key=lambda i: -abs(best.constants[i])):
            numbers = best.constants
            for number in simple_neighbours(numbers[i]):
                numbers[i] = number
                trial = fitted(_renumbered(best.terms, numbers), frozen | {i}, intercept=intercept)
                if trial is not None and length(trial) <= length(best):
                    best, frozen = trial, frozen | {i}
                    break
        return _round_linear(best, x, y, intercept=intercept)

    forms = [rounded(best, intercept=True)]
    without = fitted(best.terms, intercept=False)
    if without is not None:
        forms.append(rounded(without, intercept=False))
    best = min(forms, key=code_length)
    return (
        replace(best, offset=0.0) if abs(best.offset) < 1e-13 * float(np.max(np.abs(y))) else best
    )  # rounding, not an offset


def _round_linear(best: Solution, x: np.ndarray, y: np.ndarray, *, intercept: bool) -> Solution:
    n = len(y)
    variance = max(float(np.sum((y - np.mean(y)) ** 2)), 1e-300)
    numbers = [*best.coefficients, best.offset]
    columns = np.stack([*(t.evaluate(x) for t in best.terms), np.ones(n)], axis=1)
    loose = [i for i in range(len(numbers)) if intercept or i < len(numbers) - 1]
    for i in list(loose):
        for number in simple_neighbours(numbers[i]):
            rest = [j for j in loose if j != i]
            fixed = np.array(numbers)
            fixed[i] = number
            held = [j for j in range(len(fixed)) if j not in rest]
            fixed[rest], _, residual = _linear(
                columns[:, rest], y - columns[:, held] @ fixed[held], intercept=False
            )
            trial = score_solution(
                Solution(
                    best.terms,
                    tuple(map(float, fixed[:-1])),
                    float(fixed[-1]),
                    float(np.sum(residual**2)) / variance,
                ),
                x,
                y,
            )
            if code_length(trial) <= code_length(best):
                best, numbers = trial, list(fixed)
                loose.remove(i)
                break
    return best


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
