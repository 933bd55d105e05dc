"""`RefineMath`: from points to a formula.  (Chapters 0, 8, 10)"""

from __future__ import annotations

import contextlib
import functools
import numbers
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from refinemath import loop
from refinemath.answer.choose import Answers, Candidates, pareto_front, refit_transformed
from refinemath.answer.rounding import digits_needed
from refinemath.answer.solution import EXACT, Solution, fit_many_points
from refinemath.answer.symbolic import latex_of
from refinemath.answer.targets import IDENTITY, target_transforms
from refinemath.fitting import Points
from refinemath.loop import SearchConfig, SearchOutput
from refinemath.problem import (
    MOST_POINTS,
    SEARCH_POINTS,
    SEARCH_POINTS_SEVERAL,
    DataError,
    Problem,
    Table,
    prepare,
    read_table,
    spread_out,
)
from refinemath.proposers.library import short_skeletons
from refinemath.result import FOUND, Result, constant_result, judged
from refinemath.schedule import Schedule
from refinemath.weights import Weights, load_weights, shipped_weights

SHORT_SEARCH = 4  # search steps where the target is transformed: what is left is shorter


@contextlib.contextmanager
def plain_float32() -> Iterator[None]:
    """Inside, JAX computes in float32 all through, also where 64-bit numbers are switched on or a
    GPU would round the factors of its products.
    """
    new: Any = getattr(jax, "enable_x64", None)
    old: Any = getattr(jax.experimental, "disable_x64", None)  # before JAX 0.8
    narrow = old() if new is None else new(False)
    on_cpu = jax.default_backend() == "cpu"
    with narrow, contextlib.nullcontext() if on_cpu else jax.default_matmul_precision("highest"):
        yield


