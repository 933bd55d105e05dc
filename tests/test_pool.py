"""Chapter 8: what the pool remembers: the best of each skeleton, of each residual, and of every
length.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG
from formulas import from_bank
from jax import Array

from refinemath.examples import SkeletonTable
from refinemath.execution import Programs
from refinemath.expression import OPERATOR_TOKEN, decode, encode, is_constant
from refinemath.fitting import TERMS, Candidate
from refinemath.pool import (
    Pool,
    best_per_group,
    empty_pool,
    merge,
    score,
    skeleton_hash,
    top_per_group,
)
from refinemath.text import parse

pytestmark = pytest.mark.usefixtures("strict")
COUNT = jnp.float32(40)
POINTS = 8


def programs(texts: list[str]) -> Programs:
    tokens, values = encode([parse(t) for t in texts], CONFIG.slots)
    return Programs(jnp.asarray(tokens), jnp.asarray(values, jnp.float32))


def some_candidates(bank: SkeletonTable, count: int, seed: int) -> Candidate:
    """Formulas of few skeletons with different constants and made-up fits."""
    rng = np.random.default_rng(seed)
    tokens, _ = encode(from_bank(bank, 12, seed=3))
    rows = tokens[rng.integers(12, size=count)]
    values = np.where(is_constant(rows), rng.normal(size=rows.shape), 0.0).astype(np.float32)
    fvu = np.where(rng.random(count) < 0.1, np.inf, rng.random(count) ** 4).astype(np.float32)
    fitted = jnp.asarray(rng.normal(size=(count, POINTS)), jnp.float32)
    return Candidate(jnp.asarray(rows), jnp.asarray(values), fitted, jnp.asarray(fvu))


def to_merge(new: Candidate) -> Pool:
    """Candidates with what a pool holds beside them."""
    rows = jnp.zeros((len(new.fvu), TERMS, POINTS), jnp.float32)
    return Pool(*new, score(new.tokens, new.fvu, COUNT), rows)


def with_fvu(texts: list[str], fvu: list[float]) -> Pool:
    p = programs(texts)
    fitted = jnp.zeros((len(texts), POINTS), jnp.float32)
    return to_merge(Candidate(*p, fitted, jnp.asarray(fvu, jnp.float32)))


def names_of(pool: Pool) -> list[tuple]:
    """The skeletons of what counts."""
    real = np.isfinite(np.asarray(pool.score))
    return [decode(t).skeleton() for t in np.asarray(pool.tokens)[real]]


def test_the_hash_sees_the_skeleton_and_not_the_constants(bank: SkeletonTable) -> None:
    tokens = np.asarray(bank.tokens).astype(np.int32)
    assert len(np.unique(skeleton_hash(jnp.asarray(tokens)))) == len(tokens)
    other = np.where(is_constant(tokens), tokens + 1, tokens)
    np.testing.assert_array_equal(
        skeleton_hash(jnp.asarray(other)), skeleton_hash(jnp.asarray(tokens))
    )


def test_an_empty_pool_holds_nothing_and_what_comes_first_stays_in_it(bank: SkeletonTable) -> None:
    pool = empty_pool(16, CONFIG.slots, POINTS)
    assert names_of(pool) == [] and not np.isfinite(pool.fvu).any()
    assert (np.asarray(pool.tokens)[:, 0] == 1).all()
    filled = merge(pool, to_merge(some_candidates(bank, 60, 1)))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), pool) == jax.tree.map(
        lambda a: (a.shape, a.dtype), filled
    )
    assert len(names_of(filled)) > 5
    assert filled.candidates() == Candidate(*filled[:4]) and filled.programs() == filled[:2]


@pytest.mark.parametrize("keep", [4, 32])
def test_merge_keeps_the_best_of_each_skeleton(keep: int, bank: SkeletonTable) -> None:
    pool = empty_pool(keep, CONFIG.slots, POINTS)
    seen: dict[tuple, float] = {}
    put = jax.jit(merge)
    for seed in range(4):
        new = some_candidates(bank, 60, seed)
        pool = put(pool, to_merge(new))
        for tokens, cost in zip(
            np.asarray(new.tokens), np.asarray(score(new.tokens, new.fvu, COUNT)), strict=True
        ):
            name = decode(tokens).skeleton()
            seen[name] = min(seen.get(name, np.inf), float(cost))
        best = sorted(v for v in seen.values() if np.isfinite(v))[:keep]
        cost = np.asarray(pool.score)
        np.testing.assert_allclose(cost[np.isfinite(cost)], best, rtol=1e-6)
        assert len(names_of(pool)) == len(set(names_of(pool)))
    real = np.isfinite(np.asarray(pool.score))
    np.testing.assert_allclose(
        pool.score[real], score(pool.tokens, pool.fvu, COUNT)[real], rtol=1e-6
    )


def test_merging_twice_changes_nothing(bank: SkeletonTable) -> None:
    new = to_merge(some_candidates(bank, 60, 1))
    once = merge(empty_pool(16, CONFIG.slots, POINTS), new)
    np.testing.assert_array_equal(merge(once, new).score, once.score)


def test_the_order_in_which_formulas_come_does_not_matter(bank: SkeletonTable) -> None:
    new = to_merge(some_candidates(bank, 60, 1))
    order = np.random.default_rng(0).permutation(60)
    start = empty_pool(16, CONFIG.slots, POINTS)
    one, other = merge(start, new), merge(start, jax.tree.map(lambda a: a[order], new))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_function_in_other_words_is_kept_once_in_its_shortest_form() -> None:
    new = with_fvu(["x + sin(x)", "x - sin(neg(x))", "cos(x)"], [0.0123, 0.0123, 0.3])
    pool = merge(empty_pool(8, CONFIG.slots, POINTS), new)
    kept = {parse(t).skeleton() for t in ("x + sin(x)", "cos(x)")}
    assert set(names_of(pool)) == kept and len(names_of(pool)) == 2


def test_the_two_best_of_every_length_stay_however_bad() -> None:
    """A full pool of good long formulas leaves room for the best short ones."""
    unary = ("sin", "cos", "exp", "log", "tanh", "sqrt", "square", "cube")
    long = [f"{a}(x*{b}(x))" for a in unary[:5] for b in unary[:5] if a != b]
    good = [1e-6 * (1 + i) for i in range(len(long))]
    short = [f"{a}(x)" for a in ("sin", "cos", "exp", "log")]
    new = with_fvu([*long, *short], [*good, 0.5, 0.6, 0.7, 0.8])
    names = names_of(merge(empty_pool(8, CONFIG.slots, POINTS), new))
    by_length = [sum(len(n) == length for n in names) for length in (2, len(names[0]))]
    assert by_length == [2, 6]
    assert {parse("sin(x)").skeleton(), parse("cos(x)").skeleton()} <= set(names)


def test_the_most_promising_are_the_best_of_different_skeletons_in_each_group(
    bank: SkeletonTable,
) -> None:
    new = some_candidates(bank, 80, 2)
    chosen = np.asarray(top_per_group(new, [(4, 20, 3)], COUNT)[0]).reshape(4, 3)
    cost = np.asarray(score(new.tokens, new.fvu, COUNT))
    for group, indices in enumerate(chosen):
        best: dict[tuple, float] = {}
        for i in range(20 * group, 20 * group + 20):
            name = decode(np.asarray(new.tokens[i])).skeleton()
            best[name] = min(best.get(name, np.inf), float(cost[i]))
        assert ((indices >= 20 * group) & (indices < 20 * group + 20)).all()
        np.testing.assert_allclose(np.sort(cost[indices]), sorted(best.values())[:3], rtol=1e-6)


def test_the_best_of_one_group_of_any_size() -> None:
    """A proposer's formulas need not divide into anything."""
    p = programs(["x", "sin(x)", "cos(x)", "exp(x)", "log(x)"])
    fvu = jnp.asarray([0.5, 1e-6, 0.5, 0.4, 1e-5], jnp.float32)
    them = Candidate(*p, jnp.zeros((5, 24)), fvu)
    assert top_per_group(them, [(1, 5, 2)], jnp.float32(24))[0].tolist() == [1, 4]
    assert sorted(top_per_group(them, [(5, 1, 1)], jnp.float32(24))[0].tolist()) == [0, 1, 2, 3, 4]


