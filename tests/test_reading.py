"""Chapter 10: what people have becomes a table, and what was changed on the way is said."""

import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from refinemath import DataError
from refinemath.problem import Table
from refinemath.reading import read_inputs, read_table

X, Y = [1.5, 2.0, 3.25, 4.0, 1005.5], [2.0, -3.5, 4.0, 5.0, 0.25]
PLAIN = "t,U\n" + "".join(f"{a},{b}\n" for a, b in zip(X, Y, strict=True))


def read(text: str | bytes, tmp_path: Path, name: str = "t.csv", **options: object) -> Table:
    raw = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(raw)
    return read_table(tmp_path / name, **options)  # type: ignore[arg-type]


def comma(v: float) -> str:
    return str(v).replace(".", ",")


GERMAN = "".join(f"{comma(a)};{comma(b)}\n" for a, b in zip(X, Y, strict=True))
SAME = {
    "plain": PLAIN,
    "decimal commas": "t;U\n" + GERMAN,
    "commas in a table of tabs": "t\tU\n" + GERMAN.replace(";", "\t"),
    "commas between spaces": "t U\n" + GERMAN.replace(";", "  "),
    "thousands": "t;U\n" + GERMAN.replace("1005,5", "1.005,5"),
    "english thousands": PLAIN.replace("1005.5", '"1,005.5"'),
    "swiss thousands": PLAIN.replace("1005.5", "1'005.5"),
    "units": PLAIN.replace("U\n", "U\ns,V\n"),
    "units in brackets": PLAIN.replace("U\n", "U\n[s],[V per metre]\n"),
    "preamble": "Instrument 7\nDate: 2026-01-02\nSerial,12\n\n" + PLAIN,
    "comments": "# a, b\n" + PLAIN.replace("\n2.0", "\n# dropped\n2.0"),
    "bars": PLAIN.replace(",", "|"),
    "spaces after commas": PLAIN.replace(",", ", "),
    "utf-16": PLAIN.encode("utf-16"),
    "utf-16 without a mark": PLAIN.encode("utf-16-le"),
    "utf-8 with a mark": PLAIN.encode("utf-8-sig"),
    "an index": PLAIN.replace("t,U", ",t,U")
    .replace("1.5,", "0,1.5,")
    .replace("\n2.0,", "\n1,2.0,")
    .replace("3.25,", "2,3.25,")
    .replace("4.0,5", "3,4.0,5")
    .replace("1005.5,", "4,1005.5,"),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_table_in_many_forms(name: str, tmp_path: Path) -> None:
    table = read(SAME[name], tmp_path)
    np.testing.assert_array_equal(table.x[:, 0], X)
    np.testing.assert_array_equal(table.y, Y)
    assert (table.names, table.target) == (("t",), "U")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("decimal commas", "decimal commas"),
        ("units", "units (s, V)"),
        ("preamble", "3 line(s) before the table"),
        ("an index", "counts the rows"),
    ],
)
def test_what_was_left_out_is_said(name: str, says: str, tmp_path: Path) -> None:
    assert says in " ".join(read(SAME[name], tmp_path).notes)
    assert not read(PLAIN, tmp_path).notes


def test_latin_names_are_read(tmp_path: Path) -> None:
    table = read("größe;y\n1,5;2\n2,5;3\n4;4\n5;6\n".encode("latin-1"), tmp_path)
    assert table.names == ("größe",) and "Latin-1" in " ".join(table.notes)


def test_packed_and_pasted_text_and_json(tmp_path: Path) -> None:
    assert read(gzip.compress(PLAIN.encode()), tmp_path, "t.csv.gz").names == ("t",)
    assert read_table(io.StringIO(PLAIN.replace(",", "\t"))).names == ("t",)
    assert read_table(io.BytesIO(PLAIN.encode())).target == "U"
    pd.DataFrame({"t": X, "U": Y}).to_json(tmp_path / "t.json")
    np.testing.assert_allclose(read_table(tmp_path / "t.json").x[:, 0], X)


