"""What is each proposer worth?  The search with all of them, without each, with each alone, with
blind draws for the network (null), and without transformed targets, at one clock, all on the same
problems.  `--table depth`: the network alone, and as many blind draws, by latents and steps.

A problem is one task, so an interrupted run goes on with the next; pairs are with the first system.
"""

from __future__ import annotations

import functools
from argparse import Namespace
from dataclasses import replace
from typing import Any

import numpy as np

from experiments import answers, measure
from experiments.contenders import SYSTEMS, TABLES
from experiments.runner import Experiment
from refinemath import RefineMath, SearchConfig
from refinemath.engine import search_room
from refinemath.evaluation import PARTS, Problem, recovered
from refinemath.problem import prepare
from refinemath.proposers.registry import DEFAULT


def chosen(options: Namespace) -> list[str]:
    """The systems of the table, or those that were named."""
    return list(TABLES[options.table] if options.systems == ["every"] else options.systems)


def set_of(options: Namespace) -> str:
    """A name for the systems: a problem is done when all of them have solved it."""
    return options.table if options.systems == ["every"] else "+".join(options.systems)


@functools.cache
def problems(part: str, every: int, quick: bool) -> dict[str, Problem]:
    """The problems of a part by name."""
    options = Namespace(every=every, quick=quick)
    return {p.name: p for p in answers.problems(options, part)}


@functools.cache
def compiled_solver(quick: bool, system: str, columns: int, room: int) -> RefineMath:
    """A system, compiled outside the clock for problems of this shape."""
    model = answers.solver(Namespace(quick=quick), **SYSTEMS[system])
    x = np.random.default_rng(0).uniform(1, 2, (room, columns))
    model.solve(x, np.sin(x[:, 0]), time_budget=0.01)
    return model


def tasks(options: Namespace) -> list[str]:
    """Seconds a step of every system, then every problem."""
    names, label = [f"step:{system}" for system in chosen(options)], set_of(options)
    for part in options.parts:
        names += [f"{label}:{part}:{p}" for p in problems(part, options.every, options.quick)]
    return names


def task(options: Namespace, name: str) -> Any:
    """`step:without pairs`, or `proposers:heldout:heldout-000`."""
    if name.startswith("step:"):
        return seconds_a_step(options, name.removeprefix("step:"))
    _, part, which = name.split(":", 2)
    problem = problems(part, options.every, options.quick)[which]
    shape = problem.x.shape[1], search_room(prepare(problem.x, problem.y))
    names = chosen(options)
    turn = sum(map(ord, which)) % len(names)  # nobody always goes first
    row: dict[str, Any] = {"name": which, "length": problem.length}
    for system in [*names[turn:], *names[:turn]]:
        model = compiled_solver(options.quick, system, *shape)
        result = model.solve(problem.x, problem.y, time_budget=options.clock, seed=options.seed)
        row[system] = {"recovered": recovered(problem, result), "seconds": result.seconds}
        row[system]["searches"] = result.searches
    return row


def seconds_a_step(options: Namespace, system: str) -> list[float]:
    """Seconds of a step, from searches of one step and of many that never end early."""
    problem = next(iter(problems("heldout", 150, True).values()))
    own = SYSTEMS[system]
    config = answers.QUICK if options.quick else own.get("config", SearchConfig())
    config = replace(config, solved=0.0, shorten=64)
    call = functools.partial(answers.search, problem, config, own.get("proposers", DEFAULT))
    calls = {n: functools.partial(call, limit=n) for n in (1, config.search_steps)}
    one, many = measure.in_turns(calls, options.repeats).values()
    return list((np.array(many) - np.array(one)) / (config.search_steps - 1))


def report(options: Namespace, records: dict[str, Any]) -> dict[str, Any]:
    """Of every system the seconds a step, and of every part what it recovers, beside the first."""
    table: dict[str, Any] = {}
    first, *_ = names = chosen(options)
    for system in names:
        steps = measure.interval(records[f"step:{system}"], np.median)
        table[system] = row = {"seconds a step": steps}
        for part in options.parts:
            each = [r for name, r in records.items() if f":{part}:" in name]
            right, base = ([r[s]["recovered"] for r in each] for s in (system, first))
            seconds = [r[system]["seconds"] for r in each]
            row[part] = {
                "recovered": measure.interval(right),
                "seconds": measure.interval(seconds, np.median),
                f"against {first}": measure.paired(right, base),
            }
    return {"table": table, "each": {n: r for n, r in records.items() if n[:5] != "step:"}}


EXPERIMENT = Experiment(
    "ablation",
    __doc__,
    tasks,
    task,
    report,
    shared=("clock", "repeats"),
    options={"table": "proposers", "systems": ["every"], "every": 1, "parts": list(PARTS[:4])},
    quick={"systems": ["all", "only short"]},
)
