"""Which skeletons are canonical.  (Chapter 2)"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int

from refinemath.examples import TERMS
from refinemath.execution import additive_terms, structure
from refinemath.expression import (
    CONSTANT_BINS,
    END,
    FIRST_CONSTANT,
    MAX_VARIABLES,
    OPERATOR_TOKEN,
    VOCABULARY_SIZE,
)

CONSTANT = FIRST_CONSTANT + CONSTANT_BINS.index(1)  # stands for "some constant" in a skeleton


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


def _token_hash() -> np.ndarray:
    """An odd number for each token.  The order of operands depends on them, so those of the tokens
    that the first edition had stay as they were: x4 to x10 got theirs last.
    """
    drawn = np.random.default_rng(0).integers(1, 2**20, VOCABULARY_SIZE) * 2 + 1
    later = VOCABULARY_SIZE - (MAX_VARIABLES - 3)
    return np.concatenate([drawn[:4], drawn[later:], drawn[4:later]]).astype(np.uint32)


_TOKEN_HASH = _token_hash()


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
    weights = jnp.asarray(_TOKEN_HASH)

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
