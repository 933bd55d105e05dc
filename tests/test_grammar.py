"""Chapter 8: the best legal formula, and exact samples, from independent slots."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refinemath import grammar
from refinemath.language import ARITY, END, OPERATOR_TOKEN, VOCABULARY_SIZE

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
    return scale * jax.random.normal(jax.random.fold_in(KEY, int(scale * 10)), (batch, slots, VOCABULARY_SIZE))


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
    logits = np.random.default_rng(slots).normal(size=(20, slots, VOCABULARY_SIZE)).astype(np.float32)
    found = np.asarray(grammar.best(jnp.asarray(logits)))
    for row, f in zip(logits, found, strict=True):
        np.testing.assert_array_equal(f, rows[np.argmax(score(row, rows))])


def test_the_backward_pass_counts_all_formulas() -> None:
    """With all logits zero the weight of the start is the number of legal formulas."""
    for slots in (1, 2, 3):
        beta = grammar.backward(jnp.zeros((1, slots, VOCABULARY_SIZE)))
        assert np.exp(float(beta[0, 0, 1])) == pytest.approx(len(every_formula(slots, list(range(1, VOCABULARY_SIZE)))), rel=1e-4)


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
        np.testing.assert_array_equal(grammar.best(logits), np.asarray(jax.jit(grammar.best)(logits)))
        assert legal(np.asarray(grammar.sample(KEY, logits, 8))).all()
