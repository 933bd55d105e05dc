"""What every experiment shares: arguments, the record it writes, the bank of formulas, clocks and
intervals.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import queue
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from refinemath import RefineMath, Result, SearchConfig, weights
from refinemath.corpus.build import build_table
from refinemath.corpus.exclusions import training_exclusions
from refinemath.evaluation import Problem, environment, recovered, warm_up
from refinemath.examples import Examples, SkeletonTable
from refinemath.expression import END
from refinemath.fitting import Points
from refinemath.model import Model, ModelConfig
from refinemath.problem import prepare
from refinemath.solver import device_points
from refinemath.training import TrainConfig, make_optimizer, make_trainer, train

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
RESULTS = ROOT / "results"
TINY = ModelConfig(
    latent_dim=64, width=16, heads=2, seeds=4, encoder_blocks=1, refiner_blocks=1
)  # the model of the quick modes
QUICK = SearchConfig(
    thoughts=2, samples=16, edits=64, fits=2, fit_steps=1, keep=32, search_steps=2, patience=0
)  # and their search


# ---------------------------------------------------------------- arguments and records


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every experiment understands."""
    parser = argparse.ArgumentParser(
        description=(doc or "").split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, well under a minute; tests the program, measures nothing",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        help="record to write (default results/NAME.json; nothing is written with --quick)",
    )
    parser.add_argument(
        "--only", help=argparse.SUPPRESS
    )  # one piece of work, in a process of its own
    parser.add_argument("--core", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs", help="folder for runs that can be resumed"
    )
    return parser


def folder(options: argparse.Namespace, name: str) -> Path:
    """The folder of an experiment's runs: kept, so that they can be resumed, or with --quick a new
    one that nobody needs again.
    """
    path = (
        Path(tempfile.mkdtemp(prefix="refinemath-"))
        if options.quick and not options.only
        else options.work.resolve() / name
    )
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(
    name: str, options: argparse.Namespace, report: dict[str, Any], began: float
) -> dict[str, Any]:
    """Add command, commit, versions, hardware, options and time to a report, and write it as
    JSON.
    """
    typed = (
        shlex.join(sys.argv[1:])
        if Path(sys.argv[0]).stem == name
        else "--quick"
        if options.quick
        else ""
    )
    command = f"python -m experiments.{name} {typed}".strip()
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "work", "only", "core")}
    record = {
        **environment(command),
        "cores": os.cpu_count(),
        "options": settings,
        "seconds": round(time.perf_counter() - began, 1),
        **report,
    }
    path = options.out or (None if options.quick else RESULTS / f"{name}.json")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rounded(record), indent=1) + "\n", encoding="utf-8")
        print(f"written: {path.name}")
    return record


def rounded(value: Any, digits: int = 5) -> Any:
    """The same record with every float to `digits` significant digits; NaN and infinity become None
    and text, which JSON knows.
    """
    if isinstance(value, dict):
        return {str(k): rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v, digits) for v in value]
    if isinstance(value, np.ndarray | jax.Array):
        return rounded(np.asarray(value).tolist(), digits)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        return (
            (None if np.isnan(number) else str(number))
            if not np.isfinite(number)
            else float(f"{number:.{digits}g}")
        )
    return int(value) if isinstance(value, np.integer) else value


# ---------------------------------------------------------------- intervals


def interval(
    values: Any, statistic: Callable[..., Any] = np.mean, *, seed: int = 0, count: int = 2000
) -> dict[str, float]:
    """A statistic of paired columns with its 95 % bootstrap interval.

    `values` is one sequence or several of equal length (a tuple); rows are drawn together, so that
    pairs stay pairs.  Percentile method (Efron 1979).
    """
    columns = [np.asarray(v, float) for v in (values if isinstance(values, tuple) else (values,))]
    n = len(columns[0])
    if n == 0:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    rows = np.random.default_rng(seed).integers(n, size=(count, n))
    drawn = np.array([statistic(*(c[r] for c in columns)) for r in rows], float)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (float("nan"), float("nan"))
    return {"value": float(statistic(*columns)), "low": float(low), "high": float(high), "n": n}


