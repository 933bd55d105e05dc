"""The table of skeletons: random canonical formulas without duplicates.  (Chapter 2)"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np

from refinemath.corpus.canonical import CONSTANT, is_canonical
from refinemath.corpus.signatures import _as_words, signature
from refinemath.examples import SkeletonTable
from refinemath.expression import END, OPERATOR_TOKEN, SLOTS

_UNARY_WEIGHT = {
    "neg": 0.4,
    "inv": 0.7,
    "square": 1.0,
    "cube": 0.7,
    "pow4": 0.4,
    "pow5": 0.4,
    "sqrt": 0.8,
    "exp": 1.0,
    "log": 1.0,
    "sin": 1.0,
    "cos": 1.0,
    "tanh": 0.4,
}
_BINARY_WEIGHT = {"add": 2.5, "sub": 0.4, "mul": 2.5, "div": 1.0, "pow": 0.2}


def _grow(
    rng: np.random.Generator, parts: list[np.ndarray], length: int, count: int, slots: int
) -> np.ndarray:
    """`count` random trees of `length` tokens whose subtrees come from the shorter `parts`."""
    unary, binary = list(_UNARY_WEIGHT), list(_BINARY_WEIGHT)
    out = np.zeros((count, slots), np.int32)
    is_unary = rng.random(count) < (0.3 if length > 2 else 1.0)
    names = rng.choice(
        [OPERATOR_TOKEN[n] for n in unary],
        count,
        p=np.array(list(_UNARY_WEIGHT.values())) / sum(_UNARY_WEIGHT.values()),
    )
    names2 = rng.choice(
        [OPERATOR_TOKEN[n] for n in binary],
        count,
        p=np.array(list(_BINARY_WEIGHT.values())) / sum(_BINARY_WEIGHT.values()),
    )
    out[:, 0] = np.where(is_unary, names, names2)
    rows = np.flatnonzero(is_unary)
    if len(rows) and len(parts[length - 1]):
        out[rows, 1:length] = parts[length - 1][
            rng.integers(len(parts[length - 1]), size=len(rows)), : length - 1
        ]
    left = rng.integers(1, max(length - 1, 2), count)
    left = np.where(rng.random(count) < 0.3, 1, left)
    for n in range(1, length - 1):
        rows = np.flatnonzero(~is_unary & (left == n))
        m = length - 1 - n
        if len(rows) and len(parts[n]) and len(parts[m]):
            out[rows, 1 : 1 + n] = parts[n][rng.integers(len(parts[n]), size=len(rows)), :n]
            out[rows, 1 + n : length] = parts[m][rng.integers(len(parts[m]), size=len(rows)), :m]
    complete = np.all(out[:, :length] != END, axis=1)
    high = np.isin(out[:, 0], [OPERATOR_TOKEN[n] for n in ("cube", "pow4", "pow5")])
    return out[
        complete & ~(high & (rng.random(count) > 1.0 / (length - 1) ** 2))
    ]  # high powers are mostly of short things


def build_table(
    per_length: int,
    *,
    seed: int = 0,
    variables: int = 1,
    slots: int = SLOTS,
    excluded: np.ndarray | None = None,
    chunk: int = 16384,
    patience: int = 8,
) -> SkeletonTable:
    """Up to `per_length` distinct canonical skeletons of every length, without those whose
    signature is in `excluded`.

    Formulas are grown from shorter ones.  Of those with the same signature the first, hence
    shortest, is kept.  A length with fewer formulas ends after `patience` rounds that bring next to
    nothing new.  Deterministic in `seed`.  Chapter 2.
    """
    rng = np.random.default_rng(seed)
    leaves = np.zeros((variables + 1, slots), np.int32)
    leaves[:, 0] = [*range(1, variables + 1), CONSTANT]
    parts: list[np.ndarray] = [np.zeros((0, slots), np.int32)]
    seen = set() if excluded is None else set(_as_words(excluded).tolist())
    rows = []
    for length in range(1, slots + 1):
        pool, found = np.zeros((0, slots), np.int32), np.zeros((0, slots), np.uint8)
        stale = 0
        while len(found) < per_length and stale < patience:
            drawn = _grow(rng, parts, length, chunk, slots) if length > 1 else leaves
            drawn = np.concatenate(
                [drawn, np.zeros((chunk - len(drawn), slots), np.int32)]
            )  # one shape, one compilation
            part, whole = map(np.asarray, is_canonical(jnp.asarray(drawn)))
            part, whole = part & (drawn[:, 0] != END), whole & (drawn[:, 0] != END)
            if variables > 1:  # a whole formula uses x2 only where it uses x1
                present = [np.any(drawn == 1 + v, axis=1) for v in range(variables)]
                for lower, higher in itertools.pairwise(present):
                    whole &= lower | ~higher
            if len(pool) < 100_000:
                pool = np.concatenate([pool, drawn[part]])
            words = _as_words(np.asarray(signature(jnp.asarray(drawn))))[whole]
            fresh = []
            for i, word in enumerate(words.tolist()):
                if word not in seen:
                    seen.add(word)
                    fresh.append(i)
            found = np.concatenate([found, drawn[whole][fresh].astype(np.uint8)])
            stale = 0 if len(fresh) > chunk // 1000 else stale + 1
        parts.append(pool if length > 1 else leaves)
        rows.append(found[:per_length])
    start = np.cumsum([0, 0, *map(len, rows)])
    return SkeletonTable(jnp.asarray(np.concatenate(rows)), jnp.asarray(start, jnp.int32))
