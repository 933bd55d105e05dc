"""The frequencies of a curve from a periodogram over all its points.  (Chapter 8)"""

from __future__ import annotations

import math

import numpy as np
import scipy.signal

FINE = 4  # frequencies a resolution element
MOST_UNEVEN = 1000  # points of a periodogram where x is not evenly spaced


def main_frequencies(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None, most: int = 3
) -> list[float]:
    """Angular frequencies of the highest peaks of the periodogram of y and of y without its line,
    and some of about one period, which have no peak of their own.  x: (points,), sorted.

    Up to the frequency at which neighbouring points are half a period apart on average.  Evenly
    spaced points go through a fast Fourier transform, others through the periodogram of Lomb (1976)
    and Scargle (1982).  `weight`: the amplitude that the wave has at each point.
    """
    span = float(x[-1] - x[0])
    slow = [2 * math.pi * periods / span for periods in (0.35, 0.6, 0.8, 1.0, 1.3)]
    line = np.polynomial.Polynomial.fit(x, y, 1)(x) if len(x) > 4 else np.mean(y)
    found: list[float] = []
    for residual in (y - np.mean(y), y - line):
        signal = residual if weight is None else residual * weight
        omega, power = _periodogram(x, signal)
        peaks = 1 + np.flatnonzero((power[1:-1] >= power[:-2]) & (power[1:-1] >= power[2:]))
        found += omega[peaks[np.argsort(-power[peaks])[:most]]].tolist()
    return [*dict.fromkeys(found), *slow]


def _periodogram(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angular frequencies and the power at each."""
    gaps, span = np.diff(x), float(x[-1] - x[0])
    if np.ptp(gaps) <= np.mean(gaps):  # each place is known to half a gap
        padded = FINE * len(y)
        power = np.abs(np.fft.rfft(y, padded)) ** 2
        return 2 * math.pi * np.arange(len(power)) / (padded * float(np.mean(gaps))), power
    few = np.linspace(0, len(x) - 1, min(len(x), MOST_UNEVEN)).astype(int)
    count = FINE * len(few) // 2
    omega = 2 * math.pi / span * (np.arange(count) + 1) / FINE * (len(x) / len(few))
    return omega, scipy.signal.lombscargle(x[few], y[few], omega)


def whole_cycle(x: np.ndarray) -> float:
    """The angular frequency of one cycle over evenly spaced points x (points,), the last of which
    is one step before the cycle is complete: 2 pi / 24 for the hours 0 to 23; else NaN.
    """
    gaps = np.diff(np.sort(x))
    if len(x) < 5 or np.ptp(gaps) > 1e-6 * np.mean(gaps):
        return math.nan
    return 2 * math.pi / (len(x) * float(np.mean(gaps)))
