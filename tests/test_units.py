"""Chapter 10: units as text, dimensional consistency, and answers that keep to it."""

import argparse

import numpy as np
import pytest

from refinemath import DataError, parse
from refinemath.__main__ import _units
from refinemath.answer.choose import Answers, Candidates, refit
from refinemath.answer.solution import Solution, linear_solution, score_solution
from refinemath.answer.units import _BASE, _TABLE, Dimensions, parse_unit, read_units
from refinemath.expression import encode, split_terms
from refinemath.problem import prepare

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("m/s^2", "m s-2"),
        ("km/h", "m/s"),
        ("kg m2 s-2", "J"),
        ("J/(kg K)", "m2 s-2 K-1"),
        ("W/(m^2 K^4)", "kg s-3 K-4"),
        ("N·m", "kW h"),
        ("mmHg", "Pa"),
        ("°C", "K"),
        ("%", "1"),
        ("", "rad"),
        ("mol/L", "mol m-3"),
        ("Pa^(1/2)", "Pa**0.5"),
        ("1 / cm", "m-1"),
        ("V", "kg m2 s-3 A-1"),
        ("T", "kg s-2 A-1"),
    ],
)
def test_units_are_read_as_dimensions(text: str, same: str) -> None:
    assert parse_unit(text) == parse_unit(same)


def test_every_unit_of_the_table_has_the_dimension_of_its_row() -> None:
    names = [name for row in _TABLE.values() for name in row.split()]
    assert len(names) == len(set(names)) and not set(names) & set(_BASE)
    for row, words in _TABLE.items():
        for name in words.split():
            assert parse_unit(name) == parse_unit(row), name
    assert parse_unit("MHz") == parse_unit("s-1") and parse_unit("min") == parse_unit("s")


@pytest.mark.parametrize("text", ["foo", "m/(s", "m//s", "m^", "m + s", "m**s", "m^x", "import os"])
def test_what_is_no_unit_is_said_so(text: str) -> None:
    with pytest.raises(DataError, match="cannot read the unit"):
        parse_unit(text)


def test_a_unit_for_a_column_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"no column .w.* v, t, s"):
        read_units({"w": "m"}, ("v", "t"), "s")
    assert read_units({}, ("v",), "s") is None


def solution(text: str, *coefficients: float, offset: float = 0.0) -> Solution:
    terms = tuple(parse(t) for t in text.split(";"))
    return Solution(terms, coefficients or (1.0,) * len(terms), offset, 0.0)


@pytest.mark.parametrize(
    ("found", "consistent"),
    [
        # v in m/s, t in s, L in m, y in m
        (solution("x1*x2"), True),
        (solution("x1*x2;x3"), True),
        (solution("x1"), False),
        (solution("x1", 2.0), True),  # 2 seconds
        (solution("x1", -1.0), False),
        (solution("x1 + x2", 2.0), False),
        (solution("x1;x2", 2.0, 3.0, offset=1.0), True),
        (solution("sin(x1)", 2.0), False),
        (solution("sin(3*x1)", 2.0), True),
        (solution("sin(x1*x2/x3)", 2.0), True),
        (solution("sin(x1*x2/x3)"), False),  # y has a unit
        (solution("x3*exp(x1*x2/x3)"), True),
        (solution("x3*exp(x1*x2/x3 + 2)"), True),
        (solution("x3*exp(x1 + 2)"), False),
        (solution("log(x1)", 2.0, offset=1.0), True),  # the offset takes up the unit
        (solution("log(x1)", 2.0), False),
        (solution("sqrt(x1*x2*x3)"), True),
        (solution("x1**2.5", 3.0), True),
        (solution("x3**x2", 3.0), False),
        (solution("x3*(x1*x2/x3)**1.37"), True),
        (solution("(x1*x2/x3)**(x3/(x1*x2))", 3.0), True),
        (solution("x3/(1 + x1*x2/x3)"), True),
        (solution("x3 - x1*x2"), True),
        (solution("x3*x3/x2"), False),
    ],
    ids=lambda v: str(v.formula()) if isinstance(v, Solution) else "",
)
def test_consistency(found: Solution, consistent: bool) -> None:
    units = {"v": "m/s", "t": "s", "L": "m", "y": "km"}
    known = read_units(units, ("v", "t", "L"), "y")
    assert known is not None and known.consistent(found) is consistent


def test_a_column_without_a_unit_fits_everything() -> None:
    known = read_units({"v": "m/s"}, ("v", "t"), "y")
    assert known is not None
    assert known.consistent(solution("x1 + x2")) and not known.consistent(solution("sin(x1)"))


def energy(noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, Dimensions]:
    x = RNG.uniform(1, 3, (60, 2))
    y = 0.5 * x[:, 0] * x[:, 1] ** 2
    known = read_units({"m": "kg", "v": "m/s", "E": "J"}, ("m", "v"), "E")
    assert known is not None
    return x, y + noise * np.std(y) * RNG.normal(size=60), known


def test_the_answer_is_the_best_consistent_formula() -> None:
    x, y, known = energy(0.01)
    y = y + 0.3 * np.sin(x[:, 1] + x[:, 0])  # so that an inconsistent formula fits much better
    problem = prepare(x, y, ("m", "v"))
    texts = ("x1*square(x2)", "x1*square(x2) + sin(x1 + x2)", "exp(x2)")
    texts = tuple(t.replace("square(x2)", "x2**2") for t in texts)
    found = [
        score_solution(fitted, problem.u, y)
        for t in texts
        if (fitted := linear_solution(split_terms(parse(t)), problem.u, y)) is not None
    ]
    free, bound = Answers(problem), Answers(problem, dimensions=known)
    assert free.add(found) and bound.add(found)
    assert free.best is not None and "sin" in free.best.formula().functions()
    assert bound.best is not None and known.consistent(bound.best)
    assert not bound.best.formula().functions()


def test_only_what_can_be_consistent_is_refitted() -> None:
    x, y, known = energy(0.01)
    texts = ["x1 + x2", "sin(x1)", "x1*x2**2", "exp(2*x1)", "x1**2*x2"]
    tokens, values = encode([parse(t) for t in texts])
    candidates = Candidates(tokens, values, np.arange(5.0))
    kept = refit(candidates, prepare(x, y), known)
    names = {s.formula().skeleton() for s in kept}
    assert ("sin", "x1") not in {t.parts for s in kept for t in s.terms} and len(names) == 4
    # columns of another size get a number in front, which may carry a unit
    assert len(refit(candidates, prepare(x * 1e5, y), known)) == 5


def test_units_on_the_command_line() -> None:
    assert _units("v=m/s,T [K]=K") == {"v": "m/s", "T [K]": "K"}
    with pytest.raises(argparse.ArgumentTypeError, match="v=m/s"):
        _units("v")
