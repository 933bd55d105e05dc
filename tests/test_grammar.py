"""Chapter 8: the best legal formula, and exact samples, from independent slots; what surrounds a
token that is read after others.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refinemath import grammar
from refinemath.expression import ARITY, END, OPERATOR_TOKEN, VOCABULARY, VOCABULARY_SIZE, encode
from refinemath.grammar import NONE
from refinemath.text import parse

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(0)


def legal(tokens: np.ndarray) -> np.ndarray:
    """Whether each row is one whole formula followed by END alone."""
    open_ = np.ones(tokens.shape[:-1], int)
    good = np.ones(tokens.shape[:-1], bool)
    for i in range(tokens.shape[-1]):
        t = tokens[..., i]
        good &= (t == END) == (open_ == 0)
        open_ = open_ + np.where(t == END, 0, ARITY[t] - 1)
    return good & (open_ == 0)


def every_formula(slots: int, vocabulary: list[int]) -> np.ndarray:
    rows = np.array(list(itertools.product([END, *vocabulary], repeat=slots)))
    return rows[legal(rows)]


def score(logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return sum(logits[i, rows[:, i]] for i in range(rows.shape[1]))


def logits_of(scale: float, batch: int = 64, slots: int = 16) -> jax.Array:
    return scale * jax.random.normal(
        jax.random.fold_in(KEY, int(scale * 10)), (batch, slots, VOCABULARY_SIZE)
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 100.0])
def test_every_sample_and_every_best_is_legal(scale: float) -> None:
    logits = logits_of(scale)
    assert legal(np.asarray(grammar.sample(KEY, logits, 64))).all()
    assert legal(np.asarray(grammar.best(logits))).all()


@pytest.mark.parametrize("name", ["END", "operators"])
def test_legal_even_where_the_slots_disagree(name: str) -> None:
    """Every slot wants END at once, or operators for ever."""
    wanted = jnp.arange(VOCABULARY_SIZE) == END if name == "END" else jnp.asarray(ARITY == 2)
    logits = jnp.broadcast_to(jnp.where(wanted, 50.0, 0.0), (64, 16, VOCABULARY_SIZE))
    assert legal(np.asarray(grammar.sample(KEY, logits, 64))).all()
    assert legal(np.asarray(grammar.best(logits))).all()


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_best_is_brute_force(slots: int) -> None:
    rows = every_formula(slots, list(range(1, VOCABULARY_SIZE)))
    logits = (
        np.random.default_rng(slots).normal(size=(20, slots, VOCABULARY_SIZE)).astype(np.float32)
    )
    found = np.asarray(grammar.best(jnp.asarray(logits)))
    for row, f in zip(logits, found, strict=True):
        np.testing.assert_array_equal(f, rows[np.argmax(score(row, rows))])


def test_the_backward_pass_counts_all_formulas() -> None:
    """With all logits zero the weight of the start is the number of legal formulas."""
    for slots in (1, 2, 3):
        beta = grammar.backward(jnp.zeros((1, slots, VOCABULARY_SIZE)))
        assert np.exp(float(beta[0, 0, 1])) == pytest.approx(
            len(every_formula(slots, list(range(1, VOCABULARY_SIZE)))), rel=1e-4
        )


def test_samples_follow_the_exact_probabilities() -> None:
    vocabulary = [1, 6, OPERATOR_TOKEN["sin"], OPERATOR_TOKEN["add"]]
    rows = every_formula(3, vocabulary)
    logits = np.full((1, 3, VOCABULARY_SIZE), -60.0, np.float32)
    logits[:, :, [END, *vocabulary]] = np.random.default_rng(0).normal(size=(1, 3, 5))
    exact = np.exp(score(logits[0].astype(np.float64), rows))
    exact /= exact.sum()
    drawn = np.asarray(grammar.sample(KEY, jnp.asarray(logits), 20_000))[0]
    counts = (drawn[:, None] == rows[None]).all(-1).sum(0)
    assert counts.sum() == 20_000
    chi_square = np.sum((counts - 20_000 * exact) ** 2 / (20_000 * exact))
    assert chi_square < 40  # nine degrees of freedom: one run in 100,000 goes beyond


def test_the_same_key_gives_the_same_samples_and_jit_is_eager() -> None:
    logits = logits_of(1.0, batch=2, slots=5)
    once = grammar.sample(KEY, logits, 8)
    np.testing.assert_array_equal(once, grammar.sample(KEY, logits, 8))
    with jax.disable_jit():
        np.testing.assert_array_equal(
            grammar.best(logits), np.asarray(jax.jit(grammar.best)(logits))
        )
        assert legal(np.asarray(grammar.sample(KEY, logits, 8))).all()


# ---------------------------------------------------------------- reading token after token


def surroundings(row: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Open count, parent and operand, sibling, last token before each slot, by a stack of the
    operands that are still to come.
    """
    stack, seen = [(NONE, 0, NONE)], []
    for i, token in enumerate(row):
        parent, which, sibling = stack[-1] if stack else (NONE, 0, NONE)
        seen.append(
            (
                len(stack),
                parent + (VOCABULARY_SIZE + 1) * which,
                sibling,
                int(row[i - 1]) if i else NONE,
            )
        )
        if stack:
            stack.pop()
        if ARITY[token] == 2:
            stack.append((int(token), 1, int(row[i + 1])))
        if ARITY[token] > 0:
            stack.append((int(token), 0, NONE))
    return seen


