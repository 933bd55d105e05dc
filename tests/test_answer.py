"""Chapter 8: numbers in float64 on the host, what they cost, and when one is made simple."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy
from formulas import from_bank
from hypothesis import given

from refinemath.answer.codes import fraction_code_length, heavy_tailed
from refinemath.answer.rounding import drop_negligible, round_constants, simple_neighbours
from refinemath.answer.solution import (
    Solution,
    code_length,
    fit_many_points,
    fraction_unexplained,
    linear_solution,
    refine_constants,
    score_solution,
    solution_values,
)
from refinemath.examples import SkeletonTable
from refinemath.expression import TOKEN_CODE_LENGTH, split_terms
from refinemath.text import parse

RNG = np.random.default_rng(0)
X = np.linspace(0.3, 4.0, 40)[None]


def solved(text: str, y: np.ndarray, x: np.ndarray = X) -> Solution:
    solution = refine_constants(split_terms(parse(text)), x, y)
    assert solution is not None
    return score_solution(solution, x, y)


def test_linear_solution_is_lstsq() -> None:
    y = RNG.normal(size=40)
    terms = split_terms(parse("sin(x) + x**2 + log(x)"))
    solution = linear_solution(terms, X, y)
    assert solution is not None
    design = np.stack([np.sin(X[0]), X[0] ** 2, np.log(X[0]), np.ones(40)], axis=1)
    np.testing.assert_allclose(
        [*solution.coefficients, solution.offset],
        np.linalg.lstsq(design, y, rcond=None)[0],
        rtol=1e-9,
    )
    np.testing.assert_allclose(
        np.sum((y - solution_values(solution, X)) ** 2) / np.sum((y - y.mean()) ** 2),
        solution.fvu,
        rtol=1e-9,
    )
    through_zero = linear_solution(terms, X, y, intercept=False)
    assert (
        through_zero is not None and through_zero.offset == 0.0 and through_zero.fvu > solution.fvu
    )


def test_a_solution_says_what_it_holds() -> None:
    solution = linear_solution(
        split_terms(parse("exp(-0.5*x) + x")), X, parse("3*exp(-0.5*x) - 2.25*x + 4").evaluate(X)
    )
    assert solution is not None
    np.testing.assert_allclose(
        solution.formula().evaluate(X), solution_values(solution, X), rtol=1e-12
    )
    np.testing.assert_allclose(solution.coefficients, (3.0, -2.25), rtol=1e-9)
    assert solution.length == len(parse("exp(-0.5*x) + x"))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_any_scale_of_y_is_solved(scale: float) -> None:
    y = scale * parse("3*exp(-0.37*x) + 2").evaluate(X)
    solution = solved("exp(-1.0*x)", y)
    assert solution.fvu < 1e-22
    np.testing.assert_allclose(
        [solution.coefficients[0], solution.offset], [3 * scale, 2 * scale], rtol=1e-9
    )


def test_an_undefined_term_has_no_solution() -> None:
    assert linear_solution([parse("log(x - 2)")], X, X[0]) is None
    assert refine_constants([parse("log(x - 2)")], X, X[0]) is None


def test_polish_never_gets_worse(bank: SkeletonTable) -> None:
    y = parse("2*sin(1.83*x) - log(x)").evaluate(X)
    compared = 0
    for e in from_bank(bank, 40, seed=7):
        before, after = (
            linear_solution(split_terms(e), X, y),
            refine_constants(split_terms(e), X, y),
        )
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert after.fvu <= before.fvu
            compared += 1
    assert compared > 15


def test_a_frozen_number_stays() -> None:
    y = parse("sin(1.83*x + 0.4)").evaluate(X)
    solution = refine_constants([parse("sin(1.7*x + 0.5)")], X, y, frozen=frozenset({0}))
    assert solution is not None
    frozen = [parse("sin(1.7*x + 0.5)").constants()[0]]
    assert solution.terms[0].constants()[0] == frozen[0] and solution.terms[0].constants()[1] != 0.5


# ---------------------------------------------------------------- snapping


@given(st.floats(1e-3, 1e3).flatmap(lambda v: st.sampled_from([v, -v])))
def test_nice_numbers_are_near_and_not_zero(v: float) -> None:
    for n in simple_neighbours(v):
        assert n != 0 and abs(n - v) <= 0.05 * abs(v)


@pytest.mark.parametrize("v", [2.0, 0.5, 1 / 3, -4.0, np.pi, 2 * np.pi / 3, 0.7])
def test_a_simple_number_is_among_its_neighbours(v: float) -> None:
    assert min(abs(n - v) for n in simple_neighbours(v * (1 + 1e-7))) < 1e-12


def test_a_large_number_is_no_multiple_of_pi() -> None:
    assert 66.5 * np.pi not in simple_neighbours(209.19) and any(
        abs(n - 12 * np.pi) < 1e-9 for n in simple_neighbours(37.7)
    )


@pytest.mark.parametrize("v", [1.7e308, np.float64(1.7e308), -3e200, 2e-308])
def test_numbers_at_the_end_of_float64_have_neighbours_or_none(v: float) -> None:
    assert all(np.isfinite(n) for n in simple_neighbours(v)) and fraction_code_length(v) > 0


def test_a_better_fit_is_shorter_and_a_longer_formula_is_longer() -> None:
    y = parse("2*sin(x)").evaluate(X) + 1e-3 * RNG.normal(size=40)
    good, bad = solved("sin(x)", y), solved("cos(x)", y)
    assert code_length(good) < code_length(bad)
    padded = solved("sin(x) + sin(3*x)", y)
    assert code_length(good) < code_length(padded)


@pytest.mark.parametrize(
    "truth", ["2.371828*sin(1.83193*x) + 0.771203", "x**2 + 1.04719*x", "exp(-0.998*x)"]
)
def test_a_number_that_clean_data_pin_down_is_kept(truth: str) -> None:
    """Near a simple number or not: a change that the data would show is not made."""
    y = parse(truth).evaluate(X)
    snapped = round_constants(solved(truth, y), X, y)
    np.testing.assert_allclose(snapped.formula().evaluate(X), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("truth", "start", "numbers"),
    [
        ("3*sin(2*x) + 1", "sin(2.1*x)", {3.0, 2.0, 1.0}),
        ("0.5*exp(-0.25*x)", "exp(-0.3*x)", {0.5, 0.25}),
        ("sin(pi*x)", "sin(3.1*x)", {np.pi}),
        ("4*x**1.5", "x**1.4", {4.0, 1.5}),
    ],
)
def test_simple_numbers_come_back_exactly(truth: str, start: str, numbers: set[float]) -> None:
    y = parse(truth).evaluate(X)
    snapped = round_constants(solved(start, y), X, y)
    assert {abs(v) for v in snapped.formula().constants()} == numbers and snapped.fvu < 1e-24


def test_noise_lets_a_number_become_simple() -> None:
    y = 2 * np.sin(X[0]) + 0.02 * np.random.default_rng(3).normal(size=40)
    loose = solved("sin(x)", y)
    assert loose.coefficients[0] != 2.0
    snapped = round_constants(loose, X, y)
    assert snapped.coefficients == (2.0,) and snapped.offset == 0.0


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("sqrt(x + 3e-17)", "sqrt(x)"),
        ("1 / (cos(x) - 6e-18)", "1 / cos(x)"),
        ("exp(3e-17 - x)", "exp(-x)"),
        ("log(x + 4e-19 * (sin(x) - x**4) + 2)", "log(x + 2)"),
        ("sqrt(x + 0.001)", "sqrt(x + 0.001)"),
        ("log(x + sqrt(-x))", "log(x + sqrt(-x))"),
    ],
)
def test_a_summand_that_is_rounding_goes(text: str, plain: str) -> None:
    assert drop_negligible(parse(text), X) == parse(plain)


def test_snapping_leaves_no_rounding_inside() -> None:
    y = np.tanh(np.sqrt(X[0])) - 0.5
    solution = refine_constants([parse("tanh(sqrt(x) + 4e-17)")], X, y)
    assert solution is not None and round_constants(solution, X, y).terms == (
        parse("tanh(sqrt(x))"),
    )


def test_snapping_never_lengthens_the_description(bank: SkeletonTable) -> None:
    y = parse("2*sin(1.83*x) - log(x)").evaluate(X) + 0.01 * np.random.default_rng(1).normal(
        size=40
    )
    compared = 0
    for e in from_bank(bank, 25, seed=8):
        solution = refine_constants(split_terms(e), X, y)
        if solution is not None and np.isfinite(solution.fvu):
            snapped = round_constants(solution, X, y)
            assert code_length(snapped) <= code_length(score_solution(solution, X, y)) + 1e-6
            np.testing.assert_allclose(
                np.sum((y - solution_values(snapped, X)) ** 2) / np.sum((y - y.mean()) ** 2),
                snapped.fvu,
                rtol=1e-6,
                atol=1e-12,
            )
            compared += 1
    assert compared > 8


# the price of numbers and of what is left over


@pytest.mark.parametrize(
    ("v", "nats"),
    [
        (2.0, np.log(6)),
        (-0.5, np.log(8)),
        (0.0125, np.log(2 * 2 * 80)),
        (41.0, np.log(84)),
        (2**0.5, np.inf),
    ],
)
def test_a_fraction_costs_its_two_whole_numbers(v: float, nats: float) -> None:
    assert fraction_code_length(v) == pytest.approx(nats)


def test_a_multiple_of_pi_costs_a_token_more_than_its_fraction() -> None:
    assert fraction_code_length(2 * np.pi / 3) == pytest.approx(
        fraction_code_length(2 / 3) + TOKEN_CODE_LENGTH[1]
    )


def test_a_number_costs_its_digits() -> None:
    """Ten times less noise is one digit more: log 10."""
    noise = np.random.default_rng(4).normal(size=40)
    prices = [
        solved("sin(x)", 2.3456789 * np.sin(X[0]) + 10.0**-k * noise).number_code_length
        for k in (2, 3, 4)
    ]
    offsets = [
        solved("sin(x)", 2.3456789 * np.sin(X[0]) + 10.0**-k * noise).offset for k in (2, 3, 4)
    ]
    assert np.abs(offsets).max() < 0.1
    np.testing.assert_allclose(np.diff(prices), np.log(10), atol=0.3)


def test_the_misfit_is_that_of_points_left_out() -> None:
    """For coefficients the shortcut is exact: it is what refitting without each point gives."""
    y = 3 * np.sin(X[0]) + 0.1 * np.random.default_rng(6).normal(size=40)
    whole = solved("sin(x)", y)
    off = []
    for i in range(40):
        seen = np.arange(40) != i
        part = refine_constants(whole.terms, X[:, seen], y[seen])
        assert part is not None
        off.append(y[i] - solution_values(part, X[:, [i]])[0])
    assert whole.nll == pytest.approx(heavy_tailed(np.array(off) / np.std(y))[1], rel=1e-9)


def test_the_scale_of_heavy_tails_is_the_likeliest() -> None:
    residual = 0.01 * np.random.default_rng(5).standard_t(4, 400)
    scale, cost = heavy_tailed(residual)
    best = scipy.optimize.minimize_scalar(
        lambda s: -scipy.stats.t.logpdf(residual, 4, scale=s).sum(),
        bounds=(1e-3, 1e-1),
        method="bounded",
    )
    assert scale == pytest.approx(best.x, rel=1e-3)
    assert cost - best.fun == pytest.approx(
        heavy_tailed(10 * residual)[1]
        + scipy.stats.t.logpdf(10 * residual, 4, scale=10 * scale).sum(),
        abs=1e-3,
    )


def test_one_reading_far_off_costs_little() -> None:
    """Under a normal distribution the outlier would cost 20 log 100 nats more than the others."""
    residual = 0.01 * np.random.default_rng(5).normal(size=40)
    spoilt = residual.copy()
    spoilt[7] = 1.0
    assert 5 < heavy_tailed(spoilt)[1] - heavy_tailed(residual)[1] < 30


def test_as_many_numbers_as_points_describe_nothing() -> None:
    x = np.array([[1.0, 2.0, 3.0]])
    solution = refine_constants(split_terms(parse("x**2 + x")), x, np.array([1.0, 5.0, 2.0]))
    assert solution is not None and np.isinf(
        code_length(score_solution(solution, x, np.array([1.0, 5.0, 2.0])))
    )


def test_many_points_are_fitted_by_chunks() -> None:
    """As least squares on all of them at once; what was rounded to a simple number stays."""
    rng = np.random.default_rng(7)
    x = rng.uniform(0.5, 3, (1, 3000))
    y = 2 * np.exp(-0.7131 * x[0]) + 1.37 * x[0] + 0.05 * rng.normal(size=3000)
    terms = [parse("exp(-0.7*x)"), parse("x")]
    first = refine_constants(terms, x[:, :400], y[:400])
    best = refine_constants(terms, x, y)
    assert first is not None and best is not None
    found = fit_many_points(first, x, y, chunk=700)
    assert found.fvu == pytest.approx(best.fvu, rel=1e-6)
    np.testing.assert_allclose(found.constants, best.constants, rtol=1e-3)
    np.testing.assert_allclose(
        fraction_unexplained(y - solution_values(found, x), y), found.fvu, rtol=1e-9
    )
    simple = Solution((parse("exp(-0.5*x)"), parse("x")), (2.0, 1.5), 0.0, 1.0)
    kept = fit_many_points(simple, x, y)
    assert kept.formula() == simple.formula() and kept.fvu > found.fvu
