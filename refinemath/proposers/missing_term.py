"""One more additive term for the best formulas: orthogonal matching pursuit.  (Chapter 8)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from refinemath.execution import Programs, centre, lengths
from refinemath.expression import OPERATOR_TOKEN
from refinemath.fitting import without
from refinemath.loop import Context, SearchState
from refinemath.proposers.splice import Segment, concat_tokens, single_token, whole


@dataclass(frozen=True)
class MissingTerm:
    """The best formulas of the pool, each plus the short terms that explain most of its residual.

    From each of `choices` parts of the library comes one term (Pati et al. 1993).
    """

    parents: int = 64
    choices: int = 4
    refine: int = 20
    uses_library: ClassVar[bool] = True

    def init(self, context: Context, key: Array) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def propose(
        self, model: Any, context: Context, memory: tuple[()], state: SearchState, key: Array
    ) -> tuple[Programs, tuple[()]]:
        """(parents x choices) formulas; one that would not fit into the slots gets no term."""
        pool = jax.tree.map(lambda a: a[: self.parents], state.pool)
        best, useful = self.best_terms(context, pool.tokens, pool.rows)
        parent = jnp.repeat(jnp.arange(len(pool.tokens), dtype=jnp.int32), self.choices)
        plus = single_token(jnp.full_like(best, OPERATOR_TOKEN["add"]))._replace(length=useful)
        term = whole(Programs(context.library.tokens, context.library.values), best)
        term = Segment(term.tokens, term.values, useful * term.length)
        return concat_tokens(
            pool.tokens.shape[1], plus, term, whole(pool.programs(), parent)
        ), memory

    def best_terms(self, context: Context, tokens: Array, rows: Array) -> tuple[Array, Array]:
        """For each formula the row of each part's best term, and 1 where it explains anything."""
        points, library = context.points, context.library
        mask = jnp.broadcast_to(points.mask, (len(tokens), points.mask.shape[1]))
        residual = without(centre(jnp.broadcast_to(points.y, mask.shape), mask)[0], rows)
        # of each entry, once the formula's own terms are taken out
        left_over = 1.0 - jnp.sum((rows @ library.unit.T) ** 2, axis=1)
        gain = (residual @ library.unit.T) ** 2 / jnp.maximum(left_over, 1e-3)
        fits = lengths(tokens)[:, None] + lengths(library.tokens)[None] < tokens.shape[1]
        gain = jnp.where((left_over > 1e-3) & fits, gain, 0.0)
        part = gain.shape[1] // self.choices
        parts = gain[:, : part * self.choices].reshape(len(tokens), self.choices, part)
        first = part * jnp.arange(self.choices, dtype=jnp.int32)
        best = jnp.argmax(parts, axis=-1).astype(jnp.int32) + first[None]
        useful = jnp.take_along_axis(gain, best, axis=1) > 0
        return best.reshape(-1), useful.reshape(-1).astype(jnp.int32)
