"""Chapter 6: arrays in files come back as they were, and a file that is not ours says so."""

import json
import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG
from flax import nnx

from refinemath import CheckpointError, weights
from refinemath.model import Model

META = {"config": {"latent_dim": 64}, "note": "grün"}


def tree() -> dict:
    rng = np.random.default_rng(0)
    return {
        "params": {
            "kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
            "bias": jnp.zeros(3, jnp.float32),
        },
        "moments": (jnp.asarray(rng.normal(size=5), jnp.float32), jnp.int32(7)),
        "tokens": jnp.arange(6, dtype=jnp.uint8),
        "mask": jnp.asarray([True, False]),
        "key": jax.random.key(3),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "a.npz"
    weights.save(target, tree(), META)
    return target


def same(a: dict, b: dict) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_what_is_saved_comes_back_bit_for_bit(path: Path) -> None:
    loaded, meta = weights.load(path, tree())
    same(loaded, tree())
    assert meta == {"format": weights.FORMAT, **META} and weights.read_meta(path) == meta


def test_a_template_of_shapes_is_enough(path: Path) -> None:
    shapes = jax.eval_shape(tree)
    same(weights.load(path, shapes)[0], tree())


def test_the_parameters_of_a_model_keep_their_names(tmp_path: Path, tiny_model: Model) -> None:
    graph, params = nnx.split(tiny_model)
    names = weights.named_leaves(params)
    assert "encoder/first/kernel" in names and "refiner/blocks/0/attend/query/kernel" in names
    weights.save(tmp_path / "m.npz", params, {})
    _, template = nnx.split(nnx.eval_shape(lambda: Model(CONFIG, rngs=nnx.Rngs(9))))
    loaded, _ = weights.load(tmp_path / "m.npz", template)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    nnx.merge(graph, loaded)


def test_half_precision_halves_the_floats_only_and_comes_back_as_float32(tmp_path: Path) -> None:
    weights.save(tmp_path / "h.npz", tree(), META, dtype=np.float16)
    with np.load(tmp_path / "h.npz") as file:
        assert (
            file["params/kernel"].dtype == np.float16
            and file["tokens"].dtype == np.uint8
            and file["moments/1"].dtype == np.int32
        )
    loaded, _ = weights.load(tmp_path / "h.npz", tree())
    assert loaded["params"]["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(loaded["params"]["kernel"], tree()["params"]["kernel"], rtol=1e-3)


def test_no_pickle_is_inside(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            assert file.read(name)[:6] == b"\x93NUMPY" and b"'descr': '|O'" not in file.read(name)


def test_a_file_is_replaced_in_one_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        weights.save(path, tree(), {"other": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {**t, "extra": jnp.zeros(1)}, "missing .'extra'"),
        (lambda t: {k: v for k, v in t.items() if k != "mask"}, "unexpected .'mask'"),
        (
            lambda t: {**t, "mask": jnp.zeros(3, bool)},
            r"mask has shape \(2,\); this model needs \(3,\)",
        ),
        (lambda t: {**t, "params": {"kernel": t["params"]["kernel"]}}, "unexpected .'params/bias'"),
    ],
)
def test_names_and_shapes_must_be_exactly_these(change, says: str, path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CheckpointError, match=says):
        weights.load(path, change(tree()))


def test_a_grown_model_keeps_what_the_file_lacks(path: Path) -> None:
    larger = {**tree(), "extra": jnp.full(2, 7.0)}
    larger["mask"] = ~larger["mask"]
    loaded, _ = weights.load(path, larger, grown=True)
    np.testing.assert_array_equal(loaded["extra"], larger["extra"])
    np.testing.assert_array_equal(loaded["mask"], tree()["mask"])
    with pytest.raises(CheckpointError, match=r"unexpected .'mask'"):
        weights.load(path, {k: v for k, v in larger.items() if k != "mask"}, grown=True)


def rewrite(path: Path, meta: bytes | None) -> None:
    with np.load(path) as file:
        arrays = {n: file[n] for n in file.files if n != "__meta__"}
    if meta is not None:
        arrays["__meta__"] = np.frombuffer(meta, np.uint8)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        (json.dumps({"format": 2}).encode(), "format 2; this version reads format 1"),
        (json.dumps({}).encode(), "format None"),
        (b"[1, 2]", "format"),
        (b"not json", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"", "damaged"),
        (None, "damaged"),
    ],
)
def test_another_version_or_no_record_says_so(meta: bytes | None, says: str, path: Path) -> None:
    rewrite(path, meta)
    with pytest.raises(CheckpointError, match=says):
        weights.load(path, tree())


def test_a_file_cut_at_any_place_is_a_clear_error(path: Path) -> None:
    whole = path.read_bytes()
    for n in np.unique(np.linspace(0, len(whole) - 1, 120).astype(int)):
        path.write_bytes(whole[:n])
        with pytest.raises(CheckpointError, match=str(path)):
            weights.load(path, tree())


def test_a_file_with_a_changed_byte_is_a_clear_error_or_reads(path: Path) -> None:
    """A flipped byte in the numbers is caught by the archive's checksum; one in an unused header
    field may pass unharmed.
    """
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    caught = 0
    for n in rng.choice(len(whole), 400, replace=False):
        damaged = bytearray(whole)
        damaged[n] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            loaded, _ = weights.load(path, tree())
        except CheckpointError:
            caught += 1
        else:
            same(loaded, tree())
    assert caught > 200


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04", os.urandom(3000), b"\x93NUMPY\x01\x00"]
)
def test_another_kind_of_file_is_a_clear_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a RefineMath file"):
        weights.read_meta(tmp_path / "x.npz")


def test_a_single_array_a_folder_and_nothing_are_clear_errors(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    for place in (tmp_path / "x.npy", tmp_path, tmp_path / "none.npz"):
        with pytest.raises(CheckpointError, match=str(place)):
            weights.load(place, tree())


def test_an_archive_of_objects_is_not_unpickled(path: Path) -> None:
    with np.load(path) as file:
        arrays = {n: file[n] for n in file.files}
    arrays["mask"] = np.array([{"a": 1}, None], object)
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError):
        weights.load(path, tree())
