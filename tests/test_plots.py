"""The pictures: the right axes and lines, no warning on NaN rows, nothing broken by constant
data.
"""

import re
from dataclasses import replace

import numpy as np
import pictures
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from refinemath import plots
from refinemath.answer.choose import FrontEntry
from refinemath.answer.symbolic import latex_of
from refinemath.compiled import SearchRecord
from refinemath.loop import Trace
from refinemath.pool import Pool
from refinemath.result import Result
from refinemath.text import parse

STEPS, TAKEN, THOUGHTS, SLOTS = 12, 9, 5, 4


def fake(
    formula: str = "sin(x)/(1 + x**2)",
    *,
    taken: int = TAKEN,
    steps: int = STEPS,
    variables: int = 1,
) -> Result:
    """A result as `solve` makes it, with thoughts that contract to one place and halt one after the
    other.
    """
    rng = np.random.default_rng(0)
    shrink = 0.5 ** np.arange(steps)
    latent = 1.0 + shrink[:, None, None] * rng.normal(size=(1, THOUGHTS, 8))
    velocity = 0.3 * np.repeat(shrink[:, None], THOUGHTS, axis=1)
    velocity[6:, 0] = 0.0  # a thought that has halted
    gram = np.repeat(np.eye(SLOTS)[None], steps, axis=0)
    fvu = np.where(np.arange(steps) < 4, 1e-3, 1e-14)
    for array in (latent, velocity, gram, fvu):
        array[taken:] = np.nan
    trace = Trace(velocity=velocity, fvu=fvu, gram=gram, latent=latent)
    pool = Pool(*(np.zeros(1) for _ in Pool._fields))
    outcome = SearchRecord(
        pool=pool,
        latents=np.zeros((THOUGHTS, SLOTS, 8)),
        trace=trace,
        steps=taken,
        found_at=2,
        converged=False,
        searched=4,
    )
    x = np.stack([np.linspace(-2, 2, 20)] * variables, axis=1)
    law = parse(formula)
    return Result(
        latex=latex_of(law),
        iterations=taken,
        formula=law,
        fvu=1e-12,
        converged=False,
        exact=False,
        found=True,
        candidates=(FrontEntry(7, 1e-12, formula),),
        velocity=velocity[:taken],
        outcome=outcome,
        x=x,
        y=law.evaluate(x.T),
        names=("x",) if variables == 1 else ("x1", "x2"),
    )


def constant() -> Result:
    law = parse("2.5")
    x = np.linspace(0, 1, 6)[:, None]
    return Result(
        latex="2.5",
        iterations=0,
        formula=law,
        fvu=0.0,
        converged=True,
        exact=True,
        found=True,
        candidates=(),
        velocity=np.zeros((0, 1)),
        outcome=None,
        x=x,
        y=np.full(6, 2.5),
    )


def draw(figure: Figure) -> None:
    """Lay the figure out in full, so that a title that Matplotlib cannot draw, or a warning,
    shows.
    """
    figure.draw_without_rendering()


def test_the_fit_shows_data_curve_and_residuals() -> None:
    figure = plots.plot_fit(fake())
    top, bottom = figure.axes
    assert len(top.lines) == 1 and len(top.collections) == 2  # band and points
    assert len(top.collections[-1].get_offsets()) == len(bottom.collections[0].get_offsets()) == 20
    assert "sin" in top.get_title()
    assert top.get_ylabel() and bottom.get_xlabel() and bottom.get_ylabel()
    draw(figure)


def test_the_fit_of_two_variables_has_a_row_for_each() -> None:
    result = fake("x1*x2 + x2", variables=2)
    figure = plots.plot_fit(replace(result, units={"x2": "m/s", "y": "J"}))
    top, *rows = figure.axes
    assert top.get_xlabel() == "predicted y (J)" and top.get_ylabel() == "observed y (J)"
    assert [a.get_xlabel() for a in rows] == ["x1", "x1", "x2 (m/s)", "x2 (m/s)"]
    assert [a.get_ylabel() for a in rows] == ["y (J)", "residual (J)"] * 2
    draw(figure)


