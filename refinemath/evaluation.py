"""Measuring recovery: benchmark suites, held-out formulas and real data, beside the null model at
the same clock.  (Chapters 10, 11)

Recovered means: on 1000 fresh points in the range of the data, and on 1000 in a range twice as
wide, the fraction of variance unexplained is at most 1e-10 in float64 wherever the true formula is
finite.
"""

from __future__ import annotations

import copy
import csv
import functools
import json
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from refinemath import weights
from refinemath.answer.solution import refine_constants
from refinemath.corpus.build import build_table
from refinemath.corpus.exclusions import training_exclusions
from refinemath.expression import Formula, FormulaError, split_terms
from refinemath.loop import POINTS
from refinemath.problem import read_points
from refinemath.result import Result
from refinemath.solver import RefineMath
from refinemath.text import parse

STRICT = 1e-10


@dataclass(frozen=True)
class Problem:
    """Points and, where it is known, the formula behind them."""

    name: str
    suite: str
    x: np.ndarray  # (points,)
    y: np.ndarray
    truth: Formula | None
    length: int
    accept: tuple[str, ...] = ()  # the textbook forms of real data


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def suite_problems(path: Path, seed: int = 0) -> list[Problem]:
    """The one-variable formulas of `suites.csv`, sampled as the file says."""
    problems: list[Problem] = []
    for row in _rows(path):
        if row["n_vars"] != "1":
            continue
        formula = parse(row["expression"])
        spec = next(iter(json.loads(row["sampling"]).values()))
        rng = np.random.default_rng([seed, len(problems)])
        if "U" in spec:
            low, high, count = spec["U"]
            x = np.sort(rng.uniform(low, high, int(count)))
        else:
            low, high, step = spec["E"]
            x = (
                np.linspace(low, high, int(step))
                if step > high - low
                else low + step * np.arange(round((high - low) / step) + 1)
            )
        y = formula.evaluate(x[None])
        good = np.isfinite(y)
        problems.append(Problem(row["name"], row["suite"], x[good], y[good], formula, len(formula)))
    return problems


def heldout_problems(
    path: Path, *, noise: float = 0.0, points: int = 48, seed: int = 0, every: int = 1
) -> list[Problem]:
    """The random held-out formulas; `noise` is relative to the standard deviation of y; `every`
    takes each n-th.
    """
    problems = []
    for i, row in enumerate(_rows(path)):
        if i % every:
            continue
        formula = parse(row["expression"])
        rng = np.random.default_rng([seed, i])
        x = np.sort(rng.uniform(float(row["low"]), float(row["high"]), points))
        y = formula.evaluate(x[None])
        good = np.isfinite(y)
        y = y + noise * np.std(y[good]) * rng.normal(size=points)
        problems.append(
            Problem(
                row["name"],
                "held-out" if noise == 0 else f"held-out, {noise:.0%} noise",
                x[good],
                y[good],
                formula,
                int(row["length"]),
            )
        )
    return problems


def real_problems(folder: Path) -> list[Problem]:
    """The data sets of `problems.csv` with their textbook forms."""
    problems = []
    for row in _rows(folder / "problems.csv"):
        x, y = read_points(folder / row["file"])
        forms = tuple(
            f.strip() for f in (row["expression"], *row["accept"].split(";")) if f.strip()
        )
        problems.append(Problem(row["name"], "real data", x[:, 0], y, None, 0, forms))
    return problems


def unexplained(truth: Formula, found: Formula, x: np.ndarray) -> float:
    """FVU of `found` against `truth` at x, over the points where the truth is finite; infinite
    where only the truth is.
    """
    y = truth.evaluate(x[None])
    good = np.isfinite(y) & (np.abs(y) < 1e100)
    if good.sum() < 10:
        return 0.0
    guess = found.evaluate(x[None])[good]
    if not np.all(np.abs(guess) < 1e150):  # not finite, or too large to be squared
        return float("inf")
    variance = float(np.mean((y[good] - np.mean(y[good])) ** 2))
    return float(np.mean((y[good] - guess) ** 2)) / max(variance, 1e-300)


