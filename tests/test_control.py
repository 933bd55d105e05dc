"""Chapter 10: what a user asks of a formula and its fit: operators, length, errors, outliers, the
origin.
"""

from typing import Any

import numpy as np
import pytest
import sympy

from refinemath import DataError, parse
from refinemath.answer.choose import Answers
from refinemath.answer.regression import (
    Errors,
    Points,
    choose_refitted,
    point_weights,
    refit_formula,
    weighted_fvu,
)
from refinemath.answer.solution import linear_solution, score_solution
from refinemath.answer.symbolic import pretty
from refinemath.control import Progress, decades_hint, far_off, make_control, skeleton_length
from refinemath.expression import OPERATOR_TOKEN, Formula, encode, split_terms
from refinemath.operators import (
    ALWAYS,
    OPERATOR_NAMES,
    allowed_operators,
    forbidden_tokens,
    operators_in,
    uses_only,
    without_forbidden,
)
from refinemath.problem import Table, prepare
from refinemath.proposers.library import short_skeletons

RNG = np.random.default_rng(0)
X = np.linspace(0.5, 6, 30)


def table(x: np.ndarray, y: np.ndarray, sigma: np.ndarray | None = None) -> Table:
    return Table(x[:, None], y, ("x",), "y", sigma)


def anything(formula: Formula) -> bool:
    return True


# ---------------------------------------------------------------- operators


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("2*x - 3", set()),
        ("x**2", {"**"}),
        ("x*x", {"**"}),
        ("1/x", {"/"}),
        ("x/(x + 2)", {"/"}),
        ("x**(-1.5)", {"/", "**"}),
        ("sqrt(x)", {"sqrt"}),
        ("1/sqrt(x)", {"sqrt", "/"}),
        ("exp(-x)*tanh(x)", {"exp", "tanh"}),
        ("exp(2*log(x))", {"**"}),
        ("exp(2.0000000000001*log(x))", {"**"}),
    ],
)
def test_the_operators_that_are_printed(text: str, used: set[str]) -> None:
    formula = parse(text)
    assert operators_in(pretty(formula)) == used
    assert uses_only(formula, OPERATOR_NAMES)
    own = {"exp", "log"} if "log" in text else set()
    assert uses_only(formula, frozenset(ALWAYS | used | own))
    for one in used:
        assert not uses_only(formula, OPERATOR_NAMES - {one})


def test_operators_by_sign_or_name() -> None:
    assert allowed_operators(None) == OPERATOR_NAMES
    assert allowed_operators("exp, ^ div") == ALWAYS | {"exp", "**", "/"}
    assert allowed_operators(["ln", "square"]) == ALWAYS | {"log", "**"}
    assert {"sqrt", "exp", "log", "sin", "cos", "tanh", "/", "**"} <= OPERATOR_NAMES
    with pytest.raises(ValueError, match="unknown operator 'arctan'; known are"):
        allowed_operators({"arctan"})


def test_no_row_of_the_library_holds_what_is_forbidden() -> None:
    forbidden = forbidden_tokens(OPERATOR_NAMES - {"sin", "**"})
    names = {n for n, token in OPERATOR_TOKEN.items() if forbidden[token]}
    assert names == {"sin", "pow", "square", "cube", "pow4", "pow5"}
    rows = short_skeletons()
    kept = without_forbidden(rows, forbidden)
    assert kept.shape == rows.shape and kept.dtype == rows.dtype
    tokens = [OPERATOR_TOKEN[n] for n in names]
    assert np.isin(rows, tokens).any() and not np.isin(kept, tokens).any()
    same = ~np.isin(rows, tokens).any(axis=1)
    np.testing.assert_array_equal(kept[same], rows[same])
    assert set(map(tuple, kept[~same].tolist())) == {(1, *[0] * (rows.shape[1] - 1))}


