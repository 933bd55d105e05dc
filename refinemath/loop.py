"""The search as one compiled loop: refine the latents, propose, execute, fit, feed back, halt.
(Chapters 4, 7, 9)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import evaluate_nodes
from refinemath.expression import TOKEN_VALUE
from refinemath.fitting import (
    TERMS,
    Candidate,
    Points,
    execute,
    levenberg_marquardt,
    no_candidate,
    tree_where,
)
from refinemath.model import Encoded, stabilise
from refinemath.pool import Pool, merge, score, top_per_group
from refinemath.proposers.edits import edit
from refinemath.proposers.library import BLOCK, SHORTEST, make_library
from refinemath.proposers.missing_term import missing_terms
from refinemath.proposers.pairs import Subtrees, distinct_subtrees, pair_up
from refinemath.proposers.prior import draw_prior
from refinemath.proposers.quotients import quotients
from refinemath.proposers.short import initial_pool, queue_order
from refinemath.proposers.splice import concat

POINTS = 64  # the network and the search look at no more points than this


@dataclass(frozen=True)
class SearchConfig:
    """How much a search may do; part of the compiled program."""

    thoughts: int = 32
    samples: int = 128  # formulas drawn from each thought at each step
    edits: int = 1024  # random edits of the best formulas at each step
    missing_terms: int = (
        64  # remembered formulas that are offered the terms they lack, at each step
    )
    # different subtrees of what was drawn that are paired with short formulas, at each step
    parts: int = 4096
    couples: int = 64  # pairs of each kind (sum, product, quotient) that are executed, at each step
    fits: int = 4  # formulas of each thought whose constants are fitted at each step
    fit_steps: int = 4
    fits_short: int = 32  # short formulas whose constants are fitted at each step
    fits_ratio: int = 16  # quotients with a free number in the denominator, likewise
    keep: int = 128  # formulas remembered
    search_steps: int = 8  # candidates may change during these
    steps: int = 32  # all steps
    noise: float = 0.3
    temperature: float = 1.0
    solved: float = 1e-11  # FVU in float32 at which the reality check is passed
    leap: float = (
        4.0  # a thought that settles is moved ahead by at most so many of its own moves; 0: never
    )
    shorten: int = 2  # steps without a shorter form after which that is the end of the search
    patience: int = 3  # further searches without a better formula before giving up
    network: bool = True  # False: candidates come from the prior instead, the null model

    def __post_init__(self) -> None:
        for name in (
            "thoughts",
            "samples",
            "fits",
            "fit_steps",
            "fits_short",
            "keep",
            "search_steps",
            "steps",
        ):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be a positive whole number"
                )
        for name in (
            "edits",
            "missing_terms",
            "parts",
            "couples",
            "fits_ratio",
            "shorten",
            "patience",
        ):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be a whole number, 0 or more"
                )
        for name, least in (("noise", 0.0), ("temperature", 1e-3), ("solved", 0.0), ("leap", 0.0)):
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be a number of at least {least:g}"
                )
        if self.samples < self.fits:
            raise ValueError(
                f"fits is {self.fits} and samples {self.samples}; no more can be fitted than are "
                "drawn"
            )
        if 0 < self.edits < 8:
            raise ValueError(f"edits is {self.edits}; it must be 0 or at least 8")


class Trace(NamedTuple):
    """What happened at each step; rows after the last step are NaN."""

    velocity: Float[Array, "steps thoughts"]
    fvu: Float[Array, " steps"]
    gram: Float[
        Array, "steps slots slots"
    ]  # Z Z^T of the first thought: its eigenvalues are the squared singular values
    latent: Float[Array, "steps thoughts sketch"]  # a fixed random projection of every thought


class SearchOutput(NamedTuple):
    """The end of a search."""

    pool: Pool
    z: Float[Array, "thoughts slots dim"]
    trace: Trace
    steps: Array  # taken in all
    found_at: Array  # the step at which the best formula appeared
    converged: Array  # did every thought settle: its velocity under the threshold twice in a row
    searched: Array  # steps in which candidates could change; in the others the thoughts settled


class SearchState(NamedTuple):
    """The state of the loop."""

    z: Float[Array, "thoughts slots dim"]
    candidate: Candidate
    pool: Pool
    offers: tuple[
        Array, Array
    ]  # tokens and values of the formulas to be executed at the next step beside what is drawn
    hits: Int[Array, " thoughts"]
    before: tuple[Array, Array]  # the latents of the step before, and what the refiner made of them
    rested: Array  # steps since the candidates last changed
    step: Array
    found_at: Array
    key: Array
    trace: Trace


def anderson_step(
    z: Float[Array, "thoughts slots dim"],
    new: Float[Array, "thoughts slots dim"],
    before: tuple[Array, Array],
    most: float,
) -> Float[Array, "thoughts slots dim"]:
    """Where thoughts are heading that went from z to new, after a step from before[0] to before[1].
    Chapter 7.

    Anderson's acceleration (1965) of depth one: a thought whose every move is the share q of the
    last one has q / (1 - q) of its last move before it.  So far it is moved ahead, at most `most`
    times the move, and not at all where it turns back.  A thought whose moves grow while they keep
    their direction is leaving an unstable fixed point for another one: it is moved ahead as far as
    it may.
    """
    move, last = new - z, before[1] - before[0]
    change = last - move

    def dot(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=(1, 2))

    left = jnp.clip(dot(move, change) / jnp.maximum(dot(change, change), 1e-30), 0.0, most)
    leaves = (dot(move, change) < 0) & (
        dot(move, last) > 0.8 * jnp.sqrt(dot(move, move) * dot(last, last))
    )
    return new + jnp.where(leaves, most, left)[:, None, None] * (new - before[1])


# A first answer waits for the compiler.  XLA's newer code generator for the CPU and more
# optimisation than level 1 would make the loop somewhat
# faster, and that wait longer than they save in a few answers.
_QUICK_TO_COMPILE = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}


@functools.partial(jax.jit, static_argnames=("graph", "budget"), compiler_options=_QUICK_TO_COMPILE)
def search(
    params: Any,
    graph: Any,
    points: Points,
    key: Array,
    threshold: Array,
    start: Int[Array, "start slots"],
    prior: Int[Array, "formulas slots"],
    *,
    budget: SearchConfig,
    at_most: Array | int | None = None,
) -> SearchOutput:
    """Search with K thoughts at once.

    `points` is one scatter plot (batch size 1, 32 or 64 of them, padded, sorted by x where there is
    one variable).  `start` are skeletons that are tried before the loop (all short formulas, or
    none: shape (0, slots)).  `prior` serves the null model alone.  The whole search is one compiled
    program; memory does not grow with the number of steps taken.  `at_most`: candidates change
    during so many steps, if that is fewer than `budget.search_steps`.
    """
    last = jnp.minimum(budget.search_steps, budget.search_steps if at_most is None else at_most)
    model = nnx.merge(graph, params)
    thoughts, dim = budget.thoughts, model.refiner.seed[...].shape[1]
    slots = model.refiner.seed[...].shape[0]
    count = jnp.sum(points.mask).astype(jnp.float32)
    half = (
        thoughts * budget.samples // 2
    )  # of what is drawn at a step, the share whose parts are paired
    zero = jnp.zeros((), jnp.int32)
    nothing = jnp.zeros((0, slots), jnp.int32), jnp.zeros((0, slots), jnp.float32)
    key, k_noise, k_start = jax.random.split(key, 3)
    spread = Points(*(jnp.broadcast_to(a, (thoughts, *a.shape[1:])) for a in points))
    sketch = jax.random.rademacher(jax.random.key(7), (slots * dim, 8), jnp.float32) / jnp.sqrt(
        jnp.float32(slots * dim)
    )

    if budget.network:
        one = model.encoder(points)
        each, summary = (
            jnp.broadcast_to(a, (thoughts, *a.shape[1:])) for a in (one.each, one.summary)
        )
        encoded = Encoded(each, summary, spread)
    z = model.refiner.start(budget.noise * jax.random.normal(k_noise, (thoughts, slots, dim)))

    def draw(key: Array, z: Array) -> Array:
        if budget.network:
            return model.refiner.sample(key, z, budget.samples, budget.temperature).reshape(
                -1, slots
            )
        return draw_prior(key, prior, thoughts * budget.samples)

    def move(carry: SearchState) -> tuple[Array, Array, Array, Array]:
        refined = new = (
            model.refiner(carry.z, encoded, carry.candidate) if budget.network else carry.z
        )
        if (
            budget.network and budget.leap
        ):  # what was refined from the same candidate at two steps shows where it leads

            def leap() -> Array:
                return stabilise(
                    anderson_step(carry.z, refined, carry.before, budget.leap),
                    model.refiner.stabiliser,
                )

            new = jax.lax.cond(carry.rested >= 2, leap, lambda: refined)
        velocity = jnp.sqrt(
            jnp.sum((new - carry.z) ** 2, axis=(1, 2))
            / jnp.maximum(jnp.sum(carry.z**2, axis=(1, 2)), 1e-12)
        )
        halted = carry.hits >= 2
        hits = jnp.where(halted, carry.hits, jnp.where(velocity < threshold, carry.hits + 1, 0))
        return (
            jnp.where(halted[:, None, None], carry.z, new),
            jnp.where(halted, 0.0, velocity),
            hits,
            refined,
        )

    def searching(carry: SearchState) -> Array:
        # what has just been found may have a shorter form
        return (carry.step < last) & (
            (carry.pool.fvu[0] > budget.solved) | (carry.step < carry.found_at + budget.shorten)
        )

    price = functools.partial(score, points=count)

    def offer(
        pool: Pool, tokens: Array, values: Array, nodes: Array, step: Array
    ) -> tuple[Array, Array]:
        """Remembered formulas with terms they lack or a subtree exchanged; short formulas paired
        with parts of what was drawn, first with one another.
        """
        if not budget.edits or not start.shape[0]:
            return nothing
        extended = missing_terms(pool, library, points, min(budget.missing_terms, budget.keep))
        if not len(shortest.tokens):
            return extended
        subtrees = distinct_subtrees(
            tokens[:half], values[:half], nodes[:, :half], points, len(whole.tokens)
        )
        subtrees = tree_where(jnp.full(len(whole.tokens), step == 0), whole, subtrees)
        return concat(extended, pair_up(subtrees, shortest, points, budget.couples))

    def propose(carry: SearchState) -> SearchState:
        """Draw, execute, fit, remember, and give every thought its next candidate."""
        key, k_draw, k_edit, k_other = jax.random.split(carry.key, 4)
        u = jax.random.uniform(k_other, (2 * thoughts + budget.edits,), minval=1e-6)
        u_lag, u_which, u_parent = u[:thoughts], u[thoughts : 2 * thoughts], u[2 * thoughts :]

        def mostly_first(u: Array, typical: float) -> Array:
            """Places in the pool, exponentially distributed with the mean `typical`."""
            return jnp.minimum((-jnp.log(u) * typical).astype(jnp.int32), budget.keep - 1)

        pool = carry.pool
        tokens = draw(k_draw, carry.z)
        values = jnp.asarray(TOKEN_VALUE)[tokens]
        if budget.edits:
            rank = mostly_first(u_parent, budget.keep / 5)
            parents = jnp.where(jnp.isfinite(pool.fvu[rank]), rank, 0)
            donors = jnp.concatenate([pool.tokens, tokens[: budget.keep]])
            tokens, values = concat(
                (tokens, values),
                edit(
                    k_edit,
                    pool.tokens[parents],
                    pool.values[parents],
                    donors,
                    model.refiner.variables,
                ),
                carry.offers,
            )
        nodes = evaluate_nodes(tokens, values, points.x)
        drawn = execute(tokens, values, points, nodes)
        own = thoughts * budget.samples
        chosen = top_per_group(jax.tree.map(lambda a: a[:own], drawn), thoughts, budget.fits, count)
        if budget.edits:
            others = jax.tree.map(lambda a: a[own:], drawn)
            chosen = jnp.concatenate(
                [chosen, own + top_per_group(others, 8, min(10, len(others.fvu) // 8), count)]
            )
        again = min(
            64, budget.keep
        )  # the constants of the best remembered formulas go on being fitted
        fit_next = [(tokens[chosen], values[chosen]), (pool.tokens[:again], pool.values[:again])]
        if start.shape[0]:  # and those of short formulas and quotients, the best first
            fit_next.append((waiting[0][carry.step], waiting[1][carry.step]))
        to_fit = concat(*fit_next)
        fit = levenberg_marquardt(
            *to_fit, points.x, points.y, points.mask, steps=budget.fit_steps, terms=TERMS
        )
        fitted = Candidate(to_fit[0], fit.values, fit.fitted, fit.fvu)
        cost = price(fitted.tokens, fitted.fvu)
        pool = merge(pool, Pool(*fitted, cost, fit.rows))
        each = cost[: thoughts * budget.fits].reshape(thoughts, budget.fits)
        best = jnp.argmin(each, axis=1) + jnp.arange(thoughts) * budget.fits
        now, old = jax.tree.map(lambda a: a[best], fitted), carry.candidate
        candidate = tree_where(price(now.tokens, now.fvu) < price(old.tokens, old.fvu), now, old)
        # a thought whose candidate lags behind takes one of the remembered ones
        pick = mostly_first(u_which, thoughts / 4)
        lags = (price(candidate.tokens, candidate.fvu) > pool.cost[budget.keep // 2]) & (
            u_lag < 0.3
        )
        shared = jax.tree.map(lambda a: a[pick], pool.candidate())
        candidate = tree_where(lags & jnp.isfinite(shared.fvu), shared, candidate)
        found_at = jnp.where(
            pool.cost[0] < carry.pool.cost[0] - 0.5, carry.step + 1, carry.found_at
        )
        offers = offer(pool, tokens, values, nodes, carry.step)
        return carry._replace(
            candidate=candidate,
            pool=pool,
            offers=offers,
            hits=jnp.zeros_like(carry.hits),
            rested=zero,
            found_at=found_at,
            key=key,
        )

    def settle(carry: SearchState) -> SearchState:
        """Every thought gets the best formula; from here on nothing but the latents moves."""
        best = jax.tree.map(
            lambda a: jnp.broadcast_to(a[:1], (thoughts, *a.shape[1:])), carry.pool.candidate()
        )
        return carry._replace(candidate=best, rested=carry.rested + 1)

    def step(carry: SearchState) -> SearchState:
        z, velocity, hits, refined = move(carry)
        trace = Trace(
            carry.trace.velocity.at[carry.step].set(velocity),
            carry.trace.fvu.at[carry.step].set(carry.pool.fvu[0]),
            carry.trace.gram.at[carry.step].set(z[0] @ z[0].T),
            carry.trace.latent.at[carry.step].set(z.reshape(thoughts, -1) @ sketch),
        )
        carry = jax.lax.cond(
            searching(carry),
            propose,
            settle,
            carry._replace(z=z, hits=hits, before=(carry.z, refined), trace=trace),
        )
        return carry._replace(step=carry.step + 1)

    def going_on(carry: SearchState) -> Array:
        return (carry.step < budget.steps) & (
            searching(carry) | (jnp.any(carry.hits < 2) if budget.network else False)
        )

    blank = Trace(
        jnp.full((budget.steps, thoughts), jnp.nan),
        jnp.full(budget.steps, jnp.nan),
        jnp.full((budget.steps, slots, slots), jnp.nan),
        jnp.full((budget.steps, thoughts, 8), jnp.nan),
    )
    pool = Pool(
        jnp.zeros((budget.keep, slots), jnp.int32).at[:, 0].set(1),
        jnp.zeros((budget.keep, slots), jnp.float32),
        jnp.zeros((budget.keep, points.y.shape[1]), jnp.float32),
        jnp.full(budget.keep, jnp.inf),
        jnp.full(budget.keep, jnp.inf),
        jnp.zeros((budget.keep, TERMS, points.y.shape[1]), jnp.float32),
    )
    offers = nothing
    if start.shape[0]:
        library = make_library(k_start, start, points)
        shortest = jax.tree.map(
            lambda a: a[: min(SHORTEST, a.shape[0] // BLOCK * BLOCK) if budget.couples else 0],
            library,
        )
        rows = queue_order(library, points, budget.search_steps * budget.fits_short)
        queues = [(library.tokens[rows], library.values[rows])]
        if budget.fits_ratio:
            queues.append(quotients(library, points, budget.search_steps * budget.fits_ratio))
        turns = [[a.reshape(budget.search_steps, -1, slots) for a in queue] for queue in queues]
        waiting = [jnp.concatenate(arrays, axis=1) for arrays in zip(*turns, strict=True)]
        best = initial_pool(library, points, min(budget.keep, start.shape[0]))
        pool = jax.tree.map(lambda a, b: a.at[: len(b)].set(b), pool, best)
        # at the first step the parts are short formulas themselves
        whole = Subtrees(
            *(
                a[: min(budget.parts, half * slots)]
                for a in (library.tokens, library.values, library.y)
            )
        )
        if budget.edits:
            blank_draws = (
                jnp.zeros((half, slots), jnp.int32),
                jnp.zeros((half, slots), jnp.float32),
                jnp.zeros((slots, half, points.y.shape[1]), jnp.float32),
            )
            shapes = jax.eval_shape(offer, pool, *blank_draws, zero)
            offers = (
                jnp.zeros(shapes[0].shape, jnp.int32).at[:, 0].set(1),
                jnp.zeros(shapes[1].shape, jnp.float32),
            )  # x, many times
    carry = SearchState(
        z,
        no_candidate(spread, slots),
        pool,
        offers,
        jnp.zeros(thoughts, jnp.int32),
        (z, z),
        zero,
        zero,
        zero,
        key,
        blank,
    )
    carry = jax.lax.while_loop(going_on, step, carry)
    return SearchOutput(
        carry.pool,
        carry.z,
        carry.trace,
        carry.step,
        carry.found_at,
        jnp.all(carry.hits >= 2),
        carry.step - carry.rested,
    )
