"""Recursion over the remainder: operations are undone exactly, pairs are fitted as least squares
fits them, and what is written is what was compared.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.network.remainder import (
    LONGEST,
    Remainder,
    States,
    Undone,
    first_operation,
    least_fvu,
    most_frequent,
    undo,
)
from refinemath.execution import Programs
from refinemath.fitting import Points, execute
from refinemath.loop import Context
from refinemath.network.spine import END, TOKEN
from refinemath.proposers.library import make_library, short_skeletons

X = np.linspace(0.4, 2.0, 48)
MASK = jnp.ones((1, len(X)), bool)


pytestmark = pytest.mark.usefixtures("compiled_in_haste")


def state_of(y: np.ndarray, *, scale: bool, offset: bool, slots: int = 24) -> States:
    nothing = Programs(jnp.zeros((1, slots), jnp.int32), jnp.zeros((1, slots)))
    one = jnp.zeros(1)
    flags = jnp.asarray([scale]), jnp.asarray([offset])
    r = jnp.asarray(y, jnp.float32)[None]
    return States(r, jnp.zeros_like(r), nothing, nothing, one, one, *flags)


E, R = 1.0 + X**2, np.cos(1.3 * X) + 1.5
FORWARD = {
    "add": E + R,
    "mul": E * R,
    "div": E / R,
    "rdiv": R / E,
    "pow": E**R,
    "rpow": R**E,
    "inv": 1 / R,
    "square": R**2,
    "cube": R**3,
    "pow4": R**4,
    "pow5": R**5,
    "sqrt": np.sqrt(R),
    "exp": np.exp(R),
    "log": np.log(R),
    "sin": np.sin(R / 2),
    "cos": np.cos(R),
    "tanh": np.tanh(R),
}


@pytest.mark.parametrize("name", FORWARD)
def test_undoing_an_operation_gives_back_its_operand(name: str) -> None:
    variant = 1 if name == "add" else 0  # the coefficient 1, an offset of 0, a factor of 1
    undone = undo(
        jnp.asarray([TOKEN[name]]),
        jnp.asarray(E, jnp.float32)[None],
        state_of(FORWARD[name], scale=False, offset=False),
        MASK,
        jnp.asarray([variant]),
        jnp.zeros(1),
        jnp.zeros(1),
    )
    wanted = R / 2 if name == "sin" else R
    assert np.allclose(undone.r[0], wanted, rtol=2e-4, atol=2e-4)


def test_what_has_no_free_offset_is_undone_with_offset_zero_alone() -> None:
    for offset in (False, True):
        state = state_of(np.exp(R) - 0.5, scale=True, offset=offset)
        undone = undo(
            jnp.asarray([TOKEN["exp"]]),
            jnp.zeros((1, 48)),
            state,
            MASK,
            jnp.asarray([2]),
            jnp.full(1, -0.5),
            jnp.zeros(1),
        )
        assert bool(jnp.isfinite(undone.r).all()) == offset


def test_a_remainder_and_a_short_formula_are_fitted_as_by_least_squares() -> None:
    rng = np.random.default_rng(0)
    t, w, q = rng.normal(size=(3, 5, 48)).astype(np.float32)
    g = rng.normal(size=(7, 48)).astype(np.float32)
    tangent = rng.normal(size=(5, 48)).astype(np.float32)
    undone = Undone(*map(jnp.asarray, (t, t, w, q, tangent, tangent)), jnp.ones(5))
    loss, entry = least_fvu(undone, jnp.asarray(g), jnp.ones(7), MASK)
    for i in range(5):
        left = []
        for row in g:
            design = np.stack([w[i] * row, q[i], tangent[i], np.ones(48)], axis=1)
            rest = t[i] - design @ np.linalg.lstsq(design, t[i], rcond=None)[0]
            left.append(np.var(rest) / np.var(t[i]))
        assert entry[i] == np.argmin(left)
        assert loss[i] == pytest.approx(min(left), rel=1e-3)


def test_the_first_operation_of_a_draw() -> None:
    words = (["mul", "x1", "exp", "x1"], ["sin", "x1"], ["x1"], ["rdiv", "add", "x1", "c", "x1"])
    rows = np.zeros((1, 4, LONGEST), np.int32)
    for i, row in enumerate(words):
        rows[0, i, : len(row)] = [TOKEN[w] for w in row]
    tokens, good = first_operation(jnp.asarray(rows))
    assert good[0].tolist() == [True, True, False, True]
    assert (tokens[0] != END).sum(axis=1)[good[0]].tolist() == [2, 1, 4]
    twice = jnp.concatenate([tokens, tokens[:, 1:2]], axis=1)
    best, share = most_frequent(twice, jnp.concatenate([good, good[:, 1:2]], axis=1), 4)
    assert best[0, 0].tolist() == tokens[0, 1].tolist()
    assert np.exp(share[0]) == pytest.approx([0.4, 0.2, 0.2, 0.0])


PROPOSER = Remainder(states=4, draws=16, operations=4, checked=64, proposals=32, blind=True)


class StepOnly(NamedTuple):
    """All of a search's state that the proposer reads."""

    step: jax.Array


@jax.jit
def step(
    points: Points, rows: jax.Array, table: jax.Array, memory: States | None, t: jax.Array
) -> tuple[States, jax.Array]:
    library = make_library(jax.random.key(0), rows, points)
    context = Context(points, library, table)
    memory = PROPOSER.init(context, jax.random.key(0)) if memory is None else memory
    model, state = None, StepOnly(t)
    programs, memory = PROPOSER.propose(model, context, memory, state, jax.random.key(t))  # type: ignore[arg-type]
    return memory, jnp.min(execute(*programs, points).fvu)


@pytest.mark.parametrize(
    ("y", "operations"),
    [
        (X * np.log(3 + np.cos(2 * X)), [["mul", "x1"], ["log"]]),
        (np.exp(X * np.sin(X) - X) + 0.5 * X, [["add", "x1"], ["exp"]]),
        ((X + np.exp(-X)) ** 2 / (1 + X) + 3, [["rdiv", "add", "c", "x1"], ["square"]]),
    ],
)
def test_the_recursion_finds_a_formula_whose_operations_are_drawn(
    y: np.ndarray, operations: list[list[str]]
) -> None:
    points = Points(
        jnp.asarray(X, jnp.float32)[None, None], jnp.asarray(y, jnp.float32)[None], MASK
    )
    table = np.zeros((len(operations), 24), np.int32)
    for row, operation in zip(table, operations, strict=True):
        row[: len(operation)] = [TOKEN[w] for w in operation]
    rows = jnp.asarray(short_skeletons(24)[:9000])
    memory, least = step(points, rows, jnp.asarray(table), None, jnp.int32(0))
    for t in range(1, 4):
        memory, fvu = step(points, rows, jnp.asarray(table), memory, jnp.int32(t))
        least = jnp.minimum(least, fvu)
    assert float(least) < 1e-3  # before its numbers are fitted
