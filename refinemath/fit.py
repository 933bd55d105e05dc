"""Numbers for a skeleton: linear coefficients in closed form, the others by Levenberg-Marquardt, then snapped.  (Chapter 8)"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax import Array
from jaxtyping import Float, Int

from refinemath.language import Formula, additive_terms, combine, evaluate_nodes, is_constant


def project(
    basis: Float[Array, "batch terms points"], term: Array, y: Float[Array, "batch points"], mask: Array
) -> tuple[Float[Array, "batch points"], Float[Array, " batch"]]:
    """The least-squares fit y ~ b + sum_k a_k basis_k, and its fraction of variance unexplained (FVU).

    Modified Gram-Schmidt on the centred terms, so that nearly dependent terms cost no accuracy; a term that adds nothing is dropped, and an
    undefined one makes the FVU infinite.  This is the inner, linear half of variable projection (Golub & Pereyra 1973).  Chapter 8.
    """
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(y.dtype)

    def centre(v: Array) -> tuple[Array, Array]:
        mean = jnp.sum(jnp.where(mask, v, 0.0), axis=-1) / count
        return jnp.where(mask, v - mean[..., None], 0.0), mean

    residual, mean = centre(y)
    total = jnp.sum(residual**2, axis=-1)
    finite = jnp.all(jnp.isfinite(basis) & (jnp.abs(basis) < 1e12) | ~term[..., None] | ~mask[:, None], axis=(1, 2))
    columns: list[Array] = []
    for k in range(basis.shape[1]):
        column, _ = centre(jnp.where(term[:, k, None] & finite[:, None], basis[:, k], 0.0))
        size = jnp.sqrt(jnp.sum(column**2, axis=-1, keepdims=True))
        column = column / jnp.maximum(size, 1e-30)
        for earlier in columns:
            column = column - jnp.sum(column * earlier, axis=-1, keepdims=True) * earlier
        left = jnp.sqrt(jnp.sum(column**2, axis=-1, keepdims=True))
        column = jnp.where(left > 1e-4, column / jnp.maximum(left, 1e-30), 0.0)
        residual = residual - jnp.sum(column * residual, axis=-1, keepdims=True) * column
        columns.append(column)
    fvu = jnp.sum(residual**2, axis=-1) / jnp.maximum(total, 1e-30)
    fitted = jnp.where(mask, y - residual, 0.0)
    return jnp.where(finite[:, None], fitted, mean[:, None] * mask.astype(y.dtype)), jnp.where(finite, fvu, jnp.inf)


# ---------------------------------------------------------------- constants inside, batched on the device


class Fitted(NamedTuple):
    """A batch of formulas with their best constants found so far."""

    values: Float[Array, "batch slots"]
    fitted: Float[Array, "batch points"]
    fvu: Float[Array, " batch"]


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

    The linear coefficients are projected out at every step (`project`), so the search is over the inner numbers alone.  The Jacobian is
    forward-mode, exact through the projection.  A step is kept only if the FVU falls.  Works in the dtype of its inputs.  Chapter 8.
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
    count = jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1).astype(y.dtype)
    spread = jnp.sqrt(jnp.sum(jnp.where(mask, (y - jnp.sum(jnp.where(mask, y, 0.0), -1, keepdims=True) / count) ** 2, 0.0), -1, keepdims=True))
    spread = jnp.maximum(spread, 1e-30)
    eye = jnp.eye(constants, dtype=values.dtype)

    def run(theta: Array) -> tuple[Array, tuple[Array, Array]]:
        numbers = values.at[row, places].set(jnp.where(free, theta, values[row, places]))
        basis = evaluate_nodes(tokens, numbers, x)[slots_of, row]
        fitted, fvu = project(basis, term, y, mask)
        return jnp.where(mask, (y - fitted) / spread, 0.0), (fitted, fvu)

    def tangent(theta: Array, direction: Array) -> Array:
        return jax.jvp(lambda t: run(t)[0], (theta,), (jnp.broadcast_to(direction, theta.shape),))[1]

    def step(carry: tuple[Array, Array, Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array, Array, Array], None]:
        theta, residual, fitted, fvu, damping = carry
        jacobian = jax.lax.map(lambda d: tangent(theta, d), eye)  # (constants, batch, points)
        jacobian = jnp.where(jnp.isfinite(jacobian) & free.T[..., None], jacobian, 0.0)
        normal = jnp.einsum("abn,cbn->bac", jacobian, jacobian)
        gradient = jnp.einsum("abn,bn->ba", jacobian, residual)
        diagonal = jnp.einsum("baa->ba", normal)
        scale = damping[:, None] * diagonal + jnp.where(diagonal > 0, 1e-12 * diagonal, 1.0)
        move = -jnp.linalg.solve(normal + scale[..., None] * eye[None], gradient[..., None])[..., 0]
        move = jnp.clip(jnp.where(jnp.isfinite(move), move, 0.0), -2.0 - jnp.abs(theta), 2.0 + jnp.abs(theta))
        new_residual, (new_fitted, new_fvu) = run(theta + move)
        better = new_fvu < fvu
        keep = better[:, None]
        carry = (
            jnp.where(keep, theta + move, theta),
            jnp.where(keep, new_residual, residual),
            jnp.where(keep, new_fitted, fitted),
            jnp.where(better, new_fvu, fvu),
            jnp.clip(jnp.where(better, damping * 0.2, damping * 5.0), 1e-10, 1e8),
        )
        return carry, None

    theta = jnp.take_along_axis(values, places, axis=1)
    residual, (fitted, fvu) = run(theta)
    start = (theta, residual, fitted, fvu, jnp.full((batch,), 1e-2, values.dtype))
    (theta, _, fitted, fvu, _), _ = jax.lax.scan(step, start, None, length=steps)
    return Fitted(values.at[row, places].set(jnp.where(free, theta, values[row, places])), fitted, fvu)


# ---------------------------------------------------------------- the last digits, one formula at a time in float64


@dataclass(frozen=True)
class Solution:
    """A formula with all its numbers: y ~ offset + sum_k coefficient_k term_k(x), and its FVU on the given points."""

    terms: tuple[Formula, ...]
    coefficients: tuple[float, ...]
    offset: float
    fvu: float

    def formula(self) -> Formula:
        """One formula with the coefficients written in."""
        return combine(self.terms, self.coefficients, self.offset)

    @property
    def length(self) -> int:
        """Tokens of the skeleton, without the free coefficients."""
        return sum(len(t) for t in self.terms) + len(self.terms) - 1

    @property
    def numbers(self) -> int:
        """How many numbers it holds that are not plain small integers: inner ones, coefficients, offset."""
        inner = [c for t in self.terms for c in t.constants()]
        return sum(not _is_plain(v) for v in [*inner, *self.coefficients, self.offset])


def _is_plain(v: float) -> bool:
    return float(v).is_integer() and abs(v) < 10


def linear_solution(terms: Sequence[Formula], x: np.ndarray, y: np.ndarray, *, intercept: bool = True) -> Solution | None:
    """Least squares over the coefficients in float64; None where a term is undefined on the points."""
    columns = [t.evaluate(x) for t in terms]
    if any(not np.all(np.isfinite(c)) or np.max(np.abs(c)) > 1e150 for c in columns):
        return None
    scale = [max(float(np.max(np.abs(c))), 1e-300) for c in columns]
    design = np.stack([c / s for c, s in zip(columns, scale, strict=True)] + ([np.ones_like(y)] if intercept else []), axis=1)
    size = max(float(np.max(np.abs(y))), 1e-300)
    solved, *_ = np.linalg.lstsq(design, y / size, rcond=1e-14)
    residual = y - design @ solved * size
    variance = float(np.sum((y - np.mean(y)) ** 2))
    coefficients = tuple(float(a * size / s) for a, s in zip(solved, scale, strict=False))
    offset = float(solved[-1] * size) if intercept else 0.0
    return Solution(tuple(terms), coefficients, offset, float(np.sum(residual**2)) / max(variance, 1e-300))


def polish(terms: Sequence[Formula], x: np.ndarray, y: np.ndarray, *, frozen: frozenset[int] = frozenset(), intercept: bool = True) -> Solution | None:
    """All constants inside the terms, except the `frozen` ones, by SciPy's Levenberg-Marquardt in float64; coefficients projected out."""
    start = np.array([c for t in terms for c in t.constants()])
    free = [i for i in range(len(start)) if i not in frozen]
    first = linear_solution(terms, x, y, intercept=intercept)
    if first is None or not free or len(y) <= len(free):
        return first
    spread = float(np.std(y)) or 1.0

    def residual(theta: np.ndarray) -> np.ndarray:
        solution = linear_solution(_with_constants(terms, start, free, theta), x, y, intercept=intercept)
        if solution is None:
            return np.full(len(y), 1e6)
        return (y - solution_values(solution, x)) / spread

    try:
        scale, tolerance = np.maximum(np.abs(start[free]), 1e-3), 1e-15
        found = scipy.optimize.least_squares(
            residual, start[free], method="lm", x_scale=scale, xtol=tolerance, ftol=tolerance, gtol=tolerance, max_nfev=60 * (len(free) + 1)
        )
    except (ValueError, np.linalg.LinAlgError):
        return first
    second = linear_solution(_with_constants(terms, start, free, found.x), x, y, intercept=intercept)
    return second if second is not None and second.fvu < first.fvu else first


