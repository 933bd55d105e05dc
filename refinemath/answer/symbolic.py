"""Everything that needs SymPy: other forms of the same function, and how it is printed.  (Chapter
8)
"""

from __future__ import annotations

import functools
import keyword
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy

from refinemath.answer.solution import Solution, linear_solution, refine_constants, score_solution
from refinemath.expression import (
    FIRST_OPERATOR,
    OPERATOR_TOKEN,
    OPERATORS,
    SLOTS,
    VARIABLES,
    Formula,
    FormulaError,
    fold,
)
from refinemath.problem import Problem
from refinemath.text import parse

# what SymPy and our parser raise on expressions outside the language
REFUSED = (FormulaError, TypeError, ValueError, ArithmeticError, RecursionError)


def same_fit(new: Solution, old: Solution) -> bool:
    """Whether a rewritten formula fits as well as before, up to rounding."""
    return new.fvu <= 4 * old.fvu + 1e-18


def sympy_terms(expression: sympy.Expr) -> list[Formula]:
    """The additive terms of an expression without their coefficients; what holds no variable is
    left out.  Raises `FormulaError`.
    """
    return [
        parse(str(p.as_coeff_Mul()[1])) for p in sympy.Add.make_args(expression) if p.free_symbols
    ]


def monic(expression: sympy.Expr) -> sympy.Expr:
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


def rewrite(solution: Solution, problem: Problem) -> list[Solution]:
    """A formula in u as formulas in the user's units, scored: as it is, expanded, and as one
    fraction, where these exist.  Empty where it is undefined on the points.
    """
    own = rescale(solution, problem)
    if own is None:
        return []
    forms = (own, multiplied_out(own, problem), one_fraction(own, problem))
    return [score_solution(form, problem.x, problem.y) for form in forms if form is not None]


def rescale(solution: Solution, problem: Problem) -> Solution | None:
    """The same function in the user's x: powers, logarithms and factors absorb the scale where they
    can.
    """
    if np.all(problem.scale == 1.0):
        return solution
    try:
        terms = [t for term in solution.terms for t in _in_users_units(term, problem)]
    except REFUSED:
        terms = []
    direct = linear_solution(terms, problem.x, problem.y) if terms else None
    if direct is not None and same_fit(direct, solution):
        return refine_constants(direct.terms, problem.x, problem.y)
    pairs = zip(VARIABLES, problem.scale.tolist(), strict=False)
    factor: dict[Any, tuple[Any, ...]] = {v: ("mul", 1 / s, v) for v, s in pairs}
    scaled = [
        Formula(tuple(q for p in t.parts for q in factor.get(p, (p,)))) for t in solution.terms
    ]
    return linear_solution(scaled, problem.x, problem.y)


def _in_users_units(term: Formula, problem: Problem) -> list[Formula]:
    """Terms in x of a term in u = x / scale.  Raises what `REFUSED` lists."""
    expression = term.sympy().subs({sympy.Symbol("x", real=True): sympy.Symbol("x1", real=True)})
    signed: dict[sympy.Symbol, sympy.Symbol] = {}
    scaled: dict[sympy.Symbol, sympy.Expr] = {}
    for name, x, scale in zip(VARIABLES, problem.x, problem.scale, strict=False):
        symbol = sympy.Symbol(name, **{"positive" if np.all(x > 0) else "real": True})
        signed[sympy.Symbol(name, real=True)] = symbol
        scaled[symbol] = symbol / sympy.Float(scale, 17)
    expression = expression.subs(signed).subs(scaled, simultaneous=True)
    return sympy_terms(monic(sympy.expand_log(sympy.expand_power_base(expression))))


