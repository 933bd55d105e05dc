"""Chapters 8 to 10: what a result says about itself, and every form in which it is taken away."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
import sympy

from refinemath import DataError, Result, load_result, parse
from refinemath.answer.regression import Errors
from refinemath.answer.symbolic import latex_of
from refinemath.export import latex_row
from refinemath.finish import runners_up
from refinemath.front import Candidate, Front, odds_in_words
from refinemath.problem import Origin, Table
from refinemath.report import html_report, text_report, write_report
from refinemath.result import constant_result, judged

RNG = np.random.default_rng(0)
T = np.linspace(0.2, 5, 40)
NAMES = ("t",)


def result_of(
    text: str, x: np.ndarray, y: np.ndarray, names: tuple[str, ...], **more: Any
) -> Result:
    x = x if x.ndim == 2 else x[:, None]
    base = vars(constant_result(Table(x, y, names, "U [V]")))
    law = parse(text)
    result = judged(
        Result(**base | {"formula": law, "latex": latex_of(law, 6, names)} | more), x, y
    )
    own = (names, "U [V]", 6, result.origins)
    front = Front(
        Candidate(length, fvu, formula, parse(formula.replace("t", "x")), math.nan, *own)
        for length, fvu, formula in ((1, 0.3, "2*t"), (4, 0.001, "2*exp(-0.8*t) + 0.6"))
    )
    rivals = [(10.0, law), (11.0, parse("0.6 + 2.02/(1 + x**2)")), (25.0, parse("x + 1"))]
    return replace(result, candidates=front, runners_up=runners_up(rivals, result))


@pytest.fixture
def decay() -> Result:
    y = 2 * np.exp(-0.8 * T) + 0.6 + 0.03 * RNG.normal(size=40)
    return result_of("2*exp(-0.8*x) + 0.6", T, y, NAMES)


# ---------------------------------------------------------------- how sure


def test_a_result_says_how_sure_its_numbers_are(decay: Result) -> None:
    assert str(decay.form) == "a*exp(b*t) + c" and len(decay.intervals) == 3
    for interval, truth in zip(decay.intervals, (2, -0.8, 0.6), strict=True):
        assert interval.low < truth < interval.high and interval.error < 0.1
    band = decay.predict(T, interval=0.95)
    np.testing.assert_array_equal(band.y, decay.predict(T))
    assert np.mean((band.low <= decay.y) & (decay.y <= band.high)) >= 0.85
    narrow = decay.predict(T, interval=0.5)
    assert np.all(narrow.high - narrow.low < band.high - band.low)
    with pytest.raises(ValueError, match="interval is 95"):
        decay.predict(T, interval=95)


def test_a_band_of_relative_errors_grows_with_y() -> None:
    y = np.exp(T) * (1 + 0.05 * RNG.normal(size=40))
    result = result_of("1.0*exp(1.0*x)", T, y, NAMES, errors=Errors(np.abs(y)))
    band = result.predict(T, interval=0.95)
    width = (band.high - band.low) / band.y
    assert width.min() > 0.1 and width.max() < 0.4


def test_what_the_data_do_not_decide_is_said(decay: Result) -> None:
    (close, far) = decay.runners_up
    assert close.odds == pytest.approx(math.e) and far.odds == pytest.approx(math.exp(15))
    assert odds_in_words(close).startswith("the answer is 2.7 times as likely as")
    assert "ruled out" in odds_in_words(far)
    assert "about as likely" in odds_in_words(replace(close, odds=1.1))
    assert decay.warnings == (f"the data do not decide: {odds_in_words(close)}",)
    superfluous = result_of("2*exp(-0.8*x) + 0.6 + 0.001*x", T, decay.y, NAMES)
    assert any("may as well be 0" in w for w in superfluous.warnings)
    few = result_of("2*exp(-0.8*x) + 0.61", T[:3], decay.y[:3], NAMES)
    assert (
        few.uncertainty is None and few.intervals == () and "nothing tests it" in few.warnings[-1]
    )
    assert np.all(np.isinf(few.predict(T, interval=0.9).high))


def test_rows_that_count_less_are_named(decay: Result) -> None:
    y = decay.y.copy()
    y[5] += 4
    robust = result_of("2*exp(-0.8*x) + 0.6", T, y, NAMES, errors=Errors(loss="soft_l1"))
    assert robust.down_weighted == (5,) and "less than a third: 5" in robust.warnings[-1]
    assert robust.found and robust.intervals[0].error < 0.1
    plain = result_of("2*exp(-0.8*x) + 0.6", T, y, NAMES)
    assert plain.down_weighted == () and "these rows lie far off: 5; loss" in plain.warnings[-1]


# ---------------------------------------------------------------- taking it away

FORMS = [
    "2*exp(-0.8*x1) + 0.6",
    "-x1**2 + 3/x2",
    "sqrt(x1)*sin(2*x2)/(x1 + 1.5)",
    "x1**1.7 - log(x2)",
]


@pytest.mark.parametrize("text", FORMS)
def test_every_form_is_the_same_function(text: str, tmp_path: Path) -> None:
    x = RNG.uniform(0.5, 3, (12, 2))
    truth = parse(text).evaluate(x.T)
    result = result_of(text, x, truth, ("T [K]", "lambda"))
    np.testing.assert_array_equal(result.to_numpy()(x[:, 0], x[:, 1]), truth)
    assert result.to_numpy()(x[:6, :1], x[None, :6, 1]).shape == (6, 6)
    np.testing.assert_allclose(result.to_jax()(x[:, 0], x[:, 1]), truth, rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda a: result.to_jax()(a, 1.5))(2.0)
    exact = sympy.diff(parse(text).sympy(), sympy.Symbol("x1", real=True))
    if exact.free_symbols:
        values = {sympy.Symbol("x1", real=True): 2.0, sympy.Symbol("x2", real=True): 1.5}
        assert float(slope) == pytest.approx(float(exact.subs(values)), rel=1e-4)
    by_excel = [excel(result.excel(), *row) for row in x.tolist()]
    np.testing.assert_allclose(by_excel, truth, rtol=1e-12)
    if shutil.which("cc"):
        code = f"#include <math.h>\n#include <stdio.h>\nint main(void) {{ double T_K = {x[0, 0]:.17g}, "
        code += f'lambda_ = {x[0, 1]:.17g}; printf("%.17g", {result.c()}); return lambda_ < 0; }}'
        (tmp_path / "f.c").write_text(code, encoding="utf-8")
        subprocess.run(["cc", "f.c", "-o", "f", "-lm"], cwd=tmp_path, check=True)
        printed = subprocess.run(["./f"], cwd=tmp_path, capture_output=True, check=True).stdout
        assert float(printed) == pytest.approx(truth[0], rel=1e-12)
    with pytest.raises(TypeError, match="2 variable"):
        result.to_numpy()(1.0)
    with pytest.raises(ValueError, match="2 variable"):
        result.excel(["A1"])


def excel(text: str, a: float, b: float) -> float:
    """What Excel makes of a formula of ours in which every power has brackets around it."""
    assert text[0] == "=" and not re.search(r"-[A-Z0-9]+\^", text)
    line = text[1:].replace("^", "**").replace("LN(", "log(").replace("PI()", "pi")
    line = re.sub(r"[A-Z]{3,}\(", lambda m: m[0].lower(), line)
    names = {n: getattr(math, n) for n in ("exp", "log", "sin", "cos", "tanh", "sqrt", "pi")}
    return float(eval(line, {"A2": a, "B2": b} | names))  # our own text, in a test


def test_tables_in_latex(decay: Result) -> None:
    table = decay.latex_table()
    assert table.count(r"\\") == 4 and "$b$ & -0.8" in table and table.endswith(r"\end{tabular}")
    assert "a e^{b t} + c" in table
    front = decay.candidates_latex()
    assert front.count(r"\\") == 3 and "e^{- 0.8" in front and "& 4 & 0.001" in front
    assert latex_row(decay, "1").endswith(r"& 1 \\")


def test_a_result_is_saved_and_read_again(decay: Result, tmp_path: Path) -> None:
    origin = (Origin(np.datetime64("2026-01-01", "us"), "days"),)
    errors = Errors(np.full(40, 2.0), "soft_l1", through_origin=True)
    told = replace(decay, origins=origin, errors=errors, notes=("said so",))
    told = judged(told, told.x, told.y)
    told.save(tmp_path / "x.json")
    again = load_result(tmp_path / "x.json")
    assert str(again) == str(told) and again.latex == told.latex and again.formula == told.formula
    assert again.origins == origin and again.notes == ("said so",) and again.outcome is None
    assert again.candidates[1].law == told.candidates[1].law
    assert [c.odds for c in again.runners_up] == [c.odds for c in told.runners_up]
    assert again.fvu == pytest.approx(told.fvu) and again.intervals == told.intervals
    np.testing.assert_array_equal(again.predict(pd.DataFrame({"t": T})), told.predict(T))
    record = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert {"refinemath", "formula", "python", "intervals", "warnings"} <= record.keys()
    for text in ("", "[]", "{}", '{"latex": 1}'):
        (tmp_path / "bad.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="is not a saved result"):
            load_result(tmp_path / "bad.json")
    with pytest.raises(DataError, match="cannot read"):
        load_result(tmp_path / "none.json")


def test_a_report_stands_alone(decay: Result, tmp_path: Path) -> None:
    write_report(decay, tmp_path / "r.html", source="a <b>.csv", command="solve")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert (
        text.count("data:image/png;base64,") == 3 and "<math" in text and "a &lt;b&gt;.csv" in text
    )
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text.replace(
        "http://www.w3.org", ""
    )
    for part in ("0.6", "a*exp(b*t) + c", "2.72 : 1", "numpy", "the data do not decide"):
        assert part in text, part
    assert text.count("<table>") == text.count("</table>") == 4
    assert "U [V]" in html_report(constant_result(Table(T[:, None], 0 * T, NAMES, "U [V]")))


def test_the_text_says_numbers_and_doubts(decay: Result) -> None:
    text = text_report(decay, 1e-5)
    assert "numbers     U [V] = a*exp(b*t) + c" in text and "in doubt    the data do" in text
    assert re.search(r"^            b = -0\.\d+, standard error", text, re.M)


# ---------------------------------------------------------------- the front


def test_candidates_are_formulas_to_work_with(decay: Result) -> None:
    first, second = decay.candidates
    np.testing.assert_allclose(second.predict(T), 2 * np.exp(-0.8 * T) + 0.6)
    assert first.latex == r"2\,t" and str(first.sympy()) == "2*t" and str(first) == "U [V] = 2*t"
    assert first.python() == "2*t" and first._repr_latex_().startswith("$")
    table = decay.candidates._repr_html_()  # type: ignore[attr-defined]
    assert table.count("<tr>") == 3 and "<code>2*exp(-0.8*t) + 0.6</code>" in table


def test_another_candidate_is_chosen(decay: Result) -> None:
    line = decay.choose(0)
    assert str(line) == "U [V] = 2*t" and line.latex == r"2\,t" and not line.found
    assert (
        line.fvu > 1 and len(line.intervals) == 1 and str(decay.choose(-1).form) == str(decay.form)
    )
    with pytest.raises(ValueError, match="there are 2 candidates"):
        decay.choose(2)


def test_the_front_is_drawn(decay: Result, tmp_path: Path) -> None:
    figure = decay.candidates.plot(tmp_path / "front.png")  # type: ignore[attr-defined]
    assert len(figure.axes[0].lines[0].get_xdata()) == 2 and (tmp_path / "front.png").exists()
    top = decay.plot().axes[0]
    assert any("95 %" in str(c.get_label()) for c in top.collections)
