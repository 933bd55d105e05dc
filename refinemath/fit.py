"""Numbers for a skeleton: linear coefficients in closed form, the others by Levenberg-Marquardt,
then snapped.  (Chapter 8)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax import Array
from jaxtyping import Float, Int

from refinemath.language import (
    TOKEN_PRICE,
    Formula,
    additive_terms,
    combine,
    evaluate_nodes,
    fold,
    is_constant,
    sensitivities,
)

ROUNDING = 1e-24  # FVU in float64 under which nothing but rounding is left


def centre(
    v: Float[Array, "batch points"], mask: Array
) -> tuple[Float[Array, "batch points"], Float[Array, "batch 1"]]:
    """v minus its mean over the points that count, 0 elsewhere; and the mean."""
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(v.dtype)
    mean = jnp.sum(jnp.where(mask, v, 0.0), axis=-1, keepdims=True) / count
    return jnp.where(mask, v - mean, 0.0), mean


def orthonormal(
    basis: Float[Array, "batch terms points"], term: Array, mask: Array
) -> tuple[Float[Array, "batch terms points"], Array]:
    """Orthonormal rows that span the centred terms, and whether all terms are defined on the
    points.

    Gram-Schmidt, each pass done twice, so that nearly dependent terms cost no accuracy; a term that
    adds nothing becomes a row of zeros.
    """
    finite = jnp.all(
        jnp.isfinite(basis) & (jnp.abs(basis) < 1e12) | ~term[..., None] | ~mask[:, None],
        axis=(1, 2),
    )

    def length(v: Array) -> Array:
        return jnp.sqrt(jnp.sum(v**2, axis=-1, keepdims=True))

    def next_term(rows: Array, k: Array) -> tuple[Array, None]:
        row = centre(jnp.where((term[:, k] & finite)[:, None], basis[:, k], 0.0), mask)[0]
        row = without(row / jnp.maximum(length(row), 1e-30), rows)
        left = length(row)
        return rows.at[:, k].set(jnp.where(left > 1e-4, row / jnp.maximum(left, 1e-30), 0.0)), None

    rows, _ = jax.lax.scan(
        next_term, jnp.zeros_like(basis), jnp.arange(basis.shape[1], dtype=jnp.int32)
    )
    return rows, finite


def without(
    v: Float[Array, "batch points"], rows: Float[Array, "batch terms points"]
) -> Float[Array, "batch points"]:
    """v minus its projection on orthonormal rows; the second pass removes what rounding left."""
    for _ in range(2):
        v = v - jnp.einsum("bk,bkn->bn", jnp.einsum("bkn,bn->bk", rows, v), rows)
    return v


class Projection(NamedTuple):
    """The least-squares fit y ~ b + sum_k a_k basis_k."""

    rows: Float[Array, "batch terms points"]  # orthonormal, spanning the centred terms
    residual: Float[Array, "batch points"]
    fitted: Float[Array, "batch points"]
    fvu: Float[
        Array, " batch"
    ]  # fraction of variance unexplained; infinite where a term is undefined


def project(
    basis: Float[Array, "batch terms points"],
    term: Array,
    y: Float[Array, "batch points"],
    mask: Array,
) -> Projection:
    """The best coefficients for each row's terms, without working them out.  The fit of an
    undefined row is the mean of y.

    This is the inner, linear half of variable projection (Golub & Pereyra 1973).  Chapter 8.
    """
    rows, finite = orthonormal(basis, term, mask)
    centred, _ = centre(y, mask)
    residual = jnp.where(finite[:, None], without(centred, rows), centred)
    fvu = jnp.sum(residual**2, axis=-1) / jnp.maximum(jnp.sum(centred**2, axis=-1), 1e-30)
    return Projection(
        rows, residual, jnp.where(mask, y - residual, 0.0), jnp.where(finite, fvu, jnp.inf)
    )


def coefficients(
    rows: Float[Array, "batch terms points"],
    basis: Float[Array, "batch terms points"],
    y: Float[Array, "batch points"],
) -> Array:
    """The a_k (batch, terms) of a projection on `rows`, by back substitution; 0 for a term that
    adds nothing.  `basis` is 0 where it does not count.
    """
    triangle = jnp.einsum(
        "bjn,bkn->bjk", rows, basis
    )  # row j of the basis holds no part of later terms
    adds = jnp.sum(rows**2, axis=-1) > 0.5
    triangle = jnp.where(adds[..., None], triangle, jnp.eye(basis.shape[1], dtype=basis.dtype))
    return solve_small(triangle, jnp.einsum("bjn,bn->bj", rows, y))


# constants inside, batched on the device


class Fitted(NamedTuple):
    """A batch of formulas with their best constants found so far."""

    values: Float[Array, "batch slots"]
    fitted: Float[Array, "batch points"]
    fvu: Float[Array, " batch"]
    rows: Float[Array, "batch terms points"]  # orthonormal, spanning the centred terms


def levenberg_marquardt(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    x: Float[Array, "batch variables points"],
    y: Float[Array, "batch points"],
    mask: Array,
    *,
    steps: int,
    terms: int = 4,
    constants: int = 4,
) -> Fitted:
    """Improve the first `constants` numbers inside each formula by `steps` damped Gauss-Newton
    steps (Levenberg 1944, Marquardt 1963).

    The linear coefficients are projected out at every step, so the search is over the inner numbers
    alone.  The Jacobian is that of Kaufman (1975): the coefficients are held while a number moves,
    and what they could make up for is projected out.  One evaluation and one sweep of
    `sensitivities` a step, whatever the number of constants.  A step is kept only if the FVU falls.
    Works in the dtype of its inputs.  Chapter 8.
    """
    batch = tokens.shape[0]
    row = jnp.arange(batch)[:, None]
    here = is_constant(tokens)
    places = jnp.argsort(~here, axis=1, stable=True)[:, :constants]
    free = jnp.take_along_axis(here, places, axis=1)
    slots_of, term = additive_terms(tokens, terms)
    x = jnp.broadcast_to(x, (batch, *x.shape[1:]))
    y = jnp.broadcast_to(y, (batch, y.shape[-1]))
    mask = jnp.broadcast_to(mask, y.shape)
    spread = jnp.maximum(jnp.sqrt(jnp.sum(centre(y, mask)[0] ** 2, axis=-1, keepdims=True)), 1e-30)
    eye = jnp.eye(constants, dtype=values.dtype)

    def run(theta: Array) -> tuple[Projection, Array]:
        """The fit with the numbers theta, and how its residual moves with each of them: (constants,
        batch, points).
        """
        nodes = evaluate_nodes(
            tokens, values.at[row, places].set(jnp.where(free, theta, values[row, places])), x
        )
        basis = nodes[slots_of, row]
        found = project(basis, term, y, mask)
        held = coefficients(found.rows, jnp.where(term[..., None] & mask[:, None], basis, 0.0), y)
        weights = jnp.zeros_like(nodes).at[slots_of, row].add(jnp.where(term, held, 0.0)[..., None])
        moves = sensitivities(tokens, nodes, weights)[places, row]
        return found, -jax.vmap(lambda v: without(centre(v, mask)[0], found.rows), in_axes=1)(moves)

    def step(carry: Fit, _: None) -> tuple[Fit, None]:
        """Try the proposed numbers; from the better of old and new propose the next ones."""
        found, jacobian = run(carry.trial)
        jacobian = (
            jnp.where(jnp.isfinite(jacobian) & free.T[..., None], jacobian, 0.0) / spread[None]
        )
        better = (found.fvu < carry.found.fvu) | ~jnp.isfinite(carry.found.fvu)
        tried = (
            carry.trial,
            found,
            jnp.einsum("abn,cbn->bac", jacobian, jacobian),
            jnp.einsum("abn,bn->ba", jacobian, found.residual / spread),
        )
        kept = jax.tree.map(
            lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            tried,
            tuple(carry[:4]),
        )
        theta, found, normal, gradient = kept
        damping = jnp.clip(jnp.where(better, carry.damping * 0.2, carry.damping * 5.0), 1e-10, 1e8)
        diagonal = jnp.einsum("baa->ba", normal)
        scale = damping[:, None] * diagonal + jnp.where(diagonal > 0, 1e-12 * diagonal, 1.0)
        move = -solve_small(normal + scale[..., None] * eye[None], gradient)
        move = jnp.clip(
            jnp.where(jnp.isfinite(move), move, 0.0), -2.0 - jnp.abs(theta), 2.0 + jnp.abs(theta)
        )
        return Fit(theta, found, normal, gradient, damping, theta + move), None

    theta = jnp.take_along_axis(values, places, axis=1)
    unfitted = Projection(
        jnp.zeros((batch, terms, y.shape[-1]), y.dtype),
        y,
        jnp.zeros_like(y),
        jnp.full((batch,), jnp.inf, y.dtype),
    )
    flat = jnp.zeros((batch, constants, constants), values.dtype)
    start = Fit(theta, unfitted, flat, flat[..., 0], jnp.full((batch,), 5e-2, values.dtype), theta)
    end, _ = jax.lax.scan(step, start, None, length=steps + 1)
    fitted = values.at[row, places].set(jnp.where(free, end.theta, values[row, places]))
    return Fitted(fitted, end.found.fitted, end.found.fvu, end.found.rows)


class Fit(NamedTuple):
    """The state of `levenberg_marquardt`: the best numbers, their normal equations, and the numbers
    to try next.
    """

    theta: Float[Array, "batch constants"]
    found: Projection
    normal: Float[Array, "batch constants constants"]
    gradient: Float[Array, "batch constants"]
    damping: Float[Array, " batch"]
    trial: Float[Array, "batch constants"]


def solve_small(
    matrix: Float[Array, "batch n n"], right: Float[Array, "batch n"]
) -> Float[Array, "batch n"]:
    """Solutions of many small systems, positive definite or triangular, by Gauss elimination, all
    at once.
    """
    n = right.shape[-1]
    table = jnp.concatenate([matrix, right[..., None]], axis=-1)
    for k in range(n):
        pivot = table[:, k] / table[:, k, k, None]
        below = jnp.arange(n, dtype=jnp.int32) != k
        table = table.at[:, k].set(pivot)
        table = table - jnp.where(below[None, :, None], table[:, :, k, None] * pivot[:, None], 0.0)
    return table[..., -1]


# the last digits, one formula at a time in float64


@dataclass(frozen=True)
class Solution:
    """A formula with all its numbers: y ~ offset + sum_k coefficient_k term_k(x).

    `fvu`: what it leaves unexplained on the given points.  `digits` and `misfit`: nats to state its
    numbers and what it leaves over, NaN until `appraise` works them out.
    """

    terms: tuple[Formula, ...]
    coefficients: tuple[float, ...]
    offset: float
    fvu: float
    digits: float = math.nan
    misfit: float = math.nan

    def formula(self) -> Formula:
        """One formula with the coefficients written in."""
        return combine(self.terms, self.coefficients, self.offset)

    @property
    def constants(self) -> np.ndarray:
        """The numbers inside the terms, from left to right."""
        return np.array([c for t in self.terms for c in t.constants()])

    @property
    def length(self) -> int:
        """Tokens of the skeleton, without the free coefficients."""
        return max(sum(len(t) for t in self.terms) + len(self.terms) - 1, 0)


def _columns(terms: Sequence[Formula], numbers: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """The terms' values (points, terms) with `numbers` in place of their constants; None where one
    is undefined or beyond 1e150.
    """
    left = iter(numbers)
    columns = (
        np.stack([t.evaluate(x, [next(left) for _ in t.constants()]) for t in terms], axis=1)
        if terms
        else np.zeros((x.shape[-1], 0))
    )
    return columns if np.all(np.abs(columns) <= 1e150) else None


def _linear(
    columns: np.ndarray, y: np.ndarray, *, intercept: bool
) -> tuple[np.ndarray, float, np.ndarray]:
    """Coefficients, offset and residual of the least-squares fit of y by the columns."""
    scale = np.maximum(np.max(np.abs(columns), axis=0, initial=0.0), 1e-300)
    design = columns / scale
    if intercept:
        design = np.concatenate([design, np.ones((len(y), 1))], axis=1)
    size = max(float(np.max(np.abs(y))), 1e-300)
    try:
        solved = (
            np.linalg.lstsq(design, y / size, rcond=1e-14)[0] * size
            if design.shape[1]
            else np.zeros(0)
        )
    except np.linalg.LinAlgError:  # the iteration for the singular values gave up
        return np.zeros(columns.shape[1]), 0.0, np.full(len(y), np.inf)
    residual = y - design @ solved if design.shape[1] else y
    with np.errstate(
        over="ignore"
    ):  # a coefficient beyond float64 belongs to a term that is 0 on the points
        coefficients = solved[: columns.shape[1]] / scale
    return (
        np.where(np.isfinite(coefficients), coefficients, 0.0),
        float(solved[-1]) if intercept else 0.0,
        residual,
    )


def linear_solution(
    terms: Sequence[Formula], x: np.ndarray, y: np.ndarray, *, intercept: bool = True
) -> Solution | None:
    """Least squares over the coefficients in float64; None where a term is undefined on the points."""
    return _solution(
        terms, np.array([c for t in terms for c in t.constants()]), x, y, intercept=intercept
    )


def _solution(
    terms: Sequence[Formula], numbers: np.ndarray, x: np.ndarray, y: np.ndarray, *, intercept: bool
) -> Solution | None:
    columns = _columns(terms, numbers, x)
    if columns is None:
        return None
    coefficients, offset, residual = _linear(columns, y, intercept=intercept)
    variance = float(np.sum((y - np.mean(y)) ** 2))
    fvu = float(np.sum(residual**2)) / max(variance, 1e-300)
    return Solution(_renumbered(terms, numbers), tuple(map(float, coefficients)), offset, fvu)


def polish(
    terms: Sequence[Formula],
    x: np.ndarray,
    y: np.ndarray,
    *,
    frozen: frozenset[int] = frozenset(),
    intercept: bool = True,
) -> Solution | None:
    """All constants inside the terms, except the `frozen` ones, by SciPy's Levenberg-Marquardt in
    float64; coefficients projected out.
    """
    numbers = np.array([c for t in terms for c in t.constants()])
    free = [i for i in range(len(numbers)) if i not in frozen]
    first = _solution(terms, numbers, x, y, intercept=intercept)
    if first is None or not free or len(y) <= len(free):
        return first
    spread = float(np.std(y)) or 1.0

    def residual(theta: np.ndarray) -> np.ndarray:
        moved = numbers.copy()
        moved[free] = theta
        columns = _columns(terms, moved, x)
        return (
            np.full(len(y), 1e6)
            if columns is None
            else _linear(columns, y, intercept=intercept)[2] / spread
        )

    try:
        scale, tolerance = np.maximum(np.abs(numbers[free]), 1e-3), 1e-15
        found = scipy.optimize.least_squares(
            residual,
            numbers[free],
            method="lm",
            x_scale=scale,
            xtol=tolerance,
            ftol=tolerance,
            gtol=tolerance,
            max_nfev=40 * (len(free) + 1),
        )
    except (ValueError, np.linalg.LinAlgError):
        return first
    if not np.all(np.isfinite(found.x)):
        return first
    moved = numbers.copy()
    moved[free] = found.x
    second = _solution(terms, moved, x, y, intercept=intercept)
    return second if second is not None and second.fvu < first.fvu else first


def solution_values(solution: Solution, x: np.ndarray) -> np.ndarray:
    """The fitted values at x (variables, points), float64."""
    return solution.offset + sum(
        (a * t.evaluate(x) for a, t in zip(solution.coefficients, solution.terms, strict=True)),
        np.zeros(x.shape[-1]),
    )


def _renumbered(terms: Sequence[Formula], numbers: np.ndarray) -> tuple[Formula, ...]:
    following = iter(numbers)
    return tuple(t.with_constants(following) for t in terms)


def appraise(solution: Solution, x: np.ndarray, y: np.ndarray) -> Solution:
    """The same solution with `digits` and `misfit`, both infinite where it has as many numbers as
    there are points.

    `misfit` is asked of points predicted by a fit that has not seen them.  No fit is repeated: a
    point with leverage h pulls the curve towards itself, and without it its residual would be r /
    (1 - h), exactly so for coefficients and to first order for the numbers inside (Allen 1974).  A
    formula that bends to single points is found out by this: their leverage is near 1.

    `digits` is what it costs to state the numbers.  A fraction p/q costs log(2 (1 + |p|) q), after
    Udrescu et al. (2020), with pi as a factor a token more.  Any number v can instead be given to
    the precision that the points warrant: steps of sqrt(12 / I), where I is its Fisher information.
    That costs log(2 |v| sqrt(I / 12)) + 1/2 (Wallace & Freeman 1987) and log(1 + |log |v||) for its
    order of magnitude.  The cheaper of the two counts.  Chapter 8.
    """
    n, numbers, coefficients = len(y), solution.constants, np.array(solution.coefficients)
    nothing = replace(solution, digits=math.inf, misfit=math.inf)
    columns = _columns(solution.terms, numbers, x)
    if columns is None:
        return nothing
    fitted = columns @ coefficients
    tangents = np.zeros((n, len(numbers)))  # how the curve moves with each number inside
    for i, number in enumerate(numbers):
        moved, step = numbers.copy(), 1e-6 * max(abs(number), 1e-3)
        moved[i] += step
        shifted = _columns(solution.terms, moved, x)
        tangents[:, i] = 0.0 if shifted is None else (shifted @ coefficients - fitted) / step
    design = np.concatenate([tangents, columns, np.ones((n, 1))], axis=1)
    stated = np.array([*numbers, *coefficients, solution.offset])
    there = stated != 0.0
    there[len(numbers) : -1] &= coefficients != 1.0  # a factor 1 is no number
    design, stated = design[:, there], stated[there]
    if (
        design.shape[1] >= n
        or not np.all(np.abs(design) <= 1e150)
        or not np.all(np.isfinite(stated))
    ):
        return nothing
    size = np.linalg.norm(design, axis=0)
    try:
        left, singular, _ = np.linalg.svd(design / np.maximum(size, 1e-300), full_matrices=False)
    except np.linalg.LinAlgError:
        return nothing
    leverage = np.sum(left[:, singular > 1e-10] ** 2, axis=1)
    spread = max(float(np.std(y)), 1e-300)
    scale, misfit = heavy_tailed(
        (y - solution.offset - fitted) / spread / np.maximum(1 - leverage, 1e-9)
    )
    steps = np.maximum(
        np.abs(stated) * size / (math.sqrt(12.0) * scale * spread), 1.0
    )  # by which the number is away from 0
    rounded = 0.5 + np.log(2 * steps) + np.log1p(np.abs(np.log(np.abs(stated))))
    digits = float(
        sum(
            min(fraction_price(v), r)
            for v, r in zip(stated.tolist(), rounded.tolist(), strict=True)
        )
    )
    return replace(solution, digits=digits, misfit=misfit)


def heavy_tailed(
    residual: np.ndarray, freedom: float = 4.0, rounds: int = 20
) -> tuple[float, float]:
    """The scale s of Student's t that suits residuals (in units of the spread of y) best, and -log
    likelihood without its constants.

    With four degrees of freedom one reading that is far off does not decide between two formulas,
    as it would under a normal distribution (Lange, Little & Taylor 1989).  By expectation and
    maximisation: a residual weighs (f + 1) / (f + r^2 / s^2).  Rounding is the least scale.
    """
    square = residual**2 + ROUNDING
    scale = float(np.median(square))
    for _ in range(rounds):
        scale = float(np.mean((freedom + 1) * square / (freedom + square / scale)))
    return math.sqrt(scale), float(
        0.5 * len(square) * math.log(scale)
        + 0.5 * (freedom + 1) * np.sum(np.log1p(square / (freedom * scale)))
    )


def fraction_price(v: float) -> float:
    """Nats to state v as p/q, log(2 (1 + |p|) q), or as that times pi; infinite where v is neither
    with a q of at most 1000, or 12 beside pi.
    """
    price = math.inf
    for unit, most, extra in ((1.0, 1000, 0.0), (math.pi, 12, float(TOKEN_PRICE[1]))):
        fraction = Fraction(v / unit).limit_denominator(most)
        if fraction and abs(float(fraction) * unit - v) <= 1e-9 * abs(v):
            price = min(
                price, math.log(2 * (1 + abs(fraction.numerator)) * fraction.denominator) + extra
            )
    return price


def nice_numbers(v: float) -> list[float]:
    """Simple numbers near v, simplest first: integers, halves, thirds, quarters, tenths, small
    multiples of pi, then v with 2 to 4 digits.
    """
    near = [round(v * q) / q for q in (1, 2, 3, 4, 5, 10) if abs(v) < 1e15]
    near += [
        round(v * q / math.pi) * math.pi / q for q in (1, 2, 3, 4) if abs(v) < 12.5 * math.pi / q
    ]
    near += [float(f"{v:.{d}g}") for d in (2, 3, 4)]
    return [n for n in dict.fromkeys(near) if n != 0 and abs(n - v) <= 0.05 * abs(v)]


def description_length(solution: Solution) -> float:
    """Nats to state an appraised formula and what it leaves over: the score that picks a formula
    from the front.  Lower is better.

    The tokens cost their `Formula.price`, the numbers their `digits`, what is left over its
    `misfit`.
    """
    return solution.formula().price() + solution.digits + solution.misfit


def without_rounding(term: Formula, x: np.ndarray, least: float = 1e-12) -> Formula:
    """The term without summands inside it that are rounding beside their partner: sqrt(x) for
    sqrt(x + 3e-17).  x: (variables, points).
    """

    def node(
        part: str | float, *operands: tuple[tuple[str | float, ...], float]
    ) -> tuple[tuple[str | float, ...], float]:
        """The parts kept, and the largest size of their values."""
        if part in ("add", "sub"):
            (first, a), (second, b) = operands
            if b <= least * a:
                return first, a
            if a <= least * b:
                return (second if part == "add" else ("neg", *second)), b
        parts = (part, *(p for own, _ in operands for p in own))
        return parts, float(np.max(np.abs(Formula(parts).evaluate(x))))

    return Formula(fold(term.parts, node)[0])


def snap(solution: Solution, x: np.ndarray, y: np.ndarray) -> Solution:
    """Replace numbers by simple ones near them, one after the other, as long as the description
    gets no longer.

    After every replacement the other numbers are fitted again.  A number that the data pin down is
    thus left alone unless the simple one explains them as well.  Summands that are rounding, and
    terms whose removal shortens the description, go first.  All is done with an offset and without,
    and the shorter description counts.
    """

    def length(trial: Solution | None) -> float:
        return math.inf if trial is None else description_length(trial)

    def fitted(
        terms: Sequence[Formula], frozen: frozenset[int] = frozenset(), *, intercept: bool
    ) -> Solution | None:
        found = polish(terms, x, y, frozen=frozen, intercept=intercept)
        return None if found is None else appraise(found, x, y)

    best = appraise(solution, x, y)
    lean = tuple(without_rounding(term, x) for term in best.terms)
    if lean != best.terms:
        best = min(best, fitted(lean, intercept=True) or best, key=description_length)
    while len(best.terms) > 1:
        finest = min(
            (
                fitted([t for t in best.terms if t is not gone], intercept=True)
                for gone in best.terms
            ),
            key=length,
        )
        if finest is None or length(finest) > length(best):
            break
        best = finest

    def rounded(best: Solution, *, intercept: bool) -> Solution:
        frozen: frozenset[int] = frozenset()
        for i in sorted(range(len(best.constants)), key=lambda i: -abs(best.constants[i])):
            numbers = best.constants
            for number in nice_numbers(numbers[i]):
                numbers[i] = number
                trial = fitted(_renumbered(best.terms, numbers), frozen | {i}, intercept=intercept)
                if trial is not None and length(trial) <= length(best):
                    best, frozen = trial, frozen | {i}
                    break
        return _snap_linear(best, x, y, intercept=intercept)

    forms = [rounded(best, intercept=True)]
    without = fitted(best.terms, intercept=False)
    if without is not None:
        forms.append(rounded(without, intercept=False))
    best = min(forms, key=description_length)
    return (
        replace(best, offset=0.0) if abs(best.offset) < 1e-13 * float(np.max(np.abs(y))) else best
    )  # rounding, not an offset


def _snap_linear(best: Solution, x: np.ndarray, y: np.ndarray, *, intercept: bool) -> Solution:
    n = len(y)
    variance = max(float(np.sum((y - np.mean(y)) ** 2)), 1e-300)
    numbers = [*best.coefficients, best.offset]
    columns = np.stack([*(t.evaluate(x) for t in best.terms), np.ones(n)], axis=1)
    loose = [i for i in range(len(numbers)) if intercept or i < len(numbers) - 1]
    for i in list(loose):
        for number in nice_numbers(numbers[i]):
            rest = [j for j in loose if j != i]
            fixed = np.array(numbers)
            fixed[i] = number
            held = [j for j in range(len(fixed)) if j not in rest]
            fixed[rest], _, residual = _linear(
                columns[:, rest], y - columns[:, held] @ fixed[held], intercept=False
            )
            trial = appraise(
                Solution(
                    best.terms,
                    tuple(map(float, fixed[:-1])),
                    float(fixed[-1]),
                    float(np.sum(residual**2)) / variance,
                ),
                x,
                y,
            )
            if description_length(trial) <= description_length(best):
                best, numbers = trial, list(fixed)
                loose.remove(i)
                break
    return best
