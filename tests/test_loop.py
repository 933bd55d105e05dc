"""Chapters 4, 7 and 9: the compiled search is a Python loop, one step of it refines once, its
memory does not grow, what halts stands still, and every proposer can be left out or be alone.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG, PROPOSERS, SMALL, SMALL_ONES
from flax import nnx
from jax import Array
from test_grammar import legal

from refinemath import RefineMath
from refinemath.compiled import _QUICK_TO_COMPILE, no_rows, record_search, run_search, run_settle
from refinemath.engine import device_points
from refinemath.examples import SkeletonTable
from refinemath.execution import Programs
from refinemath.expression import MASK, decode, encode, is_constant
from refinemath.fitting import Candidate, Points, execute
from refinemath.loop import (
    Context,
    Loop,
    Proposer,
    SearchConfig,
    SearchOutput,
    SearchState,
    SettleState,
    Settling,
    anderson_step,
    declares,
    settle,
)
from refinemath.model import Model, Refiner, stabilise
from refinemath.pool import score
from refinemath.problem import prepare
from refinemath.proposers.edits import Edits
from refinemath.proposers.library import short_skeletons
from refinemath.proposers.missing_term import MissingTerm
from refinemath.proposers.network import Network
from refinemath.proposers.pairs import Pairs
from refinemath.proposers.quotients import Quotients
from refinemath.proposers.registry import DEFAULT, REGISTRY
from refinemath.proposers.short import Short
from refinemath.text import parse

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(0)
LOOP = replace(SMALL, search_steps=5, steps=12)
THRESHOLD = 0.02  # an untrained model moves far; this lets its latents halt one after the other


def scatter(text: str = "sin(1.7*x)/(1 + x**2) + 0.3*x") -> Points:
    x = np.linspace(0.3, 4.0, 40)[:, None]
    return device_points(prepare(x, parse(text).evaluate(x.T)))


def few_short() -> Array:
    """The shortest formulas, and some whose constants are drawn."""
    every = short_skeletons(CONFIG.slots)
    return jnp.asarray(np.concatenate([every[:256], every[-256:]]))


def arguments(model: Model | None, *, limit: int = 1024, short: Array | None = None) -> list[Any]:
    graph, params = (None, None) if model is None else nnx.split(model)
    start = few_short() if short is None else short
    return [params, graph, scatter(), KEY, start, no_rows(CONFIG.slots), jnp.int32(limit)]


@contextmanager
def python_loop(rounds: int) -> Iterator[tuple[list[Any], list[Any]]]:
    """Inside, `while_loop` is a loop of Python: always so many rounds, masked by the loop's own
    condition.  Yields the list of all states and the list of all steps (not compiled).
    """
    states: list[Any] = []
    steps: list[Any] = []

    def masked_loop(going_on: Callable[[Any], Any], step: Callable[[Any], Any], state: Any) -> Any:
        # compiled as `run_search` is: what rounding does then hardly differs
        compiled = jax.jit(step, compiler_options=_QUICK_TO_COMPILE)
        steps.append(step)
        states.append(state)
        for _ in range(rounds):
            state = compiled(state) if bool(going_on(state)) else state
            states.append(state)
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "while_loop", masked_loop)
        yield states, steps


@pytest.fixture(scope="module")
def outcome(tiny_model: Model) -> SearchOutput:
    return run_search(*arguments(tiny_model), proposers=PROPOSERS, config=LOOP)


@pytest.fixture(scope="module")
def driven(tiny_model: Model) -> tuple[Loop, list[SearchState]]:
    """The loop and its states when Python drives it."""
    with python_loop(LOOP.search_steps + 2) as (states, steps):
        run_search.__wrapped__(*arguments(tiny_model), proposers=PROPOSERS, config=LOOP)
    return steps[0].__self__, states


@pytest.fixture(scope="module")
def states(driven: tuple[Loop, list[SearchState]]) -> list[SearchState]:
    return driven[1]


# ---------------------------------------------------------------- the search


def test_the_while_loop_is_a_masked_python_loop(
    outcome: SearchOutput, states: list[SearchState]
) -> None:
    last = states[-1]
    assert int(outcome.steps) == int(last.step) == LOOP.search_steps
    np.testing.assert_array_equal(outcome.pool.tokens, last.pool.tokens)
    for a, b in zip(
        jax.tree.leaves((outcome.pool, outcome.latents, outcome.trace)),
        jax.tree.leaves((last.pool, last.latents, last.trace)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert int(outcome.found_at) == int(last.found_at)


def test_a_step_of_the_search_is_a_step_of_the_refiner(
    states: list[SearchState], tiny_model: Model
) -> None:
    encoded = tiny_model.look(scatter(), LOOP.latents)
    graph, params = nnx.split(tiny_model)
    step = jax.jit(lambda z, seen: nnx.merge(graph, params).refiner(z, encoded, seen))
    steps = [pair for pair in itertools.pairwise(states) if int(pair[1].step) > int(pair[0].step)]
    assert len(steps) == LOOP.search_steps
    for old, new in steps:
        np.testing.assert_allclose(new.latents, step(old.latents, old.candidates), atol=2e-5)
        moved = np.asarray(new.latents - old.latents).reshape(LOOP.latents, -1)
        length = np.linalg.norm(np.asarray(old.latents).reshape(LOOP.latents, -1), axis=1)
        speed = np.asarray(new.trace.velocity)[int(old.step)]
        np.testing.assert_allclose(speed, np.linalg.norm(moved, axis=1) / length, rtol=1e-4)


def test_a_step_calls_the_refiner_once(
    driven: tuple[Loop, list[SearchState]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    call = Refiner.__call__

    def counted(self: Refiner, *arguments: Any) -> Any:
        calls.append(self)
        return call(self, *arguments)

    monkeypatch.setattr(Refiner, "__call__", counted)
    loop, states = driven
    jax.eval_shape(loop.step, states[0])
    assert len(calls) == 1


def test_a_latent_sees_the_best_of_its_own_samples_and_never_a_worse_one(
    driven: tuple[Loop, list[SearchState]],
) -> None:
    loop, states = driven
    seen = [s.candidates for s in states]
    assert (np.asarray(seen[0].tokens) == MASK).all()  # at first it sees nothing
    assert legal(np.asarray(seen[-1].tokens)).all()
    count = jnp.float32(40)
    for old, new in itertools.pairwise(seen):
        was, now = (np.asarray(score(c.tokens, c.fvu, count)) for c in (old, new))
        assert (now <= was + 1e-4).all()
    assert len(np.unique(np.asarray(seen[-1].tokens), axis=0)) > 1  # each its own
    fitted = execute(seen[-1].tokens, seen[-1].values, loop.context.points)
    np.testing.assert_allclose(fitted.fvu, seen[-1].fvu, rtol=0.02, atol=1e-6)


def test_every_remembered_formula_is_legal_and_what_it_says(outcome: SearchOutput) -> None:
    pool = jax.tree.map(np.asarray, outcome.pool)
    real = np.isfinite(pool.score)
    assert real.sum() > 10 and legal(pool.tokens[real]).all()
    assert (np.diff(pool.score[real]) >= 0).all()
    _x, y, mask = (np.asarray(a) for a in scatter())
    for i in np.flatnonzero(real)[:8]:
        assert not pool.values[i][~is_constant(pool.tokens[i])].any()
        r = (pool.fitted[i] - y[0])[mask[0]].astype(np.float64)
        assert np.mean(r**2) / np.var(y[0][mask[0]]) == pytest.approx(
            pool.fvu[i], rel=0.05, abs=1e-6
        )
        decode(pool.tokens[i], pool.values[i])


def test_the_pool_never_gets_worse_and_the_search_says_when_it_got_better(
    states: list[SearchState],
) -> None:
    best = [float(s.pool.score[0]) for s in states]
    assert all(b <= a + 1e-4 for a, b in itertools.pairwise(best)) and best[-1] < np.inf
    better = [i for i, (a, b) in enumerate(itertools.pairwise(best), 1) if b < a - 0.5]
    assert int(states[-1].found_at) == max(better, default=0) > 0


def test_a_limit_ends_the_search_earlier_and_changes_nothing_before(
    tiny_model: Model, states: list[SearchState]
) -> None:
    short = run_search(*arguments(tiny_model, limit=3), proposers=PROPOSERS, config=LOOP)
    assert int(short.steps) == 3
    np.testing.assert_array_equal(short.pool.tokens, states[3].pool.tokens)
    np.testing.assert_allclose(short.latents, states[3].latents, atol=1e-4)
    for record in short.trace:  # the records end with the search
        assert not np.isnan(record[:3]).any() and np.isnan(record[3:]).all()


@pytest.mark.parametrize("shorten", [0, 2])
def test_a_formula_that_is_found_may_get_shorter_for_some_steps(shorten: int) -> None:
    config = replace(LOOP, search_steps=12, shorten=shorten, solved=1e-9)
    points, start = scatter("sin(x)"), few_short()
    given = None, None, points, KEY, start, no_rows(CONFIG.slots), jnp.int32(12)
    found = run_search(*given, proposers=(Short(refine=4, rounds=2),), config=config)
    # it stands in the first pool, but what looks exact there is executed before it counts
    assert float(found.pool.fvu[0]) <= 1e-9
    assert int(found.steps) == max(int(found.found_at) + shorten, 1) < 6


def test_the_key_makes_the_search(tiny_model: Model, outcome: SearchOutput) -> None:
    again = run_search(*arguments(tiny_model), proposers=PROPOSERS, config=LOOP)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(outcome), strict=True):
        np.testing.assert_array_equal(a, b)
    params, graph, points, _, *rest = arguments(tiny_model)
    other = run_search(
        params, graph, points, jax.random.key(1), *rest, proposers=PROPOSERS, config=LOOP
    )
    assert np.any(np.asarray(other.latents) != np.asarray(outcome.latents))


@pytest.mark.parametrize(
    ("config", "proposer"),
    [
        ({}, Pairs(per_kind=3, shortest=100, refine=200)),
        ({}, MissingTerm(parents=1, choices=3)),
        ({}, MissingTerm(parents=500)),
        ({}, Edits(count=9, refine=40)),
        ({}, Quotients(refine=5, rounds=3, numerators=2)),
        ({}, Short(refine=7, rounds=3)),
        ({"pool": 1, "refit": 64}, Edits(count=9)),
        ({"subtrees": 7}, Pairs(per_kind=16)),
        ({"latents": 3}, Network(per_latent=5)),
        ({"latents": 1, "pool": 64}, Network(per_latent=3)),  # fewer samples than the pool has room
    ],
    ids=str,
)
def test_sizes_need_not_be_round(
    config: dict[str, int], proposer: Proposer, tiny_model: Model
) -> None:
    """Traced, alone and beside the others."""
    sizes = replace(LOOP, **config)
    params, graph, *rest = arguments(tiny_model)
    others = [p for p in PROPOSERS if type(p) is not type(proposer)]
    for proposers in ((proposer,), (proposer, *others)):
        found = jax.eval_shape(
            lambda params, *rest, chosen=proposers: run_search.__wrapped__(
                params, graph, *rest, proposers=chosen, config=sizes
            ),
            params,
            *rest,
        )
        reads = any(declares(p, "reads_latents") for p in proposers)
        assert found.pool.tokens.shape == (sizes.pool, CONFIG.slots)
        assert found.trace.velocity.shape == (sizes.search_steps, sizes.latents if reads else 0)


def test_memory_does_not_grow_with_the_number_of_steps(tiny_model: Model) -> None:
    args = arguments(tiny_model)

    def needed(steps: int) -> tuple[int, int]:
        config = replace(LOOP, search_steps=steps)
        lowered = run_search.lower(*args, proposers=PROPOSERS, config=config)
        found = lowered.compile().memory_analysis()
        return found.temp_size_in_bytes, found.output_size_in_bytes

    (few, short), (many, long) = needed(12), needed(512)
    records = long - short  # the trace: a row a step, and nothing else, is longer
    assert records <= 500 * 4 * (LOOP.latents * 9 + 1 + CONFIG.slots**2) + 4096
    assert many - few <= 2 * records + 65536
    assert few > 200_000


# ---------------------------------------------------------------- who proposes


def searched(model: Model | None, table: Array, names: set[str]) -> SearchOutput:
    """A search with small proposers of these names, with nothing that they do not use."""
    proposers = tuple(p for name, p in SMALL_ONES.items() if name in names)
    uses = {t: any(declares(p, t) for p in proposers) for t in ("uses_library", "uses_table")}
    nothing = no_rows(CONFIG.slots)
    params, graph, points, key, _, _, limit = arguments(model)
    start, rows = few_short() if uses["uses_library"] else nothing, nothing
    if uses["uses_table"]:
        rows = table
    given = params, graph, points, key, start, rows, limit
    return run_search(*given, proposers=proposers, config=SMALL)


def check_found(found: SearchOutput, *, reads: bool) -> None:
    """Something legal was found, and there are latents where somebody reads them."""
    real = np.isfinite(np.asarray(found.pool.score))
    assert real.any() and legal(np.asarray(found.pool.tokens)[real]).all()
    again = execute(found.pool.tokens, found.pool.values, scatter())
    # no claim is better than what executing gives; sums of the library share one factor at first
    assert (again.fvu[real] <= 1.02 * found.pool.fvu[real] + 1e-6).all()
    np.testing.assert_allclose(again.fvu[0], found.pool.fvu[0], rtol=0.02, atol=1e-6)
    assert len(found.latents) == (SMALL.latents if reads else 0)
    assert found.trace.velocity.shape[1] == len(found.latents)
    assert int(found.steps) == SMALL.search_steps


def test_the_small_proposers_are_all_there_are() -> None:
    on_device = {n: p for n, p in REGISTRY.items() if not declares(p, "on_host")}
    assert {n: type(p) for n, p in SMALL_ONES.items()} == {n: type(p) for n, p in on_device.items()}


@pytest.mark.parametrize("name", sorted(SMALL_ONES))
def test_every_proposer_can_be_alone(name: str, tiny_model: Model, bank: SkeletonTable) -> None:
    """Without a model where it reads no latents; of what it does not use it gets no rows."""
    reads = declares(REGISTRY[name], "reads_latents")
    found = searched(tiny_model if reads else None, bank.tokens, {name})
    if name == "edits":  # it changes what others found; alone it starts at x
        assert np.isfinite(float(found.pool.score[0]))
    check_found(found, reads=reads)


@pytest.mark.parametrize("name", sorted(DEFAULT & SMALL_ONES.keys()))
def test_every_proposer_can_be_left_out(name: str, tiny_model: Model, bank: SkeletonTable) -> None:
    reads = name != "network"
    found = searched(tiny_model if reads else None, bank.tokens, set(DEFAULT - {name}))
    check_found(found, reads=reads)


def test_the_null_model_needs_no_network(bank: SkeletonTable) -> None:
    found = searched(None, bank.tokens, set(DEFAULT - {"network"} | {"prior"}))
    check_found(found, reads=False)


@dataclass(frozen=True)
class Guess:
    """What a reader would write who has an idea of his own."""

    text: str
    refine: int = 1

    def init(self, context: Context, key: Array) -> Programs:
        tokens, values = encode([parse(self.text)], context.library.tokens.shape[1])
        return Programs(jnp.asarray(tokens), jnp.asarray(values, jnp.float32))

    def propose(
        self, model: Any, context: Context, memory: Programs, state: SearchState, key: Array
    ) -> tuple[Programs, Programs]:
        return memory, memory


@pytest.mark.parametrize("others", [(), PROPOSERS[1:3]], ids=["alone", "beside others"])
def test_a_proposer_that_is_passed_as_an_object_is_asked(others: tuple[Proposer, ...]) -> None:
    proposers = (*others, Guess("sin(1.5*x)/(1 + x**2) + x"))
    short = few_short() if others else no_rows(CONFIG.slots)
    config = replace(LOOP, fit_steps=6, search_steps=8)
    found = run_search(*arguments(None, short=short), proposers=proposers, config=config)
    assert float(found.pool.fvu[0]) < 1e-9 and not len(found.latents)
    wanted = decode(encode([parse("sin(1.5*x)/(1 + x**2) + x")])[0][0]).skeleton()
    assert decode(np.asarray(found.pool.tokens[0])).skeleton() == wanted


def test_solve_takes_a_proposer_of_the_users_own() -> None:
    x = np.linspace(0.3, 4.0, 40)
    y = parse("3*sin(1.7*x)/(1 + x**2) + 0.3*x").evaluate(x[None])
    own = Guess("sin(1.5*x)/(1 + x**2) + x")
    config = replace(SMALL, fit_steps=6, search_steps=8)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = RefineMath(proposers=[own], config=config, patience=1).solve(x, y, searches=1)
    assert result.exact and result.velocity.shape[1] == 0
    assert result.formula.evaluate(x[None]) == pytest.approx(y)


# ---------------------------------------------------------------- settling


SEEN = "sin(x)/(1 + x**2)"  # what every latent sees while it settles


def settling_arguments(model: Model) -> tuple[Any, ...]:
    graph, params = nnx.split(model)
    tokens, values = (jnp.asarray(a) for a in encode([parse(SEEN), parse("x")], CONFIG.slots))
    points = scatter()
    best = execute(tokens, values.astype(jnp.float32), points)
    noise = LOOP.noise * jax.random.normal(
        KEY, (LOOP.latents, CONFIG.slots, CONFIG.latent_dim), jnp.float32
    )
    latents, most = model.refiner.start(noise), jnp.int32(LOOP.steps)
    return params, graph, points, latents, best, jnp.float32(THRESHOLD), most


@pytest.fixture(scope="module")
def settled(tiny_model: Model) -> tuple[Settling, list[SettleState]]:
    """The states of settling when Python drives its loop."""
    _, _, *rest = settling_arguments(tiny_model)
    with python_loop(LOOP.steps) as (states, steps):
        settle(tiny_model, *rest, LOOP)
    return steps[0].__self__, states


def test_settling_is_a_masked_python_loop(
    tiny_model: Model, settled: tuple[Settling, list[SettleState]]
) -> None:
    last = settled[1][-1]
    end = run_settle(*settling_arguments(tiny_model), config=LOOP)
    taken = int(end.steps)
    assert taken == int(last.step) >= 4
    assert bool(end.converged) == bool((np.asarray(last.hits) >= 2).all())
    np.testing.assert_allclose(end.latents, last.latents, rtol=1e-3, atol=1e-4)
    for a, b in zip(end.trace, last.trace, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        assert not np.isnan(a[:taken]).any() and np.isnan(a[taken:]).all()


def test_a_step_of_settling_is_a_step_of_the_refiner_moved_ahead(
    tiny_model: Model, settled: tuple[Settling, list[SettleState]]
) -> None:
    settling, states = settled
    graph, params = nnx.split(tiny_model)
    encoded, candidate = settling.seen, settling.candidate
    step = jax.jit(lambda z: nnx.merge(graph, params).refiner(z, encoded, candidate))
    leapt = 0
    for old, new in itertools.pairwise(states):
        moving = np.asarray(old.hits) < 2
        refined = step(old.latents)
        if int(old.step) >= 2:  # two steps behind it
            ahead = anderson_step(old.latents, refined, old.before, LOOP.leap)
            refined, leapt = stabilise(ahead, "polar"), leapt + 1
        np.testing.assert_allclose(new.latents[moving], refined[moving], atol=2e-5)
    assert leapt > 1


def test_a_latent_that_has_halted_does_not_move(
    settled: tuple[Settling, list[SettleState]],
) -> None:
    settling, states = settled
    halted = np.array([True, False, True, False])
    old = states[3]._replace(hits=jnp.where(halted, 2, 0).astype(states[3].hits.dtype))
    new = jax.jit(settling.step)(old)
    np.testing.assert_array_equal(new.latents[halted], old.latents[halted])
    velocity = np.asarray(new.trace.velocity)[int(old.step)]
    assert not velocity[halted].any() and (velocity[~halted] > 0).all()
    moved = np.asarray(new.latents) != np.asarray(old.latents)
    assert moved[~halted].any(axis=(1, 2)).all()
    assert (np.asarray(new.hits)[halted] == 2).all()


def test_two_hits_in_a_row_halt_and_one_does_not(
    settled: tuple[Settling, list[SettleState]],
) -> None:
    for old, new in itertools.pairwise(settled[1]):
        if int(new.step) == int(old.step):
            continue
        moving = np.asarray(old.hits) < 2
        under = np.asarray(new.trace.velocity)[int(old.step)] < THRESHOLD
        np.testing.assert_array_equal(
            np.asarray(new.hits)[moving], np.where(under, np.asarray(old.hits) + 1, 0)[moving]
        )


def test_while_latents_settle_all_see_one_formula(
    tiny_model: Model, settled: tuple[Settling, list[SettleState]]
) -> None:
    best: Candidate = settling_arguments(tiny_model)[4]
    for own, given in zip(settled[0].candidate, best, strict=True):
        np.testing.assert_array_equal(own, np.broadcast_to(given[:1], own.shape))
    taken = int(settled[1][-1].step)
    assert (np.asarray(settled[1][-1].trace.fvu)[:taken] == float(best.fvu[0])).all()


def test_settling_ends_as_soon_as_all_stand_still(tiny_model: Model) -> None:
    *rest, _, most = settling_arguments(tiny_model)
    end = run_settle(*rest, jnp.float32(1e3), most, config=LOOP)
    assert int(end.steps) == 2 and bool(end.converged)
    assert np.isnan(end.trace.velocity[2:]).all()
    for limit in (LOOP.steps, 7, 0):
        end = run_settle(*rest, jnp.float32(0.0), jnp.int32(limit), config=LOOP)
        assert int(end.steps) == limit and not bool(end.converged)
    np.testing.assert_array_equal(end.latents, rest[3])  # no step


def test_memory_of_settling_does_not_grow_with_the_number_of_steps(tiny_model: Model) -> None:
    args = settling_arguments(tiny_model)

    def needed(steps: int) -> tuple[int, int]:
        lowered = run_settle.lower(*args, config=replace(LOOP, steps=steps))
        found = lowered.compile().memory_analysis()
        return found.temp_size_in_bytes, found.output_size_in_bytes

    (few, short), (many, long) = needed(12), needed(512)
    records = long - short
    assert records <= 500 * 4 * (LOOP.latents * 9 + 1 + CONFIG.slots**2) + 4096
    assert many - few <= 2 * records + 65536


def test_the_record_of_a_search_is_the_search_and_then_the_settling(
    tiny_model: Model, outcome: SearchOutput
) -> None:
    params, graph, points, *_ = settling_arguments(tiny_model)
    record = record_search(params, graph, points, outcome, THRESHOLD, LOOP)
    assert record.searched == int(outcome.steps) < record.steps <= LOOP.steps
    assert record.found_at == int(outcome.found_at)
    for own, searched in zip(record.trace, outcome.trace, strict=True):
        assert len(own) == record.steps and not np.isnan(own).any()
        np.testing.assert_array_equal(own[: record.searched], searched[: record.searched])
    for own, given in zip(record.pool, outcome.pool, strict=True):
        np.testing.assert_array_equal(own, given)
    speed = record.trace.velocity[record.searched :]
    assert record.converged == bool((speed[-2:] < THRESHOLD).all())
    assert (record.trace.fvu[record.searched :] == record.pool.fvu[0]).all()


def test_a_search_without_latents_has_nothing_to_bring_to_rest() -> None:
    found = run_search(*arguments(None), proposers=PROPOSERS[1:2], config=LOOP)
    record = record_search(None, None, scatter(), found, THRESHOLD, LOOP)
    assert record.steps == record.searched == int(found.steps) and record.converged
    assert record.trace.velocity.shape == (record.steps, 0) == (len(record.trace.fvu), 0)


def creeping(z: np.ndarray, factor: float, goal: float) -> np.ndarray:
    return goal + factor * (z - goal)


@pytest.mark.parametrize("factor", [0.2, 0.5, 0.8])
def test_a_leap_ends_where_a_creeping_latent_is_heading(factor: float) -> None:
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
    # what grows in one direction leaves an unstable fixed point, as fast as it may
    assert landed(1.5, 4.0) == pytest.approx(2.25 + 4 * 0.75)
    assert landed(-1.5, 4.0) == pytest.approx(2.25)  # what turns back is not helped on its way
    rest = jnp.asarray(start)
    np.testing.assert_array_equal(anderson_step(rest, rest, (rest, rest), 4.0), start)


# ---------------------------------------------------------------- sizes that make no sense


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": 0}, "latents is 0; it must be a positive whole number"),
        ({"pool": 2.0}, "pool is 2.0; it must be a positive whole number"),
        ({"refit": True}, "refit is True; it must be a positive whole number"),
        ({"subtrees": -1}, "subtrees is -1; it must be a positive whole number"),
        ({"shorten": -1}, "shorten is -1; it must be a whole number, 0 or more"),
        ({"solved": float("nan")}, "solved is nan"),
        ({"noise": -0.1}, "noise is -0.1; it must be 0 or more"),
        ({"leap": float("inf")}, "leap is inf"),
    ],
)
def test_a_search_that_makes_no_sense_says_so(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SearchConfig(), **change)
