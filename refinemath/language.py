"""The language of formulas: one table of operators, prefix notation, evaluation on the device, and
text.  (Chapter 1)

A formula is a tree.  Written in prefix order (an operator before its operands) the tree needs no
brackets: `add x square x` is x + x^2. On the device a batch of formulas is an integer array
`tokens` (batch, slots), padded with `END`, and a float array `values` of the same shape that holds
the number behind each constant token.
"""

from __future__ import annotations

import ast
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from jax import Array
from jaxtyping import Float, Int

SLOTS = 16  # the longest formula, in tokens
MAX_VARIABLES = 3
CONSTANT_BINS = tuple(
    sign * size for size in (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 10) for sign in (1, -1)
)


@dataclass(frozen=True)
class Operator:
    """One row of the table: a name, how many operands it takes, its meaning for JAX, NumPy and
    SymPy, and its price.

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
OPERATOR_TOKEN = {op.name: FIRST_OPERATOR + i for i, op in enumerate(OPERATORS)}
ARITY = np.array([0] * FIRST_OPERATOR + [op.arity for op in OPERATORS], np.int32)
# What a token costs in nats: -log p, with p summing to 1 over x, "some constant" and the operators.
# A constant's digits cost extra.
_LEAF_PRICE = math.log(2 + sum(math.exp(-op.rarity) for op in OPERATORS))
TOKEN_PRICE = np.array(
    [0.0] + [_LEAF_PRICE] * (FIRST_OPERATOR - 1) + [_LEAF_PRICE + op.rarity for op in OPERATORS],
    np.float32,
)
NESTING_PRICE = 2.0  # a function directly inside a function, as in sin(log(x))
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


# ---------------------------------------------------------------- evaluation on the device


def structure(
    tokens: Int[Array, "batch slots"],
) -> tuple[Int[Array, "batch slots"], Int[Array, "batch slots"]]:
    """Sizes of all subtrees and the slot of each second operand; one scan from the right.

    The first operand of slot i is slot i+1; the second starts where the first one ends, at i + 1 +
    size[i+1].  Chapter 1.
    """
    batch, slots = tokens.shape
    arity = jnp.asarray(ARITY)[tokens].T
    row = jnp.arange(batch, dtype=jnp.int32)

    def step(size: Array, i: Array) -> tuple[Array, Array]:
        first = size[i + 1]
        second = jnp.minimum(i + 1 + first, slots)
        total = (
            1 + jnp.where(arity[i] > 0, first, 0) + jnp.where(arity[i] > 1, size[second, row], 0)
        )
        return size.at[i].set(total), second

    size, second = jax.lax.scan(
        step,
        jnp.zeros((slots + 1, batch), jnp.int32),
        jnp.arange(slots, dtype=jnp.int32),
        reverse=True,
    )
    return size[:slots].T, second.T


def apply_operator(
    token: Int[Array, "batch 1"], a: Float[Array, "batch points"], b: Float[Array, "batch points"]
) -> Float[Array, "batch points"]:
    """The operator that each row's token names, applied to a, or to a and b; rows with another
    token give NaN.
    """
    out = jnp.full_like(a, jnp.nan)
    for op in OPERATORS:
        out = jnp.where(
            token == OPERATOR_TOKEN[op.name], op.jax(a) if op.arity == 1 else op.jax(a, b), out
        )
    return out


def partial_derivatives(
    token: Int[Array, "batch 1"], a: Float[Array, "batch points"], b: Float[Array, "batch points"]
) -> tuple[Array, Array]:
    """The derivatives of `apply_operator` by a and by b; 0 by an operand that the operator does not
    have.
    """
    by_a, by_b = jnp.zeros_like(a), jnp.zeros_like(a)
    one, zero = jnp.ones_like(a), jnp.zeros_like(a)
    for op in OPERATORS:
        here = token == OPERATOR_TOKEN[op.name]
        if op.arity == 1:
            by_a = jnp.where(here, jax.jvp(op.jax, (a,), (one,))[1], by_a)
        else:
            by_a = jnp.where(here, jax.jvp(op.jax, (a, b), (one, zero))[1], by_a)
            by_b = jnp.where(here, jax.jvp(op.jax, (a, b), (zero, one))[1], by_b)
    return by_a, by_b


def evaluate_nodes(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    x: Float[Array, "batch variables points"],
) -> Float[Array, "slots batch points"]:
    """The value of every subtree at every point: a register program with one register a slot.

    `x` may have batch size 1 and is then shared.  Real arithmetic only: what is undefined or
    overflows is NaN. Row 0 is the value of the whole formula.  Chapter 1.
    """
    batch, slots = tokens.shape
    points = x.shape[-1]
    _, second = structure(tokens)
    row = jnp.arange(batch, dtype=jnp.int32)
    inputs = jnp.broadcast_to(x, (batch, *x.shape[1:]))

    def step(registers: Array, i: Array) -> tuple[Array, None]:
        token = tokens[:, i][:, None]
        a = registers[i + 1]
        b = registers[second[:, i], row]
        out = jnp.broadcast_to(values[:, i][:, None], (batch, points))
        for v in range(x.shape[1]):
            out = jnp.where(token == 1 + v, inputs[:, v], out)
        out = jnp.where(token >= FIRST_OPERATOR, apply_operator(token, a, b), out)
        out = jnp.where(jnp.isfinite(out), out, jnp.nan)
        return jax.lax.dynamic_update_index_in_dim(registers, out, i, 0), None

    start = jnp.zeros((slots + 1, batch, points), x.dtype)
    registers, _ = jax.lax.scan(step, start, jnp.arange(slots, dtype=jnp.int32), reverse=True)
    return registers[:slots]


def sensitivities(
    tokens: Int[Array, "batch slots"],
    nodes: Float[Array, "slots batch points"],
    weights: Float[Array, "slots batch points"],
) -> Float[Array, "slots batch points"]:
    """How sum_i weights_i nodes_i changes with the value of every slot: reverse-mode
    differentiation of `evaluate_nodes`, point by point.

    One sweep from the left, for any number of constants: a slot passes on its own sensitivity times
    a partial derivative.  Chapter 8.
    """
    slots, batch, _ = nodes.shape
    row = jnp.arange(batch, dtype=jnp.int32)
    place = jnp.arange(slots, dtype=jnp.int32)
    second = structure(tokens)[1]
    arity = jnp.asarray(ARITY)[tokens]
    padded = jnp.concatenate([nodes, jnp.zeros_like(nodes[:1])])
    by_a, by_b = partial_derivatives(tokens.T[..., None], padded[1:], padded[second.T, row])
    is_first = (
        arity[:, :-1] > 0
        # the slot after an operator is its first operand; another operand is the second one of some
        # slot before
    ).T
    points_here = (arity[:, :, None] > 1) & (second[:, :, None] == place[None, None])
    parent = jnp.argmax(points_here, axis=1).astype(jnp.int32).T
    factor = jnp.where(jnp.any(points_here, axis=1).T[..., None], by_b[parent, row], 0.0)
    factor = factor.at[1:].set(jnp.where(is_first[..., None], by_a[:-1], factor[1:]))
    parent = parent.at[1:].set(jnp.where(is_first, place[:-1, None], parent[1:]))

    def step(out: Array, i: Array) -> tuple[Array, None]:
        return out.at[i].add(factor[i] * out[parent[i], row]), None

    return jax.lax.scan(step, weights, place[1:])[0]


def evaluate(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    x: Float[Array, "batch variables points"],
) -> Float[Array, "batch points"]:
    """The value of every formula at every point; NaN where it is undefined over the reals.  Chapter
    1.
    """
    return evaluate_nodes(tokens, values, x)[0]


def additive_terms(
    tokens: Int[Array, "batch slots"], most: int
) -> tuple[Int[Array, "batch most"], Array]:
    """Slots of the first `most` additive terms at the top of each formula, and a mask.

    `add x square x` has the terms x and x^2.  Each may take a coefficient of its own for free, see
    `fit.project`.  Chapter 8.
    """
    batch, slots = tokens.shape
    _, second = structure(tokens)
    splits = (tokens == OPERATOR_TOKEN["add"]) | (tokens == OPERATOR_TOKEN["sub"])
    row = jnp.arange(batch, dtype=jnp.int32)

    def step(open_: Array, i: Array) -> tuple[Array, Array]:
        is_open = open_[row, i]
        passes = is_open & splits[:, i]
        open_ = open_.at[row, jnp.minimum(i + 1, slots)].max(passes)
        open_ = open_.at[row, second[:, i]].max(passes)
        return open_, is_open & ~splits[:, i]

    start = jnp.zeros((batch, slots + 1), bool).at[:, 0].set(True)
    _, term = jax.lax.scan(step, start, jnp.arange(slots, dtype=jnp.int32))
    term = term.T & (tokens != END)
    order = jnp.argsort(~term, axis=1, stable=True)[:, :most]
    return order.astype(jnp.int32), jnp.take_along_axis(term, order, axis=1)


# formulas as Python objects and as text


class FormulaError(ValueError):
    """A text or a token list that is not a formula of the language."""


@dataclass(frozen=True)
class Formula:
    """A formula in prefix order.  Each part is a name of the vocabulary ("add", "x1") or a number."""

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
                    f"unknown name {part!r}; known are {', '.join((*VARIABLES, *OPERATOR_TOKEN))}, and numbers"
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

    def evaluate(self, x: np.ndarray, constants: Sequence[float] | None = None) -> np.ndarray:
        """Values (points,) in float64 at x (variables, points); NaN where undefined over the reals.

        `constants`: other numbers to use in place of the formula's own, from left to right.
        """
        x = np.asarray(x, np.float64)
        numbers = list(self.constants() if constants is None else constants)

        def node(part: str | float, *operands: np.ndarray) -> np.ndarray:
            if not isinstance(part, str):
                return np.full(x.shape[-1], numbers.pop())  # fold goes from right to left
            return (
                x[VARIABLES.index(part)]
                if part in VARIABLES
                else OPERATORS[OPERATOR_TOKEN[part] - FIRST_OPERATOR].numpy(*operands)
            )

        with np.errstate(all="ignore"):
            values = fold(self.parts, node)
        return np.where(np.isfinite(values), values, np.nan)

    def sympy(self) -> sympy.Expr:
        """The SymPy expression, in the symbols x1..x3, or x where no other variable than x1 occurs."""
        only = {p for p in self.parts if p in VARIABLES} <= {"x1"}
        names = {v: sympy.Symbol("x" if only else v, real=True) for v in VARIABLES}
        return fold(self.parts, functools.partial(_sympy_node, names))

    def skeleton(self) -> tuple[str, ...]:
        """The formula with every number replaced by the letter c."""
        return tuple(p if isinstance(p, str) else "c" for p in self.parts)

    def functions(self) -> set[str]:
        """The transcendental functions that it uses."""
        return {p for p in self.parts if p in ("exp", "log", "sin", "cos", "tanh")}

    def price(self) -> float:
        """Nats to state the skeleton: every token's price, and `NESTING_PRICE` for a function
        directly inside a function.
        """
        tokens = [
            FIRST_CONSTANT if not isinstance(p, str) else VOCABULARY.index(p) for p in self.parts
        ]
        nested = sum(bool(IS_FUNCTION[a] and IS_FUNCTION[b]) for a, b in itertools.pairwise(tokens))
        return float(sum(TOKEN_PRICE[tokens]) + NESTING_PRICE * nested)

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


def _sympy_node(
    names: dict[str, sympy.Symbol], part: str | float, *operands: sympy.Expr
) -> sympy.Expr:
    if not isinstance(part, str):
        return sympy_number(part)
    return (
        names[part]
        if part in names
        else OPERATORS[OPERATOR_TOKEN[part] - FIRST_OPERATOR].sympy(*operands)
    )


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
        stop, open_operands = start, 1
        while open_operands:
            open_operands += _arity(formula.parts[stop]) - 1
            stop += 1
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


def parse_prefix(text: str) -> Formula:
    """Prefix text such as `add x1 mul 2.0 square x1` to a `Formula`.  Raises `FormulaError`."""
    parts: list[str | float] = []
    for word in text.split():
        word = "x1" if word == "x" else word
        if word in VARIABLES or word in OPERATOR_TOKEN:
            parts.append(word)
        else:
            try:
                parts.append(float(word))
            except ValueError:
                raise FormulaError(
                    f"unknown word {word!r}; known are {', '.join((*VARIABLES, *OPERATOR_TOKEN))}, and numbers"
                ) from None
    return Formula(tuple(parts))


_AST_BINARY = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}
_EXACT_POWER = {2.0: "square", 3.0: "cube", 4.0: "pow4", 5.0: "pow5", 0.5: "sqrt", -1.0: "inv"}


def parse(text: str) -> Formula:
    """Infix text such as `x**3 + sin(2*x)` to a `Formula`.  Nothing is evaluated: the text is
    parsed and walked.

    Numbers fold (`1/2` is 0.5), and powers use the operators of the table where there is one.
    Raises `FormulaError`.
    """
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FormulaError(f"cannot read {text!r} as a formula: {error}") from None
    try:
        return Formula(tuple(_from_ast(tree)))
    except RecursionError:
        raise FormulaError("the formula is nested too deeply") from None


def _from_ast(node: ast.expr) -> list[str | float]:
    match node:
        case ast.Constant(value=bool()):
            raise FormulaError(f"expected a number, got {node.value!r}")
        case ast.Constant(value=int() | float() as number):
            try:
                return [float(number)]
            except OverflowError:
                raise FormulaError("a number in the formula is too large to be finite") from None
        case ast.Name(id=name):
            if name == "pi":
                return [math.pi]
            return [{"x": "x1", "y": "x2", "z": "x3"}.get(name, name)]
        case ast.UnaryOp(op=ast.USub()):
            inner = _from_ast(node.operand)
            return (
                [-inner[0]]
                if len(inner) == 1 and not isinstance(inner[0], str)
                else ["neg", *inner]
            )
        case ast.UnaryOp(op=ast.UAdd()):
            return _from_ast(node.operand)
        case ast.BinOp(op=ast.Pow()):
            base, power = _from_ast(node.left), _from_ast(node.right)
            if (
                len(power) == 1
                and power[0] in _EXACT_POWER
                and any(isinstance(b, str) for b in base)
            ):
                return [_EXACT_POWER[float(power[0])], *base]
            return _folded("pow", base, power)
        case ast.BinOp():
            if type(node.op) not in _AST_BINARY:
                raise FormulaError(
                    f"operator {type(node.op).__name__} is not in the language; use + - * / **"
                )
            return _folded(_AST_BINARY[type(node.op)], _from_ast(node.left), _from_ast(node.right))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            name = {"ln": "log"}.get(name, name)
            if name not in OPERATOR_TOKEN or _arity(name) != 1:
                known = ", ".join(op.name for op in OPERATORS if op.arity == 1)
                raise FormulaError(f"unknown function {name!r}; known are {known}")
            return [name, *_from_ast(argument)]
    raise FormulaError(f"cannot use {ast.unparse(node)!r} in a formula")


def _folded(name: str, left: list[str | float], right: list[str | float]) -> list[str | float]:
    if (
        len(left) == len(right) == 1
        and not isinstance(left[0], str)
        and not isinstance(right[0], str)
    ):
        a, b = float(left[0]), float(right[0])
        try:
            result = (
                {"add": a + b, "sub": a - b, "mul": a * b}[name]
                if name in ("add", "sub", "mul")
                else a / b
                if name == "div"
                else a**b
            )
        except (ZeroDivisionError, OverflowError):
            raise FormulaError(f"{a:g} {_INFIX[name]} {b:g} is not a finite number") from None
        if isinstance(result, complex):
            raise FormulaError(f"{a:g} ** {b:g} is not a real number")
        return [float(result)]
    return [name, *left, *right]


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
