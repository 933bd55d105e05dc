"""What becomes of a latent that is refined more often than in training: latent drift."""

from __future__ import annotations

import functools
from argparse import Namespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from experiments import measure, networks
from refinemath.fitting import Points, no_candidate


def latents(model: Any, points: Points, key: Array, *, steps: int, once: bool) -> Array:
    """Z_0 ... Z_steps without candidates, (steps + 1, batch, slots, dim); with `once` the points
    are read at the first step alone.
    """
    encoded = model.encoder(points)
    later = jax.tree.map(jnp.zeros_like, encoded) if once else encoded
    shape = (points.y.shape[0], *model.refiner.seed[...].shape)
    z = model.refiner.start(0.3 * jax.random.normal(key, shape))
    nothing = no_candidate(points, shape[1])

    def step(z: Array, t: Array) -> tuple[Array, Array]:
        seen = jax.tree.map(lambda a, b: jnp.where(t == 0, a, b), encoded, later)
        new = model.refiner(z, seen, nothing)
        return new, new

    return jnp.concatenate([z[None], jax.lax.scan(step, z, jnp.arange(steps))[1]])


@jax.jit
def signs(z: Array) -> dict[str, Array]:
    """What drift of Z_0 ... Z_T shows itself in, (T, batch) each: the velocity, the effective rank
    of the slots, and their mean absolute cosine.
    """
    gram, slots = z[1:] @ jnp.swapaxes(z[1:], -1, -2), z.shape[2]
    size = jnp.sqrt(jnp.diagonal(gram, axis1=-2, axis2=-1))
    cosine = jnp.sum(jnp.abs(gram) / (size[..., :, None] * size[..., None, :]), axis=(-2, -1))
    share = jnp.maximum(jnp.linalg.eigvalsh(gram), 1e-12)
    share = share / jnp.sum(share, axis=-1, keepdims=True)
    moved = jnp.linalg.norm(z[1:] - z[:-1], axis=(2, 3)) / jnp.linalg.norm(z[:-1], axis=(2, 3))
    rank = jnp.exp(-jnp.sum(share * jnp.log(share), axis=-1))
    return {"velocity": moved, "rank": rank, "cosine": (cosine - slots) / (slots * (slots - 1))}


def drift(options: Namespace, params: Any, graph: Any, *, once: bool) -> dict[str, Any]:
    """The signs on fresh plots at 1, 2, 4, ... steps, and the cross-entropy of the truth."""
    e, most = networks.fresh_examples(options), 4 if options.quick else 64
    model, points = nnx.merge(graph, params), Points(e.x, e.y, e.mask)
    run = jax.jit(functools.partial(latents, model, steps=most, once=once))
    z = run(points, jax.random.key(0))
    at, seen = [2**k for k in range(most.bit_length())], signs(z)
    out: dict[str, Any] = {what: [np.asarray(v)[t - 1] for t in at] for what, v in seen.items()}
    losses = [networks.cross_entropy(model.refiner.logits(z[t]), e) for t in at]
    return {"steps": at, "loss": [float(v) for v in losses], **out}


def drifted(several: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds at every step, the signs with intervals over plots."""
    steps = several[0]["steps"]
    row: dict[str, Any] = {"loss": np.mean([d["loss"] for d in several], axis=0)}
    for what in ("velocity", "rank", "cosine"):
        each = np.mean([d[what] for d in several], axis=0)
        row[what] = {t: measure.interval(e) for t, e in zip(steps, each, strict=True)}
    return row
