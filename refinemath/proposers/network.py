"""Samples of the latents: formulas as the model reads them off the points.  (Chapters 3, 4, 8)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from refinemath.execution import Programs
from refinemath.loop import Context, SearchState


@dataclass(frozen=True)
class Network:
    """`per_latent` samples of every latent, one block a latent; the best `refine` of each block get
    their constants fitted, and the best of all is what that latent sees at the next step.
    """

    per_latent: int = 128
    refine: int = 4
    samples: ClassVar[bool] = True
    reads_latents: ClassVar[bool] = True

    def init(self, context: Context, key: Array) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def propose(
        self, model: Any, context: Context, memory: tuple[()], state: SearchState, key: Array
    ) -> tuple[Programs, tuple[()]]:
        """(latents x per_latent) legal formulas."""
        programs = model.sample(key, state.latents, context.seen, self.per_latent)
        room = (0, 0), (0, state.pool.tokens.shape[1] - programs.tokens.shape[1])
        return Programs(*(jnp.pad(a, room) for a in programs)), memory
