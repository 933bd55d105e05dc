"""Which operators a formula may use: names as a user writes them, and what is printed checked
against them.  (Chapter 10)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import sympy

from refinemath.answer.symbolic import pretty
from refinemath.expression import OPERATOR_TOKEN, OPERATORS, VOCABULARY_SIZE, Formula

ALWAYS = frozenset({"+", "-", "*"})  # every formula has a factor and an offset
_SIGN = {"add": "+", "sub": "-", "neg": "-", "mul": "*", "div": "/", "inv": "/"}
_SIGN |= dict.fromkeys(("pow", "square", "cube", "pow4", "pow5"), "**")
_OTHER = {"^": "**", "ln": "log", **_SIGN}
# what `operators` may name: the signs, and the functions of the table
OPERATOR_NAMES = frozenset(_SIGN.get(op.name, op.name) for op in OPERATORS)


def allowed_operators(names: Iterable[str] | None) -> frozenset[str]:
    """The operators that a user allows, by sign or name; + - * always.  None: all.  Raises
    `ValueError`.
    """
    if names is None:
        return OPERATOR_NAMES
    if isinstance(names, str):
        names = names.replace(",", " ").split()
    chosen = {_OTHER.get(str(n), str(n)) for n in names}
    if unknown := sorted(chosen - OPERATOR_NAMES):
        raise ValueError(
            f"unknown operator {unknown[0]!r}; known are {' '.join(sorted(OPERATOR_NAMES))}"
        )
    return frozenset(chosen) | ALWAYS


def forbidden_tokens(allowed: frozenset[str]) -> np.ndarray:
    """(vocabulary,) bool: True for the tokens of operators that are not allowed."""
    wrong = np.zeros(VOCABULARY_SIZE, bool)
    for name, token in OPERATOR_TOKEN.items():
        wrong[token] = _SIGN.get(name, name) not in allowed
    return wrong


def operators_in(expression: sympy.Expr) -> set[str]:
    """The operators that a SymPy expression is printed with, without + - *."""
    found = {
        type(f).__name__.lower() for f in expression.atoms(sympy.Function, sympy.Min, sympy.Max)
    }
    for power in expression.atoms(sympy.Pow):
        exponent = power.exp
        if exponent.could_extract_minus_sign():
            found.add("/")
            exponent = -exponent
        if exponent != 1:
            found.add("sqrt" if exponent == sympy.Rational(1, 2) else "**")
    return found


def uses_only(formula: Formula, allowed: frozenset[str]) -> bool:
    """Whether a formula uses allowed operators alone, in its own tokens and as it is printed."""
    if allowed == OPERATOR_NAMES:
        return True
    tokens = {_SIGN.get(p, p) for p in formula.parts if p in OPERATOR_TOKEN}
    return tokens <= allowed and operators_in(pretty(formula)) <= allowed


def without_forbidden(rows: np.ndarray, forbidden: np.ndarray) -> np.ndarray:
    """Rows of tokens (rows, slots) with the first, which is a variable, in place of each that holds
    a forbidden one: as many rows, so no other program is compiled.
    """
    wrong = forbidden[np.minimum(rows, VOCABULARY_SIZE - 1)] & (rows < VOCABULARY_SIZE)
    plain = np.zeros_like(rows[0])
    plain[0] = 1
    return np.where(wrong.any(axis=1)[:, None], plain, rows)
