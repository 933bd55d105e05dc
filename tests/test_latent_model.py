"""What the loop asks of a network: the first one and the one for tables answer alike."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL
from flax import nnx

from refinemath import CheckpointError, RefineMath, weights
from refinemath.compiled import no_rows, run_search
from refinemath.engine import device_points
from refinemath.expression import MAX_VARIABLES, decode
from refinemath.fitting import Candidate, Points, execute, no_candidate
from refinemath.network import model as network
from refinemath.network.config import Config
from refinemath.problem import prepare
from refinemath.proposers.network import Network
from refinemath.proposers.short import Short
from refinemath.text import parse

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
KEY = jax.random.key(0)
TINY = Config(width=16, hidden=16, heads=2, latents=4, latent_dim=16, decoder_blocks=1)


def table(text: str = "x1*exp(x2)") -> Points:
    x = np.random.default_rng(0).uniform(0.3, 2.0, (60, 2))
    return device_points(prepare(x, parse(text).evaluate(x.T), ("x1", "x2")))


@pytest.fixture(scope="module")
def tiny() -> network.Model:
    return network.Model(TINY, rngs=nnx.Rngs(0))


def shown(points: Points, count: int, text: str) -> Candidate:
    """The same formula for every latent, executed."""
    blank = no_candidate(points, network.SLOTS)
    spelled = jnp.zeros((1, network.SLOTS), jnp.int32).at[0, 0].set(1 if text == "x1" else 2)
    one = execute(spelled, blank.values, points)
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape[1:])), one)


def test_half_of_the_latents_see_no_candidate(tiny: network.Model) -> None:
    points = table()

    @jax.jit
    def moved(candidate: Candidate) -> jax.Array:
        z = tiny.begin(KEY, 6, 0.0)
        return tiny.refine(z, tiny.look(points, 6), candidate)

    many = Points(*(jnp.broadcast_to(a, (6, *a.shape[1:])) for a in points))
    nothing = np.asarray(moved(no_candidate(many, network.SLOTS)))
    one, other = (np.asarray(moved(shown(points, 6, name))) for name in ("x1", "x2"))
    np.testing.assert_array_equal(one[:3], nothing[:3])
    np.testing.assert_array_equal(one[:3], other[:3])
    assert np.abs(one[3:] - nothing[3:]).max() > 1e-3 < np.abs(one[3:] - other[3:]).max()
    np.testing.assert_allclose(
        one @ one.transpose(0, 2, 1), np.eye(4)[None] + 0 * one[:, :, :4], atol=1e-3
    )  # the slots are orthonormal


def test_noise_moves_the_first_latents(tiny: network.Model) -> None:
    still, moved = (np.asarray(tiny.begin(KEY, 3, noise)) for noise in (0.0, 0.3))
    np.testing.assert_allclose(still[0], still[1], atol=1e-6)
    assert 0.1 < np.linalg.norm(moved[0] - moved[1]) / np.linalg.norm(still[0]) < 1.0


def test_samples_are_legal_formulas_of_the_columns_at_hand(tiny: network.Model) -> None:
    points = table()

    @jax.jit
    def drawn() -> Any:
        z = tiny.begin(KEY, 4, 0.1)
        return tiny.sample(KEY, z, tiny.look(points, 4), 3 * network.REPEATS)

    programs = drawn()
    rows = [decode(t, v) for t, v in zip(*map(np.asarray, programs), strict=True)]
    assert len(rows) == 4 * 3 * network.REPEATS
    used = {p for row in rows for p in row.parts if isinstance(p, str) and p[0] == "x"}
    assert used == {"x1", "x2"}
    per_latent = network.REPEATS * 3
    skeletons = [row.skeleton() for row in rows[:per_latent]]
    assert skeletons[:3] * network.REPEATS == skeletons  # the same ones with other numbers
    assert len({str(row) for row in rows}) > len(set(skeletons))


def test_a_search_refines_its_latents_and_finds_what_is_easy(tiny: network.Model) -> None:
    graph, params = nnx.split(tiny)
    short = jnp.asarray(np.eye(1, network.SLOTS, dtype=np.uint8))
    output = run_search(
        params,
        graph,
        table("2*x1 + 1"),
        KEY,
        short,
        no_rows(network.SLOTS),
        jnp.int32(2),
        proposers=(Network(per_latent=16, refine=2), Short(refine=1, rounds=1)),
        config=SMALL,
    )
    assert output.latents.shape == (SMALL.latents, TINY.latents, TINY.latent_dim)
    assert np.all(np.asarray(output.trace.velocity)[: int(output.steps)] > 0)
    assert float(output.pool.fvu[0]) < 1e-10
    assert decode(np.asarray(output.pool.tokens[0])).skeleton() == ("x1",)


def test_a_file_says_which_network_it_holds(tiny: network.Model, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    weights.save(path, nnx.state(tiny), {"config": vars(TINY), "kind": "weights"}, dtype=np.float16)
    found = RefineMath(latent_dim=16, weights=path).parameters()
    assert found.config == TINY and found.config.variables == MAX_VARIABLES
    assert isinstance(nnx.merge(found.graph, found.params), network.Model)
    with pytest.raises(CheckpointError, match="latent_dim 16, not 512"):
        RefineMath(weights=path).parameters()
    weights.save(path, nnx.state(tiny), {"config": {**vars(TINY), "latents": 5}, "kind": "weights"})
    with pytest.raises(CheckpointError, match="this version does not know"):
        RefineMath(latent_dim=16, weights=path).parameters()
