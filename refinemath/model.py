"""The encoder that seeds a thought, and the tiny refiner that improves it.  (Chapters 3, 4)

Parameters live in Flax NNX modules; every step is a plain function of them.  Letters: X encoded
points, Z latent (slots x latent_dim), e candidate formula, r residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from refinemath import grammar
from refinemath.execution import Programs
from refinemath.expression import MAX_VARIABLES, SLOTS, TOKEN_VALUE, VOCABULARY_SIZE, is_constant
from refinemath.fitting import Candidate, Points
from refinemath.newton_schulz import MUON, POLAR, orthogonalize

STABILISERS = ("rms", "soft", "polar", "muon")


# the encoder's features know up to three variables, although the vocabulary has ten
FEATURE_VARIABLES = 3


GLANCE = 64  # numbers of each slot that the reader sees wherever it stands
ModuleList: Any = getattr(nnx, "List", list)  # flax before 0.12 takes plain lists


@dataclass(frozen=True)
class ModelConfig:
    """What defines a model; stored with its weights."""

    latent_dim: int = 512
    width: int = 128
    slots: int = SLOTS
    heads: int = 4
    seeds: int = 16  # learned queries that summarise the points
    encoder_blocks: int = 2
    refiner_blocks: int = 2
    variables: int = 1
    stabiliser: str = "polar"
    reader: int = (
        0  # hidden width of the reader; 0: the slots are read independently of one another
    )
    # heads with which the reader looks back at the whole thought, remembering what it has read; 0:
    # it does not
    reader_heads: int = 0
    # weight of the old latent beside the seed and what is written; at 1 and without the seed it
    # never comes to rest, see chapter 7
    residual_weight: float = 0.4
    # weight of the seed: well above what the network writes, it makes the step a contraction, see
    # chapter 7 and the model card
    anchor_weight: float = 10.0
    # what is written into a slot is shorter than this; the rows of the seed have length 1
    write_bound: float = 2.0

    def __post_init__(self) -> None:
        if self.stabiliser not in STABILISERS:
            raise ValueError(
                f"stabiliser is {self.stabiliser!r}; it must be one of {', '.join(STABILISERS)}"
            )
        for name, value in vars(self).items():
            if name in ("residual_weight", "anchor_weight", "write_bound"):
                if type(value) not in (int, float) or not 0 <= value < float("inf"):
                    raise ValueError(f"{name} is {value!r}; it must be a number, 0 or more")
                continue
            if name.startswith("reader") and (type(value) is not int or value < 0):
                raise ValueError(f"{name} is {value!r}; it must be a whole number, 0 or more")
            if (
                name != "stabiliser"
                and not name.startswith("reader")
                and (type(value) is not int or value < 1)
            ):
                raise ValueError(f"{name} is {value!r}; it must be a positive whole number")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.reader_heads and (not self.reader or self.reader % self.reader_heads):
            raise ValueError(
                f"a reader of width {self.reader} does not divide into {self.reader_heads} heads"
            )
        if self.latent_dim < 4 * self.slots:
            raise ValueError(
                f"latent_dim is {self.latent_dim}; {self.slots} orthogonal slots need at least "
                f"{4 * self.slots}"
            )
        if not 1 <= self.variables <= FEATURE_VARIABLES:
            raise ValueError(f"variables is {self.variables}; it must be 1 to {FEATURE_VARIABLES}")


def stabilise(z: Float[Array, "batch slots dim"], kind: str) -> Float[Array, "batch slots dim"]:
    """Bring a latent back to unit rows: by RMSNorm alone, or by Newton-Schulz.  Chapter 5."""
    unit = z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)
    if kind == "rms":
        return unit
    if kind == "soft":
        return unit + 0.5 * (orthogonalize(unit, POLAR) - unit)
    return orthogonalize(unit, POLAR if kind == "polar" else MUON)


def _moments(v: Array, mask: Array) -> tuple[Array, Array]:
    count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1).astype(v.dtype)
    mean = jnp.sum(jnp.where(mask, v, 0.0), axis=-1, keepdims=True) / count
    spread = jnp.sqrt(
        jnp.sum(jnp.where(mask, (v - mean) ** 2, 0.0), axis=-1, keepdims=True) / count
    )
    return mean, jnp.maximum(spread, 1e-12)


def _log_size(v: Array) -> Array:
    return jnp.log(jnp.abs(v) + 1e-4) / 4.0


def point_features(points: Points) -> Float[Array, "batch points features"]:
    """What the encoder sees of each point: raw, scaled and logarithmic x and y, waves of both, and
    (one variable) local slopes.  Chapter 3.
    """
    x, y, mask = points
    batch, variables, _ = x.shape
    mean, spread = _moments(y, mask)
    standard = (y - mean) / spread
    root_mean_square = jnp.sqrt(mean**2 + spread**2)
    raw = y / root_mean_square
    features = [standard / 2, jnp.arcsinh(5 * standard) / 3, raw / 2, _log_size(raw), jnp.sign(raw)]
    features += [wave(k * standard) for k in (1.0, 2.0, 4.0, 8.0) for wave in (jnp.sin, jnp.cos)]
    for v in range(FEATURE_VARIABLES if variables > 1 else 1):
        xv = x[:, v] if v < variables else jnp.zeros_like(y)
        top = jnp.max(jnp.where(mask, jnp.abs(xv), 0.0), axis=-1, keepdims=True) + 1e-6
        features += [
            jnp.clip(xv, -20, 20) / 5,
            jnp.arcsinh(xv),
            _log_size(xv),
            jnp.sign(xv),
            xv / top,
            jnp.broadcast_to(jnp.log(top) / 2, xv.shape),
        ]
        features += [wave(k * xv) for k in (0.5, 1.0, 2.0, 4.0) for wave in (jnp.sin, jnp.cos)]
    if variables == 1:
        order = jnp.argsort(jnp.where(mask, x[:, 0], jnp.inf), axis=-1)
        back = jnp.argsort(order, axis=-1)
        xs, ys, ms = (jnp.take_along_axis(a, order, -1) for a in (x[:, 0], standard, mask))
        range_ = jnp.max(jnp.where(mask, x[:, 0], -jnp.inf), -1, keepdims=True) - jnp.min(
            jnp.where(mask, x[:, 0], jnp.inf), -1, keepdims=True
        )
        both = ms[:, 1:] & ms[:, :-1]
        gap = jnp.maximum((xs[:, 1:] - xs[:, :-1]) / jnp.maximum(range_, 1e-9), 1e-3)
        slope = jnp.where(both, (ys[:, 1:] - ys[:, :-1]) / gap, 0.0)
        zero = jnp.zeros((batch, 1), y.dtype)
        left, right = jnp.concatenate([zero, slope], 1), jnp.concatenate([slope, zero], 1)
        inner = jnp.concatenate([zero.astype(bool), both], 1) & jnp.concatenate(
            [both, zero.astype(bool)], 1
        )
        bend = (right - left) * inner.astype(y.dtype)
        for local in (left, right, bend):
            local = jnp.take_along_axis(local, back, -1)
            features += [jnp.arcsinh(local) / 2, jnp.tanh(local)]
    return jnp.where(mask[..., None], jnp.stack(features, axis=-1), 0.0)


def feedback_features(
    candidate: Candidate, points: Points
) -> Float[Array, "batch points features"]:
    """What the refiner sees of the candidate at each point: its fitted value and the residual r, at
    several scales.  Chapter 4.
    """
    mean, spread = _moments(points.y, points.mask)
    fitted = (candidate.fitted - mean) / spread
    r = (points.y - candidate.fitted) / spread
    own = r / jnp.maximum(_moments(r, points.mask)[1], 1e-7)
    features = [
        jnp.clip(fitted, -5, 5) / 2,
        jnp.clip(r, -5, 5),
        jnp.arcsinh(30 * r) / 3,
        jnp.clip(own, -4, 4) / 2,
        jnp.sin(2 * own),
        jnp.cos(2 * own),
    ]
    return jnp.where(points.mask[..., None], jnp.stack(features, axis=-1), 0.0)


POINT_FEATURES = {
    1: 5 + 8 + 14 + 6,
    2: 5 + 8 + 14 * FEATURE_VARIABLES,
    3: 5 + 8 + 14 * FEATURE_VARIABLES,
}


FEEDBACK_FEATURES = 6


def _dense(x: Array, weight: Array) -> Array:
    """x @ weight with x flattened to two dimensions: XLA's CPU weight gradients need it."""
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], weight.shape[-1])