def difference(a: Any, b: Any, *, seed: int = 0) -> dict[str, float]:
    """Mean of a - b over pairs, with its interval."""
    return interval((a, b), lambda u, v: float(np.mean(u - v)), seed=seed)


# ---------------------------------------------------------------- clocks and memory


def times(call: Callable[[], Any], *, repeats: int = 5) -> list[float]:
    """Seconds of each of several calls of something that has been compiled already."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return seconds


def clock(call: Callable[[], Any], *, repeats: int = 5) -> float:
    """Median seconds of a call that has been compiled already."""
    return float(np.median(times(call, repeats=repeats)))


def matmul_peak(size: int = 1024, *, repeats: int = 7) -> float:
    """Floating point operations a second of a large float32 matrix product, the most this machine
    gives.  The best of `repeats`.
    """
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda u: u @ u)
    jax.block_until_ready(product(a))
    return 2 * size**3 / min(times(lambda: product(a), repeats=repeats))


def one_core(core: int) -> None:
    """Bind this process to one core, before JAX starts its threads.  Where the system cannot, the
    environment of `quiet` still does most of it.
    """
    if hasattr(os, "sched_setaffinity"):
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {available[core % len(available)]})


def quiet() -> dict[str, str]:
    """The environment of a child process that is to use one thread; large pages, so that a sixth of
    the time is not spent on handing out memory.
    """
    return {
        **os.environ,
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }


def in_children(
    module: str, tasks: Sequence[str], jobs: int, work: Path, arguments: Sequence[str]
) -> None:
    """Run `python -m experiments.MODULE --only TASK` for every task without a record, `jobs` at a
    time, each single-threaded on a core of its own.

    A child writes its record with `save_task`; with `jobs` 0 nothing is run here.
    """
    cores: queue.Queue[int] = queue.Queue()
    for core in range(jobs):
        cores.put(core)

    def work_on(task: str) -> None:
        core = cores.get()
        try:
            command = [
                sys.executable,
                "-m",
                f"experiments.{module}",
                "--only",
                task,
                "--core",
                str(core),
                "--work",
                str(work),
                *arguments,
            ]
            subprocess.run(command, check=True, env=quiet(), cwd=ROOT)
            print(f"done: {task}", flush=True)
        finally:
            cores.put(core)

    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        list(pool.map(work_on, [t for t in tasks if not task_path(work, t).exists()]))


def task_path(work: Path, task: str) -> Path:
    """Where the record of a task lies: `polar:0:1500` is polar-0-1500.json."""
    return work / (task.replace(":", "-") + ".json")


def save_task(work: Path, task: str, record: Any) -> None:
    """Write the record of a task in one step."""
    path = task_path(work, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    with weights.in_one_step(path) as file:
        file.write((json.dumps(rounded(record), indent=1) + "\n").encode())


def load_task(work: Path, task: str) -> Any:
    """The record of a finished task."""
    return json.loads(task_path(work, task).read_text(encoding="utf-8"))


def keep_compiled(folder: Path) -> None:
    """Keep compiled programs in a folder, so that a resumed run need not compile them again."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


# training something else than the shipped recipe


