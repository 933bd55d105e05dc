"""Chapter 8: a function undone on the device, with offsets and monomials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refinemath.engine import device_points
from refinemath.execution import evaluate
from refinemath.expression import VARIABLES, decode, encode
from refinemath.fitting import Points, execute
from refinemath.loop import Context
from refinemath.problem import prepare
from refinemath.proposers.inverses import INVERSES, Inverses
from refinemath.proposers.library import make_library
from refinemath.proposers.monomials import around, monomial_values, monomials
from refinemath.text import parse, parse_prefix

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(0)
LINES = {
    1: ["x1", "square x1", "sin x1", "mul x1 sin x1", "sqrt x1", "cos x1", "exp x1"],
    3: ["x1", "x2", "x3", "div x2 x3", "square div x2 x3", "div sub x2 x3 x1", "mul x1 x2"],
}
best = jax.jit(
    lambda library, points: Inverses(each=16).best(Context(points, library, None), 64),
    compiler_options={"xla_backend_optimization_level": 1},
)


def proposals(text: str, variables: int) -> tuple[list[str], np.ndarray, Points]:
    """What is proposed for a formula on random points, best first, and its FVU."""
    x = np.random.default_rng(0).uniform(1.0, 3.0, (60, variables))
    x[:, -1] += 2.0 * (variables > 1)
    points = device_points(prepare(x, parse(text).evaluate(x.T)))
    tokens, _ = encode([parse_prefix(line) for line in LINES[variables]], 24)
    library = make_library(KEY, jnp.asarray(np.resize(tokens, (32, 24)).astype(np.uint8)), points)
    found = best(library, points)
    fvu = np.asarray(execute(found.tokens, found.values, points).fvu)
    every = zip(np.asarray(found.tokens), np.asarray(found.values), strict=True)
    return [str(decode(*row)) for row in every], fvu, points


@pytest.mark.parametrize(
    "text",
    [
        "2*exp(-0.7*x1*sin(x1)) + 3",
        "-3*log(x1*sin(x1) + 2.2) - 5",
        "2*log(7.5 - x1**2/2)",
        "2*sqrt(7.3 - x1*sin(x1)) - 5",
        "4/(x1*sin(x1) + 1.7) + 9",
        "-2*(x1*sin(x1) + 3)**2 + 1",
        "1/sqrt(x1*sin(x1) + 0.7) - 2",
        "5/(cos(x1) + 2.5)**2 + 1",
    ],
)
def test_an_offset_is_found_with_the_function_that_it_hides(text: str) -> None:
    names, fvu, _ = proposals(text, 1)
    function = parse(text).parts
    assert fvu[:3].min() < 2e-6, list(zip(names[:5], fvu, strict=False))
    assert {p for p in function if p in ("exp", "log")} <= set(
        names[int(np.argmin(fvu[:3]))].split("(")
    )


@pytest.mark.parametrize(
    "text",
    [
        "x1*x2/sqrt(1 - (x2/x3)**2)",
        "exp(-((x2 - x3)/x1)**2/2)/x1",
        "x1*x3/(x2 + 1)",
        "x1*x1/x2*exp(x2/x3)",
    ],
)
def test_monomials_are_taken_out_and_squares_looked_at(text: str) -> None:
    names, fvu, _ = proposals(text, 3)
    assert fvu[:4].min() < 1e-9, list(zip(names[:5], fvu, strict=False))


def test_a_function_and_its_inverse_agree() -> None:
    u = jnp.linspace(0.2, 2.0, 9)
    for inverse in INVERSES:
        np.testing.assert_allclose(inverse.back(inverse.forward(u)), u, rtol=1e-5)


@pytest.mark.parametrize("variables", [1, 2, 4, 10])
def test_monomials_are_written_as_they_are_worked_out(variables: int) -> None:
    exponents = monomials(variables)
    assert not exponents[0].any() and len(np.unique(exponents, axis=0)) == len(exponents) <= 400
    x = np.random.default_rng(1).uniform(0.5, 2.0, (variables, 5)).astype(np.float32)
    points = Points(jnp.asarray(x[None]), jnp.ones((1, 5)), jnp.ones((1, 5), bool))
    values = np.asarray(monomial_values(exponents, points))
    one = encode([parse("1")], 1)[0][0, 0]
    rows = np.zeros((len(exponents), 24), np.int32)
    for row, exponent in zip(rows, exponents.tolist(), strict=True):
        before, after = around(exponent)
        written = [*before, one, *after]
        row[: len(written)] = written
    numbers = jnp.where(jnp.asarray(rows) == one, 1.0, 0.0)
    np.testing.assert_allclose(evaluate(jnp.asarray(rows), numbers, points.x), values, rtol=1e-5)
    assert len(VARIABLES) == 10


def test_data_that_allow_nothing_give_x() -> None:
    """y of both signs with x through 0: no monomial, and all that is left are functions of x."""
    x = np.linspace(-1, 1, 40)[:, None]
    points = device_points(prepare(x, np.sign(x[:, 0]) + 0.1 * x[:, 0]))
    tokens, _ = encode([parse_prefix("log x1")], 24)
    library = make_library(KEY, jnp.asarray(np.repeat(tokens, 32, axis=0).astype(np.uint8)), points)
    found = best(library, points)
    assert {decode(t).parts for t in np.asarray(found.tokens)} == {("x1",)}