def _norm(x: Array, gain: Array) -> Array:
    return (
        x
        * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        * gain.reshape(*[1] * (x.ndim - gain.ndim), *gain.shape)
    )


def _activate(x: Array) -> Array:
    """Squared ReLU (So et al. 2021): as good as GELU here and far cheaper without a fused
    kernel.
    """
    return jnp.square(jax.nn.relu(x))


class Linear(nnx.Module):
    """A matrix, started at random, scaled for its fan-in."""

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, rngs: nnx.Rngs):
        self.kernel = nnx.Param(
            scale
            * jax.random.normal(rngs.params(), (inputs, outputs), jnp.float32)
            / jnp.sqrt(jnp.float32(inputs))
        )

    def __call__(self, x: Array) -> Array:
        """X W, without a bias."""
        return _dense(x, self.kernel[...])


class Gain(nnx.Module):
    """RMSNorm with a learned gain."""

    def __init__(self, width: int):
        self.gain = nnx.Param(jnp.ones(width, jnp.float32))

    def __call__(self, x: Array) -> Array:
        """Rows of root mean square 1, times the gain."""
        return _norm(x, self.gain[...])


class Attention(nnx.Module):
    """Multi-head attention from `x` to given keys and values, with normalised queries and keys."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = Linear(width, width, rngs=rngs)
        self.out = Linear(width, width, scale=0.5, rngs=rngs)
        self.temperature = nnx.Param(jnp.full((heads,), 1.0, jnp.float32))

    def __call__(
        self, x: Array, key_value: tuple[Array, Array], mask: Array | None = None
    ) -> Array:
        """What each row of x reads from the set; rows where `mask` is False are not read."""
        batch, rows, width = x.shape
        q = _norm(self.query(x).reshape(batch, rows, self.heads, -1), jnp.float32(1.0))
        k, v = (a.reshape(batch, a.shape[1], self.heads, -1) for a in key_value)
        k = _norm(k, jnp.float32(1.0))
        score = (
            jnp.einsum("bqhd,bkhd->bhqk", q, k)
            * (self.temperature[...] * jnp.float32((width // self.heads) ** -0.5) * 3.0)[
                None, :, None, None
            ]
        )
        if mask is not None:
            score = jnp.where(mask[:, None, None, :], score, -1e9)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(score, axis=-1), v)
        return self.out(mixed.reshape(batch, rows, width))


class KeyValue(nnx.Module):
    """Keys and values of a set, computed once and read by several attentions."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = Gain(width)
        self.both = Linear(width, 2 * width, rngs=rngs)

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Keys and values, one of each for every row."""
        key, value = jnp.split(self.both(self.norm(x)), 2, axis=-1)
        return key, value


class Feedforward(nnx.Module):
    """A two-layer perceptron with squared ReLU."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = Gain(width)
        self.up = Linear(width, 4 * width, rngs=rngs)
        self.down = Linear(4 * width, width, scale=0.5, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Each row on its own, up to four times the width and down again."""
        return self.down(_activate(self.up(self.norm(x))))


class Block(nnx.Module):
    """Self-attention, optional cross-attention, feedforward; each added to its input."""

    def __init__(self, width: int, heads: int, cross: bool, *, rngs: nnx.Rngs):
        self.norm = Gain(width)
        self.own = KeyValue(width, rngs=rngs)
        self.attend = Attention(width, heads, rngs=rngs)
        self.cross_norm = Gain(width) if cross else None
        self.cross = Attention(width, heads, rngs=rngs) if cross else None
        self.feedforward = Feedforward(width, rngs=rngs)

    def __call__(
        self, x: Array, key_value: tuple[Array, Array] | None = None, mask: Array | None = None
    ) -> Array:
        """The rows after each has read from the others and, where given, from the set."""
        x = x + self.attend(self.norm(x), self.own(x))
        if self.cross is not None and self.cross_norm is not None and key_value is not None:
            x = x + self.cross(self.cross_norm(x), key_value, mask)
        return x + self.feedforward(x)


class Encoded(NamedTuple):
    """What the encoder keeps of the points: a vector a point, a summary, and the points
    themselves.
    """

    each: Float[Array, "batch points width"]
    summary: Float[Array, "batch seeds width"]
    points: Points


class Encoder(nnx.Module):
    """Points to X: a perceptron on each point, then learned seeds that attend to all of them (Set
    Transformer, Lee et al. 2019).  Chapter 3.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        w = config.width
        self.first = Linear(POINT_FEATURES[config.variables], 2 * w, rngs=rngs)
        self.second = Linear(2 * w, w, rngs=rngs)
        self.seeds = nnx.Param(jax.random.normal(rngs.params(), (config.seeds, w), jnp.float32))
        self.gather_key_value = KeyValue(w, rngs=rngs)
        self.gather = Attention(w, config.heads, rngs=rngs)
        self.blocks = ModuleList(
            [Block(w, config.heads, cross=False, rngs=rngs) for _ in range(config.encoder_blocks)]
        )

    def __call__(self, points: Points) -> Encoded:
        """Read the points once; the order of the points does not change the summary."""
        each = self.second(_activate(self.first(point_features(points))))
        key_value = self.gather_key_value(each)
        seeds = jnp.broadcast_to(self.seeds[...], (each.shape[0], *self.seeds[...].shape))
        summary = seeds + self.gather(seeds, key_value, points.mask)
        for block in self.blocks:
            summary = block(summary)
        return Encoded(each, summary, points)


class Opened(NamedTuple):
    """What a thought holds for all readings of it."""

    each: Float[Array, "batch slots hidden"]  # what every slot contributes to its own token
    keys: (
        Float[Array, "batch slots heads head"] | None
    )  # by which a reader finds slots when it looks back
    finds: Float[Array, "batch heads_slots hidden"] | None  # and what it finds there


class Reader(nnx.Module):
    """Reads a formula off a thought from left to right: what a slot says, corrected by what has
    been read before.  Chapter 8.

    Slots that are read independently give each token its own probability but lose which tokens go
    together.  A reader knows what stands above and beside the next token in the tree.  With heads
    it also remembers all that it has read, as numbers that fade each at its own rate, and with them
    as its question it looks back at all slots of the thought.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        d, w = config.latent_dim, config.reader
        self.heads = config.reader_heads
        self.look = Linear(d, w, rngs=rngs)
        self.glance = Linear(d, GLANCE, rngs=rngs)
        self.overview = Linear(config.slots * GLANCE, w, rngs=rngs)
        self.place = nnx.Param(
            0.3 * jax.random.normal(rngs.params(), (config.slots, w), jnp.float32)
        )
        self.parent = nnx.Param(
            0.3 * jax.random.normal(rngs.params(), (grammar.CONTEXTS, w), jnp.float32)
        )
        self.sibling = nnx.Param(
            0.3 * jax.random.normal(rngs.params(), (VOCABULARY_SIZE + 1, w), jnp.float32)
        )
        self.previous = nnx.Param(
            0.3 * jax.random.normal(rngs.params(), (VOCABULARY_SIZE + 1, w), jnp.float32)
        )
        self.head = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (w, VOCABULARY_SIZE), jnp.float32)
        )
        if self.heads:
            self.recall = nnx.Param(
                0.3 * jax.random.normal(rngs.params(), (VOCABULARY_SIZE, w), jnp.float32)
            )
            self.fade = nnx.Param(1.5 + jax.random.normal(rngs.params(), (w,), jnp.float32))
            self.from_place = nnx.Param(
                0.3 * jax.random.normal(rngs.params(), (config.slots, w), jnp.float32)
            )
            self.to_place = nnx.Param(
                0.3 * jax.random.normal(rngs.params(), (config.slots, w), jnp.float32)
            )
            self.key = Linear(d, w, rngs=rngs)
            self.value = Linear(d, w, rngs=rngs)
            self.out = Linear(w, w, scale=0.0, rngs=rngs)  # silent until it has learnt something

    def open(self, z: Float[Array, "batch slots dim"]) -> Opened:
        """What the thought itself contributes to every slot, computed once for all readings of
        it.
        """
        z = z * jnp.float32(z.shape[-1] ** 0.5)
        overview = self.overview(self.glance(z).reshape(len(z), -1))
        each = self.look(z) + overview[:, None] + self.place[...][None]
        if not self.heads:
            return Opened(each, None, None)
        keys, values = (
            a.reshape(*a.shape[:2], self.heads, -1)
            for a in (self.key(z) + self.to_place[...][None], self.value(z))
        )
        finds = jnp.einsum(
            "bshe,hew->bhsw", values, self.out.kernel[...].reshape(self.heads, values.shape[-1], -1)
        )
        return Opened(
            each, _norm(keys, jnp.float32(1.0)), finds.reshape(len(z), -1, finds.shape[-1])
        )

    def begin(self, *shape: int) -> Float[Array, "*shape memory"]:
        """The memory before anything is read."""
        return jnp.zeros((*shape, self.head[...].shape[0] if self.heads else 0), jnp.float32)

    def remember(
        self, memory: Float[Array, "*batch memory"], token: Int[Array, "*batch"]
    ) -> Float[Array, "*batch memory"]:
        """The memory after one more token; what was there before fades."""
        if not self.heads:
            return memory
        return (
            memory * jax.nn.sigmoid(self.fade[...]).reshape(*[1] * (memory.ndim - 1), -1)
            + self.recall[...][token]
        )

    def correction(
        self,
        opened: Opened,
        slot: Int[Array, " places"],
        around: tuple[Array, Array, Array],
        memory: Float[Array, "batch readings memory"],
    ) -> Float[Array, "batch readings vocabulary"]:
        """What is added to the logits of a slot (one for all readings, or one each), see
        `grammar.context` for what is `around`: each (batch, readings).
        """
        parent, sibling, previous = around
        context = (
            self.parent[...][parent] + self.sibling[...][sibling] + self.previous[...][previous]
        )
        hidden = opened.each[:, slot] + context
        if opened.keys is not None and opened.finds is not None:
            asked = memory + context + self.from_place[...][slot][None]
            asked = _norm(asked.reshape(*asked.shape[:2], self.heads, -1), jnp.float32(1.0))
            score = jnp.einsum("bnhe,bshe->bnhs", asked, opened.keys) * jnp.float32(
                3.0 * asked.shape[-1] ** -0.5
            )
            hidden = (
                hidden + jax.nn.softmax(score, axis=-1).reshape(*score.shape[:2], -1) @ opened.finds
            )
        return _dense(_activate(hidden), self.head[...])


class Refiner(nnx.Module):
    """One step Z_t -> Z_{t+1}, the same weights at every step.  Chapter 4."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        w, d = config.width, config.latent_dim
        self.stabiliser = config.stabiliser
        self.variables = config.variables
        self.residual_weight = config.residual_weight
        self.anchor_weight = config.anchor_weight
        self.write_bound = config.write_bound
        self.seed = nnx.Param(jax.random.normal(rngs.params(), (config.slots, d), jnp.float32))
        self.place = nnx.Param(
            0.5 * jax.random.normal(rngs.params(), (config.slots, w), jnp.float32)
        )
        self.token = nnx.Param(
            0.5 * jax.random.normal(rngs.params(), (VOCABULARY_SIZE + 1, w), jnp.float32)
        )
        self.number = Linear(4, w, rngs=rngs)
        self.read = Linear(d, w, rngs=rngs)
        self.write = Linear(w, d, rngs=rngs)
        self.write_norm = Gain(w)
        self.feedback = Linear(FEEDBACK_FEATURES, w, rngs=rngs)
        self.feedback_mix = Linear(w, w, rngs=rngs)
        self.point_key_value = KeyValue(w, rngs=rngs)
        self.summary_key_value = KeyValue(w, rngs=rngs)
        self.blocks = ModuleList(
            [Block(w, config.heads, cross=True, rngs=rngs) for _ in range(config.refiner_blocks)]
        )
        self.head = nnx.Param(
            jax.random.normal(rngs.params(), (d, VOCABULARY_SIZE), jnp.float32)
            / jnp.sqrt(jnp.float32(d))
        )
        self.bias = nnx.Param(jnp.zeros((config.slots, VOCABULARY_SIZE), jnp.float32))
        self.reader = Reader(config, rngs=rngs) if config.reader else None

    def start(self, noise: Float[Array, "batch slots dim"]) -> Float[Array, "batch slots dim"]:
        """The seed thought Z_0: learned slots plus noise, stabilised.  Chapter 3."""
        return stabilise(self.seed[...][None] + noise, self.stabiliser)

    def logits(self, z: Float[Array, "batch slots dim"]) -> Float[Array, "batch slots vocabulary"]:
        """What each slot says: scores of all tokens, before the grammar.  Chapter 8."""
        logits = _dense(z * jnp.float32(z.shape[-1] ** 0.5), self.head[...]) + self.bias[...][None]
        absent = (jnp.arange(VOCABULARY_SIZE) > self.variables) & (
            jnp.arange(VOCABULARY_SIZE) <= MAX_VARIABLES
        )
        return jnp.where(absent, -1e9, logits)

    def log_probability(
        self, z: Float[Array, "batch slots dim"], tokens: Int[Array, "batch slots"]
    ) -> Float[Array, "batch slots"]:
        """The logarithm of the probability with which the reader, having read the slots before it,
        reads the given token in each slot.  Chapter 8.
        """
        if self.reader is None:
            raise ValueError(
                "these weights have no reader; `grammar.backward` gives the probability of a "
                "whole formula"
            )
        reader, slots = self.reader, jnp.arange(tokens.shape[1], dtype=jnp.int32)
        open_, parent, sibling, previous = grammar.contexts(tokens)
        _, memory = jax.lax.scan(
            lambda memory, token: (reader.remember(memory, token), memory),
            reader.begin(len(tokens)),
            tokens.T,
        )
        logits = self.logits(z) + reader.correction(
            reader.open(z), slots, (parent, sibling, previous), jnp.swapaxes(memory, 0, 1)
        )
        left = jnp.arange(tokens.shape[1] - 1, -1, -1, dtype=jnp.int32)
        log_p = jax.nn.log_softmax(jnp.where(grammar.allowed(open_, left), logits, -1e9), axis=-1)
        return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]

    def sample(
        self, key: Array, z: Float[Array, "batch slots dim"], count: int, temperature: float = 1.0
    ) -> Int[Array, "batch count slots"]:
        """`count` legal formulas from each thought, exact samples of what it says.  Chapter 8."""
        logits = self.logits(z)
        if self.reader is None:
            return grammar.sample(key, logits / temperature, count)
        reader = self.reader
        batch, slots, _ = logits.shape

        opened = reader.open(z)

        def step(
            state: tuple[grammar.ParseState, Array], inputs: tuple[Array, Array, Array]
        ) -> tuple[tuple[grammar.ParseState, Array], Array]:
            reading, memory = state
            slot, logits, u = inputs
            parent, sibling, previous = (a.reshape(batch, count) for a in grammar.context(reading))
            weight = logits[:, None] + reader.correction(
                opened, slot[None], (parent, sibling, previous), memory
            )
            weight = jnp.where(
                grammar.allowed(reading.open, slots - 1 - slot).reshape(batch, count, -1),
                weight / temperature,
                -1e9,
            )
            mass = jnp.cumsum(jnp.exp(weight - jnp.max(weight, axis=-1, keepdims=True)), axis=-1)
            token = jnp.sum(mass <= u[..., None] * mass[..., -1:], axis=-1, dtype=jnp.int32)
            return (
                grammar.advance(reading, token.reshape(-1)),
                reader.remember(memory, token),
            ), token

        uniform = jax.random.uniform(key, (slots, batch, count), maxval=1 - 1e-6)
        steps = jnp.arange(slots, dtype=jnp.int32), jnp.swapaxes(logits, 0, 1), uniform
        _, tokens = jax.lax.scan(
            step, (grammar.begin(batch * count, slots), reader.begin(batch, count)), steps
        )
        return jnp.moveaxis(tokens, 0, -1)

    def __call__(
        self, z: Float[Array, "batch slots dim"], encoded: Encoded, candidate: Candidate
    ) -> Float[Array, "batch slots dim"]:
        """Look at the points, the candidate and its residual; Z_{t+1} = stabilise(residual_weight
        Z_t + anchor_weight seed + what is written).
        """
        each = encoded.each + self.feedback_mix(
            _activate(self.feedback(feedback_features(candidate, encoded.points)))
        )
        point_key, point_value = self.point_key_value(each)
        summary_key, summary_value = self.summary_key_value(encoded.summary)
        key_value = (
            jnp.concatenate([point_key, summary_key], 1),
            jnp.concatenate([point_value, summary_value], 1),
        )
        mask = jnp.concatenate(
            [encoded.points.mask, jnp.ones(encoded.summary.shape[:2], bool)], axis=1
        )
        number = jnp.where(is_constant(candidate.tokens), candidate.values, 0.0)
        score = jnp.broadcast_to(
            (jnp.log10(jnp.clip(candidate.fvu, 1e-8, 10.0)) / 4)[:, None], number.shape
        )
        numbers = self.number(
            jnp.stack(
                [
                    jnp.arcsinh(number),
                    jnp.where(number != 0, _log_size(number), 0.0),
                    score,
                    jnp.exp(score * 4),
                ],
                axis=-1,
            )
        )
        h = (
            self.read(z * jnp.float32(z.shape[-1] ** 0.5))
            + self.place[...][None]
            + self.token[...][candidate.tokens]
            + numbers
        )
        for block in self.blocks:
            h = block(h, key_value, mask)
        anchor = stabilise(self.seed[...][None], self.stabiliser)
        written = self.write(self.write_norm(h)) * jnp.float32(z.shape[-1] ** -0.5)
        if self.reader is not None:  # however large the weights grow, the anchor stays the heavier
            written = written * jax.lax.rsqrt(
                1.0 + jnp.sum(written**2, axis=-1, keepdims=True) / self.write_bound**2
            )
        return stabilise(
            self.residual_weight * z + self.anchor_weight * anchor + written, self.stabiliser
        )


