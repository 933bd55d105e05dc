"""Muon for the hidden matrices, a factored second moment for the wide input matrices, Adam for the
rest.

Small enough to travel: with bfloat16 momenta a training state has little more than six bytes a
parameter.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from refinemath.newton_schulz import MUON, orthogonalize


def scale_by_muon(momentum: float = 0.95) -> optax.GradientTransformation:
    """Muon (Jordan 2024): Nesterov momentum, then the polar factor by five Newton-Schulz steps,
    scaled to a root mean
    square of 0.2 an entry.  Matrices of equal shape are orthogonalized together.  The momentum is
    kept in bfloat16."""

    def init(params: Any) -> Any:
        return jax.tree.map(lambda p: jnp.zeros_like(p, jnp.bfloat16), params)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        exact = jax.tree.map(lambda m, g: momentum * m.astype(g.dtype) + g, state, grads)
        leaves, tree = jax.tree.flatten(jax.tree.map(lambda g, m: g + momentum * m, grads, exact))
        out: list[Any] = [None] * len(leaves)
        shapes: dict[tuple[int, int], list[int]] = {}
        for i, leaf in enumerate(leaves):
            shapes.setdefault(tuple(sorted(leaf.shape)), []).append(i)
        for (small, large), group in shapes.items():
            wide = jnp.stack(
                [leaves[i] if leaves[i].shape[0] == small else leaves[i].T for i in group]
            )
            wide = orthogonalize(wide, MUON) * np.float32(0.2 * large**0.5)
            for i, matrix in zip(group, wide, strict=True):
                out[i] = matrix if leaves[i].shape[0] == small else matrix.T
        return jax.tree.unflatten(tree, out), jax.tree.map(lambda m: m.astype(jnp.bfloat16), exact)

    return optax.GradientTransformation(init, update)


def group_of(name: str) -> str:
    """Which optimizer a parameter gets: `wide` input matrices a factored one, hidden matrices Muon,
    the rest Adam."""
    if "kernel" not in name:
        return "rest"
    return "wide" if "wide" in name else "hidden"


def make_optimizer(params: Any) -> optax.GradientTransformation:
    """Updates for a learning rate of 1; the rate is applied in the step."""
    flat = jax.tree_util.tree_flatten_with_path(params)
    names = [
        "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path) for path, _ in flat[0]
    ]
    labels = jax.tree.unflatten(flat[1], [group_of(n) for n in names])
    factored = optax.scale_by_factored_rms(factored=True, decay_rate=0.8, min_dim_size_to_factor=16)
    groups = {
        "wide": optax.chain(
            factored, optax.trace(0.9, accumulator_dtype=jnp.bfloat16), optax.scale(0.1)
        ),
        "hidden": optax.chain(scale_by_muon(), optax.add_decayed_weights(0.01)),
        "rest": optax.scale_by_adam(b1=0.9, b2=0.99),
    }
    return optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(groups, labels))
