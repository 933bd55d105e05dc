"""One function undone on the device: m f(g) + b with b scanned, and m a product of powers.
(Chapter 8)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import Programs, lengths
from refinemath.expression import OPERATOR_TOKEN, nearest_constant
from refinemath.fitting import Points
from refinemath.loop import Context, Library, SearchState
from refinemath.pool import best_per_group, skeleton_hash
from refinemath.proposers.library import PAIR_COST, in_rounds, next_round, thin, unit_rows
from refinemath.proposers.monomials import MOST_MONOMIALS, around, monomial_values, monomials
from refinemath.proposers.splice import concat_tokens, mask_invalid, segment, single_token, whole

STEPS = 40  # offsets on each side of the data
NEAREST, FARTHEST = 1e-4, 10.0  # their distance from the data, in ranges of y
FINER = tuple(4.0**-k for k in range(6))  # steps of the pattern search, in steps of the scan
BETWEEN = (1e-3, 1e-5)  # what an offset between two of the scan may leave unexplained
LEAST_FVU = 1e-9  # offsets are not worked out to more than this


class Inverse(NamedTuple):
    """A function f as its tokens and its meaning, and f^-1 up to a factor and an offset."""

    tokens: tuple[str, ...]
    forward: Callable[[Array], Array]
    back: Callable[[Array], Array]
    one_sign: bool = True  # back takes |y - b|, and y - b may not change its sign
    from_zero: bool = True  # forward takes numbers from 0 up
    odd: bool = False  # f(d - g) is not f(g - d), up to a factor


INVERSES = (
    Inverse(("exp",), jnp.exp, jnp.log, from_zero=False),
    # what is scanned is the factor a of a log(g), not b
    Inverse(("log",), jnp.log, jnp.exp, one_sign=False, odd=True),
    Inverse(("sqrt",), jnp.sqrt, jnp.square, odd=True),
    Inverse(("inv",), lambda u: 1.0 / u, lambda v: 1.0 / v),
    Inverse(("square",), jnp.square, jnp.sqrt),
    Inverse(("inv", "sqrt"), jax.lax.rsqrt, lambda v: 1.0 / jnp.square(v), odd=True),
    Inverse(("inv", "square"), lambda u: 1.0 / jnp.square(u), jax.lax.rsqrt),
    Inverse((), lambda u: u, lambda v: v, one_sign=False, from_zero=False),
)
EXP, LOG, PLAIN = 0, 1, len(INVERSES) - 1


class Target(NamedTuple):
    """What is compared with g: f^-1((y - b) / m)."""

    kind: Int[Array, " targets"]  # of `INVERSES`
    factor: Int[Array, " targets"]  # m, a row of `monomials`; row 0 is 1
    side: Int[Array, " targets"]  # -1: b below the data, 1: above them, 0: b is 0
    distance: Float[Array, " targets"]  # of b from the data in ranges of y, its logarithm


class Made(NamedTuple):
    """f(scale g + shift), and what it leaves unexplained of y up to a factor and an offset."""

    scale: Float[Array, " rows"]
    shift: Float[Array, " rows"]
    fvu: Float[Array, " rows"]


@dataclass(frozen=True)
class Inverses:
    """The best m f(g) + b, a queue that is made once: g any short formula or its square, f of
    `INVERSES`, m of `monomials` where b is 0, else 1.
    """

    refine: int = 16
    rounds: int = 8
    each: int = 64  # of every f that are looked at closely
    entries: int = 20_000  # of the library
    uses_library: ClassVar[bool] = True

    def init(self, context: Context, key: Array) -> Programs:
        """The queue, (rounds, refine, slots)."""
        queue = self.best(context, self.rounds * self.refine)
        return in_rounds(queue, self.rounds)

    def propose(
        self, model: Any, context: Context, memory: Programs, state: SearchState, key: Array
    ) -> tuple[Programs, Programs]:
        """The next of the queue."""
        return next_round(memory, state), memory

    def best(self, context: Context, most: int) -> Programs:
        """The `most` best formulas; x1 where there are no more."""
        points = context.points
        library = Library(*(a[: self.entries] for a in context.library))
        exponents = monomials(points.x.shape[1])
        m = monomial_values(exponents, points)
        entry, target = self.scan(library, points, m)
        target, made = refine_offset(target, with_squares(library)[entry], points, m)
        name = (entry_names(library)[entry] * 8 + target.kind) * MOST_MONOMIALS + target.factor
        short = library.tokens[entry % len(library.tokens)]
        size = (
            lengths(short)
            + 2 * (made.shift != 0).astype(jnp.int32)
            + jnp.asarray(
                [2 * np.count_nonzero(row) + np.count_nonzero(abs(row) == 2) for row in exponents]
            )[target.factor].astype(jnp.int32)
        )
        price = token_price(size, points)
        order, loss = best_per_group(name, jnp.maximum(made.fvu, LEAST_FVU) * price)
        least, rank = jax.lax.top_k(-loss, min(most, len(loss)))
        room = (0, most - len(rank))
        rows, good = jnp.pad(order[rank], room), jnp.pad(jnp.isfinite(least), room)
        target, made = (jax.tree.map(lambda a: a[rows], t) for t in (target, made))
        return mask_invalid(good, write(library, entry[rows], target, made, exponents))

    def scan(
        self, library: Library, points: Points, m: Array
    ) -> tuple[Int[Array, " rows"], Target]:
        """The `each` best entries for every f, each with the target that it suits best."""
        few, step = thin(points)
        unit = unit_rows(with_squares(library)[:, ::step], few.mask)
        name, grid = entry_names(library), scan_grid(len(m))
        size = jnp.tile(lengths(library.tokens), 2) + (name % 2)
        values = scan_values(grid, few, m[:, ::step])
        compared = Comparison(unit, name, token_price(size, few), grid, values, few)
        each = min(self.each // len(BETWEEN), len(name))
        kinds = jnp.arange(len(INVERSES), dtype=jnp.int32)
        entry, which = jax.lax.map(lambda kind: compared.best(kind, each), kinds)
        target = jax.tree.map(lambda a: a[which.reshape(-1)], grid)
        return entry.reshape(-1), target._replace(kind=jnp.repeat(kinds, entry.shape[1]))


def token_price(size: Array, points: Points) -> Float[Array, " formulas"]:
    """What a formula of so many tokens multiplies its FVU by: the exponential of a code length."""
    count = jnp.sum(points.mask).astype(jnp.float32)
    return jnp.exp(PAIR_COST / count * size.astype(jnp.float32))


def with_squares(library: Library) -> Float[Array, "twice points"]:
    """The outputs of all entries, then the squares of the longest: those of the others are entries
    themselves, and 0 here, as what leaves the range.
    """
    size = lengths(library.tokens)
    new = (size == jnp.max(size)) & (library.tokens[:, 0] != OPERATOR_TOKEN["sqrt"])
    fits = new[:, None] & (jnp.abs(library.outputs) < 1e6)
    return jnp.concatenate([library.outputs, jnp.where(fits, library.outputs, 0.0) ** 2])


def entry_names(library: Library) -> Int[Array, " twice"]:
    """A number for the skeleton of every entry, and of its square."""
    name = 2 * skeleton_hash(library.tokens)
    return jnp.concatenate([name, name + 1])


def scan_grid(count: int) -> Target:
    """All targets of one f: b on both sides of the data, then 0 with each of `count` monomials."""
    distance = np.log(np.geomspace(NEAREST, FARTHEST, STEPS))
    side = np.repeat([-1, 1, 0], [STEPS, STEPS, count])
    factor = np.concatenate([np.zeros(2 * STEPS), np.arange(count)])
    distance = np.concatenate([distance, distance, np.zeros(count)])
    wholes = jnp.asarray(np.stack([0 * factor, factor, side]), jnp.int32)
    return Target(wholes[0], wholes[1], wholes[2], jnp.asarray(distance, jnp.float32))


class ScanValues(NamedTuple):
    """What the functions are undone on, whatever they are."""

    shifted: Float[Array, "targets points"]  # (y - b) / m, of size 1
    scaled: Float[Array, "targets points"]  # (y - its largest) / a, for the logarithm
    one_sign: Array  # whether `shifted` has one sign


def scan_values(target: Target, points: Points, m: Array) -> ScanValues:
    """y with its offsets taken away, and y in units of the same distances."""
    mask, y = points.mask, points.y
    low = jnp.min(jnp.where(mask, y, jnp.inf), axis=1)
    high = jnp.max(jnp.where(mask, y, -jnp.inf), axis=1)
    away = (high - low) * jnp.exp(target.distance)
    b = jnp.where(target.side == 0, 0.0, jnp.where(target.side < 0, low - away, high + away))
    v = (y - b[:, None]) / m[target.factor]
    size = jnp.sum(jnp.where(mask, jnp.abs(v), 0.0), axis=1, keepdims=True)
    size = size / jnp.sum(mask).astype(jnp.float32)
    one_sign = jnp.all((v > 0) | ~mask, axis=1) | jnp.all((v < 0) | ~mask, axis=1)
    a = 10 * away * jnp.where(target.side < 0, -1.0, 1.0)
    largest = jnp.where(a > 0, high, low)
    return ScanValues(v / size, (y - largest[:, None]) / a[:, None], one_sign)


def undo(
    v: ScanValues, kind: Array, target: Target, points: Points
) -> Float[Array, "targets points"]:
    """f^-1((y - b) / m) up to a factor; 0 where there is no point, and where it is undefined."""
    t = jnp.zeros_like(v.shifted)
    for i, f in enumerate(INVERSES):
        argument = v.scaled if i == LOG else jnp.abs(v.shifted) if f.one_sign else v.shifted
        t = jnp.where((kind == i)[:, None], f.back(argument), t)
    good = jnp.all(jnp.isfinite(t) & (jnp.abs(t) < 1e8) | ~points.mask, axis=1)
    good &= v.one_sign | ~jnp.asarray([f.one_sign for f in INVERSES])[kind]
    # a logarithm has no m, and y itself is what the other proposers look at
    good &= ((kind != LOG) | (target.factor == 0)) & ((kind != PLAIN) | (target.factor != 0))
    return jnp.where(points.mask & good[:, None], t, 0.0)


class Comparison(NamedTuple):
    """All entries g and all targets of one f at a time, compared by a matrix product."""

    unit: Float[Array, "entries points"]
    name: Int[Array, " entries"]
    price: Float[Array, " entries"]
    grid: Target
    values: ScanValues
    points: Points

    def best(self, kind: Array, each: int) -> tuple[Int[Array, " rows"], Int[Array, " rows"]]:
        """The `each` best entries of different skeletons for every level of `BETWEEN`, and the
        target of each.
        """
        t = undo(self.values, jnp.full_like(self.grid.kind, kind), self.grid, self.points)
        gain = jnp.abs(self.unit @ unit_rows(t, self.points.mask).T)
        which = jnp.argmax(gain, axis=1).astype(jnp.int32)
        fvu = jnp.maximum(1.0 - jnp.max(gain, axis=1) ** 2, LEAST_FVU)
        order, least = best_per_group(self.name, jnp.where(fvu < 1, fvu, jnp.inf))
        losses = (jnp.maximum(least, floor) * self.price[order] for floor in BETWEEN)
        entry = jnp.concatenate([order[jax.lax.top_k(-a, each)[1]] for a in losses])
        return entry, which[entry]


def make(target: Target, g: Array, points: Points, m: Array) -> Made:
    """Scale and shift by least squares in f^-1(y), and the FVU of y."""
    mask = points.mask
    t = undo(scan_values(target, points, m), target.kind, target, points)
    count = jnp.sum(mask).astype(jnp.float32)
    mean_g, mean_t = (jnp.sum(jnp.where(mask, a, 0.0), 1, keepdims=True) / count for a in (g, t))
    centred = jnp.where(mask, g - mean_g, 0.0)
    size = jnp.maximum(jnp.max(jnp.abs(centred), axis=1, keepdims=True), 1e-30)
    row = centred / size
    both = jnp.sum(row * (t - mean_t), 1, keepdims=True)
    scale = both / jnp.maximum(jnp.sum(row**2, 1, keepdims=True), 1e-30) / size
    shift = mean_t - scale * mean_g
    lowest = jnp.min(jnp.where(mask, scale * g + shift, jnp.inf), axis=1, keepdims=True)
    from_zero = jnp.asarray([f.from_zero for f in INVERSES])[target.kind][:, None]
    shift = jnp.where(from_zero, shift + jnp.maximum(-lowest, 0.0), shift)
    span = jnp.max(jnp.where(mask, jnp.abs(scale * g), 0.0), axis=1, keepdims=True)
    shift = jnp.where((jnp.abs(shift) < 1e-3 * span) | (target.kind == EXP)[:, None], 0.0, shift)
    fvu = forward_fvu(target, scale * g + shift, points, m)
    return Made(scale[:, 0], shift[:, 0], jnp.where(scale[:, 0] == 0, jnp.inf, fvu))


def forward_fvu(target: Target, u: Array, points: Points, m: Array) -> Float[Array, " rows"]:
    """FVU of y ~ a m f(u) + b; infinite where m f(u) is undefined."""
    v, mask = jnp.zeros_like(u), points.mask
    for i, f in enumerate(INVERSES):
        v = jnp.where((target.kind == i)[:, None], f.forward(u), v)
    v = v * m[target.factor]
    good = jnp.all(jnp.isfinite(v) & (jnp.abs(v) < 1e12) | ~mask, axis=1)
    unit, y = unit_rows(jnp.where(good[:, None] & mask, v, 0.0), mask), unit_rows(points.y, mask)
    left = y - (unit @ y[0])[:, None] * unit  # 1 - r^2 would be blurred by rounding
    return jnp.where(good, jnp.sum(left**2, axis=1), jnp.inf)


def refine_offset(target: Target, g: Array, points: Points, m: Array) -> tuple[Target, Made]:
    """Every target with the b at which least is left, by a pattern search."""
    step = float(np.log(FARTHEST / NEAREST)) / (STEPS - 1)

    def closer(now: tuple[Target, Made], move: Array) -> tuple[tuple[Target, Made], None]:
        moved = now[0]._replace(distance=now[0].distance + move)
        made = make(moved, g, points, m)
        better = made.fvu < now[1].fvu
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), (moved, made), now), None

    moves = [0.0, *(k * step * size for size in FINER for k in (2, -2, 1, -1))]
    never = jnp.full(len(g), jnp.inf, jnp.float32)
    start = target, Made(never, never, never)
    return jax.lax.scan(closer, start, jnp.asarray(moves, jnp.float32))[0]


def write(
    library: Library, entry: Array, target: Target, made: Made, exponents: np.ndarray
) -> Programs:
    """Tokens of m f(g + d), m f(d - g) or m exp(c g)."""
    slots, count = library.tokens.shape[1], len(library.tokens)
    before, after = zip(*map(around, exponents.tolist()), strict=True)
    function = [[OPERATOR_TOKEN[name] for name in f.tokens] for f in INVERSES]
    odd = jnp.asarray([f.odd for f in INVERSES])[target.kind]
    minus, is_exp, shifted = odd & (made.scale < 0), target.kind == EXP, made.shift != 0
    number = jnp.where(minus, -1.0, 1.0) * made.shift / made.scale
    number = jnp.where(is_exp, made.scale, number)
    head = jnp.where(shifted, jnp.where(minus, 1, 2), jnp.where(minus, 3, 4))
    heads = [[OPERATOR_TOKEN[name]] for name in ("mul", "sub", "add", "neg")]
    constant = single_token(nearest_constant(number), number)
    first = is_exp | (shifted & minus)
    programs = Programs(library.tokens, library.values)
    return concat_tokens(
        slots,
        segment(before, target.factor),
        segment(function, target.kind),
        segment([*heads, []], jnp.where(is_exp, 0, head)),
        constant._replace(length=first.astype(jnp.int32)),
        segment([[], [OPERATOR_TOKEN["square"]]], (entry >= count).astype(jnp.int32)),
        whole(programs, entry % count),
        constant._replace(length=(shifted & ~first).astype(jnp.int32)),
        segment(after, target.factor),
    )
