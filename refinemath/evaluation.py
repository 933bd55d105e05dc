"""Measuring recovery: benchmark suites, held-out formulas and real data, with proposers switched on
and off by name at the same clock.  (Chapters 10, 11)

Recovered means: on 1000 fresh points in the range of the data, and on 1000 in a range twice as
wide, the fraction of variance unexplained is at most 1e-10 in float64 wherever the true formula is
finite.
"""

from __future__ import annotations

import csv
import json
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from refinemath import weights
from refinemath.answer.solution import fraction_unexplained, refine_constants
from refinemath.engine import search_room
from refinemath.expression import VARIABLES, Formula, FormulaError, split_terms
from refinemath.problem import prepare
from refinemath.proposers.registry import DEFAULT
from refinemath.reading import read_table
from refinemath.result import Result
from refinemath.solver import RefineMath
from refinemath.text import parse

STRICT = 1e-10


@dataclass(frozen=True)
class Problem:
    """Points and, where it is known, the formula behind them."""

    name: str
    suite: str
    x: np.ndarray  # (points, variables)
    y: np.ndarray
    truth: Formula | None
    length: int  # tokens; of a held-out formula, without its free coefficients
    accept: tuple[str, ...] = ()  # the textbook forms of real data
    noise: float = 0.0


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw_x(spec: dict[str, Any], variables: int, rng: np.random.Generator) -> np.ndarray:
    """Inputs (points, variables) as a sampling text says: "U" for uniform, "E" for a grid.

    A grid over several variables is the product of the grids, thinned to 1,000 points.
    """
    columns = []
    for v in range(variables):
        own = spec.get(f"x{v + 1}") or spec.get("all") or next(iter(spec.values()))
        if "U" in own:
            low, high, count = (*own["U"], 100)[:3]
            columns.append(rng.uniform(low, high, int(count)))
        else:
            low, high, step = own["E"]
            count = round((high - low) / step) + 1
            even = step > high - low
            columns.append(
                np.linspace(low, high, int(step)) if even else low + step * np.arange(count)
            )
    if variables == 1:
        return np.sort(columns[0])[:, None]
    if len({len(c) for c in columns}) == 1 and "U" in json.dumps(spec):
        return np.stack(columns, axis=1)
    grid = np.stack(np.meshgrid(*columns, indexing="ij"), axis=-1).reshape(-1, variables)
    return grid if len(grid) <= 1000 else grid[rng.choice(len(grid), 1000, replace=False)]


def suite_problems(
    path: Path, *, noise: float = 0.0, seed: int = 0, variables: Sequence[int] = (1,)
) -> list[Problem]:
    """The formulas of `suites.csv` in so many variables, sampled as the file says."""
    problems: list[Problem] = []
    for row in _rows(path):
        count = int(row["n_vars"])
        if count in variables:
            rng = np.random.default_rng([seed, len(problems)])
            x = draw_x(json.loads(row["sampling"]), count, rng)
            outer = re.match(r"a(sin|cos)\(", row["expression"])
            formula = parse(row["expression"][outer.end() - 1 if outer else 0 :])
            problem = _sampled(row["name"], row["suite"], x, formula, noise, rng)
            problems.append(_inverted(problem, outer[1], rng) if outer else problem)
    return problems


def _inverted(problem: Problem, function: str, rng: np.random.Generator) -> Problem:
    """With the inverse sine or cosine of y, which no formula of the language can say: without a
    truth and an accepted form it counts as not recovered.
    """
    assert problem.truth is not None
    y = {"sin": np.arcsin, "cos": np.arccos}[function](problem.truth.evaluate(problem.x.T))
    y = y + problem.noise * np.std(y) * rng.normal(size=len(y))
    return replace(problem, y=y, truth=None, length=problem.length + 1)


def _sampled(
    name: str, suite: str, x: np.ndarray, truth: Formula, noise: float, rng: np.random.Generator
) -> Problem:
    """The problem, with noise in units of the spread of y; rows where y is undefined go."""
    y = truth.evaluate(x.T)
    good = np.isfinite(y)
    y = y + noise * np.std(y[good]) * rng.normal(size=len(y))
    suite = suite if noise == 0 else f"{suite}, {noise:.0%} noise"
    return Problem(name, suite, x[good], y[good], truth, len(truth), noise=noise)


def heldout_problems(
    path: Path, *, noise: float = 0.0, points: int = 48, seed: int = 0, every: int = 1
) -> list[Problem]:
    """The random held-out formulas; `noise` is relative to the standard deviation of y; `every`
    takes each n-th.
    """
    problems = []
    for i, row in enumerate(_rows(path)):
        if i % every == 0:
            rng = np.random.default_rng([seed, i])
            x = np.sort(rng.uniform(float(row["low"]), float(row["high"]), points))[:, None]
            formula = parse(row["expression"])
            problem = _sampled(row["name"], "held-out", x, formula, noise, rng)
            problems.append(replace(problem, length=int(row["length"])))
    return problems