def fit(
    loss: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    recipe: TrainConfig,
    *,
    seconds: float,
    steps: int | None = None,
    now: Any = time.process_time,
) -> tuple[Any, dict[str, Any]]:
    """Minimise `loss(params, key)` for so many seconds with the optimizer, warm-up, decay and
    averaging of a recipe; averaged weights and a log.

    The cost of a step is measured first and the number of steps follows, so the learning rate falls
    to zero at the end; `steps` in the log repeats the run exactly.  For other losses than
    `training.loss_fn`, whose trainer this follows.
    """
    optimizer = make_optimizer(replace(recipe, steps=2**30, decay=0.0), params)
    root = jax.random.key(recipe.seed)

    @jax.jit
    def step(
        params: Any, ema: Any, moments: Any, count: jax.Array, factor: jax.Array
    ) -> tuple[Any, Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, jax.random.fold_in(root, count))
        updates, moments = optimizer.update(gradient, moments, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: factor * u, updates))
        rate = jnp.minimum(recipe.ema, (1.0 + count) / (10.0 + count)).astype(jnp.float32)
        return (
            params,
            jax.tree.map(lambda a, b: rate * a + (1 - rate) * b, ema, params),
            moments,
            value,
        )

    ema, moments, costs = params, optimizer.init(params), []
    for _ in range(6):  # the first is the compilation
        began = now()
        jax.block_until_ready(step(params, ema, moments, jnp.int32(0), jnp.float32(0)))
        costs.append(now() - began)
    steps = steps or max(3, round(seconds / float(np.median(costs[1:]))))
    began, window, log = now(), [], []
    for i in range(steps):
        factor = min(1.0, (steps - i) / (max(recipe.decay, 1e-9) * steps))
        params, ema, moments, value = step(params, ema, moments, jnp.int32(i), jnp.float32(factor))
        window.append(value)
        if (i + 1) % max(1, steps // 40) == 0 or i + 1 == steps:
            log.append([i + 1, now() - began, float(np.mean(window))])
            window = []
    return ema, {"steps": steps, "seconds": now() - began, "loss": log}


def cross_entropy(logits: jax.Array, e: Examples) -> jax.Array:
    """Mean over a batch of the cross-entropy of the true tokens, the slots behind the formula at a
    tenth, as in `training.loss_fn`.
    """
    length = jnp.sum(e.tokens != END, axis=1, keepdims=True)
    weight = jnp.where(jnp.arange(e.tokens.shape[1])[None] <= length, 1.0, 0.1) * e.weight[:, None]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), e.tokens[..., None], axis=-1)[
        ..., 0
    ]
    return -jnp.sum(log_p * weight) / jnp.maximum(jnp.sum(weight), 1e-6)


# ---------------------------------------------------------------- formulas and answers


def exclusions(variables: int = 1) -> tuple[np.ndarray, jax.Array]:
    """Signatures and probe values of what never enters training, made once a process."""
    return _exclusions(variables)


_exclusions = functools.cache(training_exclusions)


def training_bank(folder: Path, per_length: int, seed: int = 0) -> SkeletonTable:
    """The training formulas, without anything held out; made once and kept in the folder."""
    path = folder / f"bank-{per_length}-{seed}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        words, _ = exclusions()
        small = {"chunk": 1024, "patience": 2} if per_length <= 100 else {}
        bank = build_table(per_length, seed=seed, excluded=words, **small)
        with weights.in_one_step(path) as file:
            np.savez(file, tokens=bank.tokens, start=bank.start)
    with np.load(path, allow_pickle=False) as file:
        return SkeletonTable(jnp.asarray(file["tokens"]), jnp.asarray(file["start"]))


def answers(
    model: RefineMath,
    problems: Sequence[Problem],
    *,
    threshold: float = 1e-5,
    time_budget: float = 8.0,
    seed: int = 0,
) -> Iterator[tuple[Problem, Result, bool]]:
    """Each problem, the answer and whether it is right by the strict rule; everything is compiled
    before the first.
    """
    warm_up(model, problems)
    for problem in problems:
        result = model.solve(
            problem.x, problem.y, threshold=threshold, time_budget=time_budget, seed=seed
        )
        yield problem, result, recovered(problem, result)