def solution_values(solution: Solution, x: np.ndarray) -> np.ndarray:
    """The fitted values at x (variables, points), float64."""
    return solution.offset + sum((a * t.evaluate(x) for a, t in zip(solution.coefficients, solution.terms, strict=True)), np.zeros(x.shape[-1]))


def _with_constants(terms: Sequence[Formula], start: np.ndarray, free: Sequence[int], theta: np.ndarray) -> list[Formula]:
    numbers = start.copy()
    numbers[list(free)] = theta
    left = iter(numbers.tolist())
    return [Formula(tuple(p if isinstance(p, str) else next(left) for p in t.parts)) for t in terms]


def nice_numbers(v: float) -> list[float]:
    """Simple numbers near v, simplest first: integers, halves, thirds, quarters, tenths, multiples of pi, then v with 2 to 4 digits."""
    near = [round(v * q) / q for q in (1, 2, 3, 4, 5, 10)]
    near += [round(v * q / math.pi) * math.pi / q for q in (1, 2, 3, 4)]
    near += [float(f"{v:.{d}g}") for d in (2, 3, 4)]
    return [n for n in dict.fromkeys(near) if n != 0 and abs(n - v) <= 0.05 * abs(v)]


def description_length(solution: Solution, points: int) -> float:
    """Nats to state the formula and what it leaves unexplained: the score that picks a formula from the front.  Lower is better.

    A token costs 1.5, a number 1 + log(n)/2 and a plain small integer 1; the residuals cost n/2 log FVU, floored at double precision.
    """
    inner = [c for t in solution.terms for c in t.constants()]
    numbers = [v for v in (*inner, *solution.coefficients, solution.offset) if v not in (0.0, 1.0)]
    price = sum(1.0 if _is_plain(v) else 1.0 + 0.5 * math.log(points) for v in numbers)
    return 1.5 * solution.length + price + 0.5 * points * math.log(solution.fvu + 1e-24)


