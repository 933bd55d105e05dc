"""Chapter 6: which parameters go where, a loss that falls, and a run that can be killed, resumed,
split and shared.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG, QUICK
from formulas import from_bank
from run_training import RECIPE
from test_grammar import legal

from experiments.release import release
from refinemath import CheckpointError, DataError, RefineMath, grammar, training, weights
from refinemath.corpus.build import build_table
from refinemath.examples import SkeletonTable
from refinemath.expression import ARITY, END, encode
from refinemath.fitting import Candidate, Points, execute
from refinemath.model import Model
from refinemath.training import (
    Trainer,
    best_own_sample,
    corrupt,
    make_optimizer,
    make_trainer,
    train,
    uses_muon,
)

KEY = jax.random.key(0)
STEPS = 60
KILLS = 5

BLOCK = ["own/both", "attend/query", "attend/out", "feedforward/up", "feedforward/down"]
MUON = {
    "encoder/second/kernel",
    "encoder/gather_key_value/both/kernel",
    "encoder/gather/query/kernel",
    "encoder/gather/out/kernel",
    *(f"encoder/blocks/0/{name}/kernel" for name in BLOCK),
    "refiner/read/kernel",
    "refiner/write/kernel",
    "refiner/feedback_mix/kernel",
    "refiner/point_key_value/both/kernel",
    "refiner/summary_key_value/both/kernel",
    *(f"refiner/blocks/0/{name}/kernel" for name in [*BLOCK, "cross/query", "cross/out"]),
}
ADAM_MATRICES = {
    "encoder/first/kernel",
    "encoder/seeds",
    "refiner/seed",
    "refiner/place",
    "refiner/token",
    "refiner/number/kernel",
    "refiner/feedback/kernel",
    "refiner/head",
    "refiner/bias",
}


# ---------------------------------------------------------------- the partition


@pytest.fixture(scope="module")
def params(tiny_model: Model) -> object:
    from flax import nnx

    return nnx.state(tiny_model)


def holders(optimizer_state: object, moment: str) -> set[str]:
    """Parameters for which an optimizer state holds a moment of the given name."""
    found = set()
    for name in weights.named_leaves(optimizer_state):
        match = re.search(rf"inner_states/{moment}/.*?/(?:mu|nu)/(.*)", name)
        if match:
            found.add(match.group(1))
    return found


def test_muon_gets_exactly_these_parameters(params: object) -> None:
    names = weights.named_leaves(params)
    assert {n for n in names if uses_muon(n)} == MUON
    assert {n for n, leaf in names.items() if leaf.ndim == 2} == MUON | ADAM_MATRICES


def test_optax_splits_them_as_we_say(params: object) -> None:
    """Asked of the optimizer's own state, not of our rule."""
    state = jax.eval_shape(make_optimizer(RECIPE, params).init, params)
    assert holders(state, "muon") == MUON
    assert holders(state, "adam") == set(weights.named_leaves(params)) - MUON


def test_with_adamw_every_parameter_has_both_moments(params: object) -> None:
    state = jax.eval_shape(make_optimizer(replace(RECIPE, optimizer="adamw"), params).init, params)
    names = list(weights.named_leaves(state))
    assert all(sum(n.endswith("/" + p) for n in names) == 2 for p in weights.named_leaves(params))


# ---------------------------------------------------------------- corruption and own samples


@pytest.mark.usefixtures("strict")
def test_a_corrupted_formula_is_legal_and_of_the_same_length(bank: SkeletonTable) -> None:
    tokens, _ = encode(from_bank(bank, 4096, seed=20))
    rows = jnp.asarray(tokens)
    new = np.asarray(corrupt(KEY, rows))
    assert legal(new).all()
    borrowed = (new == np.roll(tokens, 1, axis=0)).all(1)
    assert 0.33 < borrowed.mean() < 0.40
    kept = new[~borrowed]
    np.testing.assert_array_equal(ARITY[kept], ARITY[tokens[~borrowed]])
    np.testing.assert_array_equal(kept == END, tokens[~borrowed] == END)
    changed = (kept != tokens[~borrowed]) & (tokens[~borrowed] != END)
    assert 0.2 < changed.sum() / (tokens[~borrowed] != END).sum() < 0.5


