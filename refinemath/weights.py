"""Arrays in files, without pickle.  (Chapter 6)

A file is a NumPy `.npz` of named arrays plus one JSON text.  Names are compared exactly on load,
and a file is replaced in one step.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from refinemath.model import Model, ModelConfig
from refinemath.network import model as network
from refinemath.network.config import Config

FORMAT = 1


# what NumPy and zipfile raise on files that are cut, altered or of another kind
_DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    MemoryError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class CheckpointError(ValueError):
    """A file that is not what it should be; the message says what was found and what was
    expected.
    """


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, such as `encoder/first/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)

    def name(path: tuple[Any, ...]) -> str:
        return "/".join(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))))
            for k in path
            if getattr(k, "name", None) != "value"
        )

    return {name(path): leaf for path, leaf in leaves}


@contextlib.contextmanager
def in_one_step(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of `path` once it is whole; where the writing fails,
    `path` stays as it was.
    """
    part = path.with_name(f"{path.name}.part{jax.process_index()}")
    with part.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def save(path: Path, tree: Any, meta: dict[str, Any], *, dtype: Any = None) -> None:
    """Write a pytree of arrays and a JSON record.  With `dtype`, floating arrays are stored in
    it.
    """
    arrays: dict[str, Any] = {}
    for name, leaf in named_leaves(tree).items():
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        narrow = dtype is not None and np.issubdtype(array.dtype, np.floating)
        arrays[name] = array.astype(dtype) if narrow else array
    arrays["__meta__"] = np.frombuffer(json.dumps({"format": FORMAT, **meta}).encode(), np.uint8)
    with in_one_step(path) as file:
        np.savez_compressed(file, **arrays)


def _read(path: Path, name: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file, or the one called `name`.  Whatever is wrong with the file is a
    `CheckpointError`.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {n: archive[n] for n in (archive.files if name is None else [name])}
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path} is not a RefineMath file, or it is damaged: {error}"
        ) from None


def _record(path: Path, text: np.ndarray) -> dict[str, Any]:
    try:
        meta = json.loads(text.tobytes())
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not a RefineMath file, or it is damaged: {error}"
        ) from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {meta.get('format') if isinstance(meta, dict) else meta!r}; this "
            f"version reads format {FORMAT}"
        )
    return meta


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON record of a file.  Raises `CheckpointError` if it is not one of ours."""
    return _record(path, _read(path, "__meta__")["__meta__"])


def load(path: Path, like: Any, *, grown: bool = False) -> tuple[Any, dict[str, Any]]:
    """The pytree and record of a file.  Names and shapes must be those of `like` exactly; dtypes
    become those of `like`.

    With `grown`, `like` may have leaves that the file lacks; they stay as they are.
    """
    stored = _read(path)
    meta = _record(path, stored.pop("__meta__", np.zeros(0, np.uint8)))
    wanted = named_leaves(like)
    missing, extra = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if extra or (missing and not grown):
        raise CheckpointError(
            f"{path} holds other parameters than this model; missing {missing[:3]}, unexpected "
            f"{extra[:3]}"
        )
    leaves = []
    for name, leaf in wanted.items():
        if name not in stored:
            leaves.append(leaf)
            continue
        array = stored[name]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaves.append(jax.random.wrap_key_data(jnp.asarray(array)))
            continue
        if array.shape != leaf.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {array.shape}; this model needs {leaf.shape}"
            )
        leaves.append(jnp.asarray(array, leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta


def shipped_widths() -> list[int]:
    """The latent widths whose weights are in the package."""
    folder = resources.files("refinemath") / "weights"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(
        int(n.removeprefix("refinemath-").removesuffix(".npz"))
        for n in names
        if n.startswith("refinemath-") and n.endswith(".npz")
    )


class Weights(NamedTuple):
    """A model as it is stored: `nnx.merge(graph, params)` is the model."""

    params: Any
    graph: Any
    config: ModelConfig | Config


def shipped_weights(latent_dim: int) -> Weights:
    """The weights of this width in the package.  Raises `CheckpointError` if there are none."""
    widths = shipped_widths()
    if latent_dim not in widths:
        raise CheckpointError(
            f"no weights of latent_dim {latent_dim} are shipped; shipped: "
            f"{', '.join(map(str, widths)) or 'none'}. "
            f"Train your own with `python -m refinemath train --latent-dim {latent_dim} "
            "--out FOLDER` and pass weights='FOLDER/weights.npz'"
        )
    folder = resources.files("refinemath") / "weights"
    return _load_model(Path(str(folder / f"refinemath-{latent_dim}.npz")), 0)


def load_weights(path: Path, latent_dim: int) -> Weights:
    """The weights of a file that training wrote, of this width.  Raises `CheckpointError`."""
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    found = _load_model(path, path.stat().st_mtime_ns)
    if found.config.latent_dim != latent_dim:
        raise CheckpointError(f"{path} has latent_dim {found.config.latent_dim}, not {latent_dim}")
    return found


@functools.lru_cache(maxsize=4)
def _load_model(path: Path, changed: int) -> Weights:
    """A model, read once until its file has `changed`, a time."""
    meta = read_meta(path)
    described = meta.get("config")
    first = not isinstance(described, dict) or "latents" not in described
    try:
        config = ModelConfig(**meta["config"]) if first else Config(**meta["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} describes a model that this version does not know: {error}"
        ) from None
    made: Any = Model if first else network.Model
    graph, template = nnx.split(nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0))))
    return Weights(load(path, template)[0], graph, config)
