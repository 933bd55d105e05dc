"""From the pool of a search to the one formula that is printed.  (Chapter 8)"""

from __future__ import annotations

import numpy as np

from refinemath.answer.rounding import round_constants
from refinemath.answer.solution import (
    EXACT,
    Solution,
    code_length,
    refine_constants,
    score_solution,
)
from refinemath.answer.symbolic import multiplied_out, one_fraction, rescale
from refinemath.answer.targets import redone
from refinemath.expression import END, decode, split_terms
from refinemath.loop import SearchOutput
from refinemath.problem import Prepared


def refit_pool(
    outcome: SearchOutput, prepared: Prepared, *, most: int = 12, each: int = 2
) -> list[Solution]:
    """The `most` best formulas of a search and the `each` best of every length, numbers fitted
    again in float64; best description first.
    """
    tokens, cost = np.asarray(outcome.pool.tokens), np.asarray(outcome.pool.score)
    values, length = (
        np.asarray(outcome.pool.values, np.float64),
        np.count_nonzero(tokens != END, axis=1),
    )
    seen = dict.fromkeys(length.tolist(), 0)
    solutions: list[Solution] = []
    for i in np.flatnonzero(np.isfinite(cost)):
        seen[int(length[i])] += 1
        if i >= most and seen[int(length[i])] > each:
            continue
        solution = refine_constants(
            split_terms(decode(tokens[i], values[i])), prepared.u, prepared.y
        )
        if solution is not None:
            solutions.append(score_solution(solution, prepared.u, prepared.y))
            if len(solutions) >= 4 and min(s.fvu for s in solutions) < EXACT:
                break
    return sorted(solutions, key=code_length)


def refit(
    outcome: SearchOutput, operation: str, view: Prepared, prepared: Prepared, *, most: int = 6
) -> list[Solution]:
    """What `refit_pool` finds in a search; where that looked at points with an operation undone,
    its `most` best formulas with it done again.
    """
    solutions = refit_pool(outcome, view)
    if not operation:
        return solutions
    if solutions and solutions[0].fvu < EXACT:
        solutions = [round_constants(solutions[0], view.u, view.y)]
    again = [redone(operation, solution, prepared) for solution in solutions[:most]]
    return [
        score_solution(solution, prepared.u, prepared.y)
        for solution in again
        if solution is not None
    ]


Known = tuple[
    dict[Solution, list[Solution]], dict[Solution, Solution]
]  # forms of a solution in the user's units; what a form snaps to


def choose_solution(
    front: list[Solution], prepared: Prepared, *, most: int = 8, known: Known | None = None
) -> Solution | None:
    """The formula of least description length among the `most` best, their numbers polished in the
    user's units and snapped.

    `known` remembers what was worked out, for the next call on the same points.
    """
    forms_of, snapped = known or ({}, {})
    seen: list[float] = []
    forms: list[Solution] = []
    for solution in front[: 3 * most]:
        if any(abs(solution.fvu - fvu) <= 1e-6 * fvu for fvu in seen):
            continue  # the same function in other words
        if solution not in forms_of:
            own = rescale(solution, prepared)
            variants = (
                []
                if own is None
                else [own, multiplied_out(own, prepared), one_fraction(own, prepared)]
            )
            forms_of[solution] = [
                score_solution(form, prepared.x, prepared.y)
                for form in variants
                if form is not None
            ]
        if forms_of[solution]:
            seen.append(solution.fvu)
            forms += forms_of[solution]
            if forms_of[solution][0].fvu < EXACT:
                break
    finished: list[Solution] = []
    for form in sorted(forms, key=code_length)[:most]:
        if form not in snapped:
            snapped[form] = round_constants(form, prepared.x, prepared.y)
        finished.append(snapped[form])
        if finished[-1].fvu < EXACT and len(finished) >= 3:
            break
    return min(finished, key=code_length) if finished else None
