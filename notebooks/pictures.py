"""Pictures for the book: the cloud of thoughts that becomes a point, and the spectrum of a latent.

Every function takes a `Result` of `RefineMath.solve`; the drawing style is that of
`refinemath.plots`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from refinemath import Result
from refinemath.plots import (
    CLOUD,
    GREY,
    NO_STEPS,
    POINT,
    add_legend,
    draw_fit,
    formula_title,
    median_of_rows,
    moving,
    new_figure,
    style_axes,
    write_words,
)


def latents(result: Result) -> np.ndarray:
    """The sketches of all thoughts at the steps taken, (steps, thoughts, sketch); no steps for
    constant data.
    """
    if result.outcome is None:
        return np.zeros((0, 1, 8))
    sketch = np.asarray(result.outcome.trace.latent, np.float64)
    return sketch[np.isfinite(sketch).all(axis=(1, 2))]


def spread(result: Result) -> np.ndarray:
    """The size of the cloud at every step: the distance of the thoughts from their mean, relative
    to their own size (both root mean square).

    0 when all thoughts are the same, 1 when they have nothing in common.  Chapter 9.
    """
    z = latents(result)
    apart = np.mean(np.sum((z - z.mean(axis=1, keepdims=True)) ** 2, axis=-1), axis=-1)
    return np.sqrt(apart / np.maximum(np.mean(np.sum(z**2, axis=-1), axis=-1), 1e-300))


def plane(result: Result) -> np.ndarray:
    """The thoughts in the plane of their two main directions, (steps, thoughts, 2), around the mean
    of the last step.  Chapter 9.

    The directions come from a principal component analysis of all steps together, so that one frame
    serves every picture.
    """
    z = latents(result)
    if not len(z):
        return np.zeros((0, z.shape[1], 2))
    centred = z - z[-1].mean(axis=0)
    _, _, directions = np.linalg.svd(
        centred.reshape(-1, z.shape[-1]) - centred.mean(axis=(0, 1)), full_matrices=False
    )
    return centred @ directions[:2].T


def spectrum(result: Result) -> np.ndarray:
    """The singular values of the first thought at the steps taken, largest first, (steps, slots).
    Chapter 5.
    """
    if result.outcome is None:
        return np.zeros((0, 1))
    gram = np.asarray(result.outcome.trace.gram, np.float64)
    gram = gram[np.isfinite(gram).all(axis=(1, 2))]
    return (
        np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[:, ::-1], 0.0))
        if len(gram)
        else np.zeros((0, gram.shape[1]))
    )


def describe(result: Result) -> str:
    """The pictures in words, for alt text and for readers who cannot see them."""
    points, variables = result.x.shape
    text = [
        f"{points} points in {variables} variable{'s' if variables > 1 else ''}, fitted by y = "
        f"{result.sympy()}."
    ]
    text.append(f"Unexplained share of the variance: {result.fvu:.1e}.")
    middle = median_of_rows(moving(result))
    seen = middle[np.isfinite(middle)]
    if len(seen):
        size = spread(result)
        text.append(f"{result.velocity.shape[1]} thoughts took {result.iterations} steps.")
        text.append(f"Their median relative velocity went from {seen[0]:.1e} to {seen[-1]:.1e}.")
        text.append(f"The cloud of thoughts went from size {size[0]:.2g} to {size[-1]:.2g}.")
        text.append(
            "The thoughts settled."
            if result.converged
            else "The thoughts had not settled when the steps ran out."
        )
    else:
        text.append(
            f"No step is shown: {NO_STEPS}." if result.outcome is None else "No thought moved."
        )
    return " ".join(text)


def plot_spectrum(result: Result) -> Figure:
    """All singular values of the first thought over the steps; 1 everywhere means that its slots
    stay orthonormal.  One axis.
    """
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    values = spectrum(result)
    off = f"largest distance from 1: {np.max(np.abs(values - 1)):.0e}" if len(values) else ""
    style_axes(
        axes,
        x="step t",
        y="singular value of Z (no unit)",
        title=f"Does the thought keep its rank?  {off}".strip(),
    )
    if not len(values):
        write_words(axes, NO_STEPS)
        return figure
    t = np.arange(1, len(values) + 1)
    axes.axhline(1.0, color=POINT, ls="--", lw=1.5, label="orthonormal slots")
    axes.plot(t, values, color=CLOUD, lw=1.0, alpha=0.6)
    axes.plot([], [], color=CLOUD, lw=1.0, label=f"the {values.shape[1]} singular values")
    axes.set_ylim(0.0, 1.15 * max(1.0, float(values.max())))
    axes.set_xlim(0.5, len(values) + 0.5)
    add_legend(axes, loc="lower right")
    return figure


def plot_cloud(result: Result, steps: Sequence[int] | None = None) -> Figure:
    """The K thoughts in the plane at several steps, counted from 1, in one frame: a cloud that
    becomes a point, or does not.

    One axis a step; without `steps`, four of them from the first to the last.  The orange dot is
    the mean of the last step.
    """
    at, size = plane(result), spread(result)
    last = len(at)
    if not last:
        figure = new_figure(6.4, 2.4)
        axes = figure.subplots()
        style_axes(axes)
        write_words(axes, NO_STEPS)
        return figure
    chosen = (
        np.unique(np.round(np.geomspace(1, last, 4)).astype(int)).tolist()
        if steps is None
        else list(steps)
    )
    if not chosen or min(chosen) < 1 or max(chosen) > last:
        raise ValueError(
            f"steps is {chosen}; they must lie between 1 and {last}, the last step taken"
        )
    figure = new_figure(2.3 * len(chosen) + 0.4, 2.8)
    panels = figure.subplots(1, len(chosen), sharex=True, sharey=True, squeeze=False)[0]
    for axes, step in zip(panels, chosen, strict=True):
        axes.scatter(at[step - 1, :, 0], at[step - 1, :, 1], s=18, color=CLOUD, alpha=0.7, lw=0)
        axes.plot(0.0, 0.0, "o", color=POINT, ms=6, mew=0, zorder=3)
        style_axes(axes, x="first direction", title=f"step {step}\nsize {size[step - 1]:.2g}")
    panels[0].set_ylabel("second direction")
    _frame(panels[0], at)
    return figure


def _frame(axes: Axes, at: np.ndarray) -> None:
    """One square window around all places (steps, thoughts, 2)."""
    low, high = at.min(axis=(0, 1)), at.max(axis=(0, 1))
    half = 0.55 * float(np.max(high - low)) or 1.0
    (a, b) = (low + high) / 2
    axes.set_xlim(a - half, a + half)
    axes.set_ylim(b - half, b + half)
    for panel in axes.figure.axes:
        panel.set_box_aspect(1)


def plot_hero(result: Result) -> Figure:
    """One picture of the whole idea, for a front page: the points, the paths of the thoughts, the
    formula.  Three axes; one variable.
    """
    figure = new_figure(11.0, 3.4)
    left, middle, right = figure.subplots(1, 3)
    left.scatter(result.x[:, 0], result.y, s=22, color=CLOUD)
    style_axes(left, x="x", y="y", title="points in")
    at = plane(result)
    style_axes(
        middle,
        x="first direction",
        y="second direction",
        title=f"{at.shape[1]} thoughts, {len(at)} steps",
    )
    if len(at):
        for k in range(at.shape[1]):
            middle.plot(*at[:, k].T, color=CLOUD, lw=0.7, alpha=0.5)
        middle.scatter(at[0, :, 0], at[0, :, 1], s=12, color=CLOUD)
        middle.scatter(at[-1, :, 0], at[-1, :, 1], s=22, color=POINT, zorder=3)
    draw_fit(right, result)
    style_axes(right, x="x", y="y", title=formula_title(result))
    return figure


def animate_cloud(result: Result, *, interval: int = 250) -> FuncAnimation:
    """The cloud of thoughts step by step, `interval` milliseconds each; save it with
    `.save("cloud.gif", writer="pillow")`.
    """
    at, size = plane(result), spread(result)
    if not len(at):
        raise ValueError(f"there is nothing to animate: {NO_STEPS}")
    figure = new_figure(4.2, 4.4)
    axes = figure.subplots()
    style_axes(axes, x="first direction", y="second direction", title="step 1")
    paths = [axes.plot([], [], color=CLOUD, lw=0.6, alpha=0.4)[0] for _ in range(at.shape[1])]
    dots = axes.scatter(at[0, :, 0], at[0, :, 1], s=20, color=CLOUD, lw=0, zorder=2)
    axes.plot(0.0, 0.0, "o", color=POINT, ms=6, mew=0, zorder=3)
    _frame(axes, at)

    def draw(t: int) -> list[Any]:
        dots.set_offsets(at[t])
        for k, path in enumerate(paths):
            path.set_data(at[: t + 1, k, 0], at[: t + 1, k, 1])
        axes.set_title(
            f"step {t + 1} of {len(at)}, size {size[t]:.2g}", color=GREY, fontsize="medium"
        )
        return [dots, *paths]

    return FuncAnimation(figure, draw, frames=len(at), interval=interval)


_PAGE = """<div class="interactive" id="{name}">
<svg viewBox="-110 -110 220 220" style="max-height:24rem" role="img" aria-label="{alt}">
<g fill="none" stroke="var(--rm-cloud, {cloud})" stroke-width="0.5" opacity="0.35">{paths}</g>
<g fill="var(--rm-cloud, {cloud})" opacity="0.85" class="dots">{dots}</g>
<circle cx="{goal[0]:g}" cy="{goal[1]:g}" r="3" fill="var(--rm-point, {point})"/>
</svg>
<p><label>Step
<input type="range" min="1" max="{last}" value="1" aria-label="Step of the search"></label>
<output>{words}</output></p>
</div>
<script>
(() => {{
  const figure = document.getElementById({name_json}), at = {at}, words = {all_words};
  const dots = figure.querySelectorAll(".dots circle");
  figure.querySelector("input").addEventListener("input", (event) => {{
    const t = Number(event.target.value) - 1;
    dots.forEach((dot, k) => {{
      dot.setAttribute("cx", at[t][k][0]);
      dot.setAttribute("cy", at[t][k][1]);
    }});
    figure.querySelector("output").textContent = words[t];
  }});
}})();
</script>"""


def cloud_html(result: Result, *, name: str = "cloud") -> str:
    """The cloud with a slider over the steps, as one piece of HTML: an SVG, a few lines of script,
    nothing from the network.

    Without the script it still shows where every thought starts and the path it takes.  `name`
    becomes the id and must be unique on a page.
    """
    at, size, middle = plane(result), spread(result), median_of_rows(moving(result))
    if not len(at):
        return f'<p id="{escape(name)}">{NO_STEPS}</p>'
    low, high = at.min(axis=(0, 1)), at.max(axis=(0, 1))
    factor = 200.0 / (float(np.max(high - low)) or 1.0)
    places = np.round((at - (low + high) / 2) * factor, 1) * (1.0, -1.0) + 0.0
    goal = np.round(-(low + high) / 2 * factor, 1) * (1.0, -1.0) + 0.0
    speed = ["0" if np.isnan(v) else f"{v:.1e}" for v in middle]
    words = [
        f"step {t + 1} of {len(at)}: size of the cloud {size[t]:.2g}, median velocity {speed[t]}"
        for t in range(len(at))
    ]
    return _PAGE.format(
        name=escape(name),
        name_json=json.dumps(name),
        alt=escape(describe(result)),
        cloud=CLOUD,
        point=POINT,
        goal=goal,
        last=len(at),
        words=escape(words[0]),
        paths="".join(
            f'<polyline points="{" ".join(f"{a:g},{b:g}" for a, b in places[:, k])}"/>'
            for k in range(at.shape[1])
        ),
        dots="".join(f'<circle cx="{a:g}" cy="{b:g}" r="2.2"/>' for a, b in places[0]),
        at=json.dumps(places.tolist()),
        all_words=json.dumps(words),
    )


_SCHEDULE_PAGE = """<div class="interactive" id="ns-map">
<svg viewBox="0 0 355 232" style="max-height:26rem" font-size="10" fill="currentColor" role="img"
 aria-label="The map of singular values under a schedule, with 16 singular values as dots on it.">
