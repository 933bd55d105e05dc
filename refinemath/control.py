"""What a user asks of a formula and of its fit, and what is said while the search goes on.
(Chapter 10)
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refinemath.answer.regression import LOSSES, Errors
from refinemath.answer.symbolic import pretty
from refinemath.answer.uncertainty import robust_scale
from refinemath.expression import Formula, split_terms
from refinemath.operators import allowed_operators, uses_only
from refinemath.problem import MOST_POINTS, DataError, Table, spread_out

DECADES = 1e3  # largest y over smallest from which relative errors are worth a thought
ERRORS = ("absolute", "relative")


class Progress(NamedTuple):
    """After a search: how many there were, the time, and the best formula so far with its FVU."""

    searches: int
    seconds: float
    fvu: float
    formula: Formula | None
    names: tuple[str, ...]

    def __str__(self) -> str:
        text = "nothing yet" if self.formula is None else str(pretty(self.formula, 4, self.names))
        return f"{self.seconds:5.1f} s, {self.searches} searches, FVU {self.fvu:.2g}: {text}"


@dataclass(frozen=True, eq=False)
class Control:
    """The errors of y, the operators that a formula may use, and its most tokens (factors and
    offset not counted; None: as many as the search has room for).
    """

    errors: Errors
    operators: frozenset[str]
    max_length: int | None = None

    def allows(self, formula: Formula) -> bool:
        """Whether a formula is short enough and uses allowed operators alone."""
        most = self.max_length
        return (most is None or skeleton_length(formula) <= most) and uses_only(
            formula, self.operators
        )


def make_control(
    table: Table,
    error: str = "absolute",
    loss: str = "linear",
    operators: Any = None,
    max_length: Any = None,
    through_origin: bool = False,
) -> Control:
    """The options of `RefineMath.solve` checked.

    `error="relative"`: the errors grow with y; `loss="soft_l1"`: single points may be far off;
    `through_origin`: y is 0 where x is.  The searches do not know these: they govern the last fit
    of every formula found, and the score by which one is chosen.  `operators`: the only ones
    allowed beside + - *, such as "/ exp sqrt"; `max_length`: the most tokens.  Raises `DataError`,
    `ValueError`.
    """
    for name, value, known in (("error", error, ERRORS), ("loss", loss, LOSSES)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    if max_length is not None and (
        not isinstance(max_length, numbers.Integral) or int(max_length) < 1
    ):
        raise ValueError(f"max_length is {max_length!r}; it must be a whole number from 1 up")
    sigma = table.sigma
    if error == "relative":
        if sigma is not None:
            raise ValueError("error='relative' and sigma both say how large the errors are")
        if not np.all(table.y):
            raise DataError(
                "y is 0 at some points, where no error can be relative to it; give sigma"
            )
        sigma = np.abs(table.y)
    most = None if max_length is None else int(max_length)
    return Control(Errors(sigma, loss, bool(through_origin)), allowed_operators(operators), most)


def skeleton_length(formula: Formula) -> int:
    """Tokens without the coefficients and the offset, as `Solution.length` counts them."""
    terms = [t.parts for t in split_terms(formula)]
    terms = [t[2:] if t[0] == "mul" and not isinstance(t[1], str) else t for t in terms]
    lengths = [len(t) for t in terms if isinstance(t[0], str)]
    return max(sum(lengths) + len(lengths) - 1, 0)


def searched_points(table: Table, errors: Errors) -> np.ndarray | slice:
    """Which rows the searches see: `MOST_POINTS` that cover the space, and under a robust loss none
    of those that lie far off their neighbours.
    """
    if errors.loss != "linear":
        kept = np.flatnonzero(~far_off(table.x, table.y))
        return kept[spread_out(table.x[kept].T, MOST_POINTS)]
    return spread_out(table.x.T, MOST_POINTS) if len(table.y) > MOST_POINTS else slice(None)


def far_off(x: np.ndarray, y: np.ndarray, *, beside: int = 3, most: float = 8.0) -> np.ndarray:
    """(points,) bool: y lies `most` robust standard deviations or more from where its neighbours
    say; at most a tenth of the points.  For one variable; with several, none.

    After Hampel (1974), with lines in place of the running median: a point is compared with the
    median of the lines through every two of its six neighbours, of which one outlier spoils few.
    """
    wrong, count = np.zeros(len(y), bool), len(y)
    if x.shape[1] > 1 or count < 2 * beside + 2:
        return wrong
    order = np.argsort(x[:, 0], kind="stable")
    u, v = x[order, 0], y[order]
    first = np.clip(np.arange(count) - beside, 0, count - 2 * beside - 1)[:, None]
    near = first + np.arange(2 * beside + 1)
    near = near[near != np.arange(count)[:, None]].reshape(count, 2 * beside)
    one, two = np.triu_indices(2 * beside, 1)
    (xa, ya), (xb, yb) = ((u[near[:, i]], v[near[:, i]]) for i in (one, two))
    with np.errstate(all="ignore"):
        lines = ya + (yb - ya) * (u[:, None] - xa) / (xb - xa)
    lines = np.where(xa == xb, (ya + yb) / 2, lines)
    middle = np.median(lines, axis=1)
    left = np.abs(v - middle)
    apart = np.median(np.abs(lines - middle[:, None]), axis=1)  # large where the curve bends
    least = np.sort(left)[-1 - count // 10]
    wrong[order] = (left > most * np.maximum(robust_scale(left), apart)) & (left > least)
    return wrong


def decades_hint(table: Table, errors: Errors) -> list[str]:
    """A hint for a y of one sign that spans decades, where nothing was said about its errors."""
    size = np.abs(table.y)
    one_sign = np.all(table.y > 0) or np.all(table.y < 0)
    if errors.sigma is not None or not one_sign or size.max() < DECADES * size.min():
        return []
    return [
        f"{table.target} spans {np.log10(size.max() / size.min()):.0f} decades and its largest "
        "values alone decide; where errors grow with y, say error='relative'"
    ]
