"""Points in: reading and checking what a user has, and scaling it for the search.  (Chapter 10)"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from refinemath.expression import VARIABLES
from refinemath.fitting import Points

POINTS = 64  # the network and the search look at no more points than this

FEWEST_POINTS = 4


# numbers are fitted on no more points than this; the network and the search look at 64 of them
MOST_POINTS = 4096


class DataError(ValueError):
    """Points that cannot be used; the message says what was found and what is needed."""


def read_points(data: Any, y: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """x (points, variables) and y (points,) in float64 from what a user has.

    Accepts an array or list of rows (x, y) or (x1, x2, y); a pair x, y; a DataFrame; or the path of
    a `.npy`, `.csv` or `.txt` file with the target in the last column.  Raises `DataError`.
    """
    if y is None and isinstance(data, str | Path):
        data = _read_file(Path(data))
    table: np.ndarray
    if y is not None:
        x_part, y_part = _numbers(data, "x"), _numbers(y, "y")
        if y_part.ndim == 2 and y_part.shape[1] == 1:
            y_part = y_part[:, 0]
        if y_part.ndim != 1:
            raise DataError(f"y has shape {y_part.shape}; it must be one number a point")
        x_part = x_part[:, None] if x_part.ndim == 1 else x_part
        if x_part.ndim != 2 or len(x_part) != len(y_part):
            raise DataError(
                f"x has shape {x_part.shape} and y has shape {y_part.shape}; they need the same "
                "number of points"
            )
        table = np.concatenate([x_part, y_part[:, None]], axis=1)
    else:
        table = _numbers(data, "data")
    if table.ndim != 2:
        raise DataError(
            f"the data have shape {table.shape}; expected rows of (x, y), or (x1, x2, y), or (x1, "
            "x2, x3, y)"
        )
    count, columns = table.shape
    if not 2 <= columns <= 1 + len(VARIABLES):
        raise DataError(
            f"the data have {columns} column(s); expected 2 to {1 + len(VARIABLES)}: one to three "
            "variables, then y"
        )
    if count < FEWEST_POINTS:
        raise DataError(
            f"{count} point(s) are too few for a formula; at least {FEWEST_POINTS} are needed"
        )
    bad = ~np.isfinite(table).all(axis=1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} row(s) hold NaN or infinity, the first is row "
            f"{int(np.argmax(bad))}; remove them"
        )
    if np.max(np.abs(table)) > 1e100:
        raise DataError(
            f"the largest number is {np.max(np.abs(table)):.3g}; numbers beyond 1e100 are not "
            "supported, choose other units"
        )
    spans = np.ptp(table, axis=0)
    if np.any((spans > 0) & (spans < 1e-100)):
        raise DataError(
            f"a column spans only {np.min(spans[spans > 0]):.3g}; spans under 1e-100 are not "
            "supported, choose other units"
        )
    for i in range(columns - 1):
        if spans[i] == 0:
            raise DataError(
                f"variable {VARIABLES[i] if columns > 2 else 'x'} is {table[0, i]:g} at every "
                "point; a formula needs at least two different values"
            )
    return table[:, :-1], table[:, -1]


def _read_file(path: Path) -> Any:
    try:
        there = path.is_file()
    except OSError as error:
        raise DataError(f"{str(path)[:80]!r} is not the path of a file: {error.strerror}") from None
    if not there:
        raise DataError(f"there is no file {path}")
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if suffix in (".csv", ".txt", ".tsv", ".dat"):
            text = path.read_text(encoding="utf-8-sig")
            lines = [
                line for line in text.splitlines() if line.strip() and not line.startswith("#")
            ]
            delimiter = next((d for d in (",", ";", "\t") if lines and d in lines[0]), None)
            rows = (
                list(csv.reader(lines, delimiter=delimiter))
                if delimiter
                else [line.split() for line in lines]
            )
            if rows and not any(_is_number(cell) for cell in rows[0]):  # names of the columns
                rows = rows[1:]
            if not rows:
                raise DataError(f"{path} holds no numbers")
            for i, row in enumerate(rows):
                if len(row) != len(rows[0]):
                    raise DataError(
                        f"{path}: data row {i + 1} has {len(row)} column(s), the first has "
                        f"{len(rows[0])}"
                    )
                for cell in row:
                    if not _is_number(cell):
                        raise DataError(f"{path}: {cell!r} in data row {i + 1} is not a number")
            return np.array([[float(cell) for cell in row] for row in rows])
    except (OSError, ValueError, EOFError, MemoryError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path}: {error}") from None
    raise DataError(
        f"{path} ends in {suffix or 'nothing'}; known are .npy, .csv, .tsv, .txt and .dat"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(data: Any, name: str) -> np.ndarray:
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
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} has type {array.dtype}; numbers are needed")
    return array.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Prepared:
    """The points as the network sees them, and the factors that lead back."""

    points: Points
    scale: np.ndarray  # x = scale * u for every variable
    u: np.ndarray  # (variables, points): all points, scaled
    x: np.ndarray
    y: np.ndarray


def prepare(x: np.ndarray, y: np.ndarray, *, room: int | None = None) -> Prepared:
    """Scale each variable into the range the model was trained on, choose at most 64 points, sort,
    pad to 32 or 64, or to `room`.
    """
    top = np.max(np.abs(x), axis=0)
    factor = np.array([1.0 if 0.4 <= t <= 13 else float(f"{t / 5:.0e}") for t in top])
    u = (x / factor).T
    n = len(y)
    order = np.argsort(x[:, 0], kind="stable")
    chosen = (
        order
        if n <= POINTS
        else order[np.unique(np.round(np.linspace(0, n - 1, POINTS)).astype(int))]
    )
    target = y[chosen]
    centre = float(np.mean(target))
    target = target - centre if abs(centre) > 10 * float(np.std(target)) else target
    target = target / (float(np.sqrt(np.mean(target**2))) or 1.0)
    room = room or (POINTS // 2 if n <= POINTS // 2 else POINTS)
    pad = room - len(chosen)
    points = Points(
        jnp.asarray(np.pad(u[:, chosen], ((0, 0), (0, pad)))[None], jnp.float32),
        jnp.asarray(np.pad(target, (0, pad))[None], jnp.float32),
        jnp.asarray((np.arange(room) < len(chosen))[None]),
    )
    return Prepared(points, factor, u, x.T, y)
