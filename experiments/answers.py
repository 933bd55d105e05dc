"""Problems, solvers, and single searches."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments import networks
from experiments.runner import DATA
from refinemath import RefineMath, Result, SearchConfig
from refinemath.compiled import no_rows, run_search
from refinemath.corpus.build import blind_table
from refinemath.engine import device_points
from refinemath.evaluation import Problem, problems_of, recovered, warm_up
from refinemath.loop import Proposer, SearchOutput, declares
from refinemath.problem import prepare
from refinemath.proposers.library import short_skeletons
from refinemath.proposers.registry import DEFAULT, resolve

QUICK = SearchConfig(latents=2, pool=32, refit=2, fit_steps=1, subtrees=32, search_steps=2)


def solver(
    options: Namespace, proposers: Iterable[str | Proposer] = DEFAULT, **given: Any
) -> RefineMath:
    """A solver with these proposers; small with `--quick`."""
    small = {"config": QUICK, "patience": 0, "max_iters": 4} if options.quick else {}
    return RefineMath(given.pop("latent_dim", 512), proposers=proposers, **{**given, **small})


def problems(options: Namespace, part: str = "heldout") -> list[Problem]:
    """Each `options.every`-th problem of a part; of suites and real data all, unless quick."""
    if part in ("heldout", "noise"):
        return problems_of(part, DATA, options.every)
    found = problems_of(part, DATA)
    return found[::10] if options.quick else found


def answers(
    options: Namespace, model: RefineMath, chosen: Sequence[Problem], seed: int = 0
) -> Iterator[tuple[Problem, Result, bool]]:
    """Each problem, the answer, and whether it is right; compiled before the first."""
    warm_up(model, chosen)
    for problem in chosen:
        result = model.solve(problem.x, problem.y, time_budget=options.clock, seed=seed)
        yield problem, result, recovered(problem, result)


def search(
    problem: Problem,
    config: SearchConfig,
    proposers: Iterable[str | Proposer] = DEFAULT,
    *,
    seed: int = 0,
    limit: int = 10**6,
) -> SearchOutput:
    """One compiled search of at most `limit` steps, by the shipped network where it is used."""
    chosen: Any = tuple(p for p in resolve(proposers) if not declares(p, "on_host"))
    traits = ("reads_latents", "uses_library", "uses_table")
    uses = {t: any(declares(p, t) for p in chosen) for t in traits}
    params, graph, shipped = networks.shipped()
    slots, read = shipped.slots, uses["reads_latents"]
    return run_search(
        params if read else None,
        graph if read else None,
        device_points(prepare(problem.x, problem.y)),
        jax.random.key(seed),
        jnp.asarray(short_skeletons(slots)) if uses["uses_library"] else no_rows(slots),
        jnp.asarray(blind_table(slots)) if uses["uses_table"] else no_rows(slots),
        jnp.int32(limit),
        proposers=chosen,
        config=config,
    )