def multiplied_out(solution: Solution, problem: Problem, *, most: int = 6) -> Solution | None:
    """The same function as a sum of powers and products, such as x^2 + x for (x + 1/2)^2; None
    where that is nothing new or has over `most` terms.
    """
    pairs = zip(solution.coefficients, solution.terms, strict=True)
    try:
        expression = sympy.expand(sympy.Add(*(a * t.sympy() for a, t in pairs)))
        terms = list(dict.fromkeys(sympy_terms(monic(expression))))
    except REFUSED:
        return None
    if (
        not 0 < len(terms) <= most
        or {t.parts for t in terms} == {t.parts for t in solution.terms}
        or max(map(len, terms)) > SLOTS
    ):
        return None
    found = linear_solution(terms, problem.x, problem.y)
    return found if found is not None and same_fit(found, solution) else None


def one_fraction(solution: Solution, problem: Problem) -> Solution | None:
    """g / (g + d) in place of b + a / (g + d), which is the same where a = -b d; None where the
    formula is not of that kind.
    """
    if len(solution.terms) != 1:
        return None
    power = monic(solution.terms[0].sympy()).as_coeff_Mul()[1]
    inverse = power.is_Pow and power.exp.is_number and float(power.exp) == -1
    number, g = power.base.as_coeff_Add() if inverse else (sympy.S.Zero, power)
    if number == 0:
        return None
    try:
        return refine_constants([parse(str(g * power))], problem.x, problem.y, intercept=False)
    except FormulaError:
        return None


def pretty(
    formula: Formula, digits: int = 6, names: Sequence[str] = (), *, halves: bool = False
) -> sympy.Expr:
    """The SymPy form that is printed: factors stay in front of sums, numbers have `digits`
    significant digits, whole numbers, thirds and the like, and multiples of pi and log 2 are exact,
    and symbols have the users' `names` in place of x1, x2, and so on.  `halves`: x/2 for 0.5 x.
    """
    only = {p for p in formula.parts if p in VARIABLES} <= {"x1"}
    words = dict(zip(VARIABLES, names or (("x",) if only else VARIABLES), strict=False))
    symbols = {v: sympy.Symbol(word, real=True) for v, word in words.items()}

    def node(part: str | float, *operands: sympy.Expr) -> sympy.Expr:
        if not isinstance(part, str):
            return _printed_number(float(part), digits, halves=halves)
        return symbols[part] if part in symbols else _printed_operator(part, *operands)

    return fold(formula.parts, node)


def _printed_operator(name: str, *operands: sympy.Expr) -> sympy.Expr:
    """The operator applied; SymPy would multiply a number into a sum, which here it does not."""
    if name in ("mul", "div"):
        a, b = operands[0], 1 / operands[1] if name == "div" else operands[1]
        for number, rest in ((a, b), (b, a)):
            if number.is_Number and rest.is_Add and number != 1:
                return sympy.Mul(number, rest, evaluate=False)
    return OPERATORS[OPERATOR_TOKEN[name] - FIRST_OPERATOR].sympy(*operands)


def printed_text(expression: sympy.Expr) -> str:
    """The expression in one line, without zeros at the end of numbers."""
    return str(sympy.sstr(expression, full_prec=False))


def is_simple(v: float) -> bool:
    """Whether a number is printed as a fraction of small whole numbers, or that times pi or
    log 2.
    """
    return not _printed_number(v, 17, halves=True).atoms(sympy.Float)


def _printed_number(v: float, digits: int, *, halves: bool) -> sympy.Expr:
    """The number of at most `digits` digits, or a simple one that differs from v by less."""
    near = min(1e-9, 10.0**-digits) if digits < 17 else 4e-16
    for unit, most, denominators in (
        (sympy.S.One, 10**15, (1,)),
        (sympy.pi, 12, (1, 2, 3, 4, 6, 12)),
        (sympy.S.One, 12, (3, 6, 7, 9, 12, *((2, 4, 5, 8) if halves else ()))),
        (sympy.log(2), 12, (1, 2, 3, 4)),
    ):
        value = v / float(unit)
        for q in denominators:
            p = round(value * q) if abs(value) * q <= most + 0.5 else 0
            if p and math.gcd(p, q) == 1 and abs(value - p / q) < near * abs(value):
                return sympy.Rational(p, q) * unit
    if 0 < abs(v) < 1:
        whole = round(math.log(2) / abs(v))
        if abs(math.log(2) / whole - abs(v)) < near * abs(v) and whole < 1000:
            return sympy.Integer(1 if v > 0 else -1) * sympy.log(2) / whole
    return sympy.Float(repr(v) if digits >= 17 else f"{v:.{digits}g}")


