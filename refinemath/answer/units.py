"""Dimensions: units as text, and whether a formula is dimensionally consistent.  (Chapter 10)

Only dimensions count, not sizes: a number in front of something carries the units that make the
formula consistent, those that turn kilometres into metres included.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from refinemath.answer.solution import Solution
from refinemath.expression import VARIABLES, Formula, fold
from refinemath.problem import DataError

Dimension = tuple[Fraction, ...]  # the powers of m, kg, s, A, K, mol and cd
NONE: Dimension = (Fraction(0),) * 7
FREE = None  # the dimension of a number, and of a column without a unit: whatever is needed
Unit = Dimension | None

_BASE = ("m", "kg", "s", "A", "K", "mol", "cd")
_TABLE = {  # names of units by their dimension
    "1": "rad sr deg degree degrees percent ppm dB count counts",
    "m": "meter metre inch ft foot yd mile mi au AU ly pc parsec angstrom",
    "kg": "g gram t tonne lb oz u amu Da",
    "s": "sec second seconds min minute minutes h hr hour hours d day days week yr year years",
    "K": "kelvin degC degF celsius fahrenheit",
    "m2": "ha acre barn",
    "m3": "l L liter litre",
    "m/s": "mph knot kn",
    "s-1": "Hz Bq rpm",
    "kg m/s2": "N lbf dyn",
    "N/m2": "Pa bar atm torr Torr mmHg psi",
    "N m": "J eV cal erg Wh BTU",
    "J/s": "W hp",
    "A s": "C Ah",
    "J/C": "V",
    "V/A": "ohm Ohm Ω",
    "A/V": "S",
    "C/V": "F",
    "V s": "Wb",
    "V s/m2": "T",
    "V s/A": "H",
    "Pa s": "P",
    "mol/m3": "M",
    "cd": "lm",
    "cd/m2": "lx",
}
_PREFIX = r"^(da|[yzafpnuµμmcdhkMGTPEZY])(?=.)"


def _times(a: Dimension, b: Dimension, power: Fraction) -> Dimension:
    return tuple(x + power * y for x, y in zip(a, b, strict=True))


def parse_unit(text: str) -> Dimension:
    """The dimension of a unit such as `m/s^2`, `kg m2 s-2`, `J/(kg K)` or `1`.  Raises `DataError`.
    Nothing is evaluated: the text is parsed and walked.
    """
    plain = text.strip().replace("^", "**").replace("°", "deg").replace("%", "percent")
    plain = re.sub(r"([^\W\d])([+-]?\d)", r"\1**\2", plain.replace("·", "*"))
    plain = re.sub(r"(?<=[\w)])\s+(?=[\w(])", "*", plain)
    try:
        return _walk(ast.parse(plain or "1", mode="eval").body)
    except (SyntaxError, ValueError) as error:
        why = str(error) if isinstance(error, DataError) else "write it as in m/s^2 or J/(kg K)"
        raise DataError(f"cannot read the unit {text!r}: {why}") from None


def _walk(node: ast.expr) -> Dimension:
    match node:
        case ast.Constant(value=int() | float()):
            return NONE
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            return _times(
                NONE, _walk(left), Fraction(ast.unparse(right).strip("()").replace(" ", ""))
            )
        case ast.BinOp(op=ast.Mult() | ast.Div() as op, left=left, right=right):
            return _times(
                _walk(left), _walk(right), Fraction(1 if isinstance(op, ast.Mult) else -1)
            )
        case ast.Name(id=token):
            for name in (token, re.sub(_PREFIX, "", token)):
                if name in _BASE:
                    return tuple(Fraction(name == base) for base in _BASE)
                for dimension, names in _TABLE.items():
                    if name in names.split():
                        return parse_unit(dimension)
            raise DataError(
                f"unknown unit {token!r}; known are {' '.join((*_BASE, *_TABLE.values()))}"
            )
    raise ValueError


class Inconsistent(ValueError):
    """A sum of different dimensions, or a function of something that has one."""


_POWERS = dict(neg=1.0, inv=-1.0, square=2.0, cube=3.0, pow4=4.0, pow5=5.0, sqrt=0.5)  # noqa: C408


def _applied(name: str, a: Unit, b: Unit, exponent: float | None = None) -> Unit:
    """The dimension of an operator's result.  Raises `Inconsistent`."""
    if name in ("add", "sub"):
        if a != b and a is not FREE and b is not FREE:
            raise Inconsistent(f"{name} of different dimensions")
        return b if a is FREE else a
    if name in ("mul", "div"):
        return (
            FREE if a is FREE or b is FREE else _times(a, b, Fraction(1 if name == "mul" else -1))
        )
    if exponent is not None or name in _POWERS:
        power = _POWERS[name] if exponent is None else exponent
        return FREE if a is FREE else _times(NONE, a, Fraction(power).limit_denominator(1000))
    if not {a, b} <= {FREE, NONE}:
        raise Inconsistent(f"{name} of something with a dimension")
    return FREE if name == "pow" and a is FREE else NONE


def dimension_of(formula: Formula, variables: Mapping[str, Unit]) -> Unit:
    """The dimension of a formula whose numbers have any.  Raises `Inconsistent`."""

    def node(part: str | float, *operands: tuple[Unit, float | None]) -> tuple[Unit, float | None]:
        if not isinstance(part, str):
            return FREE, part
        if not operands:
            return variables[part], None
        exponent = operands[1][1] if part == "pow" else None
        a, b = operands[0][0], operands[-1][0]
        return _applied(part, a, b, exponent), None

    return fold(formula.parts, node)[0]


@dataclass(frozen=True)
class Dimensions:
    """The dimensions of a table's columns."""

    variables: tuple[Unit, ...]
    target: Unit

    def possible(self, term: Formula, scaled: Iterable[bool]) -> bool:
        """Whether a term with a free coefficient is consistent, where some of the variables have a
        number in front of them.
        """
        pairs = zip(VARIABLES, self.variables, scaled, strict=False)
        try:
            dimension_of(term, {name: FREE if s else d for name, d, s in pairs})
        except Inconsistent:
            return False
        return True

    def consistent(self, solution: Solution) -> bool:
        """Whether the formula as it is printed is consistent: a coefficient of 1 is no number.  An
        offset takes up the unit of a logarithm's argument.
        """
        known, total = dict(zip(VARIABLES, self.variables, strict=False)), self.target
        try:
            for coefficient, term in zip(solution.coefficients, solution.terms, strict=True):
                if term.parts[0] == "log" and solution.offset:
                    dimension_of(Formula(term.parts[1:]), known)
                    own: Unit = NONE
                else:
                    own = dimension_of(term, known)
                total = _applied("add", total, own if abs(coefficient) == 1.0 else FREE)
        except Inconsistent:
            return False
        return True


def read_units(units: Mapping[str, str], names: Sequence[str], target: str) -> Dimensions | None:
    """The dimensions of columns from units such as `{"v": "m/s"}`, None where there are none; a
    column without a unit fits everything.  Raises `DataError`.
    """
    unknown = [name for name in units if name not in (*names, target)]
    if unknown:
        raise DataError(
            f"there is no column {unknown[0]!r} for a unit; the columns are "
            f"{', '.join((*names, target))}"
        )
    found = {name: parse_unit(text) for name, text in units.items()}
    every = tuple(found.get(name) for name in names)
    return Dimensions(every, found.get(target)) if units else None
