"""Random formulas for the tests, and what differs between versions of JAX."""

from contextlib import AbstractContextManager

import hypothesis.strategies as st
import jax
import numpy as np

from refinemath.examples import SkeletonTable
from refinemath.expression import CONSTANT_BINS, OPERATORS, SLOTS, Formula, decode, is_constant

_UNARY = [op.name for op in OPERATORS if op.arity == 1]
_BINARY = [op.name for op in OPERATORS if op.arity == 2]
_NUMBERS = st.floats(-1e6, 1e6).map(lambda v: v + 0.0)  # no negative zero


def formulas(
    variables: int = 3, numbers: st.SearchStrategy[float] = _NUMBERS
) -> st.SearchStrategy[Formula]:
    """Any formula of at most 16 tokens."""
    leaves = st.one_of(
        st.sampled_from([(f"x{i + 1}",) for i in range(variables)]), numbers.map(lambda v: (v,))
    )

    def grow(inner: st.SearchStrategy[tuple]) -> st.SearchStrategy[tuple]:
        one = st.tuples(st.sampled_from(_UNARY), inner).map(lambda t: (t[0], *t[1]))
        two = st.tuples(st.sampled_from(_BINARY), inner, inner).map(lambda t: (t[0], *t[1], *t[2]))
        return st.one_of(one, two)

    return (
        st.recursive(leaves, grow, max_leaves=5)
        .filter(lambda parts: len(parts) <= SLOTS)
        .map(Formula)
    )


def from_bank(bank: SkeletonTable, count: int, seed: int = 0) -> list[Formula]:
    """Skeletons of the bank with random constants."""
    rng = np.random.default_rng(seed)
    rows = np.asarray(bank.tokens)[rng.integers(len(bank.tokens), size=count)].astype(np.int32)
    values = np.where(is_constant(rows), rng.choice(CONSTANT_BINS, rows.shape), 0.0)
    return [decode(t, v) for t, v in zip(rows, values, strict=True)]


def double() -> AbstractContextManager[None]:
    """64-bit arithmetic inside; its name in JAX has changed."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # before 0.8

    return enable_x64(True)
