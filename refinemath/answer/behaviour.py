"""What a formula's numbers are measured in, and what its curve does where there are no points.
(Chapter 8)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from refinemath.expression import VARIABLES, Formula

TURN = 4.0  # nats for a turning point that no point shows
POLE = 6.0  # nats for a pole or a spike between the points, half of it for one just outside
BETWEEN = 4  # steps from one point to the next
MOST = 1000  # points; between more of them nothing is looked for
BEYOND = np.linspace(0.0, 0.25, 17)  # how far outside, in ranges of x


def natural_units(
    terms: Sequence[Formula], numbers: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each number inside the terms where to count it from and in which unit.

    A place on the axis of a variable (the c of x - c) is counted from the middle of the points in
    units of their range, any other number from 0 in units of itself.  With this neither the fit nor
    its price depends on the units and the origin of x (variables, points).
    """
    zero, unit = np.zeros(len(numbers)), np.where(numbers == 0.0, 1e-3, np.abs(numbers))
    low, high = np.min(x, axis=1), np.max(x, axis=1)
    places = [place for term in terms for place in _places(term)]
    for i, (sign, v) in enumerate(places):
        if sign:
            zero[i], unit[i] = sign * (low[v] + high[v]) / 2, high[v] - low[v]
    return zero, unit


def _places(term: Formula) -> list[tuple[int, int]]:
    """For each number of a term 1 for the c of x - c and -1 for that of x + c, and which variable x
    is; (0, 0) for any other number.
    """
    found, parts = [], (*term.parts, "")
    for j, part in enumerate(term.parts):
        if isinstance(part, str):
            continue
        place = (0, 0)
        for variable, operator in ((parts[j - 1], parts[j - 2]), (parts[j + 1], parts[j - 1])):
            if operator in ("add", "sub") and variable in VARIABLES:
                place = (1 if operator == "sub" else -1, VARIABLES.index(str(variable)))
        found.append(place)
    return found


def detours(curve: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """Nats for what a curve over one variable does without a point that shows it: turning points
    and poles between the points, and just outside of their range.

    A wave may turn outside as often as it turns inside.  `curve`: values at x (1, places).
    """
    places = np.unique(x)
    seen, spread = curve(places[None]), float(np.ptp(y))
    price, shown = 0.0, _turns(seen)
    inside = seen
    if len(places) <= MOST:
        fine = np.interp(
            np.arange(BETWEEN * (len(places) - 1) + 1) / BETWEEN, np.arange(len(places)), places
        )
        inside = curve(fine[None])
        price += TURN * max(_turns(inside) - shown, 0)
        price += POLE * _spikes(inside, seen, 2 * spread)
    span = places[-1] - places[0]
    below, above = places[0] - BEYOND[::-1] * span, places[-1] + BEYOND * span
    if places[0] >= 0:  # what is never negative stays so
        below = below[below > 0] if places[0] > 0 else below[-1:]
    outside = [curve(side[None]) for side in (below, above)]
    price += TURN * max(sum(map(_turns, outside)) - shown, 0)
    near = (outside[0][-6:], outside[1][:6])
    return price + POLE / 2 * sum(_spikes(side, seen, 10 * spread) for side in near)


def _turns(values: np.ndarray) -> int:
    """How often a sampled curve changes between rising and falling; rounding does not count."""
    moves = np.diff(values[np.isfinite(values)])
    moves = moves[np.abs(moves) > 1e-9 * max(float(np.max(np.abs(moves), initial=0.0)), 1e-300)]
    return int(np.count_nonzero((moves[1:] < 0) != (moves[:-1] < 0))) if len(moves) else 0


def _spikes(values: np.ndarray, seen: np.ndarray, margin: float) -> bool:
    """Whether a curve is undefined somewhere, or leaves the range of `seen` by a margin."""
    low, high = float(np.min(seen)) - margin, float(np.max(seen)) + margin
    return not bool(np.all((values >= low) & (values <= high)))