def test_the_context_of_a_token_is_its_place_in_the_tree() -> None:
    rows = np.asarray(grammar.sample(KEY, logits_of(1.0), 8)).reshape(-1, 16)
    open_, *around = (np.asarray(a) for a in grammar.contexts(jnp.asarray(rows)))
    for i, row in enumerate(rows):
        expected = np.array(surroundings(row)).T
        inside = expected[0] > 0
        np.testing.assert_array_equal(open_[i], expected[0])
        for found, wanted in zip(around, expected[1:], strict=True):
            np.testing.assert_array_equal(found[i][inside], wanted[inside])


def test_a_context_by_hand() -> None:
    """sin(x)/(1 + x^2): the 1 stands under the sum, beside nothing; the square under the sum,
    beside the 1.
    """
    row = encode([parse("sin(x)/(1 + x**2)")])[0]
    token = {name: VOCABULARY.index(name) for name in ("div", "sin", "x1", "add", "1", "square")}
    assert row[0][:7].tolist() == [
        token[n] for n in ("div", "sin", "x1", "add", "1", "square", "x1")
    ]
    _, parent, sibling, _ = (np.asarray(a)[0] for a in grammar.contexts(jnp.asarray(row)))
    second = VOCABULARY_SIZE + 1
    assert parent[:6].tolist() == [
        NONE,
        token["div"],
        token["sin"],
        token["div"] + second,
        token["add"],
        token["add"] + second,
    ]
    assert sibling[:6].tolist() == [NONE, NONE, NONE, token["sin"], NONE, token["1"]]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_what_is_allowed_can_always_become_a_formula(slots: int) -> None:
    """Taking allowed tokens alone reaches every formula that fits the slots, and nothing else."""
    found = [[]]
    for i in range(slots):
        longer = []
        for start in found:
            open_ = 1 + sum(int(ARITY[t]) - 1 for t in start if t != END)
            can = np.asarray(grammar.allowed(jnp.asarray([open_]), slots - 1 - i))[0]
            assert can.any()
            longer += [
                [*start, t]
                for t in (END, 1, 5, OPERATOR_TOKEN["sin"], OPERATOR_TOKEN["add"])
                if can[t]
            ]
        found = longer
    assert sorted(found) == sorted(
        every_formula(slots, [1, 5, OPERATOR_TOKEN["sin"], OPERATOR_TOKEN["add"]]).tolist()
    )
