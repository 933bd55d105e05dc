"""Chapters 4, 7 and 9: the compiled search is a Python loop, its edits are legal, its memory does
not grow, and what halts stands still.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG
from flax import nnx
from formulas import from_bank
from jax import Array
from test_grammar import legal

from refinemath.examples import SkeletonTable
from refinemath.execution import evaluate, evaluate_nodes
from refinemath.expression import decode, encode, is_constant
from refinemath.fitting import Candidate, Points, execute
from refinemath.loop import (
    _QUICK_TO_COMPILE,
    SearchConfig,
    SearchOutput,
    SearchState,
    anderson_step,
    search,
)
from refinemath.model import Encoded, Model, stabilise
from refinemath.pool import Pool, merge, score, skeleton_hash, top_per_group
from refinemath.problem import prepare
from refinemath.proposers.edits import edit
from refinemath.proposers.library import ANY_CONSTANT, BLOCK, make_library, short_skeletons
from refinemath.proposers.pairs import Subtrees, distinct_subtrees, pair_up
from refinemath.proposers.prior import draw_prior
from refinemath.proposers.quotients import quotients
from refinemath.proposers.short import initial_pool, queue_order
from refinemath.solver import device_points
from refinemath.text import parse, parse_prefix

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(0)
COUNT = jnp.float32(40)
SMALL = SearchConfig(
    thoughts=4,
    samples=16,
    edits=96,
    missing_terms=8,
    fits=2,
    fit_steps=2,
    keep=32,
    search_steps=3,
    steps=12,
)
THRESHOLD = 0.02  # an untrained model moves far; this lets its thoughts halt one after the other


def scatter() -> Points:
    x = np.linspace(0.3, 4.0, 40)[:, None]
    return device_points(prepare(x, parse("sin(1.7*x)/(1 + x**2) + 0.3*x").evaluate(x.T)))


def arguments(
    model: Model, budget: SearchConfig = SMALL, threshold: float = THRESHOLD
) -> tuple[Any, ...]:
    graph, params = nnx.split(model)
    nothing = jnp.zeros((0, CONFIG.slots), jnp.uint8)
    return (
        params,
        graph,
        scatter(),
        KEY,
        jnp.float32(threshold),
        nothing,
        jnp.zeros((1, CONFIG.slots), jnp.uint8),
    )


@pytest.fixture(scope="module")
def outcome(tiny_model: Model) -> SearchOutput:
    return search(*arguments(tiny_model), budget=SMALL)


# ---------------------------------------------------------------- the loop


class Loop(NamedTuple):
    states: list[SearchState]
    step: Callable[[SearchState], SearchState]


@pytest.fixture(scope="module")
def loop(tiny_model: Model) -> Loop:
    """The states of the search when Python drives its loop: always `steps` rounds, masked by the
    loop's own condition.
    """
    states: list[SearchState] = []
    steps: list[Callable[[SearchState], SearchState]] = []

    def masked_loop(
        going_on: Callable[[SearchState], jax.Array],
        step: Callable[[SearchState], SearchState],
        state: SearchState,
    ) -> SearchState:
        compiled = jax.jit(
            step, compiler_options=_QUICK_TO_COMPILE
        )  # as `search`: what rounding does then hardly differs
        steps.append(compiled)
        states.append(state)
        for _ in range(SMALL.steps):
            state = compiled(state) if bool(going_on(state)) else state
            states.append(state)
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "while_loop", masked_loop)
        search.__wrapped__(*arguments(tiny_model), budget=SMALL)
    return Loop(states, steps[0])


@pytest.fixture(scope="module")
def carries(loop: Loop) -> list[SearchState]:
    return loop.states


def test_the_while_loop_is_a_masked_python_loop(
    outcome: SearchOutput, carries: list[SearchState]
) -> None:
    last = carries[-1]
    assert int(outcome.steps) == int(last.step) > SMALL.search_steps
    np.testing.assert_array_equal(outcome.pool.tokens, last.pool.tokens)
    for a, b in zip(
        jax.tree.leaves((outcome.pool, outcome.z, outcome.trace)),
        jax.tree.leaves((last.pool, last.z, last.trace)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert int(outcome.found_at) == int(last.found_at)
    assert bool(outcome.converged) == bool((last.hits >= 2).all())


def test_a_step_of_the_search_is_a_step_of_the_refiner(
    carries: list[SearchState], tiny_model: Model
) -> None:
    one = tiny_model.encoder(scatter())
    each, summary = (
        jnp.broadcast_to(a, (SMALL.thoughts, *a.shape[1:])) for a in (one.each, one.summary)
    )
    spread = Points(*(jnp.broadcast_to(a, (SMALL.thoughts, *a.shape[1:])) for a in scatter()))
    graph, params = nnx.split(tiny_model)
    step = jax.jit(
        lambda z, candidate: nnx.merge(graph, params).refiner(
            z, Encoded(each, summary, spread), candidate
        )
    )
    leapt = 0
    for old, new in itertools.pairwise(carries):
        moving = np.asarray(old.hits) < 2
        refined = step(old.z, old.candidate)
        if int(old.rested) >= 2:  # two steps with the same candidate behind it
            refined, leapt = (
                stabilise(anderson_step(old.z, refined, old.before, SMALL.leap), "polar"),
                leapt + 1,
            )
        np.testing.assert_allclose(new.z[moving], refined[moving], atol=2e-5)
    assert leapt > 1


def creeping(z: np.ndarray, factor: float, goal: float) -> np.ndarray:
    return goal + factor * (z - goal)


@pytest.mark.parametrize("factor", [0.2, 0.5, 0.8])
def test_a_leap_ends_where_a_creeping_thought_is_heading(factor: float) -> None:
    start = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    once = creeping(start, factor, 2.0)
    landed = anderson_step(
        jnp.asarray(once),
        jnp.asarray(creeping(once, factor, 2.0)),
        (jnp.asarray(start), jnp.asarray(once)),
        4.01,
    )
    np.testing.assert_allclose(landed, np.full_like(start, 2.0), atol=1e-4)


def test_a_leap_is_bounded_and_never_goes_back_and_rests_at_a_fixed_point() -> None:
    start = np.ones((1, 2, 3), np.float32)

    def landed(factor: float, most: float) -> float:
        once = creeping(start, factor, 0.0)
        return float(
            anderson_step(
                jnp.asarray(once),
                jnp.asarray(creeping(once, factor, 0.0)),
                (jnp.asarray(start), jnp.asarray(once)),
                most,
            )[0, 0, 0]
        )

    assert landed(0.9, 2.0) == pytest.approx(0.81 - 2 * 0.09, abs=1e-5)
    assert landed(-0.5, 4.0) == pytest.approx(0.25)
    assert landed(1.5, 4.0) == pytest.approx(
        2.25 + 4 * 0.75
    )  # what grows in one direction leaves an unstable fixed point, as fast as it may
    assert landed(-1.5, 4.0) == pytest.approx(2.25)  # what turns back is not helped on its way
    rest = jnp.asarray(start)
    np.testing.assert_array_equal(anderson_step(rest, rest, (rest, rest), 4.0), start)


def test_a_thought_that_has_halted_does_not_move(loop: Loop) -> None:
    settling = next(c for c in loop.states if int(c.step) == SMALL.search_steps + 1)
    halted = np.array([True, False, True, False])
    old = settling._replace(hits=jnp.where(halted, 2, 0).astype(settling.hits.dtype))
    new = loop.step(old)
    np.testing.assert_array_equal(new.z[halted], old.z[halted])
    velocity = np.asarray(new.trace.velocity)[int(old.step)]
    assert not velocity[halted].any() and (velocity[~halted] > 0).all()
    assert (np.asarray(new.z)[~halted] != np.asarray(old.z)[~halted]).any(axis=(1, 2)).all()
    assert (np.asarray(new.hits)[halted] == 2).all()


def test_two_hits_in_a_row_halt_and_one_does_not(carries: list[SearchState]) -> None:
    for old, new in itertools.pairwise(carries):
        if int(new.step) == int(old.step) or int(old.step) < SMALL.search_steps:
            continue
        moving = np.asarray(old.hits) < 2
        under = np.asarray(new.trace.velocity)[int(old.step)] < THRESHOLD
        np.testing.assert_array_equal(
            np.asarray(new.hits)[moving], np.where(under, np.asarray(old.hits) + 1, 0)[moving]
        )


def test_after_the_search_the_candidates_stand(carries: list[SearchState]) -> None:
    settled = [c for c in carries if int(c.step) > SMALL.search_steps]
    assert len(settled) > 1
    for carry in settled:
        assert (np.asarray(carry.candidate.tokens) == np.asarray(carry.pool.tokens)[0]).all()
        np.testing.assert_array_equal(carry.pool.tokens, settled[0].pool.tokens)


def test_every_remembered_formula_is_legal_and_what_it_says(outcome: SearchOutput) -> None:
    pool = jax.tree.map(np.asarray, outcome.pool)
    real = np.isfinite(pool.cost)
    assert real.sum() > 10 and legal(pool.tokens[real]).all()
    assert (np.diff(pool.cost[real]) >= 0).all()
    _x, y, mask = (np.asarray(a) for a in scatter())
    for i in np.flatnonzero(real)[:8]:
        assert not pool.values[i][~is_constant(pool.tokens[i])].any()
        r = (pool.fitted[i] - y[0])[mask[0]].astype(np.float64)
        assert np.mean(r**2) / np.var(y[0][mask[0]]) == pytest.approx(
            pool.fvu[i], rel=0.05, abs=1e-6
        )
        decode(pool.tokens[i], pool.values[i])


def test_the_pool_never_gets_worse(carries: list[SearchState]) -> None:
    best = [float(c.pool.cost[0]) for c in carries]
    assert all(b <= a + 1e-4 for a, b in itertools.pairwise(best)) and best[-1] < np.inf


def test_the_records_end_with_the_search(outcome: SearchOutput) -> None:
    steps = int(outcome.steps)
    for record in outcome.trace:
        assert not np.isnan(record[:steps]).any() and np.isnan(record[steps:]).all()


def test_the_key_makes_the_search(tiny_model: Model, outcome: SearchOutput) -> None:
    again = search(*arguments(tiny_model), budget=SMALL)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(outcome), strict=True):
        np.testing.assert_array_equal(a, b)
    params, graph, points, _, *rest = arguments(tiny_model)
    other = search(params, graph, points, jax.random.key(1), *rest, budget=SMALL)
    assert np.any(np.asarray(other.z) != np.asarray(outcome.z))


def test_the_search_says_how_long_candidates_could_change(
    outcome: SearchOutput, carries: list[SearchState]
) -> None:
    assert (
        int(outcome.searched)
        == max(int(c.step) for c in carries if int(c.rested) == 0)
        <= SMALL.search_steps
    )


@pytest.mark.parametrize(
    "change",
    [
        {"couples": 3},
        {"extend": 1},
        {"edits": 9},
        {"keep": 1},
        {"parts": 7},
        {"thoughts": 3, "samples": 5},
    ],
    ids=str,
)
def test_sizes_need_not_be_round(change: dict[str, Any], tiny_model: Model) -> None:
    params, graph, *rest = arguments(tiny_model)
    start = jnp.asarray(short_skeletons(CONFIG.slots, 2))
    budget = replace(SMALL, **change)
    found = jax.eval_shape(
        functools.partial(search.__wrapped__, budget=budget, graph=graph),
        params,
        points=rest[0],
        key=rest[1],
        threshold=rest[2],
        start=start,
        prior=rest[4],
    )
    assert found.pool.tokens.shape == (
        budget.keep,
        CONFIG.slots,
    ) and found.trace.velocity.shape == (SMALL.steps, budget.thoughts)


def test_the_most_promising_of_groups_that_do_not_divide_evenly() -> None:
    tokens, values = encode(
        [parse(t) for t in ("x", "sin(x)", "cos(x)", "exp(x)", "log(x)")], CONFIG.slots
    )
    fvu = jnp.asarray([0.5, 1e-6, 0.5, 0.4, 1e-5], jnp.float32)
    them = Candidate(jnp.asarray(tokens), jnp.asarray(values, jnp.float32), jnp.zeros((5, 24)), fvu)
    assert top_per_group(them, 2, 1, jnp.float32(24)).tolist() == [1, 4]


def test_memory_does_not_grow_with_the_number_of_steps(tiny_model: Model) -> None:
    args = arguments(tiny_model)

    def needed(steps: int) -> tuple[int, int]:
        found = search.lower(*args, budget=replace(SMALL, steps=steps)).compile().memory_analysis()
        return found.temp_size_in_bytes, found.output_size_in_bytes

    (few, short), (many, long) = needed(12), needed(512)
    records = long - short  # the trace: a row a step, and nothing else, is longer
    assert records <= 500 * 4 * (SMALL.thoughts * 9 + 1 + CONFIG.slots**2) + 4096
    assert many - few <= 2 * records + 65536
    assert few > 200_000


# ---------------------------------------------------------------- edits


def encoded(bank: SkeletonTable, count: int, seed: int) -> tuple[jax.Array, jax.Array]:
    tokens, values = encode(from_bank(bank, count, seed=seed))
    return jnp.asarray(tokens), jnp.asarray(values, jnp.float32)


def test_an_edit_is_always_legal(bank: SkeletonTable) -> None:
    tokens, values = encoded(bank, 4096, 10)
    donors, _ = encoded(bank, 200, 11)
    changed = 0
    for k in range(4):
        new, numbers = (np.asarray(a) for a in edit(jax.random.key(k), tokens, values, donors))
        assert legal(new).all() and new.dtype == np.int32 and numbers.dtype == np.float32
        assert not numbers[~is_constant(new)].any() and np.isfinite(numbers).all()
        assert (numbers[is_constant(new)] != 0).all()
        changed += int((new != np.asarray(tokens)).any(1).sum())
    assert changed > 4 * 4096 * 0.6


def test_an_edit_of_the_shortest_and_of_the_longest_formula_is_legal() -> None:
    short = jnp.zeros((500, CONFIG.slots), jnp.int32).at[:, 0].set(1)
    longest, numbers = encode([parse("neg(" * 15 + "x" + ")" * 15)])
    long = (
        jnp.asarray(np.repeat(longest, 500, 0)),
        jnp.asarray(np.repeat(numbers, 500, 0), jnp.float32),
    )
    for tokens, values in ((short, jnp.zeros(short.shape, jnp.float32)), long):
        for donors in (short[:1], long[0][:1]):
            new, _ = edit(KEY, tokens, values, donors)
            assert legal(np.asarray(new)).all()


def test_all_kinds_of_edits_happen(bank: SkeletonTable) -> None:
    """Longer, shorter, and as long with one other token; single constants survive an edit
    elsewhere.
    """
    tokens, values = encoded(bank, 4096, 12)
    new, numbers = (np.asarray(a) for a in edit(KEY, tokens, values, tokens[:100]))
    before, after = np.count_nonzero(np.asarray(tokens), axis=1), np.count_nonzero(new, axis=1)
    swaps = ((new != np.asarray(tokens)).sum(1) == 1) & (before == after)
    assert min((after > before).mean(), (after < before).mean(), swaps.mean()) > 0.05
    same = (new == np.asarray(tokens)) & is_constant(new)
    assert np.mean(numbers[same] == np.asarray(values)[same]) > 0.9


def test_edits_use_all_variables_and_no_others(bank: SkeletonTable) -> None:
    tokens, values = encoded(bank, 2048, 13)
    for variables in (1, 2, 3):
        new, _ = edit(KEY, tokens, values, tokens[:100], variables)
        found = set(np.unique(np.asarray(new)).tolist())
        assert {t for t in (1, 2, 3) if t in found} == set(range(1, variables + 1)) and legal(
            np.asarray(new)
        ).all()


def test_blind_candidates_are_skeletons_of_the_prior(bank: SkeletonTable) -> None:
    drawn = np.asarray(draw_prior(KEY, bank.tokens, 500))
    assert legal(drawn).all()
    known = {decode(t.astype(np.int32)).skeleton() for t in np.asarray(bank.tokens)}
    assert {decode(t).skeleton() for t in drawn} <= known


# ---------------------------------------------------------------- what is remembered


def some_candidates(bank: SkeletonTable, count: int, seed: int) -> Candidate:
    """Formulas of few skeletons with different constants and made-up fits."""
    rng = np.random.default_rng(seed)
    tokens, _ = encoded(bank, 12, 3)
    rows = np.asarray(tokens)[rng.integers(12, size=count)]
    values = np.where(is_constant(rows), rng.normal(size=rows.shape), 0.0).astype(np.float32)
    fvu = np.where(rng.random(count) < 0.1, np.inf, rng.random(count) ** 4).astype(np.float32)
    return Candidate(
        jnp.asarray(rows),
        jnp.asarray(values),
        jnp.asarray(rng.normal(size=(count, 8)), jnp.float32),
        jnp.asarray(fvu),
    )


def empty_pool(keep: int) -> Pool:
    first = jnp.zeros((keep, CONFIG.slots), jnp.int32).at[:, 0].set(1)
    bad = jnp.full(keep, jnp.inf, jnp.float32)
    return Pool(
        first,
        jnp.zeros((keep, CONFIG.slots), jnp.float32),
        jnp.zeros((keep, 8), jnp.float32),
        bad,
        bad,
        jnp.zeros((keep, 2, 8), jnp.float32),
    )


def to_merge(new: Candidate) -> Pool:
    """Candidates with what a pool holds beside them."""
    return Pool(
        *new, score(new.tokens, new.fvu, COUNT), jnp.zeros((len(new.fvu), 2, 8), jnp.float32)
    )


def test_the_hash_sees_the_skeleton_and_not_the_constants(bank: SkeletonTable) -> None:
    tokens = np.asarray(bank.tokens).astype(np.int32)
    assert len(np.unique(skeleton_hash(jnp.asarray(tokens)))) == len(tokens)
    other = np.where(is_constant(tokens), tokens + 1, tokens)
    np.testing.assert_array_equal(
        skeleton_hash(jnp.asarray(other)), skeleton_hash(jnp.asarray(tokens))
    )


@pytest.mark.parametrize("keep", [4, 32])
def test_merge_keeps_the_best_of_each_skeleton(keep: int, bank: SkeletonTable) -> None:
    pool = empty_pool(keep)
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
        cost = np.asarray(pool.cost)
        np.testing.assert_allclose(cost[np.isfinite(cost)], best, rtol=1e-6)
        names = [
            decode(t).skeleton()
            for t, c in zip(np.asarray(pool.tokens), cost, strict=True)
            if np.isfinite(c)
        ]
        assert len(names) == len(set(names))
    real = np.isfinite(np.asarray(pool.cost))
    np.testing.assert_allclose(
        pool.cost[real], score(pool.tokens, pool.fvu, COUNT)[real], rtol=1e-6
    )


def test_merging_twice_changes_nothing(bank: SkeletonTable) -> None:
    new = some_candidates(bank, 60, 1)
    once = merge(empty_pool(16), to_merge(new))
    np.testing.assert_array_equal(merge(once, to_merge(new)).cost, once.cost)


def test_the_most_promising_are_the_best_of_different_skeletons_in_each_group(
    bank: SkeletonTable,
) -> None:
    new = some_candidates(bank, 80, 2)
    chosen = np.asarray(top_per_group(new, 4, 3, COUNT)).reshape(4, 3)
    cost = np.asarray(score(new.tokens, new.fvu, COUNT))
    for group, indices in enumerate(chosen):
        best: dict[tuple, float] = {}
        for i in range(20 * group, 20 * group + 20):
            name = decode(np.asarray(new.tokens[i])).skeleton()
            best[name] = min(best.get(name, np.inf), float(cost[i]))
        assert ((indices >= 20 * group) & (indices < 20 * group + 20)).all()
        np.testing.assert_allclose(np.sort(cost[indices]), sorted(best.values())[:3], rtol=1e-6)


def test_longer_and_worse_costs_more() -> None:
    tokens, _ = encode([parse("x"), parse("x"), parse("sin(x) + x"), parse("x*1.5 + x")])
    cost = np.asarray(
        score(jnp.asarray(tokens), jnp.asarray([1e-3, 1e-2, 1e-3, np.nan], jnp.float32), COUNT)
    )
    assert cost[0] < cost[1] and cost[0] < cost[2] and np.isinf(cost[3])


# ---------------------------------------------------------------- short formulas and pairs of them


def short_ones(lines: list[str]) -> Array:
    """Short skeletons, enough of them for one block of pairs."""
    tokens, _ = encode([parse_prefix(line) for line in lines], CONFIG.slots)
    return jnp.asarray(np.resize(tokens, (BLOCK, CONFIG.slots)).astype(np.uint8))


@pytest.fixture(scope="module")
def plot() -> Points:
    x = np.linspace(0.5, 3.0, 40)[:, None]
    return device_points(prepare(x, np.tanh(x[:, 0]) * (x[:, 0] + np.sqrt(x[:, 0])) ** 2))


def test_a_library_draws_constants_only_where_they_are_asked_for(plot: Points) -> None:
    skeletons = np.array(short_ones(["sin mul 2.0 x1"] * BLOCK))
    skeletons[1::2][is_constant(skeletons[1::2])] = ANY_CONSTANT
    library = make_library(KEY, jnp.asarray(skeletons), plot)
    numbers = np.asarray(library.values)[np.asarray(is_constant(library.tokens))]
    assert (
        (numbers[::2] == 2).all() and len(set(numbers[1::2])) > 3 and (np.abs(numbers) <= 100).all()
    )
    unit = np.asarray(library.unit)
    np.testing.assert_allclose((unit**2).sum(1), 1, rtol=1e-4)
    np.testing.assert_allclose(unit.sum(1), 0, atol=1e-4)
    assert not np.asarray(library.y)[:, ~np.asarray(plot.mask[0])].any()


def test_the_short_formulas_that_wait_are_the_best_of_their_skeletons(plot: Points) -> None:
    rows = np.repeat(
        np.array(short_ones(["sin mul 1.0 x1", "log x1", "exp mul 1.0 x1", "tanh x1"]))[:4],
        8,
        axis=0,
    )
    rows[is_constant(rows)] = ANY_CONSTANT
    library = make_library(KEY, jnp.asarray(rows), plot)
    waiting = np.asarray(queue_order(library, plot, 6))
    assert sorted(waiting[:2] // 8) == [0, 2] and not waiting[2:].any()
    target = np.asarray(plot.y)[0] * np.asarray(plot.mask)[0]
    gain = np.abs(np.asarray(library.unit) @ target)
    for row in waiting[:2]:
        block = slice(8 * (row // 8), 8 * (row // 8) + 8)
        assert gain[row] == pytest.approx(gain[block].max(), rel=1e-4)


def test_different_parts_are_kept_once_and_constants_not_at_all(plot: Points) -> None:
    texts = ["sin(x) + x**2", "sin(x) * exp(x)", "x**2 + sin(x)", "exp(2.0) * x"]
    tokens, values = (jnp.asarray(a) for a in encode([parse(t) for t in texts], CONFIG.slots))
    values = values.astype(jnp.float32)
    parts = distinct_subtrees(tokens, values, evaluate_nodes(tokens, values, plot.x), plot, 12)
    kept = np.asarray(parts.y).any(axis=1)
    assert legal(np.asarray(parts.tokens)[kept]).all() and not np.asarray(parts.tokens)[~kept].any()
    np.testing.assert_allclose(
        evaluate(parts.tokens, parts.values, plot.x)[kept][:, plot.mask[0]],
        parts.y[kept][:, plot.mask[0]],
        rtol=1e-5,
    )
    # x, sin x, x^2, exp x, the two products and the sum (which is the same sum twice, but not to
    # the last bit)
    assert 7 <= kept.sum() <= 8
    size = np.count_nonzero(parts.tokens, axis=1)[kept]
    assert size.min() == 1 and (np.diff(size) >= 0).all()
    rows = np.asarray(parts.y)[kept]
    assert (
        len(np.unique(np.round(rows / np.linalg.norm(rows, axis=1, keepdims=True), 5), axis=0)) == 6
    )  # exp(2) x is x once more, up to scale


def test_the_sweep_puts_the_best_short_formulas_first(plot: Points) -> None:
    """Of each skeleton the best numbers; fitted values, FVU and rows are those of executing the
    formula.
    """
    rows = np.repeat(
        np.array(
            short_ones(["sin mul 1.0 x1", "log x1", "exp mul 1.0 x1", "tanh x1", "log neg x1"])
        )[:5],
        8,
        axis=0,
    )
    rows[is_constant(rows)] = ANY_CONSTANT
    library = make_library(KEY, jnp.asarray(rows), plot)
    found = initial_pool(library, plot, 4)
    skeletons = {decode(t).skeleton() for t in np.asarray(found.tokens)}
    assert (
        len(skeletons) == 4 and (np.diff(found.cost) >= 0).all() and np.isfinite(found.fvu).all()
    )  # log(-x) is nowhere defined
    again = execute(found.tokens, found.values, plot)
    np.testing.assert_allclose(found.fvu, again.fvu, rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(found.fitted, again.fitted, atol=1e-3)
    np.testing.assert_allclose(jnp.sum(found.rows**2, axis=(1, 2)), 1.0, rtol=1e-4)
    every = np.asarray(execute(library.tokens, library.values, plot).fvu)
    assert float(found.fvu[0]) == pytest.approx(every.min(), rel=1e-3)


@pytest.mark.parametrize(
    ("text", "skeleton", "d"),
    [
        ("5*x/(x + 0.37)", "div x1 add x1 0.5", 0.37),
        ("2/(exp(x) - 0.8)", "inv add exp x1 -1", -0.8),
        ("x**3/(exp(2*x) + 1.7) + 0", "div cube x1 add exp mul 2 x1 1.5", 1.7),
    ],
)
def test_a_free_number_in_a_denominator_is_found(text: str, skeleton: str, d: float) -> None:
    x = np.linspace(0.3, 3.0, 40)[:, None]
    points = device_points(prepare(x, parse(text).evaluate(x.T)))
    library = make_library(
        KEY, short_ones(["x1", "cube x1", "exp x1", "log x1", "exp mul 2.0 x1", "tanh x1"]), points
    )
    tokens, values = quotients(library, points, 12)
    tokens, values = np.asarray(tokens), np.asarray(values)
    assert legal(tokens).all() and tokens.shape == values.shape == (12, CONFIG.slots)
    names = [decode(t).skeleton() for t in tokens]
    first = names.index(parse_prefix(skeleton).skeleton())
    assert first < 3 and decode(tokens[first], values[first]).constants()[-1] == pytest.approx(
        d, rel=1e-3
    )
    fvu = np.asarray(execute(jnp.asarray(tokens), jnp.asarray(values), points).fvu)
    assert fvu[first] == fvu.min() < 1e-7
    different = [
        n for n in names if n != parse_prefix("x1").skeleton()
    ]  # what is not a quotient is x
    assert len(different) == len(set(different)) > 4


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("3*tanh(x)*(x + sqrt(x))**2 - 1", "mul"),
        ("2*sqrt(x)/(x + exp(x))", "div"),
        ("0.3*log(x) - 2*sin(x + x**2) + 4", "add"),
    ],
)
def test_couples_find_both_halves_of_a_formula(text: str, kind: str) -> None:
    x = np.linspace(0.5, 3.0, 40)[:, None]
    points = device_points(prepare(x, parse(text).evaluate(x.T)))
    library = make_library(
        KEY,
        short_ones(
            ["x1", "sqrt x1", "log x1", "tanh x1", "exp x1", "cos x1", "sin x1", "square x1"]
        ),
        points,
    )
    drawn = ("cos(x + sqrt(x))**2", "(x + sqrt(x))**2", "x + exp(x)", "sin(x + x**2)*exp(x)")
    tokens, values = (jnp.asarray(a) for a in encode([parse(t) for t in drawn], CONFIG.slots))
    values = values.astype(jnp.float32)
    pairs = pair_up(
        distinct_subtrees(tokens, values, evaluate_nodes(tokens, values, points.x), points, 24),
        library,
        points,
        4,
    )
    assert legal(np.asarray(pairs[0])).all() and len(pairs[0]) == 12
    fvu = np.asarray(execute(*pairs, points).fvu)
    best = int(np.argmin(fvu))
    assert fvu[best] < 1e-9 and ("add", "mul", "div")[best // 4] == kind


def test_a_pair_that_is_too_long_is_not_written(plot: Points) -> None:
    long = "x1" + " + sin(x1)" * 5
    tokens, values = (jnp.asarray(a) for a in encode([parse(long)], CONFIG.slots))
    values = values.astype(jnp.float32)
    whole = Subtrees(tokens, values, jnp.where(plot.mask, evaluate(tokens, values, plot.x), 0.0))
    library = make_library(KEY, short_ones(["sqrt x1", "log x1"]), plot)
    pairs = pair_up(whole, library, plot, 4)
    assert (np.asarray(pairs[0])[:, 0] == 1).all() and not np.asarray(pairs[0])[:, 1:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thoughts": 0}, "thoughts is 0; it must be a positive whole number"),
        ({"fits": 2.0}, "fits is 2.0; it must be a positive whole number"),
        ({"couples": -1}, "couples is -1; it must be a whole number, 0 or more"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be a number of at least 0.001"),
        ({"solved": float("nan")}, "solved is nan"),
        ({"fits": 200}, "no more can be fitted than are drawn"),
        ({"edits": 4}, "it must be 0 or at least 8"),
    ],
)
def test_a_budget_that_makes_no_sense_says_so(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SearchConfig(), **change)
