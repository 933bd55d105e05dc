"""What several test files share: a tiny model, a small table of skeletons, one solver with a small
search, and JAX at its strictest.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from flax import nnx

from refinemath import RefineMath, SearchConfig
from refinemath.corpus.build import build_table
from refinemath.corpus.exclusions import training_exclusions
from refinemath.examples import SkeletonTable
from refinemath.loop import Proposer
from refinemath.model import Model, ModelConfig
from refinemath.proposers.edits import Edits
from refinemath.proposers.inverses import Inverses
from refinemath.proposers.missing_term import MissingTerm
from refinemath.proposers.network import Network
from refinemath.proposers.pairs import Pairs
from refinemath.proposers.prior import Prior
from refinemath.proposers.quotients import Quotients
from refinemath.proposers.registry import DEFAULT
from refinemath.proposers.short import Short

CONFIG = ModelConfig(latent_dim=64, width=16, heads=2, seeds=4, encoder_blocks=1, refiner_blocks=1)
SMALL = SearchConfig(latents=4, pool=32, refit=16, fit_steps=2, subtrees=256, search_steps=2)
SMALL_ONES: dict[str, Proposer] = {  # by the names of the registry
    "network": Network(per_latent=16, refine=2),
    "prior": Prior(count=64, refine=8),
    "short": Short(refine=8, rounds=2),
    "missing_term": MissingTerm(parents=8, refine=8),
    "pairs": Pairs(per_kind=16, shortest=128, refine=8),
    "quotients": Quotients(refine=8, rounds=2, numerators=3),
    "inverses": Inverses(refine=8, rounds=2, each=8, entries=1024),
    "edits": Edits(count=96, refine=16),
}
PROPOSERS = tuple(p for name, p in SMALL_ONES.items() if name in DEFAULT)
QUICK: dict[str, Any] = {"config": SMALL, "proposers": PROPOSERS, "patience": 1}


@pytest.fixture(scope="module")
def compiled_in_haste() -> Iterator[None]:
    """Where compiling costs more than running."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled programs are kept during this run, so that workers and child processes share
    them.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder


@pytest.fixture(scope="module", autouse=True)
def forgotten_after() -> Iterator[None]:
    """Compiled programs go with the file that used them: every one of them keeps some regions of
    memory, of which Linux allows a process 65,530.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def strict() -> Iterator[None]:
    """No silent change of dtype or rank inside our own functions."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def exclusions() -> tuple[np.ndarray, jax.Array]:
    return training_exclusions()


@pytest.fixture(scope="session")
def bank(exclusions: tuple[np.ndarray, jax.Array]) -> SkeletonTable:
    return build_table(60, seed=1, chunk=1024, patience=2, excluded=exclusions[0])


@pytest.fixture(scope="session")
def tiny_model() -> Model:
    graph, _ = nnx.split(nnx.eval_shape(lambda: Model(CONFIG, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.jit(lambda: nnx.state(Model(CONFIG, rngs=nnx.Rngs(0))))())


@pytest.fixture(scope="session")
def solver() -> RefineMath:
    """The shipped weights with a search so small that it takes a second."""
    return RefineMath(latent_dim=512, max_iters=4, **QUICK)
