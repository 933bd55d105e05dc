"""Familiar families of curves: found in any units, priced by how common they are; fits of a form
that the user gives.
"""

import math

import numpy as np
import pytest
import scipy.optimize

from refinemath import DataError, Formula, FormulaError, RefineMath, fit_form, parse
from refinemath.answer.solution import Solution, solution_values
from refinemath.expression import split_terms
from refinemath.families import FAMILIES, Curve, familiar_code_length, reference, shape
from refinemath.proposers.families import Families, fit_family, plain_numbers
from refinemath.proposers.registry import DEFAULT
from refinemath.spectrum import main_frequencies, whole_cycle

U = np.linspace(0, 1, 25)
NOISE = 0.02 * np.random.default_rng(1).normal(size=25)
BY_NAME = {family.name: family for family in FAMILIES}


def fitted(name: str, x: np.ndarray, y: np.ndarray) -> Solution:
    found = fit_family(BY_NAME[name], Curve(x, y))
    assert found is not None
    return found


def shapes(solution: Solution) -> list[str]:
    return sorted(shape(t.skeleton()) for t in solution.terms)


@pytest.mark.parametrize(
    ("name", "text", "moved"),
    [
        ("exponential", "3*exp(-4*x) + 1", True),
        ("logistic", "2/(1 + exp(-12*(x - 0.45)))", True),
        ("Gaussian", "2*exp(-((x - 0.4)/0.15)**2) + 1", True),
        ("Michaelis-Menten", "2*x/(x + 0.3)", False),
    ],
)
def test_units_and_origin_change_only_the_numbers(name: str, text: str, moved: bool) -> None:
    y = parse(text).evaluate(U[None]) + NOISE
    own = fitted(name, U, y)
    plain = solution_values(own, U[None])
    for x, factor in ((1e3 * U, 1.0), (U, 1e-9), (U, 1e9), (U + 10, 1.0), (U + 2e4, 1.0)):
        if x[0] and not moved:
            continue
        found = fitted(name, x, factor * y)
        same = solution_values(found, x[None]) / factor
        np.testing.assert_allclose(same, plain, atol=2e-3)
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


def test_x_far_from_0_counts_from_a_round_number() -> None:
    assert reference(2000 + U) == 2000 and reference(U) == reference(U - 0.5) == 0
    assert whole_cycle(np.arange(24.0)) == pytest.approx(2 * math.pi / 24)


def test_families_are_switched_by_name() -> None:
    assert RefineMath().on_host == () and RefineMath(proposers=DEFAULT | {"families"}).on_host
    result = RefineMath(proposers=("families",)).solve(U, 3 * np.exp(-4 * U) + 1 + NOISE)
    assert result.formula.functions() == {"exp"} and result.searches == 0 and result.found
    assert "families" not in DEFAULT
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
