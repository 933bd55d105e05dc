"""Recursion over the remainder: what is left of y is read again until a short formula explains it.

A state is a remainder r and the formula around it.  For the most promising states the network draws
next operations: an operator and, if it has two operands, the shorter one, E.  Each operation is
undone on the points, which leaves the next remainder, R.  Numbers that the operation leaves open
(an offset of r, a coefficient of E, a number inside E) are tried in a few variants.  The likeliest
remainders are compared with all short formulas in four matrix products; the best pairs are proposed
as formulas, and the remainders wait to be read in turn.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.execution import Programs, centre, evaluate, lengths, masked_mean
from refinemath.expression import OPERATOR_TOKEN, is_constant, nearest_constant
from refinemath.fitting import Points, solve_small
from refinemath.loop import Context, Library, SearchState
from refinemath.network.model import Model
from refinemath.network.moments import masked_range
from refinemath.network.spine import (
    ARITY,
    END,
    FIRST_OPERATOR,
    FIRST_REVERSED,
    TO_BASE,
    TOKEN,
    from_spine,
)
from refinemath.proposers.library import unit_rows
from refinemath.proposers.splice import Segment, concat_tokens, mask_invalid, single_token, whole

VARIANTS = 8
LONGEST = 8  # tokens of an operation
DISTANCES = np.geomspace(1e-3, 10, 20)  # of an offset from the range of r, in ranges
INSIDE = np.linspace(0.03, 0.97, 16)  # and offsets within it
MULTIPLES = (
    1.0,
    1.0,
    1.0,
    0.5,
    1.5,
    2.0,
    0.75,
    1.25,
)  # of the least-squares coefficient of E; the second and third are 1 and -1 themselves
SIZES = (0.3, 1.0, 3.0)  # of the argument of a logarithm, in standard deviations; and 1 itself
EXPONENTS = (1.5, -1.0, -0.5, -2.0, -1.5, 1 / 3, 2.5, 0.7)  # of R
NUMBERS = (1.0, 2.0, 0.5, 3.0, -1.0, 1.5, -2.0, 0.2)  # inside E


class States(NamedTuple):
    """Remainders that wait, and the formula around each: `before` R `after`."""

    r: Float[Array, "states points"]
    tangent: Float[Array, "states points"]  # how r moves with the constant term of the whole
    before: Programs
    after: Programs
    log_p: Float[Array, " states"]  # of the operations so far; -inf: no state
    promise: Float[Array, " states"]  # how well a short formula explains what is left
    scale: Array  # (states,) bool: a factor of r is free, for what stands around it
    offset: Array  # likewise a constant term


def of(names: tuple[str, ...], token: Array) -> Array:
    """Whether a token of the spine is one of these operators."""
    return jnp.any(token[..., None] == jnp.asarray([TOKEN[n] for n in names]), axis=-1)


# ---------------------------------------------------------------- draws of the next operation


def first_operation(tokens: Int[Array, "*batch places"]) -> tuple[Array, Array]:
    """Drawn tokens up to the end of the first operation, and whether it ends there."""
    change = jnp.cumsum(jnp.asarray(ARITY)[tokens] - 1, axis=-1)  # operands missing - 1
    complete = change == 0
    last = jnp.argmax(complete, axis=-1)
    place = jnp.arange(tokens.shape[-1])
    good = jnp.any(complete, axis=-1) & (tokens[..., 0] >= FIRST_OPERATOR)
    return jnp.where(place <= last[..., None], tokens, END), good


def most_frequent(
    tokens: Int[Array, "states draws places"], good: Array, most: int
) -> tuple[Int[Array, "states most places"], Float[Array, "states most"]]:
    """The `most` most frequent different rows of each state, and the logarithm of their share."""
    powers = jnp.asarray(61, jnp.uint32) ** jnp.arange(tokens.shape[-1], dtype=jnp.uint32)
    name = jnp.sum(tokens.astype(jnp.uint32) * powers, axis=-1)
    same = (name[:, :, None] == name[:, None, :]) & good[:, None, :] & good[:, :, None]
    count = jnp.sum(same, axis=-1)
    earlier = jnp.tril(jnp.ones(same.shape[1:], bool), -1)
    first = good & ~jnp.any(same & earlier, axis=-1)
    times, at = jax.lax.top_k(jnp.where(first, count, 0), most)
    rows = jnp.take_along_axis(tokens, at[..., None], axis=1)
    return rows, jnp.log(times / tokens.shape[1])


# ---------------------------------------------------------------- undoing an operation


class Undone(NamedTuple):
    """Remainders R, and for the check of r ~ s (w g) + d q + c: t, w and q."""

    r: Float[Array, "batch points"]
    t: Float[Array, "batch points"]
    w: Float[Array, "batch points"]
    q: Float[Array, "batch points"]
    tangent: Float[Array, "batch points"]  # how t moves with the constant term of the whole
    moved: Float[Array, "batch points"]  # how R moves with it
    coefficient: Float[Array, " batch"]  # of E, where it is added


def inverse(
    op: Int[Array, " batch"],
    e: Float[Array, "batch points"],
    v: Float[Array, "batch points"],
    mask: Array,
    exponent: Float[Array, " batch"],
    scale: Array,
) -> Float[Array, "batch points"]:
    """R of v = op(E, R), for operations that an offset of v matters to; else NaN."""
    a, power = jnp.abs(v), exponent[:, None]
    log = jnp.log(a)
    cases = {
        "mul": v / e, "div": e / v, "rdiv": v * e, "pow": log / jnp.log(e),
        "rpow": jnp.exp(log / jnp.where(power == 0, e, power)),
        "inv": 1 / v, "square": jnp.sqrt(a), "cube": jnp.cbrt(v), "pow4": jnp.sqrt(jnp.sqrt(a)),
        "pow5": jnp.sign(v) * a**0.2, "sqrt": v * v, "exp": log,
    }  # fmt: skip
    out = jnp.full_like(v, jnp.nan)
    for name, value in cases.items():
        out = jnp.where((op == TOKEN[name])[:, None], value, out)
    # one sign is asked for where a root or a logarithm is taken, plus where the scale is not free
    rooted = of(("square", "pow4", "exp", "pow", "rpow"), op)[:, None]
    least, most = masked_range(v, mask)
    wrong = (least * most <= 0) | ((most < 0) & ~scale[:, None])
    return jnp.where(rooted & wrong, jnp.nan, out)


def smooth_basis(points: Points, most: int = 21) -> Float[Array, "terms points"]:
    """Orthonormal polynomials in all columns, of degree 6 in one, less in more."""
    x, mask = points.x[0], points.mask
    low, high = masked_range(x, mask)
    u = jnp.where(mask, 2 * (x - low) / jnp.maximum(high - low, 1e-30) - 1, 0.0)
    degree = {1: 6, 2: 4, 3: 3}.get(len(x), 1)
    terms = [jnp.ones_like(u[0])]
    for d in range(1, degree + 1):
        for columns in itertools.combinations_with_replacement(range(len(x)), d):
            terms.append(functools.reduce(jnp.multiply, [u[c] for c in columns]))
    return orthonormal_rows(jnp.stack(terms[:most])[None], mask)[0]


def smoothest_offsets(
    op: Int[Array, " batch"],
    e: Float[Array, "batch points"],
    states: States,
    mask: Array,
    basis: Float[Array, "terms points"],
) -> Float[Array, "batch variants"]:
    """0, and of a grid of offsets b those for which R is nearest to a polynomial.

    The right b leaves a remainder that is smooth where a wrong one bends it: (r - b) / E has a pole
    where E is 0.
    """
    r = states.r
    low, high = masked_range(r, mask)
    grid = np.concatenate([-DISTANCES[::-1], INSIDE, 1 + DISTANCES]).astype(np.float32)
    b = low + (high - low) * grid[None]
    n, count = b.shape
    every = [jnp.repeat(a, count, axis=0) for a in (op, e, r, mask, states.scale)]
    v = every[2] - b.reshape(-1, 1)
    out = inverse(every[0], every[1], v, every[3], jnp.zeros(n * count), every[4])
    out = jnp.where(every[3], out, 0.0)
    good = jnp.all(jnp.isfinite(out) & (jnp.abs(out) < 1e8), axis=1)
    out = jnp.where(good[:, None], out, 0.0)
    spread = jnp.sum(centre(out, every[3])[0] ** 2, -1)
    rest = jnp.sum(out**2, -1) - jnp.sum((out @ basis.T) ** 2, -1)
    rough = jnp.where(good & (spread > 0), rest / jnp.maximum(spread, 1e-30), jnp.inf)
    rough = rough.reshape(n, count)
    beside = jnp.pad(rough, ((0, 0), (1, 1)), constant_values=jnp.inf)
    dip = (rough <= beside[:, :-2]) & (rough <= beside[:, 2:])
    best = jax.lax.top_k(-jnp.where(dip, rough, 1.0 + rough), VARIANTS - 1)[1]
    return jnp.pad(jnp.take_along_axis(b, best, axis=1), ((0, 0), (1, 0)))


def _undo(
    op: Int[Array, " batch"],
    e: Float[Array, "batch points"],
    states: States,
    mask: Array,
    variant: Int[Array, " batch"],
    b: Float[Array, " batch"],
    exponent: Float[Array, " batch"],
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    """R and the rest of what `undo` gives.

    Where the constant term of r is not free, b is 0 and one variant is enough; likewise a.
    """
    held, r = jax.lax.stop_gradient(states.r), states.r

    def pick(values: tuple[float, ...]) -> Array:
        return jnp.asarray(values, jnp.float32)[variant][:, None]

    first = (variant == 0)[:, None]
    scale, offset = states.scale[:, None], states.offset[:, None]
    low, high = masked_range(held, mask)
    rc, _ = centre(held, mask)
    spread = jnp.sqrt(masked_mean(rc**2, mask))
    v = r - jnp.where(first, 0.0, jnp.where(offset, b[:, None], jnp.nan))
    # a sum: r = k E + R, or where the scale is free r = k (E + R)
    ec = centre(e, mask)[0]
    ls = jnp.sum(rc * ec, -1, keepdims=True) / jnp.maximum(jnp.sum(ec**2, -1, keepdims=True), 1e-30)
    one = ((variant == 1) | (variant == 2))[:, None]
    k = jnp.where(one, pick((0, 1.0, -1.0, 0, 0, 0, 0, 0)), ls * pick(MULTIPLES))
    divided = scale & ~offset
    rest = jnp.where(divided, r / k - e, r - k * e)
    k = jnp.where(divided, 1.0, k)
    # a logarithm, and what is bounded
    size = jnp.where(scale, spread * pick((1, *SIZES, *(-s for s in SIZES), 1)), jnp.nan)
    size = jnp.where(first, 1.0, jnp.where((variant == 7)[:, None] & scale, -1.0, size))
    bounded = jnp.where((variant < 4)[:, None] & offset, r - (low + high) / 2, r)
    top = jnp.max(jnp.where(mask, jnp.abs(jax.lax.stop_gradient(bounded)), 0.0), -1, keepdims=True)
    inner = bounded / (top * pick((1.0001, 1.03, 1.2, 2.0) * 2))
    ends = jnp.concatenate([jnp.zeros_like(low), (low + high) / 2, high - 1, low + 1], axis=1)
    shift = jnp.take_along_axis(ends, jnp.minimum(variant, 3)[:, None], axis=1)
    shifted = jnp.where(offset & (variant < 4)[:, None] | first, r - shift, jnp.nan)
    inner = jnp.where(scale & ~(first & offset), inner, shifted)
    out = inverse(op, e, jnp.where((exponent != 0)[:, None], r, v), mask, exponent, states.scale)
    more = {
        "add": rest, "log": jnp.exp(r / size), "sin": jnp.arcsin(inner), "cos": jnp.arccos(inner),
        "tanh": jnp.arctanh(inner),
    }  # fmt: skip
    for name, value in more.items():
        out = jnp.where((op == TOKEN[name])[:, None], value, out)
    added, product, quotient = (of((name,), op)[:, None] for name in ("add", "mul", "rdiv"))
    linear = added | product | quotient
    w = jnp.where(product, e, jnp.where(quotient, 1 / e, 1.0))
    q = jnp.where(added, e, jnp.where(linear, w, 0.0))
    return (out, jnp.where(linear, r, out)), (w, q, k[:, 0])


def undo(
    op: Int[Array, " batch"],
    e: Float[Array, "batch points"],
    states: States,
    mask: Array,
    variant: Int[Array, " batch"],
    b: Float[Array, " batch"],
    exponent: Float[Array, " batch"],
) -> Undone:
    """Undo r = a op(E, R) + b for one variant of the numbers, and say how the result moves with the
    constant term of the whole formula, which is known roughly at best; NaN where it is impossible.
    """

    def of_r(r: Array) -> tuple:
        return _undo(op, e, states._replace(r=r), mask, variant, b, exponent)

    (out, t), (moved, tangent), (w, q, k) = jax.jvp(
        of_r, (states.r,), (states.tangent,), has_aux=True
    )
    return Undone(out, t, w, q, tangent, moved, k)


# ---------------------------------------------------------------- comparison with short formulas


def least_fvu(
    undone: Undone, outputs: Float[Array, "entries points"], price: Array, mask: Array
) -> tuple[Array, Array]:
    """For every remainder the least loss FVU x price over the short formulas, and which one has it.

    The fit t ~ s (w g) + d q + e tangent + c of all pairs is five matrix products.
    """
    t, w = (jnp.where(mask, v, 0.0) for v in (undone.t, undone.w))
    one = jnp.broadcast_to(jnp.where(mask, 1.0, 0.0), t.shape)
    basis = orthonormal_rows(jnp.stack([one, undone.q, undone.tangent], axis=1), mask)
    tc = t - jnp.sum(t * basis[:, 0], -1, keepdims=True) * basis[:, 0]
    whole_t = jnp.sum(tc**2, -1, keepdims=True)
    for k in (1, 2):
        tc = tc - jnp.sum(tc * basis[:, k], -1, keepdims=True) * basis[:, k]
    w = w / jnp.maximum(jnp.max(jnp.abs(w), -1, keepdims=True), 1e-20)
    along = (tc * w) @ outputs.T
    square = left = (w**2) @ (outputs**2).T
    for k in range(3):
        left = left - ((w * basis[:, k]) @ outputs.T) ** 2
    fvu = (jnp.sum(tc**2, -1, keepdims=True) - along**2 / jnp.maximum(left, 1e-30)) / whole_t
    usable = (left > 1e-5 * square) & (whole_t > 1e-12)
    loss = jnp.where(usable, jnp.maximum(fvu, 1e-6) * price[None], jnp.inf)
    best = jnp.argmin(loss, axis=1).astype(jnp.int32)
    return jnp.take_along_axis(loss, best[:, None], axis=1)[:, 0], best


def orthonormal_rows(basis: Float[Array, "batch terms points"], mask: Array) -> Array:
    """Rows of length 1 that span the same space; of what adds nothing, zeros."""
    rows: list[Array] = []
    for k in range(basis.shape[1]):
        row = jnp.where(mask & jnp.isfinite(basis[:, k]), basis[:, k], 0.0)
        row = row / jnp.maximum(jnp.max(jnp.abs(row), -1, keepdims=True), 1e-30)
        size = jnp.linalg.norm(row, axis=-1, keepdims=True)
        for _ in range(2):
            for other in rows:
                row = row - jnp.sum(row * other, -1, keepdims=True) * other
        left = jnp.linalg.norm(row, axis=-1, keepdims=True)
        rows.append(jnp.where(left > 1e-3 * size, row / jnp.maximum(left, 1e-30), 0.0))
    return jnp.stack(rows, axis=1)


def coefficients(undone: Undone, g: Array, mask: Array) -> tuple[Array, Array, Array]:
    """s, d and c of the fit t ~ s (w g) + d q + e tangent + c, each (batch,)."""
    one = jnp.where(mask, 1.0, 0.0)
    columns = (undone.w * g, undone.q, undone.tangent, one)
    rows = jnp.stack([jnp.where(mask & jnp.isfinite(v), v, 0.0) for v in columns], axis=1)
    size = jnp.maximum(jnp.linalg.norm(rows, axis=-1), 1e-20)
    rows = rows / size[..., None]
    normal = jnp.einsum("bin,bjn->bij", rows, rows) + 1e-6 * jnp.eye(4)[None]
    right = jnp.einsum("bin,bn->bi", rows, jnp.where(mask, undone.t, 0.0))
    s, d, _, c = jnp.moveaxis(solve_small(normal, right) / size, -1, 0)
    return s, d, c


# ---------------------------------------------------------------- writing


def number(value: Array, wanted: Array) -> Segment:
    """A constant, or nothing."""
    return single_token(nearest_constant(value), value)._replace(length=wanted.astype(jnp.int32))


def token(name: str, wanted: Array) -> Segment:
    """An operator, or nothing."""
    one = jnp.full(wanted.shape, OPERATOR_TOKEN[name], jnp.int32)
    return single_token(one)._replace(length=wanted.astype(jnp.int32))


def affine(s: Array, d: Array, scale_free: Array, offset_free: Array, size: Array) -> list[Segment]:
    """What stands before g in d + s g, where s and d are not free and do not look like 1 and 0."""
    d = jnp.where(scale_free, d / s, d)
    size = jnp.where(scale_free, size, jnp.abs(s) * size)
    times = ~scale_free & (jnp.abs(s - 1) > 1e-3)
    plus = ~offset_free & (jnp.abs(d) > 1e-3 * size)
    return [token("add", plus), number(d, plus), token("mul", times), number(s, times)]


def around(
    states: States, op: Array, e: Programs, k: Array, slots: int
) -> tuple[Programs, Programs, Array]:
    """The formula around R: before and after, and whether it fits."""
    arity = jnp.asarray(ARITY)[op]
    reverse = op >= FIRST_REVERSED
    own = jnp.asarray(TO_BASE)[op]
    top = states.scale & states.offset
    times = of(("add",), op) & ~top & (jnp.abs(k - 1) > 1e-3)
    e_first = (arity == 2) & ~reverse
    operand = Segment(*e, lengths(e.tokens))
    first = operand._replace(length=jnp.where(e_first, operand.length, 0))
    second = operand._replace(length=jnp.where((arity == 2) & reverse, operand.length, 0))
    head = [single_token(own), token("mul", times & e_first), number(k, times & e_first), first]
    tail = [token("mul", times & reverse), number(k, times & reverse), second]
    size = lengths(states.before.tokens) + lengths(states.after.tokens)
    fits = size + operand.length + 2 * times + 2 <= slots
    before = concat_tokens(slots, whole(states.before), *head)
    return before, concat_tokens(slots, *tail, whole(states.after)), fits


def freedom(states: States, op: Array) -> tuple[Array, Array]:
    """Whether a factor and a constant term of R are free, given that of r."""
    scale, offset, top = states.scale, states.offset, states.scale & states.offset
    powers = ("mul", "div", "rdiv", "inv", "square", "cube", "pow4", "pow5", "sqrt")
    below_log = of(("log",), op) & offset
    new_scale = (of(("add",), op) & top) | (of(powers, op) & scale) | below_log
    new_offset = (of(("add",), op) & top) | (of(("exp",), op) & scale)
    new_offset |= of(("neg",), op) & offset
    return new_scale | (of(("neg",), op) & scale), new_offset


# ---------------------------------------------------------------- the proposer


class Children(NamedTuple):
    """Every operation of every state in every variant of its numbers, undone."""

    parent: States
    op: Int[Array, " children"]
    e: Programs
    undone: Undone
    log_p: Float[Array, " children"]  # -inf where it cannot be undone
    repeated: Array  # (children,) bool: a variant of what the comparison fits anyway


@dataclass(frozen=True)
class Remainder:
    """`states` states are read at every step; `draws` next operations are drawn for each, the
    `operations` most frequent are undone; the `checked` likeliest remainders are compared with the
    short formulas, and the best `proposals` pairs are proposed.
    """

    states: int = 8
    draws: int = 64
    operations: int = 24
    checked: int = 256
    proposals: int = 128
    waiting: int = 256
    fixed: int = 20_000  # entries of the library that are always compared
    drawn: int = 8192  # and others in turn
    depth: int = 2
    refine: int = 24
    revisit: float = 1.5  # nats by which reading a state again comes later
    variant: float = 2.0  # nats that a variant other than the first costs
    evidence: float = 0.5  # nats of priority for a nat less of log FVU
    blind: bool = False
    uses_library: ClassVar[bool] = True

    @property
    def uses_table(self) -> bool:
        """Operations of the blind variant are drawn from the table."""
        return self.blind

    def init(self, context: Context, key: Array) -> States:
        """The whole is what is left."""
        slots, n = context.library.tokens.shape[1], self.waiting
        nothing = Programs(jnp.zeros((n, slots), jnp.int32), jnp.zeros((n, slots)))
        y = context.points.y
        r = jnp.zeros((n, y.shape[1])).at[0].set(y[0])
        log_p = jnp.full(n, -jnp.inf).at[0].set(0.0)
        free = jnp.ones(n, bool)
        return States(r, jnp.ones_like(r), nothing, nothing, log_p, jnp.zeros(n), free, free)

    def propose(
        self, model: Model, context: Context, memory: States, state: SearchState, key: Array
    ) -> tuple[Programs, States]:
        """Read the states that come first, undo operations, compare, write."""
        rank = jax.lax.top_k(memory.log_p + memory.promise, self.states)[1]
        now = jax.tree.map(lambda a: a[rank], memory)
        ops, share = self.draw(model, context, now, key)
        children = self.undo_all(now, ops, share, context.points)
        best = jax.lax.top_k(children.log_p, self.checked)[1]
        children = jax.tree.map(lambda a: a[best], children)
        library = self.part_of(context.library, state.step)
        loss, entry = compare(children, library, context.points)
        programs, new = write_all(children, library, loss, entry, context.points, self.proposals)
        promise = -self.evidence * jnp.log(jnp.clip(loss, 1e-6, 1.0))
        waiting = memory._replace(log_p=memory.log_p.at[rank].add(-self.revisit))
        return programs, self.keep(waiting, new._replace(promise=promise), context.points.mask)

    def draw(self, model: Model, context: Context, now: States, key: Array) -> tuple[Array, Array]:
        """The most frequent next operations of every state, and the logarithm of their share."""
        points = context.points
        if self.blind:
            u = jax.random.randint(key, (self.states, self.draws), 0, len(context.table))
            tokens, good = first_operation(context.table[u][..., :LONGEST].astype(jnp.int32))
            return most_frequent(tokens, good, self.operations)
        many = Points(
            jnp.broadcast_to(points.x, (self.states, *points.x.shape[1:])),
            now.r,
            jnp.broadcast_to(points.mask, now.r.shape),
        )
        many = many._replace(x=jnp.where(many.mask[:, None], many.x, 0.0))
        items = model.encoder(many)
        z = model.latents(items, self.depth)
        tokens, _ = model.decoder.sample(key, z, items.columns, self.draws, steps=LONGEST)
        tokens, good = first_operation(tokens)
        return most_frequent(tokens, good, self.operations)

    def undo_all(self, now: States, ops: Array, share: Array, points: Points) -> Children:
        """Every operation in every variant."""
        slots, repeats = now.before.tokens.shape[1], VARIANTS
        flat = jnp.repeat(ops.reshape(-1, ops.shape[-1]), repeats, axis=0)
        op = jnp.where(of(("sub", "rsub"), flat[:, 0]), TOKEN["add"], flat[:, 0])
        variant = jnp.arange(len(flat), dtype=jnp.int32) % repeats
        e, exponent = operand(flat, op, variant, slots)
        parent = jax.tree.map(lambda a: jnp.repeat(a, self.operations * repeats, axis=0), now)
        holds = jnp.any(is_constant(e.tokens), axis=1)
        own = jnp.where(holds & (op != TOKEN["add"]), 0, variant)  # the variants are of E
        values = evaluate(e.tokens, e.values, points.x)
        mask = jnp.broadcast_to(points.mask, parent.r.shape)
        first = jax.tree.map(lambda a: a[::repeats], (op, values, parent, mask))
        b = smoothest_offsets(*first, smooth_basis(points)).reshape(-1)
        undone = undo(op, values, parent, mask, own, b, exponent)
        undone = Undone(*(jnp.where(mask, v, 0.0) for v in undone[:6]), undone.coefficient)
        alone = holds & (lengths(e.tokens) == 1)
        idle = (of(("mul", "add", "rdiv", "div"), op) & alone) | (op == TOKEN["neg"])
        log_p = parent.log_p + jnp.repeat(share.reshape(-1), repeats)
        log_p -= jnp.where(variant > 0, self.variant, 0.0)
        good = defined(undone) & ~idle & changes(undone.r, mask)
        repeated = of(("add", "mul", "rdiv"), op) & ~holds & (variant > 0)
        return Children(parent, op, e, undone, jnp.where(good, log_p, -jnp.inf), repeated)

    def part_of(self, library: Library, step: Array) -> Library:
        """The shortest entries, and of the others, those with drawn numbers, some in turn."""
        count = len(library.tokens)
        fixed = min(self.fixed, count)
        drawn = min(self.drawn, count - fixed)
        if not drawn:
            return jax.tree.map(lambda a: a[:fixed], library)
        first = fixed + (step * drawn) % max(count - fixed - drawn, 1)

        def both(a: Array) -> Array:
            return jnp.concatenate([a[:fixed], jax.lax.dynamic_slice_in_dim(a, first, drawn)])

        return Library(*map(both, library))

    def keep(self, old: States, new: States, mask: Array) -> States:
        """The most promising of old and new states; one of those that are equal up to scale and
        offset.
        """
        every = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, new)
        order = jnp.argsort(-(every.log_p + every.promise))
        every = jax.tree.map(lambda a: a[order], every)
        unit = unit_rows(every.r, jnp.broadcast_to(mask, every.r.shape))
        alive = jnp.isfinite(every.log_p)
        same = jnp.tril(jnp.abs(unit @ unit.T) > 1 - 1e-6, -1) & alive[None]
        log_p = jnp.where(jnp.any(same, axis=1), -jnp.inf, every.log_p)
        best = jax.lax.top_k(log_p + every.promise, self.waiting)[1]
        return jax.tree.map(lambda a: a[best], every._replace(log_p=log_p))


def operand(flat: Array, op: Array, variant: Array, slots: int) -> tuple[Programs, Array]:
    """E with numbers of a variant, and the exponent where it is one, else 0."""
    rest = jnp.pad(flat[:, 1:], ((0, 0), (0, slots + 1 - flat.shape[1])))
    tokens = from_spine(rest)[0]
    holds = is_constant(tokens)
    place = variant[:, None] + 3 * jnp.arange(slots, dtype=jnp.int32)[None]
    numbers = jnp.asarray(NUMBERS, jnp.float32)[place % VARIANTS]
    lone = holds[:, 0] & (lengths(tokens) == 1) & (op == TOKEN["rpow"])
    power = jnp.asarray(EXPONENTS, jnp.float32)[variant]
    numbers = numbers.at[:, 0].set(jnp.where(lone, power, numbers[:, 0]))
    e = Programs(
        jnp.where(holds, nearest_constant(numbers), tokens), jnp.where(holds, numbers, 0.0)
    )
    return e, jnp.where(lone, power, 0.0)


def defined(undone: Undone) -> Array:
    """Whether all values are finite and of a reasonable size, (batch,)."""
    inside = [jnp.all(jnp.isfinite(v) & (jnp.abs(v) < 1e8), axis=1) for v in undone[:6]]
    return functools.reduce(jnp.logical_and, inside)


def changes(r: Array, mask: Array) -> Array:
    """Whether a remainder is not nearly constant, (batch,)."""
    rc, mean = centre(r, mask)
    return jnp.sqrt(masked_mean(rc**2, mask))[:, 0] > 1e-4 * jnp.abs(mean[:, 0])


def compare(children: Children, library: Library, points: Points) -> tuple[Array, Array]:
    """The least loss of every remainder over the library, and the entry that has it."""
    step = max(1, points.y.shape[1] // 32)
    undone = children.undone
    few = Undone(*(v[:, ::step] for v in undone[:6]), undone.coefficient)
    outputs = library.outputs[:, ::step]
    outputs = outputs / jnp.maximum(jnp.max(jnp.abs(outputs), axis=1, keepdims=True), 1e-30)
    nats = 5.0 / jnp.sum(points.mask) * lengths(library.tokens).astype(jnp.float32)
    loss, entry = least_fvu(few, outputs, jnp.exp(nats), points.mask[:, ::step])
    return jnp.where(jnp.isfinite(children.log_p), loss, jnp.inf), entry


def write_all(
    children: Children, library: Library, loss: Array, entry: Array, points: Points, most: int
) -> tuple[Programs, States]:
    """The formulas of the `most` best pairs; and the remainders as states."""
    parent, op, undone = children.parent, children.op, children.undone
    slots = library.tokens.shape[1]
    before, after, fits = around(parent, op, children.e, undone.coefficient, slots)
    scale, offset = freedom(parent, op)
    log_p = jnp.where(fits, children.log_p, -jnp.inf)
    new = States(undone.r, undone.moved, before, after, log_p, jnp.zeros_like(log_p), scale, offset)

    size = (lengths(before.tokens) + lengths(after.tokens)).astype(jnp.float32)
    ranked = jnp.where(
        fits & ~children.repeated, loss * jnp.exp(5.0 / jnp.sum(points.mask) * size), jnp.inf
    )
    chosen = jax.lax.top_k(-ranked, most)[1]
    best = jax.tree.map(lambda a: a[chosen], children)
    g = entry[chosen]
    mask = jnp.broadcast_to(points.mask, best.undone.r.shape)
    s, d, c = coefficients(best.undone, library.outputs[g], mask)
    free = best.parent.scale & best.parent.offset
    added = best.op == TOKEN["add"]
    divided = added & best.parent.scale & ~best.parent.offset
    k = jnp.where(added & ~divided, d, 1.0)
    s, c = (jnp.where(divided, v / d, v) for v in (s, c))
    inner = jnp.where(of(("mul", "rdiv"), best.op), d, c)
    head, tail, _ = around(best.parent, best.op, best.e, k, slots)
    spread = jnp.std(library.outputs[g], axis=1)
    lead = affine(s, inner, scale[chosen], offset[chosen] | (added & free), spread)
    short = whole(Programs(library.tokens, library.values), g)
    pieces = (whole(head), *lead, short, whole(tail))
    total = sum(piece.length for piece in pieces)
    good = jnp.isfinite(ranked[chosen]) & (total <= slots)
    return mask_invalid(good, concat_tokens(slots, *pieces)), new
