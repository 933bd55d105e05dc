"""The target with one operation undone: log y where y is exp of something simple, and so on.
(Chapter 8)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from refinemath.answer.solution import Solution, refine_constants
from refinemath.answer.symbolic import _terms_of
from refinemath.expression import Formula, FormulaError, combine
from refinemath.problem import Prepared, prepare

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
        return refine_constants(
            [*(Formula(("mul", "x1", *t.parts)) for t in solution.terms), Formula(("x1",))],
            prepared.u,
            prepared.y,
        )
    if operation == "div":
        return refine_constants(
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
    found = refine_constants([Formula((operation, *inner.parts))], prepared.u, prepared.y)
    if found is None:
        return None
    # as SymPy writes it: exp of a sum of logarithms is a product, which is defined where the
    # logarithms are not
    try:
        plain = refine_constants(_terms_of(found.formula().sympy()), prepared.u, prepared.y)
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
