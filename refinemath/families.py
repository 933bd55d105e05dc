"""The families of curves that people fit to one variable: their form, how common it is, and
starting values from the data.  (Chapter 8)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from refinemath.expression import Formula, fold, split_terms
from refinemath.spectrum import main_frequencies, whole_cycle
from refinemath.text import parse

Starts = Iterable[tuple[float, ...]]
MOST_EXPONENT = 8.0
FAR = 3.0  # spans between 0 and the nearest point from which on x is counted from a reference


def reference(x: np.ndarray) -> float:
    """0, or a round number at the beginning of x (points,) where 0 is far away: 1960 for 1963 to
    2024.
    """
    low, span = float(np.min(x)), float(np.ptp(x))
    if np.min(np.abs(x)) <= FAR * span or low * np.max(x) <= 0:
        return 0.0
    step = 10.0 ** math.floor(math.log10(span))
    return float(f"{math.floor(low / step) * step:.15g}")


class Curve(NamedTuple):
    """What starting values are made from: points sorted by x, and a few of their traits."""

    x: np.ndarray  # (points,)
    y: np.ndarray  # (points,)

    @property
    def span(self) -> float:
        """The length of the range of x."""
        return float(self.x[-1] - self.x[0])

    @property
    def reference(self) -> float:
        """From where x is counted."""
        return reference(self.x)

    def places(self) -> list[float]:
        """Where something happens: quartiles of x, and where y is highest, lowest and half way."""
        half = np.argmin(np.abs(self.y - (np.max(self.y) + np.min(self.y)) / 2))
        seen = (int(np.argmax(self.y)), int(np.argmin(self.y)), int(half))
        ends = [self.x[0] - 0.3 * self.span, self.x[-1] + 0.3 * self.span]
        return [*(float(self.x[i]) for i in seen), *np.quantile(self.x, (0.25, 0.5, 0.75)), *ends]

    def rates(self, *shares: float) -> list[float]:
        """Rates of both signs that change something by e over these shares of the range."""
        return [sign / (share * self.span) for share in shares for sign in (1, -1)]


def _product(*axes: Callable[[Curve], Sequence[float]] | Sequence[float]) -> Callable:
    """Starting values from all combinations of the axes, some of them taken from the curve."""

    def starts(curve: Curve) -> Starts:
        return itertools.product(*(a(curve) if callable(a) else a for a in axes))

    return starts


def _widths(curve: Curve) -> list[float]:
    return [share * curve.span for share in (0.02, 0.06, 0.15, 0.4, 1.0)]


def _rates(curve: Curve) -> list[float]:
    return curve.rates(0.04, 0.1, 0.25, 0.6, 2.0)


def _scales(curve: Curve) -> list[float]:
    """Values of x > 0 at which a saturation may be half complete."""
    top = float(np.max(np.abs(curve.x)))
    return [share * top for share in (0.02, 0.1, 0.3, 1.0, 3.0)]


def _outside(curve: Curve) -> list[float]:
    """Places beyond both ends, where a pole may stand."""
    away = [share * curve.span for share in (0.02, 0.1, 0.4, 1.5, 5.0)]
    return [*(curve.x[0] - d for d in away), *(curve.x[-1] + d for d in away)]


def _inverse_rates(curve: Curve) -> list[float]:
    """Factors of 1/x."""
    inverse = 1.0 / np.where(curve.x == 0, np.inf, curve.x)
    return [sign * r / float(np.ptp(inverse)) for r in (0.3, 1.5, 5.0, 15.0) for sign in (1, -1)]


def _antoine(curve: Curve) -> Starts:
    for c in _outside(curve)[:5]:
        width = float(np.ptp(1.0 / (curve.x - c)))
        yield from ((r / width, c) for r in (-1.5, -5.0, -15.0, 1.5, 5.0))


def _phases(curve: Curve, weight: np.ndarray) -> list[tuple[float, float]]:
    """Angular frequencies and phases of the waves that explain most of y = weight wave + b."""
    found = []
    for omega in main_frequencies(curve.x, curve.y, weight):
        waves = [weight * np.sin(omega * curve.x), weight * np.cos(omega * curve.x)]
        design = np.stack([*waves, np.ones_like(curve.x)], axis=1)
        a, b, _ = np.linalg.lstsq(design, curve.y, rcond=None)[0]
        found.append((omega, math.atan2(b, a) % (2 * math.pi)))
    return found


def _waves(curve: Curve) -> Starts:
    return _phases(curve, np.ones_like(curve.x))


def _one_cycle(curve: Curve) -> Starts:
    omega = whole_cycle(curve.x)
    return () if math.isnan(omega) else ((omega, 0.5), (omega, 2.0))


def _growing_waves(curve: Curve) -> Starts:
    return _phases(curve, curve.x)


def _damped_waves(curve: Curve) -> Starts:
    for rate in (0.7 / curve.span, 2.0 / curve.span, 6.0 / curve.span):
        decay = np.exp(-rate * (curve.x - curve.reference))
        yield from ((-rate, omega, phase) for omega, phase in _phases(curve, decay))


def _two_rates(curve: Curve) -> Starts:
    return itertools.combinations(curve.rates(0.05, 0.2, 0.7), 2)


class Family(NamedTuple):
    """One row: `form` holds the terms, with {} for each number that is fitted and X for x counted
    from the reference; numbers that stand there are part of the form.

    `share`: per mille of the tables of one variable in textbooks and laboratories that are fitted
    by it.  `offset`: whether a constant may be added.  `needs`: what must hold of x.  `kept`: how
    many of the first numbers stay as they start.
    """

    name: str
    form: str
    share: float
    starts: Callable[[Curve], Starts]
    offset: bool = True
    needs: Callable[[np.ndarray], bool] = lambda x: True
    kept: int = 0


def _spans_ratio(x: np.ndarray) -> bool:
    """Whether x is positive and far enough from a constant factor for a power to show."""
    return bool(np.all(x > 0) and np.max(x) > 1.5 * np.min(x))


def _temperature(x: np.ndarray) -> bool:
    """Whether 1/x differs from a line, as it does for a few kelvins near 300."""
    return bool(np.all(x > 0) and np.max(x) > 1.05 * np.min(x))


def _not_negative(x: np.ndarray) -> bool:
    """Whether x starts at 0, or as near to it as it takes for its origin to matter."""
    return bool(np.all(x >= 0) and np.max(x) > 1.5 * np.min(x))


def _near_origin(x: np.ndarray) -> bool:
    return bool(np.min(np.abs(x)) <= FAR * np.ptp(x))


_NONE = _product()  # one start without numbers
POWERS = (-3.0, -2.0, -1.0, -0.5, 0.3, 0.6, 1.5, 2.5, 4.0)
EXPONENTS = (0.6, 1.0, 1.6, 3.0, 6.0)
LOGISTIC = "inv(1 + exp(-({}*(x - {}))))"
GOMPERTZ = "exp(-exp({}*(x - {})))"
WEIBULL = "exp(-(x/{})**{})"
HILL = "inv(1 + ({}/x)**{})"
# The shares are our judgement, from what introductory books of physics, chemistry, biology and
# statistics fit to measured curves; lines, exponentials, powers and waves make up half.  All other
# formulas share what is left, a fifth.
FAMILIES = (
    Family("line", "X", 140, _NONE),
    Family("parabola", "X**2 ; X", 45, _NONE),
    Family("square", "x**2", 20, _NONE, needs=_near_origin),
    Family("cubic", "X**3 ; X**2 ; X", 15, _NONE),
    Family("cube", "x**3", 5, _NONE, needs=_near_origin),
    Family("quartic", "X**4 ; X**3 ; X**2 ; X", 4, _NONE),
    Family("inverse", "inv(x)", 20, _NONE, needs=_spans_ratio),
    Family("inverse square", "inv(x**2)", 10, _NONE, needs=_spans_ratio),
    Family("square root", "sqrt(x)", 15, _NONE, needs=_not_negative),
    Family("logarithm", "log(x)", 25, _NONE, needs=_spans_ratio),
    Family("shifted logarithm", "log(x - {})", 4, lambda c: ((v,) for v in _outside(c)[:5])),
    Family("power law", "x**{}", 55, _product(POWERS), needs=_spans_ratio),
    Family("exponential", "exp({}*X)", 80, _product(_rates)),
    Family("saturation", "1 - exp({}*X)", 30, _product(_rates), offset=False),
    Family("exponential and line", "exp({}*X) ; X", 5, _product(_rates)),
    Family("double exponential", "exp({}*X) ; exp({}*X)", 12, _two_rates),
    Family("difference of exponentials", "exp({}*X) - exp({}*X)", 6, _two_rates, offset=False),
    Family("logistic", LOGISTIC, 45, _product(_rates, Curve.places), offset=False),
    Family("logistic with a floor", LOGISTIC, 25, _product(_rates, Curve.places)),
    Family("hyperbolic tangent", "tanh({}*x)", 5, _product(_rates), needs=_near_origin),
    Family("Gompertz", GOMPERTZ, 5, _product(_rates, Curve.places), offset=False),
    Family("Gompertz with a floor", GOMPERTZ, 2, _product(_rates, Curve.places)),
    Family("Michaelis-Menten", "x/(x + {})", 40, _product(_scales), needs=_not_negative),
    Family("Hill", HILL, 30, _product(_scales, EXPONENTS), offset=False, needs=_not_negative),
    Family("Hill with a floor", HILL, 15, _product(_scales, EXPONENTS), needs=_not_negative),
    Family("shifted inverse", "inv(x - {})", 15, lambda c: ((v,) for v in _outside(c))),
    Family("Gaussian", "exp(-((x - {})/{})**2)", 40, _product(Curve.places, _widths)),
    Family("Gaussian on a line", "exp(-((x - {})/{})**2) ; X", 8, _product(Curve.places, _widths)),
    Family("Lorentzian", "inv(1 + ((x - {})/{})**2)", 15, _product(Curve.places, _widths)),
    Family("sinusoid", "sin({}*x + {})", 60, _waves),
    Family("one cycle", "sin({}*x + {})", 60, _one_cycle, kept=1),
    Family("sinusoid on a line", "sin({}*x + {}) ; X", 3, _waves),
    Family("growing wave", "x*sin({}*x + {})", 3, _growing_waves, needs=_near_origin),
    Family("damped wave", "exp({}*X)*sin({}*x + {})", 20, _damped_waves),
    Family("Arrhenius", "exp({}/x)", 20, _product(_inverse_rates), needs=_temperature),
    Family("Antoine", "exp({}/(x - {}))", 8, _antoine),
    Family("Weibull", WEIBULL, 4, _product(_scales, EXPONENTS), False, _not_negative),
    Family(
        "Weibull's distribution",
        f"1 - {WEIBULL}",
        4,
        _product(_scales, EXPONENTS),
        False,
        _not_negative,
    ),
    Family("Ricker", "x*exp({}*x)", 6, _product(_rates), needs=_not_negative),
    Family("gamma", "x**{}*exp({}*x)", 4, _product(EXPONENTS, _rates), needs=_not_negative),
)


def write(family: Family, numbers: Sequence[float], reference: float) -> list[Formula]:
    """The terms of a family with these numbers."""
    text = family.form.replace("X", f"(x - {reference!r})" if reference else "x")
    written = text.format(*(f"({v!r})" for v in map(float, numbers)))
    return [parse(term) for term in written.split(" ; ")]


def fixed_numbers(family: Family, reference: float) -> frozenset[int]:
    """Which numbers of `write` are not to be fitted, counted from the left."""
    marks = [1e3 + i + 0.5 for i in range(family.form.count("{}"))]
    numbers = [v for t in write(family, marks, reference) for v in t.constants()]
    return frozenset(i for i, v in enumerate(numbers) if abs(v) not in marks[family.kept :])


# ---------------------------------------------------------------- how common a form is


def shape(skeleton: Sequence[str | float]) -> str:
    """A term without its factors and numbers: `exp(x)` for 2 exp(-x/3), `exp(x + c)` for exp((x -
    3)/2).  Sums and products in alphabetical order.
    """

    def node(part: str | float, *operands: str) -> str:
        if part == "neg":
            return operands[0]
        if part in ("mul", "div") and operands[1] == "c":
            return operands[0]
        if part == "mul" and operands[0] == "c":
            return operands[1]
        if part == "sub":
            part = "add"
        if part == "div" and operands[0] == "c":
            return f"inv({operands[1]})"
        if part in ("add", "mul"):
            return f"{part}({','.join(sorted(operands))})"
        return f"{part}({','.join(operands)})" if operands else ("c" if part == "c" else str(part))

    return str(fold(tuple(skeleton), node))


OTHER_WORDS = {  # the same function as others write it
    "logistic": ("1/(1 + exp(x))", "tanh(x - 2)", "1/(exp(x) + 3)"),
    "exponential": ("exp(x - 2)",),
    "Hill": ("x**3.3/(x**3.3 + 2)", "1/(x**3.3 + 2)", "1/(1 + x**3.3)"),
    "Michaelis-Menten": ("1/(1 + 2/x)",),
    "Lorentzian": ("1/((x - 2)**2 + 3)",),
    "sinusoid": ("sin(x)", "cos(x)", "cos(x - 2)", "sin(x) + cos(x)"),
    "Gompertz": ("exp(exp(x))",),
    "Gaussian": ("exp(-x**2)",),
    "growing wave": ("x*sin(x)", "x*cos(x)"),
    "parabola": ("(x - 2)**2",),
    "Antoine": ("exp(2/(x - 3))",),
}


def _shapes(terms: Iterable[Formula]) -> tuple[str, ...]:
    return tuple(sorted(shape(t.skeleton()) for t in terms))


@functools.cache
def _familiar() -> dict[tuple[str, ...], float]:
    """Nats of each familiar form by the shapes of its terms."""
    table: dict[tuple[str, ...], float] = {}
    for family in FAMILIES:
        marks = [1.5 + i for i in range(family.form.count("{}"))]
        own = (write(family, marks, reference) for reference in (0.0, 7.5))
        others = (split_terms(parse(text)) for text in OTHER_WORDS.get(family.name, ()))
        for terms in (*own, *others):
            nats = -math.log(family.share / 1000)
            name = _shapes(terms)
            table[name] = min(nats, table.get(name, math.inf))
    return table


@functools.lru_cache(maxsize=65_536)
def familiar_code_length(skeleton: tuple[tuple[str, ...], ...]) -> float:
    """Nats to name the family whose terms these are, infinite where there is none; its
    coefficients, and whether it has an offset, included.
    """
    return _familiar().get(tuple(sorted(map(shape, skeleton))), math.inf)


def usual_exponents(terms: Iterable[Formula]) -> bool:
    """Whether no number in an exponent is larger than people fit, `MOST_EXPONENT`."""
    found = [0.0]

    def node(part: str | float, *operands: str | float) -> str | float:
        if part == "pow" and not isinstance(operands[1], str):
            found.append(abs(operands[1]))
        return part

    for term in terms:
        fold(term.parts, node)
    return max(found) <= MOST_EXPONENT
