"""Chapter 10: tables with names, from reading to printing, and points chosen to cover the space."""

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sympy

from refinemath import DataError, FormulaError, Result, parse
from refinemath.answer.choose import pareto_front
from refinemath.answer.solution import linear_solution
from refinemath.answer.symbolic import (
    latex_name,
    latex_of,
    pretty,
    python_names,
    python_of,
    rewrite,
)
from refinemath.engine import device_points, search_room
from refinemath.problem import Table, prepare, spread_out
from refinemath.reading import read_inputs, read_table
from refinemath.result import constant_result

FRAME = pd.DataFrame(
    {"v": [1.0, 2.0, 3.0, 4.0], "T [K]": [3.0, 1.0, 4.0, 1.0], "lambda": [2.0, 7.0, 1.0, 8.0]}
)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("options", "names", "target"),
    [
        ({}, ("v", "T [K]"), "lambda"),
        ({"target": "v"}, ("T [K]", "lambda"), "v"),
        ({"target": "T [K]", "features": ["lambda"]}, ("lambda",), "T [K]"),
        ({"target": 0, "features": ["lambda", 1]}, ("lambda", "T [K]"), "v"),
        ({"target": -2}, ("v", "lambda"), "T [K]"),
        ({"features": "v"}, ("v",), "lambda"),
        ({"features": np.array([1])}, ("T [K]",), "lambda"),
    ],
)
def test_columns_are_chosen_by_name_or_position(
    options: dict[str, Any], names: tuple[str, ...], target: str, tmp_path: Path
) -> None:
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    for data in (FRAME, tmp_path / "t.csv"):
        table = read_table(data, **options)
        assert (table.names, table.target) == (names, target)
        np.testing.assert_array_equal(table.x, FRAME[list(names)])
        np.testing.assert_array_equal(table.y, FRAME[target])


def test_columns_without_names_are_numbered() -> None:
    array = RNG.normal(size=(8, 4))
    assert read_table(array[:, :2])[2:4] == (("x",), "y")
    assert read_table(array)[2:4] == (("x1", "x2", "x3"), "y")
    assert read_table(pd.DataFrame(array))[2:4] == (("x1", "x2", "x3"), "y")
    assert read_table(array, target="x2")[2:4] == (("x1", "x3", "y"), "x2")
    np.testing.assert_array_equal(read_table(array, target="x2").y, array[:, 1])
    np.testing.assert_array_equal(read_table(array, target=0).x, array[:, 1:])
    assert read_table(array[:, :2], array[:, 2], features=["x2"])[2:4] == (("x2",), "y")
    beside = read_table(FRAME[["v", "T [K]"]], FRAME["lambda"])
    assert beside[2:4] == (("v", "T [K]"), "lambda")


def test_names_that_come_twice_or_are_empty_differ(tmp_path: Path) -> None:
    frame = pd.DataFrame(RNG.normal(size=(6, 3)), columns=["a", "a", "a_2"])
    assert read_table(frame)[2:4] == (("a", "a_2"), "a_2_2")
    (tmp_path / "t.csv").write_text(", y ,y\n" + "1,2,3\n2,3,5\n3,5,7\n5,4,4\n", encoding="utf-8")
    assert read_table(tmp_path / "t.csv")[2:4] == (("x1", "y"), "y_2")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "q"}, "no column 'q'; the columns are v, T"),
        ({"target": 3}, "no column 3"),
        ({"features": ["q"]}, "no column 'q'"),
        ({"features": ["v", "lambda"]}, "'lambda' is the target and a feature"),
        ({"features": []}, "1 column"),
        ({"target": 1.5}, "no column 1.5"),
    ],
)
def test_a_column_that_is_not_there_is_a_clear_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_table(FRAME, **options)


def test_y_beside_the_data_is_the_target() -> None:
    with pytest.raises(DataError, match="y is given beside"):
        read_table(FRAME, FRAME["v"], target="v")
    with pytest.raises(DataError, match="names 2 column"):
        read_table_text("a,b\n1,2,3\n2,3,4\n3,4,6\n4,5,7\n")


def read_table_text(text: str) -> Table:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text(text, encoding="utf-8")
        return read_table(path)


def test_a_constant_variable_is_called_by_its_name() -> None:
    with pytest.raises(DataError, match=r"variable T \[K\] is 3 at every point"):
        read_table(FRAME.assign(**{"T [K]": 3.0}))


def test_a_large_file_is_read_in_a_moment(tmp_path: Path) -> None:
    table = RNG.normal(size=(50_000, 4))
    np.savetxt(tmp_path / "t.csv", table, delimiter=",", header="a,b,c,d", comments="")
    np.testing.assert_array_equal(read_table(tmp_path / "t.csv").x, table[:, :3])


# ---------------------------------------------------------------- printing

ODD = [
    ("v_0", "theta", "T [K]"),
    ("E", "I", "lambda"),
    ("x2", "x1", "math"),
    ("pi", "S", "None"),
    ("größe", "%_{}", "a\\b~^"),
    ("1a", "2*b", "π"),
    ("x_1", "x 1", "x-1"),
]


