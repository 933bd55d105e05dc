"""Points in: what a user has, made a table of numbers with names, and checked.  (Chapter 10)"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refinemath.expression import MAX_VARIABLES
from refinemath.files import Sheet, column_numbers, origin_of, read_file, read_text, since
from refinemath.problem import FEWEST_POINTS, DataError, Origin, Table, default_names

MISSING = ("error", "drop")


@dataclass(frozen=True, eq=False)
class Block:
    """Columns as they come in: numbers, names if there are any, and what was done to them."""

    values: np.ndarray  # (points, columns) or (points,), float64
    names: list[str] | None
    origins: dict[int, Origin] = field(default_factory=dict)  # of columns that were dates
    notes: tuple[str, ...] = ()

    def take(self, columns: Sequence[int]) -> Block:
        """Some of the columns, in another order."""
        origins = {i: self.origins[c] for i, c in enumerate(columns) if c in self.origins}
        names = None if self.names is None else [self.names[c] for c in columns]
        return Block(self.values[:, columns], names, origins, self.notes)


def read_table(
    data: Any,
    y: Any = None,
    *,
    target: str | int | None = None,
    features: Sequence[str | int] | None = None,
    sigma: Any = None,
    missing: str = "error",
) -> Table:
    """The columns of what a user has, checked.  Raises `DataError`.

    `data`: an array, a list of rows or a data frame; the path of a file (`files.KNOWN`), or an open
    one with text; a `Table`; or the variables alone, with `y` beside them.  `target`: the name or
    position of the column to explain (the last one).  `features`: those to explain it by (all
    others).  `sigma`: sizes of the errors of y, the name or position of a column or one number a
    point.  `missing`: "drop" leaves out rows with a gap, which are an error otherwise.

    Dates become years, days or seconds from the first one, and a first column without a name that
    counts the rows is left out; `Table.notes` says so.
    """
    if missing not in MISSING:
        raise DataError(f"missing is {missing!r}; it must be 'error' or 'drop'")
    features = [features] if isinstance(features, str) else features
    if isinstance(data, Table):
        table = data if sigma is None else data._replace(sigma=_errors(sigma))
    elif y is None:
        block = _read_block(data, "data")
        block = _without_index(block) if features is None else block
        table = _split_columns(block, target, features, sigma)
    elif target is not None:
        raise DataError("target names a column of one table; here y is given beside the data")
    else:
        _same_index(data, y)
        table = _join_columns(_read_block(data, "x"), _read_block(y, "y"), features)
        table = table._replace(sigma=_errors(sigma))
    table = _drop_gaps(table) if missing == "drop" else table
    _check(table)
    return table


def read_points(data: Any, y: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """x (points, variables) and y (points,) of `read_table`."""
    return read_table(data, y)[:2]


def read_inputs(
    data: Any, names: Sequence[str], origins: Sequence[Origin | None] = ()
) -> np.ndarray:
    """Points (points, variables) to predict at: a number, a list of them, rows, or a data frame
    with columns of these `names`; dates where the variables have `origins`.  Raises `DataError`.
    """
    if set(names) <= set(getattr(data, "columns", ())):
        data = data[list(names)]
    block = _read_block(data, "x", dict(enumerate(origins)))
    x = np.atleast_1d(block.values)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or x.shape[1] != len(names):
        raise DataError(f"x has shape {x.shape}; this formula has {len(names)} variable(s)")
    return x


def _read_block(data: Any, what: str, known: dict[int, Origin | None] | None = None) -> Block:
    """Numbers in float64 with the names of the columns; dates are counted from the `known` origins,
    or from their first.
    """
    notes: list[str] = []
    if what == "data" and isinstance(data, str | Path):
        data = read_file(Path(data))
    elif hasattr(data, "read"):
        raw = data.read()
        data = read_text(raw.encode() if isinstance(raw, str) else raw, "the text")
    columns: list[Any] | None
    if isinstance(data, Sheet):
        columns, names, notes = data
    else:
        labels = getattr(data, "columns", [getattr(data, "name", None)])
        names = [str(n) for n in labels] if any(isinstance(n, str) for n in labels) else None
        columns = _dated_columns(data)
    if columns is None:
        return Block(_numbers(data, what), names)
    origins = {}
    labels = names or [f"column {i + 1}" for i in range(len(columns))]
    for i, (column, label) in enumerate(zip(columns, labels, strict=False)):
        if np.asarray(column).dtype.kind == "M":
            dates = np.asarray(column).astype("datetime64[us]")
            origins[i] = (known or {}).get(i) or origin_of(dates)
            columns[i] = since(dates, origins[i])
            notes.append(f"{label} counts {origins[i].unit} from {origins[i].first}")
    if names and len(names) != len(columns):
        raise DataError(f"the table names {len(names)} column(s) and has {len(columns)}")
    values = [_numbers(c, label) for c, label in zip(columns, labels, strict=True)]
    return Block(np.stack(values, axis=1), names, origins, tuple(notes))


def _dated_columns(data: Any) -> list[Any] | None:
    """The columns of a data frame, a series or an array with dates; None where there is no date."""
    if hasattr(data, "iter_columns"):  # polars
        columns = [np.asarray(c) for c in data.iter_columns()]
    elif hasattr(data, "items") and hasattr(data, "iloc") and hasattr(data, "columns"):
        columns = [np.asarray(c) for _, c in data.items()]
    elif getattr(getattr(data, "dtype", None), "kind", "") == "M" and np.ndim(data) == 1:
        columns = [np.asarray(data)]
    else:
        return None
    columns = [_dates_of_text(c) for c in columns]
    return columns if any(c.dtype.kind == "M" for c in columns) else None


def _dates_of_text(column: np.ndarray) -> np.ndarray:
    """A column of texts as dates, where they all are."""
    if column.dtype.kind not in "OSU" or not all(isinstance(c, str) for c in column):
        return column
    try:
        dates = column_numbers([str(c).strip() for c in column], ".", "data")
    except DataError:
        return column
    return dates if dates.dtype.kind == "M" else column


def _without_index(block: Block) -> Block:
    """The columns without a first one that only counts the rows and has no name."""
    names, values = block.names, block.values
    if not names or names[0].strip() not in ("", "Unnamed: 0", "index") or values.ndim != 2:
        return block
    steps = np.diff(values[:, 0])
    if values.shape[1] < 3 or not np.all(steps == 1) or values[0, 0] not in (0, 1):
        return block
    rest = block.take(range(1, values.shape[1]))
    note = "the first column, which counts the rows, was left out"
    return Block(rest.values, rest.names, rest.origins, (*block.notes, note))


def _split_columns(
    block: Block, target: str | int | None, features: Sequence[str | int] | None, sigma: Any
) -> Table:
    table, names = block.values, block.names
    if table.ndim != 2:
        raise DataError(
            f"the data have shape {table.shape}; expected rows of (x, y), or (x1, x2, y), and so on"
        )
    count = table.shape[1]
    known = names or [*default_names(count - 1), "y"]
    if target is not None or features is not None:  # what the user calls x2 stays x2
        names = known
    beside = _position(sigma, known) if isinstance(sigma, str | numbers.Integral) else None
    left = [i for i in range(count) if i != beside]
    last = (left or [count])[-1] if target is None else _position(target, known)
    chosen = [i for i in left if i != last]
    if features is not None:
        chosen = [_position(f, known) for f in features]
        if last in chosen:
            raise DataError(f"column {known[last]!r} is the target and a feature")
    y = table[:, last] if count else np.zeros(len(table))
    part = Block(table, names and list(known), block.origins, block.notes).take(chosen)
    errors = _errors(sigma) if beside is None else table[:, beside]
    return _named(part, y, known[last] if names else None)._replace(sigma=errors)


def _join_columns(left: Block, right: Block, features: Sequence[str | int] | None) -> Table:
    x, y = left.values, right.values
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(f"y has shape {y.shape}; it must be one number a point")
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or len(x) != len(y):
        raise DataError(
            f"x has shape {x.shape} and y has shape {y.shape}; they need the same number of points"
        )
    names = left.names or (default_names(x.shape[1]) if features is not None else None)
    block = Block(x, names, left.origins, (*left.notes, *right.notes))
    if features is not None:
        block = block.take([_position(f, names or []) for f in features])
    return _named(block, y, right.names[0] if right.names else None)


def _position(column: Any, known: list[str]) -> int:
    """The place of a column that is given by its name or its position."""
    if isinstance(column, numbers.Integral) and -len(known) <= int(column) < len(known):
        return int(column) % len(known)
    if column in known:
        return known.index(str(column))
    raise DataError(f"there is no column {column!r}; the columns are {', '.join(known)}"[:1000])


def _named(block: Block, y: np.ndarray, target: str | None) -> Table:
    """A table with different names: the second `v` becomes `v_2`, an empty one the default."""
    wanted, unique = [*default_names(block.values.shape[1]), "y"], []
    given = [*(block.names or wanted[:-1]), "y" if target is None else target]
    for own, default in zip(given, wanted, strict=True):
        name, again = own.strip() or default, 2
        while name in unique:
            name, again = f"{own.strip() or default}_{again}", again + 1
        unique.append(name)
    origins = tuple(block.origins.get(i) for i in range(len(unique) - 1))
    origins = origins if any(origins) else ()
    return Table(block.values, y, tuple(unique[:-1]), unique[-1], None, origins, block.notes)


def _errors(sigma: Any) -> np.ndarray | None:
    return None if sigma is None else np.ravel(_numbers(sigma, "sigma"))


def _same_index(data: Any, y: Any) -> None:
    """Raise `DataError` where two series are numbered differently: their rows belong to others."""
    one: Any = getattr(data, "index", None)
    two: Any = getattr(y, "index", None)
    if hasattr(one, "equals") and hasattr(two, "equals") and not one.equals(two):
        raise DataError(
            "x and y have different indexes; bring their rows into one order, and call "
            ".reset_index(drop=True) on both"
        )


def _gaps(table: Table) -> np.ndarray:
    """Which rows (points,) hold NaN or infinity."""
    good = np.isfinite(table.x).all(axis=1) & np.isfinite(table.y)
    sigma = table.sigma
    return ~(good & np.isfinite(sigma)) if sigma is not None and _fits(table) else ~good


def _fits(table: Table) -> bool:
    return table.sigma is not None and len(table.sigma) == len(table.y)


def _drop_gaps(table: Table) -> Table:
    gaps = _gaps(table)
    if not gaps.any():
        return table
    sigma = table.sigma[~gaps] if table.sigma is not None and _fits(table) else table.sigma
    notes = (*table.notes, f"{int(gaps.sum())} of {len(gaps)} rows have gaps and were left out")
    return table._replace(x=table.x[~gaps], y=table.y[~gaps], sigma=sigma, notes=notes)


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
    bad = _gaps(table)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} row(s) hold NaN or infinity, the first is row "
            f"{int(np.argmax(bad))}; remove them, or say missing='drop'"
        )
    _check_sizes(table)
    if table.sigma is not None and (not _fits(table) or not np.all(table.sigma > 0)):
        raise DataError(
            f"sigma has {len(table.sigma)} number(s); it must be one positive number for each of "
            f"the {count} points"
        )


def _check_sizes(table: Table) -> None:
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


def _numbers(data: Any, name: str) -> np.ndarray:
    if hasattr(data, "detach"):  # a tensor of torch
        data = data.detach()
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
