"""From the answers of all searches to the result: the last fit, the choice, and what came close.
(Chapters 8 and 10)
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import sympy

from refinemath.answer.choose import Answers, FrontEntry, pareto_front
from refinemath.answer.regression import choose_refitted
from refinemath.answer.solution import code_length, fit_many_points
from refinemath.answer.statement import DIGITS, state
from refinemath.answer.symbolic import latex_of, pretty, rewrite
from refinemath.compiled import SearchRecord
from refinemath.control import Control, decades_hint, skeleton_length
from refinemath.expression import Formula
from refinemath.front import Candidate, Front
from refinemath.problem import MOST_POINTS, Table, spread_out
from refinemath.result import Result, judged


def _finalists(answers: Answers, table: Table, control: Control) -> list[tuple[float, Formula]]:
    """The formulas among which the choice is made, with their code lengths, the best first: those
    of the answers, or, where the user said how the errors are, many of them fitted so.
    """
    problem, errors = answers.problem, control.errors
    if errors.plain:
        best = answers.best or answers.mean
        if len(table.y) > len(problem.y):
            return [(0.0, fit_many_points(best, table.x.T, table.y).formula())]
        others = [s for s in answers.finalists if s != best]
        return [(code_length(s), s.formula()) for s in (best, *others)]
    few = spread_out(table.x.T, MOST_POINTS)
    sigma = None if errors.sigma is None else errors.sigma[few]
    solutions = [form for s in answers.solutions[:12] for form in rewrite(s, problem)]
    solutions += answers.finalists
    forms = [s.formula() for s in solutions]
    x, y = table.x[few].T, table.y[few]
    fitted = choose_refitted(forms, x, y, replace(errors, sigma=sigma), control.allows)
    return [(code_length(s), s.terms[0]) for s in fitted]


def make_result(
    answers: Answers, record: SearchRecord | None, table: Table, control: Control
) -> Result:
    """The result for a table, with the search that has found the answer, if there was one."""
    finalists = _finalists(answers, table, control)
    formula, digits = _stated(finalists[0][1], table, control)
    result = Result(
        latex=latex_of(formula, 17, table.names),
        iterations=record.steps if record else 0,
        formula=formula,
        fvu=math.nan,
        converged=record.converged if record else False,
        exact=False,
        found=False,
        candidates=(),
        velocity=np.asarray(record.trace.velocity) if record else np.zeros((0, 0)),
        outcome=record,
        x=table.x,
        y=table.y,
        digits=digits,
        names=table.names,
        target=table.target,
        origins=table.origins,
        errors=control.errors,
        notes=(*table.notes, *decades_hint(table, control.errors)),
    )
    result = judged(result, table.x, table.y)
    front = fronted(pareto_front(answers.solutions, answers.problem, answers.written), result)
    result = replace(result, candidates=front, runners_up=runners_up(finalists, result))
    return replace(result, fvu=min(result.fvu, 1.0)) if result.is_mean else result


def _stated(formula: Formula, table: Table, control: Control) -> tuple[Formula, int]:
    """The formula as it is printed, and the digits of its numbers; the mean of y where nothing is
    better.  Where the errors are not equal, or the print holds what is not allowed, the last fit
    stays as it is.
    """
    if not control.errors.plain:
        return formula, DIGITS[0]
    stated = state(formula, table.x.T, table.y)
    if not stated.fvu < 1.0:
        mean = Formula((float(np.mean(table.y)),))
        stated = state(mean, table.x.T, table.y, forms=False)
    if not control.allows(stated.formula):
        return formula, DIGITS[0]
    return stated.formula, stated.digits


def fronted(entries: tuple[FrontEntry, ...], result: Result) -> Front:
    """The front as candidates with the names of a result."""
    own = (result.names, result.target, result.digits, result.origins)
    return Front(
        Candidate(e.length, e.fvu, e.formula, e.law, math.nan, *own)
        for e in entries
        if e.law is not None
    )


def runners_up(finalists: list[tuple[float, Formula]], result: Result) -> tuple[Candidate, ...]:
    """What else was considered, from formulas with their code lengths, the answer first; one of
    each that fits the same.
    """
    seen, found = [result.fvu], []
    for length, law in finalists[1:]:
        fvu = judged(replace(result, formula=law), result.x, result.y).fvu
        if any(abs(fvu - other) <= 1e-6 * fvu for other in seen):
            continue  # the same function in other words
        seen.append(fvu)
        odds = math.exp(min(length - finalists[0][0], 700.0))
        text = sympy.sstr(pretty(law, result.digits - 1, result.names), full_prec=False)
        own = (result.names, result.target, result.digits, result.origins)
        found.append(Candidate(skeleton_length(law), fvu, text, law, odds, *own))
    return tuple(found)