<path d="M40 20V190H345M40 60H345" fill="none" stroke="currentColor" stroke-width="0.6"/>{ticks}
<text x="190" y="224" text-anchor="middle">singular value before</text>
<text x="44" y="16">singular value after</text>
<polyline class="line" fill="none" stroke="var(--rm-cloud, {cloud})" stroke-width="1.5"
 points="{line}"/>
<g class="dots" fill="var(--rm-point, {point})">{dots}</g></svg>
<p><label>Polynomial <select aria-label="Polynomial"><option value="cubic">cubic</option>
<option value="muon">Muon</option><option value="polar">Polar Express, then Taylor</option></select>
</label></p>
<p><label>Steps <input type="range" min="0" max="12" value="4" aria-label="Number of steps"></label>
</p>
<p><output>cubic, 4 steps: choose a polynomial and a number of steps</output></p></div>
<script>(() => {{
  const box = document.getElementById("ns-map"), find = (q) => box.querySelector(q);
  const dots = box.querySelectorAll("circle"), S = {schedules}, s0 = {values};
  const fine = Array.from({{length: 601}}, (_, i) => 10 ** (i / 200 - 3));
  const draw = () => {{
    const name = find("select").value, T = Number(find("input").value), list = S[name];
    const map = (s) => {{
      for (let t = 0; t < T; t++) {{
        const [a, b, c] = list[Math.min(t, list.length - 1)];
        s = a * s + b * s ** 3 + c * s ** 5;
      }}
      return s;
    }};
    const at = (s) => [40 + 100 * (Math.log10(s) + 3), 190 - 130 * map(s)];
    const line = fine.map((s) => at(s).map((v) => v.toFixed(1)).join(",")).join(" ");
    find(".line").setAttribute("points", line);
    s0.forEach((s, i) => {{
      const [u, v] = at(s);
      dots[i].setAttribute("cx", u);
      dots[i].setAttribute("cy", v);
    }});
    const out = s0.map(map), word = find("select").selectedOptions[0].text;
    find("output").textContent = `${{word}}, ${{T}} steps: singular values from ` +
      `${{Math.min(...out).toFixed(4)}} to ${{Math.max(...out).toFixed(4)}}`;
  }};
  box.addEventListener("input", draw);
  draw();
}})();</script>"""


def schedule_html(schedules: Mapping[str, Sequence[Sequence[float]]], values: np.ndarray) -> str:
    """The map of singular values with a slider over the steps, as one piece of HTML: an SVG and a
    few lines of script, nothing from the network.

    Without the script it shows four steps of the schedule "cubic".  Chapter 5.
    """

    def drawn(s: np.ndarray) -> np.ndarray:
        out = s
        for a, b, c in schedules["cubic"][:4]:
            out = a * out + b * out**3 + c * out**5
        return np.round(np.column_stack([40 + 100 * (np.log10(s) + 3), 190 - 130 * out]), 1)

    across = "".join(
        f'<text x="{40 + 100 * i}" y="206" text-anchor="middle">{10 ** (i - 3):g}</text>'
        for i in range(4)
    )
    up = "".join(
        f'<text x="34" y="{194 - 130 * p:g}" text-anchor="end">{p:g}</text>' for p in (0, 0.5, 1)
    )
    return _SCHEDULE_PAGE.format(
        ticks=across + up,
        cloud=CLOUD,
        point=POINT,
        line=" ".join(f"{a:g},{b:g}" for a, b in drawn(np.geomspace(1e-3, 1, 240))),
        dots="".join(f'<circle cx="{a:g}" cy="{b:g}" r="3"/>' for a, b in drawn(values)),
        schedules=json.dumps({name: list(steps) for name, steps in schedules.items()}),
        values=json.dumps(np.round(values, 6).tolist()),
    )
