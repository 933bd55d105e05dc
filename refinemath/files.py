"""Files in: encodings, preambles, units, decimal commas and dates, to columns of numbers.
(Chapter 10)
"""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refinemath.problem import DataError, Origin

TEXT = (".csv", ".tsv", ".txt", ".dat")
BY_PANDAS = {".xlsx": "read_excel", ".xls": "read_excel", ".parquet": "read_parquet"}
BY_PANDAS[".json"] = "read_json"
KNOWN = (".npy", *TEXT, *BY_PANDAS)
SAMPLE = 60  # rows by which delimiter and decimal sign are recognised
HEAD = 40  # rows among which the table begins
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "-", "--", "?", "#n/a"))
# dates that are not written as 2001-03-31; the ambiguous ones are tried both ways
DATES = ("%d.%m.%Y", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d %b %Y", "%d-%b-%Y", "%b %d, %Y")
TIMES = ("", " %H:%M", " %H:%M:%S")
UNITS = {"years": 365.25 * 86400, "days": 86400.0, "seconds": 1.0}  # in seconds


class Sheet(NamedTuple):
    """The columns of a file, cell by cell, the names above them, and what was left out."""

    columns: list[Any]
    names: list[str] | None
    notes: list[str]


def read_file(path: Path) -> Any:
    """What a file holds: an array (.npy), a data frame (.parquet, .json), or a `Sheet`.  Raises
    `DataError`.
    """
    try:
        there = path.is_file()
    except OSError as error:
        raise DataError(f"{str(path)[:80]!r} is not the path of a file: {error.strerror}") from None
    if not there:
        raise DataError(f"there is no file {path}")
    packed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem if packed else path.name).suffix.lower()
    try:
        if suffix in TEXT:
            raw = path.read_bytes()
            return read_text(gzip.decompress(raw) if packed else raw, str(path))
        if suffix == ".npy" and not packed:
            return np.load(path, allow_pickle=False)
        if suffix in BY_PANDAS:
            return _read_by_pandas(path, suffix)
    except (OSError, ValueError, EOFError, MemoryError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read {path}: {str(error)[:500]}") from None
    raise DataError(f"{path} ends in {suffix or 'nothing'}; known are {', '.join(KNOWN)}, and .gz")


def _read_by_pandas(path: Path, suffix: str) -> Any:
    options: dict[str, Any] = {"header": None, "dtype": object} if "xls" in suffix else {}
    try:
        import pandas

        frame = getattr(pandas, BY_PANDAS[suffix])(path, **options)
    except ImportError as error:
        raise DataError(
            f'{suffix} is read by pandas ({error}); install it with: pip install "refinemath[data]"'
        ) from None
    except Exception as error:  # what the readers of other packages raise on broken files
        raise DataError(f"cannot read {path}: {str(error)[:500]}") from None
    if not options:
        return frame
    empty = frame.isna().to_numpy()
    rows = [
        ["" if gap else str(cell) for cell, gap in zip(row, gaps, strict=True)]
        for row, gaps in zip(frame.to_numpy().tolist(), empty, strict=True)
    ]
    return _sheet([row for row in rows if any(row)], ".", str(path), [])


def read_text(raw: bytes, source: str) -> Sheet:
    """The table in a text: its delimiter, decimal sign, header, units and preamble recognised.
    Raises `DataError`.
    """
    text, notes = _decode(raw)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    sample = lines[-SAMPLE:]
    delimiter = max(("\t", ";", ",", "|", None), key=lambda d: _suits(sample, d))
    cells = [cell for row in _cells(sample, delimiter) for cell in row]
    decimal = _decimal_sign(cells, delimiter)
    if decimal == ",":
        notes.append("commas were read as decimal commas")
    return _sheet(_cells(lines, delimiter), decimal, source, notes)


def _decode(raw: bytes) -> tuple[str, list[str]]:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace"), []
    if b"\0" in raw[:200]:  # UTF-16 without its mark: every second byte of digits is 0
        order = "le" if raw[1:2] == b"\0" else "be"
        return raw.decode(f"utf-16-{order}", errors="replace"), []
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace"), ["the text was read as Latin-1"]


def _cells(lines: list[str], delimiter: str | None) -> list[list[str]]:
    if delimiter is None:
        return [line.split() for line in lines]
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows]


def _suits(lines: list[str], delimiter: str | None) -> tuple[bool, float]:
    """How well lines fall into equally many numbers at a delimiter (None: white space)."""
    try:
        rows = _cells(lines, delimiter)
    except csv.Error:
        return False, 0.0
    count, often = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
    known = [_is_value(cell) for row in rows if len(row) == count for cell in row]
    return count > 1, often * sum(known) / max(len(known), 1)


def _is_value(cell: str) -> bool:
    """Whether a cell may be a number or a date, whatever its decimal sign."""
    return any(number(cell, d) is not None for d in ".,") or bool(
        re.match(r"\d+[-./]\d+[-./]", cell)
    )


def _decimal_sign(cells: Sequence[str], delimiter: str | None) -> str:
    """The decimal sign of a file, "." or ",": the last sign of a number that has both; a comma
    before other than three digits; in a file with semicolons, any comma.
    """
    numbers = [c for c in cells if re.fullmatch(r"[-+]?[\d.,' \u00a0]+([eE][-+]?\d+)?", c)]
    both = [c for c in numbers if "." in c and "," in c]
    if both:
        return "," if both[0].rindex(",") > both[0].rindex(".") else "."
    commas = [c for c in numbers if "," in c]
    if not commas or delimiter == ",":
        return "."
    plain = all(re.fullmatch(r"[-+]?[1-9]\d{0,2}(,\d{3})+", c) for c in commas)
    return "." if plain and (delimiter != ";" or any(c.count(",") > 1 for c in commas)) else ","


