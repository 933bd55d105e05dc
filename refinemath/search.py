"""Thinking as one compiled loop: refine, read off, execute, fit, feed back; stop when the thought
stands still.  (Chapters 4, 7, 9)

A call holds K thoughts about one scatter plot.  Every step moves each latent once, draws formulas
from its slots, executes them all, fits the constants of the few best and gives each thought its
best formula back.  One `lax.while_loop` has two phases: first candidates change; then, once a
formula passes the reality check or the search steps are used up, the best one stands and the
latents settle, those that creep by leaps, until their relative velocity stays under the threshold.
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

from refinemath.fit import centre, levenberg_marquardt, without
from refinemath.language import (
    CONSTANT_BINS,
    END,
    FIRST_CONSTANT,
    FIRST_OPERATOR,
    IS_FUNCTION,
    NESTING_PRICE,
    OPERATOR_TOKEN,
    TOKEN_PRICE,
    TOKEN_VALUE,
    VOCABULARY_SIZE,
    evaluate,
    evaluate_nodes,
    is_constant,
    nearest_constant,
    structure,
)
from refinemath.model import (
    TERMS,
    Candidate,
    Encoded,
    Points,
    choose,
    execute,
    no_candidate,
    stabilise,
)

POINTS = 64  # the network and the search look at no more points than this


ANY_CONSTANT = 255  # in a skeleton: a constant to be drawn
# entries of the library that parts are paired with: up to four tokens, with common constants
SHORTEST = 544
BLOCK = 16  # of them at a time
PAIR_POINTS = 32  # points at which pairs are compared
# entries of the library that stand above a denominator with a free number: x, and one function of
# it
NUMERATORS = 12


@dataclass(frozen=True)
class Budget:
    """How much a search may do; part of the compiled program."""

    thoughts: int = 32
    samples: int = 128  # formulas drawn from each thought at each step
    edits: int = 1024  # random edits of the best formulas at each step
    extend: int = 64  # remembered formulas that are offered the terms they lack, at each step
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
        for name in ("edits", "extend", "parts", "couples", "fits_ratio", "shorten", "patience"):
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
                f"fits is {self.fits} and samples {self.samples}; no more can be fitted than are drawn"
            )
        if 0 < self.edits < 8:
            raise ValueError(f"edits is {self.edits}; it must be 0 or at least 8")


class Pool(NamedTuple):
    """The best formulas so far, one of each skeleton, by description length."""

    tokens: Int[Array, "keep slots"]
    values: Float[Array, "keep slots"]
    fitted: Float[Array, "keep points"]
    fvu: Float[Array, " keep"]
    cost: Float[Array, " keep"]
    rows: Float[
        Array, "keep terms points"
    ]  # orthonormal, spanning the centred terms: what else a formula can explain with other coefficients

    def candidate(self) -> Candidate:
        """The same formulas as the refiner wants them."""
        return Candidate(self.tokens, self.values, self.fitted, self.fvu)


class Trace(NamedTuple):
    """What happened at each step; rows after the last step are NaN."""

    velocity: Float[Array, "steps thoughts"]
    fvu: Float[Array, " steps"]
    gram: Float[
        Array, "steps slots slots"
    ]  # Z Z^T of the first thought: its eigenvalues are the squared singular values
    latent: Float[Array, "steps thoughts sketch"]  # a fixed random projection of every thought


class Outcome(NamedTuple):
    """The end of a search."""

    pool: Pool
    z: Float[Array, "thoughts slots dim"]
    trace: Trace
    steps: Array  # taken in all
    found_at: Array  # the step at which the best formula appeared
    converged: Array  # did every thought settle: its velocity under the threshold twice in a row
    searched: Array  # steps in which candidates could change; in the others the thoughts settled


def skeleton_hash(tokens: Int[Array, "batch slots"]) -> Int[Array, " batch"]:
    """One number for formulas that differ in their constants alone."""
    plain = jnp.where(is_constant(tokens), FIRST_CONSTANT, tokens).astype(jnp.uint32)
    h = jnp.zeros(tokens.shape[0], jnp.uint32)
    for i in range(tokens.shape[1]):
        h = (h ^ plain[:, i]) * jnp.uint32(16777619) + jnp.uint32(i)
    return (h >> 1).astype(jnp.int32)


def cost_of(
    tokens: Int[Array, "batch slots"], fvu: Float[Array, " batch"], points: Array
) -> Float[Array, " batch"]:
    """Description length in nats, much as `fit.description_length`; infinite where the formula is
    undefined.

    Leverages are not known here; the numbers pay as in the corrected criterion of Akaike (Hurvich &
    Tsai 1989) instead.
    """
    function = jnp.asarray(IS_FUNCTION)[tokens]
    nested = jnp.sum(function[:, :-1] & function[:, 1:], axis=1, dtype=jnp.int32).astype(
        jnp.float32
    )
    splits = (tokens == OPERATOR_TOKEN["add"]) | (tokens == OPERATOR_TOKEN["sub"])
    numbers = 2.0 + jnp.sum(is_constant(tokens) | splits, axis=1, dtype=jnp.int32).astype(
        jnp.float32
    )  # every sum counted as one more term
    price = numbers * jnp.minimum(points / jnp.maximum(points - numbers - 1.0, 0.5), 8.0)
    price = price + jnp.sum(jnp.asarray(TOKEN_PRICE)[tokens], axis=1) + NESTING_PRICE * nested
    return price + 0.5 * points * jnp.log(jnp.where(jnp.isfinite(fvu), fvu, jnp.inf) + 1e-13)


def cheapest_of_each(
    name: Int[Array, "... formulas"], cost: Float[Array, "... formulas"]
) -> tuple[Array, Array]:
    """The order by name, then cost, and the costs in that order: infinite for all but the cheapest
    of each name.  Along the last axis.
    """
    order = jnp.lexsort((cost, name), axis=-1)
    names = jnp.take_along_axis(name, order, axis=-1)
    repeated = jnp.concatenate(
        [jnp.zeros_like(names[..., :1], bool), names[..., 1:] == names[..., :-1]], axis=-1
    )
    return order, jnp.where(repeated, jnp.inf, jnp.take_along_axis(cost, order, axis=-1))


Piece = tuple[
    Array, Array, Array
]  # tokens and values, each (formulas, anything), and how many of the first of them count: (formulas,)


def sign(token: Int[Array, " formulas"], value: Array | None = None) -> Piece:
    """One token for each formula."""
    return (
        token[:, None],
        jnp.zeros((*token.shape, 1)) if value is None else value[:, None],
        jnp.ones_like(token),
    )


def spelled(
    slots: int, *pieces: Piece
) -> tuple[Int[Array, "formulas slots"], Float[Array, "formulas slots"]]:
    """Formulas that hold the pieces one after the other; what goes beyond the slots is cut off."""
    place = jnp.arange(slots, dtype=jnp.int32)[None]
    end = jnp.zeros_like(pieces[0][2])[:, None]
    tokens, values = (
        jnp.full((len(end), slots), END, jnp.int32),
        jnp.zeros((len(end), slots), jnp.float32),
    )
    for own, numbers, length in pieces:
        start, end = end, end + length[:, None]
        at = jnp.clip(place - start, 0, own.shape[1] - 1)
        inside = (place >= start) & (place < end)
        tokens = jnp.where(inside, jnp.take_along_axis(own, at, axis=1), tokens)
        values = jnp.where(inside, jnp.take_along_axis(numbers, at, axis=1), values)
    return tokens, values


def or_x(
    good: Array, tokens: Int[Array, "formulas slots"], values: Float[Array, "formulas slots"]
) -> tuple[Array, Array]:
    """The formulas that are good (formulas,), and x in place of the others."""
    x = jnp.zeros_like(tokens).at[:, 0].set(1)
    return jnp.where(good[:, None], tokens, x), jnp.where(good[:, None], values, 0.0)


def merge(pool: Pool, new: Pool) -> Pool:
    """The pool with new formulas put in, in any order.

    What stays is the best of each skeleton and of each residual, and of these the `keep` best and
    the two best of every length.
    """
    keep = pool.fvu.shape[0]
    everything = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), pool, new)
    order, cost = cheapest_of_each(skeleton_hash(everything.tokens), everything.cost)
    # the same function in other words leaves the same residual; of such formulas the cheapest stays
    level = jnp.round(jnp.log(jnp.maximum(everything.fvu[order], 1e-14)) * 1e4)
    by_level = jnp.lexsort((cost, level))
    cost = cost.at[by_level[1:]].set(
        jnp.where(level[by_level[1:]] == level[by_level[:-1]], jnp.inf, cost[by_level[1:]])
    )
    length = jnp.sum(everything.tokens[order] != END, axis=1, dtype=jnp.int32)
    by_length = jnp.lexsort((cost, length))
    leads = (
        jnp.zeros(len(cost), bool)
        .at[by_length]
        .set(length[by_length] != jnp.roll(length[by_length], 2))
    )
    best = jax.lax.top_k(-jnp.where(leads & jnp.isfinite(cost), cost - 1e6, cost), keep)[1]
    best = best[jnp.argsort(cost[best])]
    return jax.tree.map(lambda a: a[order[best]], everything)._replace(cost=cost[best])


def most_promising(
    candidates: Candidate, groups: int, most: int, points: Array
) -> Int[Array, " chosen"]:
    """Indices of the `most` best formulas with different skeletons in each of `groups` groups of
    one size.
    """
    count = len(candidates.fvu)
    rest = -count % groups  # the last group may be smaller
    cost = jnp.pad(
        cost_of(candidates.tokens, candidates.fvu, points), (0, rest), constant_values=jnp.inf
    ).reshape(groups, -1)
    name = jnp.pad(skeleton_hash(candidates.tokens), (0, rest)).reshape(groups, -1)
    order, ranked = cheapest_of_each(name, cost)
    top = jnp.take_along_axis(order, jax.lax.top_k(-ranked, most)[1], axis=1)
    return jnp.minimum((top + jnp.arange(groups)[:, None] * cost.shape[1]).reshape(-1), count - 1)


def edit(
    key: Array,
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    donors: Int[Array, "donors slots"],
    variables: int = 1,
) -> tuple[Array, Array]:
    """Random edits that keep a formula legal: a subtree is replaced by a subtree of a donor,
    wrapped by an operator, or a token by another of its arity.  What would not fit into the slots
    stays as it was.  Chapter 8.
    """
    batch, slots = tokens.shape
    u = jax.random.uniform(key, (8, batch))

    def below(u: Array, high: Array | int) -> Array:
        """Whole numbers from 0 to high - 1."""
        return (u * jnp.asarray(high, jnp.float32)).astype(jnp.int32)

    row = jnp.arange(batch, dtype=jnp.int32)
    size, _ = structure(tokens)
    length = jnp.sum(tokens != END, axis=1, dtype=jnp.int32)
    at = below(u[0], length)
    donor = donors[below(u[1], donors.shape[0])]
    donor_size, _ = structure(donor)
    start = below(u[2], jnp.sum(donor != END, axis=1, dtype=jnp.int32))
    insert_size = donor_size[row, start]
    removed = size[row, at]
    place = jnp.arange(slots, dtype=jnp.int32)[None]

    # 0: subtree of the donor in place of the subtree at `at`; 1: `at` wrapped as op(at) or op(at,
    # leaf); 2: same arity
    kind = (u[3] > 0.5).astype(jnp.int32) + (u[3] > 0.8).astype(jnp.int32)
    unary = OPERATOR_TOKEN["neg"] + below(u[4], VOCABULARY_SIZE - OPERATOR_TOKEN["neg"])
    binary = OPERATOR_TOKEN["add"] + below(u[4], 4)
    leaf = jnp.where(
        u[5] < 0.5, 1 + below(2 * u[5], variables), FIRST_CONSTANT + below(u[6], len(CONSTANT_BINS))
    )
    wrap_binary = u[7] < 0.6

    def splice(
        head: Array, inserted: Array, inserted_size: Array, skip: Array
    ) -> tuple[Array, Array]:
        """tokens[:head] + inserted[:inserted_size] + tokens[head + skip:], with values; True where
        it fits.
        """
        h, m, s = head[:, None], inserted_size[:, None], skip[:, None]
        source = jnp.clip(jnp.where(place < h, place, place - m + s), 0, slots - 1)
        inside = (place >= h) & (place < h + m)
        new = jnp.where(
            inside,
            jnp.take_along_axis(inserted, jnp.clip(place - h, 0, slots - 1), axis=1),
            jnp.take_along_axis(tokens, source, axis=1),
        )
        numbers = jnp.where(
            inside, jnp.asarray(TOKEN_VALUE)[new], jnp.take_along_axis(values, source, axis=1)
        )
        total = length - skip + inserted_size
        beyond = place >= total[:, None]
        return jnp.where(beyond, END, new), jnp.where(beyond, 0.0, numbers)

    cut, cut_values = splice(
        at,
        jnp.take_along_axis(donor, jnp.clip(start[:, None] + place, 0, slots - 1), axis=1),
        insert_size,
        removed,
    )
    cut_length = length - removed + insert_size
    front = jnp.stack([jnp.where(wrap_binary, binary, unary), leaf], axis=1)
    front = jnp.pad(front, ((0, 0), (0, slots - 2)))
    wrapped, wrapped_values = splice(at, front, jnp.where(wrap_binary, 2, 1), jnp.zeros_like(at))
    wrapped_length = length + jnp.where(wrap_binary, 2, 1)
    token = tokens[row, at]
    swapped = jnp.where(
        token < FIRST_OPERATOR, leaf, jnp.where(token < OPERATOR_TOKEN["neg"], binary, unary)
    )
    swap = tokens.at[row, at].set(swapped)
    swap_values = values.at[row, at].set(jnp.asarray(TOKEN_VALUE)[swapped])

    chosen = jnp.where((kind == 0)[:, None], cut, jnp.where((kind == 1)[:, None], wrapped, swap))
    numbers = jnp.where(
        (kind == 0)[:, None],
        cut_values,
        jnp.where((kind == 1)[:, None], wrapped_values, swap_values),
    )
    fits = jnp.where(kind == 0, cut_length, jnp.where(kind == 1, wrapped_length, length)) <= slots
    return jnp.where(fits[:, None], chosen, tokens), jnp.where(fits[:, None], numbers, values)


class Library(NamedTuple):
    """Short formulas with numbers, and their values on the points (0 where undefined), as they are
    and centred and of length 1.
    """

    tokens: Int[Array, "entries slots"]
    values: Float[Array, "entries slots"]
    y: Float[Array, "entries points"]
    unit: Float[Array, "entries points"]


def make_library(key: Array, skeletons: Int[Array, "start slots"], points: Points) -> Library:
    """Each skeleton with constants from the bins where it asks for them (a token `ANY_CONSTANT`), a
    quarter of them ten times as large.

    The constants walk through all bins from row to row, so that a skeleton that is given many times
    meets them evenly.
    """
    row, slot = (jnp.arange(n, dtype=jnp.int32) for n in skeletons.shape)
    levels = 4 * len(CONSTANT_BINS)
    place = (
        37 * row[:, None] + 53 * slot[None] + jax.random.randint(key, (1, 1), 0, levels)
    ) % levels
    tokens = skeletons.astype(jnp.int32)
    drawn = tokens == ANY_CONSTANT
    tokens = jnp.where(drawn, FIRST_CONSTANT + place // 4, tokens)
    values = jnp.asarray(TOKEN_VALUE)[tokens] * jnp.where(drawn & (place % 4 == 0), 10.0, 1.0)
    y = jnp.where(points.mask, evaluate(tokens, values, points.x), 0.0)
    y = jnp.where(jnp.all(jnp.abs(y) < 1e12, axis=1, keepdims=True), y, 0.0)
    centred = centre(y, jnp.broadcast_to(points.mask, y.shape))[0]
    size = jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True))
    return Library(tokens, values, y, jnp.where(size > 0, centred / jnp.maximum(size, 1e-30), 0.0))


def sweep(library: Library, points: Points, most: int) -> Pool:
    """The library's `most` best formulas of different skeletons, each fitted up to scale and
    offset.
    """
    mask = points.mask
    target, mean = centre(points.y, mask)
    gain = library.unit @ target[0]
    total = jnp.maximum(jnp.sum(target**2), 1e-30)
    fvu = jnp.maximum(
        1.0 - gain**2 / total, 1e-7
    )  # which is the rounding of this difference: what looks exact is executed before it counts
    fvu = jnp.where(gain == 0, jnp.inf, fvu)
    all_of_it = Candidate(library.tokens, library.values, library.unit, fvu)
    count = jnp.sum(mask).astype(jnp.float32)
    best = most_promising(all_of_it, 1, most, count)
    unit = library.unit[best]
    rows = jnp.zeros((most, TERMS, unit.shape[1]), unit.dtype).at[:, 0].set(unit)
    fitted = jnp.where(mask, mean + gain[best, None] * unit, 0.0)
    return Pool(
        library.tokens[best],
        library.values[best],
        fitted,
        fvu[best],
        cost_of(library.tokens[best], fvu[best], count),
        rows,
    )


def together(
    *formulas: tuple[Array, Array],
) -> tuple[Int[Array, "batch slots"], Float[Array, "batch slots"]]:
    """Several groups of formulas, as tokens and values, as one."""
    return jnp.concatenate([tokens for tokens, _ in formulas]), jnp.concatenate(
        [values for _, values in formulas]
    )


def with_constants(library: Library, points: Points, most: int) -> Int[Array, " most"]:
    """The best entry of each skeleton that holds a constant, the best skeletons first; entry 0
    where there are no more.
    """
    target = centre(points.y, points.mask)[0][0]
    gain = jnp.where(
        is_constant(library.tokens).any(axis=1),
        (library.unit @ target) ** 2 / jnp.maximum(jnp.sum(target**2), 1e-30),
        -1.0,
    )
    order, loss = cheapest_of_each(skeleton_hash(library.tokens), -gain)
    best = jax.lax.top_k(-loss, min(most, len(order)))[1]
    rows = jnp.where(loss[best] <= 0, order[best], 0)
    return jnp.pad(rows, (0, most - len(rows)))


def extend(
    pool: Pool, library: Library, points: Points, most: int, choices: int = 4
) -> tuple[Int[Array, "batch slots"], Float[Array, "batch slots"]]:
    """The first `most` formulas of the pool, each plus a short term: from each of `choices` parts
    of the library the one that explains most of what the formula leaves over (orthogonal matching
    pursuit, Pati et al. 1993).  What would not fit into the slots gets no term.  Chapter 8.
    """
    tokens, values, rows = pool.tokens[:most], pool.values[:most], pool.rows[:most]
    slots = tokens.shape[1]
    mask = jnp.broadcast_to(points.mask, (most, points.mask.shape[1]))
    residual = without(centre(jnp.broadcast_to(points.y, mask.shape), mask)[0], rows)
    left_over = 1.0 - jnp.sum(
        (rows @ library.unit.T) ** 2, axis=1
    )  # of each entry, once the formula's own terms are taken out
    gain = jnp.where(
        left_over > 1e-3, (residual @ library.unit.T) ** 2 / jnp.maximum(left_over, 1e-3), 0.0
    )
    length = jnp.sum(tokens != END, axis=1, dtype=jnp.int32)
    entry_length = jnp.sum(library.tokens != END, axis=1, dtype=jnp.int32)
    gain = jnp.where(length[:, None] + entry_length[None] < slots, gain, 0.0)
    part = gain.shape[1] // choices
    best = (
        jnp.argmax(gain[:, : part * choices].reshape(most, choices, part), axis=-1).astype(
            jnp.int32
        )
        + part * jnp.arange(choices, dtype=jnp.int32)[None]
    )
    useful = jnp.take_along_axis(gain, best, axis=1) > 0
    best, useful = best.reshape(-1), useful.reshape(-1).astype(jnp.int32)
    tokens, values, length = (jnp.repeat(a, choices, axis=0) for a in (tokens, values, length))
    plus, plus_value, _ = sign(jnp.full_like(best, OPERATOR_TOKEN["add"]))
    term = library.tokens[best], library.values[best], useful * entry_length[best]
    return spelled(slots, (plus, plus_value, useful), term, (tokens, values, length))


class Parts(NamedTuple):
    """Formulas, or subtrees of formulas, with their values on the points (0 where there is no
    point).
    """

    tokens: Int[Array, "parts slots"]
    values: Float[Array, "parts slots"]
    y: Float[Array, "parts points"]


def distinct_parts(
    tokens: Int[Array, "batch slots"],
    values: Float[Array, "batch slots"],
    nodes: Float[Array, "slots batch points"],
    points: Points,
    most: int,
) -> Parts:
    """The `most` shortest subtrees with different values (`nodes`); one that is undefined or
    constant on the points does not count.

    Equal subtrees are executed by equal instructions, so their values agree bit for bit, and so
    does a hash of the bits.
    """
    batch, slots = tokens.shape
    mask = points.mask
    size = structure(tokens)[0].reshape(-1)
    y = jnp.swapaxes(nodes, 0, 1).reshape(batch * slots, -1)
    y = jnp.where(mask, y, 0.0)
    top = jnp.max(jnp.abs(y), axis=1)
    moves = (
        jnp.max(jnp.where(mask, y, -jnp.inf), axis=1) - jnp.min(jnp.where(mask, y, jnp.inf), axis=1)
        > 1e-3 * top
    )
    counts = (tokens.reshape(-1) != END) & jnp.isfinite(top) & (top < 1e9) & (top > 1e-9) & moves
    bits = (
        jax.lax.bitcast_convert_type(y.astype(jnp.float32), jnp.uint32) >> 4
    )  # all but the last digit
    odd = jax.random.bits(jax.random.key(11), (1, y.shape[1]), jnp.uint32) | jnp.uint32(1)
    name = jnp.where(
        counts, jnp.sum(bits * odd, axis=1, dtype=jnp.uint32) >> 1, jnp.uint32(2**32 - 1)
    )
    order = jnp.argsort(name)
    new = counts[order] & (name[order] != jnp.roll(name[order], 1))
    rank = jax.lax.top_k(jnp.where(new, -size[order], -(slots + 1)), most)[1]
    best, kept = order[rank], new[rank, None]
    place = jnp.arange(slots, dtype=jnp.int32)[None]
    row, at = (best // slots)[:, None], jnp.clip((best % slots)[:, None] + place, 0, slots - 1)
    inside = kept & (place < size[best, None])
    return Parts(
        jnp.where(inside, tokens[row, at], END),
        jnp.where(inside, values[row, at], 0.0),
        jnp.where(kept, y[best], 0.0),
    )


def thinned(points: Points, *values: Float[Array, "... points"]) -> tuple[Any, ...]:
    """`PAIR_POINTS` of the points, evenly spread, and formulas' values there: enough to tell which
    pairs are worth a look.
    """
    step = max(1, points.y.shape[1] // PAIR_POINTS)
    return Points(points.x[..., ::step], points.y[:, ::step], points.mask[:, ::step]), *(
        y[..., ::step] for y in values
    )


def couple(
    parts: Parts, library: Library, points: Points, most: int
) -> tuple[Int[Array, "batch slots"], Float[Array, "batch slots"]]:
    """Every part g beside every library entry f: as a sum, a product, and a quotient; the best
    `most` of each kind are written out as formulas.

    Up to scale and offset the fit of all pairs is a handful of matrix products.  For a product f g,
    for instance, the sums of f g y, of (f g)^2 and of f g over the points are F Y G^T, F^2 G^2^T
    and F G^T.  Rounding blurs an FVU under about 1e-5, so the formulas are executed and ranked anew
    by whoever calls this.  Chapter 8.
    """
    slots = parts.tokens.shape[1]
    points, parts_y, library_y = thinned(points, parts.y, library.y)
    parts, library = parts._replace(y=parts_y), library._replace(y=library_y)
    mask = points.mask
    count = jnp.sum(mask).astype(jnp.float32)

    def scaled(y: Array) -> Array:
        return y / jnp.maximum(jnp.sqrt(jnp.sum(y**2, axis=1, keepdims=True)), 1e-30)

    def unit(y: Array) -> Array:
        return scaled(centre(y, jnp.broadcast_to(mask, y.shape))[0])

    def fee(size: Array) -> Array:
        """A token is paid for as 5/2 nats of n/2 log FVU; the exponential of both sides needs no
        logarithm of every pair.
        """
        return jnp.exp(5.0 / count * size.astype(jnp.float32))

    target = unit(points.y)
    size, entry_size = (
        jnp.sum(t != END, axis=1, dtype=jnp.int32) for t in (parts.tokens, library.tokens)
    )
    g, g_unit = scaled(parts.y), unit(parts.y)
    never_zero = jnp.min(jnp.where(mask, jnp.abs(parts.y), jnp.inf), axis=1) > 1e-9
    never_zero &= parts.tokens[:, 0] != OPERATOR_TOKEN["inv"]  # f / (1 / g) is f g
    over_g = scaled(
        jnp.where(mask & never_zero[:, None], 1.0 / jnp.where(parts.y == 0, 1.0, parts.y), 0.0)
    )
    alone = target @ g_unit.T
    of_product = jnp.stack([g, over_g])

    def block(
        best: tuple[Array, Array], entries: tuple[Array, Array, Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        """Fit all parts beside some entries; keep each part's cheapest partner of each kind."""
        f, f_unit, length, index = entries
        own, overlap = f_unit @ target.T, f_unit @ g_unit.T
        both = (own**2 + alone**2 - 2 * own * alone * overlap) / jnp.maximum(1.0 - overlap**2, 1e-4)
        of_sum = jnp.where(overlap**2 < 1 - 1e-4, 1.0 - both, 1.0)
        mixed, square, mean = (
            jnp.einsum("fn,kgn->kfg", a, b)
            for a, b in ((f * target, of_product), (f**2, of_product**2), (f, of_product))
        )
        spread = square - mean**2 / count
        of_others = jnp.where(
            spread > 1e-5 * square, 1.0 - mixed**2 / jnp.maximum(spread, 1e-30), 1.0
        )
        fvu = jnp.concatenate([of_sum[None], of_others])  # (kinds, entries, parts)
        fits = (length[:, None] + size[None] < slots) & (size[None] > 0)
        cost = jnp.where(
            fits[None],
            jnp.maximum(fvu, 1e-6) * (fee(length)[:, None] * fee(size)[None])[None],
            jnp.inf,
        )
        lowest = jnp.min(cost, axis=1)
        which = index[jnp.argmin(cost, axis=1)]
        better = lowest < best[0]
        return (jnp.where(better, lowest, best[0]), jnp.where(better, which, best[1])), None

    entries = (
        scaled(library.y),
        unit(library.y),
        entry_size,
        jnp.arange(len(entry_size), dtype=jnp.int32),
    )
    start = jnp.full((3, len(size)), jnp.inf), jnp.zeros((3, len(size)), jnp.int32)
    (cost, partner), _ = jax.lax.scan(
        block, start, jax.tree.map(lambda a: a.reshape(-1, BLOCK, *a.shape[1:]), entries)
    )
    part = jax.lax.top_k(-cost, min(most, cost.shape[1]))[1]
    entry = jnp.take_along_axis(partner, part, axis=1).reshape(-1)
    head = jnp.repeat(
        jnp.asarray([OPERATOR_TOKEN[kind] for kind in ("add", "mul", "div")], jnp.int32),
        part.shape[1],
    )
    part = part.reshape(-1)
    m, n = entry_size[entry], size[part]
    pairs = spelled(
        slots,
        sign(head),
        (library.tokens[entry], library.values[entry], m),
        (parts.tokens[part], parts.values[part], n),
    )
    return or_x((m + n < slots) & (n > 0), *pairs)  # where no pair fits, the formula is x