def test_a_partial_curve_goes_through_data_without_noise() -> None:
    """What is drawn are the data with the other variables moved to their medians."""
    rng = np.random.default_rng(3)
    x = rng.uniform(1, 2, (40, 2))
    result = replace(fake("x1*x2 + x2", variables=2), x=x, y=x[:, 0] * x[:, 1] + x[:, 1])
    axes = plots.plot_fit(result).axes[1]
    at, y = np.asarray(axes.collections[0].get_offsets()).T
    middle = float(np.median(x[:, 1]))
    np.testing.assert_allclose(y, at * middle + middle)
    curve = np.stack(axes.lines[0].get_data())
    np.testing.assert_allclose(np.interp(at, *curve), y, rtol=1e-6)


def test_a_variable_that_is_not_used_comes_last_and_says_so() -> None:
    figure = plots.plot_fit(fake("2*x2", variables=2))
    assert [a.get_xlabel() for a in figure.axes[1:]] == ["x2", "x2", "x1", "x1"]
    assert figure.axes[3].get_title() == "not in the formula"
    draw(figure)


@pytest.mark.parametrize(
    "name", ["a" * 80, "price [$]", "T [K]", "100 %", "größe", "a_b^c$", "x y"]
)
def test_any_name_can_be_drawn_and_fits(name: str) -> None:
    result = replace(fake("x1*x2 + x2", variables=2), names=(name, "v"), target=name + "2")
    result = replace(result, latex=latex_of(result.formula, 6, result.names))
    figure = plots.plot_fit(result)
    draw(figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1 and box.x1 <= figure.bbox.width + 1, text.get_text()
            assert box.y0 >= -1 and box.y1 <= figure.bbox.height + 1, text.get_text()


def test_of_many_points_some_are_drawn() -> None:
    x = np.random.default_rng(0).normal(size=(50_000, 2))
    figure = plots.plot_fit(replace(fake("x1*x2", variables=2), x=x, y=x[:, 0] * x[:, 1]))
    assert {len(a.collections[0].get_offsets()) for a in figure.axes} == {plots.MOST_DRAWN}


def test_velocity_has_a_line_a_thought_a_median_and_the_threshold() -> None:
    figure = plots.plot_velocity(fake(), 1e-4)
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    assert len(drawn) == THOUGHTS + 2 and axes.get_yscale() == "log"
    assert any(np.allclose(line.get_ydata(), 1e-4) for line in drawn)
    assert {text.get_text() for text in axes.texts} == {"search", "settle"}
    draw(figure)


def test_the_phases_are_those_of_the_loop() -> None:
    spans = plots.plot_velocity(fake()).axes[0].patches
    assert [round(span.get_width()) for span in spans[:1]] == [4]


def test_the_spectrum_has_a_line_a_slot() -> None:
    figure = pictures.plot_spectrum(fake())
    (axes,) = figure.axes
    assert len([line for line in axes.lines if len(line.get_xdata()) == TAKEN]) == SLOTS
    np.testing.assert_allclose(pictures.spectrum(fake()), 1.0)
    draw(figure)


def test_singular_values_are_those_of_the_thought() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(STEPS, SLOTS, 30))
    result = fake(taken=STEPS)
    assert result.outcome is not None
    outcome = result.outcome._replace(
        trace=result.outcome.trace._replace(gram=z @ z.swapaxes(1, 2))
    )
    found = pictures.spectrum(Result(**{**vars(result), "outcome": outcome}))
    np.testing.assert_allclose(found, np.linalg.svd(z, compute_uv=False), rtol=1e-8)


