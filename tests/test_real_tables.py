"""Chapter 10: tables of several variables come with their laws, and one search of the queues alone
finds the textbook's form.
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from refinemath import RefineMath, parse
from refinemath.answer.units import read_units
from refinemath.evaluation import is_instance, problems_of, real_problems, recovered
from refinemath.reading import read_table

DATA = Path(__file__).parents[1] / "data"
ROWS = list(csv.DictReader((DATA / "problems_tables.csv").read_text(encoding="utf-8").splitlines()))
PROBLEMS = {p.name: p for p in real_problems(DATA) if p.x.shape[1] > 1}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_a_table_has_what_its_row_says(row: dict[str, str]) -> None:
    table = read_table(DATA / row["file"])
    units = row["x_unit"].split(" ; ")
    assert len(table.y) == int(row["n"])
    assert len(table.names) == len(units) == len(row["x_name"].split(" ; "))
    assert parse(row["expression"].replace("a", "2").replace("b", "2"))
    text = (DATA / "README.md").read_text(encoding="utf-8")
    assert (
        f"**{row['file']}.**" in text and f"| {row['file']} | {row['n']} | {row['kind']} |" in text
    )
    if row["name"] in ("trees", "steam", "lens", "gas", "pendulum_amplitude"):
        assert read_units(dict(zip(table.names, units, strict=True)), table.names, table.target)


@pytest.mark.parametrize("name", ["trees", "hydrogen_series", "satellites", "lens", "gas"])
def test_one_search_finds_the_textbook_form(name: str) -> None:
    problem = PROBLEMS[name]
    model = RefineMath(proposers=("short", "inverses"))
    result = model.solve(problem.x, problem.y, time_budget=0.01)
    assert recovered(problem, result), str(result)


def test_a_formula_that_has_lost_a_variable_is_not_the_law() -> None:
    problem = PROBLEMS["cobb_douglas"]
    assert not is_instance(parse("1.148*x1"), "a*x1**b*x2**c", problem)
    assert is_instance(parse("1.01*x1**0.75*x2**0.25"), "a*x1**b*x2**c", problem)


def test_an_equation_outside_the_language_counts_as_not_recovered() -> None:
    problems = problems_of("feynman", DATA)
    outside = [p for p in problems if p.truth is None]
    assert len(problems) == 100 and {p.name for p in outside} == {"I.26.2", "I.30.5"}
    for problem in outside:
        assert np.isfinite(problem.y).all() and np.abs(problem.y).max() <= np.pi / 2
        assert not problem.accept
