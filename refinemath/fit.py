"""Numbers for a skeleton: linear coefficients in closed form, the others by Levenberg-Marquardt, then snapped.  (Chapter 8)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax import Array
from jaxtyping import Float, Int

from refinemath.language import OPERATOR_TOKEN, TOKEN_PRICE, Formula, additive_terms, combine, evaluate_nodes, is_constant, sensitivities


def centre(v: Float[Array, "batch points"], mask: Array) -> tuple[Float[Array, "batch points"], Float[Array, "batch 1"]]:
    """v minus its mean over the points that count, 0 elsewhere; and the mean."""
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(v.dtype)
    mean = jnp.sum(jnp.where(mask, v, 0.0), axis=-1, keepdims=True) / count
    return jnp.where(mask, v - mean, 0.0), mean


def orthonormal(basis: Float[Array, "batch terms points"], term: Array, mask: Array) -> tuple[Float[Array, "batch terms points"], Array]:
    """Orthonormal rows that span the centred terms, and whether all terms are defined on the points.

    Gram-Schmidt, each pass done twice, so that nearly dependent terms cost no accuracy; a term that adds nothing becomes a row of zeros.
    """
    finite = jnp.all(jnp.isfinite(basis) & (jnp.abs(basis) < 1e12) | ~term[..., None] | ~mask[:, None], axis=(1, 2))

    def length(v: Array) -> Array:
        return jnp.sqrt(jnp.sum(v**2, axis=-1, keepdims=True))

    def next_term(rows: Array, k: Array) -> tuple[Array, None]:
        row = centre(jnp.where((term[:, k] & finite)[:, None], basis[:, k], 0.0), mask)[0]
        row = without(row / jnp.maximum(length(row), 1e-30), rows)
        left = length(row)
        return rows.at[:, k].set(jnp.where(left > 1e-4, row / jnp.maximum(left, 1e-30), 0.0)), None

    rows, _ = jax.lax.scan(next_term, jnp.zeros_like(basis), jnp.arange(basis.shape[1], dtype=jnp.int32))
    return rows, finite


def without(v: Float[Array, "batch points"], rows: Float[Array, "batch terms points"]) -> Float[Array, "batch points"]:
    """v minus its projection on orthonormal rows; the second pass removes what rounding left."""
    for _ in range(2):
        v = v - jnp.einsum("bk,bkn->bn", jnp.einsum("bkn,bn->bk", rows, v), rows)
    return v


class Projection(NamedTuple):
    """The least-squares fit y ~ b + sum_k a_k basis_k."""

    rows: Float[Array, "batch terms points"]  # orthonormal, spanning the centred terms
    residual: Float[Array, "batch points"]
    fitted: Float[Array, "batch points"]
    fvu: Float[Array, " batch"]  # fraction of variance unexplained; infinite where a term is undefined


def project(basis: Float[Array, "batch terms points"], term: Array, y: Float[Array, "batch points"], mask: Array) -> Projection:
    """The best coefficients for each row's terms, without working them out.  The fit of an undefined row is the mean of y.

    This is the inner, linear half of variable projection (Golub & Pereyra 1973).  Chapter 8.
    """
    rows, finite = orthonormal(basis, term, mask)
    centred, _ = centre(y, mask)
    residual = jnp.where(finite[:, None], without(centred, rows), centred)
    fvu = jnp.sum(residual**2, axis=-1) / jnp.maximum(jnp.sum(centred**2, axis=-1), 1e-30)
    return Projection(rows, residual, jnp.where(mask, y - residual, 0.0), jnp.where(finite, fvu, jnp.inf))


def coefficients(rows: Float[Array, "batch terms points"], basis: Float[Array, "batch terms points"], y: Float[Array, "batch points"]) -> Array:
    """The a_k (batch, terms) of a projection on `rows`, by back substitution; 0 for a term that adds nothing.  `basis` is 0 where it does not count."""
    triangle = jnp.einsum("bjn,bkn->bjk", rows, basis)  # row j of the basis holds no part of later terms
    adds = jnp.sum(rows**2, axis=-1) > 0.5
    triangle = jnp.where(adds[..., None], triangle, jnp.eye(basis.shape[1], dtype=basis.dtype))
    return solve_small(triangle, jnp.einsum("bjn,bn->bj", rows, y))


# ---------------------------------------------------------------- constants inside, batched on the device


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
    """Improve the first `constants` numbers inside each formula by `steps` damped Gauss-Newton steps (Levenberg 1944, Marquardt 1963).

    The linear coefficients are projected out at every step, so the search is over the inner numbers alone.  The Jacobian is that of Kaufman
    (1975): the coefficients are held while a number moves, and what they could make up for is projected out.  One evaluation and one sweep of
    `sensitivities` a step, whatever the number of constants.  A step is kept only if the FVU falls.  Works in the dtype of its inputs.  Chapter 8.
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
        """The fit with the numbers theta, and how its residual moves with each of them: (constants, batch, points)."""
        nodes = evaluate_nodes(tokens, values.at[row, places].set(jnp.where(free, theta, values[row, places])), x)
        basis = nodes[slots_of, row]
        found = project(basis, term, y, mask)
        held = coefficients(found.rows, jnp.where(term[..., None] & mask[:, None], basis, 0.0), y)
        weights = jnp.zeros_like(nodes).at[slots_of, row].add(jnp.where(term, held, 0.0)[..., None])
        moves = sensitivities(tokens, nodes, weights)[places, row]
        return found, -jax.vmap(lambda v: without(centre(v, mask)[0], found.rows), in_axes=1)(moves)

    def step(carry: Fit, _: None) -> tuple[Fit, None]:
        """Try the proposed numbers; from the better of old and new propose the next ones."""
        found, jacobian = run(carry.trial)
        jacobian = jnp.where(jnp.isfinite(jacobian) & free.T[..., None], jacobian, 0.0) / spread[None]
        better = (found.fvu < carry.found.fvu) | ~jnp.isfinite(carry.found.fvu)
        tried = carry.trial, found, jnp.einsum("abn,cbn->bac", jacobian, jacobian), jnp.einsum("abn,bn->ba", jacobian, found.residual / spread)
        kept = jax.tree.map(lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old), tried, tuple(carry[:4]))
        theta, found, normal, gradient = kept
        damping = jnp.clip(jnp.where(better, carry.damping * 0.2, carry.damping * 5.0), 1e-10, 1e8)
        diagonal = jnp.einsum("baa->ba", normal)
        scale = damping[:, None] * diagonal + jnp.where(diagonal > 0, 1e-12 * diagonal, 1.0)
        move = -solve_small(normal + scale[..., None] * eye[None], gradient)
        move = jnp.clip(jnp.where(jnp.isfinite(move), move, 0.0), -2.0 - jnp.abs(theta), 2.0 + jnp.abs(theta))
        return Fit(theta, found, normal, gradient, damping, theta + move), None

    theta = jnp.take_along_axis(values, places, axis=1)
    unfitted = Projection(jnp.zeros((batch, terms, y.shape[-1]), y.dtype), y, jnp.zeros_like(y), jnp.full((batch,), jnp.inf, y.dtype))
    flat = jnp.zeros((batch, constants, constants), values.dtype)
    start = Fit(theta, unfitted, flat, flat[..., 0], jnp.full((batch,), 5e-2, values.dtype), theta)
    end, _ = jax.lax.scan(step, start, None, length=steps + 1)
    fitted = values.at[row, places].set(jnp.where(free, end.theta, values[row, places]))
    return Fitted(fitted, end.found.fitted, end.found.fvu, end.found.rows)


