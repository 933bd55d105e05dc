"""Endless training data: random canonical formulas without duplicates, and points drawn inside the
training step.  (Chapter 2)

Two stages.  `make_bank` draws formulas blindly, keeps the canonical ones, and removes duplicates
and held-out formulas by a numeric signature.  `draw_examples` then runs inside the jitted step: it
picks formulas with even lengths and draws constants, coefficients, a range, points and noise.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from refinemath.language import (
    CONSTANT_BINS,
    END,
    FIRST_CONSTANT,
    MAX_VARIABLES,
    OPERATOR_TOKEN,
    SLOTS,
    VOCABULARY_SIZE,
    additive_terms,
    evaluate_nodes,
    is_constant,
    nearest_constant,
    structure,
)

CONSTANT = FIRST_CONSTANT + CONSTANT_BINS.index(1)  # stands for "some constant" in a skeleton
TERMS = 4  # additive terms that get a free coefficient
_UNARY_WEIGHT = {
    "neg": 0.4,
    "inv": 0.7,
    "square": 1.0,
    "cube": 0.7,
    "pow4": 0.4,
    "pow5": 0.4,
    "sqrt": 0.8,
    "exp": 1.0,
    "log": 1.0,
    "sin": 1.0,
    "cos": 1.0,
    "tanh": 0.4,
}
_BINARY_WEIGHT = {"add": 2.5, "sub": 0.4, "mul": 2.5, "div": 1.0, "pow": 0.2}


def _forbidden() -> np.ndarray:
    """Pairs (parent, child) that a canonical formula never has, because a shorter or a preferred
    form says the same.
    """
    forbidden = np.zeros((VOCABULARY_SIZE, VOCABULARY_SIZE), bool)
    t = OPERATOR_TOKEN
    powers = [t[n] for n in ("square", "cube", "pow4", "pow5", "sqrt", "inv", "pow")]
    for name in _UNARY_WEIGHT:
        forbidden[t[name], CONSTANT] = True  # a function of a constant is a constant
        forbidden[t[name], t[name]] = True
    for a, b in (
        ("exp", "log"),
        ("log", "exp"),
        ("square", "sqrt"),
        ("sqrt", "square"),
        ("square", "neg"),
        ("pow4", "neg"),
        ("cos", "neg"),
        ("cube", "neg"),
        ("pow5", "neg"),
        ("inv", "neg"),
        ("sin", "neg"),
        ("tanh", "neg"),
        ("neg", "sub"),
        ("inv", "div"),
        ("sqrt", "pow4"),
        ("square", "pow4"),
        ("cube", "square"),
        ("pow4", "square"),
        ("pow5", "square"),
        ("pow4", "cube"),
        ("pow5", "cube"),
        ("square", "pow5"),
        ("cube", "pow4"),
        ("cube", "pow5"),
        ("pow4", "pow5"),
        ("pow5", "pow4"),
        ("pow4", "sqrt"),
        ("add", "neg"),
        ("sub", "neg"),
        ("mul", "neg"),
        ("div", "neg"),
        ("mul", "inv"),
        ("div", "inv"),
        ("mul", "div"),
        ("div", "div"),
        ("add", "sub"),
        ("sub", "sub"),
        ("sub", "add"),
        ("sqrt", "neg"),
        ("log", "neg"),
    ):
        forbidden[t[a], t[b]] = True
    for p in powers:
        for q in ("inv", "exp", "pow"):
            forbidden[p, t[q]] = True  # (1/f)^2 = 1/f^2, exp(f)^2 = exp(2 f)
    for p in powers[:-1]:
        forbidden[t["log"], p] = True  # log f^2 = 2 log f
        forbidden[t["pow"], p] = True
    forbidden[t["log"], t["pow"]] = True
    return forbidden


_FORBIDDEN = _forbidden()


@jax.jit
def is_canonical(tokens: Int[Array, "batch slots"]) -> tuple[Array, Array]:
    """Whether each skeleton is canonical as a part of a formula, and as a whole formula.  Chapter
    2.

    A part has no removable constant, no inverse pair, no sin inside sin, and ordered sums and
    products.  A whole formula in addition has at most `TERMS` additive terms and no factor, sign or
    constant that the free coefficients already say.
    """
    batch, slots = tokens.shape
    size, second = structure(tokens)
    row = jnp.arange(batch)[:, None]
    padded = jnp.concatenate([tokens, jnp.zeros((batch, 1), tokens.dtype)], axis=1)
    t = OPERATOR_TOKEN
    used = tokens != END
    arity = jnp.where(tokens < t["add"], 0, jnp.where(tokens <= t["pow"], 2, 1))
    first_child = padded[:, 1:]
    second_child = padded[row, second]
    bad = jnp.asarray(_FORBIDDEN)
    wrong = used & (arity > 0) & bad[tokens, first_child]
    reciprocal = (
        (tokens == t["mul"]) & (first_child == CONSTANT) & (second_child == t["inv"])
    )  # c (1/f) is how c/f is written
    wrong |= used & (arity == 2) & bad[tokens, second_child] & ~reciprocal

    # a hash of every subtree, to compare siblings
    weights = jnp.asarray(
        np.random.default_rng(0).integers(1, 2**20, (VOCABULARY_SIZE,)) * 2 + 1, jnp.uint32
    )

    def step(h: Array, i: Array) -> tuple[Array, None]:
        a, b = h[:, i + 1], h[jnp.arange(batch), second[:, i]]
        first_part = jnp.where(arity[:, i] > 0, a * jnp.uint32(2654435761), 0)
        second_part = jnp.where(arity[:, i] > 1, (b ^ (b >> 7)) * jnp.uint32(40503), 0)
        mix = weights[tokens[:, i]] + first_part + second_part
        mix = (mix ^ (mix >> 15)) * jnp.uint32(2246822519)
        return h.at[:, i].set(mix ^ (mix >> 13)), None

    h, _ = jax.lax.scan(
        step, jnp.zeros((batch, slots + 1), jnp.uint32), jnp.arange(slots), reverse=True
    )
    sizes = jnp.concatenate([size, jnp.zeros((batch, 1), size.dtype)], axis=1)
    key_of = sizes.astype(jnp.uint32) * jnp.uint32(1 << 25) + (h >> 7)
    key_of = jnp.where(padded == CONSTANT, 0, key_of)  # a constant stands first
    first_key, second_key = key_of[:, 1:], key_of[row, second]
    binary = used & (arity == 2)
    wrong |= binary & (first_key == second_key)  # f + f, f f, f - f, f / f
    for name in ("add", "mul"):
        here = used & (tokens == t[name])
        wrong |= here & (first_child == t[name])  # sums and products lean to the right
        next_in_chain = jnp.where(
            second_child == t[name],
            jnp.take_along_axis(key_of, jnp.minimum(second + 1, slots), 1),
            second_key,
        )
        wrong |= here & (first_key >= next_in_chain)  # ordered from small to large, none twice
    const_first, const_second = first_child == CONSTANT, second_child == CONSTANT
    wrong |= binary & const_first & const_second
    for name, side in (
        ("sub", const_second),
        ("div", const_second),
        ("div", const_first),
        ("sub", const_first),
        ("pow", const_first),
    ):
        wrong |= (tokens == t[name]) & side  # x - c is x + c; c / f is c inv f
    wrong |= (tokens == t["pow"]) & (second_child >= t["add"])  # exponents are leaves
    scaled = (tokens == t["mul"]) & const_first
    shifted = (tokens == t["add"]) & const_first
    follows_scale = jnp.concatenate([scaled[:, 1:], jnp.zeros((batch, 1), bool)], axis=1)
    follows_shift = jnp.concatenate([shifted[:, 1:], jnp.zeros((batch, 1), bool)], axis=1)
    second_scaled = jnp.concatenate([scaled, jnp.zeros((batch, 1), bool)], axis=1)[row, second]
    homogeneous = jnp.zeros_like(used)
    for name in (
        "neg",
        "inv",
        "square",
        "cube",
        "pow4",
        "pow5",
        "sqrt",
        "log",
        "pow",
        "mul",
        "div",
    ):
        homogeneous |= tokens == t[name]
    wrong |= (
        used & homogeneous & (follows_scale | ((arity == 2) & second_scaled))
    )  # the factor moves out
    wrong |= (
        scaled & jnp.concatenate([shifted, jnp.zeros((batch, 1), bool)], axis=1)[row, second]
    )  # c (c + f) is c + c f
    wrong |= (tokens == t["exp"]) & follows_shift
    wrong |= (tokens == t["neg"]) & follows_shift
    wrong |= (
        shifted
        & (second_child == t["add"])
        & (padded[row, jnp.minimum(second + 1, slots)] == CONSTANT)
    )

    local = ~jnp.any(wrong, axis=1) & ~_nested(tokens, second, arity)

    # what the free coefficients a_k and b already say: no constant factor, sign or constant term at
    # the top
    slots_of, term = additive_terms(tokens, slots)
    root = jnp.take_along_axis(tokens, slots_of, axis=1)
    after_root = jnp.take_along_axis(padded, slots_of + 1, axis=1)
    wrong_term = term & (
        (root == CONSTANT) | (root == t["neg"]) | ((root == t["mul"]) & (after_root == CONSTANT))
    )
    too_many = jnp.sum(term, axis=1) > TERMS
    # a subtraction at the top is an addition with a negative coefficient
    top_sub = jnp.any(term[:, :1] & (tokens[:, :1] == t["sub"]), axis=1)

    has_variable = jnp.any((tokens >= 1) & (tokens <= MAX_VARIABLES), axis=1)
    return local, local & ~jnp.any(wrong_term, axis=1) & ~too_many & ~top_sub & has_variable


def _nested(tokens: Array, second: Array, arity: Array) -> Array:
    """True where trigonometric functions nest, or more than two of exp and log."""
    batch, slots = tokens.shape
    row = jnp.arange(batch)
    t = OPERATOR_TOKEN
    trig = (tokens == t["sin"]) | (tokens == t["cos"]) | (tokens == t["tanh"])
    exp = (tokens == t["exp"]) | (tokens == t["log"])

    def step(inside: Array, i: Array) -> tuple[Array, None]:
        a, b = inside[:, i + 1], inside[row, second[:, i]]
        below = jnp.where(arity[:, i, None] > 0, a, 0) + jnp.where(arity[:, i, None] > 1, b, 0)
        nested = jnp.stack([trig[:, i] & (below[:, 0] > 0), exp[:, i] & (below[:, 1] > 1)], -1)
        here = jnp.stack([trig[:, i], exp[:, i]], -1).astype(jnp.int32)
        return inside.at[:, i].set(jnp.where(nested, 100, below + here)), None

    inside, _ = jax.lax.scan(
        step, jnp.zeros((batch, slots + 1, 2), jnp.int32), jnp.arange(slots), reverse=True
    )
    return jnp.any(inside[:, 0] >= 100, axis=-1)


# signatures: which formulas are the same function


_PROBES = np.concatenate([np.geomspace(0.13, 4.1, 8), -np.geomspace(0.17, 3.3, 8)])
PROBE_CONSTANTS = (1.3717, 2.2311, 0.7193, 1.7917, 0.4339, 2.7119)


def probe_values(tokens: Array) -> Array:
    """Values for the signature: the k-th constant of a skeleton gets the k-th fixed
    irrational-looking number.
    """
    order = jnp.cumsum(is_constant(tokens), axis=1) - 1
    numbers = jnp.asarray(PROBE_CONSTANTS, jnp.float32)[
        jnp.clip(order, 0, len(PROBE_CONSTANTS) - 1)
    ]
    return jnp.where(is_constant(tokens), numbers, 0.0)


@jax.jit
def signature(
    tokens: Int[Array, "batch slots"], values: Float[Array, "batch slots"] | None = None
) -> Int[Array, "batch 2"]:
    """Two 32-bit words a formula, equal for formulas that are the same function up to free
    coefficients (to 4 digits on 16 points).

    Each additive term is scaled to unit size and sign, rounded and hashed; the sum of the hashes
    does not depend on the terms' order.
    """
    batch = tokens.shape[0]
    values = probe_values(tokens) if values is None else values
    x = jnp.stack(
        [
            jnp.asarray(np.roll(_PROBES, 3 * v) * (1 + 0.1 * v), jnp.float32)
            for v in range(MAX_VARIABLES)
        ]
    )[None]
    nodes = evaluate_nodes(tokens, values, x)
    slots_of, term = additive_terms(tokens, 6)
    basis = nodes[slots_of, jnp.arange(batch)[:, None]]  # (batch, terms, probes)
    finite = jnp.isfinite(basis) & (jnp.abs(basis) < 1e6)
    clean = jnp.where(finite, basis, 0.0)
    count = jnp.maximum(jnp.sum(finite, -1, keepdims=True), 1).astype(clean.dtype)
    centred = jnp.where(finite, clean - jnp.sum(clean, -1, keepdims=True) / count, 0.0)
    scale = jnp.sqrt(jnp.sum(centred**2, -1, keepdims=True)) + 1e-9
    unit = centred / scale
    pivot = jnp.take_along_axis(unit, jnp.argmax(jnp.abs(unit) > 0.2, axis=-1)[..., None], axis=-1)
    unit = unit * jnp.where(pivot < 0, -1.0, 1.0)
    digits = jnp.where(finite, jnp.round(unit * 2000).astype(jnp.int32), 7919).astype(jnp.uint32)
    words = []
    for salt in (1, 2):
        weights = jnp.asarray(
            np.random.default_rng(salt).integers(1, 2**31, len(_PROBES)) * 2 + 1, jnp.uint32
        )
        h = jnp.sum(digits * weights[None, None], axis=-1, dtype=jnp.uint32)
        h = (h ^ (h >> 15)) * jnp.uint32(2246822519)
        h = (h ^ (h >> 13)) * jnp.uint32(3266489917)
        words.append(jnp.sum(jnp.where(term, h ^ (h >> 16), 0), axis=-1, dtype=jnp.uint32))
    return jnp.stack(words, axis=-1).astype(jnp.int32)


def _as_words(signatures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(signatures.astype(np.int32)).view(np.int64).ravel()


class Bank(NamedTuple):
    """Distinct skeletons sorted by length; `start[n]` is where those of n tokens begin."""

    tokens: Int[Array, "formulas slots"]  # uint8
    start: Int[Array, " slots2"]


def _grow(
    rng: np.random.Generator, parts: list[np.ndarray], length: int, count: int, slots: int
) -> np.ndarray:
    """`count` random trees of `length` tokens whose subtrees come from the shorter `parts`."""
    unary, binary = list(_UNARY_WEIGHT), list(_BINARY_WEIGHT)
    out = np.zeros((count, slots), np.int32)
    is_unary = rng.random(count) < (0.3 if length > 2 else 1.0)
    names = rng.choice(
        [OPERATOR_TOKEN[n] for n in unary],
        count,
        p=np.array(list(_UNARY_WEIGHT.values())) / sum(_UNARY_WEIGHT.values()),
    )
    names2 = rng.choice(
        [OPERATOR_TOKEN[n] for n in binary],
        count,
        p=np.array(list(_BINARY_WEIGHT.values())) / sum(_BINARY_WEIGHT.values()),
    )
    out[:, 0] = np.where(is_unary, names, names2)
    rows = np.flatnonzero(is_unary)
    if len(rows) and len(parts[length - 1]):
        out[rows, 1:length] = parts[length - 1][
            rng.integers(len(parts[length - 1]), size=len(rows)), : length - 1
        ]
    left = rng.integers(1, max(length - 1, 2), count)
    left = np.where(rng.random(count) < 0.3, 1, left)
    for n in range(1, length - 1):
        rows = np.flatnonzero(~is_unary & (left == n))
        m = length - 1 - n
        if len(rows) and len(parts[n]) and len(parts[m]):
            out[rows, 1 : 1 + n] = parts[n][rng.integers(len(parts[n]), size=len(rows)), :n]
            out[rows, 1 + n : length] = parts[m][rng.integers(len(parts[m]), size=len(rows)), :m]
    complete = np.all(out[:, :length] != END, axis=1)
    high = np.isin(out[:, 0], [OPERATOR_TOKEN[n] for n in ("cube", "pow4", "pow5")])
    return out[
        complete & ~(high & (rng.random(count) > 1.0 / (length - 1) ** 2))
    ]  # high powers are mostly of short things


def make_bank(
    per_length: int,
    *,
    seed: int = 0,
    variables: int = 1,
    slots: int = SLOTS,
    excluded: np.ndarray | None = None,
    chunk: int = 16384,
    patience: int = 8,
) -> Bank:
    """Up to `per_length` distinct canonical skeletons of every length, without those whose
    signature is in `excluded`.

    Formulas are grown from shorter ones.  Of those with the same signature the first, hence
    shortest, is kept.  A length with fewer formulas ends after `patience` rounds that bring next to
    nothing new.  Deterministic in `seed`.  Chapter 2.
    """
    rng = np.random.default_rng(seed)
    leaves = np.zeros((variables + 1, slots), np.int32)
    leaves[:, 0] = [*range(1, variables + 1), CONSTANT]
    parts: list[np.ndarray] = [np.zeros((0, slots), np.int32)]
    seen = set() if excluded is None else set(_as_words(excluded).tolist())
    rows = []
    for length in range(1, slots + 1):
        pool, found = np.zeros((0, slots), np.int32), np.zeros((0, slots), np.uint8)
        stale = 0
        while len(found) < per_length and stale < patience:
            drawn = _grow(rng, parts, length, chunk, slots) if length > 1 else leaves
            drawn = np.concatenate(
                [drawn, np.zeros((chunk - len(drawn), slots), np.int32)]
            )  # one shape, one compilation
            part, whole = map(np.asarray, is_canonical(jnp.asarray(drawn)))
            part, whole = part & (drawn[:, 0] != END), whole & (drawn[:, 0] != END)
            if variables > 1:  # a whole formula uses x2 only where it uses x1
                present = [np.any(drawn == 1 + v, axis=1) for v in range(variables)]
                for lower, higher in itertools.pairwise(present):
                    whole &= lower | ~higher
            if len(pool) < 100_000:
                pool = np.concatenate([pool, drawn[part]])
            words = _as_words(np.asarray(signature(jnp.asarray(drawn))))[whole]
            fresh = []
            for i, word in enumerate(words.tolist()):
                if word not in seen:
                    seen.add(word)
                    fresh.append(i)
            found = np.concatenate([found, drawn[whole][fresh].astype(np.uint8)])
            stale = 0 if len(fresh) > chunk // 1000 else stale + 1
        parts.append(pool if length > 1 else leaves)
        rows.append(found[:per_length])
    start = np.cumsum([0, 0, *map(len, rows)])
    return Bank(jnp.asarray(np.concatenate(rows)), jnp.asarray(start, jnp.int32))


# examples, drawn inside the training step


class Examples(NamedTuple):
    """A batch of problems.  Points beyond `mask` are padding."""

    tokens: Int[Array, "batch slots"]  # the truth; its constants are bins
    values: Float[Array, "batch slots"]  # the true constants
    x: Float[Array, "batch variables points"]
    y: Float[Array, "batch points"]
    mask: Array  # (batch, points) bool
    weight: Float[Array, " batch"]  # 0 for an example that could not be drawn
    coefficient: Float[Array, "batch terms"]  # y = offset + sum_k coefficient_k term_k + noise
    offset: Float[Array, " batch"]


def draw_constants(key: Array, tokens: Int[Array, "batch slots"]) -> Float[Array, "batch slots"]:
    """Half small integers, half log-uniform in [0.1, 10]; a quarter negative; exponents in [-3, 3]."""
    k = jax.random.split(key, 5)
    shape = tokens.shape
    size = jnp.where(
        jax.random.bernoulli(k[0], 0.5, shape),
        jnp.asarray([1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 0.5])[
            jax.random.randint(k[1], shape, 0, 9)
        ],
        jnp.exp(jax.random.uniform(k[2], shape, minval=np.log(0.1), maxval=np.log(10.0))),
    )
    value = jnp.where(jax.random.bernoulli(k[3], 0.25, shape), -size, size)
    power = jnp.round(jax.random.uniform(k[4], shape, minval=-3.0, maxval=3.0) * 4) / 4 + 0.0
    _, second = structure(tokens)
    row = jnp.arange(shape[0])[:, None]
    exponent = (
        jnp.zeros((shape[0], shape[1] + 1), bool)
        .at[row, second]
        .max(tokens == OPERATOR_TOKEN["pow"])[:, : shape[1]]
    )
    power = jnp.where(jnp.abs(power) < 0.2, 1.5, power)
    value = jnp.where(
        exponent,
        jnp.where(jax.random.bernoulli(k[0], 0.5, shape), power, jnp.clip(value, -3, 3)),
        value,
    )
    return jnp.where(is_constant(tokens), value, 0.0)


def draw_points(
    key: Array, batch: int, variables: int, points: int
) -> Float[Array, "batch variables points"]:
    """Ranges [-a, a], [0.001 or 0.05, a], [a/5, a/5 + b] or [-b, a] with a, b log-uniform in [0.7,
    12]; uniform, even or logarithmic spacing.
    """
    k = jax.random.split(key, 6)
    shape = (batch, variables, 1)
    a, b = jnp.exp(jax.random.uniform(k[0], (2, *shape), minval=np.log(0.7), maxval=np.log(12.0)))
    kind = jax.random.randint(k[1], shape, 0, 5)
    low = jnp.select(
        [kind == 0, kind == 1, kind == 2],
        [-a, jnp.full(shape, 1e-3), a * 0.2],
        jnp.where(kind == 3, -b, jnp.full(shape, 0.05)),
    )
    high = jnp.maximum(jnp.select([kind == 2], [a * 0.2 + b], a), low + 0.5)
    u = jax.random.uniform(k[2], (batch, variables, points))
    grid = ((jnp.arange(points, dtype=jnp.float32) + 0.5) / points)[None, None]
    even = jax.random.bernoulli(k[3], 0.4 if variables == 1 else 0.0, (batch, 1, 1))
    u = jnp.where(
        even,
        jnp.take_along_axis(jnp.broadcast_to(grid, u.shape), jnp.argsort(u, axis=-1), axis=-1),
        u,
    )
    linear = low + (high - low) * u
    logarithmic = jnp.exp(
        jnp.log(jnp.maximum(low, 0.02)) * (1 - u) + jnp.log(jnp.maximum(high, 0.05)) * u
    )
    return jnp.where(jax.random.bernoulli(k[4], 0.15, shape) & (low > 0), logarithmic, linear)


def length_weights(bank: Bank, weights: dict[int, float] | None = None) -> Float[Array, " slots1"]:
    """How often each length is drawn: evenly from 3 to 13 tokens, 2 at weight 0.3, more than 13 at
    half weight, or as given; never one the bank lacks.
    """
    slots = bank.tokens.shape[1]
    wanted = (
        {n: (0.3 if n == 2 else 1.0 if n <= 13 else 0.5) for n in range(2, slots + 1)}
        if weights is None
        else weights
    )
    row = np.array([wanted.get(n, 0.0) for n in range(slots + 1)], np.float32)
    return jnp.where(jnp.diff(bank.start) > 0, row, 0.0)


def draw_examples(
    key: Array,
    bank: Bank,
    batch: int,
    *,
    points: int = 64,
    variables: int = 1,
    weights: Float[Array, " slots1"],
    probes: Array | None = None,
) -> Examples:
    """`batch` problems for one training step, made on the device.

    Twice as many are drawn as needed and the valid ones kept: finite everywhere, every term
    matters, not nearly constant or linear, and (given `probes`, see `heldout.training_exclusions`)
    not a held-out function by its values.  Chapter 2.
    """
    k = jax.random.split(key, 14)
    n = 2 * batch
    length = jax.random.categorical(k[0], jnp.log(weights), shape=(n,))
    low, high = bank.start[length], bank.start[length + 1]
    tokens = bank.tokens[
        low + (jax.random.uniform(k[1], (n,)) * (high - low).astype(jnp.float32)).astype(jnp.int32)
    ].astype(jnp.int32)
    values = draw_constants(k[2], tokens)
    tokens = jnp.where(is_constant(tokens), nearest_constant(values), tokens)

    tries = 3
    x_all = draw_points(k[3], n * tries, variables, points).reshape(tries, n, variables, points)
    x_all = x_all.at[2].set(jnp.abs(x_all[2]))
    slots_of, term = additive_terms(tokens, TERMS)
    row = jnp.arange(n)[:, None]
    used = jax.random.randint(k[4], (n, 1), 16, points + 1)
    mask = jnp.arange(points)[None] < used
    used = used.astype(jnp.float32)

    def basis_of(x: Array) -> tuple[Array, Array]:
        basis = evaluate_nodes(tokens, values, x)[slots_of, row]
        good = jnp.all(jnp.isfinite(basis) & (jnp.abs(basis) < 1e5) | ~term[..., None], axis=(1, 2))
        return basis, good

    bases, goods = jax.lax.map(basis_of, x_all)
    pick = jnp.argmax(goods, axis=0)
    x, basis, good = (
        x_all[pick, jnp.arange(n)],
        bases[pick, jnp.arange(n)],
        goods[pick, jnp.arange(n)],
    )
    basis = jnp.where(term[..., None] & good[:, None, None], basis, 0.0)

    def spread(v: Array) -> Array:
        m = mask if v.ndim == 2 else mask[:, None]
        mean = (
            jnp.sum(jnp.where(m, v, 0.0), -1, keepdims=True)
            / used[(...,) if v.ndim == 2 else (slice(None), None)]
        )
        return jnp.sqrt(
            jnp.sum(jnp.where(m, (v - mean) ** 2, 0.0), -1)
            / used[:, 0].reshape(-1, *[1] * (v.ndim - 2))
        )

    deviation = spread(basis)
    shape = deviation.shape
    sign = jnp.where(jax.random.bernoulli(k[5], 0.3, shape), -1.0, 1.0)
    natural = jnp.where(
        jax.random.bernoulli(k[6], 0.5, (n, 1)),
        1.0,
        jnp.exp(jax.random.uniform(k[7], shape, minval=np.log(0.2), maxval=np.log(5.0))),
    )
    balanced = jnp.exp(
        jax.random.uniform(k[7], shape, minval=np.log(0.1), maxval=0.0)
    ) / jnp.maximum(deviation, 1e-6)
    coefficient = sign * jnp.where(jax.random.bernoulli(k[8], 0.4, (n, 1)), balanced, natural)
    y = jnp.sum(coefficient[..., None] * basis, axis=1)
    size = spread(y)
    offset = jnp.where(
        jax.random.bernoulli(k[9], 0.5, (n,)), 0.0, jax.random.normal(k[12], (n,)) * 2 * size
    )

    good &= jnp.all((jnp.abs(coefficient) * deviation > 3e-3 * size[:, None]) | ~term, axis=1)
    good &= (size > 1e-3 * jnp.max(jnp.abs(jnp.where(mask, y, 0.0)), axis=1)) & (size > 1e-6)
    xm = jnp.where(mask, x[:, 0], 0.0)
    xc = jnp.where(mask, x[:, 0] - jnp.sum(xm, 1, keepdims=True) / used, 0.0)
    yc = jnp.where(mask, y - jnp.sum(jnp.where(mask, y, 0.0), 1, keepdims=True) / used, 0.0)
    slope = jnp.sum(xc * yc, 1) / jnp.maximum(jnp.sum(xc**2, 1), 1e-9)
    leftover = jnp.sum((yc - slope[:, None] * xc) ** 2, 1) / jnp.maximum(jnp.sum(yc**2, 1), 1e-12)
    good &= (leftover > 1e-3) | (variables > 1)
    if probes is not None:
        good &= ~matches_probes(tokens, values, coefficient, slots_of, term, probes, variables)

    noise = jnp.where(
        jax.random.bernoulli(k[10], 0.5, (n, 1)),
        0.0,
        jnp.exp(jax.random.uniform(k[13], (n, 1), minval=np.log(1e-3), maxval=np.log(0.05))),
    )
    y = y + offset[:, None] + noise * size[:, None] * jax.random.normal(k[11], y.shape)
    y = jnp.where(mask, y, 0.0)
    keep = jnp.argsort(~good, stable=True)[:batch]
    everything = Examples(
        tokens,
        values,
        jnp.where(mask[:, None], x, 0.0),
        y,
        mask,
        good.astype(jnp.float32),
        coefficient,
        offset,
    )
    return Examples(*(a[keep] for a in everything))


# ---------------------------------------------------------------- what never enters training


_HELDOUT_PROBES = np.linspace(0.3, 2.2, 24)


def standardized_probe(y: Float[Array, "batch probes"]) -> Float[Array, "batch probes"]:
    """Values at the probe points, scaled to mean 0 and length 1 over the points where they are
    defined; zero where they are not.

    The dot product of two rows is then the correlation of two functions that are defined at the
    same points, and less for others.
    """
    good = jnp.isfinite(y)
    count = jnp.maximum(jnp.sum(good, axis=-1, keepdims=True), 1).astype(y.dtype)
    y = jnp.where(good, y, 0.0)
    y = y / jnp.maximum(
        jnp.max(jnp.abs(y), axis=-1, keepdims=True), 1e-30
    )  # so that squares do not overflow
    y = jnp.where(good, y - jnp.sum(y, axis=-1, keepdims=True) / count, 0.0)
    return jnp.where(count >= 8, y / (jnp.sqrt(jnp.sum(y**2, -1, keepdims=True)) + 1e-12), 0.0)


def probe_points(variables: int = 1) -> Float[Array, "1 variables probes"]:
    """The 24 points at which a function is compared with the held-out ones."""
    return jnp.stack(
        [jnp.asarray(np.roll(_HELDOUT_PROBES, 5 * v), jnp.float32) for v in range(variables)]
    )[None]


def matches_probes(
    tokens: Array,
    values: Array,
    coefficient: Array,
    slots_of: Array,
    term: Array,
    probes: Array,
    variables: int,
) -> Array:
    """True where an example equals an excluded function up to scale and offset: |correlation| > 1 -
    1e-6 on the probe points.

    `probes` (excluded, probes) are the rows of `heldout.training_exclusions` for the same number of
    variables.
    """
    basis = evaluate_nodes(tokens, values, probe_points(variables))[
        slots_of, jnp.arange(tokens.shape[0])[:, None]
    ]
    y = jnp.sum(jnp.where(term[..., None], coefficient[..., None] * basis, 0.0), axis=1)
    return jnp.any(jnp.abs(standardized_probe(y) @ probes.T) > 1 - 1e-6, axis=1)