@pytest.mark.usefixtures("strict")
def test_the_best_own_sample_is_at_least_as_good_four_times_of_five(bank: SkeletonTable) -> None:
    x = jnp.linspace(0.5, 3, 24, dtype=jnp.float32)
    points = Points(
        jnp.tile(x, (256, 1, 1)), jnp.tile(jnp.sin(x) + x, (256, 1)), jnp.ones((256, 24), bool)
    )
    tokens, values = encode(from_bank(bank, 256, seed=21))
    current = execute(jnp.asarray(tokens), jnp.asarray(values, jnp.float32), points)
    logits = jax.random.normal(KEY, (256, 16, len(ARITY)), jnp.float32)
    best: Candidate = jax.jit(best_own_sample)(KEY, grammar.sample(KEY, logits, 4), points, current)
    assert legal(np.asarray(best.tokens)).all()
    worse = np.asarray(best.fvu) > np.asarray(current.fvu)
    assert worse.mean() < 0.3
    again = execute(best.tokens, best.values, points)
    np.testing.assert_allclose(again.fvu, best.fvu, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def small_bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank in a file, as a run leaves it in its folder."""

    path = tmp_path_factory.mktemp("bank") / "bank.npz"
    bank = build_table(RECIPE.bank_per_length, seed=0, chunk=1024, patience=1)
    np.savez(path, tokens=bank.tokens, start=bank.start)
    return path


def folder_with_bank(parent: Path, name: str, small_bank: Path) -> Path:
    folder = parent / name
    folder.mkdir()
    (folder / "bank.npz").write_bytes(small_bank.read_bytes())
    return folder


def child(
    folder: Path, steps: int, save_seconds: float, *, compiled: Path, devices: int = 1
) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # a program this small is sooner run than optimised
        "XLA_FLAGS": f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    script = Path(__file__).with_name("run_training.py")
    command = [sys.executable, str(script), str(folder), str(steps), str(save_seconds)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, seconds: float = 240) -> None:
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out[-3000:]


def losses(folder: Path, index: int = 0) -> np.ndarray:
    return np.array(
        json.loads((folder / f"losses-{index}.json").read_text(encoding="utf-8"))["losses"]
    )


@pytest.fixture(scope="module")
def whole_run(
    tmp_path_factory: pytest.TempPathFactory, small_bank: Path, compiled_once: Path
) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = folder_with_bank(tmp_path_factory.mktemp("runs"), "whole", small_bank)
    finish(child(folder, STEPS, 1e9, compiled=compiled_once))
    return folder


def test_the_loss_falls(whole_run: Path) -> None:
    curve = losses(whole_run)
    assert len(curve) == STEPS and np.isfinite(curve).all()
    assert curve[-15:].mean() < 0.8 * curve[:5].mean()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:optax")
def test_stillness_reaches_training_steps_of_one_refiner_step(bank: SkeletonTable) -> None:
    """What decides is the step before, also where that was another training step: nothing is still
    at first, some of what goes on is later.
    """
    trainer = make_trainer(CONFIG, replace(RECIPE, unroll=1, go_on=0.9), bank, None)
    state = trainer.init()
    velocities = []
    for _ in range(3):
        state, metrics = trainer.step(state)
        velocities.append(float(metrics["velocity_1"]))
    assert velocities[0] == 0.0
    assert velocities[-1] > 0.0
    assert set(np.unique(state.thoughts.still)) <= {0.0, 1.0}


def test_a_run_leaves_a_log_a_checkpoint_and_weights(whole_run: Path) -> None:
    lines = [
        json.loads(line)
        for line in (whole_run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["step"] for line in lines] == [50, STEPS] and {
        "loss",
        "examples_per_second",
        "gradient_norm",
        "solved",
    } <= lines[0].keys()
    assert lines[0]["loss"] == pytest.approx(losses(whole_run)[:50].mean(), abs=1e-4)
    meta = weights.read_meta(whole_run / "weights.npz")
    assert (
        meta["config"]["latent_dim"] == CONFIG.latent_dim
        and meta["examples"] == STEPS * RECIPE.batch
    )
    params, _, config = RefineMath(latent_dim=64, weights=whole_run / "weights.npz").parameters()
    assert config == CONFIG and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_the_weights_are_the_average_and_not_the_last_ones(whole_run: Path) -> None:
    with np.load(whole_run / "weights.npz") as file, np.load(whole_run / "checkpoint.npz") as state:
        name = "encoder/second/kernel"
        np.testing.assert_allclose(file[name], state["ema/" + name], rtol=1e-3, atol=1e-4)
        assert np.abs(state["ema/" + name] - state["params/" + name]).max() > 1e-4


def same_files(one: Path, other: Path) -> None:
    for name in ("checkpoint.npz", "weights.npz"):
        with np.load(one / name) as a, np.load(other / name) as b:
            assert a.files == b.files
            for array in a.files:
                np.testing.assert_array_equal(a[array], b[array], err_msg=f"{name}: {array}")


def test_killed_five_times_and_resumed_is_never_interrupted_bit_for_bit(
    whole_run: Path, small_bank: Path, compiled_once: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments of a run that saves after every step, so that some fall into the
    writing of a checkpoint.
    """
    folder = folder_with_bank(tmp_path, "killed", small_bank)
    rng = np.random.default_rng()
    saved, seen = folder / "checkpoint.npz", []
    for _ in range(KILLS):
        process = child(folder, STEPS, 0.0, compiled=compiled_once)
        before, writes = saved.stat().st_mtime_ns if saved.exists() else 0, int(rng.integers(1, 7))
        while writes and process.poll() is None:
            now = saved.stat().st_mtime_ns if saved.exists() else 0
            writes, before = (writes - 1, now) if now != before else (writes, before)
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0, 0.05)))
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, out[-3000:]
        seen.append(weights.read_meta(saved)["step"])
    assert (
        seen == sorted(set(seen)) and seen[-1] < STEPS
    )  # every life made progress and none came to the end
    finish(child(folder, STEPS, 1e9, compiled=compiled_once))
    same_files(folder, whole_run)
    np.testing.assert_array_equal(losses(folder), losses(whole_run)[seen[-1] :])


