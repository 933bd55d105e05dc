"""The search as one compiled loop: refine the latents, propose, execute, fit, feed back.
(Chapters 4, 7, 9)

A search holds some latents about one set of points.  At every step the refiner moves each latent
once, every proposer proposes formulas, all of them are executed, the constants of the few best are
fitted, and each latent gets the best of its own samples back.  Who proposes is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from refinemath.execution import Programs, Subtrees, concat, distinct_subtrees, evaluate_nodes
from refinemath.fitting import (
    Candidate,
    Points,
    execute,
    levenberg_marquardt,
    no_candidate,
    tree_where,
)
from refinemath.pool import Pool, empty_pool, merge, score, top_per_group

SKETCH = 8  # numbers of the random projection of a latent in the trace


@dataclass(frozen=True)
class SearchConfig:
    """The sizes of a search; part of the compiled program.  Those of a proposer are its own."""

    latents: int = 32
    pool: int = 128  # formulas remembered
    refit: int = 64  # of them whose constants go on being fitted, at each step
    fit_steps: int = 4
    subtrees: int = 4096  # different subtrees of the samples that are remembered for one step
    search_steps: int = 8
    solved: float = 1e-11  # FVU in float32 at which a formula counts as found
    shorten: int = 2  # further steps in which a formula that was found may get a shorter form
    noise: float = 0.3  # size of the noise in the seed latents
    steps: int = 32  # refiner steps in all, those of `settle` included
    leap: float = 4.0  # how far `settle` extrapolates, in moves of the latent; 0: not at all

    def __post_init__(self) -> None:
        for name in ("latents", "pool", "refit", "fit_steps", "subtrees", "search_steps", "steps"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be a positive whole number"
                )
        if type(self.shorten) is not int or self.shorten < 0:
            raise ValueError(f"shorten is {self.shorten!r}; it must be a whole number, 0 or more")
        for name in ("noise", "solved", "leap"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be 0 or more")


class Library(NamedTuple):
    """Short formulas with numbers and their outputs on the points (0 where undefined), as they are
    and centred and of length 1.  Shortest first.
    """

    tokens: Int[Array, "entries slots"]
    values: Float[Array, "entries slots"]
    outputs: Float[Array, "entries points"]
    unit: Float[Array, "entries points"]


class Context(NamedTuple):
    """What a search only reads."""

    points: Points  # batch size 1
    library: Library  # no entries where no proposer uses it
    table: Int[Array, "skeletons slots"]  # for blind draws; no rows where nobody draws
    forbidden: Bool[Array, " vocabulary"] | None = None  # tokens that no formula may hold
    seen: Any = None  # what latents can read of the points; None where no proposer reads latents

    def permitted(self, programs: Programs) -> Programs:
        """The same formulas with x1 in place of each that holds a forbidden token."""
        if self.forbidden is None:
            return programs
        wrong = jnp.any(self.forbidden[programs.tokens], axis=1, keepdims=True)
        plain = jnp.zeros_like(programs.tokens).at[:, 0].set(1)
        return programs._replace(tokens=jnp.where(wrong, plain, programs.tokens))


class Trace(NamedTuple):
    """What happened at each step; rows after the last step are NaN."""

    velocity: Float[Array, "steps latents"]
    fvu: Float[Array, " steps"]
    gram: Float[Array, "steps slots slots"]  # Z Z^T of the first latent
    latent: Float[Array, "steps latents sketch"]  # a fixed random projection of every latent


class SearchState(NamedTuple):
    """What a step of a search changes."""

    latents: Float[Array, "latents slots dim"]  # Z_t
    candidates: Candidate  # what each latent sees
    pool: Pool
    samples: Programs  # the last step's proposals of the first proposer that samples
    subtrees: Subtrees  # of these, for the next step; short formulas before the first
    memories: tuple[Any, ...]  # of the proposers
    step: Array
    found_at: Array  # the step at which the best formula appeared
    key: Array
    trace: Trace


class LatentModel(Protocol):
    """What the loop asks of a network."""

    def look(self, points: Points, count: int) -> Any:
        """What `count` latents can read of the points (batch size 1)."""

    def begin(self, key: Array, count: int, noise: float) -> Float[Array, "latents slots dim"]:
        """Z_0, with some noise."""

    def refine(self, z: Array, seen: Any, candidates: Candidate) -> Array:
        """Z_t -> Z_{t+1}."""

    def stabilise(self, z: Array) -> Array:
        """The nearest latents that the refiner could have written."""

    def sample(self, key: Array, z: Array, seen: Any, count: int) -> Programs:
        """`count` formulas from each latent, one block a latent."""


class Proposer(Protocol):
    """A way of proposing formulas: a frozen dataclass, a static argument of the compiled search.

    It may declare `samples` (its proposals are material for the others), `reads_latents` (it
    proposes one block of equal size for every latent), `uses_library`, `uses_table`.
    """

    @property
    def refine(self) -> int:
        """How many of its best proposals (of each latent) get their constants fitted at a step."""

    def init(self, context: Context, key: Array) -> Any:
        """What it remembers from step to step."""

    def propose(
        self, model: Any, context: Context, memory: Any, state: SearchState, key: Array
    ) -> tuple[Programs, Any]:
        """A fixed number of formulas, and what it remembers from now on."""


class HostProposer(Protocol):
    """A way of proposing fitted formulas outside of the compiled search: a frozen dataclass that
    declares `on_host`.
    """

    @property
    def on_host(self) -> bool:
        """True."""

    def solutions(self, x: Any, y: Any) -> Any:
        """A list of `answer.solution.Solution` for y (points,) at x (variables, points), in
        float64.
        """


class SearchOutput(NamedTuple):
    """The end of a search."""

    pool: Pool
    latents: Float[Array, "latents slots dim"]
    trace: Trace
    steps: Array
    found_at: Array


def declares(proposer: Any, trait: str) -> bool:
    """Whether a proposer declares `samples`, `reads_latents`, `uses_library`, `uses_table` or
    `on_host`.
    """
    return bool(getattr(proposer, trait, False))


@dataclass(frozen=True)
class Loop:
    """One search: what stays the same in all of its steps."""

    model: Any  # a `LatentModel`; None where no proposer reads latents
    context: Context
    proposers: tuple[Proposer, ...]
    config: SearchConfig
    limit: Array  # steps, if that is fewer than `config.search_steps`

    def step(self, state: SearchState) -> SearchState:
        """Refine, propose, execute, fit, merge, feed back."""
        key, *keys = jax.random.split(state.key, 1 + len(self.proposers))
        state = record(self.refine(state))
        proposed = [
            p.propose(self.model, self.context, memory, state, k)
            for p, memory, k in zip(self.proposers, state.memories, keys, strict=True)
        ]
        batches = [programs for programs, _ in proposed]
        state = state._replace(memories=tuple(memory for _, memory in proposed))
        programs = self.context.permitted(concat(*batches))
        nodes = evaluate_nodes(programs.tokens, programs.values, self.context.points.x)
        executed = execute(*programs, self.context.points, nodes)
        sizes = [len(batch.tokens) for batch in batches]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        rows = self.best_rows(sizes, executed)
        fitted = self.fit(programs, jnp.concatenate(rows), state.pool)
        pool = merge(state.pool, fitted)
        better = pool.score[0] < state.pool.score[0] - 0.5
        state = self.feed_back(state, fitted, [len(r) for r in rows])
        state = self.remember(state, programs, nodes, starts, sizes)
        found_at = jnp.where(better, state.step + 1, state.found_at)
        return state._replace(pool=pool, found_at=found_at, key=key, step=state.step + 1)

    def refine(self, state: SearchState) -> SearchState:
        """Z_t -> Z_{t+1} for every latent, and its velocity in the trace."""
        if self.context.seen is None:
            return state
        new = self.model.refine(state.latents, self.context.seen, state.candidates)
        speed = velocity(state.latents, new)
        trace = state.trace._replace(velocity=state.trace.velocity.at[state.step].set(speed))
        return state._replace(latents=new, trace=trace)

    def best_rows(self, sizes: list[int], executed: Candidate) -> list[Int[Array, " rows"]]:
        """The rows of every proposer's best formulas of different skeletons (of every latent)."""
        blocks = []
        for proposer, size in zip(self.proposers, sizes, strict=True):
            groups = self.config.latents if declares(proposer, "reads_latents") else 1
            blocks.append((groups, size // groups, proposer.refine))
        count = jnp.sum(self.context.points.mask).astype(jnp.float32)
        return top_per_group(executed, blocks, count)

    def fit(self, programs: Programs, rows: Array, pool: Pool) -> Pool:
        """These rows and the pool's best with their constants fitted."""
        chosen = jax.tree.map(lambda a: a[rows], programs)
        to_fit = concat(chosen, jax.tree.map(lambda a: a[: self.config.refit], pool.programs()))
        points, steps = self.context.points, self.config.fit_steps
        fit = levenberg_marquardt(*to_fit, points.x, points.y, points.mask, steps=steps)
        count = jnp.sum(points.mask).astype(jnp.float32)
        price = score(to_fit.tokens, fit.fvu, count)
        return Pool(to_fit.tokens, fit.values, fit.fitted, fit.fvu, price, fit.rows)

    def feed_back(self, state: SearchState, fitted: Pool, sizes: list[int]) -> SearchState:
        """Every latent sees the best of its own samples from now on, if that is an improvement."""
        for i, proposer in enumerate(self.proposers):
            if declares(proposer, "reads_latents"):
                own = jax.tree.map(lambda a, i=i: a[sum(sizes[:i]) :][: sizes[i]], fitted)
                best = jnp.argmin(own.score.reshape(self.config.latents, -1), axis=1)
                best = best + jnp.arange(len(best)) * (sizes[i] // self.config.latents)
                now = jax.tree.map(lambda a, b=best: a[b], own)
                count = jnp.sum(self.context.points.mask).astype(jnp.float32)
                old = score(state.candidates.tokens, state.candidates.fvu, count)
                candidates = tree_where(now.score < old, now.candidates(), state.candidates)
                return state._replace(candidates=candidates)
        return state

    def remember(
        self,
        state: SearchState,
        programs: Programs,
        nodes: Array,
        starts: list[int],
        sizes: list[int],
    ) -> SearchState:
        """The samples of this step and half of their subtrees, as material for the next."""
        for proposer, start, size in zip(self.proposers, starts, sizes, strict=True):
            if declares(proposer, "samples"):
                kept, most = len(state.samples.tokens), len(state.subtrees.tokens)
                # again from the first where there are fewer than there is room for
                rows = start + jnp.arange(kept) % size
                samples = jax.tree.map(lambda a, r=rows: a[r], programs)
                least = -(-most // programs.tokens.shape[1])
                half = start + jnp.arange(max(size // 2, least)) % size
                material = Programs(programs.tokens[half], programs.values[half])
                mask = self.context.points.mask
                subtrees = distinct_subtrees(material, nodes[:, half], mask, most)
                return state._replace(samples=samples, subtrees=subtrees)
        return state

    def unfinished(self, state: SearchState) -> Array:
        """Until a formula is found, and some steps more; what was found may have a shorter form."""
        wrong = state.pool.fvu[0] > self.config.solved
        recent = state.step < state.found_at + self.config.shorten
        steps = jnp.minimum(self.limit, self.config.search_steps)
        return (state.step < steps) & (wrong | recent)


def velocity(old: Array, new: Array) -> Float[Array, " latents"]:
    """|Z_{t+1} - Z_t| / |Z_t| of every latent."""
    moved = jnp.sum((new - old) ** 2, axis=(1, 2))
    return jnp.sqrt(moved / jnp.maximum(jnp.sum(old**2, axis=(1, 2)), 1e-12))


def record(state: SearchState) -> SearchState:
    """The state with this step's row of the trace filled in."""
    z, trace, t = state.latents, state.trace, state.step
    trace = trace._replace(fvu=trace.fvu.at[t].set(state.pool.fvu[0]))
    if not len(z):
        return state._replace(trace=trace)
    gram, latent = trace.gram.at[t].set(z[0] @ z[0].T), trace.latent.at[t].set(sketch(z))
    return state._replace(trace=trace._replace(gram=gram, latent=latent))


def sketch(z: Float[Array, "latents slots dim"]) -> Float[Array, "latents sketch"]:
    """A fixed random projection of every latent, to draw its path."""
    size = z.shape[1] * z.shape[2]
    signs = jax.random.rademacher(jax.random.key(7), (size, SKETCH), jnp.float32)
    return z.reshape(len(z), size) @ signs / jnp.sqrt(jnp.float32(size))


def empty_trace(steps: int, latents: int, slots: int) -> Trace:
    """NaN everywhere."""
    shapes = (steps, latents), (steps,), (steps, slots, slots), (steps, latents, SKETCH)
    return Trace(*(jnp.full(shape, jnp.nan, jnp.float32) for shape in shapes))


def search(
    model: Any,
    context: Context,
    pool: Pool | None,
    key: Array,
    limit: Array,
    *,
    proposers: tuple[Proposer, ...],
    config: SearchConfig,
) -> SearchOutput:
    """Run a search of at most `limit` steps; `pool` is what is known before (None: nothing).

    To be traced inside `jax.jit`, with `proposers` and `config` static.  Memory does not grow with
    the number of steps taken.
    """
    points, slots = context.points, context.library.tokens.shape[1]
    key, k_latents, k_init = jax.random.split(key, 3)
    memories = tuple(
        p.init(context, jax.random.fold_in(k_init, i)) for i, p in enumerate(proposers)
    )
    reads = any(declares(p, "reads_latents") for p in proposers)
    count = config.latents if reads else 0
    latents = jnp.zeros((0, slots, 1), jnp.float32)
    if reads:
        latents = model.begin(k_latents, count, config.noise)
        context = context._replace(seen=model.look(points, count))
    many = Points(*(jnp.broadcast_to(a, (count, *a.shape[1:])) for a in points))
    first = min(config.subtrees, len(context.library.tokens)) or 1
    library = Subtrees(*(a[:first] for a in context.library[:3]))
    if not len(library.tokens):
        nothing = jnp.zeros((1, slots), jnp.int32)
        library = Subtrees(nothing, nothing.astype(jnp.float32), jnp.zeros_like(points.y))
    start = empty_pool(config.pool, slots, points.y.shape[1])
    if pool is not None:
        start = jax.tree.map(lambda a, b: a.at[: len(b)].set(b), start, pool)
    zero = jnp.zeros((), jnp.int32)
    state = SearchState(
        latents,
        no_candidate(many, slots),
        start,
        start.programs(),
        library,
        memories,
        zero,
        zero,
        key,
        empty_trace(config.search_steps, len(latents), latents.shape[1]),
    )
    loop = Loop(model, context, proposers, config, limit)
    end = jax.lax.while_loop(loop.unfinished, loop.step, state)
    return SearchOutput(end.pool, end.latents, end.trace, end.step, end.found_at)


class SettleState(NamedTuple):
    """The state of `settle`: nothing but the latents moves."""

    latents: Float[Array, "latents slots dim"]
    before: tuple[Array, Array]  # the latents of the step before, and what the refiner made of them
    hits: Int[Array, " latents"]  # steps in a row with a velocity under the threshold
    step: Array
    trace: Trace


@dataclass(frozen=True)
class Settling:
    """What stays the same while the latents come to rest with one formula as their candidate."""

    model: Any  # a `LatentModel`
    seen: Any
    candidate: Candidate
    threshold: Array
    limit: Array  # steps
    leap: float

    def step(self, state: SettleState) -> SettleState:
        """Move every latent that has not halted."""
        refined = new = self.model.refine(state.latents, self.seen, self.candidate)
        if self.leap:
            ahead = anderson_step(state.latents, refined, state.before, self.leap)
            ahead = self.model.stabilise(ahead)
            new = jnp.where(state.step >= 2, ahead, refined)
        halted = state.hits >= 2
        speed = jnp.where(halted, 0.0, velocity(state.latents, new))
        hits = jnp.where(speed < self.threshold, state.hits + 1, 0)
        latents = jnp.where(halted[:, None, None], state.latents, new)
        t, trace = state.step, state.trace
        trace = Trace(
            trace.velocity.at[t].set(speed),
            trace.fvu.at[t].set(self.candidate.fvu[0]),
            trace.gram.at[t].set(latents[0] @ latents[0].T),
            trace.latent.at[t].set(sketch(latents)),
        )
        hits = jnp.where(halted, state.hits, hits)
        return SettleState(latents, (state.latents, refined), hits, t + 1, trace)

    def unfinished(self, state: SettleState) -> Array:
        """Until every latent has halted, or the steps are used up."""
        return (state.step < self.limit) & jnp.any(state.hits < 2)


class SettleOutput(NamedTuple):
    """The end of `settle`."""

    latents: Float[Array, "latents slots dim"]
    trace: Trace
    steps: Array
    converged: Array  # whether every latent stands still


def settle(
    model: Any,
    points: Points,
    latents: Float[Array, "latents slots dim"],
    best: Candidate,
    threshold: Array,
    limit: Array,
    config: SearchConfig,
) -> SettleOutput:
    """Refine the latents with one formula as their candidate until each stands still, its velocity
    under the threshold twice in a row, in `limit` steps at most (`config.steps` in the trace).

    This changes no formula: it is the record of halting.  Chapter 7.
    """
    count = len(latents)
    candidate = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], (count, *a.shape[1:])), best)
    trace = empty_trace(config.steps, count, latents.shape[1])
    still = jnp.zeros(count, jnp.int32)
    start = SettleState(latents, (latents, latents), still, jnp.zeros((), jnp.int32), trace)
    settling = Settling(model, model.look(points, count), candidate, threshold, limit, config.leap)
    end = jax.lax.while_loop(settling.unfinished, settling.step, start)
    return SettleOutput(end.latents, end.trace, end.step, jnp.all(end.hits >= 2))


def anderson_step(
    z: Float[Array, "latents slots dim"],
    new: Float[Array, "latents slots dim"],
    before: tuple[Array, Array],
    most: float,
) -> Float[Array, "latents slots dim"]:
    """Where latents are heading that went from z to new, after a step from before[0] to before[1].

    Anderson's acceleration (1965) of depth one: a latent whose every move is the share q of the
    last one has q / (1 - q) of its last move before it.  So far it is moved ahead, at most `most`
    times the move, and not at all where it turns back.  A latent whose moves grow while they keep
    their direction is leaving an unstable fixed point: it is moved ahead as far as it may.
    Chapter 7.
    """
    move, last = new - z, before[1] - before[0]
    change = last - move

    def dot(a: Array, b: Array) -> Array:
        return jnp.sum(a * b, axis=(1, 2))

    left = jnp.clip(dot(move, change) / jnp.maximum(dot(change, change), 1e-30), 0.0, most)
    straight = dot(move, last) > 0.8 * jnp.sqrt(dot(move, move) * dot(last, last))
    leaves = (dot(move, change) < 0) & straight
    return new + jnp.where(leaves, most, left)[:, None, None] * (new - before[1])
