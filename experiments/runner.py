"""What every experiment shares: how it is called, how its work is cut into tasks that are kept, and
how its record is written.

An experiment says what it varies (`tasks`), what it measures (`task`) and what that amounts to
(`report`); the rest is here.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shlex
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from refinemath import weights
from refinemath.evaluation import environment

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
RESULTS = ROOT / "results"
# what several experiments ask for: the value, that of a quick run, and what it is
SHARED: dict[str, tuple[Any, Any, str]] = {
    "seeds": (3, 1, "random seeds of a training"),
    "seconds": (120.0, 1.0, "training time of a network, in CPU seconds of one core"),
    "clock": (8.0, 0.3, "seconds in which a problem is to be solved"),
    "every": (6, 150, "each N-th held-out formula"),
    "bank": (20_000, 40, "formulas of each length to train on"),
    "fresh": (2048, 16, "plots of true formulas on which a network is asked"),
    "batch": (32, 8, "problems in a training step"),
    "width": (64, 16, "width at which a trained network works"),
    "latent_dim": (256, 64, "width of its latent"),
    "repeats": (9, 2, "timings of each thing that is timed"),
    "parts": (["suites", "heldout", "noise"], ["heldout"], "problems to solve"),
}
TRAINING = ("seeds", "seconds", "bank", "batch", "width", "latent_dim")
# the environment of a child: one thread; large pages, so that a sixth of the time is not spent on
# handing out memory
ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


@dataclass(frozen=True)
class Experiment:
    """One question.  `tasks` names the pieces of work, `task` does one and returns its record,
    `report` makes the experiment's record of them; a task that was finished is not done again.

    Tasks whose names begin with one of `alone` get a process and a core of their own, `--jobs` of
    them at a time, before the others run here one after the other.
    """

    name: str
    doc: str | None
    tasks: Callable[[Namespace], list[str]]
    task: Callable[[Namespace, str], Any]
    report: Callable[[Namespace, dict[str, Any]], dict[str, Any]]
    shared: tuple[str, ...] = ()  # names of SHARED
    options: dict[str, Any] = field(default_factory=dict)  # its own, or other values of shared ones
    quick: dict[str, Any] = field(default_factory=dict)
    alone: tuple[str, ...] = ()

    def main(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Do what is missing, report, write."""
        options = self.parse(arguments)
        if options.only:
            one_core(options.core)
            keep_compiled(options.work / "compiled")
            save_task(options.work, options.only, self.task(options, options.only))
            return {}
        began = time.perf_counter()
        options.work = folder(options, self.name)
        tasks = self.tasks(options)
        missing = [t for t in tasks if not task_path(options.work, t).exists()]
        apart = [t for t in missing if t.startswith(self.alone)] if self.alone else []
        if apart and not options.quick:
            self.in_children(options, apart)
        for name in missing:
            if not task_path(options.work, name).exists():
                save_task(options.work, name, self.task(options, name))
                print(f"done: {name}", flush=True)
        report = self.report(options, {name: load_task(options.work, name) for name in tasks})
        show(rounded(report, 3))
        return write(self.name, arguments, options, report, began)

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """The options; with `--quick` the sizes of the quick mode where none is given."""
        parser = argparse.ArgumentParser(
            description=(self.doc or "").split("\n", 1)[0],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument("--quick", action="store_true", help="tiny sizes; measures nothing")
        parser.add_argument("--seed", type=int, default=0, help="first random seed")
        parser.add_argument("--jobs", type=int, default=2, help="processes with one core each")
        parser.add_argument("--work", type=Path, default=ROOT / "runs", help="what is kept")
        parser.add_argument("--out", type=Path, help="record (default results/NAME.json)")
        parser.add_argument("--only", help=argparse.SUPPRESS)
        parser.add_argument("--core", type=int, default=0, help=argparse.SUPPRESS)
        for name, default in self.defaults(quick="--quick" in arguments).items():
            several = isinstance(default, list)
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=type(default[0] if several else default),
                nargs="+" if several else None,
                default=default,
                help=SHARED[name][2] if name in SHARED else " ",
            )
        return parser.parse_args(arguments)

    def defaults(self, *, quick: bool) -> dict[str, Any]:
        """The value of every option that is not of all experiments."""
        usual = {name: SHARED[name][0] for name in self.shared} | self.options
        small = {name: SHARED[name][1] for name in usual if name in SHARED} | self.quick
        return usual | (small if quick else {})

    def in_children(self, options: Namespace, tasks: Sequence[str]) -> None:
        """Every task in a process of its own on a core of its own."""
        cores: queue.Queue[int] = queue.Queue()
        for core in range(options.jobs):
            cores.put(core)
        passed = ["--work", str(options.work), "--seed", str(options.seed)]
        for name in self.defaults(quick=False):
            value = getattr(options, name)
            several = value if isinstance(value, list) else [value]
            passed += [f"--{name.replace('_', '-')}", *map(str, several)]
        module = [sys.executable, "-m", "experiments", self.name]

        def work_on(task: str) -> None:
            core = cores.get()
            try:
                command = [*module, "--only", task, "--core", str(core), *passed]
                subprocess.run(command, check=True, env={**os.environ, **ONE_THREAD}, cwd=ROOT)
                print(f"done: {task}", flush=True)
            finally:
                cores.put(core)

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(work_on, tasks))


def folder(options: Namespace, name: str) -> Path:
    """Where an experiment keeps its tasks; with --quick a new folder that nobody needs again."""
    if options.quick:
        return Path(tempfile.mkdtemp(prefix="refinemath-"))
    path = options.work.resolve() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def one_core(core: int) -> None:
    """Bind this process to one core, before JAX starts its threads, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {available[core % len(available)]})


def keep_compiled(path: Path) -> None:
    """Keep compiled programs in a folder, so that the next process need not compile them again."""
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def task_path(work: Path, task: str) -> Path:
    """Where the record of a task lies: `polar:0` is polar-0.json."""
    return work / (re.sub(r"[^\w.+-]", "-", task) + ".json")


def save_task(work: Path, task: str, record: Any) -> None:
    """Write the record of a task, with the commit that made it, in one step."""
    work.mkdir(parents=True, exist_ok=True)
    kept = {"commit": environment("")["commit"], "record": rounded(record)}
    with weights.in_one_step(task_path(work, task)) as file:
        file.write((json.dumps(kept, indent=1) + "\n").encode())


def load_task(work: Path, task: str) -> Any:
    """The record of a finished task."""
    return json.loads(task_path(work, task).read_text(encoding="utf-8"))["record"]


def write(
    name: str, typed: Sequence[str], options: Namespace, report: dict[str, Any], began: float
) -> dict[str, Any]:
    """Add command, commit, versions, hardware, options and time to a report, and write it as
    JSON; a quick run is written only where `--out` says so.
    """
    settings = {k: v for k, v in vars(options).items() if k not in ("out", "work", "only", "core")}
    record = {
        **environment(shlex.join(["python", "-m", "experiments", name, *typed])),
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


def show(report: Any, label: str = "") -> None:
    """Print every interval of a report, one a line."""
    if isinstance(report, dict) and {"value", "low", "high"} <= report.keys():
        print(f"{label}: {report['value']} [{report['low']}, {report['high']}]")
    elif isinstance(report, dict):
        for name, value in report.items():
            show(value, f"{label} / {name}" if label else str(name))


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
        finite = float(f"{value:.{digits}g}") if np.isfinite(value) else str(float(value))
        return None if np.isnan(value) else finite
    return int(value) if isinstance(value, np.integer) else value
