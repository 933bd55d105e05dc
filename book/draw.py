"""Draw the marks of the book: logo, favicon, social card and the sketch of the preface.

The idea of every drawing is the same: a cloud of dots that contracts to one point.
Nothing here is measured; each picture is a sketch.  Run it from anywhere:

    python book/draw.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

STATIC = Path(__file__).parent / "_static"

# Okabe and Ito's colours, safe for colour-blind readers.  Dark pages take the lighter ones.
LIGHT = {
    "paper": "#fdfcf9",
    "ink": "#23272e",
    "muted": "#646a73",
    "cloud": "#0072b2",
    "point": "#d55e00",
}
DARK = {
    "paper": "#15191f",
    "ink": "#e6e4df",
    "muted": "#a3a9b3",
    "cloud": "#56b4e9",
    "point": "#e69f00",
}


def spiral(arms: int = 7, dots: int = 3) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dots on spirals around the origin: places (arms * dots, 2) and radii, both shrinking
    inwards.
    """
    step = np.arange(1, dots + 1)
    distance = 0.13 + 0.25 * step
    turn = 0.42 * step
    angle = turn[None, :] + 2 * np.pi * np.arange(arms)[:, None] / arms
    places = np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=-1)
    return places.reshape(-1, 2), np.tile(0.045 + 0.027 * step, arms)


def mark(colours: dict[str, str]) -> str:
    """The logo as SVG: a spiral of dots, paler outside, around one point."""
    places, radii = spiral()
    farness = np.hypot(*places.T) / np.hypot(*places.T).max()
    circles = [
        f'<circle cx="{50 + 49 * x:.2f}" cy="{50 + 49 * y:.2f}" r="{50 * r:.2f}" opacity="{1.2 - 0.6 * f:.2f}"/>'
        for (x, y), r, f in zip(places, radii, farness, strict=True)
    ]
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" width="100" height="100" role="img">',
            "<title>RefineMath</title>",
            f'<g fill="{colours["cloud"]}">',
            *circles,
            "</g>",
            f'<circle cx="50" cy="50" r="10" fill="{colours["point"]}"/>',
            "</svg>\n",
        ]
    )


def clear(axes: Axes) -> None:
    axes.patch.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def curve(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x * np.sin(x)


def draw_points(axes: Axes, colours: dict[str, str], size: float) -> None:
    rng = np.random.default_rng(3)
    x = np.sort(rng.uniform(0.2, 9.3, 34))
    axes.scatter(
        x, curve(x) + rng.normal(0, 0.35, x.size), s=size, color=colours["cloud"], linewidth=0
    )
    axes.set_xlim(-0.5, 10)
    axes.set_ylim(-8, 10)
    clear(axes)


def draw_thoughts(axes: Axes, colours: dict[str, str], size: float) -> None:
    """Paths that start all over a disc and run into its centre."""
    rng = np.random.default_rng(7)
    angle = np.linspace(0, 2 * np.pi, 26, endpoint=False) + rng.normal(0, 0.08, 26)
    start = rng.uniform(0.72, 1.0, 26)
    step = np.linspace(0, 1, 60)
    for a, r in zip(angle, start, strict=True):
        radius = r * (1 - step) ** 1.6
        turn = a + 1.25 * step
        path = np.stack([radius * np.cos(turn), radius * np.sin(turn)])
        axes.plot(path[0], path[1], color=colours["cloud"], linewidth=0.7, alpha=0.45)
        shown = [0, 12, 24, 36]
        sizes = size * np.array([1.0, 0.75, 0.55, 0.4])
        axes.scatter(path[0, shown], path[1, shown], s=sizes, color=colours["cloud"], linewidth=0)
    axes.scatter([0], [0], s=7 * size, color=colours["point"], linewidth=0, zorder=3)
    axes.set_xlim(-1.08, 1.08)
    axes.set_ylim(-1.08, 1.08)
    axes.set_aspect("equal")
    clear(axes)


def draw_formula(axes: Axes, colours: dict[str, str], fontsize: float) -> None:
    x = np.linspace(0.2, 9.6, 400)
    axes.plot(x, curve(x), color=colours["point"], linewidth=2.2)
    axes.set_xlim(-0.5, 10)
    axes.set_ylim(-8, 10)
    axes.text(
        3.4,
        7.0,
        r"$y = x\,\sin\,x$",
        color=colours["ink"],
        fontsize=fontsize,
        ha="center",
        va="center",
    )
    clear(axes)


def idea(colours: dict[str, str]) -> Figure:
    """The three stages side by side, for the preface."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3))
    draw_points(axes[0], colours, 26)
    draw_thoughts(axes[1], colours, 17)
    draw_formula(axes[2], colours, 21)
    for panel, words in zip(
        axes, ["points go in", "thoughts contract", "a formula comes out"], strict=True
    ):
        panel.set_title(words, color=colours["ink"], fontsize=17, y=-0.14)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.13, wspace=0.06)
    return figure


def card() -> Figure:
    """The picture of 1200 x 630 pixels that a link to the book shows."""
    figure = plt.figure(figsize=(12, 6.3), facecolor=LIGHT["paper"])
    draw_points(figure.add_axes((0.05, 0.09, 0.27, 0.42)), LIGHT, 34)
    draw_thoughts(figure.add_axes((0.36, 0.06, 0.28, 0.48)), LIGHT, 22)
    draw_formula(figure.add_axes((0.68, 0.09, 0.27, 0.42)), LIGHT, 24)
    figure.text(
        0.06, 0.78, "RefineMath", color=LIGHT["ink"], fontsize=62, family="serif", weight="bold"
    )
    figure.text(
        0.062,
        0.655,
        "From a scatter plot to a formula,",
        color=LIGHT["ink"],
        fontsize=28,
        family="serif",
    )
    figure.text(
        0.062,
        0.575,
        "by recursive latent reasoning",
        color=LIGHT["muted"],
        fontsize=28,
        family="serif",
    )
    return figure


def main() -> None:
    plt.rcParams.update(
        {"svg.hashsalt": "refinemath", "mathtext.fontset": "cm", "font.family": "serif"}
    )
    plain = {"Date": None, "Creator": None}
    for name, colours in (("light", LIGHT), ("dark", DARK)):
        (STATIC / f"logo-{name}.svg").write_text(mark(colours))
        figure = idea(colours)
        figure.savefig(STATIC / f"idea-{name}.svg", transparent=True, metadata=plain)
        plt.close(figure)
    (STATIC / "favicon.svg").write_text(mark(LIGHT))
    figure = card()
    figure.savefig(STATIC / "card.png", dpi=100, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