def number(cell: str, decimal: str = ".") -> float | None:
    """The number in a cell, without the signs between its thousands; None where there is none."""
    try:
        return float(_plain(cell, decimal))
    except ValueError:
        return None


def _plain(cell: str, decimal: str) -> str:
    """A number as Python writes it; the cell itself where its groups are not of three digits."""
    group = "." if decimal == "," else ","
    mark = re.escape(decimal)
    shape = rf"[-+]?\d{{1,3}}((?P<s>[{group}' \u00a0\u202f])\d{{3}}((?P=s)\d{{3}})*)({mark}\d*)?"
    if re.fullmatch(shape, cell):
        cell = re.sub(rf"[{group}' \u00a0\u202f]", "", cell)
    elif decimal == "," and "." in cell:
        return f"{cell}?"
    return cell.replace(decimal, ".").replace("_", "?").replace("\u2212", "-")


def _sheet(rows: list[list[str]], decimal: str, source: str, notes: list[str]) -> Sheet:
    """The columns below the preamble, the names and the units."""
    count = Counter(len(row) for row in rows[-SAMPLE:]).most_common(1)[0][0] if rows else 0
    first = _first_row(rows, count, decimal)
    if first is None:
        raise DataError(f"{source} holds no numbers")
    above = rows[:first]
    if above and len(above[-1]) != count and len(above[-1]) > 1:
        raise DataError(f"{source} names {len(above[-1])} column(s) and has {count}")
    wordy = [len(row) == count and not any(map(_is_value, row)) for row in above]
    names, used = (above[-1], 1) if any(wordy[-1:]) else (None, 0)
    if len(wordy) > 1 and all(wordy[-2:]) and _are_units(above[-1]):
        names, used = above[-2], 2
        notes.append(f"the line of units ({', '.join(above[-1])}) was left out")
    if skipped := len(above) - used:
        notes.append(f"{skipped} line(s) before the table were left out")
    for i, row in enumerate(rows[first:], 1):
        if len(row) != count:
            raise DataError(f"{source}: data row {i} has {len(row)} column(s), expected {count}")
    columns = [
        column_numbers([row[j] for row in rows[first:]], decimal, source) for j in range(count)
    ]
    return Sheet(columns, names, notes)


def _first_row(rows: list[list[str]], count: int, decimal: str) -> int | None:
    """The first row of the table: numbers in as many columns as the last rows have.  Names that
    follow within three such rows show that these belonged to the preamble.
    """
    first = None
    for i, row in enumerate(rows[:HEAD]):
        if len(row) != count:
            continue
        if not any(_is_value(cell) for cell in row):
            wordy = all(cell and cell.lower() not in MISSING for cell in row)
            first = None if wordy and first is not None and i - first < 3 else first
        elif first is None:
            first = i
    return first


def _are_units(row: list[str]) -> bool:
    """Whether a line below the names looks like units: short words, or words in brackets."""
    return all(re.fullmatch(r"[\[(].*[\])]|\S{0,8}", cell) for cell in row)


def column_numbers(cells: list[str], decimal: str, source: str) -> np.ndarray:
    """The cells (points,) of a column as float64, or datetime64; what is missing is NaN.  Raises
    `DataError`.
    """
    if decimal == ".":
        try:
            return np.array(cells, np.float64)
        except ValueError:
            pass
    values = [np.nan if cell.lower() in MISSING else number(cell, decimal) for cell in cells]
    if None not in values:
        return np.array(values, np.float64)
    dates = _dates(cells)
    if dates is not None:
        return dates
    row = values.index(None)
    raise DataError(f"{source}: {cells[row][:80]!r} in data row {row + 1} is not a number")


def _dates(cells: list[str]) -> np.ndarray | None:
    """The cells as datetime64[us], all written in one way; None where they are no dates."""
    filled = [None if c.lower() in MISSING else c for c in cells]
    there = [c for c in filled if c is not None]
    found = []
    for parse in _date_readers():
        try:
            found.append([parse(c) for c in there])
        except ValueError:
            continue
    if not found:
        return None
    if any(other != found[0] for other in found[1:]):
        raise DataError(f"{there[0]!r} can be day/month or month/day; write dates as 2001-03-31")
    dates = iter(found[0])
    return np.array([None if c is None else next(dates) for c in filled], "datetime64[us]")


def _date_readers() -> Iterator[Callable[[str], datetime]]:
    yield lambda c: datetime.fromisoformat(c).replace(tzinfo=None) if "-" in c else _no_date()
    for date in DATES:
        for time in TIMES:
            yield lambda c, f=date + time: datetime.strptime(c, f)  # type: ignore[misc]


def _no_date() -> datetime:
    raise ValueError


def origin_of(dates: np.ndarray) -> Origin:
    """Where a column of dates is counted from, and in what: years if it spans more than three of
    them, days if more than two, else seconds.
    """
    known = dates[~np.isnat(dates)]
    first = np.datetime64(known.min() if len(known) else 0, "us")
    span = float((known.max() - known.min()) / np.timedelta64(1, "s")) if len(known) else 0.0
    unit = next((u for u, most in (("years", 3), ("days", 2)) if span > most * UNITS[u]), "seconds")
    return Origin(first, unit)


def since(dates: np.ndarray, origin: Origin) -> np.ndarray:
    """Dates (points,) as numbers; NaN where there is none."""
    seconds = (dates - origin.first) / np.timedelta64(1, "s")
    return np.where(np.isnat(dates), np.nan, seconds / UNITS[origin.unit])