def latex_name(name: str) -> str:
    """LaTeX of a column's name: `v_0` and `theta` as SymPy writes them, longer words upright, and
    whatever is no word as text.
    """
    plain = str(sympy.latex(sympy.Symbol(name)))
    if re.fullmatch(r"[^\W\d_]\d*(_[^\W_]{1,3})?", name) or "\\" in plain:
        return plain if re.fullmatch(r"\w+", name) else _latex_text(name)
    if re.fullmatch(r"[^\W\d_]{2,}", name):
        return rf"\mathrm{{{name}}}"
    return _latex_text(name)


def _latex_text(name: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    safe = re.sub(r"[\\~^#$%&_{}]", lambda m: special.get(m[0], "\\" + m[0]), name)
    return rf"\text{{{safe}}}"


def latex_of(formula: Formula, digits: int = 6, names: Sequence[str] = ()) -> str:
    """LaTeX of a formula, short numbers."""
    symbols = {sympy.Symbol(name, real=True): latex_name(name) for name in names}
    expression = pretty(formula, digits, names)
    return str(sympy.latex(expression, mul_symbol=r"\,", ln_notation=False, symbol_names=symbols))


def python_names(names: Sequence[str]) -> list[str]:
    """Different Python identifiers as near to the names as can be: `T_K` for `T [K]`, `lambda_` for
    `lambda`.
    """
    found: list[str] = []
    for name in names:
        word = re.sub(r"\W+", "_", unicodedata.normalize("NFKC", name)).strip("_") or "x"
        word = word if word.isidentifier() else f"x_{word}"
        first = word + "_" * (keyword.iskeyword(word) or word in ("math", "abs"))
        word, again = first, 2
        while word in found:
            word, again = f"{first}_{again}", again + 1
        found.append(word)
    return found


def python_of(formula: Formula, names: Sequence[str] = ()) -> str:
    """A line of Python that needs `import math`, with all digits of the numbers, which computes in
    the same order as the formula.
    """
    words = dict(zip(VARIABLES, python_names(names) if names else ("x",), strict=False))
    words |= {v: v for v in VARIABLES if v not in words}
    return fold(formula.parts, functools.partial(_python_node, words))[0]


_POWERS = {"square": "2", "cube": "3", "pow4": "4", "pow5": "5"}
_SIGNS = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2), "pow": ("**", 4)}


def _python_node(
    words: dict[str, str], part: str | float, *operands: tuple[str, int]
) -> tuple[str, int]:
    """Text and how tightly it binds: 1 a sum, 2 a product, 3 a sign, 4 a power, 5 what is whole."""
    if not isinstance(part, str):
        plain = "math.pi" if abs(part) == math.pi else _python_number(abs(part))
        return (plain, 5) if part >= 0 else (f"-{plain}", 3)
    if part in words:
        return words[part], 5
    inside = [text for text, _ in operands]

    def bound(i: int, least: int) -> str:
        return inside[i] if operands[i][1] >= least else f"({inside[i]})"

    if part in _SIGNS:
        sign, level = _SIGNS[part]
        space = " " if level == 1 else ""
        left, right = (level + 1, level) if part == "pow" else (level, level + 1)
        return f"{bound(0, left)}{space}{sign}{space}{bound(1, right)}", level
    if part in _POWERS:
        return f"{bound(0, 5)}**{_POWERS[part]}", 4
    if part in ("neg", "inv"):
        return (f"-{bound(0, 2)}", 3) if part == "neg" else (f"1/{bound(0, 3)}", 2)
    return f"math.{part}({', '.join(inside)})", 5


def _python_number(v: float) -> str:
    return str(int(v)) if v.is_integer() and v < 1e15 else repr(float(v))
