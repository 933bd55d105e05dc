"""The experiments: their statistics against known answers, their baselines against laws, and a few
quick modes from end to end.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_grammar import every_formula

from experiments import (
    ablation,
    contenders,
    drift,
    flops,
    measure,
    networks,
    programs,
    runner,
    scan_fuses,
    stopping,
    tables,
    variants,
)
from experiments.__main__ import commands
from experiments.baselines import Sampled
from experiments.tokens import Tokens
from experiments.trm import INNER, TRM
from refinemath import grammar, parse
from refinemath.evaluation import heldout_problems, recovered
from refinemath.examples import SkeletonTable, draw_examples, length_weights
from refinemath.expression import ARITY, END, VOCABULARY_SIZE, Formula
from refinemath.fitting import Points, no_candidate
from refinemath.model import Model, ModelConfig
from refinemath.training import TrainConfig

CONFIG = ModelConfig(latent_dim=64, width=32, heads=2, seeds=4, encoder_blocks=1, refiner_blocks=1)


def is_legal(tokens: jax.Array) -> jax.Array:
    """Whether a row of tokens is a formula in prefix order followed by END alone."""
    open_ = 1 + jnp.cumsum(jnp.where(tokens == END, 0, jnp.asarray(ARITY)[tokens] - 1), axis=1)
    before = jnp.concatenate([jnp.ones_like(open_[:, :1]), open_[:, :-1]], axis=1)
    return jnp.all((tokens == END) == (before <= 0), axis=1) & (open_[:, -1] == 0)


@pytest.fixture(scope="module")
def plot() -> Points:
    x = jnp.linspace(-2, 2, 20)[None, None]
    return Points(x, jnp.sin(3 * x[:, 0]), jnp.ones((1, 20), bool))


# ---------------------------------------------------------------- numbers


def test_interval_covers_and_pairs() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        i = measure.interval(rng.normal(3.0, 1.0, 40), seed=trial, count=300)
        inside += i["low"] <= 3.0 <= i["high"]
    assert 85 <= inside <= 100
    a = rng.normal(size=50) * 100
    d = measure.difference(a + 1, a)  # the noise is common to both, so the pairs give it exactly
    assert d["low"] == pytest.approx(1) and d["high"] == pytest.approx(1)
    slope = measure.interval((a, 2 * a), lambda x, y: np.polyfit(x, y, 1)[0])  # rows stay rows
    assert slope["low"] == pytest.approx(2) and slope["high"] == pytest.approx(2)
    one, none = measure.interval([3.0]), measure.interval([])
    assert one["low"] == one["high"] == 3 and none["n"] == 0 and np.isnan(none["value"])


def test_pairs_are_counted_and_tested_by_their_signs() -> None:
    a, b = np.array([1] * 9 + [0] * 3 + [1] * 5), np.array([0] * 9 + [1] * 3 + [1] * 5)
    both = measure.paired(a, b)
    assert (both["better"], both["worse"]) == (9, 3)
    assert both["difference"]["value"] == pytest.approx(6 / 17)
    assert both["p"] == pytest.approx(2 * (1 + 12 + 66 + 220) / 2**12)
    assert measure.paired(a, a)["p"] == 1.0


def test_records_are_json() -> None:
    record = runner.rounded(
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
    assert stopping.auc(score, good) == pytest.approx(np.mean(pairs))
    assert np.isnan(stopping.auc(score, np.ones(60)))


def test_stopping_rules() -> None:
    curve = np.array([[1.0, 0.1, 1.0, 0.1, 0.1, 0.1], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    assert stopping.stops(curve, 0.5, 1).tolist() == [2, 6]
    assert stopping.stops(curve, 0.5, 2).tolist() == [5, 6]
    fvu = np.array([[1.0, 1e-12, 1e-12, 1e-12], [1.0, 1.0, 1e-12, 1e-12]])
    best = stopping.cheapest([np.full(2, t) for t in range(1, 5)], fvu)
    assert best["steps"] == 3 and best["solved"] == 1 and best["saved"] == pytest.approx(0.25)


# ---------------------------------------------------------------- counting


def test_traced_operations_are_those_of_the_products() -> None:
    a = jnp.ones((3, 4, 5))

    def looped(n: int) -> int:
        def program(x: jax.Array) -> jax.Array:
            step = jax.jit(lambda c, w: (jnp.tanh(c @ w), None))
            return jax.lax.scan(step, x, jnp.ones((n, 5, 5)))[0]

        return flops.traced_flops(jax.make_jaxpr(program)(a[0]).jaxpr)

    assert [looped(n) for n in (1, 7)] == [2 * 4 * 5 * 5, 7 * 2 * 4 * 5 * 5]
    batched = jax.make_jaxpr(lambda x: jnp.einsum("bij,bkj->bik", x, x))(a).jaxpr
    assert flops.traced_flops(batched) == 2 * 3 * 4 * 4 * 5
    either = jax.make_jaxpr(
        lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x.T, lambda: x @ x.T @ x @ x.T)
    )(a[0]).jaxpr
    assert flops.traced_flops(either) == 2 * (4 * 4 * 5 * 2 + 5 * 4 * 4)


def test_kernels_of_a_loop_are_counted_in_its_body() -> None:
    def body(x: jax.Array) -> jax.Array:
        return jnp.sort(x @ x)

    x = jnp.ones((8, 8))
    once, _ = measure.compiled(body, x)
    text = (
        jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, x: body(x), x))
        .lower(x)
        .compile()
        .as_text()
    )
    single, looped = measure.kernels(once.as_text()), measure.kernels(text)
    assert single["loop"] == 0 and single["program"] >= 2
    assert looped["loop"] >= single["program"] and looped["program"] <= 3


# ---------------------------------------------------------------- baselines


def test_equal_parameter_counts() -> None:
    options = argparse.Namespace(quick=False, latent_dim=256, width=64)
    sizes = contenders.sizes(options)
    counts = [networks.size_of(config, contenders.KINDS[n]) for n, config in sizes.items()]
    assert len(counts) == 3 and max(counts) <= 1.05 * min(counts)


def test_token_decoder_is_causal_and_samples_what_it_scores(plot: Points) -> None:
    params, graph, _ = networks.random_network(CONFIG, Tokens)
    score = jax.jit(lambda p, t: nnx.merge(graph, p).logits(nnx.merge(graph, p).encoder(plot), t))
    tokens = jax.random.randint(jax.random.key(0), (1, CONFIG.slots), 0, VOCABULARY_SIZE)
    logits, later = score(params, tokens), score(params, tokens.at[:, 9:].set(1))
    # the future does not reach the past
    assert jnp.allclose(logits[:, :10], later[:, :10], atol=1e-5)
    assert not jnp.allclose(logits[:, 10:], later[:, 10:], atol=1e-3)
    # a sharp decoder: its samples, kept keys and all, are the greedy path of its own teacher-forced
    # logits
    model = nnx.merge(graph, params)
    model.head.kernel[...] = 200.0 * model.head.kernel[...]
    sharp = nnx.state(model)
    draw = jax.jit(lambda p: nnx.merge(graph, p).sample(jax.random.key(1), model.encoder(plot), 3))
    samples = draw(sharp)
    assert bool(jnp.all(is_legal(samples)))
    scores = jnp.concatenate([score(sharp, s[None]) for s in samples])
    open_ = jnp.ones(3, jnp.int32)
    for i in range(CONFIG.slots):
        masked = jnp.where(grammar.allowed(open_, CONFIG.slots - 1 - i), scores[:, i], -jnp.inf)
        assert jnp.array_equal(jnp.argmax(masked, axis=-1), samples[:, i])
        open_ = jnp.maximum(open_ + jnp.asarray(ARITY)[samples[:, i]] - 1, 0)


def test_recursive_model_answers_from_its_latent(plot: Points) -> None:
    from experiments.baselines import memory_of

    model = TRM(CONFIG, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    state = model.start(jax.random.key(0), 1)

    def step(p: Any, state: jax.Array) -> jax.Array:
        model = nnx.merge(graph, p)
        return model.recurse(state, memory_of(model.encoder(plot)))

    new = jax.jit(step)(params, state)
    assert new.shape == state.shape and INNER >= 2
    answer, latent = jnp.split(new, 2, axis=-1)
    assert jnp.allclose(jnp.mean(jnp.square(latent), axis=-1), 1, atol=1e-3)
    other = model.logits(jnp.concatenate([answer, 0 * latent], axis=-1))
    assert jnp.array_equal(model.logits(new), other)  # the latent is read through the answer alone


@pytest.mark.parametrize("kind", [TRM, Tokens])
def test_a_baseline_proposes_legal_formulas_to_the_search(kind: Any, plot: Points) -> None:
    """Every step gets other formulas; proposers of different networks are different programs."""
    network = networks.random_network(CONFIG, kind)
    proposer = Sampled(network, count=6, rounds=2)
    context = argparse.Namespace(points=plot)
    memory = jax.jit(lambda key: proposer.init(context, key))(jax.random.key(0))  # type: ignore[arg-type]
    pool = argparse.Namespace(tokens=jnp.zeros((4, CONFIG.slots + 2)))
    state = argparse.Namespace(step=jnp.int32(3), pool=pool)
    proposed, _ = proposer.propose(None, context, memory, state, jax.random.key(0))  # type: ignore[arg-type]
    tokens, values = proposed
    assert tokens.shape == values.shape == (6, CONFIG.slots + 2)
    assert bool(jnp.all(is_legal(tokens))) and jnp.array_equal(tokens[:, :-2], memory[1])
    assert hash(proposer) != hash(Sampled(network, count=6, rounds=2))


def test_a_trainer_for_any_loss_minimises_it() -> None:
    """A quadratic: the averaged weights come near its minimum, and the log says how."""
    params = {"w": jnp.array([3.0, -2.0])}
    recipe = TrainConfig(optimizer="adamw", learning_rate=0.1, batch=4, ema=0.9, warmup=1)

    def loss(params: Any, key: jax.Array) -> jax.Array:
        return jnp.sum((params["w"] - 1.0) ** 2)

    ema, log = networks.train(
        lambda r: networks.loss_trainer(loss, params, r), recipe, seconds=0, steps=200
    )
    assert jnp.allclose(ema["w"], 1.0, atol=0.05) and networks.final_loss(log) < 0.01
    assert log["steps"] == 200 and log["examples"] == 800 and log["loss"][-1][0] == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning:optax")
def test_recursive_model_is_trained(tmp_path: Path) -> None:
    """A step of training goes through, and what it left can be loaded and says legal formulas."""
    options = argparse.Namespace(
        quick=True, work=tmp_path, bank=40, batch=4, seconds=1.0, latent_dim=64, width=16
    )
    record = contenders.train_one(options, "trm", 0)
    assert record["steps"] >= 1 and np.isfinite(record["loss"][-1][2])
    network = networks.load(tmp_path / "trm-0" / "weights.npz", TRM)
    assert asdict(network.config) == record["config"]
    x = jnp.linspace(-1, 1, 20)[None, None]
    plot = Points(x, x[:, 0] ** 2, jnp.ones((1, 20), bool))
    model = nnx.merge(network.graph, network.params)
    draw = jax.jit(lambda key: model.sample(key, model.encoder(plot), 6))
    tokens = draw(jax.random.key(0))
    assert tokens.shape == (6, network.config.slots) and bool(jnp.all(is_legal(tokens)))


def test_the_weights_of_a_step_are_options_and_old_files_keep_theirs() -> None:
    config = networks.shipped().config
    assert (config.residual_weight, config.anchor_weight, config.write_bound) == (0.4, 10.0, 2.0)
    with pytest.raises(ValueError, match="anchor_weight"):
        replace(config, anchor_weight=-1.0)
    x = jnp.linspace(-1, 1, 20)[None, None]
    plot = Points(x, x[:, 0] ** 2, jnp.ones((1, 20), bool))
    ends = []
    for anchor in (0.0, 1e4):
        model = Model(replace(CONFIG, anchor_weight=anchor), rngs=nnx.Rngs(0))
        z = model.refiner.start(jnp.zeros((1, CONFIG.slots, CONFIG.latent_dim)))
        new = model.refiner(z, model.encoder(plot), no_candidate(plot))
        ends.append(float(jnp.max(jnp.abs(new - z))))
    assert ends[0] > 0.05 and ends[1] < 1e-2  # a heavy anchor holds the seed where it is


def test_signs_of_drift() -> None:
    """Orthonormal slots have full rank and no common direction; equal slots the opposite."""
    z = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (2, 32, 4)))[0].swapaxes(1, 2)
    seen = drift.signs(jnp.stack([z, z, 2 * z, jnp.repeat(z[:, :1], 4, axis=1)]))
    np.testing.assert_allclose(seen["rank"], [[4, 4], [4, 4], [1, 1]], rtol=1e-3)
    np.testing.assert_allclose(seen["cosine"], [[0, 0], [0, 0], [1, 1]], atol=1e-5)
    np.testing.assert_allclose(seen["velocity"][:2], [[0, 0], [1, 1]], atol=1e-5)


def test_points_that_are_read_once_are_not_read_again(plot: Points) -> None:
    model = Model(CONFIG, rngs=nnx.Rngs(0))
    run = [
        drift.latents(model, plot, jax.random.key(0), steps=3, once=once) for once in (False, True)
    ]
    assert jnp.array_equal(run[0][:2], run[1][:2]) and not jnp.allclose(run[0][2:], run[1][2:])


def test_gplearn_programs_keep_their_meaning() -> None:
    formula = programs.from_gplearn("add(mul(-0.5, X0), sqrt(sub(X0, 2.0)))")
    x = np.linspace(-3, 3, 7)[None]
    assert np.allclose(formula.evaluate(x), -0.5 * x[0] + np.sqrt(np.abs(x[0] - 2)))


def test_symbolic_recovery() -> None:
    problem = heldout_problems(runner.DATA / "heldout.csv", every=300)[0]
    assert problem.truth is not None
    assert programs.symbolic(problem, problem.truth) == "yes"
    assert programs.symbolic(problem, Formula(("add", 1e-3, *problem.truth.parts))) == "no"
    assert recovered(problem, argparse.Namespace(formula=problem.truth))  # type: ignore[arg-type]
    assert programs.symbolic(problem, parse("x + 1")) == "no"


def test_the_list_of_records_gives_the_command_of_each() -> None:
    listed = (runner.RESULTS / "README.md").read_text(encoding="utf-8")
    for path in sorted(runner.RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if path.stem not in ("evaluation", "ablation"):  # of several commands, each with its entry
            assert f"`{record['command']}`" in listed, path.name
            assert record["commit"] in listed, path.name
    found = {name for _, _, name, *_ in commands(listed)}
    folder = Path(runner.__file__).parent
    assert found == {
        path.stem for path in folder.glob("*.py") if "\nEXPERIMENT = " in path.read_text("utf-8")
    }
    assert all(command[3:] == ["--quick"] for command in commands(listed, quick=True))


def test_every_experiment_is_one_sitting() -> None:
    texts = {p.name: p.read_text("utf-8") for p in Path(runner.__file__).parent.glob("*.py")}
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    assert max(lines[name] for name, text in texts.items() if "\nEXPERIMENT = " in text) <= 120
    # what makes the lists of data/ is no experiment
    assert sum(lines.values()) - lines["lists.py"] <= 2400


@pytest.mark.parametrize("path", tables.TEXTS, ids=lambda path: path.name)
def test_no_number_in_a_table_differs_from_its_record(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "<!-- table: " in text and tables.filled(text) == text


# ---------------------------------------------------------------- from end to end


def test_scan_quick(tmp_path: Path) -> None:
    path = tmp_path / "scan_fuses.json"
    scan_fuses.EXPERIMENT.main(["--quick", "--most", "2", "--out", str(path)])
    record = json.loads(path.read_text())
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


def test_finished_tasks_are_not_done_again(tmp_path: Path) -> None:
    done: list[str] = []

    def task(options: argparse.Namespace, name: str) -> str:
        done.append(name)
        if name == "b" and done.count("b") == 1:
            raise KeyboardInterrupt
        return name.upper()

    experiment = runner.Experiment(
        "three", "Three.", lambda options: ["a", "b", "c"], task, lambda options, records: records
    )
    call = ["--work", str(tmp_path), "--out", str(tmp_path / "three.json")]
    with pytest.raises(KeyboardInterrupt):
        experiment.main(call)
    record = experiment.main(call)
    assert done == ["a", "b", "b", "c"] and record["c"] == "C"
    assert json.loads((tmp_path / "three.json").read_text())["a"] == "A"


def test_variants_are_paired_by_problem_and_by_seed() -> None:
    def run(
        right: list[bool], nats: list[float], loss: float, examples: int = 800
    ) -> dict[str, Any]:
        still = {"steps": [1], "loss": [0.5], "velocity": [[1.0, 2.0]], "rank": [[3.0, 3.0]]}
        still |= {"cosine": [[0.0, 1.0]]}
        log = {"examples": examples, "seconds": 2.0, "loss": [[5, 1.0, loss + 1], [10, 2.0, loss]]}
        drift = {"each": still, "once": still}
        return {"recovered": right, "nats": nats, "training": log, "drift": drift}

    runs = {
        "base:0": run([True, False, False], [13.0, 10.0], 1.0),
        "base:1": run([False, False, True], [15.0, 12.0], 2.0),
        "rms:0": run([True, True, False], [12.0, 10.0], 0.5),
        "rms:1": run([False, True, True], [12.0, 10.0], 1.5),
    }
    row, same = variants.compared(runs, "rms", "base"), variants.compared(runs, "base", "base")
    assert row["recovered, difference"]["value"] == pytest.approx(1 / 3)
    assert row["nats"]["value"] == 11 and row["nats, difference"]["value"] == -1.5
    assert row["loss, difference"]["low"] == row["loss, difference"]["high"] == -0.5
    assert row["drift, points read once"]["velocity"][1]["value"] == 1.5
    assert same["recovered, difference"]["value"] == 0 and row["reaches the base"] == [0.5, 0.5]


@pytest.mark.parametrize(("reader", "heads"), [(0, 0), (8, 0), (8, 2)])
def test_nats_are_what_a_formula_costs_to_sample(
    bank: SkeletonTable, reader: int, heads: int
) -> None:
    """The probabilities that belong to the costs of all formulas of up to three tokens sum to one,
    however the slots are read.
    """
    config = replace(CONFIG, slots=3, reader=reader, reader_heads=heads)
    params, graph, _ = networks.random_network(config)
    one = draw_examples(jax.random.key(0), bank, 1, weights=length_weights(bank, {3: 1.0}))
    rows = jnp.asarray(every_formula(3, list(range(1, VOCABULARY_SIZE))), jnp.int32)
    many = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(rows), *a.shape[1:])), one)
    cost = networks.nats(params, graph, many._replace(tokens=rows), jax.random.key(1), noise=0.0)
    assert float(jnp.sum(jnp.exp(-cost))) == pytest.approx(1.0, abs=1e-3)


def test_ablation_quick(tmp_path: Path) -> None:
    """Every system meets every problem, and no side is better on more problems than it recovers."""
    record = ablation.EXPERIMENT.main(["--quick", "--out", str(tmp_path / "ablation.json")])
    table, each = record["table"], record["each"]
    assert list(table) == ["all", "only short"] and len(each) >= 1
    assert all({"all", "only short"} <= row.keys() for row in each.values())
    row = table["only short"]["heldout"]
    assert row["recovered"]["n"] == len(each)
    against = row["against all"]
    assert against["better"] - against["worse"] == round(against["difference"]["value"] * len(each))
    assert table["all"]["seconds a step"]["n"] == 2
    assert {"without network", "only network", "null", "without transforms"} <= set(
        contenders.SYSTEMS
    )
