"""The averaged weights of a run as a weights file that can be shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from refinemath import weights
from refinemath.model import Model, ModelConfig


def release(folder: Path, target: Path, extra: dict[str, Any] | None = None) -> None:
    """Write the averaged weights of the checkpoint in `folder` as a weights file (float16).  An
    existing file is never overwritten.
    """
    if target.exists():
        raise FileExistsError(
            f"{target} exists; released weights are never overwritten, choose another name"
        )
    meta = weights.read_meta(folder / "checkpoint.npz")
    config, recipe = ModelConfig(**meta["config"]), meta["recipe"]
    template = nnx.state(nnx.eval_shape(lambda: Model(config, rngs=nnx.Rngs(0))))
    with np.load(folder / "checkpoint.npz", allow_pickle=False) as file:
        leaves = [jnp.asarray(file["ema/" + name]) for name in weights.named_leaves(template)]
    params = jax.tree.unflatten(jax.tree.structure(template), leaves)
    record = {
        "config": meta["config"],
        "recipe": recipe,
        "step": meta["step"],
        "examples": meta["step"] * recipe["batch"],
        **(extra or {}),
    }
    weights.save(target, params, record, dtype=np.float16)
