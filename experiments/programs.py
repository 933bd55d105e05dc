"""Programs that people use, pyoperon and gplearn (`pip install -r experiments/requirements.txt`),
and the symbolic test of what they find.
"""

from __future__ import annotations

import re
import signal
import time
from typing import Any

import numpy as np
import sympy

from refinemath import Formula, FormulaError, parse
from refinemath.evaluation import Problem
from refinemath.expression import VARIABLES

# relative difference at 200 random points under which two formulas count as the same function
ROUNDED = 1e-9
OPERON_SYMBOLS = "add,sub,mul,div,constant,variable,pow,square,sqrt,exp,log,sin,cos,tanh"
GPLEARN_FUNCTIONS = ("add", "sub", "mul", "div", "sqrt", "log", "neg", "inv", "sin", "cos")


def operon(x: np.ndarray, y: np.ndarray, *, seconds: float, seed: int) -> Formula:
    """pyoperon with its clock, two threads, local search, and the best error it found."""
    from pyoperon.sklearn import SymbolicRegressor  # type: ignore[import-not-found]

    model = SymbolicRegressor(
        allowed_symbols=OPERON_SYMBOLS,
        optimizer_iterations=5,
        max_length=30,
        max_time=max(1, round(seconds)),
        generations=10**6,
        max_evaluations=10**9,
        n_threads=2,
        model_selection_criterion="mean_squared_error",
        random_state=seed,
    )
    model.fit(x[:, None], y)
    return parse(model.get_model_string(model.model_, 17).replace("X1", "x1"))


def gplearn(x: np.ndarray, y: np.ndarray, *, seconds: float, seed: int) -> Formula:
    """gplearn, generation after generation until the clock is up; the best of all."""
    from gplearn.functions import make_function  # type: ignore[import-not-found]
    from gplearn.genetic import SymbolicRegressor  # type: ignore[import-not-found]

    def exponential(a: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.minimum(np.exp(a), 1e10)

    began = time.perf_counter()
    functions = (
        *GPLEARN_FUNCTIONS,
        make_function(function=exponential, name="exp", arity=1),
        make_function(function=np.tanh, name="tanh", arity=1),
    )
    model = SymbolicRegressor(
        population_size=1000,
        generations=1,
        warm_start=True,
        function_set=functions,
        metric="mse",
        parsimony_coefficient=1e-3,
        const_range=(-5.0, 5.0),
        random_state=seed,
    )
    best, error = None, np.inf
    while best is None or time.perf_counter() - began < seconds:
        model.fit(x[:, None], y)
        if model._program.raw_fitness_ < error:
            best, error = str(model._program), model._program.raw_fitness_
        model.set_params(generations=model.generations + 1)
    return from_gplearn(best)


def from_gplearn(text: str) -> Formula:
    """A gplearn program such as `add(mul(X0, 0.5), sin(X0))` as a formula; its square root and
    logarithm take absolute values.
    """
    parts: list[str | float] = []
    for word in re.findall(r"[A-Za-z]\w*|-?\d[\d.e+\-]*", text):
        if word == "X0":
            parts.append(VARIABLES[0])
        elif word in ("sqrt", "log"):
            parts += [word, "sqrt", "square"]
        elif word[0].isalpha():
            parts.append(word)
        else:
            parts.append(float(word))
    return Formula(tuple(parts))


PROGRAMS = {"operon": operon, "gplearn": gplearn}


def answer(problem: Problem, program: str, *, seconds: float, seed: int) -> tuple[Formula, float]:
    """What a program finds, and the seconds it took; the mean where that is no formula of ours."""
    began = time.perf_counter()
    try:
        found = PROGRAMS[program](problem.x[:, 0], problem.y, seconds=seconds, seed=seed)
    except FormulaError as error:
        found = Formula((float(np.mean(problem.y)),))
        print(f"{program} on {problem.name}: {error}")
    return found, time.perf_counter() - began


def symbolic(problem: Problem, found: Formula, seconds: int = 5) -> str:
    """`yes` if the difference is zero (200 random points agree to 1e-9, or SymPy proves it in
    time), `no` if a point disproves it, else `undecided`.
    """
    assert problem.truth is not None
    x = np.random.default_rng(2).uniform(problem.x.min(), problem.x.max(), 200)[None]
    a, b = problem.truth.evaluate(x), found.evaluate(x)
    both = np.isfinite(a) & np.isfinite(b)
    a, b, apart = a[both], b[both], np.inf
    if both.sum() >= 20:
        apart = np.max(np.abs(a - b) / (np.abs(a) + np.std(a) + 1e-300))
    if apart <= ROUNDED:
        return "yes"
    if apart > 1e-6 or not hasattr(signal, "SIGALRM"):
        return "no" if apart > 1e-6 else "undecided"

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        gap = sympy.nsimplify(problem.truth.sympy() - found.sympy(), rational=True)
        return "yes" if sympy.simplify(gap) == 0 else "undecided"
    except (TimeoutError, ValueError, TypeError, ArithmeticError, RecursionError):
        return "undecided"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
