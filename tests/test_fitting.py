"""Chapter 8: linear numbers in closed form, the others by Levenberg-Marquardt."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import double as in_double
from formulas import from_bank

from refinemath.examples import SkeletonTable
from refinemath.execution import additive_terms, evaluate_nodes
from refinemath.expression import encode
from refinemath.fitting import Fitted, coefficients, levenberg_marquardt, project
from refinemath.text import parse

pytestmark = pytest.mark.usefixtures("strict")
RNG = np.random.default_rng(0)
X = np.linspace(0.3, 4.0, 40)[None]


@pytest.fixture
def double() -> Iterator[None]:
    with in_double():
        yield


# ---------------------------------------------------------------- project


def by_lstsq(
    basis: np.ndarray, term: np.ndarray, y: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, float]:
    y = y[mask]
    design = np.stack([*basis[term][:, mask], np.ones_like(y)], axis=1)
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return fitted, float(np.sum((y - fitted) ** 2) / np.sum((y - y.mean()) ** 2))


@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 2e-5), (np.float64, 1e-11)])
def test_project_is_least_squares(dtype: type, close: float, double: None) -> None:
    basis, y = RNG.normal(size=(30, 4, 25)) + 3, RNG.normal(size=(30, 25))
    term = np.arange(4)[None] < RNG.integers(1, 5, (30, 1))
    mask = np.arange(25)[None] < RNG.integers(8, 26, (30, 1))
    found = project(
        jnp.asarray(basis, dtype), jnp.asarray(term), jnp.asarray(y, dtype), jnp.asarray(mask)
    )
    fitted, fvu = np.asarray(found.fitted), np.asarray(found.fvu)
    assert fitted.dtype == fvu.dtype == dtype
    for i in range(30):
        expected, unexplained = by_lstsq(basis[i], term[i], y[i], mask[i])
        np.testing.assert_allclose(fitted[i, mask[i]], expected, atol=50 * close)
        np.testing.assert_allclose(fvu[i], unexplained, atol=close)
        assert not fitted[i, ~mask[i]].any()


def test_nearly_dependent_terms_cost_no_accuracy(double: None) -> None:
    x = np.linspace(1, 2, 30)
    basis = np.stack([x, x + 1e-3 * x**2, x**3])[None]
    y = (2 * x - x**2 + 0.1 * x**3)[None]
    found = project(
        jnp.asarray(basis), jnp.ones((1, 3), bool), jnp.asarray(y), jnp.ones((1, 30), bool)
    )
    assert found.fvu[0] < 1e-16


def test_a_term_twice_is_a_term_once() -> None:
    x = jnp.linspace(-1, 1, 20, dtype=jnp.float32)
    y, mask = jnp.sin(2 * x)[None], jnp.ones((1, 20), bool)
    one = project(jnp.stack([x, x**3])[None], jnp.ones((1, 2), bool), y, mask)
    twice = project(jnp.stack([x, x**3, x])[None], jnp.ones((1, 3), bool), y, mask)
    np.testing.assert_allclose(twice.fvu, one.fvu, rtol=1e-3)


def test_a_term_that_is_undefined_explains_nothing() -> None:
    x = jnp.linspace(-1, 1, 20, dtype=jnp.float32)
    y, mask = x[None], jnp.ones((1, 20), bool)
    found = project(jnp.log(x)[None, None], jnp.ones((1, 1), bool), y, mask)
    assert jnp.isinf(found.fvu[0])
    np.testing.assert_allclose(found.fitted, jnp.mean(y), atol=1e-6)
    hidden = project(
        jnp.log(x)[None, None], jnp.ones((1, 1), bool), y, mask & (x > 0)[None]
    )  # undefined in the padding alone
    assert float(hidden.fvu[0]) < 1.0


def test_scale_and_offset_of_y_do_not_change_what_is_explained() -> None:
    x = jnp.linspace(0.1, 3, 30, dtype=jnp.float32)
    basis, term, mask = (
        jnp.stack([jnp.log(x), x])[None],
        jnp.ones((1, 2), bool),
        jnp.ones((1, 30), bool),
    )
    one = project(basis, term, jnp.sqrt(x)[None], mask).fvu
    np.testing.assert_allclose(
        project(basis, term, 1e4 * jnp.sqrt(x)[None] - 3e3, mask).fvu, one, rtol=2e-2
    )


def test_coefficients_are_those_of_least_squares(double: None) -> None:
    rng = np.random.default_rng(5)
    basis, y = rng.normal(size=(20, 4, 25)) + 2, rng.normal(size=(20, 25))
    basis[3, 2] = 2 * basis[3, 0]  # a term that adds nothing gets no share
    found = project(
        jnp.asarray(basis), jnp.ones((20, 4), bool), jnp.asarray(y), jnp.ones((20, 25), bool)
    )
    share = np.asarray(coefficients(found.rows, jnp.asarray(basis), jnp.asarray(y)))
    assert share[3, 2] == 0
    for i in range(20):
        design = np.stack([*basis[i], np.ones(25)], axis=1)
        design = np.delete(design, 2, axis=1) if i == 3 else design
        expected = np.linalg.lstsq(design, y[i], rcond=None)[0][:-1]
        np.testing.assert_allclose(
            np.delete(share[i], 2) if i == 3 else share[i], expected, rtol=1e-7
        )


# ---------------------------------------------------------------- Levenberg-Marquardt


def start_of(texts: list[str], dtype: type = np.float32) -> tuple[jax.Array, jax.Array]:
    tokens, values = encode([parse(t) for t in texts])
    return jnp.asarray(tokens), jnp.asarray(values, dtype)


def points_of(text: str, dtype: type = np.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    return (
        jnp.asarray(X[None], dtype),
        jnp.asarray(parse(text).evaluate(X)[None], dtype),
        jnp.ones((1, X.shape[1]), bool),
    )


fit = jax.jit(levenberg_marquardt, static_argnames=("steps", "terms", "constants"))


@pytest.mark.parametrize(
    ("start", "truth"),
    [
        ("sin(1.5*x)", "2*sin(1.83*x) - 1"),
        ("exp(-1.0*x)", "5*exp(-0.37*x) + 2"),
        ("1/(1.0 + x)", "3/(0.6 + x)"),
        ("x**1.5", "0.7*x**2.3"),
        ("sin(1.0*x) + exp(-1.0*x)", "2*sin(1.3*x) + 4*exp(-0.7*x)"),
        ("cos(1.9*x + 1.0)", "cos(2.2*x + 0.5)"),
    ],
)
def test_the_numbers_inside_are_found_to_double_precision(
    start: str, truth: str, double: None
) -> None:
    tokens, values = start_of([start], np.float64)
    found = fit(tokens, values, *points_of(truth, np.float64), steps=40)
    assert found.values.dtype == found.fvu.dtype == np.float64
    assert float(found.fvu[0]) < 1e-22


def test_a_fit_never_gets_worse(bank: SkeletonTable) -> None:
    chosen = from_bank(bank, 64, seed=5)
    tokens, values = encode(chosen)
    args = (
        jnp.asarray(tokens),
        jnp.asarray(values, jnp.float32),
        *points_of("2*sin(1.83*x) - log(x)"),
    )
    before = None
    for steps in (0, 1, 4):
        found = fit(*args, steps=steps)
        fvu = np.asarray(found.fvu)
        assert not np.isnan(fvu).any() and np.isfinite(found.fitted).all()
        if before is not None:
            assert (fvu <= before * (1 + 1e-6) + 1e-12).all()
        before = fvu


def test_no_step_leaves_the_numbers_alone(bank: SkeletonTable) -> None:
    tokens, values = encode(from_bank(bank, 64, seed=6))
    args = jnp.asarray(tokens), jnp.asarray(values, jnp.float32)
    x, y, mask = points_of("2*sin(1.83*x) - log(x)")
    found = fit(*args, x, y, mask, steps=0)
    np.testing.assert_array_equal(found.values, args[1])
    slots_of, term = additive_terms(args[0], 4)
    basis = evaluate_nodes(*args, x)[slots_of, jnp.arange(64, dtype=jnp.int32)[:, None]]
    np.testing.assert_allclose(
        found.fvu,
        project(basis, term, jnp.broadcast_to(y, (64, 40)), jnp.broadcast_to(mask, (64, 40))).fvu,
        atol=1e-5,
    )


def test_what_comes_back_belongs_together(double: None) -> None:
    """The fitted values and the FVU are those of the numbers that are returned, not of a step that
    was refused.
    """
    tokens, values = start_of(["sin(1.0*x)", "exp(-2.0*x)", "x**3.0"], np.float64)
    x, y, mask = points_of("3*sin(1.4*x) + 0.1*x", np.float64)
    found = fit(tokens, values, x, y, mask, steps=7)
    again = fit(tokens, found.values, x, y, mask, steps=0)
    np.testing.assert_allclose(found.fvu, again.fvu, rtol=1e-9)
    np.testing.assert_allclose(found.fitted, again.fitted, rtol=1e-7)


def test_padding_does_not_matter() -> None:
    tokens, values = start_of(["sin(1.5*x)", "x**2"])
    x, y, mask = points_of("2*sin(1.83*x) - 1")
    wide = [
        jnp.concatenate([a, jnp.full((*a.shape[:-1], 9), fill, a.dtype)], axis=-1)
        for a, fill in ((x, 77.0), (y, -5.0), (mask, False))
    ]
    one, other = fit(tokens, values, x, y, mask, steps=4), fit(tokens, values, *wide, steps=4)
    np.testing.assert_allclose(other.fvu, one.fvu, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["log(-1.0*x)", "1/(x - x)", "x**2 + sin(x)", "exp(exp(exp(2.0*x)))"]
)
def test_undefined_and_number_free_formulas_pass_through(text: str) -> None:
    tokens, values = start_of([text])
    found = fit(tokens, values, *points_of("x + 1"), steps=3)
    assert (
        isinstance(found, Fitted)
        and np.isfinite(found.values).all()
        and np.isfinite(found.fitted).all()
        and not jnp.isnan(found.fvu).any()
    )
