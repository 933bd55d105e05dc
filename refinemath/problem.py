"""Points in: reading and checking what a user has, and scaling it for the search.  (Chapter 10)"""

from __future__ import annotations

import csv
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refinemath.expression import MAX_VARIABLES

FEWEST_POINTS = 4
MOST_POINTS = 4096  # constants are fitted and rounded on no more points than this
SEARCH_POINTS = 64  # a search over one variable looks at no more points than this
SEARCH_POINTS_SEVERAL = 256  # a search over several variables


class DataError(ValueError):
    """Points that cannot be used; the message says what was found and what is needed."""


class Table(NamedTuple):
    """A user's numbers in float64 and the names of their columns, each name different."""

    x: np.ndarray  # (points, variables)
    y: np.ndarray  # (points,)
    names: tuple[str, ...]  # of the variables
    target: str

    @property
    def constant(self) -> bool:
        """Whether y is the same number everywhere, up to rounding."""
        return bool(np.ptp(self.y) <= 1e-14 * max(1e-300, float(np.max(np.abs(self.y)))))


def read_table(
    data: Any,
    y: Any = None,
    *,
    target: str | int | None = None,
    features: Sequence[str | int] | None = None,
) -> Table:
    """The columns of what a user has, checked.  Raises `DataError`.

    `data`: an array, a list of rows or a DataFrame; the path of a `.npy`, `.csv`, `.tsv`, `.txt` or
    `.dat` file; a `Table`; or the variables alone, with `y` beside them.  `target`: the name or
    position of the column to explain (the last one).  `features`: those to explain it by (all
    others).
    """
    features = [features] if isinstance(features, str) else features
    if isinstance(data, Table):
        table = data
    elif y is None:
        table = _split_columns(*_columns(data, "data"), target, features)
    elif target is not None:
        raise DataError("target names a column of one table; here y is given beside the data")
    else:
        _check_index(data, y)
        table = _join_columns(_columns(data, "x"), _columns(y, "y"), features)
    _check(table)
    return table


