"""Chapter 5: products alone lead to the polar factor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refinemath.newton_schulz import CUBIC, MUON, POLAR, orthogonalize

pytestmark = pytest.mark.usefixtures("strict")
Z = np.random.default_rng(0).normal(size=(5, 16, 512)).astype(np.float32)


def with_singular_values(s: np.ndarray, dim: int = 32) -> np.ndarray:
    rng = np.random.default_rng(1)
    u, _ = np.linalg.qr(rng.normal(size=(len(s), len(s))))
    v, _ = np.linalg.qr(rng.normal(size=(dim, len(s))))
    return (u * s @ v.T).astype(np.float32)


def through(schedule: tuple[tuple[float, float, float], ...], s: np.ndarray) -> np.ndarray:
    for a, b, c in schedule:
        s = a * s + b * s**3 + c * s**5
    return s


def test_rows_become_orthonormal() -> None:
    q = np.asarray(orthogonalize(jnp.asarray(Z)), np.float64)
    assert np.abs(q @ q.transpose(0, 2, 1) - np.eye(16)).max() < 1e-5


@pytest.mark.parametrize("schedule", [POLAR, CUBIC], ids=["polar", "cubic"])
def test_it_is_the_polar_factor_of_the_svd(schedule: tuple) -> None:
    u, _, vt = np.linalg.svd(Z, full_matrices=False)
    np.testing.assert_allclose(orthogonalize(jnp.asarray(Z), schedule), u @ vt, atol=1e-5)


def test_once_is_enough() -> None:
    q = orthogonalize(jnp.asarray(Z))
    np.testing.assert_allclose(orthogonalize(q), q, atol=1e-5)


def test_scale_does_not_matter() -> None:
    np.testing.assert_allclose(
        orthogonalize(jnp.asarray(Z * 1e4)), orthogonalize(jnp.asarray(Z)), atol=1e-5
    )


@pytest.mark.parametrize("schedule", [POLAR, CUBIC, MUON], ids=["polar", "cubic", "muon"])
def test_each_singular_value_goes_through_the_polynomials(schedule: tuple) -> None:
    s = np.array([1.0, 0.7, 0.4, 0.1, 0.02])
    out = np.linalg.svd(
        np.asarray(orthogonalize(jnp.asarray(with_singular_values(s)), schedule), np.float64),
        compute_uv=False,
    )
    off = np.abs(np.sort(out) - np.sort(through(schedule, s / np.linalg.norm(s))))
    # the smallest alone may be further off: it enters as its square, 2.4e-4, which float32 sums
    # know to about 6e-8, a part in 4,000
    assert off.max() <= 3e-4 and np.sum(off > 1e-4) <= 1


def test_muon_sends_one_to_seven_tenths() -> None:
    assert through(MUON, np.array([1.0]))[0] == pytest.approx(0.70, abs=0.01)
    spectrum = through(MUON, np.linspace(0.1, 1.0, 200))
    assert 0.65 < spectrum.min() < spectrum.max() < 1.2


def test_one_is_a_fixed_point_of_the_last_polar_steps() -> None:
    np.testing.assert_allclose(through(POLAR, np.linspace(0.01, 1.0, 200)), 1.0, atol=1e-5)


def test_slots_of_one_thought_alone() -> None:
    """Never across the batch: changing one thought leaves the others as they were."""
    changed = Z.copy()
    changed[0] = 7.0 * changed[1]
    np.testing.assert_array_equal(
        orthogonalize(jnp.asarray(changed))[1:], orthogonalize(jnp.asarray(Z))[1:]
    )
    np.testing.assert_allclose(
        orthogonalize(jnp.asarray(Z[0])), orthogonalize(jnp.asarray(Z))[0], atol=1e-6
    )


def test_jit_is_eager_and_zero_stays_zero() -> None:
    np.testing.assert_allclose(
        jax.jit(orthogonalize)(jnp.asarray(Z)), orthogonalize(jnp.asarray(Z)), atol=1e-5
    )
    assert not np.asarray(orthogonalize(jnp.zeros((4, 16)))).any()
