"""Rules by which a loop may stop, replayed on curves, and how well a number foretells."""

from __future__ import annotations

import numpy as np
from scipy.stats import mannwhitneyu, spearmanr

SOLVED = 1e-9  # FVU in float32 of the best formula so far that counts as solved in the replay
KEPT = 0.95  # share of the solved problems that a rule must keep


def auc(score: np.ndarray, good: np.ndarray) -> float:
    """Chance that a good case scores above a bad one, ties half; NaN without both."""
    a, b = score[np.asarray(good, bool)], score[~np.asarray(good, bool)]
    return float(mannwhitneyu(a, b).statistic / len(a) / len(b)) if len(a) and len(b) else np.nan


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, NaN where one side is constant."""
    return float(spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan


def stops(curve: np.ndarray, threshold: float, hits: int) -> np.ndarray:
    """Steps taken by each problem that stops once its curve (problems, steps) lay under the
    threshold `hits` times in a row.
    """
    under = curve < threshold
    row = under.copy()
    for k in range(1, hits):
        row[:, k:] &= under[:, :-k]
        row[:, :k] = False
    return np.where(row.any(1), row.argmax(1) + 1, curve.shape[1])


def cheapest(rule: list[np.ndarray], fvu: np.ndarray) -> dict[str, float]:
    """Mean steps of the cheapest setting of a rule that keeps `KEPT` of what is solved."""
    whole = fvu[:, -1] < SOLVED
    best = {"steps": float(fvu.shape[1]), "solved": float(whole.mean())}
    for taken in rule:
        solved = fvu[np.arange(len(fvu)), taken - 1] < SOLVED
        if solved.sum() >= KEPT * whole.sum() and taken.mean() < best["steps"]:
            best = {"steps": float(taken.mean()), "solved": float(solved.mean())}
    return {**best, "saved": 1 - best["steps"] / fvu.shape[1]}


def rules(velocity: np.ndarray, fvu: np.ndarray) -> dict[str, list[np.ndarray]]:
    """For every stopping rule, the steps each problem would take under each of its settings."""
    levels = np.quantile(velocity, np.linspace(0, 1, 60))
    return {
        "fixed number of steps": [np.full(len(fvu), t) for t in range(1, fvu.shape[1] + 1)],
        "velocity, two hits": [stops(velocity, t, 2) for t in levels],
        "fit": [stops(fvu, t, 1) for t in np.geomspace(1e-13, 1e-2, 45)],
    }
