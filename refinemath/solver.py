"""`RefineMath`: from points to a formula.  (Chapters 0, 8, 10)"""

from __future__ import annotations

import contextlib
import functools
import numbers
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from refinemath.answer.choose import Answers
from refinemath.answer.targets import target_transforms
from refinemath.answer.units import read_units
from refinemath.compiled import SearchRecord
from refinemath.control import Progress, make_control, searched_points
from refinemath.engine import Engine
from refinemath.expression import SLOTS
from refinemath.finish import make_result
from refinemath.loop import HostProposer, Proposer, SearchConfig, declares
from refinemath.operators import OPERATOR_NAMES
from refinemath.problem import DataError, prepare
from refinemath.proposers.registry import DEFAULT, resolve
from refinemath.reading import read_table
from refinemath.result import Result, constant_result
from refinemath.schedule import Schedule
from refinemath.weights import Weights, load_weights, shipped_weights

SLOTS_SEVERAL = 24  # tokens of a formula in several variables
PATIENCE = 3  # further searches without a better formula before giving up


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


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral)  # NumPy's whole numbers as well


class RefineMath:
    """A model that turns points into a formula.

    `latent_dim`: the width of the latent; weights of this width must be in the package or given as
    `weights`, the path of a file that training wrote.  `max_iters`: the most refiner steps of one
    search.  `proposers`: what proposes formulas, by name (see `proposers.registry`) or as objects;
    `DEFAULT - {"pairs"}` leaves one out.  `config`: the sizes of a search; its `steps` become
    `max_iters`, and its `search_steps` half of them if they are more.  `transforms`: whether
    searches after the first also look at transformed targets, such as log y, which is simple where
    y is exp of something simple.
    """

    def __init__(
        self,
        latent_dim: int = 512,
        max_iters: int = 32,
        *,
        weights: str | Path | None = None,
        proposers: Iterable[str | Proposer | HostProposer] = DEFAULT,
        config: SearchConfig | None = None,
        transforms: bool = True,
        patience: int = PATIENCE,
    ):
        for name, value, most in (
            ("max_iters", max_iters, 1024),
            ("latent_dim", latent_dim, 2**31),
        ):
            if not _is_whole(value) or not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 to {most}")
        if not _is_whole(patience) or patience < 0:
            raise ValueError(f"patience is {patience!r}; it must be a whole number, 0 or more")
        self.latent_dim = int(latent_dim)
        self.max_iters = int(max_iters)
        if not isinstance(weights, str | Path | None):
            raise ValueError(f"weights is {weights!r}; it must be the path of a weights file")
        self.weights = None if weights is None else Path(weights)
        every: tuple[Any, ...] = resolve(proposers)
        self.proposers: tuple[Proposer, ...] = tuple(p for p in every if not declares(p, "on_host"))
        self.on_host: tuple[HostProposer, ...] = tuple(p for p in every if declares(p, "on_host"))
        self.transforms = transforms
        self.patience = int(patience)
        base = config or SearchConfig()
        search_steps = min(base.search_steps, max(1, self.max_iters // 2))
        self.config = replace(base, steps=self.max_iters, search_steps=search_steps)

    @plain_float32()
    def solve(
        self,
        data: Any,
        y: Any = None,
        *,
        target: str | int | None = None,
        features: Sequence[str | int] | None = None,
        sigma: Any = None,
        error: str = "absolute",
        loss: str = "linear",
        operators: Iterable[str] | None = None,
        max_length: int | None = None,
        through_origin: bool = False,
        missing: str = "error",
        units: Mapping[str, str] | None = None,
        threshold: float = 1e-5,
        seed: int = 0,
        time_budget: float = 8.0,
        searches: int | None = None,
        callback: Callable[[Progress], Any] | None = None,
    ) -> Result:
        """Find a formula for the points; returns a `Result` that unpacks as `formula_latex,
        iterations`.

        `data`: rows (x, y), see `read_table` for all forms.  `target`, `features`: names or
        positions of the columns to explain and to explain it by (the last one, all others).
        `missing`: "drop" leaves out rows with gaps.  `sigma`: sizes of the errors of y, a column or
        an array; `error`, `loss`, `operators`, `max_length`, `through_origin`: see `make_control`.
        `units`: of columns by name, such as `{"v": "m/s"}`, for a dimensionally consistent formula.
        `threshold`: the relative latent velocity |Z_t - Z_{t-1}| / |Z_{t-1}| under which a thought
        has settled.  `seed`: its last 32 bits count.  `time_budget`: seconds within which the
        answer should be there, once all is compiled; where they are few the first search takes
        fewer steps.  `searches`: run so many, fewer if one is exact, and look at no clock: the same
        seed gives the same answer.  `callback` gets a `Progress` after each search, and ends them
        by returning True; so does Ctrl-C.  A poor fit is a result with `found` False, not an error.
        Raises `DataError`, `CheckpointError`, `ValueError`.
        """
        began = time.perf_counter()
        _check_options(threshold, seed, time_budget, searches)
        table = read_table(data, y, target=target, features=features, sigma=sigma, missing=missing)
        control = make_control(table, error, loss, operators, max_length, through_origin)
        engine = self._engine(len(table.names), control.operators)
        dimensions = read_units(units or {}, table.names, table.target)
        if table.constant:
            return replace(constant_result(table), seconds=time.perf_counter() - began)
        few = searched_points(table, control.errors)
        problem = prepare(table.x[few], table.y[few], table.names)
        answers, record = Answers(problem, control.allows, dimensions), None
        told: dict[str, Any] = {}
        if engine is None:
            self._ask_host(answers)
        else:
            limits = {"time_budget": time_budget, "patience": self.patience, "searches": searches}
            record, told = self._search(engine, answers, limits, int(seed), threshold, callback)
        result = replace(make_result(answers, record, table, control), units=dict(units or {}))
        return replace(result, seconds=time.perf_counter() - began, **told)

    def _search(
        self,
        engine: Engine,
        answers: Answers,
        limits: dict[str, Any],
        seed: int,
        threshold: float,
        callback: Callable[[Progress], Any] | None,
    ) -> tuple[SearchRecord, dict[str, Any]]:
        """All searches: fills `answers`; the record of the one that found the best, and what a
        result tells of them.
        """
        problem = answers.problem
        transforms = target_transforms(len(problem.x)) if self.transforms else ()
        pace, compile_seconds = engine.pace(problem)
        schedule = Schedule(problem, transforms, pace=pace, **limits)
        answers.reading_ends = schedule.reading_ends
        meanwhile = functools.partial(self._ask_host, answers)
        kept, steps = engine.search_all(schedule, answers, seed, callback, meanwhile)
        record = engine.record(schedule, *kept, threshold)
        steps += record.steps - record.searched
        told = {"steps": steps, "searches": schedule.turn + 1, "compile_seconds": compile_seconds}
        return record, told

    def _ask_host(self, answers: Answers) -> None:
        """Add what the proposers on the host find."""
        for proposer in self.on_host:
            answers.add_written(proposer.solutions(answers.problem.x, answers.problem.y))

    def parameters(self) -> Weights:
        """The weights that this model searches with.  Raises `CheckpointError`."""
        if self.weights is None:
            return shipped_weights(self.latent_dim)
        return load_weights(self.weights, self.latent_dim)

    def _engine(self, variables: int, operators: frozenset[str] = OPERATOR_NAMES) -> Engine | None:
        """What searches in so many variables.  Without weights for them the network is left out;
        None where only proposers on the host were asked for.
        """
        if not self.proposers:
            return None
        reads = any(declares(p, "reads_latents") for p in self.proposers)
        weights = self.parameters() if reads else None
        known = weights.config.variables if weights else 0
        if variables > known:
            weights = None
        proposers = tuple(p for p in self.proposers if weights or not declares(p, "reads_latents"))
        if not proposers:
            raise DataError(
                f"the data have {variables} variables; these weights handle {known}. "
                "Add other proposers, or train weights with "
                f"`python -m refinemath train --variables {variables}`"
            )
        slots = SLOTS if variables == 1 else SLOTS_SEVERAL
        slots = weights.config.slots if weights else slots
        return Engine(weights, proposers, self.config, slots, variables, operators)


def _check_options(threshold: Any, seed: Any, time_budget: Any, searches: Any) -> None:
    if not isinstance(threshold, numbers.Real) or not 0 < float(threshold) < 1:
        raise ValueError(f"threshold is {threshold!r}; it must be a number between 0 and 1")
    if not isinstance(time_budget, numbers.Real) or not float(time_budget) > 0:
        raise ValueError(f"time_budget is {time_budget!r}; it must be a positive number of seconds")
    if searches is not None and (not _is_whole(searches) or searches < 1):
        raise ValueError(f"searches is {searches!r}; it must be a whole number, 1 or more, or None")
    if not _is_whole(seed) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed!r}; it must be a whole number of at most 64 bits")
