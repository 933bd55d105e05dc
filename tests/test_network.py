"""The next network: spine order, a decoder that is a distribution, and a run that resumes bit for
bit.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.network import store, training
from experiments.network.candidates import execute
from experiments.network.examples import Asked, Examples, draw_examples, is_excluded, length_weights
from experiments.network.store import State
from experiments.network.training import Corpus, Recipe, Training
from refinemath.corpus import exclusions
from refinemath.corpus.build import build_table
from refinemath.execution import evaluate as values_of
from refinemath.expression import encode, is_constant
from refinemath.fitting import Points
from refinemath.network.config import Config
from refinemath.network.decoder import Decoder
from refinemath.network.model import Model
from refinemath.network.spine import ARITY, END, SLOTS, from_spine, open_counts, states, to_spine
from refinemath.network.spine import TOKEN as SPINE
from refinemath.text import parse

CONFIG = Config(width=16, hidden=16, heads=2, latents=4, latent_dim=16, decoder_blocks=1)
RECIPE = Recipe(batch=16, variables=2, per_length=60, chunk=1024, columns=(1, 2), points=(24, 24))


pytestmark = pytest.mark.usefixtures("compiled_in_haste")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("network")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    """What a run makes for itself, but with every 40th excluded formula alone."""
    few = [row for i, row in enumerate(exclusions.read_excluded()) if i % 40 == 0]
    few.append(("test", parse("x1 * x2")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exclusions, "read_excluded", lambda: few)
        uncached = exclusions.training_exclusions.__wrapped__
        patch.setattr(training, "training_exclusions", functools.cache(uncached))
        patch.setattr(training, "build_table", functools.partial(build_table, patience=2))
        corpus = training.make_corpus(folder, RECIPE)
        words, probes = training.training_exclusions(RECIPE.variables)
    assert np.array_equal(corpus.words, np.unique(words[:, 0])) and len(words) > 40
    assert np.array_equal(corpus.probes[2], probes)
    return corpus


@pytest.fixture(scope="module")
def model() -> Model:
    graph, _ = nnx.split(nnx.eval_shape(lambda: Model(CONFIG, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, jax.jit(lambda: nnx.state(Model(CONFIG, rngs=nnx.Rngs(0))))())


def spine_of(text: str) -> tuple[jax.Array, jax.Array]:
    tokens, values = encode([parse(text)], SLOTS)
    spelled, place = to_spine(jnp.asarray(tokens))
    numbers = jnp.zeros((1, SLOTS)).at[0, place[0]].set(jnp.asarray(values[0], jnp.float32))
    return spelled, numbers


# ---------------------------------------------------------------- spine order


def test_spine_order_and_back(corpus: Corpus) -> None:
    tokens = jnp.asarray(corpus.table.tokens).astype(jnp.int32)
    rng = np.random.default_rng(0)
    tokens = tokens[rng.choice(len(tokens), 512)]
    values = jnp.where(is_constant(tokens), jnp.asarray(rng.normal(size=tokens.shape)), 0.0)
    spelled, place = jax.jit(to_spine)(tokens)
    numbers = jnp.zeros_like(values).at[jnp.arange(512)[:, None], place].set(values)
    back, own = jax.jit(from_spine)(spelled, numbers)
    number = np.asarray(is_constant(tokens))
    assert np.array_equal(np.where(number, 0, tokens), np.where(is_constant(back), 0, back))
    assert np.array_equal(number, is_constant(back)) and np.array_equal(own, values)
    assert np.array_equal(jax.jit(to_spine)(back)[0], spelled)
    # complete formulas whose remainders are formulas too
    padded = jnp.pad(spelled, ((0, 0), (0, SLOTS)))
    rests = jnp.stack([padded[:, i : i + SLOTS] for i in range(SLOTS)], axis=1)
    whole = jnp.all(
        (open_counts(rests.reshape(-1, SLOTS)) == 0).reshape(rests.shape) == (rests == END), axis=2
    )
    begins = jax.jit(states)(spelled)
    assert jnp.all(whole | ~begins) and float(begins.sum(1).mean()) > 2


@pytest.mark.parametrize("text", ["(x1 + sin(x2)) / x1", "(sin(x2) + x1) / x1"])
def test_the_shorter_operand_comes_first(text: str) -> None:
    spelled, numbers = spine_of(text)
    names = [list(SPINE)[t] for t in np.asarray(spelled[0]) if t != END]
    assert names == ["rdiv", "x1", "add", "x1", "sin", "x2"]
    x = jnp.linspace(0.5, 2, 16).reshape(1, 2, 8)
    expected = (x[0, 0] + jnp.sin(x[0, 1])) / x[0, 0]
    np.testing.assert_allclose(values_of(*from_spine(spelled, numbers), x)[0], expected, rtol=1e-5)


# ---------------------------------------------------------------- the decoder


@pytest.fixture
def three_slots(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """A decoder of formulas of at most three tokens, so that all can be listed."""
    monkeypatch.setattr("refinemath.network.decoder.SLOTS", 3)
    return Decoder(CONFIG, rngs=nnx.Rngs(3))


def test_the_decoder_is_a_distribution_and_samples_it(three_slots: Decoder) -> None:
    z = jax.random.normal(jax.random.key(0), (1, CONFIG.latents, CONFIG.latent_dim)) / 4
    columns = jax.random.normal(jax.random.key(1), (1, 1, CONFIG.width))
    count = len(SPINE)
    every = jnp.stack(jnp.meshgrid(*[jnp.arange(count)] * 3, indexing="ij"), -1).reshape(-1, 3)
    whole = jnp.all((open_counts(every) == 0) == (every == END), axis=1)
    ends = 1 + jnp.sum(jnp.asarray(ARITY)[every] - (every != END), axis=1) <= 0
    every = every[whole & ends]
    batch = len(every)
    log_p = jax.jit(three_slots.log_prob)(
        every,
        jnp.broadcast_to(z, (batch, *z.shape[1:])),
        jnp.broadcast_to(columns, (batch, *columns.shape[1:])),
    ).sum(1)
    p = np.exp(np.asarray(log_p, np.float64))
    assert p.sum() == pytest.approx(1, abs=1e-4)
    drawn, own = jax.jit(three_slots.sample, static_argnums=3)(jax.random.key(2), z, columns, 4000)
    place = {tuple(row): i for i, row in enumerate(np.asarray(every).tolist())}
    found = np.array([place[tuple(row)] for row in np.asarray(drawn[0]).tolist()])
    np.testing.assert_allclose(own[0], log_p[found], atol=1e-4)
    share = np.bincount(found, minlength=batch) / 4000
    top = np.argsort(-p)[:5]
    np.testing.assert_allclose(share[top], p[top], atol=5 * np.sqrt(p[top].max() / 4000))


def test_a_token_does_not_look_ahead(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """By gradients: log p of token i depends on the embeddings of tokens before i alone."""
    tokens, _ = spine_of("x1 * sin(x1 + exp(x1))")
    z = model.refiner.start(1)
    columns = jnp.ones((1, 1, CONFIG.width))
    embed = Decoder.embed

    @jax.jit
    @jax.jacobian
    def slopes(shift: jax.Array) -> jax.Array:
        monkeypatch.setattr(Decoder, "embed", lambda *a: embed(*a) + shift)
        return model.decoder.log_prob(tokens, z, columns)[0]

    seen = slopes(jnp.zeros((1, SLOTS, CONFIG.width)))[:, 0]
    looks = np.abs(np.asarray(seen)).max(-1)  # (token, row): row j holds the token before j
    n = int(jnp.sum(tokens != END))
    assert np.all(np.triu(looks, 1) == 0) and np.all(looks[n - 1, :n] > 0)


# ---------------------------------------------------------------- the encoder


def test_the_order_of_the_points_and_the_size_of_y_do_not_matter(model: Model) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0.5, 2, (1, 2, 24)), jnp.float32)
    y = x[:, 0] * jnp.sin(x[:, 1])
    mask = jnp.arange(24)[None] < 20
    order = rng.permutation(24)

    @jax.jit
    def look(points: Points) -> tuple[jax.Array, jax.Array]:
        items = model.encoder(points)
        return model.latents(items, 3), items.columns

    z, columns = look(Points(x, y, mask))
    other, _ = look(Points(x[..., order], y[:, order], mask[:, order]))
    np.testing.assert_allclose(other, z, atol=1e-3)
    np.testing.assert_allclose(z @ z.swapaxes(1, 2), np.eye(CONFIG.latents)[None], atol=0.05)
    swapped_z, swapped = look(Points(x[:, ::-1], y, mask))
    np.testing.assert_allclose(swapped[:, ::-1], columns, atol=1e-3)
    np.testing.assert_allclose(swapped_z, z, atol=1e-3)
    elsewhere, _ = look(Points(x, x[:, 1] ** 2, mask))
    assert float(jnp.abs(elsewhere - z).max()) > 5e-3


# ---------------------------------------------------------------- problems


def test_states_are_what_their_points_show(corpus: Corpus) -> None:
    draw = functools.partial(
        draw_examples,
        table=corpus.table,
        batch=64,
        points=24,
        variables=2,
        weights=length_weights(corpus.table, 2),
        exclusions=corpus.exclusions(2),
        state_share=0.6,
        noisy=0.0,
    )

    @jax.jit
    def drawn(key: jax.Array) -> tuple[Examples, jax.Array]:
        e = draw(key)
        return e, execute(e.target, e.numbers, Points(e.x, e.y, e.mask))[1]

    e, fvu = drawn(jax.random.key(0))
    assert float(e.weight.mean()) > 0.8 and np.any(np.asarray(e.start) > 0)
    assert np.mean(np.asarray(fvu)[np.asarray(e.weight) > 0] < 1e-4) > 0.95


def test_a_state_may_not_be_an_excluded_function(corpus: Corpus) -> None:
    """x1 x2 as a remainder is as much a formula of Feynman as x1 x2 itself."""
    bad, good = (spine_of(text) for text in ("x1 * x2", "x1 * sin(x1 + exp(x2))"))
    tokens, numbers = (jnp.concatenate(2 * a) for a in zip(bad, good, strict=True))
    inside, none = jnp.array([True, True, False, False]), jnp.zeros(4, jnp.int32)
    left = jnp.zeros((4, 4), bool).at[:, 0].set(~inside)
    s = Asked(tokens, numbers, none, left, inside, none)
    every = corpus.exclusions(2)
    # the second time by values alone
    for known in (every, every._replace(words=every.words[:1])):
        answer = jax.jit(functools.partial(is_excluded, known, variables=2))(
            s, jnp.full((4, 4), 1.7)
        )
        assert answer.tolist() == [True, False, True, False]


# ---------------------------------------------------------------- training


def same(a: State, b: State) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(u).tobytes() == np.asarray(v).tobytes() for u, v in pairs)


def test_a_run_resumes_bit_for_bit(
    corpus: Corpus, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "BUCKETS", ((8, SLOTS),))  # a third of the program
    recipe = replace(RECIPE, columns=(1,), points=(24,), depths=(1, 4))
    trained = Training(CONFIG, recipe, corpus)
    state = trained.init()
    first = np.asarray(jax.tree.leaves(state.params)[0]).copy()
    for step in range(4):
        rate = recipe.learning_rate * min((step + 1) / recipe.warmup, 1.0)
        state, metrics = trained.step(state, jnp.float32(rate))
    assert np.isfinite(float(metrics["loss"][0]))
    assert np.any(first != np.asarray(jax.tree.leaves(state.params)[0]))
    training.run(folder, CONFIG, recipe, steps=2, training=trained)
    assert same(training.run(folder, CONFIG, recipe, steps=2, training=trained), state)
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    with pytest.raises(ValueError, match="another run"):
        training.run(folder, CONFIG, replace(recipe, seed=1), steps=2, training=trained)
    graph, params, meta = store.load_model(folder / "checkpoint.npz")
    assert meta["step"] == 4 and meta["examples"] == 4 * recipe.batch and same(params, state.params)
    assert isinstance(nnx.merge(graph, params), Model)


def test_a_checkpoint_of_the_full_size_can_travel(tmp_path: Path) -> None:
    _, shapes = store.blank_state(Config())
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), shapes)
    path = tmp_path / "checkpoint.npz"
    store.save(path, state, {"config": {}})  # which refuses what is too large
    assert 0.5 * store.MOST_BYTES < path.stat().st_size < 0.98 * store.MOST_BYTES