def listed_problems(path: Path, suite: str, *, noise: float = 0.0, seed: int = 0) -> list[Problem]:
    """The held-out formulas of a file with a column `sampling`: several variables, or deep ones."""
    problems = []
    for i, row in enumerate(_rows(path)):
        rng = np.random.default_rng([seed, i])
        x = draw_x(json.loads(row["sampling"]), int(row["variables"]), rng)
        problem = _sampled(row["name"], suite, x, parse(row["expression"]), noise, rng)
        problems.append(replace(problem, length=int(row["length"])))
    return problems


def real_problems(folder: Path) -> list[Problem]:
    """The data sets of `problems.csv` and `problems_tables.csv` with their textbook forms."""
    problems = []
    for row in (*_rows(folder / "problems.csv"), *_rows(folder / "problems_tables.csv")):
        table = read_table(folder / row["file"])
        texts = (row["expression"], *row["accept"].split(";"))
        forms = tuple(form.strip() for form in texts if form.strip())
        problems.append(Problem(row["name"], "real data", table.x, table.y, None, 0, forms))
    return problems


def spread_points(low: np.ndarray, high: np.ndarray, count: int) -> np.ndarray:
    """Points (variables, count) that fill a box evenly: a line, or a Kronecker sequence."""
    if len(low) == 1:
        return np.linspace(low[0], high[0], count)[None]
    step = np.sqrt([2, 3, 5, 7, 11, 13, 17, 19, 23, 29])[: len(low)]
    return (low + (high - low) * ((np.arange(1, count + 1)[:, None] * step) % 1.0)).T


def unexplained(truth: Formula, found: Formula, x: np.ndarray) -> float:
    """FVU of `found` against `truth` at x (variables, points), over the points where the truth is
    finite; infinite where only the truth is.
    """
    y = truth.evaluate(x)
    good = np.isfinite(y) & (np.abs(y) < 1e100)
    if good.sum() < 10:
        return 0.0
    guess = found.evaluate(x)[good]
    if not np.all(np.abs(guess) < 1e150):  # not finite, or too large to be squared
        return float("inf")
    return fraction_unexplained(y[good] - guess, y[good])


def strict_fvu(problem: Problem, found: Formula, seed: int = 1) -> tuple[float, float]:
    """FVU on 1000 fresh points in the range of the data, and on 1000 in a range twice as wide."""
    assert problem.truth is not None
    rng = np.random.default_rng(seed)
    low, high = problem.x.min(axis=0), problem.x.max(axis=0)
    half, size = (high - low) / 2, (1000, len(low))
    inside = rng.uniform(low, high, size).T
    wide = rng.uniform(low - half, high + half, size).T
    return unexplained(problem.truth, found, inside), unexplained(problem.truth, found, wide)


def recovered(problem: Problem, result: Result) -> bool:
    """The strict rule; with noise the constants are first fitted again on clean points, so that it
    asks for the form.
    """
    found = result.formula
    if problem.truth is None:
        return any(is_instance(found, form, problem) for form in problem.accept)
    if problem.noise:
        clean = problem.truth.evaluate(problem.x.T)
        refitted = refine_constants(split_terms(found), problem.x.T, clean)
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
    low, high = problem.x.min(axis=0), problem.x.max(axis=0)
    x = spread_points(low, high + (high - low) / 2, 120)
    y = found.evaluate(x)
    if not np.all(np.isfinite(y)) or np.ptp(y) == 0:
        return False
    law = parse(re.sub(r"\b([a-d])\b", "2.5", form))
    if not found.functions() <= law.functions():
        return False  # a cosine that imitates a fraction is not the textbook's form
    if set(law.parts) & set(VARIABLES) != set(found.parts) & set(VARIABLES):
        return False  # a power law with exponent 0 has lost a variable
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
        fitted = refine_constants(split_terms(start), x, y)
        if fitted is not None and fitted.fvu < 1e-6:
            return True
    return False


def systems(
    without: Sequence[str] = (), only: Sequence[str] = (), *, ablation: bool = False
) -> dict[str, frozenset[str]]:
    """Sets of proposers by a label: all of them, or without some, or some alone.

    "null" is the whole search with blind draws in place of the network's samples.  With `ablation`,
    every proposer is left out once and is alone once.
    """
    null = DEFAULT - {"network"} | {"prior"}
    if ablation:
        left_out = {f"without {name}": DEFAULT - {name} for name in sorted(DEFAULT)}
        alone = {f"only {name}": frozenset({name}) for name in sorted(DEFAULT | {"prior"})}
        return {"all": DEFAULT, "null": null, **left_out, **alone}
    if only:
        return {f"only {' '.join(only)}": frozenset(only)}
    if without:
        return {f"without {' '.join(without)}": DEFAULT - set(without)}
    return {"all": DEFAULT, "null": null}


