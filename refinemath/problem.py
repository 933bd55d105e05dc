"""The points of a problem: a table with names, and scaled for the search.  (Chapter 10)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FEWEST_POINTS = 4
MOST_POINTS = 4096  # constants are fitted and rounded on no more points than this
SEARCH_POINTS = 64  # a search over one variable looks at no more points than this
SEARCH_POINTS_SEVERAL = 256  # a search over several variables


class DataError(ValueError):
    """Points that cannot be used; the message says what was found and what is needed."""


class Origin(NamedTuple):
    """Where a column of dates is counted from, and in what: "years" (of 365.25 days), "days" or
    "seconds".
    """

    first: np.datetime64
    unit: str


class Table(NamedTuple):
    """A user's numbers in float64 and the names of their columns, each name different."""

    x: np.ndarray  # (points, variables)
    y: np.ndarray  # (points,)
    names: tuple[str, ...]  # of the variables
    target: str
    sigma: np.ndarray | None = None  # (points,): sizes of the errors of y
    origins: tuple[Origin | None, ...] = ()  # of the variables that were dates
    notes: tuple[str, ...] = ()  # what reading changed

    @property
    def constant(self) -> bool:
        """Whether y is the same number everywhere, up to rounding."""
        return bool(np.ptp(self.y) <= 1e-14 * max(1e-300, float(np.max(np.abs(self.y)))))


def default_names(count: int) -> list[str]:
    """The names of variables that have none: x, or x1, x2, and so on."""
    return ["x"] if count == 1 else [f"x{i + 1}" for i in range(count)]


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