def read_points(data: Any, y: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """x (points, variables) and y (points,) of `read_table`."""
    return read_table(data, y)[:2]


def _check_index(*columns: Any) -> None:
    found = [getattr(c, "index", None) for c in columns]
    known = [np.asarray(i) for i in found if i is not None and not callable(i)]
    if len(known) == 2 and not np.array_equal(known[0], known[1]):
        raise DataError("x and y have different indexes; align them, or give their values")


def _columns(data: Any, what: str) -> tuple[np.ndarray, list[str] | None]:
    """Numbers in float64 and, where there are any, the names of the columns."""
    if what == "data" and isinstance(data, str | Path):
        data, names = _read_file(Path(data))
    else:
        labels = getattr(data, "columns", [getattr(data, "name", None)])
        names = [str(n) for n in labels] if any(isinstance(n, str) for n in labels) else None
    return _numbers(data, what), names


def _split_columns(
    table: np.ndarray,
    names: list[str] | None,
    target: str | int | None,
    features: Sequence[str | int] | None,
) -> Table:
    if table.ndim != 2:
        raise DataError(
            f"the data have shape {table.shape}; expected rows of (x, y), or (x1, x2, y), and so on"
        )
    count = table.shape[1]
    known = names or [*default_names(count - 1), "y"]
    if target is not None or features is not None:  # what the user calls x2 stays x2
        names = known
    last = count - 1 if target is None else _position(target, known)
    chosen = [i for i in range(count) if i != last]
    if features is not None:
        chosen = [_position(f, known) for f in features]
        if last in chosen:
            raise DataError(f"column {known[last]!r} is the target and a feature")
    y = table[:, last] if count else np.zeros(len(table))
    return _named(table[:, chosen], y, names and [names[i] for i in (*chosen, last)])


def _join_columns(
    left: tuple[np.ndarray, list[str] | None],
    right: tuple[np.ndarray, list[str] | None],
    features: Sequence[str | int] | None,
) -> Table:
    (x, names), (y, target) = left, right
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(f"y has shape {y.shape}; it must be one number a point")
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or len(x) != len(y):
        raise DataError(
            f"x has shape {x.shape} and y has shape {y.shape}; they need the same number of points"
        )
    if features is not None:
        known = names or default_names(x.shape[1])
        chosen = [_position(f, known) for f in features]
        x, names = x[:, chosen], [known[i] for i in chosen]
    both = [*(names or default_names(x.shape[1])), (target or ["y"])[0]]
    return _named(x, y, both if names or target else None)


def _position(column: str | int, known: list[str]) -> int:
    """The place of a column that is given by its name or its position."""
    if isinstance(column, numbers.Integral) and -len(known) <= column < len(known):
        return int(column) % len(known)
    if column in known:
        return known.index(str(column))
    raise DataError(f"there is no column {column!r}; the columns are {', '.join(known)}"[:1000])


def default_names(count: int) -> list[str]:
    """The names of variables that have none: x, or x1, x2, and so on."""
    return ["x"] if count == 1 else [f"x{i + 1}" for i in range(count)]


def _named(x: np.ndarray, y: np.ndarray, names: list[str] | None) -> Table:
    """A table with different names: the second `v` becomes `v_2`, an empty one the default."""
    wanted, unique = [*default_names(x.shape[1]), "y"], []
    for given, default in zip(names or wanted, wanted, strict=True):
        name, again = given.strip() or default, 2
        while name in unique:
            name, again = f"{given.strip() or default}_{again}", again + 1
        unique.append(name)
    return Table(x, y, tuple(unique[:-1]), unique[-1])


def _check(table: Table) -> None:
    """Raise `DataError` where the numbers or their count leave nothing to search for."""
    count, variables = table.x.shape
    if not 1 <= variables <= MAX_VARIABLES:
        raise DataError(
            f"the data have {variables + 1} column(s); expected 2 to {1 + MAX_VARIABLES}: 1 to "
            f"{MAX_VARIABLES} variables, then y"
        )
    if count < FEWEST_POINTS:
        raise DataError(
            f"{count} point(s) are too few for a formula; at least {FEWEST_POINTS} are needed"
        )
    bad = ~(np.isfinite(table.x).all(axis=1) & np.isfinite(table.y))
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} row(s) hold NaN or infinity, the first is row "
            f"{int(np.argmax(bad))}; remove them"
        )
    largest = max(float(np.max(np.abs(table.x))), float(np.max(np.abs(table.y))))
    if largest > 1e100:
        raise DataError(
            f"the largest number is {largest:.3g}; numbers beyond 1e100 are not supported, choose "
            "other units"
        )
    spans = np.append(np.ptp(table.x, axis=0), np.ptp(table.y))
    if np.any((spans > 0) & (spans < 1e-100)):
        raise DataError(
            f"a column spans only {np.min(spans[spans > 0]):.3g}; spans under 1e-100 are not "
            "supported, choose other units"
        )
    for name, span, first in zip(table.names, spans[:-1], table.x[0], strict=True):
        if span == 0:
            raise DataError(
                f"variable {name} is {first:g} at every point; a formula needs at least two "
                "different values"
            )


