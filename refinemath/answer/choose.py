"""From the pool of a search to the one formula that is printed: refit, rewrite, round, choose.
(Chapter 8)
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from refinemath.answer.rounding import round_constants
from refinemath.answer.solution import (
    EXACT,
    Solution,
    code_length,
    refine_constants,
    score_solution,
)
from refinemath.answer.statement import free_length, state
from refinemath.answer.symbolic import pretty, printed_text, rescale, rewrite
from refinemath.answer.targets import TargetTransform
from refinemath.answer.units import Dimensions
from refinemath.expression import END, Formula, decode, split_terms
from refinemath.problem import Problem


class Candidates(NamedTuple):
    """The formulas that a search remembers, best first."""

    tokens: np.ndarray  # (formulas, slots)
    values: np.ndarray  # (formulas, slots): the numbers at tokens that stand for one
    score: np.ndarray  # (formulas,): the search's code length, infinite for an empty row


def refit(
    candidates: Candidates,
    problem: Problem,
    dimensions: Dimensions | None = None,
    *,
    most: int = 12,
    each: int = 2,
) -> list[Solution]:
    """The `most` best candidates and the `each` best of every length, numbers fitted again in
    float64 on all points; the shortest code first.  With `dimensions`, only those that can be
    consistent.
    """
    lengths = np.count_nonzero(candidates.tokens != END, axis=1).tolist()
    seen = dict.fromkeys(lengths, 0)
    solutions: list[Solution] = []
    for i in np.flatnonzero(np.isfinite(candidates.score)):
        formula = decode(candidates.tokens[i], candidates.values[i].astype(np.float64))
        terms = split_terms(formula)
        if dimensions and not all(dimensions.possible(t, problem.scale != 1.0) for t in terms):
            continue
        seen[lengths[i]] += 1
        if sum(seen.values()) > most and seen[lengths[i]] > each:
            continue
        solution = refine_constants(terms, problem.u, problem.y)
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
    dimensions: Dimensions | None = None,
    *,
    most: int = 6,
) -> list[Solution]:
    """`refit` on the points that the search has `seen`; where their target was transformed, its
    `most` best formulas for the problem's own y.
    """
    solutions = refit(candidates, seen, dimensions)
    if seen is problem:
        return solutions
    if solutions and solutions[0].fvu < EXACT:
        solutions = [round_constants(solutions[0], seen.u, seen.y)]
    back = [transform.inverse(solution, problem) for solution in solutions[:most]]
    return [score_solution(s, problem.u, problem.y) for s in back if s is not None]


class Answers:
    """The formulas found for a problem so far, one of each skeleton, and the best of them.

    `best`: in the user's units, its numbers rounded; None while none is better than the mean.
    `finalists`: those among which it was last chosen, the shortest code first.  What is not allowed
    is left out, and with `dimensions` what is not consistent.
    """

    def __init__(
        self,
        problem: Problem,
        allows: Callable[[Formula], bool] = lambda formula: True,
        dimensions: Dimensions | None = None,
    ):
        self.problem = problem
        self.dimensions = dimensions
        self.reading_ends = math.inf  # on the clock: a reading stops then with what it has
        self.best: Solution | None = None
        self.finalists: list[Solution] = []
        self.allows = allows
        constant = Solution((), (), float(np.mean(problem.y)), 1.0)
        self.mean = score_solution(constant, problem.x, problem.y)  # what every formula has to beat
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

    def read(self, candidates: Candidates, transform: TargetTransform, seen: Problem) -> bool:
        """Take in what a search remembers of a transformed target; see `add`."""
        found = refit_transformed(candidates, transform, seen, self.problem, self.dimensions)
        return self.add(found)

    def add(self, solutions: Iterable[Solution]) -> bool:
        """Take in scored solutions in u; True where the best code is now half a nat shorter."""
        for solution in filter(lambda s: self.allows(s.formula()), solutions):
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
        allowed = (s for s in solutions if self.allows(s.formula()))
        scored = sorted((score_solution(s, x, y) for s in allowed), key=code_length)
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
        """The formula of the shortest code among the forms of the first solutions that are better
        than the mean, the `most` best of them rounded; None where none is.  What was rewritten or
        rounded before is remembered.
        """
        seen: list[float] = []
        forms: list[Solution] = list(self.written)
        for solution in solutions[: 3 * most]:
            if any(abs(solution.fvu - fvu) <= 1e-6 * fvu for fvu in seen):
                continue  # the same function in other words
            own = [form for form in self._rewrite(solution) if self.allows(form.formula())]
            own = [form for form in self._consistent(own) if beats_mean(form, self.mean)]
            if forms and time.perf_counter() > self.reading_ends:
                break
            if own:
                seen.append(solution.fvu)
                forms += own
                if own[0].fvu < EXACT:
                    break
        rounded: list[Solution] = []
        for form in sorted(forms, key=code_length)[:most]:
            short = self._round(form)
            rounded.append(short if self.allows(short.formula()) else form)
            enough = rounded[-1].fvu < EXACT and len(rounded) >= 3
            if enough or time.perf_counter() > self.reading_ends:
                break
        good = [s for s in self._consistent(rounded) if beats_mean(s, self.mean)]
        self.finalists = sorted(good, key=code_length)
        return self.finalists[0] if good else None

    def _consistent(self, forms: list[Solution]) -> list[Solution]:
        """Those that are dimensionally consistent, where there are units."""
        known = self.dimensions
        return forms if known is None else [form for form in forms if known.consistent(form)]


def beats_mean(solution: Solution, mean: Solution) -> bool:
    """Whether a formula predicts points left out better than their `mean` does, and by more nats
    than the best of all formulas of its length would by chance: by the code of its terms.
    """
    chance = sum(term.code_length() for term in solution.terms)
    return solution.fvu < 1.0 and mean.nll - solution.nll > chance


@dataclass(frozen=True)
class FrontEntry:
    """One formula of the front: how long, how good, what; its numbers are rounded, for reading."""

    length: int
    fvu: float
    formula: str
    law: Formula | None = None  # the same with all digits


Measured = TypeVar("Measured", Solution, FrontEntry)


def pareto_front(
    solutions: Iterable[Solution], problem: Problem, written: Iterable[Solution] = ()
) -> tuple[FrontEntry, ...]:
    """The shortest solution and every longer one that leaves at least a tenth less unexplained than
    the one before it, in the user's units and names, as printed and measured as printed; those
    `written` are in these units already.
    """
    stated, known = [], list(written)
    for solution in _leading([*solutions, *known]):
        own = solution if solution in known else rescale(solution, problem) or solution
        formula = own.formula()
        stated.append(state(formula, problem.x, problem.y, forms=False))
    entries = [
        FrontEntry(
            free_length(s.formula),
            s.fvu,
            printed_text(pretty(s.formula, 17, problem.names)),
            s.formula,
        )
        for s in stated
        if s.fvu <= 1.0
    ]
    return tuple(_leading(entries))


def _leading(found: Iterable[Measured]) -> list[Measured]:
    """Those that leave a tenth less than all that are shorter; the best of each length."""
    kept: list[Measured] = []
    for one in sorted(found, key=lambda f: f.length):
        if kept and one.fvu >= 0.9 * kept[-1].fvu:
            continue
        if kept and kept[-1].length == one.length:
            kept.pop()
        kept.append(one)
    return kept
