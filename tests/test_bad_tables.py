"""Chapter 10: a hundred tables that are wrong in some way; each is a clear error, or is read
as what it says.
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from refinemath import DataError
from refinemath.engine import device_points
from refinemath.problem import prepare, spread_out
from refinemath.reading import read_table

KINDS: dict[str, tuple[Callable[[np.random.Generator], Any], str | None]] = {}


def kind(error: str | None) -> Callable[[Any], Any]:
    """Register a maker of tables and the words of its error, None where the table is fine."""

    def register(make: Any) -> Any:
        KINDS[make.__name__] = make, error
        return make

    return register


def good(rng: np.random.Generator, columns: int = 0) -> pd.DataFrame:
    count = columns or int(rng.integers(2, 6))
    x = rng.uniform(1, 3, (int(rng.integers(8, 40)), count))
    return pd.DataFrame(x, columns=[f"c{i}" for i in range(count)])


def text(frame: pd.DataFrame) -> list[list[str]]:
    return [list(frame.columns), *([repr(float(v)) for v in row] for row in frame.to_numpy())]


@kind("column")
def ragged(rng: np.random.Generator) -> Any:
    rows = text(good(rng))
    row = rows[int(rng.integers(2, len(rows)))]
    row.pop() if rng.random() < 0.5 else row.append("1.0")
    return rows


@kind("not a number|NaN or infinity")
def mixed_types(rng: np.random.Generator) -> Any:
    rows = text(good(rng))
    word = str(rng.choice(["abc", "1,5", "n/a", "--", "2026-01-01"]))
    rows[int(rng.integers(2, len(rows)))][0] = word
    return rows


@kind("NaN|not a number")
def all_missing(rng: np.random.Generator) -> Any:
    frame = good(rng)
    frame[rng.choice(frame.columns)] = np.nan
    return frame


@kind("at every point")
def one_value(rng: np.random.Generator) -> Any:
    frame = good(rng)
    frame[rng.choice(frame.columns[:-1])] = float(rng.uniform(-5, 5))
    return frame


@kind(r"expected 2 to 11")
def eleven_variables(rng: np.random.Generator) -> Any:
    return good(rng, 12)


@kind(r"expected 2 to 11")
def no_variable(rng: np.random.Generator) -> Any:
    return good(rng, 1)


@kind("too few")
def three_rows(rng: np.random.Generator) -> Any:
    return good(rng).iloc[: int(rng.integers(1, 4))]


@kind("complex")
def complex_numbers(rng: np.random.Generator) -> Any:
    return good(rng).to_numpy() * (1 + 1j)


@kind("beyond 1e100")
def huge(rng: np.random.Generator) -> Any:
    return good(rng) * 1e150


@kind(None)
def identical_columns(rng: np.random.Generator) -> Any:
    frame = good(rng)
    return frame.assign(again=frame["c0"])[["again", *frame.columns]]


@kind(None)
def dependent_columns(rng: np.random.Generator) -> Any:
    frame = good(rng, 3)
    frame.insert(0, "sum", 2 * frame["c0"] - frame["c1"])
    return frame


@kind(None)
def y_is_a_column(rng: np.random.Generator) -> Any:
    frame = good(rng)
    return frame.assign(y=frame["c0"])


@kind(None)
def constant_target(rng: np.random.Generator) -> Any:
    return good(rng).assign(y=float(rng.uniform(-5, 5)))


@kind(None)
def ten_variables(rng: np.random.Generator) -> Any:
    return good(rng, 11)


@kind(None)
def whole_numbers_beyond_2_53(rng: np.random.Generator) -> Any:
    return (good(rng) * 2**53).astype(np.int64) * 3 + 1


@kind(None)
def two_distinct_values(rng: np.random.Generator) -> Any:
    frame = good(rng)
    return frame.assign(c0=np.arange(len(frame)) % 2)


@kind(None)
def the_same_name_twice(rng: np.random.Generator) -> Any:
    frame = good(rng, 3)
    return frame.set_axis(["a", "a", "a"], axis=1)


CASES = [(name, seed) for name in KINDS for seed in range(6)][:100]


@pytest.mark.parametrize(("name", "seed"), CASES, ids=lambda v: str(v))
def test_a_bad_table_is_a_clear_error_or_is_read_as_it_is(
    name: str, seed: int, tmp_path: Path
) -> None:
    make, error = KINDS[name]
    data = make(np.random.default_rng([seed, len(name)]))
    if isinstance(data, list):
        written = io.StringIO()
        csv.writer(written).writerows(data)
        (tmp_path / "t.csv").write_text(written.getvalue(), encoding="utf-8")
        data = tmp_path / "t.csv"
    elif isinstance(data, pd.DataFrame) and seed % 2:  # the same from a file
        data.to_csv(tmp_path / "t.csv", index=False)
        data = tmp_path / "t.csv"
    if error is not None:
        with pytest.raises(DataError, match=error) as caught:
            read_table(data)
        assert len(str(caught.value)) < 1000 and "Traceback" not in str(caught.value)
        return
    table = read_table(data)
    assert len({*table.names, table.target}) == 1 + table.x.shape[1]
    assert np.isfinite(table.x).all() and table.x.dtype == table.y.dtype == np.float64
    if table.constant:
        return
    problem = prepare(table.x, table.y, table.names)
    assert np.isfinite(problem.u).all()
    assert len(set(spread_out(problem.u, 8).tolist())) <= 8
    points = device_points(problem)
    assert np.isfinite(np.asarray(points.x)).all() and np.isfinite(np.asarray(points.y)).all()
