"""Files of a run, in the format of `refinemath.weights`; bfloat16 is kept as its bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from experiments.network.optimizer import make_optimizer
from refinemath import weights
from refinemath.network.config import Config
from refinemath.network.model import Model

MOST_BYTES = 16 * 2**20  # of a checkpoint, so that it can travel


class State(NamedTuple):
    """Everything that a resumed run needs."""

    params: Any
    optimizer: Any
    step: Array


def _bits(a: Any) -> Any:
    return jax.lax.bitcast_convert_type(a, jnp.uint16) if a.dtype == jnp.bfloat16 else a


def save(path: Path, tree: Any, meta: dict[str, Any]) -> None:
    """Write the leaves of a tree and a record, whole or not at all."""
    weights.save(path, jax.tree.map(_bits, tree), meta)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; it must have {MOST_BYTES}")


def load(path: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """The inverse of `save`, given a tree of the same structure, of arrays or of shapes."""
    stored, meta = weights.load(path, jax.eval_shape(lambda t: jax.tree.map(_bits, t), like))

    def restored(a: Any, bits: Any) -> Any:
        narrow = a.dtype == jnp.bfloat16
        return jax.lax.bitcast_convert_type(bits, jnp.bfloat16) if narrow else bits

    return jax.tree.map(restored, like, stored), meta


def blank_state(config: Config) -> tuple[Any, State]:
    """The graph of a model and the shapes of a state."""
    graph, params = nnx.split(nnx.eval_shape(lambda: Model(config, rngs=nnx.Rngs(0))))
    optimizer = jax.eval_shape(make_optimizer(params).init, params)
    return graph, State(params, optimizer, jax.ShapeDtypeStruct((), np.int32))


def load_model(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Graph, parameters and record of a checkpoint or of the weights of a release."""
    meta = weights.read_meta(path)
    graph, state = blank_state(Config(**meta["config"]))
    if meta["kind"] == "checkpoint":
        return graph, load(path, state)[0].params, meta
    return graph, load(path, state.params)[0], meta


def settings(path: Path) -> dict[str, Any]:
    """Config and recipe of a file, with lists where there were tuples; {} if there is none."""
    if not path.exists():
        return {}
    meta = weights.read_meta(path)
    return json.loads(json.dumps({k: meta[k] for k in ("config", "recipe")}))
