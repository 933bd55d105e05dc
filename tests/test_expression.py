"""Chapter 1: one table of operators; text, tokens and values of a formula say the same."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy
from formulas import double as in_double
from formulas import formulas, from_bank
from hypothesis import given, settings

from refinemath.examples import SkeletonTable
from refinemath.execution import additive_terms, evaluate, evaluate_nodes, sensitivities, structure
from refinemath.expression import (
    CONSTANT_BINS,
    FIRST_CONSTANT,
    OPERATORS,
    SLOTS,
    VOCABULARY,
    Formula,
    FormulaError,
    Operator,
    combine,
    decode,
    encode,
    is_constant,
    nearest_constant,
    split_terms,
)
from refinemath.text import parse, parse_prefix

pytestmark = pytest.mark.usefixtures("strict")
compiled_structure = jax.jit(structure)
A = np.array([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 3.5])
B = np.array([-2.0, -0.5, 0.0, 0.5, 1.0, 3.0])


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
def test_every_row_means_the_same_to_jax_numpy_and_sympy(op: Operator) -> None:
    operands = [A] if op.arity == 1 else [v.ravel() for v in np.meshgrid(A, B)]
    with np.errstate(all="ignore"):
        by_numpy = op.numpy(*operands)
    with in_double():
        by_jax = np.asarray(op.jax(*(jnp.asarray(v) for v in operands)))
    np.testing.assert_allclose(by_jax, by_numpy, rtol=1e-12)
    for value, *args in zip(by_numpy, *operands, strict=True):
        exact = op.sympy(*(sympy.Rational(float(a)) for a in args))
        if np.isfinite(value):
            assert abs(complex(exact.evalf(20)) - value) <= 1e-12 * abs(value)
        else:
            assert exact.is_finite is not True or not exact.evalf().is_real


def test_names_are_distinct() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)


@given(formulas())
def test_parse_undoes_prefix(e: Formula) -> None:
    assert parse_prefix(e.prefix()) == e


def folds(e: Formula) -> bool:
    """Whether the infix parser would write this formula in another way: two numbers fold, x**2.0 is
    square.
    """
    for i, part in enumerate(e.parts):
        if part in ("add", "sub", "mul", "div", "pow"):
            left, right = _operands(e, i)
            if (
                len(right) == 1
                and isinstance(right[0], float)
                and (part == "pow" or (len(left) == 1 and isinstance(left[0], float)))
            ):
                return True
    return False


def _operands(e: Formula, i: int) -> tuple[tuple, tuple]:
    tokens, _ = encode([e])
    size, second = (np.asarray(a)[0] for a in compiled_structure(jnp.asarray(tokens)))
    return e.parts[i + 1 : i + 1 + size[i + 1]], e.parts[second[i] : second[i] + size[second[i]]]


@given(
    formulas().filter(
        lambda e: not any(p in ("add", "sub", "mul", "div", "pow") for p in e.parts) or not folds(e)
    )
)
@settings(deadline=None)
def test_parse_undoes_infix(e: Formula) -> None:
    assert parse(str(e)) == e


@given(formulas())
@settings(deadline=None)
def test_infix_is_stable_after_folding(e: Formula) -> None:
    try:
        once = parse(str(e))
    except FormulaError as error:
        assert "not a" in str(
            error
        )  # two numbers folded to something that is not a finite real number
        return
    assert parse(str(once)) == once


@given(formulas(numbers=st.sampled_from(CONSTANT_BINS)))
def test_decode_undoes_encode(e: Formula) -> None:
    tokens, values = encode([e])
    assert decode(tokens[0], values[0]) == e
    assert decode(tokens[0]).skeleton() == e.skeleton()


@given(formulas())
@settings(deadline=None)
def test_structure_gives_the_operands(e: Formula) -> None:
    tokens, _ = encode([e])
    size, second = (np.asarray(a)[0] for a in compiled_structure(jnp.asarray(tokens)))
    assert size[0] == len(e)
    for i, part in enumerate(e.parts):
        operator = next((op for op in OPERATORS if op.name == part), None)
        pieces = [] if operator is None else [e.parts[i + 1 : i + 1 + size[i + 1]]]
        if operator is not None and operator.arity == 2:
            assert second[i] == i + 1 + size[i + 1]
            pieces.append(e.parts[second[i] : second[i] + size[second[i]]])
        for piece in pieces:
            Formula(piece)  # raises where it is not one whole formula
        assert size[i] == 1 + sum(map(len, pieces))


def test_device_evaluation_is_numpy_evaluation(bank: SkeletonTable) -> None:
    chosen = from_bank(bank, 300)
    tokens, values = encode(chosen)
    x = np.linspace(-3, 3, 32)[None]
    with in_double():
        by_jax = np.asarray(
            jax.jit(evaluate)(jnp.asarray(tokens), jnp.asarray(values), jnp.asarray(x[None]))
        )
    by_numpy, nearby = (
        np.stack([e.evaluate(points) for e in chosen]) for points in (x, x * (1 + 1e-15))
    )
    # NumPy lets 1/(1/0) pass as 0, the device does not; the other way round only log(cos(1e52)) and
    # its like, which no two libraries agree on
    assert np.mean(np.isfinite(by_jax) & ~np.isfinite(by_numpy)) < 1e-3
    here = np.isfinite(by_jax) & (
        np.abs(nearby - by_numpy) <= 1e-10 * np.abs(by_numpy)
    )  # not sin(1e19), which no two libraries agree on
    assert here.mean() > 0.5
    np.testing.assert_allclose(by_jax[here], by_numpy[here], rtol=1e-9, atol=1e-12)


def test_numpy_evaluation_is_sympy(bank: SkeletonTable) -> None:
    x = np.array([0.37, 1.21, 2.6])
    compared = 0
    for e in from_bank(bank, 60, seed=1):
        values, nearby = e.evaluate(x[None]), e.evaluate(x[None] * (1 + 1e-14))
        expression = e.sympy()
        for point, value, near in zip(x, values, nearby, strict=True):
            if (
                np.isfinite(value)
                and 1e-6 < abs(value) < 1e6
                and abs(near - value) < 1e-9 * abs(value)
            ):  # not sin(1e19)
                exact = complex(
                    expression.subs(
                        sympy.Symbol("x", real=True), sympy.Rational(float(point))
                    ).evalf(25)
                )
                assert abs(exact - value) < 1e-8 * abs(value), str(e)
                compared += 1
    assert compared > 60


def test_jit_is_eager(bank: SkeletonTable) -> None:
    tokens, values = encode(from_bank(bank, 8, seed=2))
    inputs = (
        jnp.asarray(tokens),
        jnp.asarray(values, jnp.float32),
        jnp.linspace(0.3, 2.0, 8)[None, None],
    )
    compiled = np.asarray(jax.jit(evaluate)(*inputs))
    with jax.disable_jit():
        eager = np.asarray(evaluate(*inputs))
    np.testing.assert_allclose(compiled, eager, rtol=2e-4)


def test_sensitivities_are_what_jax_differentiates(bank: SkeletonTable) -> None:
    """One sweep gives the derivative by every constant, of the whole formula and of a weighted sum
    of its additive terms.
    """
    tokens, values = encode(from_bank(bank, 120, seed=4))
    x = np.linspace(0.4, 3.0, 9)[None, None]
    with in_double():
        t, v, x = jnp.asarray(tokens), jnp.asarray(values), jnp.asarray(x)
        nodes = evaluate_nodes(t, v, x)
        slots_of, term = additive_terms(t, 4)
        row = jnp.arange(len(t))[:, None]
        weights = (
            jnp.zeros_like(nodes)
            .at[slots_of, row]
            .add(jnp.where(term, jnp.asarray([0.7, -1.3, 2.1, 0.4]), 0.0)[..., None])
        )
        found = jax.jit(sensitivities)(t, nodes, weights)

        def weighted(v: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(weights != 0, weights * evaluate_nodes(t, v, x), 0.0), axis=0)

        compared = 0
        for slot in range(tokens.shape[1]):
            derivative = jax.jvp(weighted, (v,), (jnp.zeros_like(v).at[:, slot].set(1.0),))[1]
            here = (
                is_constant(tokens[:, slot])
                & np.isfinite(np.asarray(nodes[0])).all(-1)
                & np.isfinite(np.asarray(derivative)).all(-1)
            )
            np.testing.assert_allclose(found[slot][here], derivative[here], rtol=1e-9, atol=1e-9)
            compared += int(here.sum())
    assert compared > 60


@pytest.mark.parametrize(
    "text",
    [
        "log(x)",
        "sqrt(x)",
        "1/(x - x)",
        "x**1.5",
        "exp(exp(exp(x*x)))",
        "log(x)*0",
        "inv(inv(x + 2))",
    ],
)
def test_what_is_undefined_is_nan(text: str) -> None:
    tokens, values = encode([parse(text)])
    out = evaluate(jnp.asarray(tokens), jnp.asarray(values, jnp.float32), jnp.full((1, 1, 3), -2.0))
    assert np.isnan(out).all()


def test_additive_terms_are_split_terms(bank: SkeletonTable) -> None:
    chosen = [*from_bank(bank, 100, seed=3), parse("x - (sin(x) - 2) + x**2"), parse("x")]
    tokens, _ = encode(chosen)
    slots_of, term = (np.asarray(a) for a in additive_terms(jnp.asarray(tokens), SLOTS))
    size = np.asarray(structure(jnp.asarray(tokens))[0])
    for i, e in enumerate(chosen):
        starts = slots_of[i][term[i]]
        assert [Formula(e.parts[s : s + size[i, s]]) for s in starts] == split_terms(e)


def test_combine_is_the_weighted_sum() -> None:
    terms = [parse("sin(x)"), parse("x**2"), parse("exp(x)")]
    x = np.linspace(-1, 1, 9)[None]
    expected = 0.5 - 2 * np.sin(x[0]) + x[0] ** 2
    np.testing.assert_allclose(
        combine(terms, [-2.0, 1.0, 0.0], 0.5).evaluate(x), expected, rtol=1e-14
    )
    assert combine(terms, [0.0, 0.0, 0.0], 0.0) == parse("0")


def test_nearest_constant_finds_every_bin() -> None:
    found = nearest_constant(jnp.asarray(CONSTANT_BINS, jnp.float32)[None])
    assert (np.asarray(found[0]) == FIRST_CONSTANT + np.arange(len(CONSTANT_BINS))).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot read"),
        ("x +", "cannot read"),
        ("sin", "lacks 1"),
        ("w", "unknown name"),
        ("sin(x, x)", "cannot use"),
        ("tan(x)", "unknown function"),
        ("x // 2", "operator FloorDiv"),
        ("'x'", "cannot use"),
        ("True", "expected a number"),
        ("1/0", "not a finite number"),
        ("(-8)**0.5", "not a real number"),
        ("x if x else 1", "cannot use"),
        ("__import__('os')", "unknown function"),
        ("x.real", "cannot use"),
        ("[x]", "cannot use"),
        ("1e999", "finite"),
        ("1" + "0" * 400, "finite"),
        ("1e300*1e300", "finite"),
        ("\0", "cannot read"),
        ("(" * 300 + "x" + ")" * 300, "cannot read"),
    ],
)
def test_a_text_that_is_no_formula_says_why(text: str, says: str) -> None:
    with pytest.raises(FormulaError, match=says):
        parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("add x1", "lacks 1"),
        ("x1 x1", "is complete"),
        ("foo x1", "unknown word"),
        ("", "lacks 1"),
        ("nan", "finite"),
        ("add x1 inf", "finite"),
    ],
)
def test_a_prefix_text_that_is_no_formula_says_why(text: str, says: str) -> None:
    with pytest.raises(FormulaError, match=says):
        parse_prefix(text)


def test_too_long_is_an_error() -> None:
    with pytest.raises(FormulaError, match="17 tokens; at most 16"):
        encode([parse_prefix("neg " * 16 + "x1")])
