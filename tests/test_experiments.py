"""The experiments: their statistics against known answers, their baselines against laws, and a few
quick modes from end to end.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_grammar import every_formula

from experiments import (
    blind,
    flops,
    growth,
    halting,
    harness,
    latent_drift,
    ours,
    scan_fuses,
    stabiliser,
    systems,
    tables,
    undo,
)
from experiments.__main__ import commands
from experiments.baselines import (
    INNER,
    PLAIN_FEATURES,
    TRM,
    PlainModel,
    Tokens,
    from_gplearn,
    token_samples,
)
from refinemath import grammar, parse
from refinemath.evaluation import heldout_problems, recovered
from refinemath.examples import SkeletonTable, draw_examples, length_weights
from refinemath.expression import END, VOCABULARY_SIZE, Formula, encode, is_constant
from refinemath.fitting import Points, no_candidate
from refinemath.model import point_features

CONFIG = replace(harness.TINY, latent_dim=64, width=32)


@pytest.fixture(scope="module")
def plot() -> Points:
    x = jnp.linspace(-2, 2, 20)[None, None]
    return Points(x, jnp.sin(3 * x[:, 0]), jnp.ones((1, 20), bool))


# ---------------------------------------------------------------- numbers


def test_interval_covers_and_pairs() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        i = harness.interval(rng.normal(3.0, 1.0, 40), seed=trial, count=300)
        inside += i["low"] <= 3.0 <= i["high"]
    assert 85 <= inside <= 100
    a = rng.normal(size=50) * 100
    d = harness.difference(a + 1, a)  # the noise is common to both, so the pairs give it exactly
    assert d["low"] == pytest.approx(1) and d["high"] == pytest.approx(1)


def test_records_are_json() -> None:
    record = harness.rounded(
        {"a": np.float64(1 / 3), "b": [np.nan, np.inf, True, np.bool_(False)], 3: np.arange(2)}
    )
    assert json.loads(json.dumps(record, allow_nan=False)) == {
        "a": 0.33333,
        "b": [None, "inf", True, False],
        "3": [0, 1],
    }


def test_auc_is_the_chance_of_the_right_order() -> None:
    rng = np.random.default_rng(0)
    score, good = rng.integers(0, 5, 60), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[good] for b in score[~good]]
    assert halting.auc(score, good) == pytest.approx(np.mean(pairs))
    assert np.isnan(halting.auc(score, np.ones(60)))


def test_stopping_rules() -> None:
    curve = np.array([[1.0, 0.1, 1.0, 0.1, 0.1, 0.1], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    assert halting.stops(curve, 0.5, 1).tolist() == [2, 6]
    assert halting.stops(curve, 0.5, 2).tolist() == [5, 6]
    fvu = np.array([[1.0, 1e-12, 1e-12, 1e-12], [1.0, 1.0, 1e-12, 1e-12]])
    best = halting.cheapest([np.full(2, t) for t in range(1, 5)], fvu)
    assert best["steps"] == 3 and best["solved"] == 1 and best["saved"] == pytest.approx(0.25)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponent_of_a_power_law(power: float) -> None:
    size = np.array([2, 4, 8, 16, 32, 64])
    noise = np.random.default_rng(0)
    found = growth.exponent(size, [n**power * np.exp(noise.normal(0, 0.02, 9)) for n in size])
    assert found["low"] - 0.03 <= power <= found["high"] + 0.03
    assert found["high"] - found["low"] < 0.2


# ---------------------------------------------------------------- counting


@pytest.mark.parametrize(
    ("kind", "reader", "heads"),
    [
        ("rms", 0, 0),
        ("soft", 0, 0),
        ("polar", 0, 0),
        ("muon", 0, 0),
        ("polar", 24, 0),
        ("polar", 24, 3),
    ],
)
def test_formula_for_flops_is_what_the_trace_counts(kind: str, reader: int, heads: int) -> None:
    config = replace(
        CONFIG,
        stabiliser=kind,
        encoder_blocks=2,
        refiner_blocks=2,
        reader=reader,
        reader_heads=heads,
    )
    by_formula, traced = flops.forward_agrees(config)
    assert by_formula == traced


def test_kernels_of_a_loop_are_counted_in_its_body() -> None:
    def body(x: jax.Array) -> jax.Array:
        return jnp.sort(x @ x)

    x = jnp.ones((8, 8))
    once, _ = scan_fuses.compiled(body, x)
    text = (
        jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, x: body(x), x))
        .lower(x)
        .compile()
        .as_text()
    )
    single, looped = scan_fuses.kernels(once.as_text()), scan_fuses.kernels(text)
    assert single["loop"] == 0 and single["program"] >= 2
    assert looped["loop"] >= single["program"] and looped["program"] <= 3


# ---------------------------------------------------------------- baselines


def test_plain_features_are_plain_and_all_that_a_plain_model_sees() -> None:
    x, y = np.array([0.5, 1.0, 2.0, 4.0]), np.array([3.0, -1.0, 2.0, 0.0])
    points = Points(
        jnp.asarray(x[None, None], jnp.float32),
        jnp.asarray(y[None], jnp.float32),
        jnp.ones((1, 4), bool),
    )
    features = np.asarray(point_features(points))[0]
    expected = [
        (y - y.mean()) / y.std() / 2,
        y / np.sqrt(np.mean(y**2)) / 2,
        x / 5,
        x / 4,
        np.full(4, np.log(4) / 2),
    ]
    np.testing.assert_allclose(features[:, PLAIN_FEATURES], np.stack(expected, axis=1), atol=1e-5)
    plain = PlainModel(CONFIG, rngs=nnx.Rngs(0))
    same = features.copy()
    hidden = [i for i in range(features.shape[1]) if i not in PLAIN_FEATURES]
    same[:, hidden] = 7.0
    np.testing.assert_array_equal(
        plain.encoder.first(jnp.asarray(same)), plain.encoder.first(jnp.asarray(features))
    )
    assert np.any(
        np.asarray(plain.encoder.first(jnp.asarray(features + 1)))
        != np.asarray(plain.encoder.first(jnp.asarray(features)))
    )


def test_equal_parameter_counts() -> None:
    options = argparse.Namespace(quick=False, latent_dim=256, width=64)
    counts = [
        harness.parameter_count(
            nnx.state(nnx.eval_shape(lambda n=n, c=c: systems.TRAINED[n](c, rngs=nnx.Rngs(0))))
        )
        for n, c in systems.sizes(options).items()
    ]
    assert len(counts) == 3 and max(counts) <= 1.05 * min(counts)


def test_token_decoder_is_causal_and_samples_what_it_scores(plot: Points) -> None:
    params, graph = harness.parts_of(CONFIG, Tokens)
    score = jax.jit(lambda p, t: nnx.merge(graph, p).logits(nnx.merge(graph, p).encoder(plot), t))
    tokens = jax.random.randint(jax.random.key(0), (1, CONFIG.slots), 0, VOCABULARY_SIZE)
    logits, later = score(params, tokens), score(params, tokens.at[:, 9:].set(1))
    assert jnp.array_equal(logits[:, :10], later[:, :10])  # the future does not reach the past
    assert not jnp.allclose(logits[:, 10:], later[:, 10:])
    # a sharp decoder: its samples, kept keys and all, are the greedy path of its own teacher-forced
    # logits
    model = nnx.merge(graph, params)
    model.head[...] = 200.0 * model.head[...]
    sharp = nnx.state(model)
    samples = token_samples(sharp, graph, plot, jax.random.key(1), count=3)
    assert bool(jnp.all(ours.is_legal(samples)))
    scores = jnp.concatenate([score(sharp, s[None]) for s in samples])
    open_ = jnp.ones(3, jnp.int32)
    for i in range(CONFIG.slots):
        masked = jnp.where(grammar.allowed(open_, CONFIG.slots - 1 - i), scores[:, i], -jnp.inf)
        assert jnp.array_equal(jnp.argmax(masked, axis=-1), samples[:, i])
        open_ = jnp.maximum(open_ + jnp.asarray(grammar.ARITY)[samples[:, i]] - 1, 0)


def test_recursive_model_answers_from_its_latent(plot: Points) -> None:
    model = TRM(replace(CONFIG, latent_dim=2 * CONFIG.width), rngs=nnx.Rngs(0))
    z = model.refiner.start(jnp.zeros((1, CONFIG.slots, 2 * CONFIG.width)))
    graph, params = nnx.split(model)
    new = jax.jit(
        lambda p, z: nnx.merge(graph, p).refiner(
            z, nnx.merge(graph, p).encoder(plot), no_candidate(plot)
        )
    )(params, z)
    assert new.shape == z.shape and INNER >= 2
    answer, latent = jnp.split(new, 2, axis=-1)
    assert jnp.allclose(jnp.mean(jnp.square(latent), axis=-1), 1, atol=1e-3)
    other = model.refiner.logits(jnp.concatenate([answer, 0 * latent], axis=-1))
    assert jnp.array_equal(
        model.refiner.logits(new), other
    )  # the latent is read through the answer alone


@pytest.mark.filterwarnings("ignore::DeprecationWarning:optax")
def test_recursive_model_is_trained(tmp_path: Path) -> None:
    """A step of training goes through the program of the shipped model, and what it left can be
    loaded and says legal formulas.
    """
    options = argparse.Namespace(
        quick=True, work=tmp_path, bank=40, batch=4, rate=1e-3, seconds=1.0
    )
    record = systems.train_one(options, "trm", 0)
    assert record["training"]["steps"] >= 1 and np.isfinite(record["training"]["loss"][-1][1])
    solver = systems.solver(options, "trm", 0)
    params, graph, config = solver.parameters()
    refiner = nnx.merge(graph, params).refiner
    tokens = refiner.sample(
        jax.random.key(0), refiner.start(jnp.zeros((2, config.slots, config.latent_dim))), 3
    )
    assert tokens.shape == (2, 3, config.slots) and bool(
        jnp.all(ours.is_legal(tokens.reshape(6, -1)))
    )
    assert solver.budget.leap == 0 and solver.budget.steps == solver.budget.search_steps


def test_decoders_agree_where_they_must() -> None:
    logits = 3 * jax.random.normal(jax.random.key(0), (64, 16, VOCABULARY_SIZE))
    best, greedy, free = grammar.best(logits), ours.masked_greedy(logits), ours.argmax(logits)
    assert bool(jnp.all(ours.is_legal(best))) and bool(jnp.all(ours.is_legal(greedy)))

    def weight(tokens: jax.Array) -> jax.Array:
        return jnp.sum(jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0], axis=1)

    assert bool(jnp.all(weight(best) >= weight(greedy) - 1e-4)) and bool(
        jnp.all(weight(free) >= weight(best) - 1e-4)
    )
    sure = 50 * jax.nn.one_hot(
        best, VOCABULARY_SIZE
    )  # where the slots agree on a formula all read the same
    assert jnp.array_equal(ours.masked_greedy(sure), best) and jnp.array_equal(
        ours.argmax(sure), best
    )
    assert not bool(ours.is_legal(jnp.full((1, 16), 1))[0]) and not bool(
        ours.is_legal(jnp.full((1, 16), END))[0]
    )


def test_a_latent_that_says_the_formula_explains_its_plot(plot: Points) -> None:
    """Logits that are sure of the truth, or of something else."""
    tokens, _ = encode([parse("sin(3*x)"), parse("exp(x)"), parse("cos(x)")])
    sure = 50.0 * jax.nn.one_hot(jnp.asarray(tokens), VOCABULARY_SIZE)
    three = jax.tree.map(lambda a: jnp.repeat(a, 3, axis=0), plot)
    assert latent_drift.drawn_and_explained(jax.random.key(0), sure, three, 4).tolist() == [
        True,
        False,
        False,
    ]
    # seldom the likeliest, often enough among many draws
    half = jnp.log(
        0.7 * jax.nn.one_hot(jnp.asarray(tokens[2:]), VOCABULARY_SIZE)
        + 0.3 * jax.nn.one_hot(jnp.asarray(tokens[:1]), VOCABULARY_SIZE)
        + 1e-9
    )
    assert [
        bool(latent_drift.drawn_and_explained(jax.random.key(0), half, plot, n)[0])
        for n in (1, 300)
    ] == [False, True]


def test_gram_penalty_is_zero_for_orthonormal_slots() -> None:
    z = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (2, 32, 4)))[0].swapaxes(1, 2)
    assert float(latent_drift.gram_penalty(z)) < 1e-12
    assert float(latent_drift.gram_penalty(2 * z)) == pytest.approx(
        9 / 4
    )  # (4 - 1) squared on the diagonal, a quarter of all entries


def test_gplearn_programs_keep_their_meaning() -> None:
    formula = from_gplearn("add(mul(-0.5, X0), sqrt(sub(X0, 2.0)))")
    x = np.linspace(-3, 3, 7)[None]
    assert np.allclose(formula.evaluate(x), -0.5 * x[0] + np.sqrt(np.abs(x[0] - 2)))


def test_symbolic_recovery() -> None:
    problem = heldout_problems(harness.DATA / "heldout.csv", every=300)[0]
    assert problem.truth is not None
    assert systems.symbolic(problem, problem.truth) == "yes"
    assert systems.symbolic(problem, Formula(("add", 1e-3, *problem.truth.parts))) == "no"
    assert recovered(problem, argparse.Namespace(formula=problem.truth))  # type: ignore[arg-type]
    assert systems.symbolic(problem, parse("x + 1")) == "no"


def test_the_list_of_records_gives_the_command_of_each() -> None:
    listed = (harness.RESULTS / "README.md").read_text(encoding="utf-8")
    for path in sorted(harness.RESULTS.glob("*.json")):
        if path.stem not in (
            "evaluation",
            "profile_before",
        ):  # of several commands, each with its entry; of an older program
            assert f"`{json.loads(path.read_text(encoding='utf-8'))['command']}`" in listed, (
                path.name
            )
    found = {module.removeprefix("experiments.") for _, module, *_ in commands(listed)}
    assert found == {path.stem for path in harness.RESULTS.glob("*.json")} - {
        "evaluation",
        "profile_before",
    }
    assert all(command[2:] == ["--quick"] for command in commands(listed, quick=True))


@pytest.mark.parametrize("path", tables.TEXTS, ids=lambda path: path.name)
def test_no_number_in_a_table_differs_from_its_record(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "<!-- table: " in text and tables.filled(text) == text


# ---------------------------------------------------------------- from end to end


def test_scan_quick(tmp_path: Path) -> None:
    scan_fuses.main(["--quick", "--most", "2", "--out", str(tmp_path / "scan_fuses.json")])
    record = json.loads((tmp_path / "scan_fuses.json").read_text())
    assert {
        "command",
        "commit",
        "date",
        "jax",
        "hardware",
        "options",
        "seconds",
        "rows",
    } <= record.keys()
    assert {r["way"] for r in record["rows"]} >= {"Python loop", "unrolled", "scan", "while_loop"}
    assert all(r.get("apart_from_python_loop", 0.0) < 1e-3 for r in record["rows"])


def test_stabiliser_table_pairs_seeds_and_problems() -> None:
    def run(kind: str, seed: int, right: list[bool]) -> dict[str, object]:
        return {
            "stabiliser": kind,
            "seed": seed,
            "steps": 10,
            "recovered": right,
            "loss": [[10, 1.0, 1.0]],
            "converged": right,
            "iterations": [3, 4, 5],
            "velocity": [0.1, None],
        }

    rows = stabiliser.table(
        [
            run("rms", 0, [True, False, False]),
            run("polar", 0, [True, True, False]),
            run("rms", 1, [False, False, True]),
            run("polar", 1, [False, True, True]),
        ]
    )
    assert [r["stabiliser"] for r in rows] == ["rms", "polar"]
    assert rows[1]["recovered_by_seed"] == pytest.approx([2 / 3, 2 / 3]) and rows[1]["over_rms"][
        "value"
    ] == pytest.approx(1 / 3)
    assert rows[0]["over_rms"]["value"] == 0 and rows[0]["last_velocity"] == [0.1, 0.1]


def test_small_models_are_compared_by_problem_and_by_doubling() -> None:
    def run(
        kind: str, share: int, each: list[bool], nats: list[float], examples: int = 800
    ) -> dict[str, Any]:
        return {
            "kind": kind,
            "share": share,
            "seed": 0,
            "each": each,
            "nats": nats,
            "training": {"examples": examples},
        }

    runs = [
        run("plain", share, [True, share < 4, False], [12.0 + share, 9.0 + share], 800 // share)
        for share in ours.SHARES
    ]
    runs += [
        run("reader", 1, [True, True, True], [10.0, 8.0]),
        run("blind", 1, [False, True, False], [14.0, 11.0]),
    ]
    reader, blind = ours.compared(runs, "reader", "plain"), ours.compared(runs, "blind", "plain")
    assert reader["recovered_difference"]["value"] == pytest.approx(1 / 3) and blind[
        "recovered_difference"
    ]["value"] == pytest.approx(-1 / 3)
    assert reader["nats_difference"]["value"] == pytest.approx(-2.5) and blind["nats_difference"][
        "value"
    ] == pytest.approx(1.0)
    back = ours.compared(
        [*runs, run("looks_back", 1, [True, False, True], [9.0, 8.0])], "looks_back", "reader"
    )
    assert (
        back["nats_difference"]["value"] == pytest.approx(-0.5)
        and back["recovered_reader"]["value"] == 1
    )
    grown = ours.scaling(runs)
    assert [r["examples"] for r in grown["rows"]] == [100, 200, 400, 800] and grown["rows"][0][
        "nats"
    ]["value"] == pytest.approx(18.5)
    assert grown["nats_per_doubling"]["value"] == pytest.approx(
        np.polyfit(range(4), [18.5, 14.5, 12.5, 11.5], 1)[0]
    )
    assert grown["recovered_per_doubling"]["value"] == pytest.approx(
        np.polyfit(range(4), [1 / 3, 1 / 3, 2 / 3, 2 / 3], 1)[0]
    )


@pytest.mark.parametrize(("reader", "heads"), [(0, 0), (8, 0), (8, 2)])
def test_nats_are_what_a_formula_costs_to_sample(
    bank: SkeletonTable, reader: int, heads: int
) -> None:
    """The probabilities that belong to the costs of all formulas of up to three tokens sum to one,
    however the slots are read.
    """
    config = replace(CONFIG, slots=3, reader=reader, reader_heads=heads)
    params, graph = harness.parts_of(config)
    one = draw_examples(jax.random.key(0), bank, 1, weights=length_weights(bank, {3: 1.0}))
    rows = jnp.asarray(every_formula(3, list(range(1, VOCABULARY_SIZE))), jnp.int32)
    many = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(rows), *a.shape[1:])), one)
    cost = ours.nats(params, graph, many._replace(tokens=rows), jax.random.key(1), noise=0.0)
    assert float(jnp.sum(jnp.exp(-cost))) == pytest.approx(1.0, abs=1e-3)


def test_a_blind_draw_costs_the_size_of_the_bank(bank: SkeletonTable) -> None:
    """Formulas without constants: one of those with five tokens, when all have five."""
    weights = length_weights(bank, {5: 1.0})
    e = draw_examples(jax.random.key(0), bank, 64, weights=weights)
    plain = jax.tree.map(lambda a: a[~np.asarray(is_constant(e.tokens)).any(axis=1)], e)
    with mock.patch.object(ours, "length_weights", lambda b: weights):
        assert np.allclose(
            ours.prior_nats(bank, plain),
            np.log(np.diff(np.asarray(bank.start)[:, 0])[5]),
            atol=1e-5,
        )
        assert (
            ours.prior_nats(bank, e).max() > ours.prior_nats(bank, plain).max()
        )  # a constant is one more choice


def test_undo_quick() -> None:
    record = undo.main(["--quick"])
    assert (
        record["problems"] == len(record["each"]) >= 1
        and record["won"] + record["lost"] <= record["problems"]
    )
    assert (
        set(record["recovered"])
        == set(record["each"][0]) - {"name", "length", "formula"}
        == {"with", "without"}
    )


def test_blind_quick() -> None:
    """More searches recover no less, and no side can win or lose more problems than the other
    missed.
    """
    record = blind.main(["--quick"])
    shares = [row["recovered"]["value"] for row in record["blind"]]
    assert shares == sorted(shares) and record["problems"] == len(record["each"]) >= 1
    assert record["won"] - record["lost"] == round(
        record["machine minus blind"]["value"] * record["problems"]
    )
    assert all(row["blind"]["searches"] >= 1 for row in record["each"])


def test_decoding_quick() -> None:
    record = ours.main(["--quick"])
    assert record is not None
    rows = record["decoding"]
    assert (
        rows["exact best"]["legal"]
        == rows["masked greedy"]["legal"]
        == rows["one exact sample"]["legal"]
        == 1
    )
    assert rows["masked greedy"]["log_probability_lost"]["value"] >= -1e-4