def test_what_is_not_allowed_is_never_chosen() -> None:
    y = X**2 + 0.01 * RNG.normal(size=30)
    problem = prepare(X[:, None], y)
    control = make_control(table(X, y), operators="sqrt log", max_length=4)
    answers = Answers(problem, control.allows)
    texts = ("x**2", "x*x", "sqrt(x)", "log(x)", "exp(x)", "log(sqrt(x) + x)")
    found = [linear_solution(split_terms(parse(t)), problem.u, y) for t in texts]
    answers.add(score_solution(s, problem.u, y) for s in found if s is not None)
    assert {s.terms[0].parts[0] for s in answers.solutions} == {"sqrt", "log"}
    assert answers.best is not None and answers.best in answers.finalists


@pytest.mark.parametrize(
    ("text", "length"), [("2*x + 3", 1), ("3*exp(-2*x) + 1", 4), ("x + 2*sin(x)", 4), ("7", 0)]
)
def test_length_counts_no_coefficients(text: str, length: int) -> None:
    assert skeleton_length(parse(text)) == length


# ---------------------------------------------------------------- errors of y


def test_known_errors_decide_the_fit() -> None:
    """Half of the points are bad, and said to be so."""
    sigma = np.where(np.arange(30) % 2, 3.0, 0.01)
    y = parse("3*x/(x + 2)").evaluate(X[None]) + sigma * RNG.normal(size=30)
    forms = [parse(t) for t in ("2*x/(x + 1.0)", "log(x)", "0.5*x + 1.0", "2*exp(-x) + 1")]
    best = choose_refitted(forms, X[None], y, Errors(sigma), anything)[0].terms[0]
    assert str(best.sympy()).count("x") == 2 and "log" not in best.functions()
    np.testing.assert_allclose(best.evaluate(X[None]), 3 * X / (X + 2), atol=0.03)
    equal = choose_refitted(forms, X[None], y, Errors(), anything)[0].terms[0]
    assert np.max(np.abs(equal.evaluate(X[None]) - 3 * X / (X + 2))) > 0.2
    assert weighted_fvu(best, X[None], y, Errors(sigma)) < 0.01
    assert weighted_fvu(best, X[None], y, Errors()) > 0.1


def test_relative_errors_over_ten_decades() -> None:
    """A diode: the largest currents alone do not decide."""
    volts = np.linspace(0.1, 0.7, 40)
    y = 1e-12 * np.exp(volts / 0.026) * (1 + 0.03 * RNG.normal(size=40))
    data = table(volts, y)
    assert "error='relative'" in decades_hint(data, Errors())[0]
    control = make_control(data, error="relative")
    assert not decades_hint(data, control.errors)
    forms = [parse("4.9e-13*exp(39.5*x)"), parse("12.0*x**15.0"), parse("1e-5*exp(25*x**2)")]
    best = choose_refitted(forms, volts[None], y, control.errors, anything)[0].terms[0]
    assert best.constants()[1] == pytest.approx(1 / 0.026, rel=3e-3)
    assert best.constants()[0] == pytest.approx(1e-12, rel=0.1)
    spread = np.log10(y.max() / y.min())
    assert spread > 9 and np.all(np.abs(best.evaluate(volts[None]) / y - 1) < 0.2)


def test_an_outlier_neither_decides_nor_vanishes() -> None:
    y = 2 * np.exp(-0.8 * X) + 0.6 + 0.01 * RNG.normal(size=30)
    y[7] += 3
    start, errors = parse("1.5*exp(-0.5*x) + 0.5"), Errors(loss="soft_l1")
    found = refit_formula(start, Points.of(X[None], y, errors))
    assert found is not None
    np.testing.assert_allclose(found.constants(), (2, -0.8, 0.6), atol=0.05)
    weights = point_weights(found, X[None], y, errors)
    assert np.flatnonzero(weights < 1 / 3).tolist() == [7] and weights[7] < 0.02
    assert weighted_fvu(found, X[None], y, errors) < 0.01
    plain = refit_formula(start, Points.of(X[None], y, Errors()))
    assert (
        plain is not None and np.max(np.abs(np.subtract(plain.constants(), (2, -0.8, 0.6)))) > 0.1
    )
    assert np.flatnonzero(far_off(X[:, None], y)).tolist() == [7]