class Model(nnx.Module):
    """Encoder and refiner together."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.refiner = Refiner(config, rngs=rngs)

    def look(self, points: Points, count: int) -> Encoded:
        """The encoded points X (batch size 1), once for every latent."""
        one = self.encoder(points)
        each, summary = (
            jnp.broadcast_to(a, (count, *a.shape[1:])) for a in (one.each, one.summary)
        )
        many = Points(*(jnp.broadcast_to(a, (count, *a.shape[1:])) for a in points))
        return Encoded(each, summary, many)

    def begin(self, key: Array, count: int, noise: float) -> Float[Array, "latents slots dim"]:
        """The seed with some noise."""
        shape = (count, *self.refiner.seed[...].shape)
        return self.refiner.start(noise * jax.random.normal(key, shape))

    def refine(self, z: Array, seen: Encoded, candidates: Candidate) -> Array:
        """One step of the refiner."""
        return self.refiner(z, seen, candidates)

    def stabilise(self, z: Array) -> Array:
        """Unit rows, as the refiner writes them."""
        return stabilise(z, self.refiner.stabiliser)

    def sample(self, key: Array, z: Array, seen: Encoded, count: int) -> Programs:
        """`count` formulas from each latent, their numbers those of the bins."""
        tokens = self.refiner.sample(key, z, count)
        tokens = tokens.reshape(-1, tokens.shape[-1])
        return Programs(tokens, jnp.asarray(TOKEN_VALUE)[tokens])