def test_two_devices_give_the_loss_curve_of_one(
    whole_run: Path, small_bank: Path, compiled_once: Path, tmp_path: Path
) -> None:
    folder = folder_with_bank(tmp_path, "two-devices", small_bank)
    finish(child(folder, 8, 1e9, compiled=compiled_once, devices=2))
    assert json.loads((folder / "losses-0.json").read_text(encoding="utf-8"))["devices"] == 2
    same_curve(losses(folder), losses(whole_run)[:8])


def same_curve(one: np.ndarray, other: np.ndarray) -> None:
    """Equal to rounding until rounding tips a sampled token, and near after that."""
    np.testing.assert_allclose(one[:4], other[:4], rtol=2e-4)
    np.testing.assert_allclose(one, other, rtol=0.05)


# ---------------------------------------------------------------- two variables


@pytest.mark.filterwarnings("ignore::DeprecationWarning:optax")
def test_two_variables_are_trained_and_solved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a few steps, and a search around them that finds x1 x2."""
    monkeypatch.setattr(
        training, "training_exclusions", lambda _: (None, jnp.zeros((1, 24), jnp.float32))
    )
    bank = build_table(8, seed=0, variables=2, chunk=512, patience=1)
    assert {1, 2} <= set(np.unique(np.asarray(bank.tokens)).tolist()) and 3 not in np.asarray(
        bank.tokens
    )
    train(replace(CONFIG, variables=2), replace(RECIPE, steps=3), tmp_path, bank=bank, show=False)
    model = RefineMath(64, 4, weights=tmp_path / "weights.npz", **QUICK)
    x = np.random.default_rng(0).uniform(0.5, 3, (40, 2))
    result = model.solve(x, 2 * x[:, 0] * x[:, 1] + 1, time_budget=20)
    assert result.exact and str(result) == "y = 2*x1*x2 + 1"
    alone = RefineMath(64, 4, weights=tmp_path / "weights.npz", proposers=("network",))
    with pytest.raises(DataError, match="3 variables; these weights handle 2"):
        alone.solve(np.random.default_rng(0).normal(size=(8, 4)))


# ---------------------------------------------------------------- what goes wrong says so


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adam"}, "must be one of muon, adamw"),
        ({"batch": 0}, "batch is 0"),
        ({"unroll": 2.0}, "unroll is 2.0"),
        ({"start_from": "x"}, "file x"),
    ],
)
def test_a_recipe_that_makes_no_sense_says_so(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **change)


def test_a_batch_must_divide_among_the_devices(
    monkeypatch: pytest.MonkeyPatch, small_bank: Path
) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    with (
        np.load(small_bank) as file,
        pytest.raises(ValueError, match="batch is 16; it must be a multiple of the 3 devices"),
    ):
        make_trainer(
            CONFIG,
            RECIPE,
            SkeletonTable(jnp.asarray(file["tokens"]), jnp.asarray(file["start"])),
            None,
        )


@pytest.mark.usefixtures("uncompiled")
def test_a_bank_of_another_recipe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bank: SkeletonTable
) -> None:
    monkeypatch.setattr(training, "build_table", lambda *_, **__: bank)
    monkeypatch.setattr(training, "make_trainer", lambda *_: pytest.fail("far enough"))
    with pytest.raises(
        pytest.fail.Exception, match="far enough"
    ):  # the bank is written before that
        train(CONFIG, RECIPE, tmp_path, show=False)
    with pytest.raises(CheckpointError, match="made for another run"):
        train(CONFIG, replace(RECIPE, seed=1), tmp_path, show=False)


@pytest.mark.usefixtures("uncompiled")
def test_fewer_steps_than_were_taken_are_refused(whole_run: Path) -> None:
    with pytest.raises(CheckpointError, match=f"has {STEPS} steps already"):
        train(CONFIG, replace(RECIPE, steps=STEPS - 1), whole_run, show=False)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` up to its first step: the state before a checkpoint is read is known by its shapes
    alone.
    """
    build = training.make_trainer

    def shapes(*arguments: Any) -> Trainer:
        trainer = build(*arguments)
        return replace(trainer, init=lambda: jax.eval_shape(trainer.init))

    monkeypatch.setattr(training, "make_trainer", shapes)
    monkeypatch.setattr(
        training, "training_exclusions", lambda _: (None, jnp.zeros((1, 24), jnp.float32))
    )