@pytest.mark.parametrize("law", ["sin(3*x)", "exp(x)", "1/x", "4.2/(1 + exp(-5*(x - 3.1)))", "x"])
def test_no_point_of_a_smooth_curve_is_far_off(law: str) -> None:
    y = parse(law).evaluate(X[None])
    for noise in (0.02, 0.1):
        assert far_off(X[:, None], y + noise * np.std(y) * RNG.normal(size=30)).sum() <= 1
    assert not far_off(np.stack([X, X], axis=1), y).any() and not far_off(X[:5, None], y[:5]).any()


@pytest.mark.parametrize(
    ("law", "start"),
    [
        ("3*x/(x + 2)", "2.5*x/(x + 1.0)"),
        ("2*(1 - exp(-0.8*x))", "1.5*exp(-0.5*x) + 2.0"),
        ("1.3*x**1.5", "2*x**1.2"),
    ],
)
def test_a_curve_through_the_origin(law: str, start: str) -> None:
    y = parse(law).evaluate(X[None]) + 0.02 * RNG.normal(size=30)
    forms = [parse(start), parse("log(x)"), parse("0.5*log(x) + 1.0"), parse("2*exp(x) + 1.0")]
    errors = Errors(through_origin=True)
    for solution in choose_refitted(forms, X[None], y, errors, anything):
        at_origin = solution.terms[0].evaluate(np.zeros((1, 1)))[0]
        assert abs(at_origin) < 1e-4 * np.max(y)
    best = choose_refitted(forms, X[None], y, errors, anything)[0].terms[0]
    assert weighted_fvu(best, X[None], y, errors) < 0.01


def test_a_line_is_always_there() -> None:
    x = RNG.normal(size=(2, 20))
    y = 2 * x[0] - 3 * x[1] + 0.01 * RNG.normal(size=20)
    for origin in (False, True):
        best = choose_refitted([], x, y, Errors(through_origin=origin), anything)[0].terms[0]
        np.testing.assert_allclose(best.evaluate(x), 2 * x[0] - 3 * x[1], atol=0.05)


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"error": "big"}, "error is 'big'"),
    ({"loss": "huber"}, "loss is 'huber'; it must be one of linear, soft_l1"),
    ({"max_length": 0}, "max_length is 0"),
    ({"max_length": "long"}, "max_length is 'long'"),
    ({"operators": "sine"}, "unknown operator 'sine'"),
]


@pytest.mark.parametrize(("options", "says"), OPTIONS, ids=str)
def test_wrong_options_are_a_clear_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_control(table(X, X), **options)


def test_relative_errors_need_a_y_without_zeros_and_no_sigma() -> None:
    with pytest.raises(DataError, match="y is 0 at some points"):
        make_control(table(X, X - X[3]), error="relative")
    with pytest.raises(ValueError, match="both say how large"):
        make_control(table(X, X, X), error="relative")


def test_progress_is_one_line() -> None:
    line = str(Progress(3, 2.5, 0.01, parse("2.123456*x"), ("t",)))
    assert line == "  2.5 s, 3 searches, FVU 0.01: 2.123*t"
    assert "nothing yet" in str(Progress(1, 0.1, np.inf, None, ("t",)))


def test_tokens_that_stand_for_themselves_are_kept() -> None:
    tokens, _ = encode([parse("sin(x)"), parse("x + 1")])
    kept = without_forbidden(tokens, forbidden_tokens(frozenset(ALWAYS)))
    assert kept[0, 0] == 1 and kept[0, 1] == 0 and np.array_equal(kept[1], tokens[1])
    assert isinstance(parse("x").sympy(), sympy.Symbol)
