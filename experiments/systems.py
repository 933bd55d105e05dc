"""Systems side by side: same data, same parameter count, same training time, same clock.

RefineMath as shipped; RefineMath (own), a tiny recursive model (trm) and a token-by-token decoder
(tokens), trained here for the same seconds of one core; the search with blind draws in place of a
network (null) and blind draws alone (prior); pyoperon and gplearn.  `--others none` leaves the
other proposers out of every search, so that each network stands alone.
"""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import numpy as np

from experiments import answers, measure, networks
from experiments.contenders import KINDS, SEARCHES, TRAINED, sizes, solver, train_one
from experiments.programs import PROGRAMS, answer, symbolic
from experiments.runner import TRAINING, Experiment
from refinemath.evaluation import recovered


def tasks(options: Namespace) -> list[str]:
    """`train:trm:0`, then `answer:trm:0:suites`."""
    networks.material(options)
    seeds = range(options.seed, options.seed + options.seeds)
    training = [f"train:{s}:{n}" for n in seeds for s in options.systems if s in TRAINED]
    return training + [
        f"answer:{s}:{n}:{part}"
        for s in options.systems
        for n in (seeds if s in TRAINED else seeds[:1])
        for part in options.parts
    ]


def task(options: Namespace, name: str) -> Any:
    """Train a network, or answer the problems of a part: one record a problem."""
    what, system, seed, *part = name.split(":")
    if what == "train":
        return train_one(options, system, int(seed))
    chosen = answers.problems(options, part[0])
    if system in PROGRAMS:
        found = (answer(p, system, seconds=options.clock, seed=int(seed)) for p in chosen)
    else:
        model = solver(options, system, int(seed))
        solved = answers.answers(options, model, chosen, int(seed))
        found = ((result.formula, result.seconds) for _, result, _ in solved)
    return [
        {
            "name": problem.name,
            "recovered": recovered(problem, SimpleNamespace(formula=formula)),  # type: ignore[arg-type]
            "seconds": seconds,
            "symbolic": symbolic(problem, formula),
            "length": len(formula),
            "formula": str(formula),
        }
        for problem, (formula, seconds) in zip(chosen, found, strict=True)
    ]


def row(records: dict[str, Any], system: str, part: str) -> dict[str, Any]:
    """One system on one part: seeds averaged a problem, intervals over problems."""

    def several(system: str, what: str) -> np.ndarray:
        names = [n for n in records if n.startswith(f"answer:{system}:") and n.endswith(part)]
        return np.array([[r[what] for r in records[n]] for n in names])

    right, proved = several(system, "recovered"), several(system, "symbolic")
    out = {
        "seeds": len(right),
        "recovered": measure.interval(right.mean(0)),
        "symbolic": measure.interval((proved == "yes").mean(0)),
        "undecided": float((proved == "undecided").mean()),
        "seconds": measure.interval(np.median(several(system, "seconds"), axis=0), np.median),
        "length": float(np.median(several(system, "length"))),
    }
    null = several("null", "recovered")
    if len(null):
        out["over null"] = measure.difference(right.mean(0), null.mean(0))
    return out


def report(options: Namespace, records: dict[str, Any]) -> dict[str, Any]:
    """Parameters, and a row a system and part."""
    counts = {n: networks.size_of(config, KINDS[n]) for n, config in sizes(options).items()}
    pairs = [(s, part) for s in options.systems for part in options.parts]
    table = {f"{s}/{part}": row(records, s, part) for s, part in pairs}
    return {"parameters": counts, "table": table, "records": records}


EXPERIMENT = Experiment(
    "systems",
    __doc__,
    tasks,
    task,
    report,
    shared=(*TRAINING, "parts", "every", "clock"),
    options={"systems": [*SEARCHES, *TRAINED, *PROGRAMS], "others": "all", "samples": 4096},
    quick={"systems": ["trm", "tokens"], "others": "none", "samples": 64},
    alone=("train",),
)
