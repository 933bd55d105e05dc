"""The table of skeletons: random canonical formulas without duplicates.  (Chapter 2)"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from refinemath.corpus.canonical import CONSTANT, is_canonical
from refinemath.corpus.exclusions import training_exclusions
from refinemath.corpus.signatures import as_words, numbered, signature_words, used_variables
from refinemath.examples import SkeletonTable
from refinemath.expression import END, MAX_VARIABLES, OPERATOR_TOKEN, SLOTS, is_variable

MOST_PARTS = 100_000  # trees of a length from which longer ones are grown
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


def _leaves(variables: int, slots: int) -> np.ndarray:
    leaves = np.zeros((variables + 1, slots), np.int32)
    leaves[:, 0] = [*range(1, variables + 1), CONSTANT]
    return leaves


def _share_names(rng: np.random.Generator, drawn: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Each tree with its variables replaced by random ones of the first k, k one of `wanted`."""
    count = rng.choice(wanted, len(drawn))
    names = 1 + (rng.random((len(drawn), MAX_VARIABLES)) * count[:, None]).astype(np.int32)
    place = np.clip(drawn - 1, 0, MAX_VARIABLES - 1)
    return numbered(np.where(is_variable(drawn), np.take_along_axis(names, place, axis=1), drawn))


def _of_one_length(
    rng: np.random.Generator,
    parts: list[np.ndarray],
    seen: set[int],
    *,
    share: int,
    most: int,
    chunk: int,
    patience: int,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Trees to grow longer ones from, (rows, slots), and for each number of variables up to `most`
    at most `share` new skeletons.  Their words are added to `seen`.
    """
    length, slots = len(parts), parts[0].shape[1]
    pool, stale = np.zeros((0, slots), np.int32), 0
    found = [np.zeros((0, slots), np.uint8) for _ in range(most)]
    while stale < patience and any(len(rows) < share for rows in found):
        drawn = _grow(rng, parts, length, chunk, slots) if length > 1 else _leaves(most, slots)
        padded = np.zeros((chunk, slots), np.int32)  # one shape, one compilation
        padded[: len(drawn)] = drawn
        part, whole = map(np.asarray, is_canonical(jnp.asarray(padded)))
        if len(pool) < MOST_PARTS:
            pool = np.concatenate([pool, drawn[part[: len(drawn)]]])
        if most > 1:
            wanted = np.flatnonzero([len(rows) < share for rows in found]) + 1
            padded = _share_names(rng, padded, wanted)
            _, whole = map(np.asarray, is_canonical(jnp.asarray(padded)))
        rows = padded[whole & (padded[:, 0] != END)]
        words = signature_words(rows).tolist()
        first = dict(zip(reversed(words), reversed(range(len(words))), strict=True))
        fresh = sorted(i for word, i in first.items() if word not in seen)
        seen.update(words)
        before = sum(map(len, found))
        for v, old in enumerate(found, start=1):
            new = rows[fresh][used_variables(rows[fresh]) == v].astype(np.uint8)
            found[v - 1] = np.concatenate([old, new])[:share]
        stale = 0 if sum(map(len, found)) - before > chunk // 1000 else stale + 1
    return pool, found


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
    """About `per_length` distinct canonical skeletons of every length, in equal shares for every
    number of variables from 1 to `variables`, without those whose signature is in `excluded`.

    Formulas are grown from shorter ones.  Of those with the same signature the first, hence
    shortest, is kept; variables are numbered as they appear.  A length with fewer formulas ends
    after `patience` rounds that bring next to nothing new.  Deterministic in `seed`.  Chapter 2.
    """
    rng = np.random.default_rng(seed)
    parts = [np.zeros((0, slots), np.int32)]
    seen = set() if excluded is None else set(as_words(excluded).tolist())
    cells = [np.zeros((0, slots), np.uint8)] * variables
    for length in range(1, slots + 1):
        most = min(variables, (length + 1) // 2)
        pool, found = _of_one_length(
            rng,
            parts,
            seen,
            share=-(-per_length // most),
            most=most,
            chunk=chunk,
            patience=patience,
        )
        parts.append(pool if length > 1 else _leaves(variables, slots))
        cells += found + cells[:1] * (variables - most)
    start = np.cumsum([0, *map(len, cells)])
    start = np.append(start, [start[-1]] * (variables - 1)).reshape(slots + 2, variables)
    return SkeletonTable(jnp.asarray(np.concatenate(cells)), jnp.asarray(start, jnp.int32))


@functools.cache
def blind_table(slots: int = SLOTS, variables: int = 1, per_length: int = 60_000) -> np.ndarray:
    """Skeletons (rows, slots) for blind draws, made and kept as for training, each over random
    columns of `variables`: the null model of the network.
    """
    words = training_exclusions(variables)[0]
    table = build_table(per_length, seed=99, variables=variables, slots=slots, excluded=words)
    tokens = np.asarray(table.tokens).astype(np.int32)
    order = np.random.default_rng(0).random((len(tokens), variables)).argsort(axis=1)
    place = np.clip(tokens - 1, 0, variables - 1)
    columns = 1 + np.take_along_axis(order, place, axis=1)
    return np.where(is_variable(tokens), columns, tokens).astype(np.uint8)
