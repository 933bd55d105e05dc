"""Training problems, drawn on the device: a formula, its points, and a state of its recursion.

What is excluded from training is excluded three times: skeletons from the table, every drawn
formula by its values, and every state (a remainder that is asked for by itself) by its values and
by its signature.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from refinemath import examples as package
from refinemath.corpus.signatures import signature
from refinemath.examples import TERMS, Reject, SkeletonTable, draw_constants, draw_points, rename
from refinemath.execution import additive_terms, centre, evaluate_nodes
from refinemath.expression import OPERATOR_TOKEN, is_variable
from refinemath.network.spine import END, SLOTS, from_spine, states, to_spine


class Examples(NamedTuple):
    """A batch of states: what is left to find, and its points.  Points beyond `mask` are
    padding.
    """

    target: Int[Array, "batch slots"]  # spine order, what is left to find
    x: Float[Array, "batch variables points"]
    y: Float[Array, "batch points"]
    mask: Array  # (batch, points) bool
    weight: Float[Array, " batch"]  # 0 for an example that could not be drawn
    tokens: Int[Array, "batch slots"]  # the whole formula, tokens of the package in prefix order
    values: Float[Array, "batch slots"]  # its constants
    numbers: Float[Array, "batch slots"]  # the constants of the target, in spine order
    start: Int[Array, " batch"]  # the slot of the whole, in spine order, at which the target begins


class Exclusions(NamedTuple):
    """What no example may be: `reject` by values, `words` by signature (first words, sorted)."""

    reject: Reject
    words: Int[Array, " excluded"]


def length_weights(
    table: SkeletonTable, variables: int, most: int = SLOTS
) -> Float[Array, "slots1 variables"]:
    """How often each length is drawn: evenly from 3 to 12 tokens, less and less often beyond."""
    wanted = {2: 0.3, **{n: 1.0 if n <= 12 else 0.9 ** (n - 12) for n in range(3, most + 1)}}
    return package.length_weights(table, wanted, variables)


def _spread(v: Array, mask: Array) -> Array:
    """Standard deviation over the masked points, along the last axis."""
    n = jnp.sum(mask, axis=-1, dtype=jnp.float32)
    return jnp.sqrt(jnp.sum(centre(v, mask)[0] ** 2, -1) / n)


class _Nodes(NamedTuple):
    """Points at which a batch of formulas is defined, and what its parts are there."""

    x: Float[Array, "batch variables points"]
    nodes: Float[Array, "slots batch points"]
    terms: Float[Array, "batch terms points"]
    term: Array  # (batch, terms) bool: the term exists
    slots_of: Int[Array, "batch terms"]
    good: Array  # (batch,) bool


def _defined_points(
    key: Array, tokens: Array, values: Array, variables: int, points: int
) -> _Nodes:
    """Of two ranges, the second one positive, the first in which every term is finite."""
    n, row = len(tokens), jnp.arange(len(tokens))
    both = draw_points(key, 2 * n, variables, points).reshape(2, n, variables, points)
    both = both.at[1].set(jnp.abs(both[1]))
    nodes = evaluate_nodes(tokens, values, jnp.concatenate([*both], axis=-1))
    slots_of, term = additive_terms(tokens, TERMS)
    bases = nodes[slots_of, row[:, None]]
    finite = jnp.isfinite(bases) & (jnp.abs(bases) < 1e5) | ~term[..., None]
    first, second = (jnp.all(f, axis=(1, 2)) for f in jnp.split(finite, 2, axis=-1))
    x = jnp.where(first[:, None, None], *both)
    nodes = jnp.where(first[None, :, None], *jnp.split(nodes, 2, axis=-1))
    good = first | second
    counts = term[..., None] & good[:, None, None]
    terms = jnp.where(counts, nodes[slots_of, row[:, None]], 0.0)
    return _Nodes(x, nodes, terms, term, slots_of, good)


class Asked(NamedTuple):
    """What is asked for: the whole formula, a tail of its sum, or a node of its last term."""

    target: Int[Array, "batch slots"]  # spine order
    numbers: Float[Array, "batch slots"]
    start: Int[Array, " batch"]
    left: Array  # (batch, terms) bool: the terms of a tail
    inside: Array  # (batch,) bool: a node of a term
    node: Int[Array, " batch"]  # its slot in prefix order


def _draw_state(key: Array, tokens: Array, values: Array, share: float, found: _Nodes) -> Asked:
    """The whole, or with probability `share` any state of the recursion."""
    n, slots = tokens.shape
    k = jax.random.split(key)
    whole, place = to_spine(tokens)
    choice = jax.random.categorical(k[0], jnp.where(states(whole), 0.0, -jnp.inf), axis=-1)
    start = jnp.where(jax.random.bernoulli(k[1], share, (n,)), choice, 0).astype(jnp.int32)
    left = found.term & (jnp.take_along_axis(place, found.slots_of, axis=1) >= start[:, None])
    numbers = jnp.zeros_like(values).at[jnp.arange(n)[:, None], place].set(values)
    places = jnp.arange(slots)[None] + start[:, None]
    beyond, places = places >= slots, jnp.minimum(places, slots - 1)
    target = jnp.where(beyond, END, jnp.take_along_axis(whole, places, axis=1))
    numbers = jnp.where(beyond, 0.0, jnp.take_along_axis(numbers, places, axis=1))
    node = jnp.argmax(place == start[:, None], axis=1).astype(jnp.int32)
    return Asked(target, numbers, start, left, ~jnp.any(left, axis=1), node)


def is_excluded(
    exclusions: Exclusions, s: Asked, coefficient: Float[Array, "batch terms"], variables: int
) -> Array:
    """Whether what a state asks for, with skeletons' variables, is an excluded function, (batch,).

    A node of a term has no coefficients: below a `neg` it is one term (signs do not matter there).
    """
    tokens, values = from_spine(s.target, s.numbers)
    known = jnp.isin(signature(tokens, variables=variables)[:, 0], exclusions.words)
    inside = s.inside[:, None]
    lone = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=OPERATOR_TOKEN["neg"])
    tokens = jnp.where(inside, lone, jnp.pad(tokens, ((0, 0), (0, 1))))
    values = jnp.where(inside, jnp.pad(values, ((0, 0), (1, 0))), jnp.pad(values, ((0, 0), (0, 1))))
    order = jnp.argsort(~s.left, axis=1, stable=True)
    own = jnp.where(inside, 1.0, jnp.take_along_axis(coefficient, order, axis=1))
    return known | exclusions.reject(tokens, values, own)


def draw_examples(
    key: Array,
    table: SkeletonTable,
    batch: int,
    *,
    points: int = 64,
    variables: int = 1,
    weights: Float[Array, "slots1 variables"],
    exclusions: Exclusions | None = None,
    state_share: float = 0.0,
    noisy: float = 0.3,
) -> Examples:
    """`batch` problems for one training step; a share `state_share` are later states of the
    recursion.

    More are drawn than needed and valid ones kept: finite everywhere, every term matters, not
    nearly constant or linear, and neither the formula nor what is asked for is excluded.
    """
    k = jax.random.split(key, 10)
    n = batch + batch // 2
    skeletons = package.draw_skeletons(k[0], table, weights, n)
    values = draw_constants(k[1], skeletons)
    columns = jnp.argsort(jax.random.uniform(k[2], (n, variables)), axis=1).astype(jnp.int32)
    tokens = rename(skeletons, columns)
    found = _defined_points(k[3], tokens, values, variables, points)
    mask = jnp.arange(points)[None] < jax.random.randint(k[4], (n, 1), 16, points + 1)

    deviation = _spread(found.terms, mask[:, None])
    coefficient = _coefficients(k[5], deviation)
    size = jnp.abs(coefficient) * deviation
    good = found.good & jnp.all((size > 1e-6) | ~found.term, axis=1)
    s = _draw_state(k[6], skeletons, values, state_share, found)
    tail = jnp.sum(jnp.where(s.left, coefficient, 0.0)[..., None] * found.terms, axis=1)
    y = jnp.where(s.inside[:, None], found.nodes[s.node, jnp.arange(n)], tail)
    good &= jnp.all(jnp.isfinite(y) & (jnp.abs(y) < 1e6), axis=1)
    spread = _spread(y, mask)
    largest = jnp.max(jnp.abs(jnp.where(mask, y, 0.0)), axis=1)
    good &= (spread > 1e-3 * largest) & (spread > 1e-6)
    good &= s.inside | jnp.all((size > 3e-3 * spread[:, None]) | ~s.left, axis=1)
    good &= ~(_one_variable(s.target) & _nearly_linear(found.x, y, mask))
    if exclusions is not None:
        good &= ~exclusions.reject(skeletons, values, coefficient)
        good &= ~is_excluded(exclusions, s, coefficient, variables)

    y = _observed(k[7], jnp.where(good[:, None], y, 0.0), spread, s.inside, noisy)
    x = found.x
    if variables > 1:  # most columns that the formula does not use are absent
        unused = ~jnp.any(tokens[..., None] == 1 + jnp.arange(variables), axis=1)
        absent = unused & jax.random.bernoulli(k[8], 0.7, unused.shape)
        x = jnp.where(absent[..., None], 0.0, x)
    x = jnp.where(mask[:, None], x, 0.0)
    y = jnp.where(mask & good[:, None], y, 0.0)
    keep = jnp.argsort(~good, stable=True)[:batch]
    weight = good.astype(jnp.float32)
    target = rename(s.target, columns)
    drawn = Examples(target, x, y, mask, weight, tokens, values, s.numbers, s.start)
    return Examples(*(a[keep] for a in drawn))


def _observed(key: Array, y: Array, size: Array, inside: Array, noisy: float) -> Array:
    """y with an offset in half of the rows, noise of 0.1 to 10 % in a share `noisy`, and where it
    is a node, a factor.
    """
    k = jax.random.split(key, 3)
    u = jax.random.uniform(k[0], (3, len(y), 1))
    scale = jnp.where(inside[:, None], jnp.exp(2.0 * u[0] - 1.0), 1.0)
    size = size[:, None]
    offset = jnp.where(u[1] < 0.5, 0.0, jax.random.normal(k[1], size.shape) * 2 * size)
    level = 1e-3 * 100.0 ** (u[2] / max(noisy, 1e-9))
    noise = jnp.where(u[2] < noisy, level, 0.0) * size * jax.random.normal(k[2], y.shape)
    return scale * (y + offset + noise)


def _coefficients(key: Array, deviation: Float[Array, "batch terms"]) -> Array:
    """Factors of the terms: ones and others in [0.2, 5], or such that all terms are of similar
    size.
    """
    k = jax.random.split(key, 4)
    shape = deviation.shape
    sign = jnp.where(jax.random.bernoulli(k[0], 0.3, shape), -1.0, 1.0)
    u = jax.random.uniform(k[1], shape)
    plain = jax.random.bernoulli(k[2], 0.5, (shape[0], 1))
    natural = jnp.where(plain, 1.0, jnp.exp((2 * u - 1) * jnp.log(5.0)))
    balanced = jnp.exp((u - 1) * jnp.log(10.0)) / jnp.maximum(deviation, 1e-6)
    return sign * jnp.where(jax.random.bernoulli(k[3], 0.4, (shape[0], 1)), balanced, natural)


def _one_variable(tokens: Int[Array, "batch slots"]) -> Array:
    """Whether only one variable occurs, (batch,) bool."""
    highest = jnp.max(jnp.where(is_variable(tokens), tokens, 0), axis=1, keepdims=True)
    return jnp.all(~is_variable(tokens) | (tokens == highest), axis=1)


def _nearly_linear(x: Float[Array, "batch variables points"], y: Array, mask: Array) -> Array:
    """True where a line in any column explains all but a thousandth of the variance of y."""
    xc, yc = centre(x, mask[:, None])[0], centre(y, mask)[0]
    both = jnp.sum(xc * yc[:, None], -1) ** 2 / jnp.maximum(jnp.sum(xc**2, -1), 1e-12)
    explained = jnp.max(both, axis=1) / jnp.maximum(jnp.sum(yc**2, -1), 1e-12)
    return 1.0 - explained <= 1e-3