@pytest.mark.parametrize("names", ODD, ids=" ".join)
def test_any_name_is_a_symbol_and_python_stays_valid(names: tuple[str, ...]) -> None:
    formula = parse("2*x1 + sin(x2)/x3")
    expression = pretty(formula, 6, names)
    assert expression.free_symbols == {sympy.Symbol(n, real=True) for n in names}
    values = dict(zip(names, (0.3, 1.7, 2.5), strict=True))
    by_sympy = expression.subs({sympy.Symbol(n, real=True): v for n, v in values.items()})
    truth = float(formula.evaluate(np.array([[0.3], [1.7], [2.5]]))[0])
    assert float(by_sympy) == pytest.approx(truth)
    line = python_of(formula, names)
    assert not {n.id for n in ast.walk(ast.parse(line)) if isinstance(n, ast.Name)} - {
        "math",
        *python_names(names),
    }
    arguments = dict(zip(python_names(names), values.values(), strict=True))
    code = compile(line, "formula", "eval")
    assert eval(code, {"math": math}, arguments) == pytest.approx(truth)  # our own text, in a test
    latex = latex_of(formula, 6, names)
    assert all(latex_name(n) in latex for n in names) and latex.count("{") == latex.count("}")


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        ("x", "x"),
        ("v_0", "v_{0}"),
        ("x1", "x_{1}"),
        ("theta", r"\theta"),
        ("alpha_12", r"\alpha_{12}"),
        ("temperature", r"\mathrm{temperature}"),
        ("T [K]", r"\text{T [K]}"),
        ("speed_m_s", r"\text{speed\_m\_s}"),
        ("100 %", r"\text{100 \%}"),
    ],
)
def test_names_in_latex(name: str, latex: str) -> None:
    assert latex_name(name) == latex


def result_of(text: str, names: tuple[str, ...]) -> Result:
    x = RNG.uniform(1, 2, (9, len(names)))
    base = vars(constant_result(Table(x, np.ones(9), names, "P [W]")))
    return Result(**base | {"formula": parse(text)})


def test_a_result_speaks_in_the_users_names() -> None:
    result = result_of("x1*x3 + 1", ("U", "R", "I"))
    assert str(result) == "P [W] = I*U + 1" and result.unused == ("R",)
    assert result._repr_latex_().startswith("$\\displaystyle \\text{P [W]} = ")
    frame = pd.DataFrame({"I": [2.0, 3.0], "other": [0.0, 0.0], "R": [1.0, 1.0], "U": [5.0, 7.0]})
    np.testing.assert_allclose(result.predict(frame), [11.0, 22.0])
    np.testing.assert_allclose(result.predict([[5.0, 1.0, 2.0]]), [11.0])
    with pytest.raises(DataError, match="3 variable"):
        result.predict([[1.0, 2.0]])


def test_one_number_is_an_input_of_one_variable() -> None:
    assert read_inputs(2.0, ("x",)).shape == (1, 1) and read_inputs([1, 2], ("x",)).shape == (2, 1)


def test_in_a_formula_y_is_the_target_and_no_variable() -> None:
    assert parse("x").parts == ("x1",)
    for name in ("y", "z", "y + x"):
        with pytest.raises(FormulaError, match="unknown name"):
            parse(name)


def test_the_front_is_in_the_users_units_and_names() -> None:
    x = RNG.uniform(100, 300, (40, 2))
    y = x[:, 0] ** 2 * x[:, 1]
    problem = prepare(x, y, ("mass", "height"))
    found = [linear_solution([parse(t)], problem.u, y) for t in ("x1**2*x2", "x1", "cos(x2) + x1")]
    front = pareto_front([s for s in found if s is not None], problem)
    assert [entry.length for entry in front] == sorted({entry.length for entry in front})
    assert "height*mass**2" in front[-1].formula and front[-1].fvu < 1e-20
    assert rewrite(found[0], problem)[0].coefficients[0] == pytest.approx(1.0)  # type: ignore[arg-type]


# ---------------------------------------------------------------- points for the search


def test_points_of_several_variables_cover_the_space() -> None:
    """Every part of a square cut into 16 holds some of the 256 points, as near to its share as a
    regular choice can be.
    """
    x = RNG.uniform(size=(2, 5000))
    chosen = spread_out(x, 256)
    assert len(set(chosen.tolist())) == 256
    cells = np.floor(4 * x[:, chosen]).astype(int)
    counts = np.bincount(4 * cells[0] + cells[1], minlength=16)
    assert counts.min() >= 10 and counts.max() <= 22


def test_for_one_variable_points_are_evenly_spaced_by_size() -> None:
    x = RNG.normal(size=(1, 1000))
    chosen = x[0, spread_out(x, 64)]
    assert (np.diff(chosen) > 0).all() and chosen[0] == x.min() and chosen[-1] == x.max()
    assert set(np.diff(np.searchsorted(np.sort(x[0]), chosen)).tolist()) <= {15, 16}


@pytest.mark.parametrize("variables", [1, 2, 5, 10])
def test_the_choice_of_points_does_not_depend_on_their_order(variables: int) -> None:
    x = RNG.normal(size=(variables, 3000))
    again = RNG.permutation(x, axis=1)
    np.testing.assert_array_equal(x[:, spread_out(x, 100)], again[:, spread_out(again, 100)])
    assert len(spread_out(x[:, :7], 100)) == 7


@pytest.mark.parametrize(
    ("variables", "count", "room"),
    [(1, 20, 32), (1, 33, 64), (1, 5000, 64), (2, 30, 32), (3, 65, 256), (3, 5000, 256)],
)
def test_a_search_sees_64_points_or_up_to_256(variables: int, count: int, room: int) -> None:
    x = RNG.uniform(1, 2, (count, variables))
    problem = prepare(x, x.sum(axis=1))
    points = device_points(problem)
    assert search_room(problem) == room and points.x.shape == (1, variables, room)
    assert int(points.mask.sum()) == min(count, room)
