"""Formulas as prefix token sequences over one table of operators.  (Chapter 1)"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import sympy
from jax import Array

SLOTS = 16  # the longest formula, in tokens


MAX_VARIABLES = 10


CONSTANT_BINS = tuple(
    sign * size for size in (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 10) for sign in (1, -1)
)


@dataclass(frozen=True)
class Operator:
    """One row of the table: a name, how many operands it takes, its meaning for JAX, NumPy and
    SymPy, and how rare it is.

    The rarity, in nats, says how much rarer than a sum the operator is in laws as textbooks print
    them: our judgement.  Chapter 8.
    """

    name: str
    arity: int
    jax: Callable[..., Array]
    numpy: Callable[..., np.ndarray]
    sympy: Callable[..., sympy.Expr]
    rarity: float = 0.0


OPERATORS = (
    Operator("add", 2, jnp.add, np.add, lambda a, b: a + b, 0.0),
    Operator("sub", 2, jnp.subtract, np.subtract, lambda a, b: a - b, 0.0),
    Operator("mul", 2, jnp.multiply, np.multiply, lambda a, b: a * b, 0.0),
    Operator("div", 2, jnp.divide, np.divide, lambda a, b: a / b, 0.0),
    Operator("pow", 2, jnp.power, np.power, lambda a, b: a**b, 1.5),
    Operator("neg", 1, jnp.negative, np.negative, lambda a: -a, 0.0),
    Operator("inv", 1, lambda a: 1.0 / a, lambda a: 1.0 / a, lambda a: 1 / a, 0.5),
    Operator("square", 1, lambda a: a * a, lambda a: a * a, lambda a: a**2, 0.5),
    Operator("cube", 1, lambda a: a * a * a, lambda a: a * a * a, lambda a: a**3, 1.0),
    Operator(
        "pow4", 1, lambda a: (a * a) * (a * a), lambda a: (a * a) * (a * a), lambda a: a**4, 2.0
    ),
    Operator(
        "pow5",
        1,
        lambda a: (a * a) * (a * a) * a,
        lambda a: (a * a) * (a * a) * a,
        lambda a: a**5,
        2.0,
    ),
    Operator("sqrt", 1, jnp.sqrt, np.sqrt, sympy.sqrt, 1.0),
    Operator("exp", 1, jnp.exp, np.exp, sympy.exp, 1.0),
    Operator("log", 1, jnp.log, np.log, sympy.log, 1.0),
    Operator("sin", 1, jnp.sin, np.sin, sympy.sin, 2.0),
    Operator("cos", 1, jnp.cos, np.cos, sympy.cos, 2.0),
    Operator("tanh", 1, jnp.tanh, np.tanh, sympy.tanh, 3.0),
)


VARIABLES = tuple(f"x{i + 1}" for i in range(MAX_VARIABLES))


VOCABULARY: tuple[str, ...] = (
    "END",
    *VARIABLES,
    *(f"{c:g}" for c in CONSTANT_BINS),
    *(op.name for op in OPERATORS),
)


END = 0


FIRST_CONSTANT = 1 + MAX_VARIABLES


FIRST_OPERATOR = FIRST_CONSTANT + len(CONSTANT_BINS)


VOCABULARY_SIZE = len(VOCABULARY)
MASK = VOCABULARY_SIZE  # the token of a slot about which nothing is known


OPERATOR_TOKEN = {op.name: FIRST_OPERATOR + i for i, op in enumerate(OPERATORS)}


ARITY = np.array([0] * FIRST_OPERATOR + [op.arity for op in OPERATORS], np.int32)


# What a token costs in nats: -log p, with p summing to 1 over x, "some constant" and the operators.
# A constant's digits cost extra.
_LEAF_CODE_LENGTH = math.log(2 + sum(math.exp(-op.rarity) for op in OPERATORS))


TOKEN_CODE_LENGTH = np.array(
    [0.0]
    + [_LEAF_CODE_LENGTH] * (FIRST_OPERATOR - 1)
    + [_LEAF_CODE_LENGTH + op.rarity for op in OPERATORS],
    np.float32,
)


NESTING_CODE_LENGTH = 2.0  # a function directly inside a function, as in sin(log(x))


IS_FUNCTION = np.array(
    [
        name in ("sqrt", "exp", "log", "sin", "cos", "tanh", "pow4", "pow5", "pow")
        for name in VOCABULARY
    ]
)


TOKEN_VALUE = np.array(
    [0.0] * FIRST_CONSTANT + list(CONSTANT_BINS) + [0.0] * len(OPERATORS), np.float32
)


def is_constant(tokens: Any) -> Any:
    """True where a token stands for a number; works on NumPy and JAX arrays."""
    return (tokens >= FIRST_CONSTANT) & (tokens < FIRST_OPERATOR)


def is_variable(tokens: Any) -> Any:
    """True where a token stands for a variable; works on NumPy and JAX arrays."""
    return (tokens >= 1) & (tokens <= MAX_VARIABLES)


def nearest_constant(values: Array) -> Array:
    """The constant token whose bin has the sign of `values` and lies nearest to it on a logarithmic
    scale.
    """
    bins = jnp.asarray(CONSTANT_BINS, jnp.float32)
    size = jnp.maximum(jnp.abs(values), 1e-6)
    bins = bins.reshape(*[1] * values.ndim, -1)
    other_sign = jnp.sign(bins) != jnp.sign(values)[..., None]
    distance = jnp.abs(jnp.log(size)[..., None] - jnp.log(jnp.abs(bins))) + jnp.where(
        other_sign, 100.0, 0.0
    )
    return FIRST_CONSTANT + jnp.argmin(distance, axis=-1).astype(jnp.int32)


class FormulaError(ValueError):
    """A text or a token list that is not a formula of the language."""


@dataclass(frozen=True)
class Formula:
    """A formula in prefix order.  Each part is a name of the vocabulary ("add", "x1") or a
    number.
    """

    parts: tuple[str | float, ...]

    def __post_init__(self) -> None:
        open_operands = 1
        for place, part in enumerate(self.parts):
            if not isinstance(part, str) and not math.isfinite(part):
                raise FormulaError(f"{part!r} is not a finite number")
            if open_operands == 0:
                raise FormulaError(
                    f"the formula is complete before part {place}, {part!r}; remove the rest"
                )
            if isinstance(part, str) and part not in VARIABLES and part not in OPERATOR_TOKEN:
                raise FormulaError(
                    f"unknown name {part!r}; known are "
                    f"{', '.join((*VARIABLES, *OPERATOR_TOKEN))}, and numbers"
                )
            open_operands += _arity(part) - 1
        if open_operands:
            raise FormulaError(
                f"the formula {' '.join(map(str, self.parts))!r} lacks {open_operands} operand(s)"
            )

    def __len__(self) -> int:
        return len(self.parts)

    def __str__(self) -> str:
        return fold(self.parts, _infix_text)

    def prefix(self) -> str:
        """Prefix text, the exact inverse of `parse_prefix`."""
        return " ".join(p if isinstance(p, str) else repr(float(p)) for p in self.parts)

    def evaluate(
        self,
        x: np.ndarray,
        constants: Sequence[float] | None = None,
        dtype: type[np.floating] = np.float64,
    ) -> np.ndarray:
        """Values (points,) in float64 at x (variables, points); NaN where undefined over the reals.

        `constants`: other numbers to use in place of the formula's own, from left to right.
        `dtype`: with which to compute, such as `np.longdouble`, to see what rounding does.
        """
        x = np.asarray(x, dtype)
        numbers = list(self.constants() if constants is None else constants)

        def node(part: str | float, *operands: np.ndarray) -> np.ndarray:
            if not isinstance(part, str):
                return np.full(x.shape[-1], numbers.pop(), dtype)  # fold goes from right to left
            return (
                x[VARIABLES.index(part)]
                if part in VARIABLES
                else OPERATORS[OPERATOR_TOKEN[part] - FIRST_OPERATOR].numpy(*operands)
            )

        with np.errstate(all="ignore"):
            values = fold(self.parts, node)
        return np.where(np.isfinite(values), values, np.nan)

    def sympy(self) -> sympy.Expr:
        """The SymPy expression, in the symbols x1..x10, or x where no other variable than x1
        occurs.
        """
        only = {p for p in self.parts if p in VARIABLES} <= {"x1"}
        symbols = {v: sympy.Symbol("x" if only else v, real=True) for v in VARIABLES}

        def node(part: str | float, *operands: Any) -> Any:
            return symbols[part] if part in symbols else sympy_node(part, *operands)

        return fold(self.parts, node)

    def skeleton(self) -> tuple[str, ...]:
        """The formula with every number replaced by the letter c."""
        return tuple(p if isinstance(p, str) else "c" for p in self.parts)

    def functions(self) -> set[str]:
        """The transcendental functions that it uses."""
        return {p for p in self.parts if p in ("exp", "log", "sin", "cos", "tanh")}

    def code_length(self) -> float:
        """Nats to state the skeleton: every token, and `NESTING_CODE_LENGTH` for a function
        directly inside a function.
        """
        tokens = [
            FIRST_CONSTANT if not isinstance(p, str) else VOCABULARY.index(p) for p in self.parts
        ]
        nested = sum(bool(IS_FUNCTION[a] and IS_FUNCTION[b]) for a, b in itertools.pairwise(tokens))
        return float(sum(TOKEN_CODE_LENGTH[tokens]) + NESTING_CODE_LENGTH * nested)

    def constants(self) -> tuple[float, ...]:
        """The numbers, from left to right in prefix order."""
        return tuple(float(p) for p in self.parts if not isinstance(p, str))

    def with_constants(self, numbers: Iterable[float]) -> Formula:
        """The same formula with the next of `numbers` in place of each of its own, from left to
        right.
        """
        following = iter(numbers)
        return Formula(
            tuple(p if isinstance(p, str) else float(next(following)) for p in self.parts)
        )


def _arity(part: str | float) -> int:
    return (
        int(ARITY[OPERATOR_TOKEN[part]]) if isinstance(part, str) and part in OPERATOR_TOKEN else 0
    )


def subtree_stop(parts: Sequence[str | float], start: int) -> int:
    """The place after the last part of the subtree that begins at `start`."""
    stop, open_operands = start, 1
    while open_operands:
        open_operands += _arity(parts[stop]) - 1
        stop += 1
    return stop


def fold(parts: Sequence[str | float], node: Callable[..., Any]) -> Any:
    """Evaluate a prefix sequence bottom-up with `node(part, *operands)`."""
    stack: list[Any] = []
    for part in reversed(parts):
        operands = [stack.pop() for _ in range(_arity(part))]
        stack.append(node(part, *operands))
    return stack[0]


_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**"}


def _infix_text(part: str | float, *operands: str) -> str:
    if not isinstance(part, str):
        return repr(float(part)) if part >= 0 else f"({float(part)!r})"
    if part in _INFIX:
        return f"({operands[0]} {_INFIX[part]} {operands[1]})"
    return f"{part}({operands[0]})" if operands else part


def sympy_number(value: float) -> sympy.Expr:
    """An exact integer where `value` is one, else a float."""
    return (
        sympy.Integer(int(value))
        if float(value).is_integer() and abs(value) < 1e6
        else sympy.Float(value, 17)
    )


def sympy_node(part: str | float, *operands: sympy.Expr) -> sympy.Expr:
    """An operator in SymPy, its operands given, or a number."""
    if not isinstance(part, str):
        return sympy_number(part)
    return OPERATORS[OPERATOR_TOKEN[part] - FIRST_OPERATOR].sympy(*operands)


def split_terms(formula: Formula) -> list[Formula]:
    """The additive terms at the top, in the order of `additive_terms`; the signs of subtractions
    are left to the coefficients.
    """
    terms: list[Formula] = []
    start = 0
    pending = 1
    while pending:
        pending -= 1
        if formula.parts[start] in ("add", "sub"):
            start, pending = start + 1, pending + 2
            continue
        stop = subtree_stop(formula.parts, start)
        terms.append(Formula(formula.parts[start:stop]))
        start = stop
    return terms


def combine(terms: Sequence[Formula], coefficients: Sequence[float], offset: float) -> Formula:
    """The formula offset + sum_k coefficient_k term_k, without zeros and ones written out."""
    pieces: list[tuple[str | float, ...]] = []
    for term, a in zip(terms, coefficients, strict=True):
        if a != 0.0:
            pieces.append(term.parts if a == 1.0 else ("mul", float(a), *term.parts))
    if offset != 0.0 or not pieces:
        pieces.append((float(offset),))
    parts = pieces[-1]
    for piece in reversed(pieces[:-1]):
        parts = ("add", *piece, *parts)
    return Formula(parts)


def encode(formulas: Iterable[Formula], slots: int = SLOTS) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (int32) and constant values (float64), both (batch, slots).  Raises `FormulaError`
    if one is too long.
    """
    rows = list(formulas)
    tokens = np.zeros((len(rows), slots), np.int32)
    values = np.zeros((len(rows), slots), np.float64)
    for row, formula in enumerate(rows):
        if len(formula) > slots:
            raise FormulaError(f"the formula has {len(formula)} tokens; at most {slots} fit")
        for i, part in enumerate(formula.parts):
            if isinstance(part, str):
                tokens[row, i] = (
                    OPERATOR_TOKEN[part] if part in OPERATOR_TOKEN else 1 + VARIABLES.index(part)
                )
            else:
                same_sign = [k for k, c in enumerate(CONSTANT_BINS) if (c < 0) == (part < 0)]
                size = math.log(max(abs(part), 1e-6))
                tokens[row, i] = FIRST_CONSTANT + min(
                    same_sign, key=lambda k: abs(math.log(abs(CONSTANT_BINS[k])) - size)
                )
                values[row, i] = part
    return tokens, values


def decode(tokens: np.ndarray, values: np.ndarray | None = None) -> Formula:
    """One row of token ids, and of constants (the bins' own values where None), back to a
    `Formula`.
    """
    numbers = TOKEN_VALUE[tokens] if values is None else values
    parts: list[str | float] = []
    for token, number in zip(np.asarray(tokens), np.asarray(numbers), strict=True):
        if token == END:
            break
        parts.append(float(number) if is_constant(token) else VOCABULARY[token])
    return Formula(tuple(parts))
