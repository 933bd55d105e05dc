"""The compiled search of one model in so many variables, run search after search.  (Chapter 8)"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from refinemath.answer.choose import Answers, Candidates
from refinemath.answer.targets import IDENTITY
from refinemath.compiled import SearchRecord, no_rows, record_search, run_search
from refinemath.control import Progress
from refinemath.corpus.build import blind_table
from refinemath.expression import Formula, decode
from refinemath.fitting import Points
from refinemath.loop import Proposer, SearchConfig, SearchOutput, declares
from refinemath.operators import OPERATOR_NAMES, forbidden_tokens, without_forbidden
from refinemath.pace import Pace, measure_pace
from refinemath.problem import SEARCH_POINTS, SEARCH_POINTS_SEVERAL, Problem, spread_out
from refinemath.proposers.library import short_skeletons
from refinemath.schedule import Schedule
from refinemath.weights import Weights

SHORT_SEARCH = 4  # search steps where the target is transformed: what is left is shorter


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


_PACES: dict[Any, Pace] = {}  # of every kind of search that this process has compiled


@dataclass(frozen=True)
class Engine:
    """The compiled search of one model in so many variables, with all that it only reads."""

    weights: Weights | None
    proposers: tuple[Proposer, ...]
    config: SearchConfig
    slots: int
    variables: int
    operators: frozenset[str]  # that a formula may use

    def search_all(
        self,
        schedule: Schedule,
        answers: Answers,
        seed: int,
        callback: Callable[[Progress], Any] | None,
        meanwhile: Callable[[], None],
    ) -> tuple[tuple[int, SearchOutput], int]:
        """Search after search, as the schedule says: fills `answers`, and gives the turn and the
        output of the one that found the best, and the steps of all.  Ctrl-C ends them once there is
        an answer.  `meanwhile`: work for the host during the first.
        """
        search = functools.partial(self.search, schedule, seed)
        output, steps = search(0), 0
        meanwhile()
        kept = 0, output
        try:
            while True:
                solved = float(output.pool.fvu[0]) <= self.config.solved  # waits for the device
                # the device searches on while the host reads
                ahead = search(schedule.turn + 1) if schedule.search_ended(solved=solved) else None
                seen, found = schedule.view(schedule.turn), pool_candidates(output, answers.allows)
                improved = answers.read(found, *seen)
                steps += int(output.steps)
                kept = (schedule.turn, output) if improved else kept
                stop = callback is not None and callback(schedule.progress(answers.best))
                if stop or schedule.reading_ended(improved=improved, exact=answers.exact):
                    break
                output = search(schedule.turn) if ahead is None else ahead
        except KeyboardInterrupt:
            if not steps:
                raise
        return kept, steps

    def search(self, schedule: Schedule, seed: int, turn: int) -> SearchOutput:
        """Start a search; the device goes on with it after this returns."""
        transform, seen = schedule.view(turn)
        limit = self.config.search_steps if transform == IDENTITY else SHORT_SEARCH
        points = device_points(seen, search_room(schedule.problem))
        key = jax.random.fold_in(jax.random.key(seed % 2**63), turn)
        output = self._run(points, key, schedule.search_steps(limit))
        schedule.search_started()
        return output

    def _run(self, points: Points, key: Array, limit: int) -> SearchOutput:
        return run_search(
            *self._model(),
            points,
            key,
            self._rows("uses_library", short_skeletons),
            self._rows("uses_table", blind_table),
            jnp.int32(limit),
            forbidden=jnp.asarray(forbidden_tokens(self.operators)),
            proposers=self.proposers,
            config=self.config,
        )

    def record(
        self, schedule: Schedule, turn: int, output: SearchOutput, threshold: float
    ) -> SearchRecord:
        """The record of a search; its latents come to rest first."""
        points = device_points(schedule.view(turn)[1], search_room(schedule.problem))
        return record_search(*self._model(), points, output, threshold, self.config)

    def pace(self, problem: Problem) -> tuple[Pace, float]:
        """How fast searches of such problems are, and the seconds that it took to find out.

        In the first call of a process all is compiled, and two searches of a few steps, of no other
        consequence, are timed.
        """
        shape = self.weights and self.weights.config
        room = search_room(problem)
        kind = (shape, self.proposers, self.config, self.slots, self.variables, room)
        began = time.perf_counter()
        if kind not in _PACES:
            points, model = device_points(problem, room), self._model()
            _PACES[kind] = measure_pace(
                lambda limit: self._run(points, jax.random.key(0), limit),
                lambda output: record_search(*model, points, output, 1.0, self.config),
            )
        return _PACES[kind], time.perf_counter() - began

    def _model(self) -> tuple[Any, Any]:
        return (None, None) if self.weights is None else self.weights[:2]

    def _rows(self, trait: str, make: Callable[[int, int], np.ndarray]) -> Array:
        """What proposers of a trait read, for these slots and variables; no rows if none does."""
        if any(declares(p, trait) for p in self.proposers):
            rows = make(self.slots, self.variables)
            if self.operators != OPERATOR_NAMES:
                rows = without_forbidden(rows, forbidden_tokens(self.operators))
            return jnp.asarray(rows)
        return no_rows(self.slots)


def pool_candidates(
    output: SearchOutput, allows: Callable[[Formula], bool] | None = None
) -> Candidates:
    """The formulas that a search remembers, on the host; a score of infinity for those that are not
    allowed.
    """
    tokens, values = np.asarray(output.pool.tokens), np.asarray(output.pool.values)
    score = np.array(output.pool.score)
    if allows is not None:
        rows = zip(tokens, values, strict=True)
        score[[not allows(decode(*row)) for row in rows]] = np.inf
    return Candidates(tokens, values, score)