def snap(solution: Solution, x: np.ndarray, y: np.ndarray) -> Solution:
    """Replace numbers by simple ones near them, one after the other, as long as the description gets no longer.

    After every replacement the other numbers are fitted again.  A number that the data pin down is thus left alone unless the simple one
    explains them as well.
    """
    n = len(y)
    best = solution
    inner = [c for t in best.terms for c in t.constants()]
    frozen: set[int] = set()
    for i in sorted(range(len(inner)), key=lambda i: -abs(inner[i])):
        current = [c for t in best.terms for c in t.constants()]
        for number in nice_numbers(current[i]):
            terms = _with_constants(best.terms, np.array(current), [i], np.array([number]))
            trial = polish(terms, x, y, frozen=frozenset(frozen | {i}))
            if trial is not None and description_length(trial, n) <= description_length(best, n) + (0.0 if _is_plain(number) else -0.05):
                best = trial
                frozen.add(i)
                break
    # the offset, then the coefficients: zero, or a simple number
    without = polish(best.terms, x, y, frozen=frozenset(frozen), intercept=False)
    intercept = True
    if without is not None and description_length(without, n) <= description_length(best, n):
        best, intercept = without, False
    return _snap_linear(best, x, y, intercept=intercept)


def _snap_linear(best: Solution, x: np.ndarray, y: np.ndarray, *, intercept: bool) -> Solution:
    n = len(y)
    variance = max(float(np.sum((y - np.mean(y)) ** 2)), 1e-300)
    numbers = [*best.coefficients, best.offset]
    columns = [*(t.evaluate(x) for t in best.terms), np.ones(n)]
    loose = [i for i in range(len(numbers)) if intercept or i < len(numbers) - 1]
    for i in list(loose):
        for number in nice_numbers(numbers[i]):
            rest = [j for j in loose if j != i]
            fixed = list(numbers)
            fixed[i] = number
            target = y - sum(fixed[j] * columns[j] for j in range(len(fixed)) if j not in rest)
            if rest:
                scale = [max(float(np.max(np.abs(columns[j]))), 1e-300) for j in rest]
                solved, *_ = np.linalg.lstsq(np.stack([columns[j] / s for j, s in zip(rest, scale, strict=True)], 1), target, rcond=1e-14)
                for j, v, s in zip(rest, solved, scale, strict=True):
                    fixed[j] = float(v / s)
            residual = y - sum(v * c for v, c in zip(fixed, columns, strict=True))
            trial = Solution(best.terms, tuple(fixed[:-1]), fixed[-1], float(np.sum(residual**2)) / variance)
            if description_length(trial, n) <= description_length(best, n):
                best, numbers = trial, fixed
                loose.remove(i)
                break
    return best