class Fit(NamedTuple):
    """The state of `levenberg_marquardt`: the best numbers, their normal equations, and the numbers to try next."""

    theta: Float[Array, "batch constants"]
    found: Projection
    normal: Float[Array, "batch constants constants"]
    gradient: Float[Array, "batch constants"]
    damping: Float[Array, " batch"]
    trial: Float[Array, "batch constants"]


def solve_small(matrix: Float[Array, "batch n n"], right: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
    """Solutions of many small systems, positive definite or triangular, by Gauss elimination, all at once."""
    n = right.shape[-1]
    table = jnp.concatenate([matrix, right[..., None]], axis=-1)
    for k in range(n):
        pivot = table[:, k] / table[:, k, k, None]
        below = jnp.arange(n, dtype=jnp.int32) != k
        table = table.at[:, k].set(pivot)
        table = table - jnp.where(below[None, :, None], table[:, :, k, None] * pivot[:, None], 0.0)
    return table[..., -1]


# ---------------------------------------------------------------- the last digits, one formula at a time in float64


@dataclass(frozen=True)
class Solution:
    """A formula with all its numbers: y ~ offset + sum_k coefficient_k term_k(x).

    `fvu`: what it leaves unexplained on the given points.  `loo`: the same for points that are predicted without having been seen, see
    `leave_one_out`; where it was not worked out it is `fvu`.
    """

    terms: tuple[Formula, ...]
    coefficients: tuple[float, ...]
    offset: float
    fvu: float
    loo: float = math.nan

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

    @property
    def numbers(self) -> int:
        """How many numbers it holds that are not plain small integers: inner ones, coefficients, offset."""
        return sum(not _is_plain(v) for v in [*self.constants, *self.coefficients, self.offset])


def _is_plain(v: float) -> bool:
    return float(v).is_integer() and abs(v) < 10


def _columns(terms: Sequence[Formula], numbers: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """The terms' values (points, terms) with `numbers` in place of their constants; None where one is undefined or beyond 1e150."""
    left = iter(numbers)
    columns = np.stack([t.evaluate(x, [next(left) for _ in t.constants()]) for t in terms], axis=1) if terms else np.zeros((x.shape[-1], 0))
    return columns if np.all(np.abs(columns) <= 1e150) else None


def _linear(columns: np.ndarray, y: np.ndarray, *, intercept: bool) -> tuple[np.ndarray, float, np.ndarray]:
    """Coefficients, offset and residual of the least-squares fit of y by the columns."""
    scale = np.maximum(np.max(np.abs(columns), axis=0, initial=0.0), 1e-300)
    design = columns / scale
    if intercept:
        design = np.concatenate([design, np.ones((len(y), 1))], axis=1)
    size = max(float(np.max(np.abs(y))), 1e-300)
    try:
        solved = np.linalg.lstsq(design, y / size, rcond=1e-14)[0] * size if design.shape[1] else np.zeros(0)
    except np.linalg.LinAlgError:  # the iteration for the singular values gave up
        return np.zeros(columns.shape[1]), 0.0, np.full(len(y), np.inf)
    residual = y - design @ solved if design.shape[1] else y
    with np.errstate(over="ignore"):  # a coefficient beyond float64 belongs to a term that is 0 on the points
        coefficients = solved[: columns.shape[1]] / scale
    return np.where(np.isfinite(coefficients), coefficients, 0.0), float(solved[-1]) if intercept else 0.0, residual


def linear_solution(terms: Sequence[Formula], x: np.ndarray, y: np.ndarray, *, intercept: bool = True) -> Solution | None:
    """Least squares over the coefficients in float64; None where a term is undefined on the points."""
    return _solution(terms, np.array([c for t in terms for c in t.constants()]), x, y, intercept=intercept)


def _solution(terms: Sequence[Formula], numbers: np.ndarray, x: np.ndarray, y: np.ndarray, *, intercept: bool) -> Solution | None:
    columns = _columns(terms, numbers, x)
    if columns is None:
        return None
    coefficients, offset, residual = _linear(columns, y, intercept=intercept)
    variance = float(np.sum((y - np.mean(y)) ** 2))
    fvu = float(np.sum(residual**2)) / max(variance, 1e-300)
    return Solution(_with_constants(terms, numbers), tuple(map(float, coefficients)), offset, fvu, fvu)


def polish(terms: Sequence[Formula], x: np.ndarray, y: np.ndarray, *, frozen: frozenset[int] = frozenset(), intercept: bool = True) -> Solution | None:
    """All constants inside the terms, except the `frozen` ones, by SciPy's Levenberg-Marquardt in float64; coefficients projected out."""
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
        return np.full(len(y), 1e6) if columns is None else _linear(columns, y, intercept=intercept)[2] / spread

    try:
        scale, tolerance = np.maximum(np.abs(numbers[free]), 1e-3), 1e-15
        found = scipy.optimize.least_squares(
            residual, numbers[free], method="lm", x_scale=scale, xtol=tolerance, ftol=tolerance, gtol=tolerance, max_nfev=40 * (len(free) + 1)
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
    return solution.offset + sum((a * t.evaluate(x) for a, t in zip(solution.coefficients, solution.terms, strict=True)), np.zeros(x.shape[-1]))


def _with_constants(terms: Sequence[Formula], numbers: Sequence[float] | np.ndarray) -> tuple[Formula, ...]:
    left = iter(numbers)
    return tuple(Formula(tuple(p if isinstance(p, str) else float(next(left)) for p in t.parts)) for t in terms)


def leave_one_out(solution: Solution, x: np.ndarray, y: np.ndarray) -> Solution:
    """The same solution with `loo`: the FVU of points predicted by a fit that has not seen them.

    No fit is repeated.  A point with leverage h pulls the curve towards itself, and without it its residual would be r / (1 - h), exactly so
    for coefficients and to first order for the numbers inside (Allen 1974).  A formula that bends to single points is found out by this:
    their leverage is near 1.  Every number counts, 0 and small integers too, unless it is exactly what the skeleton says.  Chapter 8.
    """
    n, numbers = len(y), solution.constants
    columns = _columns(solution.terms, numbers, x)
    variance = float(np.sum((y - np.mean(y)) ** 2))
    if columns is None or solution.fvu < 1e-24:
        return solution
    tangents = []
    fitted = columns @ np.array(solution.coefficients)
    for i, number in enumerate(numbers):
        if _is_plain(number):
            continue
        moved, step = numbers.copy(), 1e-6 * max(abs(number), 1e-3)
        moved[i] += step
        shifted = _columns(solution.terms, moved, x)
        if shifted is not None:
            tangents.append((shifted @ np.array(solution.coefficients) - fitted) / step)
    free = columns[:, [not _is_plain(a) for a in solution.coefficients]]
    design = np.concatenate([free, *(t[:, None] for t in tangents), *([np.ones((n, 1))] if solution.offset != 0.0 else [])], axis=1)
    if design.shape[1] >= n or not np.all(np.abs(design) <= 1e150):
        return replace(solution, loo=math.inf)
    try:
        left, sizes, _ = np.linalg.svd(design / np.maximum(np.linalg.norm(design, axis=0), 1e-300), full_matrices=False)
    except np.linalg.LinAlgError:
        return replace(solution, loo=math.inf)
    leverage = np.sum(left[:, sizes > 1e-10] ** 2, axis=1)
    residual = (y - solution.offset - fitted) / np.maximum(1 - leverage, 1e-9)
    return replace(solution, loo=float(np.sum(residual**2)) / max(variance, 1e-300))


def nice_numbers(v: float) -> list[float]:
    """Simple numbers near v, simplest first: integers, halves, thirds, quarters, tenths, small multiples of pi, then v with 2 to 4 digits."""
    near = [round(v * q) / q for q in (1, 2, 3, 4, 5, 10)]
    near += [round(v * q / math.pi) * math.pi / q for q in (1, 2, 3, 4) if abs(v) * q < 12.5 * math.pi]
    near += [float(f"{v:.{d}g}") for d in (2, 3, 4)]
    return [n for n in dict.fromkeys(near) if n != 0 and abs(n - v) <= 0.05 * abs(v)]


def description_length(solution: Solution, points: int) -> float:
    """Nats to state the formula and what it leaves unexplained: the score that picks a formula from the front.  Lower is better.

    A term costs its `Formula.price` and a plus sign its own, a plain small integer 1 and another number 1 + log(n)/2; the residuals cost
    n/2 log of the larger of FVU and `loo`, floored at double precision.
    """
    numbers = [v for v in (*solution.constants, *solution.coefficients, solution.offset) if v not in (0.0, 1.0)]
    price = sum(1.0 if _is_plain(v) else 1.0 + 0.5 * math.log(points) for v in numbers)
    price += sum(t.price() for t in solution.terms) + float(TOKEN_PRICE[OPERATOR_TOKEN["add"]]) * max(len(solution.terms) - 1, 0)
    return price + 0.5 * points * math.log(max(solution.fvu, solution.loo) + 1e-24)


def snap(solution: Solution, x: np.ndarray, y: np.ndarray) -> Solution:
    """Replace numbers by simple ones near them, one after the other, as long as the description gets no longer.

    After every replacement the other numbers are fitted again.  A number that the data pin down is thus left alone unless the simple one
    explains them as well.  Terms whose removal shortens the description go first.
    """
    n = len(y)

    def length(trial: Solution | None) -> float:
        return math.inf if trial is None else description_length(trial, n)

    best = leave_one_out(solution, x, y)
    while len(best.terms) > 1:
        shorter = [polish([t for t in best.terms if t is not gone], x, y) for gone in best.terms]
        finest = min((leave_one_out(s, x, y) for s in shorter if s is not None), key=length, default=None)
        if finest is None or length(finest) > length(best):
            break
        best = finest
    frozen: set[int] = set()
    for i in sorted(range(len(best.constants)), key=lambda i: -abs(best.constants[i])):
        numbers = best.constants
        for number in nice_numbers(numbers[i]):
            numbers[i] = number
            trial = polish(_with_constants(best.terms, numbers), x, y, frozen=frozenset(frozen | {i}))
            trial = None if trial is None else leave_one_out(trial, x, y)
            if trial is not None and length(trial) <= length(best) + (0.0 if _is_plain(number) else -0.05):
                best = trial
                frozen.add(i)
                break
    # the offset, then the coefficients: zero, or a simple number
    without = polish(best.terms, x, y, frozen=frozenset(frozen), intercept=False)
    without = None if without is None else leave_one_out(without, x, y)
    intercept = without is None or length(without) > length(best)
    if without is not None and not intercept:
        best = without
    best = _snap_linear(best, x, y, intercept=intercept)
    return replace(best, offset=0.0) if abs(best.offset) < 1e-13 * float(np.max(np.abs(y))) else best  # rounding, not an offset


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
            fixed[rest], _, residual = _linear(columns[:, rest], y - columns[:, held] @ fixed[held], intercept=False)
            trial = leave_one_out(Solution(best.terms, tuple(map(float, fixed[:-1])), float(fixed[-1]), float(np.sum(residual**2)) / variance), x, y)
            if description_length(trial, n) <= description_length(best, n):
                best, numbers = trial, list(fixed)
                loose.remove(i)
                break
    return best
