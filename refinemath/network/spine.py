"""The language as the network writes it: spine order, one token for every number, columns as
pointers.

Spine order is prefix order with the shorter operand first.  What follows an operator and its short
operand is then
exactly the remainder of the formula: the whole formula, the next operation, and the recursion over
what remains are
one row of tokens, read to different lengths.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath import expression
from refinemath.execution import structure_by_arity

SLOTS = 24
COLUMNS = 10  # variables that the vocabulary can name
# in the order of their tokens; of those that the package does not have yet, none is written
OPERATORS = (
    *("add", "sub", "mul", "div", "pow", "neg", "inv", "square", "cube", "pow4", "pow5", "sqrt"),
    *("exp", "log", "sin", "cos", "tanh", "asin", "acos", "atan", "abs", "floor", "min", "max"),
)
_ARITY = {op.name: op.arity for op in expression.OPERATORS}
_KNOWN = (*_ARITY, *(f"r{name}" for name in ("sub", "div", "pow")))
REVERSED = ("sub", "div", "pow")  # written with the second operand first where that one is shorter
VOCABULARY = (
    "END",
    *(f"x{i + 1}" for i in range(COLUMNS)),
    "c",
    *OPERATORS,
    *(f"r{name}" for name in REVERSED),
)
END, NUMBER, FIRST_OPERATOR = 0, 1 + COLUMNS, 2 + COLUMNS
TOKEN = {name: i for i, name in enumerate(VOCABULARY)}
FIRST_REVERSED = TOKEN["rsub"]
ARITY = np.array(
    [0] * FIRST_OPERATOR + [_ARITY.get(name, 1) for name in OPERATORS] + [2] * len(REVERSED),
    np.int32,
)
WRITTEN = np.array([i < FIRST_OPERATOR or name in _KNOWN for i, name in enumerate(VOCABULARY)])
_FROM_BASE = np.array(
    [TOKEN.get(name, NUMBER) for name in expression.VOCABULARY], np.int32
)  # every number is one token
TO_BASE = np.array(
    [
        expression.VOCABULARY.index(name) if name in expression.VOCABULARY else 0
        for name in (v[1:] if v[1:] in REVERSED else "1" if v == "c" else v for v in VOCABULARY)
    ],
    np.int32,
)
_REVERSE = np.arange(len(VOCABULARY), dtype=np.int32)
for _name in REVERSED:
    _REVERSE[TOKEN[_name]] = TOKEN[f"r{_name}"]


def structure(tokens: Int[Array, "batch slots"]) -> tuple[Array, Array]:
    """Sizes of all subtrees and the slot of each second operand, each (batch, slots)."""
    return structure_by_arity(jnp.asarray(ARITY)[tokens])


def _exchange(
    tokens: Int[Array, "batch slots"], size: Array, second: Array, swap: Array
) -> Int[Array, "batch slots"]:
    """Where each slot goes if the nodes marked by `swap` write their second operand first."""
    batch, slots = tokens.shape
    row = jnp.arange(batch, dtype=jnp.int32)
    arity = jnp.asarray(ARITY)[tokens]
    sizes = jnp.concatenate([size, jnp.zeros((batch, 1), size.dtype)], axis=1)

    def step(place: Array, i: Array) -> tuple[Array, None]:
        here, one, two = place[row, i], i + 1, second[:, i]
        first = here + 1 + jnp.where(swap[:, i], sizes[row, two], 0)
        other = here + 1 + jnp.where(swap[:, i], 0, sizes[row, one])
        place = place.at[row, one].set(jnp.where(arity[:, i] > 0, first, place[row, one]))
        return place.at[row, two].set(jnp.where(arity[:, i] > 1, other, place[row, two])), None

    place = jnp.broadcast_to(jnp.arange(slots + 1, dtype=jnp.int32), (batch, slots + 1))
    return jax.lax.scan(step, place, jnp.arange(slots, dtype=jnp.int32))[0][:, :slots]


def to_spine(tokens: Int[Array, "batch slots"]) -> tuple[Array, Array]:
    """Tokens of the package in prefix order to the network's spine order; and where each went.

    Sums and products whose shorter operand stood second come back from it with their operands
    exchanged.
    """
    row = jnp.arange(len(tokens))[:, None]
    own = jnp.asarray(_FROM_BASE)[tokens]
    size, second = structure(own)
    sizes = jnp.concatenate([size, jnp.zeros((len(tokens), 1), size.dtype)], axis=1)
    longer = sizes[:, 1:] > sizes[row, second]
    swap = longer & (jnp.asarray(ARITY)[own] == 2)
    place = _exchange(own, size, second, swap)
    written = jnp.where(swap, jnp.asarray(_REVERSE)[own], own)
    return jnp.zeros_like(own).at[row, place].set(written), place


def from_spine(
    tokens: Int[Array, "batch slots"], numbers: Float[Array, "batch slots"] | None = None
) -> tuple[Int[Array, "batch slots"], Float[Array, "batch slots"]]:
    """The inverse of `to_spine`: tokens of the package, every number the constant 1, and the
    numbers in their new places."""
    numbers = jnp.zeros(tokens.shape, jnp.float32) if numbers is None else numbers
    row = jnp.arange(len(tokens))[:, None]
    size, second = structure(tokens)
    place = _exchange(tokens, size, second, tokens >= FIRST_REVERSED)
    out = jnp.zeros_like(tokens).at[row, place].set(jnp.asarray(TO_BASE)[tokens])
    return out, jnp.zeros_like(numbers).at[row, place].set(numbers)


def states(tokens: Int[Array, "batch slots"]) -> Array:
    """Which slots begin a state of the recursion, (batch, slots) bool: slot 0 and every remainder.

    A remainder loses what scale and offset say: a leading sign, `mul c` or `add c`; it has two
    tokens or more.
    """
    batch, slots = tokens.shape
    size, second = structure(tokens)
    padded = jnp.concatenate([tokens, jnp.zeros((batch, 2), tokens.dtype)], axis=1)
    arity = jnp.asarray(ARITY)[tokens]
    affine = (tokens == TOKEN["add"]) | (tokens == TOKEN["mul"])
    idle = (tokens == TOKEN["neg"]) | (affine & (padded[:, 1:-1] == NUMBER))
    row = jnp.arange(batch, dtype=jnp.int32)

    def step(on_spine: Array, i: Array) -> tuple[Array, None]:
        after = jnp.where(arity[:, i] > 1, second[:, i], jnp.where(arity[:, i] > 0, i + 1, slots))
        return on_spine.at[row, after].max(on_spine[row, i]), None

    on_spine = jnp.zeros((batch, slots + 1), bool).at[:, 0].set(True)
    on_spine = jax.lax.scan(step, on_spine, jnp.arange(slots, dtype=jnp.int32))[0][:, :slots]
    start = on_spine & ~idle & (size >= 2)
    return start.at[:, 0].set(True)


def allowed(open_: Int[Array, "*batch"], left: Int[Array, " places"]) -> Array:
    """Which tokens may stand next, (*batch, vocabulary), with `open_` operands missing and `left`
    slots after this one."""
    arity = jnp.asarray(ARITY)
    fits = (open_[..., None] + arity - 1 <= left[:, None]) & jnp.asarray(WRITTEN)
    is_end = jnp.arange(len(VOCABULARY)) == END
    return jnp.where((open_ == 0)[..., None], is_end, fits & ~is_end)


def open_counts(tokens: Int[Array, "batch slots"]) -> Int[Array, "batch slots"]:
    """How many operands are missing before each token: 1 at the start, 0 after the end."""
    change = jnp.cumsum(jnp.asarray(ARITY)[tokens] - 1, axis=1)
    return jnp.maximum(1 + jnp.pad(change[:, :-1], ((0, 0), (1, 0))), 0)