def test_a_sheet_of_excel(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    frame = pd.DataFrame({"t": ["s", *X], "U": ["V", *Y]})
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    table = read_table(tmp_path / "t.xlsx")
    np.testing.assert_array_equal(table.x[:, 0], X)
    assert table.names == ("t",) and "units (s, V)" in table.notes[0]


DAYS = pd.date_range("2026-01-01", periods=8, freq="D")


@pytest.mark.parametrize(
    "form", ["%Y-%m-%d", "%Y-%m-%d 00:00", "%d.%m.%Y", "%Y/%m/%d", "%d %b %Y", "%Y-%m-%dT00:00:00"]
)
def test_dates_count_from_the_first(form: str, tmp_path: Path) -> None:
    text = "".join(f"{d.strftime(form)};{i + 1}\n" for i, d in enumerate(DAYS))
    table = read("when;y\n" + text, tmp_path)
    np.testing.assert_allclose(table.x[:, 0], range(8))
    assert table.notes == ("when counts days from 2026-01-01T00:00:00.000000",)
    later = read_inputs(np.array(["2026-02-01"], "datetime64[D]"), table.names, table.origins)
    assert later.tolist() == [[31.0]]


@pytest.mark.parametrize(
    ("dates", "unit", "last"),
    [
        (pd.date_range("2026-01-01", periods=8, freq="min"), "seconds", 420.0),
        (pd.date_range("1990-01-01", periods=31, freq="YS"), "years", 30.0),
    ],
)
def test_a_frame_with_dates(dates: pd.DatetimeIndex, unit: str, last: float) -> None:
    frame = pd.DataFrame({"when": dates, "y": np.arange(len(dates)) ** 2.0})
    table = read_table(frame)
    assert unit in table.notes[0] and table.x[-1, 0] == pytest.approx(last, abs=0.01)
    np.testing.assert_array_equal(read_inputs(frame, table.names, table.origins), table.x)
    beside = read_table(frame["when"], frame["y"])
    np.testing.assert_array_equal(beside.x, table.x)


def test_a_date_that_can_be_read_in_two_ways_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="day/month or month/day"):
        read("d,y\n01/02/2026,1\n02/02/2026,2\n03/02/2026,3\n04/02/2026,4\n", tmp_path)
    last = "d,y\n01/02/2026,1\n02/02/2026,2\n03/02/2026,3\n14/02/2026,4\n"
    np.testing.assert_array_equal(read(last, tmp_path).x[:, 0], [0, 1, 2, 13])


def test_gaps_are_dropped_when_asked(tmp_path: Path) -> None:
    text = PLAIN.replace("-3.5", "NA") + "6,7\n,8\n"
    with pytest.raises(DataError, match="missing='drop'"):
        read(text, tmp_path)
    table = read(text, tmp_path, missing="drop")
    assert len(table.y) == 5 and "2 of 7 rows" in table.notes[0]
    with pytest.raises(DataError, match="'error' or 'drop'"):
        read(text, tmp_path, missing="fill")


def test_a_column_of_errors() -> None:
    frame = pd.DataFrame({"t": X, "s": [1, 2, 3, 4, 5], "U": Y})
    for sigma in ("s", 1, [1, 2, 3, 4, 5]):
        table = read_table(frame, sigma=sigma)
        assert table.sigma is not None and table.sigma.tolist() == [1, 2, 3, 4, 5]
        assert table.names == (("t", "s") if isinstance(sigma, list) else ("t",))
    for wrong in ([1.0] * 4, [0.0] * 5, 5):
        with pytest.raises(DataError, match="sigma"):
            read_table(X, Y, sigma=wrong)


def test_a_bad_cell_is_named(tmp_path: Path) -> None:
    for bad in ("2.0a", "1.2.3", "1,5,0", "x"):
        with pytest.raises(DataError, match=r"is not a number|column"):
            read(f"t;U\n1;2\n3;{bad}\n4;5\n6;7\n8;9\n", tmp_path)


def test_series_of_different_rows_are_an_error() -> None:
    one = pd.Series(X)
    with pytest.raises(DataError, match="different indexes"):
        read_table(one, pd.Series(Y, index=range(1, 6)))
