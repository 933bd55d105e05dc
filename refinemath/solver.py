"""`RefineMath`: from points to a formula.  (Chapters 0, 8, 10)"""

from __future__ import annotations

import contextlib
import functools
import numbers
import os
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from refinemath import weights
from refinemath.answer.choose import Known, choose_solution, refit
from refinemath.answer.solution import EXACT, Solution, code_length
from refinemath.answer.targets import SHORT_SEARCH, UNDO, planned
from refinemath.compiled import no_rows, run_search
from refinemath.corpus.build import build_table
from refinemath.corpus.exclusions import training_exclusions
from refinemath.loop import Proposer, SearchConfig, SearchOutput, declares
from refinemath.model import ModelConfig
from refinemath.problem import MOST_POINTS, DataError, prepare, read_points
from refinemath.proposers.library import short_skeletons
from refinemath.proposers.registry import DEFAULT, resolve
from refinemath.result import Result, _constant, _result, judged
from refinemath.weights import _load, shipped_widths


@contextlib.contextmanager
def kept_compiled() -> Iterator[None]:
    """Inside, JAX keeps what it compiles on disk: the first process on a machine waits for the
    compiler, the next ones do not.

    The folder is `refinemath` in the user's cache, one for each machine.  Nothing changes where a
    place was chosen already (`JAX_COMPILATION_CACHE_DIR`), the cache is switched off
    (`JAX_ENABLE_COMPILATION_CACHE=0`), or the folder cannot be written.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        yield
        return
    try:
        base = (
            os.environ.get("XDG_CACHE_HOME")
            or os.environ.get("LOCALAPPDATA")
            or Path.home() / ".cache"
        )
        folder = Path(base) / "refinemath" / f"{platform.node()}-{platform.machine()}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # there may be no home folder
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def plain_float32() -> Iterator[None]:
    """Inside, JAX computes in float32 all through, also where 64-bit numbers are switched on or a
    GPU would round the factors of its products.
    """
    new: Any = getattr(jax, "enable_x64", None)
    narrow = new(False) if new is not None else jax.experimental.disable_x64()  # type: ignore[attr-defined]
    with (
        narrow,
        contextlib.nullcontext()
        if jax.default_backend() == "cpu"
        else jax.default_matmul_precision("highest"),
    ):
        yield


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral)  # NumPy's whole numbers as well


@functools.cache
def blind_table(seed: int = 99, per_length: int = 60_000) -> np.ndarray:
    """Skeletons for blind draws, made and kept as for training: the null model of the network."""
    return np.asarray(build_table(per_length, seed=seed, excluded=training_exclusions()[0]).tokens)


_COMPILED: set[Any] = set()  # the searches that this process has compiled


class RefineMath:
    """A model that turns points into a formula.

    `latent_dim`: the width of the latent; weights of this width must be in the package or given as
    `weights`, the path of a file that training wrote.  `max_iters`: the most refiner steps of one
    search.  `budget`: how much each step may do, see `loop.SearchConfig`; its `steps` become
    `max_iters`, and its `search_steps` half of them if they are more. `initial_pool`: whether all
    formulas of up to five tokens are tried before the first step.  `undo`: whether searches after
    the first also look at the data with one operation undone, such as log y, which is the rest
    where y is exp of it.
    """

    def __init__(
        self,
        latent_dim: int = 512,
        max_iters: int = 32,
        *,
        weights: str | Path | None = None,
        proposers: Iterable[str | Proposer] = DEFAULT,
        config: SearchConfig | None = None,
        undo: bool = True,
        patience: int = 3,
    ):
        if not _is_whole(max_iters) or not 1 <= max_iters <= 1024:
            raise ValueError(
                f"max_iters is {max_iters!r}; it must be a whole number from 1 to 1024"
            )
        if not _is_whole(latent_dim) or latent_dim < 1:
            raise ValueError(f"latent_dim is {latent_dim!r}; it must be a positive whole number")
        self.latent_dim = int(latent_dim)
        self.max_iters = int(max_iters)
        self.weights = None if weights is None else Path(weights)
        self.proposers = resolve(proposers)
        self.reads = any(declares(p, "reads_latents") for p in self.proposers)
        self.undo = undo
        self.patience = patience
        base = config or SearchConfig()
        search_steps = min(base.search_steps, max(1, self.max_iters // 2))
        self.config = replace(base, steps=self.max_iters, search_steps=search_steps)

    def _parameters(self) -> tuple[Any, Any, ModelConfig]:
        if self.weights is not None:
            if not self.weights.is_file():
                raise weights.CheckpointError(f"there is no weights file {self.weights}")
            params, graph, config = _load(self.weights, self.weights.stat().st_mtime_ns)
            if config.latent_dim != self.latent_dim:
                raise weights.CheckpointError(
                    f"{self.weights} has latent_dim {config.latent_dim}, not {self.latent_dim}"
                )
            return params, graph, config
        widths = shipped_widths()
        if self.latent_dim not in widths:
            raise weights.CheckpointError(
                f"no weights of latent_dim {self.latent_dim} are shipped; shipped: "
                f"{', '.join(map(str, widths)) or 'none'}. "
                f"Train your own with `python -m refinemath train --latent-dim {self.latent_dim} "
                "--out FOLDER` and pass weights='FOLDER/weights.npz'"
            )
        return _load(
            Path(
                str(resources.files("refinemath") / "weights" / f"refinemath-{self.latent_dim}.npz")
            ),
            0,
        )

    @plain_float32()
    def solve(
        self,
        data: Any,
        y: Any = None,
        *,
        threshold: float = 1e-5,
        seed: int = 0,
        time_budget: float = 8.0,
    ) -> Result:
        """Find a formula for the points; returns a `Result` that unpacks as `formula_latex,
        iterations`.

        `data`: rows (x, y), see `read_points` for all forms.  `threshold`: the relative latent
        velocity |Z_t - Z_{t-1}| / |Z_{t-1}| under which a thought has settled.  `seed`: makes the
        answer repeatable, where the same number of searches fits into the time; its last 32 bits
        count.  `time_budget`: seconds within which the last search should end (the first always
        runs).  A poor fit is a result with `found` False, not an error.  Raises `DataError`,
        `CheckpointError`, `ValueError`.
        """
        began = time.perf_counter()
        if not isinstance(threshold, numbers.Real) or not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold!r}; it must be a number between 0 and 1")
        if not isinstance(time_budget, numbers.Real) or not time_budget > 0:
            raise ValueError(
                f"time_budget is {time_budget!r}; it must be a positive number of seconds"
            )
        if not _is_whole(seed) or not -(2**63) <= seed < 2**64:
            raise ValueError(f"seed is {seed!r}; it must be a whole number of at most 64 bits")
        x, target = read_points(data, y)
        params, graph, config = self._parameters()
        if x.shape[1] != config.variables:
            raise DataError(
                f"the data have {x.shape[1]} variables; these weights handle {config.variables}. "
                f"Train others with `python -m refinemath train --variables {x.shape[1]}`"
            )
        if np.ptp(target) <= 1e-14 * max(1e-300, float(np.max(np.abs(target)))):
            return _constant(x, target, began)
        spaced = np.round(np.linspace(0, len(x) - 1, MOST_POINTS)).astype(int)
        few = np.argsort(x[:, 0], kind="stable")[spaced] if len(x) > MOST_POINTS else slice(None)
        prepared = prepare(x[few], target[few])
        uses = {
            t: any(declares(p, t) for p in self.proposers) for t in ("uses_library", "uses_table")
        }
        start = (
            jnp.asarray(short_skeletons(config.slots))
            if uses["uses_library"]
            else no_rows(config.slots)
        )
        table = jnp.asarray(blind_table()) if uses["uses_table"] else no_rows(config.slots)
        front: dict[tuple[str, ...], Solution] = {}
        known: Known = ({}, {})
        chosen: Solution | None = None
        kept: SearchOutput | None = None
        program = (config, self.config, self.proposers, prepared.points.y.shape)
        compiled = (
            program in _COMPILED
        )  # if not, the first search also compiles, and its time predicts nothing

        plan = planned(prepared, tuple(UNDO) if self.undo else ())

        def search(attempt: int) -> SearchOutput:
            operation, view = plan(attempt)
            key = jax.random.fold_in(jax.random.key(int(seed) % 2**63), attempt)
            most = jnp.int32(SHORT_SEARCH if operation else self.config.search_steps)
            return run_search(
                params if self.reads else None,
                graph if self.reads else None,
                view.points,
                key,
                start,
                table,
                most,
                proposers=self.proposers,
                config=self.config,
            )

        agreed = attempt = taken = 0
        reading = 0.0  # seconds of the host for one outcome
        searched = time.perf_counter()
        with contextlib.nullcontext() if compiled else kept_compiled():
            outcome = search(0)
        while True:
            solved = float(outcome.pool.fvu[0]) <= self.config.solved  # waits for the device
            taken += int(outcome.steps)
            found = time.perf_counter()
            one_more = (
                found - began + reading + (found - searched if compiled or attempt else 0.0)
                <= time_budget
            )
            searched = found
            # the device searches on while the host reads, unless this is likely to be the end
            counts = (
                plan(attempt)[0] == ""
            )  # only searches of the data themselves use up the patience
            following = (
                search(attempt + 1)
                if one_more and not solved and agreed + counts < self.patience
                else None
            )
            for solution in refit(outcome, *plan(attempt), prepared):
                name = tuple(
                    p for t in sorted(t.skeleton() for t in solution.terms) for p in (*t, ";")
                )
                if name not in front or code_length(solution) < code_length(front[name]):
                    front[name] = solution
            now = choose_solution(sorted(front.values(), key=code_length), prepared, known=known)
            better = now is not None and (
                chosen is None or code_length(now) < code_length(chosen) - 0.5
            )
            agreed = 0 if better else agreed + counts
            if better:
                chosen, kept = now, outcome
            reading = time.perf_counter() - found
            if (
                (chosen is not None and chosen.fvu < EXACT)
                or agreed >= self.patience
                or not one_more
            ):
                break
            if following is None:
                searched = time.perf_counter()
            attempt += 1
            outcome = search(attempt) if following is None else following
        _COMPILED.add(program)
        result = _result(
            chosen,
            sorted(front.values(), key=lambda s: s.length),
            kept or outcome,
            prepared,
            began,
            searches=attempt + 1,
            steps=taken,
        )
        return result if len(x) <= MOST_POINTS else judged(result, x, target)