def strict_fvu(problem: Problem, found: Formula, seed: int = 1) -> tuple[float, float]:
    """FVU on 1000 fresh points in the range of the data, and on 1000 in a range twice as wide."""
    assert problem.truth is not None
    rng = np.random.default_rng(seed)
    low, high = float(problem.x.min()), float(problem.x.max())
    half = (high - low) / 2
    inside = rng.uniform(low, high, 1000)
    wide = rng.uniform(low - half, high + half, 1000)
    return unexplained(problem.truth, found, inside), unexplained(problem.truth, found, wide)


def recovered(problem: Problem, result: Result) -> bool:
    """The strict rule; with noise the constants are first fitted again on clean points, so that it
    asks for the form.
    """
    found = result.formula
    if problem.truth is None:
        return any(is_instance(found, form, problem) for form in problem.accept)
    if "noise" in problem.suite:
        clean = problem.truth.evaluate(problem.x[None])
        refitted = refine_constants(split_terms(found), problem.x[None], clean)
        if refitted is None:
            return False
        found = refitted.formula()
    return max(strict_fvu(problem, found)) <= STRICT


def _substitute(form: str, numbers: dict[str, str]) -> str:
    """The text with numbers in place of the letters a to d."""
    return re.sub(r"\b([a-d])\b", lambda m: numbers[m.group(1)], form)


def is_instance(found: Formula, form: str, problem: Problem) -> bool:
    """True if `form`, with some choice of its constants a, b, c, equals the found formula over the
    range of the data and half beyond it.
    """
    low, high = float(problem.x.min()), float(problem.x.max())
    x = np.linspace(low, high + (high - low) / 2, 120)
    y = found.evaluate(x[None])
    if not np.all(np.isfinite(y)) or np.ptp(y) == 0:
        return False
    if not found.functions() <= parse(re.sub(r"\b([a-d])\b", "2.5", form)).functions():
        return False  # a cosine that imitates a fraction is not the textbook's form
    rng = np.random.default_rng(0)
    for _ in range(60):
        sizes = {
            name: float(
                np.exp(rng.uniform(-1, 1))
                * (1 if rng.random() < 0.8 else -1)
                * (1 if rng.random() < 0.5 else 10.0 ** rng.uniform(-3, 4))
            )
            for name in "abcd"
        }
        try:
            start = parse(_substitute(form, {name: f"({v!r})" for name, v in sizes.items()}))
        except FormulaError:
            continue
        fitted = refine_constants(split_terms(start), x[None], y)
        if fitted is not None and fitted.fvu < 1e-6:
            return True
    return False


def null_model(
    model: RefineMath, seed: int = 99, per_length: int = 60_000, *, search: bool = False
) -> RefineMath:
    """The network switched off: candidates are drawn blindly from the training prior, the formulas
    that are made and kept as for training.

    With `search`, the search goes on as usual (edits, missing terms, pairs of parts); without it,
    draws and the fit of their constants are all.
    """
    budget = (
        replace(model.budget, network=False)
        if search
        else replace(model.budget, network=False, edits=0, couples=0)
    )
    return _changed(model, budget=budget, prior=_blind_prior(seed, per_length))


def _changed(model: RefineMath, **settings: Any) -> RefineMath:
    other = copy.copy(model)
    vars(other).update(settings)
    return other


@functools.cache
def _blind_prior(seed: int, per_length: int) -> np.ndarray:
    return np.asarray(build_table(per_length, seed=seed, excluded=training_exclusions()[0]).tokens)


