"""Drawing a result: the fit, its residuals, and how the latents came to rest.  (Chapters 0, 7, 10)

Every function takes a `Result` and returns a Matplotlib `Figure`; nothing touches pyplot's global
state.  The colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart.
Backgrounds are transparent and axes mid-grey, for light and dark pages alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser

from refinemath.front import Front
from refinemath.result import Result

OKABE_ITO = {
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "green": "#009e73",
    "yellow": "#f0e442",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "pink": "#cc79a7",
    "black": "#000000",
}


CLOUD, POINT, SETTLED = OKABE_ITO["blue"], OKABE_ITO["vermilion"], OKABE_ITO["green"]
GREY = "#747474"
NO_STEPS = "the data are constant, so no step was taken"


def moving(result: Result) -> np.ndarray:
    """Relative velocities (steps, thoughts), NaN for a thought that has halted."""
    velocity = np.asarray(result.velocity, np.float64)
    return np.where(velocity > 0, velocity, np.nan)


def median_of_rows(values: np.ndarray) -> np.ndarray:
    """The median of each row without its NaNs; NaN for a row of NaNs."""
    return np.array(
        [np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in values]
    )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with a transparent background; sizes in inches."""
    return Figure(figsize=(width, height), facecolor="none", layout="constrained")


def style_axes(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Transparent, mid-grey, without a box."""
    axes.set_facecolor("none")
    axes.set_xlabel(x, color=GREY)
    axes.set_ylabel(y, color=GREY)
    axes.set_title(title, color=GREY, fontsize="medium")
    axes.tick_params(colors=GREY, which="both")
    for side, spine in axes.spines.items():
        spine.set_color(GREY)
        spine.set_visible(side in ("left", "bottom"))


def add_legend(axes: Axes, **where: Any) -> None:
    """A legend without a box."""
    axes.legend(frameon=False, labelcolor=GREY, fontsize="small", **where)


def write_words(axes: Axes, words: str) -> None:
    """A panel with words instead of data."""
    axes.text(0.5, 0.5, words, ha="center", va="center", color=GREY, transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def formula_title(result: Result, most: int = 160) -> str:
    """The formula as Matplotlib can draw it: its LaTeX, or plain text where that is too long or
    beyond Matplotlib.
    """
    latex = f"$y = {result.latex}$".replace(r"\frac", r"\dfrac")
    try:
        MathTextParser("path").parse(latex)
    except ValueError:
        latex = ""
    if latex and len(latex) <= most:
        return latex
    text = f"y = {result.sympy()}"
    return text if len(text) <= 90 else text[:87] + "..."


def draw_band(axes: Axes, result: Result, grid: np.ndarray) -> None:
    """Where 95 % of new measurements fall, if the form is right; nothing where the fit is exact."""
    if result.exact or result.uncertainty is None:
        return
    band = result.predict(grid, interval=0.95)
    label = "95 % of new measurements"
    axes.fill_between(grid, band.low, band.high, color=POINT, alpha=0.15, lw=0, label=label)


def plot_front(front: Front) -> Figure:
    """FVU over length of the front, on a log scale; each formula beside its point.  One axis."""
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    style_axes(axes, x="length (tokens)", y="fraction of variance unexplained (no unit)")
    axes.set_yscale("log")
    fvu = [max(c.fvu, 1e-32) for c in front]
    axes.plot([c.length for c in front], fvu, "o-", color=CLOUD, lw=1)
    for i, (c, height) in enumerate(zip(front, fvu, strict=True)):
        axes.annotate(f"{i}: {c.formula[:40]}", (c.length, height), color=GREY, fontsize="x-small")
    return figure


def draw_fit(axes: Axes, result: Result) -> None:
    """Data and formula over the one variable."""
    x = result.x[:, 0]
    low, high = float(x.min()), float(x.max())
    grid = np.linspace(low, high, 600)
    axes.plot(grid, result.predict(grid), color=POINT, lw=2, label="formula")
    draw_band(axes, result, grid)
    axes.scatter(x, result.y, s=22, color=CLOUD, zorder=3, label="data")


def plot_fit(result: Result) -> Figure:
    """Data and formula above, residuals below; for several variables, predicted against observed y
    and the residuals beside it.

    Two axes.  A break in the curve means that the formula is undefined there.
    """
    if result.x.shape[1] == 1:
        figure = new_figure(6.4, 4.6)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        draw_fit(top, result)
        style_axes(top, y="y (units of the data)", title=formula_title(result))
        at, name = result.x[:, 0], "x (units of the data)"
    else:
        figure = new_figure(9.0, 3.8)
        top, bottom = figure.subplots(1, 2)
        at, name = result.predict(result.x), "predicted y (units of the data)"
        ends = [float(result.y.min()), float(result.y.max())]
        top.plot(ends, ends, color=POINT, lw=2, label="perfect fit")
        top.scatter(at, result.y, s=22, color=CLOUD, zorder=3, label="data")
        style_axes(top, x=name, y="observed y (units of the data)", title=formula_title(result))
    add_legend(top)
    bottom.axhline(0.0, color=POINT, lw=1)
    bottom.scatter(at, result.y - result.predict(result.x), s=14, color=CLOUD, zorder=3)
    style_axes(bottom, x=name, y="residual (units of y)")
    return figure


def plot_velocity(result: Result, threshold: float = 1e-5) -> Figure:
    """The convergence metric: relative velocity of every thought (thin) and their median (thick)
    over the steps, on a log scale.

    Shaded: where the search ends and settling begins.  One axis.
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    style_axes(
        axes,
        x="step t",
        y="relative velocity of the latent (no unit)",
        title="How fast do the thoughts still move?",
    )
    v = moving(result)
    if not np.isfinite(v).any():
        write_words(axes, NO_STEPS if result.outcome is None else "no thought moved")
        return figure
    t = np.arange(1, len(v) + 1)
    axes.set_yscale("log")
    axes.plot(t, v, color=CLOUD, lw=0.6, alpha=0.35)
    axes.plot([], [], color=CLOUD, lw=0.6, label="each thought")
    axes.plot(t, median_of_rows(v), color=CLOUD, lw=2.5, label="median of those that move")
    axes.axhline(threshold, color=POINT, ls="--", lw=1.5, label=f"threshold {threshold:g}")
    searched = 0 if result.outcome is None else int(result.outcome.searched)
    axes.axvspan(0.5, searched + 0.5, color=OKABE_ITO["orange"], alpha=0.12, lw=0)
    axes.axvspan(searched + 0.5, len(v) + 0.5, color=SETTLED, alpha=0.12, lw=0)
    for left, right, word in (
        (0.5, searched + 0.5, "search"),
        (searched + 0.5, len(v) + 0.5, "settle"),
    ):
        if right - left > 0.08 * len(v):
            axes.text(
                (left + right) / 2,
                0.02,
                word,
                color=GREY,
                ha="center",
                va="bottom",
                fontsize="small",
                transform=axes.get_xaxis_transform(),
            )
    axes.set_xlim(0.5, len(v) + 0.5)
    axes.set_ylim(min(threshold, float(np.nanmin(v))) / 10, 2 * float(np.nanmax(v)))
    add_legend(axes, loc="best")
    return figure