def ratios(
    library: Library, points: Points, most: int
) -> tuple[Int[Array, "most slots"], Float[Array, "most slots"]]:
    """The `most` best quotients 1 / (g + d) and f / (g + d) of different skeletons: g any entry of
    the library, f one of the first, d free.

    From (g + d) y = a f follows y = a f / g - d y / g, which is linear in a and d: one closed
    formula gives d for each pair.  Which pairs are good is asked of the quotients themselves, up to
    scale and offset.  A denominator that changes its sign does not count.  Chapter 8.
    """
    points, y_all = thinned(points, library.y)
    mask, y = points.mask, jnp.where(points.mask, points.y, 0.0)
    count = jnp.sum(mask).astype(jnp.float32)
    target = centre(y, mask)[0][0]
    slots = library.tokens.shape[1]
    size = jnp.sum(library.tokens != END, axis=1, dtype=jnp.int32)
    top = jnp.maximum(jnp.max(jnp.abs(y_all), axis=1, keepdims=True), 1e-30)
    g = y_all / top  # so that squares stay in range
    usable = jnp.min(jnp.where(mask, jnp.abs(g), jnp.inf), axis=1) > 1e-6
    over_g = jnp.where(mask & usable[:, None], 1.0 / jnp.where(g == 0, 1.0, g), 0.0)
    name = skeleton_hash(library.tokens)
    each = min(most, len(size))

    def best_of(
        carry: None, numerator: tuple[Array, Array]
    ) -> tuple[None, tuple[Array, Array, Array]]:
        """The best entries under one numerator: their cost, index and d."""
        f, length = numerator
        u, v = f[None] * over_g, y * over_g
        uu, uv, vv, uy, vy = (
            jnp.sum(u * u, 1),
            jnp.sum(u * v, 1),
            jnp.sum(v * v, 1),
            u @ y[0],
            v @ y[0],
        )
        det = uu * vv - uv**2
        d = jnp.where(det > 1e-5 * uu * vv, (uv * uy - uu * vy) / jnp.maximum(det, 1e-30), 0.0)
        under = g + d[:, None]
        one_sign = (
            jnp.min(jnp.where(mask, under, jnp.inf), 1)
            * jnp.max(jnp.where(mask, under, -jnp.inf), 1)
            > 0
        )
        quotient = jnp.where(mask, f[None] / jnp.where(under == 0, 1.0, under), 0.0)
        quotient = centre(quotient, jnp.broadcast_to(mask, quotient.shape))[0]
        fvu = 1.0 - (quotient @ target) ** 2 / jnp.maximum(
            jnp.sum(quotient**2, 1) * jnp.sum(target**2), 1e-30
        )
        good = usable & one_sign & (d != 0) & jnp.isfinite(fvu) & (size + length + 3 <= slots)
        cost = jnp.where(
            good,
            jnp.maximum(fvu, 1e-6) * jnp.exp(5.0 / count * (size + length).astype(jnp.float32)),
            jnp.inf,
        )
        least, index = jax.lax.top_k(-cost, each)
        return None, (-least, index, d[index] * top[index, 0])

    first = min(NUMERATORS, len(size))
    above = jnp.concatenate([jnp.where(mask, 1.0, 0.0), y_all[:first]])
    length = jnp.concatenate([jnp.zeros(1, jnp.int32), size[:first]])
    _, (cost, entry, d) = jax.lax.scan(best_of, None, (above, length))
    cost, entry, d = cost.reshape(-1), entry.reshape(-1), d.reshape(-1)
    numerator = jnp.repeat(jnp.arange(first + 1, dtype=jnp.int32), each)
    word = (
        name[entry] * jnp.int32(16777619)
        + jnp.concatenate([jnp.zeros(1, jnp.int32), name[:first]])[numerator]
    )
    order, cost = cheapest_of_each(word, cost)
    least, rank = jax.lax.top_k(-cost, most)
    best = order[rank]
    entry, numerator, d = entry[best], numerator[best], d[best]
    head = jnp.where(numerator == 0, OPERATOR_TOKEN["inv"], OPERATOR_TOKEN["div"])
    above = jnp.maximum(numerator - 1, 0)
    quotients = spelled(
        slots,
        sign(head),
        (library.tokens[above], library.values[above], length[numerator]),
        sign(jnp.full_like(entry, OPERATOR_TOKEN["add"])),
        (library.tokens[entry], library.values[entry], size[entry]),
        sign(nearest_constant(d), d),
    )
    return or_x(jnp.isfinite(least), *quotients)


