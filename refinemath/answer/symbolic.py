"""Everything that needs SymPy: other forms of the same function, and how it is printed.  (Chapter
8)
"""

from __future__ import annotations

import keyword
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import sympy
from sympy.core.parameters import distribute

from refinemath.answer.solution import Solution, linear_solution, refine_constants, score_solution
from refinemath.expression import SLOTS, VARIABLES, Formula, FormulaError, fold
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


def pretty(formula: Formula, digits: int = 6, names: Sequence[str] = ()) -> sympy.Expr:
    """The SymPy form that is printed: numbers to `digits` significant digits, multiples of pi and
    whole numbers exact, and symbols with the users' `names` in place of x1, x2, and so on.  A
    number times x - c stays as it is, which SymPy would multiply out.
    """
    held: dict[sympy.Symbol, sympy.Expr] = {}

    def node(part: str | float, *operands: sympy.Expr) -> sympy.Expr:
        if part in ("mul", "div") and any(o.is_Number for o in operands):
            operands = tuple(_hold(o, held) if _is_place(o) else o for o in operands)
        return formula.sympy_node(part, *operands)

    expression = fold(formula.parts, node)
    numbers = _printed_numbers(expression, digits)
    symbols = {
        sympy.Symbol(own, real=True): sympy.Symbol(name, real=True)
        for own, name in zip(("x", *VARIABLES), (*names[:1], *names), strict=False)
    }
    places = {d: e.xreplace(_printed_numbers(e, digits)) for d, e in held.items()}
    with distribute(False):
        return expression.xreplace(numbers).xreplace(places).xreplace(symbols)


def _is_place(e: sympy.Expr) -> bool:
    """Whether an expression is x + c."""
    return bool(e.is_Add and len(e.args) == 2 and e.args[0].is_Number and e.args[1].is_Symbol)


def _hold(e: sympy.Expr, held: dict[sympy.Symbol, sympy.Expr]) -> sympy.Symbol:
    """A symbol in place of an expression, the same one for equal expressions."""
    known = next((d for d, other in held.items() if other == e), None)
    if known is None:
        known = sympy.Dummy(real=True)
        held[known] = e
    return known


def _printed_numbers(e: sympy.Expr, digits: int) -> dict[sympy.Expr, sympy.Expr]:
    return {n: _printed_number(float(n), digits) for n in e.atoms(sympy.Float)}


def _printed_number(v: float, digits: int) -> sympy.Expr:
    share = sympy.Rational(round(v / math.pi * 12), 12) if abs(v) < 40 else sympy.Integer(0)
    if 0 < abs(share.p) <= 12 and abs(v - float(share) * math.pi) < 1e-9 * abs(v):
        return share * sympy.pi
    if (abs(v) < 1e9 and abs(v - round(v)) < 1e-9 * abs(v)) or (abs(v) < 1e15 and v == round(v)):
        return sympy.Integer(round(v))
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
    """A line of Python that needs `import math`, with all digits of the numbers."""
    expression = pretty(formula, 17, python_names(names))
    return str(sympy.pycode(expression, fully_qualified_modules=True))