def _read_file(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """The numbers of a file and the names in its first line, if there are any."""
    try:
        there = path.is_file()
    except OSError as error:
        raise DataError(f"{str(path)[:80]!r} is not the path of a file: {error.strerror}") from None
    if not there:
        raise DataError(f"there is no file {path}")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return np.load(path, allow_pickle=False), None
        if suffix in (".csv", ".txt", ".tsv", ".dat"):
            return _read_text(path)
    except (OSError, ValueError, EOFError, MemoryError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path}: {error}") from None
    raise DataError(
        f"{path} ends in {suffix or 'nothing'}; known are .npy, .csv, .tsv, .txt and .dat"
    )


def _read_text(path: Path) -> tuple[np.ndarray, list[str] | None]:
    text = path.read_text(encoding="utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    delimiter = next((d for d in (",", ";", "\t") if lines and d in lines[0]), None)

    def cells(lines: list[str]) -> list[list[str]]:
        return (
            list(csv.reader(lines, delimiter=delimiter))
            if delimiter
            else [line.split() for line in lines]
        )

    first = cells(lines[:1])
    names = first[0] if first and not any(map(_is_number, first[0])) else None
    lines = lines[1:] if names else lines
    if not lines:
        raise DataError(f"{path} holds no numbers")
    try:
        table = np.loadtxt(lines, delimiter=delimiter, quotechar='"', comments=None, ndmin=2)
    except ValueError:  # what is wrong with it, or numbers as only Python writes them
        table = _rows_to_table(cells(lines), path)
    if names and len(names) != table.shape[1]:
        raise DataError(f"{path} names {len(names)} column(s) and has {table.shape[1]}")
    return table, names


def _rows_to_table(rows: list[list[str]], path: Path) -> np.ndarray:
    for i, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path}: data row {i} has {len(row)} column(s), the first has {len(rows[0])}"
            )
        for cell in row:
            if not _is_number(cell):
                raise DataError(f"{path}: {cell!r} in data row {i} is not a number")
    return np.array([[float(cell) for cell in row] for row in rows])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(data: Any, name: str) -> np.ndarray:
    if hasattr(data, "detach"):  # a tensor that may require gradients
        data = data.detach().cpu()
    if isinstance(kinds := getattr(data, "dtypes", ()), list) and "Date" in str(kinds):  # polars
        raise DataError(f"{name} holds dates; give days or seconds from the first one as numbers")
    if hasattr(data, "to_numpy"):
        data = data.to_numpy()
    if np.ma.isMaskedArray(data) and np.ma.is_masked(data):
        raise DataError(f"{name} has masked entries; remove their rows")
    try:
        array = np.asarray(data)
        if array.dtype == object or array.dtype.kind in "SU":
            array = np.array(array.tolist(), np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{name} holds something that is not a number of float64, or rows of different lengths"
        ) from None
    if array.dtype.kind == "c":
        raise DataError(f"{name} holds complex numbers; the language is real")
    if array.dtype.kind == "b" and name == "y":
        raise DataError("y holds True and False; give 0 and 1 as numbers if those are meant")
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} has type {array.dtype}; numbers are needed")
    return array.astype(np.float64)


def read_inputs(data: Any, names: Sequence[str]) -> np.ndarray:
    """Points (points, variables) to predict at: a number, a list of them, rows, or a DataFrame with
    columns of these `names`.  Raises `DataError`.
    """
    if set(names) <= set(getattr(data, "columns", ())):
        data = data[list(names)]
    x = np.atleast_1d(_numbers(data, "x"))
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or x.shape[1] != len(names):
        raise DataError(f"x has shape {x.shape}; this formula has {len(names)} variable(s)")
    return x


@dataclass(frozen=True, eq=False)
class Problem:
    """The points of one fit in the user's units and scaled, in float64."""

    x: np.ndarray  # (variables, points), in the user's units
    y: np.ndarray  # (points,)
    scale: np.ndarray  # (variables,): x = scale * u
    u: np.ndarray  # (variables, points), in the range that the model was trained on
    names: tuple[str, ...]  # of the variables, as they are printed


def prepare(x: np.ndarray, y: np.ndarray, names: Sequence[str] | None = None) -> Problem:
    """A problem from x (points, variables) and y (points,).  Each variable is scaled into the range
    that the model was trained on: a largest size of 0.4 to 13.
    """
    top = np.max(np.abs(x), axis=0)
    scale = np.array([1.0 if 0.4 <= t <= 13 else float(f"{t / 5:.0e}") for t in top])
    x = np.ascontiguousarray(x.T)
    return Problem(x, y, scale, x / scale[:, None], tuple(names or default_names(len(x))))


def spread_out(x: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` points of x (variables, points) that cover the space, in the order
    of a curve that fills it.

    The curve is Morton's (1966): it interleaves the binary digits of the ranks of all variables.
    Evenly spaced places along it are close to evenly spread in space.  For one variable it is the
    order by size.
    """
    variables, points = x.shape
    if variables == 1:
        order = np.argsort(x[0], kind="stable")
    else:
        digits = 62 // variables
        code = np.zeros(points, np.int64)
        for j, column in enumerate(x):
            rank = np.unique(column, return_inverse=True)[1]
            level = (rank * ((2**digits - 1) / max(int(rank.max()), 1))).astype(np.int64)
            for digit in range(digits):
                code |= ((level >> digit) & 1) << (digit * variables + variables - 1 - j)
        order = np.lexsort((*x[::-1], code))
    few = np.unique(np.round(np.linspace(0, points - 1, min(most, points))).astype(int))
    return order[few]