def search_room(problem: Problem) -> int:
    """How many points a search of a problem has room for: 32 or 64 for one variable, up to 256 for
    more.  A program is compiled for each size.
    """
    most = SEARCH_POINTS if len(problem.x) == 1 else SEARCH_POINTS_SEVERAL
    sizes = (SEARCH_POINTS // 2, SEARCH_POINTS, SEARCH_POINTS_SEVERAL)
    return next(size for size in sizes if size >= min(most, len(problem.y)))


def device_points(problem: Problem, room: int | None = None) -> Points:
    """What a search sees of a problem: points that cover the space, in float32, y without a large
    mean and of size 1, padded to `room` (`search_room`).
    """
    room = search_room(problem) if room is None else room
    chosen = spread_out(problem.u, room)
    y = problem.y[chosen]
    y = y - np.mean(y) if abs(np.mean(y)) > 10 * np.std(y) else y
    y = y / (float(np.sqrt(np.mean(y**2))) or 1.0)
    pad = (0, room - len(chosen))
    return Points(
        jnp.asarray(np.pad(problem.u[:, chosen], ((0, 0), pad))[None], jnp.float32),
        jnp.asarray(np.pad(y, pad)[None], jnp.float32),
        jnp.asarray((np.arange(room) < len(chosen))[None]),
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral)  # NumPy's whole numbers as well


class RefineMath:
    """A model that turns points into a formula.

    `latent_dim`: the width of the latent; weights of this width must be in the package or given as
    `weights`, the path of a file that training wrote.  `max_iters`: the most refiner steps of one
    search.  `budget`: how much each step may do, see `loop.SearchConfig`; its `steps` become
    `max_iters`, and its `search_steps` half of them if they are more. `initial_pool`: whether all
    formulas of up to five tokens are tried before the first step.  `undo`: whether searches after
    the first also look at the data with one operation undone, such as log y, which is the rest
    where y is exp of it.
    """

    def __init__(
        self,
        latent_dim: int = 512,
        max_iters: int = 32,
        *,
        weights: str | Path | None = None,
        budget: SearchConfig | None = None,
        sweep: bool = True,
        undo: bool = True,
    ):
        if not _is_whole(max_iters) or not 1 <= max_iters <= 1024:
            raise ValueError(
                f"max_iters is {max_iters!r}; it must be a whole number from 1 to 1024"
            )
        if not _is_whole(latent_dim) or latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim!r}; it must be a positive whole number")
        self.latent_dim = int(latent_dim)
        self.max_iters = int(max_iters)
        self.weights = None if weights is None else Path(weights)
        self.sweep = sweep
        self.undo = undo
        self.prior: np.ndarray | None = None  # skeletons for the null model
        base = budget or SearchConfig()
        self.budget = replace(
            base,
            steps=self.max_iters,
            search_steps=min(base.search_steps, max(1, self.max_iters // 2)),
        )

    @plain_float32()
    def solve(
        self,
        data: Any,
        y: Any = None,
        *,
        target: str | int | None = None,
        features: Sequence[str | int] | None = None,
        threshold: float = 1e-5,
        seed: int = 0,
        time_budget: float = 8.0,
    ) -> Result:
        """Find a formula for the points; returns a `Result` that unpacks as `formula_latex,
        iterations`.

        `data`: rows (x, y), see `read_table` for all forms.  `target`, `features`: names or
        positions of the columns to explain and to explain it by (the last one, all others).
        `threshold`: the relative latent velocity |Z_t - Z_{t-1}| / |Z_{t-1}| under which a thought
        has settled.  `seed`: makes the answer repeatable, where the same number of searches fits
        into the time; its last 32 bits count.  `time_budget`: seconds within which the last search
        should end (the first always runs).  A poor fit is a result with `found` False, not an
        error.  Raises `DataError`, `CheckpointError`, `ValueError`.
        """
        began = time.perf_counter()
        _check_options(threshold, seed, time_budget)
        table = read_table(data, y, target=target, features=features)
        weights = self.parameters()
        self._check_variables(weights, table)
        if table.constant:
            return replace(constant_result(table), seconds=time.perf_counter() - began)
        few = spread_out(table.x.T, MOST_POINTS) if len(table.y) > MOST_POINTS else slice(None)
        problem = prepare(table.x[few], table.y[few], table.names)
        schedule = Schedule(
            problem,
            target_transforms(len(table.names)) if self.undo else (),
            time_budget=time_budget,
            patience=self.budget.patience,
            began=began,
        )
        search = functools.partial(self._search, weights, schedule, threshold, int(seed))
        answers, output, steps = Answers(problem), search(0), 0
        kept = output
        while True:
            solved = _solved(output, self.budget)
            # the device searches on while the host reads
            ahead = search(schedule.turn + 1) if schedule.search_ended(solved=solved) else None
            steps += int(output.steps)
            view = schedule.view(schedule.turn)
            improved = answers.add(refit_transformed(pool_candidates(output), *view, problem))
            kept = output if improved else kept
            if schedule.reading_ended(improved=improved, exact=answers.exact):
                break
            output = search(schedule.turn) if ahead is None else ahead
        result = _result(answers, kept, table)
        seconds = time.perf_counter() - began
        return replace(result, searches=schedule.turn + 1, steps=steps, seconds=seconds)

    def _search(
        self, weights: Weights, schedule: Schedule, threshold: float, seed: int, turn: int
    ) -> SearchOutput:
        """Start a search; the device goes on with it after this returns.  The first one of a kind
        is compiled before.
        """
        transform, seen = schedule.view(turn)
        steps = self.budget.search_steps if transform == IDENTITY else SHORT_SEARCH
        slots = weights.config.slots
        nothing = np.zeros((0, slots), np.uint8)
        output = loop.search(
            weights.params,
            weights.graph,
            device_points(seen, search_room(schedule.problem)),
            jax.random.fold_in(jax.random.key(seed % 2**63), turn),
            jnp.float32(threshold),
            jnp.asarray(short_skeletons(slots, 32) if self.sweep else nothing),
            jnp.asarray(np.zeros((1, slots), np.uint8) if self.prior is None else self.prior),
            budget=self.budget,
            at_most=jnp.int32(steps),
        )
        schedule.search_started()
        return output

    def parameters(self) -> Weights:
        """The weights that this model searches with.  Raises `CheckpointError`."""
        if self.weights is None:
            return shipped_weights(self.latent_dim)
        return load_weights(self.weights, self.latent_dim)

    def _check_variables(self, weights: Weights, table: Table) -> None:
        """The one place that knows what a search cannot handle yet."""
        if len(table.names) != weights.config.variables:
            raise DataError(
                f"the data have {len(table.names)} variables; these weights handle "
                f"{weights.config.variables}. Train others with "
                f"`python -m refinemath train --variables {len(table.names)}`"
            )


def _check_options(threshold: Any, seed: Any, time_budget: Any) -> None:
    if not isinstance(threshold, numbers.Real) or not 0 < float(threshold) < 1:
        raise ValueError(f"threshold is {threshold!r}; it must be a number between 0 and 1")
    if not isinstance(time_budget, numbers.Real) or not float(time_budget) > 0:
        raise ValueError(f"time_budget is {time_budget!r}; it must be a positive number of seconds")
    if not _is_whole(seed) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed!r}; it must be a whole number of at most 64 bits")


def _solved(output: SearchOutput, budget: SearchConfig) -> bool:
    """Whether a search has found a formula that float32 cannot tell from exact; waits for it."""
    return float(output.pool.fvu[0]) <= budget.solved


def pool_candidates(output: SearchOutput) -> Candidates:
    """The formulas that a search remembers, on the host."""
    pool = output.pool
    return Candidates(np.asarray(pool.tokens), np.asarray(pool.values), np.asarray(pool.cost))


def _result(answers: Answers, output: SearchOutput, table: Table) -> Result:
    """The result for a table, with the search that has found the answer."""
    problem = answers.problem
    chosen = answers.best or Solution((), (), float(np.mean(problem.y)), 1.0)
    if len(table.y) > len(problem.y):
        chosen = fit_many_points(chosen, table.x.T, table.y)
    formula = chosen.formula()
    digits = digits_needed(formula, problem.x, problem.y)
    iterations = int(output.steps)
    result = Result(
        latex=latex_of(formula, digits, table.names),
        iterations=iterations,
        formula=formula,
        fvu=chosen.fvu,
        converged=bool(output.converged),
        exact=chosen.fvu < EXACT,
        found=chosen.fvu < FOUND,
        candidates=pareto_front(answers.solutions, problem, digits - 1),
        velocity=np.asarray(output.trace.velocity)[:iterations],
        outcome=output,
        x=table.x,
        y=table.y,
        digits=digits,
        names=table.names,
        target=table.target,
    )
    return judged(result, table.x, table.y) if len(table.y) > len(problem.y) else result
