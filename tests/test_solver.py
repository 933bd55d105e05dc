"""Chapters 0, 8 and 10: points in, formula out; and whatever else is put in gets a clear answer."""

import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sympy
from conftest import QUICK
from formulas import double

import refinemath.engine as engine_module
import refinemath.schedule as schedule_module
import refinemath.solver as solver_module
from refinemath import CheckpointError, DataError, FormulaError, RefineMath, Result, parse
from refinemath.answer import choose
from refinemath.answer.choose import Answers, refit
from refinemath.answer.rounding import round_constants
from refinemath.answer.solution import Solution, code_length, linear_solution, refine_constants
from refinemath.answer.statement import state
from refinemath.answer.symbolic import (
    latex_of,
    monic,
    multiplied_out,
    one_fraction,
    pretty,
    rescale,
)
from refinemath.answer.targets import IDENTITY, RULES, TargetTransform, target_transforms
from refinemath.engine import device_points
from refinemath.expression import Formula, split_terms
from refinemath.pace import Pace
from refinemath.problem import Problem, prepare
from refinemath.proposers.library import short_skeletons
from refinemath.reading import read_points
from refinemath.result import judged
from refinemath.schedule import Schedule
from refinemath.weights import shipped_widths

DATA = Path(__file__).parents[1] / "data"
X = np.linspace(0.5, 4.0, 24)
PARABOLA = np.stack([X, X**2 - 3], axis=1)


def explained(result: Result, x: np.ndarray, y: np.ndarray) -> float:
    """FVU of the answer on given points."""
    r = (y - result.predict(x)) / (np.std(y) or 1.0)
    return float(np.mean(r**2))


@pytest.fixture(scope="module")
def parabola(solver: RefineMath) -> Result:
    return solver.solve(PARABOLA, searches=1)


@pytest.fixture(scope="module")
def hard() -> np.ndarray:
    """Noise: no formula is right."""
    return np.stack([X, np.random.default_rng(0).normal(size=24)], axis=1)


# ---------------------------------------------------------------- the answer


def test_the_answer_unpacks_as_latex_and_iterations(parabola: Result, solver: RefineMath) -> None:
    latex, iterations = parabola
    assert latex == parabola.latex and "x^{2}" in latex and iterations == parabola.iterations
    assert 1 <= iterations <= solver.max_iters
    assert (
        parabola.searches >= 1
        and iterations <= parabola.steps <= parabola.searches * solver.max_iters
    )
    assert parabola._repr_latex_() == f"$\\displaystyle y = {latex}$"


def test_the_answer_in_every_form_is_the_same_function(parabola: Result) -> None:
    x = sympy.Symbol("x", real=True)
    assert sympy.simplify(parabola.sympy() - (x**2 - 3)) == 0
    code = compile(parabola.python(), "formula", "eval")
    by_python = [eval(code, {"math": math}, {"x": float(v)}) for v in X]  # our own text, in a test
    np.testing.assert_allclose(by_python, parabola.predict(X), rtol=1e-9)
    np.testing.assert_allclose(parabola.predict(X), PARABOLA[:, 1], atol=1e-9)
    assert str(parabola).startswith("y = ") and parse(str(parabola.sympy())).evaluate(
        X[None]
    ) == pytest.approx(PARABOLA[:, 1])
    assert parabola.exact and parabola.found and parabola.fvu < 1e-20


def test_prediction_takes_numbers_and_rows(parabola: Result) -> None:
    np.testing.assert_allclose(parabola.predict(2.0), [1.0], atol=1e-9)
    np.testing.assert_allclose(parabola.predict([[2.0], [3.0]]), [1.0, 6.0], atol=1e-9)
    with pytest.raises(DataError, match="1 variable"):
        parabola.predict([[1.0, 2.0]])
    with pytest.raises(DataError, match="not a number"):
        parabola.predict("two")


def test_the_candidates_are_a_front(solver: RefineMath, hard: np.ndarray) -> None:
    found = solver.solve(hard, searches=1)
    lengths, errors = [c.length for c in found.candidates], [c.fvu for c in found.candidates]
    assert (
        len(lengths) > 1
        and lengths == sorted(set(lengths))
        and errors == sorted(errors, reverse=True)
    )
    for candidate in found.candidates:
        assert np.isfinite(parse(candidate.formula).evaluate(X[None])).all()
    assert not found.exact and not found.found


def test_the_velocity_has_a_row_a_step(parabola: Result, solver: RefineMath) -> None:
    assert parabola.velocity.shape == (parabola.iterations, solver.config.latents)
    assert np.isfinite(parabola.velocity).all() and (parabola.velocity >= 0).all()
    assert isinstance(parabola.converged, bool)


def test_a_threshold_that_every_step_passes_converges(solver: RefineMath) -> None:
    loose = solver.solve(PARABOLA, threshold=0.999, searches=1)
    assert loose.converged and loose.latex == "x^{2} - 3"


def test_the_seed_makes_it_repeatable(solver: RefineMath, hard: np.ndarray) -> None:
    one, two = (solver.solve(hard, seed=5, searches=1) for _ in range(2))
    assert (
        one.latex == two.latex
        and one.iterations == two.iterations
        and one.candidates == two.candidates
    )
    np.testing.assert_array_equal(one.velocity, two.velocity)
    other = solver.solve(hard, seed=6, searches=1)
    assert np.any(other.velocity != one.velocity)


def searches(
    solver: RefineMath, data: np.ndarray, monkeypatch: pytest.MonkeyPatch, time_budget: float
) -> int:
    """How many searches run when the clock goes on by a second every time somebody looks, and
    patience has no end.
    """
    now = iter(range(10_000))
    calls = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return think(*arguments, **options)

    solver.solve(data, searches=1)  # compiled and timed
    think = engine_module.run_search
    monkeypatch.setattr(engine_module, "run_search", counted)
    clock = SimpleNamespace(perf_counter=lambda: float(next(now)))
    monkeypatch.setattr(schedule_module, "time", clock)
    monkeypatch.setattr(solver_module, "time", clock)
    solver.solve(data, time_budget=time_budget)
    return len(calls)


