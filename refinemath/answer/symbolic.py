"""Everything that needs SymPy: other forms of the same function, and how it is printed.  (Chapter
8)
"""

from __future__ import annotations

import math

import numpy as np
import sympy

from refinemath.answer.solution import Solution, linear_solution, refine_constants
from refinemath.expression import SLOTS, VARIABLES, Formula, FormulaError
from refinemath.problem import Prepared
from refinemath.text import parse


def _terms_of(expression: sympy.Expr) -> list[Formula]:
    """The additive terms of an expression without their coefficients; what holds no variable is
    left out.  Raises `FormulaError`.
    """
    return [
        parse(str(p.as_coeff_Mul()[1])) for p in sympy.Add.make_args(expression) if p.free_symbols
    ]


def _monic(expression: sympy.Expr) -> sympy.Expr:
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


def rescale(solution: Solution, prepared: Prepared) -> Solution | None:
    """The same function in the user's x: powers, logarithms and factors absorb the scale where they
    can.
    """
    if np.all(prepared.scale == 1.0):
        return solution
    names = VARIABLES[: len(prepared.scale)]
    symbols = {
        v: sympy.Symbol(v, positive=True)
        if np.all(prepared.x[i] > 0)
        else sympy.Symbol(v, real=True)
        for i, v in enumerate(names)
    }
    terms: list[Formula] = []
    try:
        for term in solution.terms:
            expression = term.sympy().subs(
                {
                    sympy.Symbol("x", real=True): symbols["x1"],
                    **{sympy.Symbol(v, real=True): s for v, s in symbols.items()},
                }
            )
            expression = expression.subs(
                {s: s / sympy.Float(prepared.scale[i], 17) for i, s in enumerate(symbols.values())},
                simultaneous=True,
            )
            terms += _terms_of(_monic(sympy.expand_log(sympy.expand_power_base(expression))))
    except (FormulaError, TypeError, ValueError, ArithmeticError, RecursionError):
        terms = []
    direct = linear_solution(terms, prepared.x, prepared.y) if terms else None
    if direct is not None and direct.fvu <= 4 * solution.fvu + 1e-18:
        return refine_constants(direct.terms, prepared.x, prepared.y)
    scaled = [
        Formula(
            tuple(
                q
                for p in t.parts
                for q in (
                    ("mul", 1 / prepared.scale[VARIABLES.index(p)], p) if p in VARIABLES else (p,)
                )
            )
        )
        for t in solution.terms
    ]  # type: ignore[arg-type]
    return linear_solution(scaled, prepared.x, prepared.y)


def multiplied_out(solution: Solution, prepared: Prepared, *, most: int = 6) -> Solution | None:
    """The same function as a sum of powers and products, such as x^2 + x for (x + 1/2)^2; None
    where that is nothing new or has over `most` terms.
    """
    expression = sympy.Add(
        *(a * t.sympy() for a, t in zip(solution.coefficients, solution.terms, strict=True))
    )
    try:
        terms = list(dict.fromkeys(_terms_of(_monic(sympy.expand(expression)))))
    except (FormulaError, TypeError, ValueError, ArithmeticError, RecursionError):
        return None
    if (
        not 0 < len(terms) <= most
        or {t.parts for t in terms} == {t.parts for t in solution.terms}
        or max(map(len, terms)) > SLOTS
    ):
        return None
    found = linear_solution(terms, prepared.x, prepared.y)
    return found if found is not None and found.fvu <= 4 * solution.fvu + 1e-18 else None


def one_fraction(solution: Solution, prepared: Prepared) -> Solution | None:
    """g / (g + d) in place of b + a / (g + d), which is the same where a = -b d; None where the
    formula is not of that kind.
    """
    if len(solution.terms) != 1:
        return None
    power = _monic(solution.terms[0].sympy()).as_coeff_Mul()[1]
    number, g = (
        power.base.as_coeff_Add()
        if power.is_Pow and power.exp.is_number and float(power.exp) == -1
        else (sympy.S.Zero, power)
    )
    if number == 0:
        return None
    try:
        return refine_constants([parse(str(g * power))], prepared.x, prepared.y, intercept=False)
    except FormulaError:
        return None


def pretty(formula: Formula, digits: int = 6) -> sympy.Expr:
    """The SymPy form that is printed: numbers to `digits` significant digits, multiples of pi and
    whole numbers exact.
    """
    expression = formula.sympy()
    numbers = {}
    for number in expression.atoms(sympy.Float):
        v = float(number)
        share = sympy.Rational(round(v / math.pi * 12), 12) if abs(v) < 40 else sympy.Integer(0)
        if 0 < abs(share.p) <= 12 and abs(v - float(share) * math.pi) < 1e-9 * abs(v):
            numbers[number] = share * sympy.pi
        elif abs(v) < 1e9 and abs(v - round(v)) < 1e-9 * abs(v):
            numbers[number] = sympy.Integer(round(v))
        else:
            numbers[number] = sympy.Float(repr(v) if digits >= 17 else f"{v:.{digits}g}")
    return expression.xreplace(numbers)


def latex_of(formula: Formula, digits: int = 6) -> str:
    """LaTeX of a formula, short numbers."""
    return str(sympy.latex(pretty(formula, digits), mul_symbol=r"\,", ln_notation=False))