def from_prior(
    key: Array, prior: Int[Array, "formulas slots"], count: int
) -> Int[Array, "count slots"]:
    """Blind candidates: skeletons of the prior with constants drawn from the bins.  The null
    model's whole wisdom.
    """
    k = jax.random.split(key)
    tokens = prior[jax.random.randint(k[0], (count,), 0, prior.shape[0])].astype(jnp.int32)
    constants = FIRST_CONSTANT + jax.random.randint(k[1], tokens.shape, 0, len(CONSTANT_BINS))
    return jnp.where(is_constant(tokens), constants, tokens)


class Carry(NamedTuple):
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


def ahead(
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
def think(
    params: Any,
    graph: Any,
    points: Points,
    key: Array,
    threshold: Array,
    start: Int[Array, "start slots"],
    prior: Int[Array, "formulas slots"],
    *,
    budget: Budget,
    at_most: Array | int | None = None,
) -> Outcome:
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
        return from_prior(key, prior, thoughts * budget.samples)

    def move(carry: Carry) -> tuple[Array, Array, Array, Array]:
        refined = new = (
            model.refiner(carry.z, encoded, carry.candidate) if budget.network else carry.z
        )
        if (
            budget.network and budget.leap
        ):  # what was refined from the same candidate at two steps shows where it leads

            def leap() -> Array:
                return stabilise(
                    ahead(carry.z, refined, carry.before, budget.leap), model.refiner.stabiliser
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

    def searching(carry: Carry) -> Array:
        # what has just been found may have a shorter form
        return (carry.step < last) & (
            (carry.pool.fvu[0] > budget.solved) | (carry.step < carry.found_at + budget.shorten)
        )

    price = functools.partial(cost_of, points=count)

    def offer(
        pool: Pool, tokens: Array, values: Array, nodes: Array, step: Array
    ) -> tuple[Array, Array]:
        """Remembered formulas with terms they lack or a subtree exchanged; short formulas paired
        with parts of what was drawn, first with one another.
        """
        if not budget.edits or not start.shape[0]:
            return nothing
        extended = extend(pool, library, points, min(budget.extend, budget.keep))
        if not len(shortest.tokens):
            return extended
        subtrees = distinct_parts(
            tokens[:half], values[:half], nodes[:, :half], points, len(whole.tokens)
        )
        subtrees = choose(jnp.full(len(whole.tokens), step == 0), whole, subtrees)
        return together(extended, couple(subtrees, shortest, points, budget.couples))

    def propose(carry: Carry) -> Carry:
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
            tokens, values = together(
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
        chosen = most_promising(
            jax.tree.map(lambda a: a[:own], drawn), thoughts, budget.fits, count
        )
        if budget.edits:
            others = jax.tree.map(lambda a: a[own:], drawn)
            chosen = jnp.concatenate(
                [chosen, own + most_promising(others, 8, min(10, len(others.fvu) // 8), count)]
            )
        again = min(
            64, budget.keep
        )  # the constants of the best remembered formulas go on being fitted
        fit_next = [(tokens[chosen], values[chosen]), (pool.tokens[:again], pool.values[:again])]
        if start.shape[0]:  # and those of short formulas and quotients, the best first
            fit_next.append((waiting[0][carry.step], waiting[1][carry.step]))
        to_fit = together(*fit_next)
        fit = levenberg_marquardt(
            *to_fit, points.x, points.y, points.mask, steps=budget.fit_steps, terms=TERMS
        )
        fitted = Candidate(to_fit[0], fit.values, fit.fitted, fit.fvu)
        cost = price(fitted.tokens, fitted.fvu)
        pool = merge(pool, Pool(*fitted, cost, fit.rows))
        each = cost[: thoughts * budget.fits].reshape(thoughts, budget.fits)
        best = jnp.argmin(each, axis=1) + jnp.arange(thoughts) * budget.fits
        now, old = jax.tree.map(lambda a: a[best], fitted), carry.candidate
        candidate = choose(price(now.tokens, now.fvu) < price(old.tokens, old.fvu), now, old)
        # a thought whose candidate lags behind takes one of the remembered ones
        pick = mostly_first(u_which, thoughts / 4)
        lags = (price(candidate.tokens, candidate.fvu) > pool.cost[budget.keep // 2]) & (
            u_lag < 0.3
        )
        shared = jax.tree.map(lambda a: a[pick], pool.candidate())
        candidate = choose(lags & jnp.isfinite(shared.fvu), shared, candidate)
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

    def settle(carry: Carry) -> Carry:
        """Every thought gets the best formula; from here on nothing but the latents moves."""
        best = jax.tree.map(
            lambda a: jnp.broadcast_to(a[:1], (thoughts, *a.shape[1:])), carry.pool.candidate()
        )
        return carry._replace(candidate=best, rested=carry.rested + 1)

    def step(carry: Carry) -> Carry:
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

    def going_on(carry: Carry) -> Array:
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
        rows = with_constants(library, points, budget.search_steps * budget.fits_short)
        queues = [(library.tokens[rows], library.values[rows])]
        if budget.fits_ratio:
            queues.append(ratios(library, points, budget.search_steps * budget.fits_ratio))
        turns = [[a.reshape(budget.search_steps, -1, slots) for a in queue] for queue in queues]
        waiting = [jnp.concatenate(arrays, axis=1) for arrays in zip(*turns, strict=True)]
        best = sweep(library, points, min(budget.keep, start.shape[0]))
        pool = jax.tree.map(lambda a, b: a.at[: len(b)].set(b), pool, best)
        # at the first step the parts are short formulas themselves
        whole = Parts(
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
    carry = Carry(
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
    return Outcome(
        carry.pool,
        carry.z,
        carry.trace,
        carry.step,
        carry.found_at,
        jnp.all(carry.hits >= 2),
        carry.step - carry.rested,
    )