def warm_up(model: RefineMath, problems: Sequence[Problem]) -> None:
    """Compile outside the clock: every number of variables and every size of search that occurs."""
    kinds = {(p.x.shape[1], search_room(prepare(p.x, p.y))): p for p in problems}
    for problem in kinds.values():
        model.solve(problem.x, problem.y, time_budget=0.01)


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
            "variables": problem.x.shape[1],
            "length": problem.length,
            "recovered": recovered(problem, result),
            "fvu": result.fvu,
            "seconds": round(result.seconds, 3),
            "iterations": result.iterations,
            "converged": result.converged,
            "searches": result.searches,
            "steps": result.steps,
            "formula": str(result.sympy()),
        }
        records.append(record)
        if show:
            mark, text = "+" if record["recovered"] else "-", record["formula"][:80]
            print(
                f"{mark} {problem.name:16s} {result.seconds:6.2f} s  FVU {result.fvu:8.1e}  {text}",
                flush=True,
            )
    return records


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and medians of a list of records."""
    seconds = [r["seconds"] for r in records]

    def counts(field: str) -> dict[str, list[int]]:
        groups: dict[int, list[bool]] = {}
        for r in records:
            groups.setdefault(r.get(field, 1), []).append(r["recovered"])
        return {str(k): [sum(v), len(v)] for k, v in sorted(groups.items())}

    return {
        "problems": len(records),
        "recovered": sum(r["recovered"] for r in records),
        "share": round(sum(r["recovered"] for r in records) / max(len(records), 1), 4),
        "converged": round(float(np.mean([r["converged"] for r in records])), 4),
        "seconds_median": float(np.median(seconds)) if seconds else 0.0,
        "iterations_median": float(np.median([r["iterations"] for r in records])),
        "by_length": counts("length"),
        "by_variables": counts("variables"),
    }


def environment(command: str) -> dict[str, Any]:
    """What a record needs to be repeated: command, commit, versions, hardware, date."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    try:
        here = Path(__file__).parent
        asked = subprocess.run(git, cwd=here, capture_output=True, text=True, check=True)
        commit = asked.stdout.strip()
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


PARTS = ("suites", "heldout", "noise", "real", "tables", "feynman", "wide", "deep")


def problems_of(part: str, data: Path, every: int = 1) -> list[Problem]:
    """The problems of one part of the evaluation, of files in the folder `data`."""
    match part:
        case "suites" | "tables" | "feynman":
            wanted = (1,) if part == "suites" else tuple(range(1, 11))
            problems = suite_problems(data / "suites.csv", variables=wanted)
            laws = [p for p in problems if p.suite == "Feynman"]
            others = [p for p in problems if p.suite != "Feynman"]
            several = [p for p in others if p.x.shape[1] > 1]
            return {"suites": others, "tables": several, "feynman": laws}[part][::every]
        case "heldout" | "noise":
            noise = 0.01 if part == "noise" else 0.0
            return heldout_problems(data / "heldout.csv", noise=noise, every=every)
        case "real":
            return real_problems(data)
        case "wide" | "deep":
            file = "heldout_tables.csv" if part == "wide" else "deep.csv"
            return listed_problems(data / file, part)[::every]
    raise ValueError(f"unknown part {part!r}; known are {', '.join(PARTS)}")


def evaluate(
    models: dict[str, RefineMath],
    data: Path,
    *,
    parts: list[str],
    time_budget: float,
    every: int,
    out: Path | None,
    command: str,
) -> dict[str, Any]:
    """Run the chosen parts for some systems and write one JSON file; what it holds of other runs
    stays, each with its own command.
    """
    origin = {**environment(command), "time_budget": time_budget}
    report: dict[str, Any] = {**origin, "results": {}}
    if out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}")
    if out is not None and out.exists():
        old = json.loads(out.read_text(encoding="utf-8"))
        if not isinstance(old, dict) or not isinstance(old.get("results"), dict):
            raise ValueError(f"{out} is not a record of evaluate; choose another file")
        report["results"] = old["results"]
    for label, model in models.items():
        for part in parts:
            problems = problems_of(part, data, every)
            warm_up(model, problems)
            records = run(model, problems, time_budget=time_budget)
            entry = {"origin": origin, "summary": summary(records), "records": records}
            report["results"][f"{label}/{part}"] = entry
            print(f"{label}/{part}: {entry['summary']}", flush=True)
            if out is not None:
                with weights.in_one_step(out) as file:
                    file.write((json.dumps(report, indent=1) + "\n").encode())
    return report
