"""Chapter 8: what each proposer proposes, against brute force and against laws; how formulas are
spliced; and the proposers by name.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG
from formulas import from_bank
from jax import Array
from test_grammar import legal

from refinemath import RefineMath
from refinemath.compiled import no_rows
from refinemath.engine import device_points
from refinemath.examples import SkeletonTable
from refinemath.execution import (
    Programs,
    Subtrees,
    distinct_subtrees,
    evaluate,
    evaluate_nodes,
    lengths,
)
from refinemath.expression import (
    CONSTANT_BINS,
    OPERATOR_TOKEN,
    TOKEN_VALUE,
    decode,
    encode,
    is_constant,
)
from refinemath.fitting import Candidate, Points, execute, levenberg_marquardt
from refinemath.loop import Context, SearchState, declares
from refinemath.pool import Pool, score
from refinemath.problem import prepare
from refinemath.proposers.edits import Edits, edit
from refinemath.proposers.library import (
    ANY_CONSTANT,
    COMMON,
    PAIR_COST,
    make_library,
    scale_rows,
    short_skeletons,
    thin,
    unit_rows,
)
from refinemath.proposers.missing_term import MissingTerm
from refinemath.proposers.network import Network
from refinemath.proposers.pairs import BLOCK, KINDS, LEAST_FVU, Pairs, best_partners
from refinemath.proposers.prior import Prior
from refinemath.proposers.quotients import Quotients
from refinemath.proposers.registry import DEFAULT, REGISTRY, resolve
from refinemath.proposers.short import Short, initial_pool, queue_order
from refinemath.proposers.splice import concat_tokens, mask_invalid, single_token, whole
from refinemath.text import parse, parse_prefix

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(0)
SIMPLE = ["x1", "sqrt x1", "log x1", "tanh x1", "exp x1", "cos x1", "sin x1", "square x1"]


def programs(texts: list[str] | tuple[str, ...]) -> Programs:
    tokens, values = encode([parse(t) for t in texts], CONFIG.slots)
    return Programs(jnp.asarray(tokens), jnp.asarray(values, jnp.float32))


def encoded(bank: SkeletonTable, count: int, seed: int) -> Programs:
    tokens, values = encode(from_bank(bank, count, seed=seed))
    return Programs(jnp.asarray(tokens), jnp.asarray(values, jnp.float32))


def short_ones(lines: list[str]) -> Array:
    """Short skeletons, enough of them for one block of pairs."""
    tokens, _ = encode([parse_prefix(line) for line in lines], CONFIG.slots)
    return jnp.asarray(np.resize(tokens, (BLOCK, CONFIG.slots)).astype(np.uint8))


def curve(text: str, low: float = 0.5, high: float = 3.0) -> Points:
    x = np.linspace(low, high, 40)[:, None]
    return device_points(prepare(x, parse(text).evaluate(x.T)))


def context_of(points: Points, skeletons: Array, table: Array | None = None) -> Context:
    library = make_library(KEY, skeletons, points)
    return Context(points, library, no_rows(CONFIG.slots) if table is None else table)


def state_of(pool: Pool | None = None, **fields: Any) -> SearchState:
    """A state that holds what a proposer looks at, and nothing else."""
    empty = dict.fromkeys(SearchState._fields)
    return SearchState(**{**empty, "pool": pool, "step": jnp.int32(0), **fields})


def pool_of(texts: list[str], points: Points) -> Pool:
    """These formulas, fitted."""
    p = programs(texts)
    fit = levenberg_marquardt(*p, points.x, points.y, points.mask, steps=1)
    price = score(p.tokens, fit.fvu, jnp.float32(40))
    return Pool(p.tokens, p.values, fit.fitted, fit.fvu, price, fit.rows)


def fvu_by_numpy(target: np.ndarray, *columns: np.ndarray) -> float:
    """FVU of the least-squares fit with an offset, in float64."""
    basis = np.stack([np.ones_like(target, np.float64), *columns], axis=1).astype(np.float64)
    size = np.maximum(np.abs(basis).max(axis=0), 1e-300)
    left = target - basis @ (np.linalg.lstsq(basis / size, target, rcond=None)[0] / size)
    return float(np.sum(left**2) / np.sum((target - target.mean()) ** 2))


@pytest.fixture(scope="module")
def plot() -> Points:
    return curve("tanh(x)*(x + sqrt(x))**2")


# ---------------------------------------------------------------- edits


def test_an_edit_is_always_legal(bank: SkeletonTable) -> None:
    before = encoded(bank, 4096, 10)
    donors, _ = encoded(bank, 200, 11)
    changed = 0
    for k in range(4):
        new, numbers = (np.asarray(a) for a in edit(jax.random.key(k), before, donors))
        assert legal(new).all() and new.dtype == np.int32 and numbers.dtype == np.float32
        assert not numbers[~is_constant(new)].any() and np.isfinite(numbers).all()
        assert (numbers[is_constant(new)] != 0).all()
        changed += int((new != np.asarray(before.tokens)).any(1).sum())
    assert changed > 4 * 4096 * 0.6


def test_an_edit_of_the_shortest_and_of_the_longest_formula_is_legal() -> None:
    short = jnp.zeros((500, CONFIG.slots), jnp.int32).at[:, 0].set(1)
    longest, numbers = encode([parse("neg(" * 15 + "x" + ")" * 15)])
    long = Programs(
        jnp.asarray(np.repeat(longest, 500, 0)),
        jnp.asarray(np.repeat(numbers, 500, 0), jnp.float32),
    )
    for before in (Programs(short, jnp.zeros(short.shape, jnp.float32)), long):
        for donors in (short[:1], long.tokens[:1]):
            new, _ = edit(KEY, before, donors)
            assert legal(np.asarray(new)).all()


def test_all_kinds_of_edits_happen(bank: SkeletonTable) -> None:
    """Longer, shorter, and as long with one other token; single constants survive an edit
    elsewhere.
    """
    old = encoded(bank, 4096, 12)
    new, numbers = (np.asarray(a) for a in edit(KEY, old, old.tokens[:100]))
    tokens, values = np.asarray(old.tokens), np.asarray(old.values)
    before, after = np.count_nonzero(tokens, axis=1), np.count_nonzero(new, axis=1)
    swaps = ((new != tokens).sum(1) == 1) & (before == after)
    assert min((after > before).mean(), (after < before).mean(), swaps.mean()) > 0.05
    same = (new == tokens) & is_constant(new)
    assert np.mean(numbers[same] == values[same]) > 0.9


def test_edits_use_all_variables_and_no_others(bank: SkeletonTable) -> None:
    before = encoded(bank, 2048, 13)
    for variables in (1, 2, 3, 10):
        new = np.asarray(edit(KEY, before, before.tokens[:100], variables).tokens)
        found = set(np.unique(new).tolist())
        assert found & set(range(1, 11)) == set(range(1, variables + 1)) and legal(new).all()


def test_edits_change_good_formulas_more_often_and_never_what_does_not_count() -> None:
    points = curve("sin(x) + x")
    texts = ["sin(x) + x", "sin(x)", "exp(x)", "tanh(x)", "log(x)", "sqrt(x)", "cos(x)", "x**3"]
    pool = pool_of(texts, points)
    last = pool.fvu.at[5:].set(jnp.inf)  # these were never executed
    samples = Programs(pool.tokens, pool.values)
    state = state_of(pool._replace(fvu=last), samples=samples)
    context = context_of(points, no_rows(CONFIG.slots))
    new = np.asarray(Edits(count=4000).propose(None, context, (), state, KEY)[0].tokens)
    assert new.shape == (4000, CONFIG.slots) and legal(new).all()
    shares = [np.mean(new[:, 0] == OPERATOR_TOKEN[n]) for n in ("add", "sin", "exp", "tanh")]
    assert shares[0] > shares[1] > shares[2] > shares[3] > 0


# ---------------------------------------------------------------- blind draws


def test_blind_candidates_are_skeletons_of_the_table(bank: SkeletonTable) -> None:
    points = curve("x")
    context = context_of(points, no_rows(CONFIG.slots), bank.tokens)
    drawn, _ = Prior(count=500).propose(None, context, (), state_of(), KEY)
    tokens, values = (np.asarray(a) for a in drawn)
    assert legal(tokens).all() and tokens.shape == (500, CONFIG.slots)
    known = {decode(t.astype(np.int32)).skeleton() for t in np.asarray(bank.tokens)}
    found = {decode(t).skeleton() for t in tokens}
    assert found <= known and len(found) > 0.9 * len(known) * (1 - np.exp(-500 / len(known)))
    np.testing.assert_array_equal(values, TOKEN_VALUE[tokens].astype(np.float32))
    drawn_numbers = set(values[is_constant(tokens)].tolist())
    assert len(drawn_numbers) > 0.5 * len(CONSTANT_BINS)


# ---------------------------------------------------------------- short formulas


def test_short_formulas_are_all_legal_and_the_shortest_come_first() -> None:
    rows = short_skeletons(CONFIG.slots)
    drawn = (rows == ANY_CONSTANT).any(axis=1)
    fixed = rows[~drawn].astype(np.int32)
    assert legal(fixed).all() and len(np.unique(fixed, axis=0)) == len(fixed)
    assert (np.diff(np.count_nonzero(fixed, axis=1)) >= 0).all()
    assert not drawn[: len(fixed)].any()  # those with free constants stand at the end
    numbers = TOKEN_VALUE[fixed][np.asarray(is_constant(fixed))]
    assert set(numbers.tolist()) == {float(c) for c in COMMON}
    free, copies = np.unique(rows[drawn], axis=0, return_counts=True)
    assert len(set(copies.tolist())) == 1 and copies[0] == 32
    assert (free == ANY_CONSTANT).any(axis=1).all()


@pytest.mark.parametrize("variables", [2, 4])
def test_short_formulas_of_several_variables_use_each_and_are_different(variables: int) -> None:
    rows = short_skeletons(CONFIG.slots, variables)
    used = set(np.unique(rows).tolist()) & set(range(1, 11))
    assert used == set(range(1, variables + 1))
    singles = {decode(r.astype(np.int32)).skeleton() for r in rows[:variables]}
    assert singles == {(f"x{i + 1}",) for i in range(variables)}
    drawn = (rows == ANY_CONSTANT).any(axis=1)
    assert legal(rows[~drawn].astype(np.int32)).all()
    # x1 x2 and x2 x1 are one function, x1 / x2 and x2 / x1 are two
    names = {decode(r.astype(np.int32)).skeleton() for r in rows[~drawn]}
    products = {("mul", "x1", "x2"), ("mul", "x2", "x1")}
    quotients = {("div", "x1", "x2"), ("div", "x2", "x1")}
    assert len(names & products) == 1 and quotients <= names


def test_a_library_draws_constants_only_where_they_are_asked_for(plot: Points) -> None:
    skeletons = np.array(short_ones(["sin mul 2.0 x1"] * BLOCK))
    skeletons[1::2][is_constant(skeletons[1::2])] = ANY_CONSTANT
    library = make_library(KEY, jnp.asarray(skeletons), plot)
    numbers = np.asarray(library.values)[np.asarray(is_constant(library.tokens))]
    assert (numbers[::2] == 2).all() and len(set(numbers[1::2])) > 3
    assert (np.abs(numbers) <= 100).all()
    unit = np.asarray(library.unit)
    np.testing.assert_allclose((unit**2).sum(1), 1, rtol=1e-4)
    np.testing.assert_allclose(unit.sum(1), 0, atol=1e-4)
    assert not np.asarray(library.outputs)[:, ~np.asarray(plot.mask[0])].any()


def test_what_is_undefined_or_too_large_explains_nothing() -> None:
    points = curve("x + 1", -2.0, 2.0)
    rows = short_ones(["log x1", "x1", "exp exp exp x1"])
    library = make_library(KEY, rows, points)
    unit = np.asarray(library.unit)
    assert np.isfinite(unit).all() and not unit[0].any() and not unit[2].any() and unit[1].any()
    assert not np.asarray(library.outputs)[[0, 2]].any()


def test_rows_of_any_size_are_scaled_to_length_one() -> None:
    rows = jnp.asarray([[3.0, 4.0], [3e-25, 4e-25], [3e18, 4e18], [0.0, 0.0]], jnp.float32)
    unit = np.asarray(scale_rows(rows))
    np.testing.assert_allclose(unit[:3], [[0.6, 0.8]] * 3, rtol=1e-5)
    assert not unit[3].any()
    mask = jnp.asarray([[True, True]])
    np.testing.assert_allclose(unit_rows(rows, mask)[0], [-(0.5**0.5), 0.5**0.5], rtol=1e-5)


def test_the_short_formulas_that_wait_are_the_best_of_their_skeletons(plot: Points) -> None:
    lines = ["sin mul 1.0 x1", "log x1", "exp mul 1.0 x1", "tanh x1"]
    rows = np.repeat(np.array(short_ones(lines))[:4], 8, axis=0)
    rows[is_constant(rows)] = ANY_CONSTANT
    library = make_library(KEY, jnp.asarray(rows), plot)
    waiting = np.asarray(queue_order(library, plot, 6))
    assert sorted(waiting[:2] // 8) == [0, 2] and not waiting[2:].any()
    target = np.asarray(plot.y)[0] * np.asarray(plot.mask)[0]
    gain = np.abs(np.asarray(library.unit) @ target)
    for row in waiting[:2]:
        block = slice(8 * (row // 8), 8 * (row // 8) + 8)
        assert gain[row] == pytest.approx(gain[block].max(), rel=1e-4)


@pytest.mark.parametrize("proposer", [Short(refine=3, rounds=4), Quotients(refine=3, rounds=4)])
def test_a_queue_is_given_out_piece_by_piece_and_then_again(
    proposer: Short | Quotients, plot: Points
) -> None:
    every = short_skeletons(CONFIG.slots)
    free = every[(every == ANY_CONSTANT).any(axis=1)][::32]
    context = context_of(plot, jnp.asarray(np.concatenate([every[:64], free[:64]])))
    queue = proposer.init(context, KEY)
    given = [
        proposer.propose(None, context, queue, state_of(step=jnp.int32(t)), KEY)[0]
        for t in range(5)
    ]
    for a, b in zip(given[0], given[4], strict=True):
        np.testing.assert_array_equal(a, b)
    names = [decode(t).skeleton() for g in given[:4] for t in np.asarray(g.tokens)]
    assert len(names) == 12 and len(set(names)) >= 11  # x where there are no more


def test_the_first_pool_puts_the_best_short_formulas_first(plot: Points) -> None:
    """Of each skeleton the best numbers; fitted values, FVU and rows are those of executing the
    formula.
    """
    lines = ["sin mul 1.0 x1", "log x1", "exp mul 1.0 x1", "tanh x1", "log neg x1"]
    rows = np.repeat(np.array(short_ones(lines))[:5], 8, axis=0)
    rows[is_constant(rows)] = ANY_CONSTANT
    library = make_library(KEY, jnp.asarray(rows), plot)
    found = initial_pool(library, plot, 4)
    skeletons = {decode(t).skeleton() for t in np.asarray(found.tokens)}
    assert len(skeletons) == 4 and (np.diff(found.score) >= 0).all()
    assert np.isfinite(found.fvu).all()  # log(-x) is nowhere defined
    again = execute(found.tokens, found.values, plot)
    np.testing.assert_allclose(found.fvu, again.fvu, rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(found.fitted, again.fitted, atol=1e-3)
    np.testing.assert_allclose(jnp.sum(found.rows**2, axis=(1, 2)), 1.0, rtol=1e-4)
    every: Candidate = execute(library.tokens, library.values, plot)
    assert float(found.fvu[0]) == pytest.approx(np.asarray(every.fvu).min(), rel=1e-3)


# ---------------------------------------------------------------- a missing term


def test_the_missing_term_is_the_one_that_least_squares_would_add(plot: Points) -> None:
    texts = ["x", "sin(x)", "exp(x) + log(x)", "x*sqrt(x) + tanh(x) + cos(x)"]
    pool = pool_of(texts, plot)
    context = context_of(plot, jnp.asarray(np.array(short_skeletons(CONFIG.slots)[:96])))
    proposer = MissingTerm(parents=4, choices=4)
    best, useful = proposer.best_terms(context, pool.tokens, pool.rows)
    assert (np.asarray(useful) == 1).all()
    mask = np.asarray(plot.mask[0])
    y = np.asarray(plot.y[0], np.float64)[mask]
    outputs = np.asarray(context.library.outputs, np.float64)[:, mask]
    for i, text in enumerate(texts):
        terms = [
            parse(t).evaluate(np.asarray(plot.x[0], np.float64)[:, mask]) for t in text.split(" + ")
        ]
        known = fvu_by_numpy(y, *terms)
        each = np.array([fvu_by_numpy(y, *terms, column) for column in outputs])
        # what the formula's own terms nearly make up brings nothing that float32 could tell
        new = np.array([c.any() and fvu_by_numpy(c, *terms) > 1.1e-3 for c in outputs])
        for part, chosen in enumerate(np.asarray(best).reshape(4, 4)[i]):
            own = each[24 * part : 24 * part + 24][new[24 * part : 24 * part + 24]]
            assert 24 * part <= chosen < 24 * part + 24
            assert each[chosen] <= own.min() + 1e-4 * known + 1e-7


def test_a_missing_term_is_written_in_front_and_its_coefficient_comes_for_free() -> None:
    points = curve("exp(x) - 3*sin(x) + 2")
    context = context_of(points, short_ones(SIMPLE))
    state = state_of(pool_of(["exp(x)", "x"], points))
    new, _ = MissingTerm(parents=2, choices=1).propose(None, context, (), state, KEY)
    assert legal(np.asarray(new.tokens)).all()
    assert decode(np.asarray(new.tokens)[0]).skeleton() == ("add", "sin", "x1", "exp", "x1")
    assert float(execute(*new, points).fvu[0]) < 1e-10


def test_a_formula_that_is_full_or_explained_gets_no_term() -> None:
    points = curve("exp(x) + 2")
    full = "neg(" * 14 + "sin(x)" + ")" * 14
    pool = pool_of(["exp(x)", full], points)
    exact = pool._replace(rows=pool.rows.at[0].set(pool.rows[0]))
    context = context_of(points, short_ones(["exp x1"]))
    new, _ = MissingTerm(parents=2, choices=2).propose(None, context, (), state_of(exact), KEY)
    tokens = np.asarray(new.tokens)
    assert [decode(t).skeleton() for t in tokens[:2]] == [("exp", "x1")] * 2
    np.testing.assert_array_equal(tokens[2:], np.asarray(pool.tokens)[[1, 1]])


# ---------------------------------------------------------------- pairs


def subtrees_of(texts: list[str] | tuple[str, ...], points: Points, most: int) -> Subtrees:
    p = programs(texts)
    return distinct_subtrees(p, evaluate_nodes(*p, points.x), points.mask, most)


DRAWN = ("cos(x + sqrt(x))**2", "(x + sqrt(x))**2", "x + exp(x)", "sin(x + x**2)*exp(x)")


def test_the_losses_of_all_pairs_equal_a_fit_by_brute_force(plot: Points) -> None:
    library = make_library(KEY, short_ones(SIMPLE), plot)
    short = Subtrees(*library[:3])
    subtrees = subtrees_of(DRAWN, plot, 12)
    loss, partner = (np.asarray(a) for a in best_partners(subtrees, short, plot))
    few, step = thin(plot)
    mask = np.asarray(few.mask[0])
    y = np.asarray(few.y[0], np.float64)[mask]
    f = np.asarray(short.outputs, np.float64)[:, ::step][:, mask]
    g = np.asarray(subtrees.outputs, np.float64)[:, ::step][:, mask]
    sizes = np.asarray(lengths(short.tokens)), np.asarray(lengths(subtrees.tokens))
    compared = 0
    for j in np.flatnonzero(sizes[1]):
        kinds = (
            lambda i, j=j: (f[i], g[j]),
            lambda i, j=j: (f[i] * g[j],),
            lambda i, j=j: (f[i] / g[j],),
        )
        for k, columns in enumerate(kinds):
            if not np.isfinite(loss[k, j]):
                continue
            fvu = np.array([max(fvu_by_numpy(y, *columns(i)), LEAST_FVU) for i in range(len(f))])
            price = np.exp(PAIR_COST / mask.sum() * (sizes[0] + sizes[1][j]))
            brute = fvu * price
            chosen = int(partner[k, j])
            # float32 blurs one minus a correlation; a sum of two that are one counts as bad
            assert loss[k, j] >= brute.min() * 0.97 - 2e-5
            assert loss[k, j] == pytest.approx(brute[chosen], rel=0.05, abs=5e-5)
            compared += 1
    assert compared > 20


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("3*tanh(x)*(x + sqrt(x))**2 - 1", "mul"),
        ("2*sqrt(x)/(x + exp(x))", "div"),
        ("0.3*log(x) - 2*sin(x + x**2) + 4", "add"),
    ],
)
def test_pairs_find_both_halves_of_a_formula(text: str, kind: str) -> None:
    points = curve(text)
    context = context_of(points, short_ones(SIMPLE))
    state = state_of(subtrees=subtrees_of(DRAWN, points, 24))
    pairs, _ = Pairs(per_kind=4).propose(None, context, (), state, KEY)
    assert legal(np.asarray(pairs.tokens)).all() and len(pairs.tokens) == 12
    fvu = np.asarray(execute(*pairs, points).fvu)
    best = int(np.argmin(fvu))
    assert fvu[best] < 1e-9 and KINDS[best // 4] == kind


def test_a_pair_that_is_too_long_is_not_written(plot: Points) -> None:
    tokens, values = programs(["x1" + " + sin(x1)" * 5])
    outputs = jnp.where(plot.mask, evaluate(tokens, values, plot.x), 0.0)
    state = state_of(subtrees=Subtrees(tokens, values, outputs))
    context = context_of(plot, short_ones(["sqrt x1", "log x1"]))
    pairs = np.asarray(Pairs(per_kind=4).propose(None, context, (), state, KEY)[0].tokens)
    assert (pairs[:, 0] == 1).all() and not pairs[:, 1:].any()


def test_different_subtrees_are_kept_once_and_constants_not_at_all(plot: Points) -> None:
    texts = ["sin(x) + x**2", "sin(x) * exp(x)", "x**2 + sin(x)", "exp(2.0) * x"]
    parts = subtrees_of(texts, plot, 12)
    kept = np.asarray(parts.outputs).any(axis=1)
    assert legal(np.asarray(parts.tokens)[kept]).all() and not np.asarray(parts.tokens)[~kept].any()
    np.testing.assert_allclose(
        evaluate(parts.tokens, parts.values, plot.x)[kept][:, plot.mask[0]],
        parts.outputs[kept][:, plot.mask[0]],
        rtol=1e-5,
    )
    # x, sin x, x^2, exp x, the two products and the sum (which is the same sum twice, but not to
    # the last bit)
    assert 7 <= kept.sum() <= 8
    size = np.count_nonzero(parts.tokens, axis=1)[kept]
    assert size.min() == 1 and (np.diff(size) >= 0).all()
    rows = np.asarray(parts.outputs)[kept]
    unit = np.round(rows / np.linalg.norm(rows, axis=1, keepdims=True), 5)
    assert len(np.unique(unit, axis=0)) == 6  # exp(2) x is x once more, up to scale


# ---------------------------------------------------------------- quotients


@pytest.mark.parametrize(
    ("text", "skeleton", "d"),
    [
        ("5*x/(x + 0.37)", "div x1 add x1 0.5", 0.37),
        ("2/(exp(x) - 0.8)", "inv add exp x1 -1", -0.8),
        ("x**3/(exp(2*x) + 1.7) + 0", "div cube x1 add exp mul 2 x1 1.5", 1.7),
    ],
)
def test_a_free_number_in_a_denominator_is_found(text: str, skeleton: str, d: float) -> None:
    points = curve(text, 0.3)
    lines = ["x1", "cube x1", "exp x1", "log x1", "exp mul 2.0 x1", "tanh x1"]
    context = context_of(points, short_ones(lines))
    tokens, values = (np.asarray(a) for a in Quotients().best(context, 12))
    assert legal(tokens).all() and tokens.shape == values.shape == (12, CONFIG.slots)
    names = [decode(t).skeleton() for t in tokens]
    first = names.index(parse_prefix(skeleton).skeleton())
    assert first < 3
    assert decode(tokens[first], values[first]).constants()[-1] == pytest.approx(d, rel=1e-3)
    fvu = np.asarray(execute(jnp.asarray(tokens), jnp.asarray(values), points).fvu)
    assert fvu[first] == fvu.min() < 1e-7
    # what is not a quotient is x
    different = [n for n in names if n != parse_prefix("x1").skeleton()]
    assert len(different) == len(set(different)) > 4


def test_a_denominator_that_changes_its_sign_is_not_written() -> None:
    points = curve("1/(x - 1.7)", 0.5, 1.5)  # no pole in the data: x - 1.7 is negative there
    context = context_of(points, short_ones(["x1"]))
    fine = decode(*(np.asarray(a)[0] for a in Quotients().best(context, 4)))
    assert fine.skeleton()[:2] == ("inv", "add") and fine.constants()[-1] == pytest.approx(
        -1.7, rel=1e-3
    )
    x = np.r_[np.linspace(0.5, 1.6, 20), np.linspace(1.8, 3.0, 20)][:, None]
    points = device_points(prepare(x, 1 / (x[:, 0] - 1.7)))
    context = context_of(points, short_ones(["x1"]))
    for tokens in np.asarray(Quotients().best(context, 4).tokens):
        assert decode(tokens).skeleton() == ("x1",)


# ---------------------------------------------------------------- splicing


def test_concatenated_formulas_are_prefix_text_put_together() -> None:
    f, g = programs(["sin(x)", "x"]), programs(["exp(2*x)", "x + 3"])
    plus = single_token(jnp.full(2, OPERATOR_TOKEN["add"], jnp.int32))
    tokens, values = (np.asarray(a) for a in concat_tokens(CONFIG.slots, plus, whole(f), whole(g)))
    found = [decode(t, v) for t, v in zip(tokens, values, strict=True)]
    assert found == [parse("sin(x) + exp(2*x)"), parse("x + (x + 3)")]


def test_concatenation_is_associative_and_a_segment_of_length_zero_is_its_unit(
    bank: SkeletonTable,
) -> None:
    """As long as all fits."""
    a, b, c = (whole(encoded(bank, 64, seed)) for seed in (1, 2, 3))
    wide = 3 * CONFIG.slots
    left = whole(concat_tokens(wide, a, b))._replace(length=a.length + b.length)
    right = whole(concat_tokens(wide, b, c))._replace(length=b.length + c.length)
    nothing = a._replace(length=jnp.zeros_like(a.length))
    for one, other in itertools.pairwise(
        [
            concat_tokens(wide, a, b, c),
            concat_tokens(wide, left, c),
            concat_tokens(wide, a, right),
            concat_tokens(wide, nothing, a, nothing, b, c, nothing),
        ]
    ):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)


def test_what_does_not_fit_is_cut_off_and_what_is_invalid_becomes_x(bank: SkeletonTable) -> None:
    a, b = encoded(bank, 64, 1), encoded(bank, 64, 2)
    both = concat_tokens(CONFIG.slots, whole(a), whole(b))
    assert both.tokens.shape == a.tokens.shape
    own = np.asarray(lengths(a.tokens))
    for i in range(64):
        np.testing.assert_array_equal(both.tokens[i, : own[i]], a.tokens[i, : own[i]])
    good = jnp.asarray(np.arange(64) % 2 == 0)
    masked = mask_invalid(good, a)
    np.testing.assert_array_equal(masked.tokens[::2], a.tokens[::2])
    np.testing.assert_array_equal(masked.values[::2], a.values[::2])
    assert {decode(t).skeleton() for t in np.asarray(masked.tokens)[1::2]} == {("x1",)}
    assert not np.asarray(masked.values)[1::2].any()


def test_rows_of_formulas_are_chosen_for_a_segment(bank: SkeletonTable) -> None:
    a = encoded(bank, 64, 1)
    rows = jnp.asarray([5, 5, 63], jnp.int32)
    segment = whole(a, rows)
    np.testing.assert_array_equal(segment.tokens, np.asarray(a.tokens)[[5, 5, 63]])
    np.testing.assert_array_equal(segment.length, np.asarray(lengths(a.tokens))[[5, 5, 63]])


# ---------------------------------------------------------------- by name


def test_the_default_is_everything_but_blind_draws() -> None:
    others = {"prior", "families"}
    assert DEFAULT | others == REGISTRY.keys() and not others & DEFAULT
    assert resolve(DEFAULT) == tuple(p for n, p in REGISTRY.items() if n not in others)


def test_names_come_in_the_order_of_the_registry_and_objects_behind_them() -> None:
    own, small = Pairs(per_kind=3), Edits(count=9)
    assert resolve([own, "edits", "network", small]) == (
        REGISTRY["network"],
        REGISTRY["edits"],
        own,
        small,
    )
    assert resolve("short") == (REGISTRY["short"],)
    assert resolve(["edits", "edits"]) == (REGISTRY["edits"],)
    assert resolve(name for name in ("pairs", "short")) == resolve(("short", "pairs"))


@pytest.mark.parametrize(
    ("proposers", "message"),
    [
        (["networks"], "unknown proposer 'networks'; known are network, prior, short"),
        ("all", "unknown proposer 'all'"),
        (DEFAULT | {"nothing"}, "unknown proposer 'nothing'"),
        ([], "no proposer is left; choose some of network"),
        (DEFAULT - DEFAULT, "no proposer is left"),
        ([Network(per_latent=0)], "per_latent is 0; it must be a positive whole number"),
        (["short", Edits(count=2.0)], "count is 2.0; it must be a positive whole number"),
        ([Pairs(refine=-1)], "refine is -1; it must be a positive whole number"),
    ],
)
def test_proposers_that_make_no_sense_say_so(proposers: Any, message: str) -> None:
    for ask in (resolve, lambda p: RefineMath(proposers=p)):
        with pytest.raises(ValueError, match=message):
            ask(proposers)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_proposer_is_a_frozen_dataclass_that_the_compiler_can_tell_apart(name: str) -> None:
    proposer = REGISTRY[name]
    assert hash(proposer) == hash(replace(proposer)) and proposer == replace(proposer)  # type: ignore[type-var]
    other = replace(proposer, refine=proposer.refine + 1)  # type: ignore[type-var, call-arg]
    assert other != proposer and type(other) is type(proposer)
    with pytest.raises(AttributeError):
        proposer.refine = 3  # type: ignore[misc]
    assert type(proposer).__doc__ and proposer.refine > 0


def test_what_proposers_declare() -> None:
    traits = {
        trait: {n for n, p in REGISTRY.items() if declares(p, trait)}
        for trait in ("samples", "reads_latents", "uses_library", "uses_table", "on_host")
    }
    assert traits == {
        "on_host": {"families"},
        "samples": {"network", "prior"},
        "reads_latents": {"network"},
        "uses_library": {"short", "missing_term", "pairs", "quotients", "inverses"},
        "uses_table": {"prior"},
    }

    @dataclass(frozen=True)
    class Bare:
        refine: int = 1

    assert not any(declares(Bare(), trait) for trait in traits)  # type: ignore[arg-type]