@pytest.mark.usefixtures("uncompiled")
def test_a_folder_of_another_run_is_refused(whole_run: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to another run"):
        train(CONFIG, replace(RECIPE, steps=STEPS, noise=0.1), whole_run, show=False)


@pytest.mark.usefixtures("uncompiled")
def test_a_finished_run_has_nothing_left_to_do(whole_run: Path) -> None:
    before = (whole_run / "checkpoint.npz").read_bytes()
    state = train(CONFIG, replace(RECIPE, steps=STEPS), whole_run, show=False)
    assert int(state.step) == STEPS and (whole_run / "checkpoint.npz").read_bytes() == before


def test_a_release_is_the_average_and_is_never_overwritten(whole_run: Path, tmp_path: Path) -> None:
    release(whole_run, tmp_path / "refinemath-64.npz", {"scores": {"suites": 0}})
    with np.load(tmp_path / "refinemath-64.npz") as a, np.load(whole_run / "weights.npz") as b:
        for name in set(b.files) - {"__meta__"}:
            np.testing.assert_array_equal(a[name], b[name])
    meta = weights.read_meta(tmp_path / "refinemath-64.npz")
    assert meta["scores"] == {"suites": 0} and meta["step"] == STEPS
    with pytest.raises(FileExistsError, match="never overwritten"):
        release(whole_run, tmp_path / "refinemath-64.npz")
