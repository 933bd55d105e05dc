"""From the pool of a search to the one formula that is printed: refit, rewrite, round, choose.
(Chapter 8)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from refinemath.answer.rounding import round_constants
from refinemath.answer.solution import (
    EXACT,
    Solution,
    code_length,
    refine_constants,
    score_solution,
)
from refinemath.answer.symbolic import pretty, rescale, rewrite
from refinemath.answer.targets import TargetTransform
from refinemath.expression import END, decode, split_terms
from refinemath.problem import Problem


class Candidates(NamedTuple):
    """The formulas that a search remembers, best first."""

    tokens: np.ndarray  # (formulas, slots)
    values: np.ndarray  # (formulas, slots): the numbers at tokens that stand for one
    score: np.ndarray  # (formulas,): the search's code length, infinite for an empty row


def refit(
    candidates: Candidates, problem: Problem, *, most: int = 12, each: int = 2
) -> list[Solution]:
    """The `most` best candidates and the `each` best of every length, numbers fitted again in
    float64 on all points; the shortest code first.
    """
    lengths = np.count_nonzero(candidates.tokens != END, axis=1).tolist()
    seen = dict.fromkeys(lengths, 0)
    solutions: list[Solution] = []
    for i in np.flatnonzero(np.isfinite(candidates.score)):
        seen[lengths[i]] += 1
        if i >= most and seen[lengths[i]] > each:
            continue
        formula = decode(candidates.tokens[i], candidates.values[i].astype(np.float64))
        solution = refine_constants(split_terms(formula), problem.u, problem.y)
        if solution is not None:
            solutions.append(score_solution(solution, problem.u, problem.y))
            if len(solutions) >= 4 and min(s.fvu for s in solutions) < EXACT:
                break
    return sorted(solutions, key=code_length)


def refit_transformed(
    candidates: Candidates,
    transform: TargetTransform,
    seen: Problem,
    problem: Problem,
    *,
    most: int = 6,
) -> list[Solution]:
    """`refit` on the points that the search has `seen`; where their target was transformed, its
    `most` best formulas for the problem's own y.
    """
    solutions = refit(candidates, seen)
    if seen is problem:
        return solutions
    if solutions and solutions[0].fvu < EXACT:
        solutions = [round_constants(solutions[0], seen.u, seen.y)]
    back = [transform.inverse(solution, problem) for solution in solutions[:most]]
    return [score_solution(s, problem.u, problem.y) for s in back if s is not None]


class Answers:
    """The formulas found for a problem so far, one of each skeleton, and the best of them.

    `best`: in the user's units, its numbers rounded; None before there is one.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self.best: Solution | None = None
        self._found: dict[tuple[tuple[str, ...], ...], Solution] = {}
        self.written: list[Solution] = []  # in the user's units as they are, such as families
        self._rewrite = functools.cache(lambda s: rewrite(s, problem))
        self._round = functools.cache(lambda s: round_constants(s, problem.x, problem.y))

    @property
    def exact(self) -> bool:
        """Whether the best formula fits to the last digit."""
        return self.best is not None and self.best.fvu < EXACT

    @property
    def solutions(self) -> list[Solution]:
        """All formulas, in u and not rounded, the shortest code first."""
        return sorted(self._found.values(), key=code_length)

    def add(self, solutions: Iterable[Solution]) -> bool:
        """Take in scored solutions in u; True where the best code is now half a nat shorter."""
        for solution in solutions:
            name = solution.skeleton()
            old = self._found.get(name)
            if old is None or code_length(solution) < code_length(old):
                self._found[name] = solution
        return self._improves()

    def add_written(self, solutions: Iterable[Solution], *, most: int = 8) -> bool:
        """As `add`, for the `most` best different ones of some solutions in the user's units, which
        are not rewritten.
        """
        x, y = self.problem.x, self.problem.y
        scored = sorted((score_solution(s, x, y) for s in solutions), key=code_length)
        kept = {f"{s.fvu:.6g}": s for s in reversed(scored) if math.isfinite(code_length(s))}
        self.written += sorted(kept.values(), key=code_length)[:most]
        return self._improves()

    def _improves(self) -> bool:
        """Choose again; True where the best code is now half a nat shorter."""
        now = self.choose(self.solutions)
        better = now is not None and (
            self.best is None or code_length(now) < code_length(self.best) - 0.5
        )
        if better:
            self.best = now
        return better

    def choose(self, solutions: list[Solution], *, most: int = 8) -> Solution | None:
        """The formula of the shortest code among the forms of the first solutions, the `most` best
        of them rounded.  What was rewritten or rounded before is remembered.
        """
        seen: list[float] = []
        forms: list[Solution] = list(self.written)
        for solution in solutions[: 3 * most]:
            if any(abs(solution.fvu - fvu) <= 1e-6 * fvu for fvu in seen):
                continue  # the same function in other words
            own = self._rewrite(solution)
            if own:
                seen.append(solution.fvu)
                forms += own
                if own[0].fvu < EXACT:
                    break
        rounded: list[Solution] = []
        for form in sorted(forms, key=code_length)[:most]:
            rounded.append(self._round(form))
            if rounded[-1].fvu < EXACT and len(rounded) >= 3:
                break
        return min(rounded, key=code_length, default=None)


@dataclass(frozen=True)
class FrontEntry:
    """One formula of the front: how long, how good, what; its numbers are rounded, for reading."""

    length: int
    fvu: float
    formula: str


def pareto_front(
    solutions: Iterable[Solution],
    problem: Problem,
    digits: int = 5,
    written: Sequence[Solution] = (),
) -> tuple[FrontEntry, ...]:
    """The shortest solution and every longer one that leaves at least a tenth less unexplained than
    the one before it, in the user's units and names; those `written` are in these units already.
    """
    kept: list[Solution] = []
    for solution in sorted([*solutions, *written], key=lambda s: s.length):
        if kept and solution.fvu >= 0.9 * kept[-1].fvu:
            continue
        if kept and kept[-1].length == solution.length:
            kept.pop()
        kept.append(solution)
    own = (s if s in written else rescale(s, problem) or s for s in kept)
    formulas = (s.formula() for s in own)
    return tuple(
        FrontEntry(s.length, s.fvu, str(pretty(f, digits, problem.names)))
        for s, f in zip(kept, formulas, strict=True)
    )
