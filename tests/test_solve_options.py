"""Chapter 10: searches under what a user asks, with the small search of the other tests."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from refinemath import RefineMath, Result
from refinemath.answer.choose import Answers
from refinemath.control import Progress, skeleton_length
from refinemath.front import Front
from refinemath.operators import allowed_operators, uses_only

X = np.linspace(0.5, 4.0, 24)
RNG = np.random.default_rng(0)


def formulas(result: Result) -> list[Any]:
    return [result, *result.candidates, *result.runners_up]


@pytest.mark.parametrize("operators", ["/ exp log", "sqrt", ""])
def test_a_forbidden_operator_is_never_returned(operators: str, solver: RefineMath) -> None:
    """The law needs a sine and a square."""
    result = solver.solve(X, np.sin(2 * X) + 0.1 * X**2, operators=operators, time_budget=0.1)
    assert len(result.candidates) >= 1
    for found in formulas(result):
        assert uses_only(found.law, allowed_operators(operators)), str(found)


def test_what_is_allowed_is_found(solver: RefineMath) -> None:
    result = solver.solve(X, 2 * np.exp(-0.8 * X) + 0.6, operators=["exp"], time_budget=0.1)
    assert result.exact and result.formula.functions() == {"exp"}


def test_no_formula_is_longer_than_asked(solver: RefineMath) -> None:
    result = solver.solve(X, np.sin(X) / X + X, max_length=3, time_budget=0.1)
    assert max(skeleton_length(f.law) for f in formulas(result)) <= 3


def test_errors_in_a_column(solver: RefineMath) -> None:
    sigma = np.where(np.arange(24) % 3, 0.001, 2.0)
    frame = pd.DataFrame({"t": X, "s": sigma, "U": X**2 - 3 + sigma * RNG.normal(size=24)})
    result = solver.solve(frame, sigma="s", time_budget=0.1)
    assert result.names == ("t",) and result.found
    np.testing.assert_allclose(result.predict(X), X**2 - 3, atol=0.02)
    assert isinstance(result.candidates, Front) and result.predict(X, interval=0.9).low.shape == (
        24,
    )


def test_a_robust_search_is_not_led_by_an_outlier(solver: RefineMath) -> None:
    y = 2 * np.exp(-0.8 * X) + 0.6 + 0.003 * RNG.normal(size=24)
    y[7] += 3
    result = solver.solve(X, y, loss="soft_l1", time_budget=0.1)
    assert result.down_weighted == (7,) and "7" in result.warnings[-1]
    clean = np.delete(X, 7)
    np.testing.assert_allclose(result.predict(clean), 2 * np.exp(-0.8 * clean) + 0.6, atol=0.05)


def test_a_search_through_the_origin(solver: RefineMath) -> None:
    y = 3 * X / (X + 2) + 0.01 * RNG.normal(size=24)
    result = solver.solve(X, y, through_origin=True, time_budget=0.1)
    assert abs(result.predict(0.0)[0]) < 1e-6 and result.fvu < 0.01


def test_dates_and_gaps_are_said(solver: RefineMath) -> None:
    when = pd.date_range("2026-01-01", periods=20)
    days = np.arange(20.0)
    frame = pd.DataFrame({"when": when, "y": np.where(days == 5, np.nan, days**2 + 1)})
    result = solver.solve(frame, missing="drop", time_budget=0.1)
    assert len(result.y) == 19 and result.exact and len(result.notes) == 2
    np.testing.assert_allclose(result.predict(frame), days**2 + 1, rtol=1e-6)


def test_a_callback_hears_of_every_search_and_ends_them(solver: RefineMath) -> None:
    noise = RNG.normal(size=24)
    heard: list[Progress] = []
    result = solver.solve(X, noise, time_budget=30, callback=heard.append)
    assert [p.searches for p in heard] == list(range(1, result.searches + 1))
    assert all(p.seconds > 0 for p in heard)
    one = solver.solve(X, noise, time_budget=30, callback=lambda progress: True)
    assert one.searches == 1


def test_ctrl_c_gives_the_best_so_far(solver: RefineMath, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    result = solver.solve(X, RNG.normal(size=24), time_budget=30, callback=stop)
    assert result.searches == 1 and np.isfinite(result.predict(X)).all()

    def at_once(*_: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Answers, "add", at_once)
    with pytest.raises(KeyboardInterrupt):
        solver.solve(X, X**2, time_budget=30)