def test_the_lowest_loss_of_each_group_is_what_is_left() -> None:
    group: Array = jnp.asarray([3, 1, 3, 1, 2], jnp.int32)
    loss = jnp.asarray([0.5, 2.0, 0.4, 1.0, jnp.inf], jnp.float32)
    order, left = best_per_group(group, loss)
    assert {int(o): float(v) for o, v in zip(order, left, strict=True) if np.isfinite(v)} == {
        2: pytest.approx(0.4),
        3: pytest.approx(1.0),
    }
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]


def test_longer_and_worse_costs_more() -> None:
    tokens, _ = encode([parse("x"), parse("x"), parse("sin(x) + x"), parse("x*1.5 + x")])
    cost = np.asarray(
        score(jnp.asarray(tokens), jnp.asarray([1e-3, 1e-2, 1e-3, np.nan], jnp.float32), COUNT)
    )
    assert cost[0] < cost[1] and cost[0] < cost[2] and np.isinf(cost[3])


def test_every_sum_and_every_number_costs() -> None:
    """x + sin x has one number more to fit than x sin x, and sin 2 x than sin x."""
    p = programs(["x + sin(x)", "x*sin(x)", "sin(2*x)", "sin(x)"])
    cost = np.asarray(score(p.tokens, jnp.full(4, 0.1, jnp.float32), COUNT))
    assert cost[0] > cost[1] and cost[2] > cost[3]
    assert int(p.tokens[0, 0]) == OPERATOR_TOKEN["add"]
    few = np.asarray(score(p.tokens, jnp.full(4, 0.1, jnp.float32), jnp.float32(6)))
    assert few[0] - few[1] > cost[0] - cost[1]  # numbers cost more where points are few
