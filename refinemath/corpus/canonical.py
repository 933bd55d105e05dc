"""Which skeletons are canonical: a table of rules, each a name and a predicate.  (Chapter 2)"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, UInt

from refinemath.examples import TERMS
from refinemath.execution import additive_terms, structure
from refinemath.expression import (
    ARITY,
    CONSTANT_BINS,
    FIRST_CONSTANT,
    MAX_VARIABLES,
    OPERATOR_TOKEN,
    VOCABULARY_SIZE,
    is_variable,
)

CONSTANT = FIRST_CONSTANT + CONSTANT_BINS.index(1)  # stands for "some constant" in a skeleton
UNARY = "neg inv square cube pow4 pow5 sqrt exp log sin cos tanh"
POWERS = "square cube pow4 pow5 sqrt inv"
HOMOGENEOUS = f"neg log pow mul div {POWERS}"  # a factor of the operand moves out, or is a constant

# Children that an operator never has, because a shorter or a preferred form says the same.
REWRITTEN = {
    "neg": "sub",
    "inv": "neg div",
    "square": "sqrt neg pow4 pow5",
    "cube": "neg square pow4 pow5",
    "pow4": "neg square cube sqrt pow5",
    "pow5": "neg square cube pow4",
    "sqrt": "square pow4 neg",
    "exp": "log",
    "log": f"exp neg pow {POWERS}",  # log f^2 = 2 log f
    "sin": "neg",
    "cos": "neg",
    "tanh": "neg",
    "add": "neg sub",
    "sub": "neg sub add",
    "mul": "neg inv div",
    "div": "neg inv div",
    "pow": POWERS,
}


def _rewritten() -> np.ndarray:
    table = np.zeros((VOCABULARY_SIZE, VOCABULARY_SIZE), bool)
    for parent, children in REWRITTEN.items():
        table[OPERATOR_TOKEN[parent], [OPERATOR_TOKEN[c] for c in children.split()]] = True
    for name in UNARY.split():  # a function of a constant is a constant
        table[OPERATOR_TOKEN[name], [OPERATOR_TOKEN[name], CONSTANT]] = True
    for power in f"{POWERS} pow".split():  # (1/f)^2 = 1/f^2, exp(f)^2 = exp(2 f)
        table[OPERATOR_TOKEN[power], [OPERATOR_TOKEN[c] for c in ("inv", "exp", "pow")]] = True
    return table


def _token_hash() -> np.ndarray:
    """Two odd numbers a token, (vocabulary, 2): in the first column all variables have that of x1.

    The order of operands depends on the first column alone, so that it does not change when
    variables are renamed.  The tokens that the first edition had are drawn before x4 to x10, which
    keeps its order.
    """
    drawn = np.random.default_rng(0).integers(1, 2**20, VOCABULARY_SIZE) * 2 + 1
    later = VOCABULARY_SIZE - (MAX_VARIABLES - 3)
    named = np.concatenate([drawn[:4], drawn[later:], drawn[4:later]])
    blind = np.where(is_variable(np.arange(VOCABULARY_SIZE)), named[1], named)
    return np.stack([blind, named], axis=1).astype(np.uint32)


_REWRITTEN, _TOKEN_HASH = _rewritten(), _token_hash()


class Tree(NamedTuple):
    """A batch of skeletons with what the rules look at; one entry a slot."""

    tokens: Int[Array, "batch slots"]
    size: Int[Array, "batch slots"]  # tokens of the subtree
    second: Int[Array, "batch slots"]  # slot of the second operand
    order: UInt[Array, "batch slots"]  # operands stand in this order: constant, size, hash
    name: UInt[Array, "batch slots"]  # the same, with a hash that tells variables apart

    def is_any(self, names: str) -> Bool[Array, "batch slots"]:
        """True where a slot holds one of the operators named, separated by spaces."""
        found = np.zeros(VOCABULARY_SIZE, bool)
        found[[OPERATOR_TOKEN[name] for name in names.split()]] = True
        return jnp.asarray(found)[self.tokens]

    def first_of(self, values: Array) -> Array:
        """What `values` hold for the first operand of every slot; zero at the end of the row."""
        return jnp.pad(values, ((0, 0), (0, 1)))[:, 1:]

    def second_of(self, values: Array) -> Array:
        """What `values` hold for the second operand; any value where there is none."""
        return jnp.take_along_axis(jnp.pad(values, ((0, 0), (0, 1))), self.second, axis=1)

    def binary(self) -> Bool[Array, "batch slots"]:
        """True where a slot holds an operator of two operands."""
        return jnp.asarray(ARITY == 2)[self.tokens]

    def constant(self) -> Bool[Array, "batch slots"]:
        """True where a slot holds a constant."""
        return self.tokens == CONSTANT

    def with_constant(self, name: str) -> Bool[Array, "batch slots"]:
        """True where a slot holds the operator and its first operand is a constant."""
        return self.is_any(name) & self.first_of(self.constant())

    def below(self, names: str) -> Int[Array, "batch slots"]:
        """How many of the operators named stand below every slot."""
        count = jnp.cumsum(self.is_any(names), axis=1, dtype=jnp.int32)
        slots = count.shape[1]
        last = jnp.arange(slots, dtype=jnp.int32)[None] + self.size - 1
        return jnp.take_along_axis(count, jnp.minimum(last, slots - 1), axis=1) - count


def read_tree(tokens: Int[Array, "batch slots"]) -> Tree:
    """Sizes, operands and sort keys of all subtrees."""
    batch, slots = tokens.shape
    size, second = structure(tokens)
    row = jnp.arange(batch, dtype=jnp.int32)
    arity = jnp.asarray(ARITY)[tokens][..., None]
    weight = jnp.asarray(_TOKEN_HASH)[tokens]

    def step(h: Array, i: Array) -> tuple[Array, None]:
        a, b = h[:, i + 1], h[row, second[:, i]]
        mix = weight[:, i] + jnp.where(arity[:, i] > 0, a * jnp.uint32(2654435761), 0)
        mix += jnp.where(arity[:, i] > 1, (b ^ (b >> 7)) * jnp.uint32(40503), 0)
        mix = (mix ^ (mix >> 15)) * jnp.uint32(2246822519)
        return h.at[:, i].set(mix ^ (mix >> 13)), None

    places = jnp.arange(slots, dtype=jnp.int32)
    h = jax.lax.scan(step, jnp.zeros((batch, slots + 1, 2), jnp.uint32), places, reverse=True)[0]
    key = size.astype(jnp.uint32)[..., None] * jnp.uint32(1 << 25) + (h[:, :slots] >> 7)
    key = jnp.where((tokens == CONSTANT)[..., None], 0, key)
    return Tree(tokens, size, second, key[..., 0], key[..., 1])


def _has_a_shorter_form(tree: Tree) -> Array:
    table = jnp.asarray(_REWRITTEN)
    second = tree.second_of(tree.tokens)
    # c (1/f) is how c/f is written
    reciprocal = tree.with_constant("mul") & (second == OPERATOR_TOKEN["inv"])
    return table[tree.tokens, tree.first_of(tree.tokens)] | (
        tree.binary() & table[tree.tokens, second] & ~reciprocal
    )


def _equal_operands(tree: Tree) -> Array:
    return tree.binary() & (tree.first_of(tree.name) == tree.second_of(tree.name))


def _leans_to_the_left(tree: Tree) -> Array:
    add, mul = tree.is_any("add"), tree.is_any("mul")
    return (add & tree.first_of(add)) | (mul & tree.first_of(mul))


def _out_of_order(tree: Tree) -> Array:
    wrong = jnp.zeros(tree.tokens.shape, bool)
    for name in ("add", "mul"):
        chain = tree.is_any(name)
        following = jnp.where(chain, tree.first_of(tree.order), tree.order)
        wrong |= chain & (tree.first_of(tree.order) > tree.second_of(following))
    return wrong


def _twice_in_a_chain(tree: Tree) -> Array:
    wrong = jnp.zeros(tree.tokens.shape, bool)
    for name in ("add", "mul"):
        chain = tree.is_any(name)
        own = tree.first_of(tree.name)
        operand = jnp.where(chain, own, tree.name)
        for _ in range(TERMS - 1):  # the operand after the first, the one after that, ...
            operand = jnp.where(chain, tree.second_of(operand), jnp.uint32(2**32 - 1))
            wrong |= chain & (own == operand)
    return wrong


def _constant_on_a_side(tree: Tree) -> Array:
    return tree.with_constant("sub div pow") | (
        tree.is_any("sub div") & tree.second_of(tree.constant())
    )


def _composite_exponent(tree: Tree) -> Array:
    return tree.is_any("pow") & (tree.second_of(tree.tokens) >= OPERATOR_TOKEN["add"])


def _inner_factor(tree: Tree) -> Array:
    scaled = tree.with_constant("mul")
    return tree.is_any(HOMOGENEOUS) & (
        tree.first_of(scaled) | (tree.binary() & tree.second_of(scaled))
    )


def _inner_shift(tree: Tree) -> Array:
    shifted = tree.with_constant("add")
    return (
        (tree.is_any("exp neg") & tree.first_of(shifted))
        | (tree.with_constant("mul") & tree.second_of(shifted))
        | (shifted & tree.second_of(shifted))
    )


def _deep_functions(tree: Tree) -> Array:
    trig, growth = "sin cos tanh", "exp log"
    return (tree.is_any(trig) & (tree.below(trig) > 0)) | (
        tree.is_any(growth) & (tree.below(growth) > 1)
    )


def _said_by_coefficients(tree: Tree) -> Array:
    slots_of, term = additive_terms(tree.tokens, tree.tokens.shape[1])
    said = tree.constant() | tree.is_any("neg") | tree.with_constant("mul")
    return term & jnp.take_along_axis(said, slots_of, axis=1)


def _too_many_terms(tree: Tree) -> Array:
    _, term = additive_terms(tree.tokens, tree.tokens.shape[1])
    return jnp.sum(term, axis=1, keepdims=True) > TERMS


def _subtraction_at_the_top(tree: Tree) -> Array:
    return tree.is_any("sub")[:, :1]


def _no_variable(tree: Tree) -> Array:
    return ~jnp.any(is_variable(tree.tokens), axis=1, keepdims=True)


Rule = tuple[str, Callable[[Tree], Array]]
PART_RULES: tuple[Rule, ...] = (
    ("an operator inside another has a shorter form", _has_a_shorter_form),
    ("f + f, f f, f - f, f / f, f^f, and two constants", _equal_operands),
    ("sums and products lean to the right", _leans_to_the_left),
    ("operands of sums and products stand from small to large", _out_of_order),
    ("none of them comes twice", _twice_in_a_chain),
    ("f - c is f + c, f / c is c f, c / f is c inv f, c^f is exp(c f)", _constant_on_a_side),
    ("exponents are leaves", _composite_exponent),
    ("a factor moves out of powers, products and logarithms", _inner_factor),
    ("exp(c + f) is c exp f, -(c + f) is c - f, c (c + f) is c + c f", _inner_shift),
    ("no sin inside sin, at most two of exp and log inside each other", _deep_functions),
)
WHOLE_RULES: tuple[Rule, ...] = (
    ("the coefficients say constants, signs and factors of terms", _said_by_coefficients),
    ("at most as many terms as coefficients", _too_many_terms),
    ("a subtraction is a sum with a negative coefficient", _subtraction_at_the_top),
    ("there is a variable", _no_variable),
)


@jax.jit
def is_canonical(tokens: Int[Array, "batch slots"]) -> tuple[Array, Array]:
    """Whether each skeleton is canonical as a part of a formula, and as a whole formula.

    A part breaks none of `PART_RULES`: no removable constant, no inverse pair, no sin inside sin,
    ordered sums and products.  A whole formula breaks none of `WHOLE_RULES` either: it has at most
    `TERMS` additive terms and nothing that their free coefficients already say.  Chapter 2.
    """
    tree = read_tree(tokens)

    def breaks_none(rules: tuple[Rule, ...]) -> Array:
        broken = [jnp.any(rule(tree), axis=1) for _, rule in rules]
        return ~jnp.any(jnp.stack(broken), axis=0)

    part = breaks_none(PART_RULES)
    return part, part & breaks_none(WHOLE_RULES)
