"""Chapters 3, 4 and 5: what the encoder must not see, what the stabilisers promise, and one step
like any other.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG
from flax import nnx
from formulas import from_bank
from test_grammar import every_formula, legal

from refinemath import grammar
from refinemath.engine import device_points
from refinemath.examples import SkeletonTable
from refinemath.expression import MASK, MAX_VARIABLES, OPERATOR_TOKEN, VOCABULARY_SIZE, encode
from refinemath.fitting import Candidate, Points, execute, no_candidate, tree_where
from refinemath.model import (
    FEEDBACK_FEATURES,
    POINT_FEATURES,
    STABILISERS,
    Encoded,
    Model,
    ModelConfig,
    feedback_features,
    point_features,
    stabilise,
)
from refinemath.problem import prepare
from refinemath.text import parse

pytestmark = pytest.mark.usefixtures("strict")
KEY = jax.random.key(0)
BATCH, POINTS, USED = 3, 32, 20


def scatter(variables: int = 1) -> Points:
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, (BATCH, variables, POINTS)).astype(np.float32)
    y = (np.sin(x[:, 0]) + x[:, -1] ** 2).astype(np.float32)
    mask = np.broadcast_to(np.arange(POINTS) < USED, y.shape)
    return Points(
        jnp.asarray(np.where(mask[:, None], x, 0.0)),
        jnp.asarray(np.where(mask, y, 0.0)),
        jnp.asarray(mask),
    )


def candidates(points: Points, bank: SkeletonTable) -> Candidate:
    tokens, values = encode(from_bank(bank, BATCH, seed=4))
    return execute(jnp.asarray(tokens), jnp.asarray(values, jnp.float32), points)


@pytest.fixture(scope="module")
def thinking(tiny_model: Model):  # type: ignore[no-untyped-def]
    """The compiled parts: encode, one refiner step, and a scan of steps."""
    graph, params = nnx.split(tiny_model)

    def refine(z: jax.Array, encoded: Encoded, candidate: Candidate, steps: int) -> jax.Array:
        model = nnx.merge(graph, params)
        return jax.lax.scan(
            lambda z, _: (model.refiner(z, encoded, candidate), None), z, None, length=steps
        )[0]

    return (
        jax.jit(lambda points: nnx.merge(graph, params).encoder(points)),
        jax.jit(
            lambda z, encoded, candidate: nnx.merge(graph, params).refiner(z, encoded, candidate)
        ),
        jax.jit(refine, static_argnums=3),
    )


@pytest.fixture(scope="module")
def z0(tiny_model: Model) -> jax.Array:
    return tiny_model.refiner.start(
        0.3 * jax.random.normal(KEY, (BATCH, CONFIG.slots, CONFIG.latent_dim), jnp.float32)
    )


# ---------------------------------------------------------------- the encoder


def test_the_order_of_the_points_does_not_matter(
    thinking, z0: jax.Array, bank: SkeletonTable
) -> None:  # type: ignore[no-untyped-def]
    encode_points, step, _ = thinking
    points = scatter()
    order = np.concatenate([np.random.default_rng(1).permutation(USED), np.arange(USED, POINTS)])
    turned = Points(points.x[:, :, order], points.y[:, order], points.mask[:, order])
    one, other = encode_points(points), encode_points(turned)
    np.testing.assert_allclose(other.summary, one.summary, atol=2e-4)
    np.testing.assert_allclose(other.each, one.each[:, order], atol=2e-4)
    candidate = candidates(points, bank)
    same = candidate._replace(fitted=candidate.fitted[:, order])
    np.testing.assert_allclose(step(z0, other, same), step(z0, one, candidate), atol=2e-4)


@pytest.mark.parametrize("rubbish", [1e6, float("nan")])
def test_what_stands_in_the_padding_does_not_matter(
    rubbish: float, thinking, z0: jax.Array, bank: SkeletonTable
) -> None:  # type: ignore[no-untyped-def]
    encode_points, step, _ = thinking
    points = scatter()
    candidate = candidates(points, bank)
    dirty = Points(
        jnp.where(points.mask[:, None], points.x, rubbish),
        jnp.where(points.mask, points.y, rubbish),
        points.mask,
    )
    np.testing.assert_array_equal(encode_points(dirty).summary, encode_points(points).summary)
    np.testing.assert_array_equal(
        step(z0, encode_points(dirty), candidate), step(z0, encode_points(points), candidate)
    )


def test_more_padding_does_not_matter(thinking) -> None:  # type: ignore[no-untyped-def]
    encode_points, _, _ = thinking
    points = scatter()
    cut = Points(points.x[..., :USED], points.y[:, :USED], points.mask[:, :USED])
    np.testing.assert_allclose(encode_points(cut).summary, encode_points(points).summary, atol=2e-4)


@pytest.mark.parametrize(("count", "variables"), [(8, 1), (8, 3), (100_000, 1), (20_000, 2)])
def test_any_number_of_points_is_read(count: int, variables: int) -> None:
    """More points of the same curve, close together, change the summary little."""
    config = replace(CONFIG, variables=variables)
    encoder = Model(config, rngs=nnx.Rngs(0)).encoder

    def read(count: int) -> jax.Array:
        x = jnp.tile(jnp.linspace(-2, 2, count, dtype=jnp.float32), (1, variables, 1))
        return jax.jit(encoder)(Points(x, jnp.sin(x[:, 0]), jnp.ones((1, count), bool))).summary

    summary = read(count)
    assert summary.shape == (1, config.seeds, config.width) and bool(jnp.all(jnp.isfinite(summary)))
    if (
        count > 8 and variables > 1
    ):  # slopes between neighbours, which one variable has, depend on how near they are
        np.testing.assert_allclose(summary, read(count // 2), atol=0.02)


def test_the_summary_depends_on_every_real_point_and_on_no_padded_one(tiny_model: Model) -> None:
    """A law, not a number: where the gradient is zero, the network does not look."""
    points = scatter()
    weights = jax.random.normal(KEY, (BATCH, CONFIG.seeds, CONFIG.width), jnp.float32)
    graph, params = nnx.split(tiny_model)
    loss = jax.jit(
        jax.grad(
            lambda y: jnp.sum(
                weights * nnx.merge(graph, params).encoder(points._replace(y=y)).summary
            )
        )
    )
    gradient = np.asarray(loss(points.y))
    assert (gradient[:, :USED] != 0).all() and not gradient[:, USED:].any()


def test_a_problem_does_not_see_the_others_of_its_batch(
    thinking, z0: jax.Array, bank: SkeletonTable
) -> None:  # type: ignore[no-untyped-def]
    encode_points, step, _ = thinking
    points = scatter()
    candidate = candidates(points, bank)
    moved = points._replace(y=points.y.at[0].multiply(-2.0))
    after, before = (step(z0, encode_points(p), candidate) for p in (moved, points))
    np.testing.assert_array_equal(after[1:], before[1:])
    assert np.abs(np.asarray(after[0] - before[0])).max() > 1e-4


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("variables", [1, 2, 3])
def test_features_have_their_number_and_are_zero_in_the_padding(variables: int) -> None:
    points = scatter(variables)
    features = np.asarray(point_features(points))
    assert (
        features.shape == (BATCH, POINTS, POINT_FEATURES[variables])
        and features.dtype == np.float32
    )
    assert not features[:, USED:].any() and np.isfinite(features).all()
    feedback = np.asarray(feedback_features(no_candidate(points), points))
    assert feedback.shape == (BATCH, POINTS, FEEDBACK_FEATURES) and not feedback[:, USED:].any()


@pytest.mark.parametrize("x_scale", [1e30, 1.0, 1e-30])
@pytest.mark.parametrize("y_scale", [1e30, 1.0, 1e-30])
def test_features_are_finite_at_any_scale(x_scale: float, y_scale: float) -> None:
    x = np.linspace(0.5, 4.0, 30)[:, None]
    points = device_points(prepare(x * x_scale, (x[:, 0] ** 2 - 3) * y_scale))
    features = np.asarray(point_features(points))
    assert np.isfinite(features).all() and np.abs(features).max() < 50
    plain = np.asarray(point_features(device_points(prepare(x, x[:, 0] ** 2 - 3))))
    np.testing.assert_allclose(
        np.asarray(point_features(device_points(prepare(x, (x[:, 0] ** 2 - 3) * y_scale)))),
        plain,
        atol=1e-4,
    )


# ---------------------------------------------------------------- stabilisers

Z = jax.random.normal(KEY, (4, 16, 128), jnp.float32)


@pytest.mark.parametrize("kind", STABILISERS)
def test_a_stabiliser_does_not_see_the_size_of_a_row(kind: str) -> None:
    sizes = jnp.asarray(np.geomspace(0.01, 100, 16), jnp.float32)[None, :, None]
    np.testing.assert_allclose(stabilise(sizes * Z, kind), stabilise(Z, kind), atol=2e-4)


def test_rms_rows_have_length_one_and_keep_their_direction() -> None:
    z = stabilise(Z, "rms")
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(z * Z, axis=-1), jnp.linalg.norm(Z, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(stabilise(z, "rms"), z, atol=1e-6)


def test_polar_rows_are_orthonormal_and_stay_so() -> None:
    z = stabilise(Z, "polar")
    np.testing.assert_allclose(
        z @ jnp.swapaxes(z, 1, 2), np.broadcast_to(np.eye(16), (4, 16, 16)), atol=1e-5
    )
    np.testing.assert_allclose(stabilise(z, "polar"), z, atol=1e-5)


def test_soft_is_half_way_to_polar() -> None:
    np.testing.assert_allclose(
        stabilise(Z, "soft"), (stabilise(Z, "rms") + stabilise(Z, "polar")) / 2, atol=1e-6
    )


def test_muon_leaves_the_spectrum_around_one() -> None:
    s = np.linalg.svd(np.asarray(stabilise(Z, "muon")), compute_uv=False)
    assert (
        0.6 < s.min() < s.max() < 1.25 and np.ptp(s) > 0.05
    )  # no projection: Muon's polynomial does not send 1 to 1


def test_a_seed_thought_is_stable_and_noise_makes_it_another(
    tiny_model: Model, z0: jax.Array
) -> None:
    np.testing.assert_allclose(stabilise(z0, CONFIG.stabiliser), z0, atol=1e-5)
    still = tiny_model.refiner.start(jnp.zeros((2, CONFIG.slots, CONFIG.latent_dim), jnp.float32))
    np.testing.assert_array_equal(still[0], still[1])
    assert float(jnp.abs(z0[0] - z0[1]).max()) > 0.01


# ---------------------------------------------------------------- the loop


def test_refine_eight_times_is_three_and_then_five(
    thinking, z0: jax.Array, bank: SkeletonTable
) -> None:  # type: ignore[no-untyped-def]
    encode_points, _, refine = thinking
    encoded = encode_points(scatter())
    candidate = candidates(scatter(), bank)
    np.testing.assert_allclose(
        refine(refine(z0, encoded, candidate, 3), encoded, candidate, 5),
        refine(z0, encoded, candidate, 8),
        atol=1e-5,
    )


def test_the_scan_is_a_python_loop(thinking, z0: jax.Array, bank: SkeletonTable) -> None:  # type: ignore[no-untyped-def]
    encode_points, step, refine = thinking
    encoded = encode_points(scatter())
    candidate = candidates(scatter(), bank)
    z = z0
    for _ in range(5):
        z = step(z, encoded, candidate)
    np.testing.assert_allclose(refine(z0, encoded, candidate, 5), z, atol=1e-5)


def test_jit_is_eager(tiny_model: Model, z0: jax.Array, bank: SkeletonTable) -> None:
    graph, params = nnx.split(tiny_model)
    points = scatter()
    candidate = candidates(points, bank)

    def one_step(params: nnx.State) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, params)
        z1 = model.refiner(z0, model.encoder(points), candidate)
        return z1, model.refiner.logits(z1)

    for compiled, eager in zip(jax.jit(one_step)(params), one_step(params), strict=True):
        np.testing.assert_allclose(compiled, eager, atol=5e-4)


@pytest.mark.parametrize("kind", STABILISERS)
def test_a_stabiliser_compiled_is_the_same(kind: str) -> None:
    np.testing.assert_allclose(
        jax.jit(stabilise, static_argnums=1)(Z, kind), stabilise(Z, kind), atol=1e-5
    )


def test_a_step_reads_the_candidate_and_the_points(
    thinking, z0: jax.Array, bank: SkeletonTable
) -> None:  # type: ignore[no-untyped-def]
    encode_points, step, _ = thinking
    points = scatter()
    encoded = encode_points(points)
    nothing, some = no_candidate(points), candidates(points, bank)
    assert (np.asarray(nothing.tokens) == MASK).all()
    assert float(jnp.abs(step(z0, encoded, nothing) - step(z0, encoded, some)).max()) > 1e-4


def test_a_thought_never_says_a_variable_that_the_data_lack(
    tiny_model: Model, z0: jax.Array
) -> None:
    logits = tiny_model.refiner.logits(z0)
    tokens = np.asarray(grammar.sample(KEY, logits, 500))
    assert not np.isin(tokens, range(2, 1 + MAX_VARIABLES)).any()


# ---------------------------------------------------------------- the reader


READING = ModelConfig(
    latent_dim=16, width=8, slots=3, heads=2, seeds=2, encoder_blocks=1, refiner_blocks=1, reader=8
)


@pytest.fixture(scope="module", params=[0, 2], ids=["reads on", "looks back"])
def reading(request: pytest.FixtureRequest) -> tuple[Model, jax.Array]:
    """A model of three slots that reads token after token, with strong opinions, and two of its
    thoughts.
    """
    model = Model(replace(READING, reader_heads=request.param), rngs=nnx.Rngs(5))
    reader = model.refiner.reader
    assert reader is not None
    reader.head[...] = 20.0 * reader.head[...]
    if reader.heads:
        reader.out.kernel[...] = jax.random.normal(KEY, reader.out.kernel.shape)
    return model, model.refiner.start(0.5 * jax.random.normal(KEY, (2, 3, 16)))


def test_the_probabilities_of_all_formulas_sum_to_one(reading: tuple[Model, jax.Array]) -> None:
    model, z = reading
    rows = jnp.asarray(every_formula(3, list(range(1, VOCABULARY_SIZE))), jnp.int32)
    for one in z:
        log_p = jax.jit(model.refiner.log_probability)(
            jnp.broadcast_to(one, (len(rows), *one.shape)), rows
        )
        assert float(jnp.sum(jnp.exp(jnp.sum(log_p, axis=1)))) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_reader_samples_what_it_says(
    reading: tuple[Model, jax.Array], temperature: float
) -> None:
    model, z = reading
    count = 20_000
    drawn = np.asarray(model.refiner.sample(KEY, z, count, temperature))
    assert legal(drawn).all()
    if temperature != 1.0:
        return
    for one, rows in zip(z, drawn, strict=True):
        common, times = np.unique(rows, axis=0, return_counts=True)
        common, times = common[times > 100], times[times > 100]
        assert len(common) > 3
        log_p = model.refiner.log_probability(
            jnp.broadcast_to(one, (len(common), *one.shape)), jnp.asarray(common)
        )
        np.testing.assert_allclose(
            times / count, np.exp(np.asarray(log_p).sum(axis=1)), atol=5 * np.sqrt(0.25 / count)
        )


def test_a_reader_sees_what_it_has_read(reading: tuple[Model, jax.Array]) -> None:
    """The same slot, another operator before it: another probability of the same token, which
    independent slots cannot give.
    """
    model, z = reading
    rows = jnp.asarray([[OPERATOR_TOKEN[name], 1, 0] for name in ("sin", "exp")])
    after = model.refiner.log_probability(jnp.broadcast_to(z[0], (2, *z[0].shape)), rows)[:, 1]
    assert abs(float(after[0] - after[1])) > 1e-3


def test_a_reader_that_looks_back_remembers_more_than_the_tree_around_it() -> None:
    """sin(exp(x)) + x and sin(log(x)) + x: the same parent, sibling, slot and last token before the
    second x, but something else has been read.
    """
    rows = jnp.asarray(
        [
            [OPERATOR_TOKEN["add"], OPERATOR_TOKEN[f], OPERATOR_TOKEN[g], 1, 1, 0]
            for f, g in (("sin", "exp"), ("sin", "log"))
        ]
    )
    for heads in (0, 2):
        model = Model(
            replace(READING, slots=6, latent_dim=32, reader_heads=heads), rngs=nnx.Rngs(1)
        )
        reader = model.refiner.reader
        assert reader is not None
        reader.head[...] = 20.0 * reader.head[...]
        z = jnp.repeat(model.refiner.start(0.5 * jax.random.normal(KEY, (1, 6, 32))), 2, axis=0)
        before = model.refiner.log_probability(z, rows)[:, 4]
        assert float(before[0]) == pytest.approx(
            float(before[1]), abs=1e-5
        )  # what it finds is not used before the first step of training
        if heads:
            reader.out.kernel[...] = jax.random.normal(KEY, reader.out.kernel.shape)
        after = model.refiner.log_probability(z, rows)[:, 4]
        assert (abs(float(after[0] - after[1])) > 1e-3) == (heads > 0)


def test_what_is_written_stays_lighter_than_the_seed() -> None:
    """However large the weights: with a reader the seed outweighs what is written, so that a step
    contracts.
    """
    config = ModelConfig(
        latent_dim=64, width=8, heads=2, seeds=2, encoder_blocks=1, refiner_blocks=1, reader=8
    )
    model = Model(config, rngs=nnx.Rngs(1))
    model.refiner.write.kernel[...] = 1e4 * model.refiner.write.kernel[...]
    points = scatter()
    z = model.refiner.start(0.3 * jax.random.normal(KEY, (BATCH, 16, 64)))
    anchor = model.refiner.start(jnp.zeros((1, 16, 64)))
    new = model.refiner(z, model.encoder(points), no_candidate(points))
    assert float(jnp.min(jnp.sum(new * anchor, axis=-1))) > 0.7


def test_weights_without_a_reader_say_so(tiny_model: Model, z0: jax.Array) -> None:
    with pytest.raises(ValueError, match="no reader"):
        tiny_model.refiner.log_probability(z0, jnp.zeros(z0.shape[:2], jnp.int32))


# ---------------------------------------------------------------- execution and configuration


def test_execution_is_least_squares_on_the_real_points() -> None:
    points = scatter()
    texts = ["sin(x) + x**2", "exp(x) + cos(x)", "tanh(x)"]
    tokens, values = encode([parse(t) for t in texts])
    result = execute(jnp.asarray(tokens), jnp.asarray(values, jnp.float32), points)
    for i, terms in enumerate(([np.sin, np.square], [np.exp, np.cos], [np.tanh])):
        x, y = (np.asarray(a, np.float64)[:USED] for a in (points.x[i, 0], points.y[i]))
        design = np.stack([*(f(x) for f in terms), np.ones(USED)], 1)
        fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
        np.testing.assert_allclose(result.fitted[i, :USED], fitted, atol=1e-4)
        np.testing.assert_allclose(
            result.fvu[i], np.sum((y - fitted) ** 2) / np.sum((y - y.mean()) ** 2), atol=1e-6
        )


def test_one_scatter_plot_serves_many_formulas() -> None:
    points = scatter()
    one = Points(*(a[:1] for a in points))
    tokens, values = encode([parse("sin(x)"), parse("x**2 + x")])
    args = jnp.asarray(tokens), jnp.asarray(values, jnp.float32)
    twice = execute(*args, Points(*(jnp.concatenate([a[:1], a[:1]]) for a in points)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), execute(*args, one), twice
    )


def test_an_undefined_formula_has_no_fit() -> None:
    tokens, values = encode([parse("log(x)")])
    result = execute(
        jnp.asarray(tokens), jnp.asarray(values, jnp.float32), Points(*(a[:1] for a in scatter()))
    )
    assert np.isinf(result.fvu[0]) and np.isfinite(result.fitted).all()


def test_choose_takes_whole_records() -> None:
    points = scatter()
    a, b = (
        no_candidate(points),
        no_candidate(points)._replace(fvu=jnp.full(BATCH, 2.0, jnp.float32)),
    )
    assert tree_where(jnp.asarray([True, False, True]), a, b).fvu.tolist() == [1.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stabiliser": "none"}, "must be one of rms"),
        ({"latent_dim": 32}, "at least 64"),
        ({"variables": 4}, "1 to 3"),
        ({"variables": 0}, "positive"),
        ({"width": "wide"}, "width is 'wide'"),
        ({"width": 128.0}, "width is 128.0"),
        ({"heads": 0}, "heads is 0"),
        ({"slots": True}, "slots is True"),
        ({"width": 100, "heads": 8}, "100 .* 8"),
    ],
)
def test_a_configuration_that_cannot_be_says_why(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModelConfig(**options)
