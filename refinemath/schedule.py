"""What each search of a problem looks at, and whether there are time and patience for another.
(Chapter 8)
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import cached_property

from refinemath.answer.solution import Solution
from refinemath.answer.targets import IDENTITY, TargetTransform
from refinemath.control import Progress
from refinemath.pace import Pace
from refinemath.problem import Problem

RESERVE = 0.2  # share of the time that is kept for the reading of the last search and what follows


class Schedule:
    """The order of the searches, the clock, the patience and the look-ahead.

    The clock begins when the schedule is made: by then everything is compiled.  Where a number of
    `searches` is given, so many run, fewer only if one is exact, and nothing depends on the clock.

    The device searches on while the host reads what the last search has found: after every search
    `search_ended` says whether to start the next one at once, and after the reading
    `reading_ended` says whether that was the end.
    """

    def __init__(
        self,
        problem: Problem,
        transforms: Sequence[TargetTransform],
        *,
        time_budget: float,
        patience: int,
        pace: Pace,
        searches: int | None = None,
    ):
        began = time.perf_counter()
        self.problem = problem
        self.turn = 0  # the search whose result is read
        self._transforms = transforms
        self._began = began
        self._ends = math.inf if searches else began + time_budget
        self._reserve = RESERVE * time_budget
        self._pace = pace
        self._searches = searches
        self._patience = patience
        self._unimproved = 0  # searches of y itself since the answer last changed
        self._reading = 0.0  # seconds of the host for one search
        self._started = self._found = began
        self._time_left = True

    @cached_property
    def _views(self) -> list[tuple[TargetTransform, Problem]]:
        """y itself first and after every four transforms of it that the points allow."""
        allowed = [(t, seen) for t in self._transforms if (seen := t.forward(self.problem))]
        views: list[tuple[TargetTransform, Problem]] = []
        for i in range(0, max(len(allowed), 1), 4):
            views += [(IDENTITY, self.problem), *allowed[i : i + 4]]
        return views

    def view(self, turn: int) -> tuple[TargetTransform, Problem]:
        """The transform of the target in a search, and the points as the search sees them."""
        # most problems need one search, and no target is transformed for them
        return self._views[turn % len(self._views)] if turn else (IDENTITY, self.problem)

    @property
    def reading_ends(self) -> float:
        """The time on the clock after which a reading stops with what it has."""
        return self._ends - self._reserve / 2

    def search_steps(self, most: int) -> int:
        """Steps of the search that now starts: `most`, or what the time allows the first one."""
        if self.turn or self._ends == math.inf:
            return most
        left = self._ends - self._reserve - time.perf_counter() - self._pace.start
        return int(min(max(left / self._pace.step, 1), most))

    def search_started(self) -> None:
        """Note the time: the device is at work."""
        self._started = time.perf_counter()

    def search_ended(self, *, solved: bool) -> bool:
        """Whether the next search shall start before this one is read: there is time for it, and
        this one is not likely to be the last.
        """
        self._found = time.perf_counter()
        if self._searches:
            return not solved and self.turn + 1 < self._searches
        took = self._found - self._started
        self._time_left = self._found + self._reading + took <= self._ends
        return self._time_left and not solved and self._after(self.turn) < self._patience

    def reading_ended(self, *, improved: bool, exact: bool) -> bool:
        """Whether the search that was just read is the last; if not, `turn` is the next one."""
        self._reading = time.perf_counter() - self._found
        self._unimproved = 0 if improved else self._after(self.turn)
        if self._searches:
            last = exact or self.turn + 1 >= self._searches
        else:
            last = exact or not self._time_left or self._unimproved >= self._patience
        self.turn += not last
        return last

    def progress(self, best: Solution | None) -> Progress:
        """Where the searches stand after the one that was just read."""
        formula, fvu = (best.formula(), best.fvu) if best else (None, math.inf)
        seconds = time.perf_counter() - self._began
        return Progress(self.turn + 1, seconds, fvu, formula, self.problem.names)

    def _after(self, turn: int) -> int:
        """`unimproved` after a search in vain; only searches of y itself use up the patience."""
        return self._unimproved + (self.view(turn)[0] == IDENTITY)