def side_by_side(
    sides: dict[str, tuple[RefineMath, float]],
    problems: Sequence[Problem],
    work: Path,
    *,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Two models with their seconds a problem, in turns on every problem: a row each, and which
    problems each side recovers.

    A problem that was finished before is not asked again.
    """
    for model, _ in sides.values():
        warm_up(model, problems)
    rows = []
    for i, problem in enumerate(problems):
        if not task_path(work, problem.name).exists():
            row: dict[str, Any] = {
                "name": problem.name,
                "length": problem.length,
                "formula": str(problem.truth),
                **dict.fromkeys(sides),
            }
            for side in list(sides)[:: 1 if i % 2 else -1]:
                model, seconds = sides[side]
                result = model.solve(problem.x, problem.y, time_budget=seconds, seed=seed)
                right = recovered(problem, result)
                row[side] = {
                    "recovered": right,
                    "settled": result.converged,
                    "searches": result.searches,
                    "seconds": round(result.seconds, 2),
                }
            save_task(work, problem.name, row)
            print(
                *("+" if row[side]["recovered"] else "-" for side in sides),
                problem.length,
                row["formula"][:100],
                flush=True,
            )
        rows.append(load_task(work, problem.name))
    return rows, {side: np.array([row[side]["recovered"] for row in rows]) for side in sides}


def compared(right: dict[str, np.ndarray]) -> dict[str, Any]:
    """What two sides recover on the same problems: each with its interval, the difference with its
    own, how many the first won and lost.
    """
    (a, first), (b, second) = right.items()
    return {
        "recovered": {a: interval(first), b: interval(second)},
        f"{a} minus {b}": difference(first, second),
        "won": int(np.sum(first & ~second)),
        "lost": int(np.sum(second & ~first)),
    }


def parts_of(config: ModelConfig, kind: type[nnx.Module] = Model, seed: int = 0) -> tuple[Any, Any]:
    """Random parameters and graph of a model, or of a class that stands in for it."""
    graph, params = nnx.split(kind(config, rngs=nnx.Rngs(seed)))
    return params, graph


def shipped(width: int = 512) -> tuple[Any, Any, ModelConfig]:
    """Parameters, graph and configuration of the weights in the package."""
    return RefineMath(width).parameters()


def parameter_count(params: Any) -> int:
    """How many numbers a model has."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))


def stack(problems: Sequence[Problem]) -> Points:
    """The points of several problems as one batch, as the network sees them, padded to the
    longest.
    """
    ready = [device_points(prepare(p.x[:, None], p.y)) for p in problems]
    most = max(r.y.shape[1] for r in ready)
    return Points(
        *(
            jnp.concatenate(
                [jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, most - a.shape[-1])]) for a in field]
            )
            for field in zip(*ready, strict=True)
        )
    )


def train_seconds(
    config: ModelConfig,
    recipe: TrainConfig,
    where: Path,
    bank: SkeletonTable,
    seconds: float,
    *,
    model: Any = Model,
    steps: int | None = None,
) -> dict[str, Any]:
    """Train with `training.train`, `model` in the place of `model.Model`, for so many CPU seconds;
    `steps` skips the measurement of what a step costs.
    """
    with (
        mock.patch("refinemath.training.Model", model),
        mock.patch("refinemath.training.training_exclusions", exclusions),
    ):
        if steps is None:
            shutil.rmtree(
                where, ignore_errors=True
            )  # a run that was interrupted starts again: the seconds are those of a whole one
            trainer = make_trainer(config, replace(recipe, steps=1000), bank, exclusions()[1])
            state, _ = trainer.step(trainer.init())
            costs = []
            for _ in range(6):
                began = time.process_time()
                state, metrics = trainer.step(state)
                jax.block_until_ready(metrics)
                costs.append(time.process_time() - began)
            steps = max(3, round(seconds / float(np.median(costs))))
            del state, trainer
        recipe = replace(recipe, steps=steps, warmup=max(1, min(recipe.warmup, steps // 10)))
        began = time.process_time()
        train(config, recipe, where, bank=bank, show=False, save_seconds=120)
    log = [
        json.loads(line) for line in (where / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return {
        "steps": steps,
        "examples": steps * recipe.batch,
        "seconds": time.process_time() - began,
        "loss": [[e["step"], e["loss"]] for e in log],
    }


def load_parts(
    path: Path, config: ModelConfig, kind: type[nnx.Module] = Model
) -> tuple[Any, Any, ModelConfig]:
    """Parameters, graph and configuration from a weights file, for a class that stands in for the
    model.
    """
    graph, template = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))
    return weights.load(path, template)[0], graph, config
