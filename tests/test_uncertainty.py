"""Chapter 8: how sure the numbers are, and the last fit where a user says how the errors are."""

import functools

import numpy as np
import pytest

from refinemath import parse
from refinemath.answer.uncertainty import determined, estimate, jacobian, lettered
from refinemath.expression import Formula

FORMS = {  # text, range of x
    "saturation": ("3.1*x/(x + 1.7)", 0.3, 8),
    "decay": ("2.3*exp(-0.8*x) + 0.6", 0.1, 5),
    "peak": ("1.9*exp(-(x - 3.2)**2/0.7) + 0.31", 0, 6),
    "wave": ("1.3*sin(1.7*x + 0.4) + 2.1", 0, 6),
    "power": ("1.7*x**1.37", 0.5, 5),
    "logistic": ("4.2/(1 + exp(-1.3*(x - 3.1)))", 0, 6),
    "line": ("2.1*x + 0.7", 0, 3),
    "peak of a year": ("3.3*exp(-(x - 2001.5)**2/0.7) + 0.31", 1998, 2005),
    "planes": ("2.1*x + 0.7*x**2 - 1.3", 0, 3),
}
SETS = 56  # of each form: 504 in all


def made(text: str, low: float, high: float, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """10 to 30 points with 1 to 5 % noise: x, y, and the size of the noise."""
    x = np.sort(rng.uniform(low, high, int(rng.integers(10, 31))))
    clean = parse(text).evaluate(x[None])
    noise = float(rng.choice([0.01, 0.02, 0.05]) * np.std(clean))
    return x, clean + noise * rng.normal(size=len(x)), noise


@functools.cache
def coverage(name: str) -> tuple[float, float]:
    """Shares of true numbers in their 95 % intervals, and of new measurements in their band."""
    text, low, high = FORMS[name]
    law, rng = parse(text), np.random.default_rng(len(name))
    inside, band = [], []
    for _ in range(SETS):
        x, y, noise = made(text, low, high, rng)
        found = estimate(law, x[None], y)
        assert found is not None
        inside += [i.low <= i.number <= i.high for i in found.intervals(law) if i.name]
        new = rng.uniform(low, high, 8)
        there = law.evaluate(new[None]) + noise * rng.normal(size=8)
        expected = found.band(law, new[None])
        band += ((expected.low <= there) & (there <= expected.high)).tolist()
    return float(np.mean(inside)), float(np.mean(band))


@pytest.mark.parametrize("name", FORMS)
def test_intervals_and_bands_of_a_form_cover(name: str) -> None:
    inside, band = coverage(name)
    assert 0.88 <= inside <= 0.99 and 0.90 <= band <= 0.99


def test_nominal_95_percent_cover_90_to_98_over_500_sets() -> None:
    both = np.array([coverage(name) for name in FORMS])
    assert SETS * len(FORMS) >= 500 and np.all(
        (both.mean(axis=0) > 0.93) & (both.mean(axis=0) < 0.98)
    )


@pytest.mark.parametrize("name", ["saturation", "decay", "wave"])
def test_standard_errors_are_those_of_a_bootstrap(name: str) -> None:
    """Residuals drawn again 300 times; enlarged for the numbers that they were fitted with."""
    text, low, high = FORMS[name]
    law, rng = parse(text), np.random.default_rng(1)
    x = np.linspace(low, high, 30)
    y = law.evaluate(x[None]) + 0.03 * rng.normal(size=30)
    found = estimate(law, x[None], y)
    assert found is not None
    fitted = law.evaluate(x[None], found.numbers.tolist())
    left = (y - fitted) * np.sqrt(30 / found.freedom)
    again = [
        estimate(law, x[None], fitted + rng.choice(left - left.mean(), 30)) for _ in range(300)
    ]
    spread = np.std([a.numbers for a in again if a is not None], axis=0)
    np.testing.assert_allclose(np.sqrt(np.diag(found.covariance)), spread, rtol=0.2)


def test_errors_of_different_size_weigh_as_in_curve_fit() -> None:
    from scipy.optimize import curve_fit

    x, y, _ = made(*FORMS["decay"], np.random.default_rng(3))
    sigma = np.linspace(0.1, 3, len(x))
    found = estimate(parse(FORMS["decay"][0]), x[None], y, sigma)
    numbers, covariance = curve_fit(
        lambda t, a, b, c: a * np.exp(b * t) + c, x, y, (2, -1, 0.5), sigma
    )
    assert found is not None
    np.testing.assert_allclose(found.numbers, numbers, rtol=1e-5)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-3)


def test_numbers_that_do_the_same_are_held_at_the_simple_one() -> None:
    law = parse("4.2/(1 + exp(-1.3*(x - 3.1)))")
    x = np.linspace(0, 6, 20)
    found = estimate(law, x[None], law.evaluate(x[None]) + 0.01 * np.cos(9 * x))
    assert found is not None
    intervals = found.intervals(law, taken=("a",))
    assert [i.name for i in intervals] == ["b", "", "c", "d"] and intervals[1].number == 1
    assert str(lettered(law, intervals)) == "b/(exp(c*(-d + x1)) + 1)"
    assert "is held" in str(intervals[1]) and str(intervals[0]).startswith("b = 4.198")
    design = jacobian(law, x[None], np.array(law.constants()))
    assert determined(design, np.array(law.constants())) == (0, 2, 3)


def test_too_few_points_and_undefined_formulas_have_no_uncertainty() -> None:
    x = np.array([[1.0, 2.0, 3.0]])
    law = parse("2.5*x**2 + 1.5*x + 0.3")
    assert estimate(law, x, law.evaluate(x)) is None
    assert estimate(parse("log(x)"), x - 2, np.ones(3)) is None
    nothing = estimate(Formula(("x1",)), x, np.array([1.0, 2.1, 3.0]))
    assert nothing is not None and nothing.intervals(Formula(("x1",))) == ()


def test_a_derivative_by_a_large_shift_needs_a_small_step() -> None:
    x = 1.7e9 + np.linspace(0, 6, 9)
    slope = jacobian(parse("sin(x - 1.7e9)"), x[None], np.array([1.7e9]))[:, 0]
    np.testing.assert_allclose(slope, -np.cos(x - 1.7e9), atol=1e-3)
