"""Familiar families of curves: found in any units, priced by how common they are; fits of a form
that the user gives.
"""

import math

import numpy as np
import pytest
import scipy.optimize

from refinemath import DataError, Formula, FormulaError, RefineMath, fit_form, parse
from refinemath.answer.behaviour import POLE, TURN, detours, natural_units
from refinemath.answer.solution import Solution, code_length, score_solution, solution_values
from refinemath.expression import split_terms
from refinemath.families import FAMILIES, Curve, familiar_code_length, reference, shape
from refinemath.proposers.families import Families, fit_family, plain_numbers
from refinemath.proposers.registry import DEFAULT
from refinemath.spectrum import main_frequencies, whole_cycle

U = np.linspace(0, 1, 25)
NOISE = 0.02 * np.random.default_rng(1).normal(size=25)
BY_NAME = {family.name: family for family in FAMILIES}


def chosen(x: np.ndarray, y: np.ndarray) -> Solution:
    solutions = Families(refine=1).solutions(x[None], y)
    return min((score_solution(s, x[None], y) for s in solutions), key=code_length)


def shapes(solution: Solution) -> list[str]:
    return sorted(shape(t.skeleton()) for t in solution.terms)


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("3*exp(-4*x) + 1", True),
        ("2/(1 + exp(-12*(x - 0.45)))", True),
        ("2*exp(-((x - 0.4)/0.15)**2) + 1", True),
        ("2*x/(x + 0.3)", False),
    ],
)
def test_units_and_origin_change_only_the_numbers(text: str, moved: bool) -> None:
    y = parse(text).evaluate(U[None]) + NOISE
    own = chosen(U, y)
    plain = solution_values(own, U[None])
    for x, factor in ((1e9 * U, 1.0), (1e-9 * U, 1e9), (U, 1e-9), (U + 10, 1.0), (U + 2e4, 1.0)):
        if x[0] and not moved:
            continue
        found = chosen(x, factor * y)
        if not x[0]:
            assert shapes(found) == shapes(own)
        same = solution_values(found, x[None]) / factor
        np.testing.assert_allclose(same, plain, atol=1e-4)
    truth = split_terms(parse(text))[0]
    assert len(own.terms) == 1 and shapes(own)[0] == shape(truth.skeleton())


def test_a_fast_wave_is_found_over_all_points() -> None:
    x = np.arange(2000) * 5e-4
    y = 3.1 * np.sin(2 * np.pi * 50 * x + 0.4)
    found = fit_family(BY_NAME["sinusoid"], Curve(x, y))
    assert found is not None and found.fvu < 1e-20
    np.testing.assert_allclose(found.constants, (2 * np.pi * 50, 0.4), rtol=1e-9)
    uneven = np.sort(np.random.default_rng(0).uniform(0, 10, 300))
    peak = main_frequencies(uneven, np.sin(40 * uneven))[0]
    assert peak == pytest.approx(40, abs=0.2)


@pytest.mark.parametrize(
    ("k", "phase", "factor"), [(2.0, 9.0, 1.0), (-2.0, 1.0, 3.0), (3.0, 1, -1)]
)
def test_equivalent_waves_are_written_alike(k: float, phase: float, factor: float) -> None:
    term = Formula(("sin", "add", "mul", float(k), "x1", float(phase)))
    plain = plain_numbers(term, factor)
    omega, shift = plain.constants()
    assert omega > 0 and abs(shift) <= math.pi
    np.testing.assert_allclose(
        abs(factor) * plain.evaluate(U[None]), factor * term.evaluate(U[None]), atol=1e-12
    )


def test_a_family_is_cheaper_than_its_tokens() -> None:
    for text in ("exp(-x/3)", "1/(1 + exp(-2*(x - 3)))", "x/(x + 3)", "cos(2*x - 1)"):
        terms = split_terms(parse(text))
        assert familiar_code_length(tuple(t.skeleton() for t in terms)) < 5
    assert math.isinf(familiar_code_length((parse("tanh(x**4)").skeleton(),)))
    total = sum(family.share for family in FAMILIES)
    assert total < 1000


def test_a_place_is_counted_in_the_range_of_x() -> None:
    zero, unit = natural_units([parse("exp(3*(x - 2001))")], np.array([3.0, 2001]), 2000 + U[None])
    np.testing.assert_allclose((zero, unit), ([0, 2000.5], [3, 1]))
    assert reference(2000 + U) == 2000 and reference(U) == reference(U - 0.5) == 0
    assert whole_cycle(np.arange(24.0)) == pytest.approx(2 * math.pi / 24)


def test_what_no_point_shows_is_paid_for() -> None:
    y = np.exp(-3 * U)
    quiet = detours(lambda x: np.exp(-3 * x[0]), U[None], y)
    turns = detours(lambda x: (x[0] - 1.1) ** 2, U[None], y)
    pole = detours(lambda x: y[0] + 1e-3 / (x[0] - 0.51), U[None], y)
    alias = detours(lambda x: np.sin(2 * math.pi * 24 * x[0] + 3 * x[0]), U[None], y)
    assert quiet == 0 and turns == TURN and pole >= POLE and alias > 10 * TURN


def test_families_are_switched_by_name() -> None:
    assert RefineMath(proposers=DEFAULT - {"families"}).on_host == ()
    result = RefineMath(proposers=("families",)).solve(U, 3 * np.exp(-4 * U) + 1 + NOISE)
    assert shape(split_terms(result.formula)[0].skeleton()) == "exp(x1)" and result.searches == 0
    far = RefineMath(proposers=("families",)).solve(1.7e9 + 1e4 * U, 3 * np.exp(-4 * U) + 1 + NOISE)
    assert "(x - 1700000000)" in str(far) and far.fvu < 0.01
    assert Families().solutions(np.stack([U, U**2]), U) == []


def test_a_given_form_is_fitted_as_by_scipy() -> None:
    y = 3 * np.exp(-2 * U) + 1 + NOISE
    found = fit_form("a*exp(-b*x) + c", U, y)
    best, covariance = scipy.optimize.curve_fit(
        lambda x, a, b, c: a * np.exp(-b * x) + c, U, y, (2, 1, 0)
    )
    np.testing.assert_allclose(list(found.numbers.values()), best, rtol=1e-4)
    np.testing.assert_allclose(list(found.errors.values()), np.sqrt(np.diag(covariance)), rtol=1e-3)
    np.testing.assert_allclose(found.predict(U), found.formula.evaluate(U[None]))
    assert "b = " in str(found) and "±" in str(found)


def test_a_number_that_the_points_do_not_determine_has_no_error() -> None:
    found = fit_form("a*b*x + c", U, 2 * U + NOISE)
    assert math.isinf(found.errors["a"]) and math.isfinite(found.errors["c"])


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        ("a*exp(-b*x", FormulaError, "cannot read"),
        ("exp(x)", FormulaError, "no numbers to fit"),
        ("a*foo(x)", FormulaError, "unknown function 'foo'"),
        ("a+b+c+d+e+f+g+h+i+j*x", FormulaError, "at most 9"),
        ("a*sqrt(-1 - x**2)", DataError, "undefined"),
    ],
)
def test_a_form_that_cannot_be_fitted_says_why(
    form: str, error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_form(form, U, U)