def test_the_time_budget_bounds_the_searches(
    solver: RefineMath, hard: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert searches(solver, hard, monkeypatch, time_budget=0.5) == 1  # the first always runs


def test_no_search_starts_after_the_time_budget(
    solver: RefineMath, hard: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1 <= searches(solver, hard, monkeypatch, time_budget=2.5) <= 3


def test_the_device_searches_on_while_the_host_reads(
    hard: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second search begins before the first is read, the one after which patience ends does
    not.
    """
    events: list[Any] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            events.append(name)
            return function(*arguments, **options)

        return call

    model = RefineMath(max_iters=4, **{**QUICK, "patience": 2}, transforms=False)
    curved = hard + np.stack([0 * X, 9 * X**2], axis=1)
    model.solve(curved, searches=1)  # compiled and timed
    monkeypatch.setattr(engine_module, "run_search", noted("search", engine_module.run_search))
    monkeypatch.setattr(Answers, "choose", noted("read", Answers.choose))
    model.solve(curved, time_budget=600)
    assert events[:4] == [
        "search",
        "search",
        "read",
        "search",
    ]  # the first answer is better than none, so patience is whole again
    assert events[-1] == "read" and 2 * events.count("read") == len(
        events
    )  # no search was begun in vain


@pytest.mark.parametrize(
    ("name", "inner", "truth"),
    [
        ("log", "0.5*x + cos(x)", "3*exp(0.5*x + cos(x))"),
        ("log", "sin(x) - 1", "-0.2*exp(sin(x))"),
        ("divide", "sin(x) + 2*log(x) + 1", "x*sin(x) + 2*x*log(x) + x"),
        ("divide", "exp(-x) + 1/x", "x*exp(-x) + 1"),
        ("inverse", "x**2 + 3*cos(x) + 5", "4/(x**2 + 3*cos(x) + 5)"),
        ("sqrt", "x + log(x) + 2", "0.3*(x + log(x) + 2)**2"),
        ("square", "4 - x + sin(x)", "-2*sqrt(4 - x + sin(x))"),
        ("multiply", "sin(x) + 3", "sin(x)/x + 3/x"),
        ("exp", "x**2 + 1/x", "log(x**2 + 1/x) + 0.5"),
    ],
)
@pytest.mark.parametrize(
    "unit", [1.0, 20.0]
)  # with 20 the x that the search sees is another than the user's
def test_what_is_undone_and_done_again_is_exact(
    name: str, inner: str, truth: str, unit: float
) -> None:
    x = np.linspace(0.5, 3.5, 40)
    y = parse(truth).evaluate(x[None])
    prepared = prepare(unit * x[:, None], y)
    transform = TargetTransform(name, 0 if name in ("divide", "multiply") else None)
    view = transform.forward(prepared)
    assert view is not None and (unit == 1.0) == bool(view.scale[0] == 1.0)
    terms = split_terms(parse(inner))
    if unit != 1.0:
        terms = [
            Formula(
                tuple(
                    q
                    for p in t.parts
                    for q in (("mul", float(view.scale[0] / unit), "x1") if p == "x1" else (p,))
                )
            )
            for t in terms
        ]
    within = refine_constants(terms, view.u, view.y)
    assert within is not None and within.fvu < 1e-24
    solution = transform.inverse(within, prepared)
    assert solution is not None and solution.fvu < 1e-24
    np.testing.assert_allclose(solution.formula().evaluate(prepared.u), y, rtol=1e-9)


def test_an_exponential_of_logarithms_becomes_a_product() -> None:
    """What is printed and what predicts are one function, also where the logarithms that led to it
    are undefined.
    """
    x = np.linspace(0.5, 3.0, 40)
    prepared = prepare(x[:, None], 2 * (x + 1) / (x + 3))
    within = refine_constants(
        [parse("log(x + 1.0)"), parse("log(x + 3.0)")], prepared.u, np.log(prepared.y)
    )
    assert within is not None
    rounded = round_constants(within, prepared.u, np.log(prepared.y))
    solution = TargetTransform("log").inverse(rounded, prepared)
    assert (
        solution is not None
        and solution.fvu < 1e-24
        and "log" not in solution.formula().functions()
    )
    assert solution.formula().evaluate(np.array([[-2.0]])) == pytest.approx(-2.0)


def allowed(y: np.ndarray, x: np.ndarray) -> set[str]:
    """The names of the transforms that points in one variable allow."""
    problem = prepare(x[:, None], y)
    return {t.name for t in target_transforms(1) if t.forward(problem) is not None}


def test_what_cannot_be_transformed_is_left_out() -> None:
    x = np.linspace(-1.0, 2.0, 31)
    # both signs, and a zero, nearly, in y
    assert allowed(x + 0.5, x) == {"divide", "multiply", "exp"}
    divide = TargetTransform("divide", 0)
    without_zero = divide.forward(prepare(x[:, None], x + 0.5))
    assert without_zero is not None and without_zero.u.shape == (1, 30)
    assert np.all(without_zero.u[0] != 0.0)
    thirds = np.repeat([[0.0], [1.0], [2.0]], 5, axis=0)
    assert divide.forward(prepare(thirds, np.arange(15.0))) is None  # a third would be lost
    assert allowed(np.exp(x), x + 2.0) == set(RULES)
    assert "exp" not in allowed(30 + x, x + 2.0) and "inverse" in allowed(30 + x, x + 2.0)
    assert "divide" not in allowed(3 * (x + 2.0), x + 2.0)  # only a constant would be left
    positive = prepare(x[:, None] + 2.0, np.exp(x))
    assert TargetTransform("log").inverse(Solution((), (), 1.0, 1.0), positive) is None
    assert IDENTITY.forward(positive) is positive


def schedule_of(problem: Problem, transforms: Any = (), **options: Any) -> Schedule:
    settings: dict[str, Any] = {"time_budget": 8.0, "patience": 3, "pace": Pace(0.0, 1e-3)}
    return Schedule(problem, transforms, **settings | options)


def test_every_fifth_search_looks_at_y_itself() -> None:
    x = np.linspace(-1.0, 2.0, 31)
    problem = prepare(x[:, None] + 2.0, np.exp(x))
    plan = schedule_of(problem, target_transforms(1))
    names = ["identity", "log", "divide", "inverse", "sqrt", "identity"]
    assert [plan.view(i)[0].name for i in range(10)] == [
        *names,
        *("square", "multiply", "exp", "identity"),
    ]
    assert plan.view(5)[1] is problem
    assert [schedule_of(problem).view(i)[0] for i in range(3)] == [IDENTITY] * 3


def test_every_variable_has_its_transforms() -> None:
    x = np.random.default_rng(0).uniform(1, 2, (40, 3))
    problem = prepare(x, x[:, 2] * np.sin(x[:, 0]))
    transforms = target_transforms(3)
    assert [t.variable for t in transforms if t.name == "divide"] == [0, 1, 2]
    assert len(transforms) == 5 + 2 * 3
    divide = TargetTransform("divide", 2)
    seen = divide.forward(problem)
    assert seen is not None
    np.testing.assert_allclose(seen.y, np.sin(x[:, 0]), rtol=1e-12)
    within = refine_constants([parse("sin(x1)")], seen.u, seen.y)
    assert within is not None
    solution = divide.inverse(within, problem)
    assert solution is not None and solution.fvu < 1e-24 and "x3" in solution.terms[0].parts


def test_the_clock_and_the_patience_end_the_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(schedule_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    problem = prepare(X[:, None], np.sin(X))

    def one(plan: Schedule, seconds: float, improved: bool) -> tuple[bool, bool]:
        plan.search_started()
        now[0] += seconds
        return plan.search_ended(solved=False), plan.reading_ended(improved=improved, exact=False)

    now[0] = 100.0  # what was compiled until here does not count
    plan = schedule_of(problem, time_budget=5.0)
    assert one(plan, 2.0, True) == (True, False) and plan.turn == 1  # 2 + 2 <= 5
    assert one(plan, 2.0, True) == (False, True) and plan.turn == 1  # 4 + 2 > 5
    plan = schedule_of(problem, time_budget=100.0, patience=2)
    assert one(plan, 1.0, True) == (True, False)
    assert one(plan, 1.0, False) == (True, False)
    assert one(plan, 1.0, False) == (False, True)  # no search is begun in vain
    plan = schedule_of(problem, time_budget=100.0)
    plan.search_started()
    assert not plan.search_ended(solved=True)
    assert not plan.reading_ended(improved=True, exact=False) and plan.turn == 1


def test_a_number_of_searches_is_kept_whatever_the_clock_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(
        schedule_module, "time", SimpleNamespace(perf_counter=lambda: float(next(now)))
    )
    plan = schedule_of(prepare(X[:, None], np.sin(X)), searches=3, patience=0, time_budget=0.1)
    ended = []
    for _ in range(3):
        assert plan.search_steps(16) == 16
        plan.search_started()
        ahead = plan.search_ended(solved=False)
        ended.append((ahead, plan.reading_ended(improved=False, exact=False)))
    assert ended == [(True, False), (True, False), (False, True)] and plan.turn == 2
    plan = schedule_of(prepare(X[:, None], np.sin(X)), searches=3)
    plan.search_started()
    assert not plan.search_ended(solved=True)
    assert plan.reading_ended(improved=True, exact=True) and plan.turn == 0


@pytest.mark.parametrize(("budget", "steps"), [(0.01, 1), (0.5, 3), (1.0, 7), (8.0, 16)])
def test_where_there_is_little_time_the_first_search_is_short(
    budget: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of the time is for the reading; a tenth of a second goes before the first step."""
    now = [50.0]
    monkeypatch.setattr(schedule_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    problem = prepare(X[:, None], np.sin(X))
    plan = schedule_of(problem, time_budget=budget, pace=Pace(0.1, 0.099))
    assert plan.search_steps(16) == steps
    plan.turn = 1
    assert plan.search_steps(16) == 16


def test_transformed_points_need_no_other_program() -> None:
    x = np.linspace(-2.0, 2.0, 33)
    problem = prepare(x[:, None], np.sin(x) + 2)
    view = TargetTransform("divide", 0).forward(problem)
    assert view is not None
    points = device_points(view, engine_module.search_room(problem))
    assert points.y.shape == (1, 64) and int(points.mask.sum()) == 32


def test_a_formula_is_found_through_a_transformed_target(
    solver: RefineMath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that sees log y alone answers with a formula for y."""
    log = TargetTransform("log")
    monkeypatch.setattr(Schedule, "view", lambda self, turn: (log, log.forward(self.problem)))
    result = solver.solve(X, 2 * np.exp(0.4 * X**2 + np.sqrt(X)), searches=1)
    x = sympy.Symbol("x", real=True)
    assert (
        result.exact and sympy.simplify(result.sympy() / sympy.exp(0.4 * x**2 + sympy.sqrt(x))) == 2
    )
    assert 1 <= result.iterations <= solver.max_iters


def test_what_was_rewritten_and_rounded_is_not_worked_out_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    y = X**3 + X**2 + X
    problem = prepare(X[:, None], y)
    texts = ("x + x**3", "x**2 + x**3", "exp(x)")
    found = [refine_constants(split_terms(parse(t)), X[None], y) for t in texts]
    front = [s for s in found if s is not None]
    answers = Answers(problem)
    first = answers.choose(front)
    assert first == Answers(problem).choose(front) and len(front) == 3
    monkeypatch.setattr(choose, "round_constants", None)
    monkeypatch.setattr(choose, "rewrite", None)
    assert answers.choose(front) is first


def test_every_way_of_giving_points_gives_the_same_answer(
    solver: RefineMath, parabola: Result, tmp_path: Path
) -> None:
    np.save(tmp_path / "p.npy", PARABOLA)
    pd.DataFrame(PARABOLA, columns=["x", "y"]).to_csv(tmp_path / "p.csv", index=False)
    (tmp_path / "p.txt").write_text(
        "# points\n" + "\n".join(f"{a!r} {b!r}" for a, b in PARABOLA.tolist()), encoding="utf-8"
    )
    (tmp_path / "p.tsv").write_text(
        "\n".join(f"{a!r}\t{b!r}" for a, b in PARABOLA.tolist()), encoding="utf-8"
    )
    (tmp_path / "semicolon.csv").write_text(
        "x;y\n" + "\n".join(f"{a!r};{b!r}" for a, b in PARABOLA.tolist()), encoding="utf-8-sig"
    )
    forms: list[Any] = [
        PARABOLA.tolist(),
        [tuple(r) for r in PARABOLA],
        np.asfortranarray(PARABOLA),
        PARABOLA[::-1][::-1],
        pd.DataFrame(PARABOLA),
        PARABOLA.astype(object),
        [[str(a), str(b)] for a, b in PARABOLA.tolist()],
        str(tmp_path / "p.npy"),
        *(tmp_path / n for n in ("p.npy", "p.csv", "p.txt", "p.tsv", "semicolon.csv")),
    ]
    for data in forms:
        x, y = read_points(data)
        np.testing.assert_array_equal(x[:, 0], X)
        np.testing.assert_allclose(y, PARABOLA[:, 1], rtol=1e-15)
    for pair in (
        (X, PARABOLA[:, 1]),
        (X[:, None], PARABOLA[:, 1:]),
        (X.tolist(), PARABOLA[:, 1].tolist()),
        (pd.Series(X), pd.Series(PARABOLA[:, 1])),
    ):
        np.testing.assert_array_equal(np.column_stack(read_points(*pair)), PARABOLA)
    assert solver.solve(tmp_path / "p.csv", searches=1).latex == parabola.latex


def test_the_order_of_the_points_does_not_matter(solver: RefineMath, parabola: Result) -> None:
    assert (
        solver.solve(np.random.default_rng(0).permutation(PARABOLA), searches=1).latex
        == parabola.latex
    )


def test_a_plot_is_saved(parabola: Result, tmp_path: Path) -> None:
    parabola.plot(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes()[:4] == b"\x89PNG"


def test_without_short_formulas_the_network_alone_answers(solver: RefineMath) -> None:
    alone = RefineMath(max_iters=4, config=solver.config, proposers=solver.proposers[:1])
    result = alone.solve(PARABOLA, searches=1)
    assert np.isfinite(result.fvu) and result.iterations >= 1


# ---------------------------------------------------------------- numbers


def test_numbers_are_printed_short_and_exact_where_they_are() -> None:
    assert latex_of(parse("x**2")) == "x^{2}"
    assert pretty(parse("3.00000000001*x")) == 3 * sympy.Symbol("x", real=True)
    assert pretty(parse(f"sin({math.pi / 3!r}*x)")) == sympy.sin(
        sympy.pi * sympy.Symbol("x", real=True) / 3
    )
    assert str(pretty(parse("2.123456789*x"))) == "2.12346*x"
    assert str(pretty(parse("1.5e308*x"))) == "1.5e+308*x" and "pi" not in str(
        pretty(parse(f"{66.5 * math.pi!r}*x"))
    )
    assert "log" in latex_of(parse("log(x)")) and r"\," in latex_of(parse("2.5*x"))


def test_the_shorter_way_of_writing_a_function_is_chosen() -> None:
    """Cubes in disguise come back as powers; what is short already stays."""
    x, y = X[None], X**3 + X**2 + X
    disguised = refine_constants(split_terms(parse("x + (x + 0.3333)**3")), x, y)
    assert disguised is not None and disguised.fvu < 1e-24
    chosen = Answers(prepare(X[:, None], y)).choose([disguised])
    assert chosen is not None and pretty(chosen.formula()) == sympy.sympify("x**3 + x**2 + x").subs(
        "x", sympy.Symbol("x", real=True)
    )
    assert multiplied_out(chosen, prepare(X[:, None], y)) is None


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 250.0, 1e30])
def test_prepare_brings_points_into_the_trained_range_and_back(scale: float) -> None:
    prepared = prepare(X[:, None] * scale, PARABOLA[:, 1] * 7)
    assert 0.4 <= np.abs(prepared.u).max() <= 13
    np.testing.assert_allclose(prepared.u[0] * prepared.scale[0], X * scale, rtol=1e-12)
    points = device_points(prepared)
    mask = np.asarray(points.mask[0])
    assert mask.sum() == 24 and np.asarray(points.y)[0, mask].std() > 0.1
    assert (np.diff(np.asarray(points.x)[0, 0, mask]) > 0).all()


def test_of_many_points_sixty_four_are_looked_at() -> None:
    x = np.random.default_rng(0).uniform(0, 5, 1000)
    points = device_points(prepare(x[:, None], np.sin(x)))
    assert int(points.mask.sum()) == 64
    assert float(points.x[0, 0, 0]) == np.float32(x.min()) and float(
        points.x[0, 0, 63]
    ) == np.float32(x.max())


def test_short_formulas_are_tried_first() -> None:
    tokens = short_skeletons()
    assert (
        tokens.dtype == np.uint8
        and len(tokens) > 1000
        and np.count_nonzero(tokens, axis=1).max() == 5
    )


@pytest.mark.parametrize(
    ("text", "scale"),
    [("x**3", 1e9), ("log(x)", 1e-6), ("exp(-x)", 1e4), ("1/(x + 1)", 1e-9), ("x**1.5", 1e12)],
)
def test_a_formula_in_scaled_x_is_given_back_in_the_users_x(
    text: str, scale: float, solver: RefineMath
) -> None:
    y = parse(text).evaluate(X[None])
    prepared = prepare(X[:, None] * scale, y)
    solution = linear_solution([parse(text)], prepared.u, prepared.y)
    best = (
        refine_constants(solution.terms, prepared.u, prepared.y) if solution is not None else None
    )
    assert best is not None
    back = rescale(best, prepared)
    assert back is not None and back.fvu <= 4 * best.fvu + 1e-18
    r = y - back.formula().evaluate(X[None] * scale)
    assert np.sum(r**2) / np.sum((y - y.mean()) ** 2) == pytest.approx(
        back.fvu, rel=1e-6, abs=1e-18
    )


@pytest.mark.parametrize(
    ("expression", "form"),
    [
        ("1/(4*x**2 - 8)", "0.25/(x**2 - 2)"),
        ("(9*x + 3)**0.5", "3.0*(x + 1/3)**0.5"),
        ("sin(1/(2*x + 1))", "sin(0.5/(x + 0.5))"),
        ("1/(x**2 + x + 3)", None),
    ],
)
def test_a_factor_stands_in_front_and_not_inside(expression: str, form: str | None) -> None:
    x = sympy.Symbol("x", positive=True)
    given = sympy.parse_expr(expression, {"x": x})  # a text of our own
    found = monic(given)
    assert float((found - given).subs(x, 1.7)) == pytest.approx(0, abs=1e-12)
    if form is None:
        assert found == given
    else:
        assert found != given and float(
            (found - sympy.parse_expr(form, {"x": x})).subs(x, 0.3)
        ) == pytest.approx(0, abs=1e-12)
        assert all(
            a.as_coeff_Mul()[0] == 1
            for p in found.atoms(sympy.Pow)
            if p.base.is_Add
            for a in p.base.args
            if a.free_symbols
        )


@pytest.mark.parametrize(
    ("law", "term"), [("3*x/(x + 2)", "1/(x + 1.9)"), ("5*x**2/(x**2 - 0.04)", "1/(3*x**2 - 0.13)")]
)
def test_a_fraction_with_an_offset_is_written_as_one_fraction(law: str, term: str) -> None:
    y = parse(law).evaluate(X[None])
    prepared = prepare(X[:, None], y)
    solution = refine_constants([parse(term)], X[None], y)
    assert solution is not None and solution.offset != 0
    found = one_fraction(solution, prepared)
    assert found is not None and found.offset == 0 and found.fvu < 1e-20
    assert found.coefficients[0] == pytest.approx(float(law[0]))
    other = refine_constants([parse("sin(x)")], X[None], y)
    assert other is not None and one_fraction(other, prepared) is None


# what is right although it looks odd


def right() -> Iterator[tuple[str, Any, Any]]:
    """Name, points, and the law that they follow (None: any finite answer)."""
    square = PARABOLA
    for sx in (1e30, 1.0, 1e-30):
        for sy in (1e30, 1.0, 1e-30):
            yield (
                f"scales {sx:g} {sy:g}",
                np.stack([X * sx, X**2 * sy], axis=1),
                lambda x, a=sx, b=sy: (x / a) ** 2 * b,
            )
    yield "constant", np.stack([X, np.full(24, 2.5)], axis=1), lambda x: 0 * x + 2.5
    yield "zero", np.stack([X, 0 * X], axis=1), lambda x: 0 * x
    yield "huge constant", np.stack([X, 0 * X - 1e30], axis=1), lambda x: 0 * x - 1e30
    yield "repeated points", np.repeat(square, 3, axis=0), lambda x: x**2 - 3
    yield (
        "repeated x, different y",
        np.concatenate([square, square + np.array([0, 0.01]), square - np.array([0, 0.01])]),
        lambda x: x**2 - 3,
    )
    yield (
        "two different x",
        np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 5.0], [2.0, 5.0], [1.0, 2.0]]),
        None,
    )
    yield (
        "four points",
        np.array([[1.0, 1.0], [2.0, 8.0], [3.0, 27.0], [4.0, 64.0]]),
        lambda x: x**3,
    )
    yield "line", np.stack([X, 3 * X + 1], axis=1), lambda x: 3 * x + 1
    yield "far from zero in y", np.stack([X, X**2 + 1e9], axis=1), lambda x: x**2 + 1e9
    yield "far from zero in x", np.stack([X + 1e6, X], axis=1), lambda x: x - 1e6
    yield "negative x", np.stack([-X, X**2], axis=1), lambda x: x**2
    yield "with a zero", np.stack([X - X[0], (X - X[0]) ** 2], axis=1), lambda x: x**2
    yield "negative zero", np.stack([X * -0.0 + X, X], axis=1), lambda x: x
    yield "integers", np.array([[n, n * n] for n in range(-5, 12)]), lambda x: x**2
    yield "small integers", np.array([[n, n * n] for n in range(-5, 12)], np.int8), lambda x: x**2
    yield "unsigned", np.array([[n, n * n] for n in range(1, 14)], np.uint8), lambda x: x**2
    yield "float32", square.astype(np.float32), lambda x: x**2 - 3
    yield "float16", np.array([[n, n * n] for n in range(1, 14)], np.float16), lambda x: x**2
    yield "truth values", np.array([[n, n > 3] for n in range(8)]), None
    yield "fractions", [[Fraction(n, 2), Fraction(n * n, 4)] for n in range(1, 12)], lambda x: x**2
    yield "decimals", [[Decimal(n), Decimal(n * n)] for n in range(1, 12)], lambda x: x**2
    yield "numbers as text", [[str(n), str(n * n)] for n in range(1, 12)], lambda x: x**2
    yield "one outlier", np.where(np.arange(48).reshape(24, 2) == 21, 100.0, square), None
    yield "tiny y", np.stack([X, X**2 * 1e-90], axis=1), lambda x: x**2 * 1e-90
    yield (
        "widely spread x",
        np.stack([np.geomspace(1e-6, 1e6, 30), np.log(np.geomspace(1e-6, 1e6, 30))], axis=1),
        lambda x: np.log(x),
    )
    yield "a step", np.stack([X, (X > 2).astype(float)], axis=1), None
    yield "a single peak", np.stack([X, (np.arange(24) == 7).astype(float)], axis=1), None
    yield "eight points of noise", np.random.default_rng(2).normal(size=(8, 2)), None
    yield "almost constant", np.stack([X, 1 + 1e-13 * X], axis=1), None


RIGHT = list(right())


@pytest.mark.parametrize(("name", "data", "law"), RIGHT, ids=[n for n, *_ in RIGHT])
def test_odd_points_get_a_right_answer(
    name: str, data: Any, law: Callable[[np.ndarray], np.ndarray] | None, solver: RefineMath
) -> None:
    result = solver.solve(data, searches=1)
    x, _ = read_points(data)
    assert np.isfinite(result.predict(x)).all() and np.isfinite(result.fvu) and result.latex
    assert isinstance(result.sympy(), sympy.Expr) and result.python()
    if law is not None:
        assert result.found
        truth = law(x[:, 0])
        np.testing.assert_allclose(
            result.predict(x), truth, rtol=2e-3, atol=2e-3 * max(float(np.ptp(truth)), 1e-300)
        )


def test_a_hundred_thousand_points_are_solved(solver: RefineMath) -> None:
    x = np.random.default_rng(0).uniform(-3, 3, 100_000)
    result = solver.solve(np.stack([x, 2 * x**3 - x], axis=1), searches=1)
    assert (
        result.fvu < 1e-20
        and explained(result, x, 2 * x**3 - x) < 1e-20
        and result.exact
        and len(result.y) == 100_000
    )


def test_a_fit_to_some_of_the_points_is_judged_by_all(solver: RefineMath) -> None:
    x = np.linspace(-3, 3, 9000)
    y = x**2
    y[4:-4:7] += np.random.default_rng(0).normal(size=len(y[4:-4:7]))
    result = solver.solve(x, y, searches=1)
    np.testing.assert_allclose(result.fvu, explained(result, x, y), rtol=1e-9)
    assert not result.exact and result.x.shape == (9000, 1)
    nowhere = judged(replace(result, formula=parse("log(x)")), x[:, None], y)
    assert nowhere.fvu == math.inf and not nowhere.found


def test_an_offset_of_seven_digits_is_printed_whole(solver: RefineMath) -> None:
    y = X**2 + 1234567.25
    result = solver.solve(X, y, searches=1)
    assert (
        result.exact
        and result.digits == 9
        and "1234567.25" in result.latex
        and "1234567.25" in str(result)
    )
    code = compile(result.python(), "formula", "eval")
    np.testing.assert_allclose(
        [eval(code, {"math": math}, {"x": float(v)}) for v in X], y, rtol=1e-14
    )  # our own text, in a test
    law = parse("sin(1.23456789012345*x) + 2")
    assert state(law, X[None], law.evaluate(X[None])).digits == 15
    noisy = law.evaluate(X[None]) + 0.01 * np.random.default_rng(0).normal(size=len(X))
    assert state(law, X[None], noisy).digits == 6
    assert pretty(law, 17).has(sympy.Float("1.23456789012345"))


def test_64_bit_mode_changes_nothing(solver: RefineMath, parabola: Result) -> None:
    with double():
        again = solver.solve(PARABOLA, searches=1)
    assert str(again) == str(parabola)
    np.testing.assert_array_equal(again.velocity, parabola.velocity)


def test_results_can_be_compared_and_kept_in_sets(parabola: Result) -> None:
    assert parabola == parabola and parabola != replace(parabola) and len({parabola, parabola}) == 1


def test_weights_that_were_written_anew_are_read_anew(solver: RefineMath, tmp_path: Path) -> None:
    shipped = Path(str(resources.files("refinemath") / "weights" / "refinemath-512.npz"))
    path = tmp_path / "weights.npz"
    shutil.copy(shipped, path)
    model = RefineMath(512, 4, weights=path, **QUICK)
    first = model.parameters()[0]
    assert model.parameters()[0] is first
    shutil.copy(shipped, path)
    os.utime(path, ns=(1, 1))
    assert model.parameters()[0] is not first


def test_sizes_may_be_numbers_of_numpy() -> None:
    model = RefineMath(np.int64(512), np.int32(8))
    assert (model.latent_dim, model.max_iters) == (512, 8) and type(model.config.steps) is int


# ---------------------------------------------------------------- what is wrong says so


def bad_points() -> Iterator[tuple[str, Any, Any]]:
    """Name, data, y."""
    for value in (math.nan, math.inf, -math.inf):
        for row, column in ((0, 0), (0, 1), (11, 0), (11, 1), (23, 0), (23, 1)):
            broken = PARABOLA.copy()
            broken[row, column] = value
            yield f"{value} at {row},{column}", broken, None
            yield f"{value} at {row},{column} as a list", broken.tolist(), None
    for value in (1e101, -1e200, 1e308):
        for column in (0, 1):
            broken = PARABOLA.copy()
            broken[3, column] = value
            yield f"{value:g} in column {column}", broken, None
    yield "subnormal y", np.stack([X, X**2 * 1e-310], axis=1), None
    yield "subnormal x", np.stack([X * 1e-310, X], axis=1), None
    yield (
        "noise that vanishes when squared",
        np.stack([X, 1e-163 * np.random.default_rng(0).normal(size=24)], axis=1),
        None,
    )
    yield "whole numbers beyond float64", [[1, 10**400], [2, 3], [3, 4], [4, 5]], None
    yield "fractions beyond float64", [[Fraction(10**400), 2], [2, 3], [3, 4], [4, 5]], None
    yield "masked", np.ma.masked_array(PARABOLA, PARABOLA > 5), None
    for n in range(4):
        yield f"{n} points", PARABOLA[:n], None
        yield f"{n} points as x and y", X[:n], X[:n]
        yield f"{n} points as a list", PARABOLA[:n].tolist(), None
    for k, nothing in enumerate(
        (
            [],
            [[]],
            (),
            {},
            [[], []],
            np.zeros((0, 2)),
            np.zeros((5, 0)),
            np.zeros(0),
            None,
            "",
            [None],
            [[None, None]] * 8,
        )
    ):
        yield f"nothing {k}", nothing, None
    for k, words in enumerate(
        (
            ["a", "b"],
            [["x", "y"]] * 8,
            [[1.0, "two"]] * 8,
            [["1,5", "2"]] * 8,
            np.array([["a", "b"]] * 8),
            [[b"\xff", 1]] * 8,
            "no-such-file",
            b"bytes",
            [["1", "2"], ["", "3"]] * 4,
            [["NaN", "1"]] * 8,
            [["inf", "1"]] * 8,
            "\0",
            "x" * 5000,
        )
    ):
        yield f"text {k}", words, None
    for k, shape in enumerate(
        ((), (24,), (1,), (24, 1), (24, 12), (24, 19), (2, 12, 2), (1, 1, 1, 1), (3, 4, 5))
    ):
        yield f"shape {shape} {k}", np.random.default_rng(k).normal(size=shape), None
    ragged = [[1.0, 2.0], [3.0], [4.0, 5.0], [6.0, 7.0]]
    yield "ragged", ragged, None
    yield "more ragged", [[1.0], [2.0, 3.0], [], [4.0, 5.0, 6.0]], None
    for k, (x, y) in enumerate(
        (
            (X, X[:-1]),
            (X[:-1], X),
            (X, PARABOLA),
            (X, None.__class__),
            (X, "y"),
            (X, 3.0),
            (3.0, X),
            (PARABOLA, X[:5]),
            (X, X[None]),
            (X, X[:, None, None]),
            (X[:, None, None], X),
            (X, [1.0] * 23 + ["a"]),
            (X, [1.0] * 23 + [math.nan]),
            ("x", X),
        )
    ):
        yield f"x and y {k}", x, y
    for k, x in enumerate((0.0, 1.0, -7.5, 1e30, 1e-30)):
        yield f"constant x {k}", np.stack([np.full(24, x), X], axis=1), None
    yield "constant second variable", np.stack([X, 0 * X, X], axis=1), None
    for k, thing in enumerate(
        (
            object(),
            3,
            2.5,
            True,
            {"x": [1, 2], "y": [3, 4]},
            {1, 2},
            lambda: 1,
            (v for v in X),
            range(8),
            np.datetime64("2026-01-01"),
            np.array(["2026-01-01"] * 8, "datetime64[D]"),
            PARABOLA + 1j,
            np.zeros(8, [("x", float), ("y", float)]),
            [[1j, 2.0]] * 8,
            [[object(), 1.0]] * 8,
            [[[1.0], [2.0]]] * 8,
            PARABOLA.tolist,
        )
    ):
        yield f"thing {k}", thing, None
    yield "a table with words", pd.DataFrame({"x": list("abcdefgh"), "y": range(8)}), None
    yield "a table with gaps", pd.DataFrame({"x": [1.0, None, 3.0, 4.0, 5.0], "y": range(5)}), None
    yield "true and false", X, X > 1
    yield "two indexes", pd.Series(X), pd.Series(X, index=np.arange(24) + 1)
    yield "eleven variables", np.random.default_rng(0).normal(size=(24, 12)), None


BAD = list(bad_points())


@pytest.mark.parametrize(("name", "data", "y"), BAD, ids=[n for n, *_ in BAD])
def test_bad_points_are_a_clear_error(name: str, data: Any, y: Any, solver: RefineMath) -> None:
    with pytest.raises(DataError) as caught:
        solver.solve(data, y)
    message = str(caught.value)
    assert 10 < len(message) < 7000 and "\n" not in message and "Traceback" not in message


def bad_files() -> dict[str, bytes]:
    """Name and content of files that hold no points."""
    good = _npy(PARABOLA)
    files = {f"cut-{n}.npy": good[:n] for n in [*range(0, 130, 13), 200, 300, len(good) - 1]}
    files |= {
        f"junk{suffix}": bytes(range(256)) * 4
        for suffix in (".npy", ".csv", ".txt", ".dat", ".tsv")
    }
    files |= {f"empty{suffix}": b"" for suffix in (".npy", ".csv", ".txt", ".dat", ".tsv")}
    files |= {f"unknown{suffix}": good for suffix in (".xlsx", ".json", ".npz", "", ".py")}
    files |= {
        "words.csv": b"x,y\n" + b"a,b\n" * 8,
        "first-cell.csv": b"1,2.0a\n2,4\n3,6\n4,8\n5,9\n",
        "first-gap.csv": b",2\n2,4\n3,6\n4,8\n5,9\n",
        "giant.npy": _npy_header((10**15, 2)) + bytes(800),
        "gap.csv": b"x,y\n1,2\n3,\n4,5\n6,7\n",
        "ragged.csv": b"x,y\n1,2\n3,4,5\n6,7\n8,9\n",
        "header.csv": b"x,y\n",
        "comment.csv": b"# nothing\n# here\n",
        "nan.csv": b"x,y\n1,2\nnan,3\n4,5\n6,7\n",
        "inf.csv": b"1,2\n2,3\n3,1e999\n4,5\n",
        "one.csv": b"x\n1\n2\n3\n4\n5\n",
        "wide.csv": b"1,2,3,4,5\n" * 6,
        "short.csv": b"x,y\n1,2\n",
        "quote.csv": b'x,y\n"1,2\n3,4\n5,6\n7,8\n',
        "nul.csv": b"1,2\n\x00,3\n4,5\n6,7\n",
        "comma.txt": b"1,5 2,5\n" * 6,
        "mixed.txt": b"1 2\n3\t4 5\n6 7\n8 9\n",
        "blank.txt": b" \n\t\n \n",
        "long-line.csv": b"1," + b"9" * 200_000 + b"\n" + b"1,2\n" * 5,
        "object.npy": _npy(np.array([[1, None]] * 8, object), pickle=True),
        "text.npy": _npy(np.array(["a"] * 8)),
        "record.npy": _npy(np.zeros(8, [("x", float), ("y", float)])),
        "complex.npy": _npy(PARABOLA + 1j),
        "scalar.npy": _npy(np.float64(3)),
        "dates.npy": _npy(np.array(["2026-01-01"] * 8, "datetime64[D]")),
        "header.npy": good[:8] + b"\xff\xff" + good[10:],
        "nan.npy": _npy(PARABOLA * np.nan),
    }
    return files


def _npy(array: Any, *, pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickle)
    return file.getvalue()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


FILES = bad_files()


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_a_clear_error(name: str, solver: RefineMath, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    with pytest.raises(DataError) as caught:
        solver.solve(tmp_path / name)
    assert 10 < len(str(caught.value)) < 1000


def test_a_missing_file_and_a_folder_are_clear_errors(solver: RefineMath, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none.npy", "none.csv", tmp_path / "none" / "x.csv"):
        with pytest.raises(DataError, match="no file"):
            solver.solve(place)


OPTIONS: list[dict[str, Any]] = (
    [{"threshold": v} for v in (0, -1e-5, 1, 2.0, math.nan, math.inf, "small", None, [1e-5], 1j)]
    + [{"time_budget": v} for v in (0, -1, math.nan, "long", None, [1])]
    + [{"searches": v} for v in (0, -1, 1.5, "two", [1])]
    + [{"seed": v} for v in ("a", 1.5, None, [1], math.nan, 2**200)]
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bad_options_are_a_clear_error(options: dict[str, Any], solver: RefineMath) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        solver.solve(PARABOLA, **options)


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**63, np.int64(3), np.uint8(7), True])
def test_any_whole_number_is_a_seed(seed: int, solver: RefineMath) -> None:
    assert solver.solve(PARABOLA, seed=seed, searches=1).found


@pytest.mark.parametrize(
    "options",
    [{"weights": v} for v in (5, [1])]
    + [{"max_iters": v} for v in (0, -1, 1.5, "8", None, 5000, math.nan)]
    + [{"latent_dim": v} for v in (0, -512, 512.0, "512", None)],
    ids=str,
)
def test_bad_settings_are_a_clear_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RefineMath(**options)


# ---------------------------------------------------------------- weights


def test_the_shipped_width_is_there() -> None:
    assert 512 in shipped_widths()


@pytest.mark.parametrize("width", [1, 64, 511, 1024])
def test_a_width_that_is_not_shipped_says_which_are_and_how_to_train_it(width: int) -> None:
    with pytest.raises(
        CheckpointError, match=rf"latent_dim {width} .* shipped: 512.*--latent-dim {width} --out"
    ) as caught:
        RefineMath(latent_dim=width).solve(PARABOLA)
    assert "weights=" in str(caught.value)


def shipped() -> Path:
    return Path(solver_module.__file__).parent / "weights" / "refinemath-512.npz"


def _weights(change: Callable[[dict], None] | None = None) -> dict[str, np.ndarray]:
    with np.load(shipped()) as file:
        arrays = {n: file[n] for n in file.files}
    if change is not None:
        meta = json.loads(arrays["__meta__"].tobytes())
        change(meta)
        arrays["__meta__"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    return arrays


@pytest.mark.parametrize("share", [0.0, 1e-5, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_a_weights_file_that_is_cut_is_a_clear_error(share: float, tmp_path: Path) -> None:
    whole = shipped().read_bytes()
    (tmp_path / "w.npz").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"w\.npz"):
        RefineMath(weights=tmp_path / "w.npz").solve(PARABOLA)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(format=2), "format 2; this version reads format 1"),
        (lambda m: m.update(format="1"), "format"),
        (lambda m: m.pop("format"), "format None"),
        (lambda m: m.pop("config"), "does not know"),
        (lambda m: m.update(config=None), "does not know"),
        (lambda m: m.update(config=[1]), "does not know"),
        (lambda m: m["config"].update(gates=3), "does not know"),
        (lambda m: m["config"].update(stabiliser="new"), "does not know"),
        (lambda m: m["config"].update(variables=9), "does not know"),
        (lambda m: m["config"].update(latent_dim=8), "does not know"),
        (lambda m: m["config"].update(latent_dim=1024), "needs|latent_dim 1024"),
        (lambda m: m["config"].update(encoder_blocks=9), "missing"),
        (lambda m: m["config"].update(refiner_blocks=0), "whole number"),
        (lambda m: m["config"].update(width=64), "needs"),
        (lambda m: m["config"].update(width="wide"), "does not know|needs"),
        (lambda m: m["config"].update(heads=0), "does not know|needs"),
        (lambda m: m["config"].update(reader=-1), "does not know"),
        (lambda m: m["config"].update(reader=64), "needs"),
    ],
)
def test_weights_of_another_version_are_a_clear_error(
    change: Callable[[dict], None], says: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "w.npz", **_weights(change))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=says):
        RefineMath(weights=tmp_path / "w.npz").solve(PARABOLA)


def test_weights_of_another_width_and_missing_weights_say_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="latent_dim 512, not 64"):
        RefineMath(latent_dim=64, weights=shipped()).solve(PARABOLA)
    for place in (tmp_path, tmp_path / "none.npz"):
        with pytest.raises(CheckpointError, match="no weights file"):
            RefineMath(weights=place).solve(PARABOLA)


def test_the_shipped_weights_answer_by_their_thoughts_alone() -> None:
    """No short formulas and no edits, so what is found the reader has read."""
    model = RefineMath(max_iters=4, proposers=("network",))
    result = model.solve(PARABOLA, searches=1)
    assert result.exact and explained(result, X, X**2 - 3) < 1e-20


def test_every_error_of_ours_is_a_value_error() -> None:
    assert all(issubclass(e, ValueError) for e in (DataError, CheckpointError, FormulaError))


def test_the_formulas_of_a_search_come_best_first(parabola: Result) -> None:
    assert parabola.outcome is not None
    candidates = engine_module.pool_candidates(parabola.outcome)
    solutions = refit(candidates, prepare(X[:, None], PARABOLA[:, 1]))
    score = [code_length(s) for s in solutions]
    assert score == sorted(score) and solutions[0].fvu < 1e-20
