"""Arrays in a file without pickle; in the package this is `checkpoint.py`, plus bfloat16 kept as
its bits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def save(path: Path, tree: Any, meta: dict) -> None:
    """Write the leaves of a tree and a record, whole or not at all.  bfloat16 is stored as its
    bits."""
    leaves = [np.asarray(a) for a in jax.tree.leaves(tree)]
    leaves = [a.view(np.uint16) if a.dtype == jnp.bfloat16 else a for a in leaves]
    part = path.with_suffix(".part.npz")
    np.savez(part, *leaves, meta=np.array(json.dumps(meta)))
    os.replace(part, path)


def load(path: Path, like: Any) -> tuple[Any, dict]:
    """The inverse of `save`, given a tree of the same structure."""
    old, tree = jax.tree.flatten(like)
    with np.load(path) as file:
        new = [file[f"arr_{i}"] for i in range(len(old))]
        meta = json.loads(str(file["meta"]))
    for a, b in zip(old, new, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"{path} holds other shapes: {b.shape}, not {a.shape}")
    new = [
        b.view(jnp.bfloat16) if a.dtype == jnp.bfloat16 else b
        for a, b in zip(old, new, strict=True)
    ]
    return jax.tree.unflatten(tree, [jnp.asarray(a) for a in new]), meta
