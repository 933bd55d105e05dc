"""Numbers for a batch of formulas on the device: variable projection and Levenberg-Marquardt.
(Chapter 8)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import additive_terms, centre, evaluate_nodes, sensitivities
from refinemath.expression import MASK, SLOTS, is_constant

TERMS = 6  # additive terms of a formula that get a coefficient of their own


class Points(NamedTuple):
    """A batch of scatter plots, padded: x (batch, variables, points), y and mask (batch,
    points).
    """

    x: Float[Array, "batch variables points"]
    y: Float[Array, "batch points"]
    mask: Array


class Candidate(NamedTuple):
    """A formula and what executing it on the points gave."""

    tokens: Int[Array, "batch slots"]
    values: Float[Array, "batch slots"]
    fitted: Float[Array, "batch points"]  # b + sum of a_k term_k, least squares
    fvu: Float[Array, " batch"]


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


class Fitted(NamedTuple):
    """A batch of formulas with their best constants found so far."""

    values: Float[Array, "batch slots"]
    fitted: Float[Array, "batch points"]
    fvu: Float[Array, " batch"]
    rows: Float[Array, "batch terms points"]  # orthonormal, spanning the centred terms


class FitState(NamedTuple):
    """The state of `levenberg_marquardt`: the best numbers, their normal equations, and the numbers
    to try next.
    """

    theta: Float[Array, "batch constants"]
    found: Projection
    normal: Float[Array, "batch constants constants"]
    gradient: Float[Array, "batch constants"]
    damping: Float[Array, " batch"]
    trial: Float[Array, "batch constants"]


def levenberg_marquardt(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    x: Float[Array, "batch variables points"],
    y: Float[Array, "batch points"],
    mask: Array,
    *,
    steps: int,
    terms: int = TERMS,
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

    def step(carry: FitState, _: None) -> tuple[FitState, None]:
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
        return FitState(theta, found, normal, gradient, damping, theta + move), None

    theta = jnp.take_along_axis(values, places, axis=1)
    unfitted = Projection(
        jnp.zeros((batch, terms, y.shape[-1]), y.dtype),
        y,
        jnp.zeros_like(y),
        jnp.full((batch,), jnp.inf, y.dtype),
    )
    flat = jnp.zeros((batch, constants, constants), values.dtype)
    start = FitState(
        theta, unfitted, flat, flat[..., 0], jnp.full((batch,), 5e-2, values.dtype), theta
    )
    end, _ = jax.lax.scan(step, start, None, length=steps + 1)
    fitted = values.at[row, places].set(jnp.where(free, end.theta, values[row, places]))
    return Fitted(fitted, end.found.fitted, end.found.fvu, end.found.rows)


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


def execute(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    points: Points,
    nodes: Float[Array, "slots batch points"] | None = None,
) -> Candidate:
    """Run a formula on its points and fit the free coefficients: the reality check of every step.
    Chapter 4.

    `nodes`: the values of all subtrees, where they are known already.
    """
    nodes = evaluate_nodes(tokens, values, points.x) if nodes is None else nodes
    slots_of, term = additive_terms(tokens, TERMS)
    basis = nodes[slots_of, jnp.arange(tokens.shape[0])[:, None]]
    batch = tokens.shape[0]
    fit = project(
        basis,
        term,
        jnp.broadcast_to(points.y, (batch, points.y.shape[-1])),
        jnp.broadcast_to(points.mask, (batch, points.mask.shape[-1])),
    )
    return Candidate(tokens, values, fit.fitted, fit.fvu)


def no_candidate(points: Points, slots: int = SLOTS) -> Candidate:
    """The candidate before there is one: every slot unknown, nothing explained."""
    batch = points.y.shape[0]
    mask = points.mask.astype(jnp.float32)
    mean = jnp.sum(points.y * mask, axis=-1, keepdims=True) / jnp.maximum(
        jnp.sum(mask, axis=-1, keepdims=True), 1
    )
    return Candidate(
        jnp.full((batch, slots), MASK, jnp.int32),
        jnp.zeros((batch, slots), jnp.float32),
        mean * mask,
        jnp.ones(batch, jnp.float32),
    )


def tree_where(where: Array, a: Any, b: Any) -> Any:
    """`a` for the batch entries where `where` holds, else `b`, for whole records."""
    return jax.tree.map(lambda u, v: jnp.where(where.reshape(-1, *[1] * (u.ndim - 1)), u, v), a, b)
