"""Formulas as text: infix and prefix, parsed without `eval`.  (Chapter 1)"""

from __future__ import annotations

import ast
import math

from refinemath.expression import (
    _INFIX,
    OPERATOR_TOKEN,
    OPERATORS,
    VARIABLES,
    Formula,
    FormulaError,
    _arity,
)


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
                    f"unknown word {word!r}; known are "
                    f"{', '.join((*VARIABLES, *OPERATOR_TOKEN))}, and numbers"
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
            return ["x1" if name == "x" else name]
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
            if name == "Abs" and "abs" not in OPERATOR_TOKEN:  # SymPy's word for it
                return ["sqrt", "square", *_from_ast(argument)]
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
