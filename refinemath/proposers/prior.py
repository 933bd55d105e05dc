"""Blind draws from a table of skeletons: the null model of the network.  (Chapter 8)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from refinemath.execution import Programs, with_drawn_constants
from refinemath.loop import Context, SearchState


@dataclass(frozen=True)
class Prior:
    """Skeletons from the table of the context, with constants drawn from the bins."""

    count: int = 4096
    refine: int = 128
    samples: ClassVar[bool] = True
    uses_table: ClassVar[bool] = True

    def init(self, context: Context, key: Array) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def propose(
        self, model: Any, context: Context, memory: tuple[()], state: SearchState, key: Array
    ) -> tuple[Programs, tuple[()]]:
        """`count` formulas that nothing has looked at."""
        k = jax.random.split(key)
        row = jax.random.randint(k[0], (self.count,), 0, context.table.shape[0])
        tokens = context.table[row].astype(jnp.int32)
        return with_drawn_constants(k[1], tokens), memory