def warm_up(model: RefineMath, problems: Sequence[Problem]) -> None:
    """Compile outside the clock: the search for few points and the one for many, as the problems
    need them.
    """
    for problem in {len(p.y) <= POINTS // 2: p for p in problems}.values():
        model.solve(problem.x, problem.y, time_budget=0.01)


def _settled(result: Result, threshold: float) -> float:
    """Share of the thoughts that halted: their velocity is 0 from then on, or was under the
    threshold at the last two steps.
    """
    last = result.velocity[-2:]
    return round(float(np.mean(np.all(last < threshold, axis=0))), 4) if last.size else 1.0


def run(
    model: RefineMath,
    problems: Iterable[Problem],
    *,
    threshold: float = 1e-5,
    time_budget: float = 8.0,
    seed: int = 0,
    show: bool = True,
) -> list[dict[str, Any]]:
    """Solve every problem; one record each."""
    records = []
    for problem in problems:
        result = model.solve(
            problem.x, problem.y, threshold=threshold, time_budget=time_budget, seed=seed
        )
        record = {
            "name": problem.name,
            "suite": problem.suite,
            "length": problem.length,
            "recovered": recovered(problem, result),
            "fvu": result.fvu,
            "seconds": round(result.seconds, 3),
            "iterations": result.iterations,
            "converged": result.converged,
            "searches": result.searches,
            "steps": result.steps,
            "settled": _settled(result, threshold),
            "formula": str(result.sympy()),
        }
        records.append(record)
        if show:
            mark = "+" if record["recovered"] else "-"
            print(
                f"{mark} {problem.name:16s} {result.seconds:6.2f} s {result.iterations:3d} it  "
                f"FVU {result.fvu:8.1e}  {str(result.sympy())[:90]}",
                flush=True,
            )
    return records


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and medians of a list of records."""
    seconds = sorted(r["seconds"] for r in records)
    by_length: dict[int, list[bool]] = {}
    for r in records:
        by_length.setdefault(r["length"], []).append(r["recovered"])
    return {
        "problems": len(records),
        "recovered": sum(r["recovered"] for r in records),
        "share": round(sum(r["recovered"] for r in records) / max(len(records), 1), 4),
        "converged": round(float(np.mean([r["converged"] for r in records])), 4),
        "settled": round(float(np.mean([r["settled"] for r in records])), 4),
        "seconds_median": seconds[len(seconds) // 2] if seconds else 0.0,
        "iterations_median": float(np.median([r["iterations"] for r in records])),
        "by_length": {str(k): [sum(v), len(v)] for k, v in sorted(by_length.items())},
    }


def environment(command: str) -> dict[str, Any]:
    """What a record needs to be repeated: command, commit, versions, hardware, date."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "command": command,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "hardware": f"{platform.machine()}, {jax.device_count()} {jax.default_backend()} device(s)",
    }


def evaluate(
    model: RefineMath,
    data: Path,
    *,
    parts: list[str],
    systems: list[str],
    time_budget: float,
    every: int,
    out: Path | None,
    command: str,
) -> dict[str, Any]:
    """Run the chosen parts for the chosen systems and write one JSON file; what it holds of other
    runs stays, each with its own command.
    """
    sets = {
        "suites": lambda: suite_problems(data / "suites.csv"),
        "heldout": lambda: heldout_problems(data / "heldout.csv", every=every),
        "noise": lambda: heldout_problems(data / "heldout.csv", noise=0.01, every=every),
        "real": lambda: real_problems(data),
    }
    origin = {**environment(command), "time_budget": time_budget}
    report: dict[str, Any] = {**origin, "budget": asdict(model.budget), "results": {}}
    if out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}")
    if out is not None and out.exists():
        old = json.loads(out.read_text(encoding="utf-8"))
        if not isinstance(old, dict) or not isinstance(old.get("results"), dict):
            raise ValueError(f"{out} is not a record of evaluate; choose another file")
        report["results"] = old["results"]
    for system in systems:
        runner = _variant(model, system)
        for part in parts:
            problems = sets[part]()
            warm_up(runner, problems)
            records = run(runner, problems, time_budget=time_budget)
            report["results"][f"{system}/{part}"] = {
                "origin": origin,
                "summary": summary(records),
                "records": records,
            }
            print(
                f"{system}/{part}: {report['results'][f'{system}/{part}']['summary']}", flush=True
            )
            if out is not None:
                with weights.in_one_step(out) as file:
                    file.write((json.dumps(report, indent=1) + "\n").encode())
    return report


def _variant(model: RefineMath, system: str) -> RefineMath:
    if system == "refinemath":
        return model
    if system == "no-sweep":
        return _changed(model, sweep=False)
    if system == "no-edits":
        return _changed(model, budget=replace(model.budget, edits=0, couples=0))
    if system in ("null", "null-edits"):
        return null_model(model, search=system == "null-edits")
    raise ValueError(f"unknown system {system!r}; known are {', '.join(SYSTEMS)}")


SYSTEMS = ("refinemath", "no-sweep", "no-edits", "null", "null-edits")


PARTS = ("suites", "heldout", "noise", "real")


__all__ = [
    "PARTS",
    "SYSTEMS",
    "Problem",
    "evaluate",
    "heldout_problems",
    "is_instance",
    "real_problems",
    "recovered",
    "run",
    "suite_problems",
]
