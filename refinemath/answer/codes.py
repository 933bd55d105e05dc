"""Code lengths of numbers and of what a fit leaves over.  (Chapter 8)"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from refinemath.expression import TOKEN_CODE_LENGTH

THREADED = 1e-6  # a point with a leverage this near to 1 alone decides a number
ROUNDING = 1e-24  # FVU in float64 under which nothing but rounding is left
TINY = 1e-300  # in place of a denominator that is zero


def left_out_code(
    design: np.ndarray, residual: np.ndarray, off_mean: np.ndarray
) -> tuple[float, float]:
    """The scale of the residuals of points that the fit has not seen, and what they cost in nats;
    infinite where there is no such fit.

    `design` (points, numbers): how the fitted values move with every number; `residual` (points,);
    `off_mean` (points,): how far the points are from the mean of y, all in units of its spread.
    """
    size = np.linalg.norm(design, axis=0)
    try:
        left, singular, _ = np.linalg.svd(design / np.maximum(size, TINY), full_matrices=False)
    except np.linalg.LinAlgError:
        return math.inf, math.inf
    left_out = 1 - np.sum(left[:, singular > 1e-10] ** 2, axis=1)
    predicted = residual / np.maximum(left_out, THREADED)
    unseen = np.where(left_out < THREADED, np.maximum(off_mean, 1.0), predicted)
    return heavy_tailed(unseen)


def heavy_tailed(
    residual: np.ndarray, freedom: float = 4.0, rounds: int = 20
) -> tuple[float, float]:
    """The scale s of Student's t that suits residuals (in units of the spread of y) best, and -log
    likelihood without its constants.

    With four degrees of freedom one reading that is far off does not decide between two formulas,
    as it would under a normal distribution (Lange, Little & Taylor 1989).  By expectation and
    maximisation: a residual weighs (f + 1) / (f + r^2 / s^2).  Rounding is the least scale.
    """
    square = residual**2 + ROUNDING
    scale = float(np.median(square))
    for _ in range(rounds):
        scale = float(np.mean((freedom + 1) * square / (freedom + square / scale)))
    tails = float(np.sum(np.log1p(square / (freedom * scale))))
    return math.sqrt(scale), 0.5 * len(square) * math.log(scale) + 0.5 * (freedom + 1) * tails


def number_code_lengths(numbers: np.ndarray, effect: np.ndarray, scale: float) -> np.ndarray:
    """What it costs to state each number, in nats; `effect`: how much it moves the curve in all, in
    units of the spread of y, and `scale` that of the residuals.

    A fraction p/q costs log(2 (1 + |p|) q), after Udrescu et al. (2020), with pi as a factor a
    token more.  Any number v can instead be given to the precision that the points warrant: steps
    of sqrt(12 / I), where I is its Fisher information.  That costs log(2 |v| sqrt(I / 12)) + 1/2
    (Wallace & Freeman 1987) and log(1 + |log |v||) for its order of magnitude.  The cheaper of the
    two counts.  Chapter 8.
    """
    # how many steps of its precision each number is away from 0
    steps = np.maximum(effect / (math.sqrt(12.0) * scale), 1.0)
    rounded = 0.5 + np.log(2 * steps) + np.log1p(np.abs(np.log(np.abs(numbers))))
    return np.minimum(rounded, [fraction_code_length(v) for v in numbers.tolist()])


def fraction_code_length(v: float) -> float:
    """Nats to state v as p/q, log(2 (1 + |p|) q), or as that times pi or log 2, a token or two
    more; infinite where v is none with a q of at most 1000, or 12 beside pi and 100 beside log 2.
    """
    least, token = math.inf, float(TOKEN_CODE_LENGTH[1])
    units = ((1.0, 1000, 0.0), (math.pi, 12, token), (math.log(2), 100, 2 * token))
    for unit, most, extra in units if abs(v) < 1e300 else ():
        fraction = Fraction(v / unit).limit_denominator(most)
        if fraction and abs(float(fraction) * unit - v) <= 1e-9 * abs(v):
            whole = 2 * (1 + abs(fraction.numerator)) * fraction.denominator
            least = min(least, math.log(whole) + extra)
    return least