def test_the_cloud_contracts_and_no_nan_enters() -> None:
    result = fake()
    size, at = pictures.spread(result), pictures.plane(result)
    assert size.shape == (TAKEN,) and np.all(np.diff(size) < 0)
    assert at.shape == (TAKEN, THOUGHTS, 2) and np.isfinite(at).all()
    np.testing.assert_allclose(at[-1].mean(axis=0), 0.0, atol=1e-12)


def test_size_is_zero_for_equal_thoughts_and_does_not_depend_on_scale() -> None:
    result = fake()
    assert result.outcome is not None
    trace = result.outcome.trace

    def with_latent(latent: np.ndarray) -> Result:
        assert result.outcome is not None
        return Result(
            **{
                **vars(result),
                "outcome": result.outcome._replace(trace=trace._replace(latent=latent)),
            }
        )

    same = np.repeat(np.asarray(trace.latent)[:, :1], THOUGHTS, axis=1)
    np.testing.assert_allclose(pictures.spread(with_latent(same)), 0.0, atol=1e-12)
    np.testing.assert_allclose(
        pictures.spread(with_latent(7 * np.asarray(trace.latent))), pictures.spread(result)
    )


@pytest.mark.parametrize("steps", [None, (1, 3, 9), (9,)])
def test_the_cloud_has_an_axis_a_step(steps: tuple[int, ...] | None) -> None:
    figure = pictures.plot_cloud(fake(), steps)
    assert len(figure.axes) == (4 if steps is None else len(steps))
    assert all(len(axes.collections[0].get_offsets()) == THOUGHTS for axes in figure.axes)
    draw(figure)


@pytest.mark.parametrize("steps", [(0,), (1, 10), ()])
def test_a_step_that_was_not_taken_is_an_error(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="between 1 and 9"):
        pictures.plot_cloud(fake(), steps)


@pytest.mark.parametrize(
    "plot",
    [
        plots.plot_fit,
        plots.plot_velocity,
        pictures.plot_spectrum,
        pictures.plot_cloud,
        pictures.plot_hero,
    ],
)
@pytest.mark.parametrize(
    "result", [constant(), fake(taken=1), fake(taken=1, steps=1), fake("log(x)"), fake("1/(x - x)")]
)
def test_every_picture_can_be_drawn(plot, result: Result) -> None:  # type: ignore[no-untyped-def]
    figure = plot(result)
    assert isinstance(figure, Figure) and figure.axes and figure.get_facecolor()[3] == 0.0
    draw(figure)


def test_a_formula_that_is_too_long_becomes_short_text() -> None:
    title = plots.formula_title(fake("+".join(f"sin({k}.123*x)" for k in range(2, 30))))
    assert len(title) <= 90 and "$" not in title


def test_the_animation_has_a_frame_a_step(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    target = tmp_path / "cloud.gif"
    pictures.animate_cloud(fake()).save(target, writer="pillow", dpi=40)
    with Image.open(target) as film:
        assert film.n_frames == TAKEN
    with pytest.raises(ValueError, match="constant"):
        pictures.animate_cloud(constant())


def test_the_html_stands_alone() -> None:
    page = pictures.cloud_html(fake(), name="a-cloud")
    assert (
        'class="interactive" id="a-cloud"' in page
        and 'role="img"' in page
        and 'type="range"' in page
    )
    assert page.count("<polyline") == THOUGHTS and page.count("<circle") == THOUGHTS + 1
    assert not re.search(r"https?://|src=|NaN|{{", page)
    assert f'max="{TAKEN}"' in page and "<script" not in pictures.cloud_html(constant())


def test_the_description_says_what_happened() -> None:
    words = pictures.describe(fake())
    assert (
        "20 points" in words
        and "sin(x)" in words
        and f"{THOUGHTS} thoughts took {TAKEN} steps" in words
        and "not settled" in words
    )
    assert "no step" in pictures.describe(constant())


def test_the_colours_are_different_and_shared() -> None:
    assert len(set(plots.OKABE_ITO.values())) == 8
    assert {plots.CLOUD, plots.POINT, plots.SETTLED} <= set(plots.OKABE_ITO.values())
