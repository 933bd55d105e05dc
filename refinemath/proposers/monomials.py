"""Products of powers of the variables: their values, and how they are written.  (Chapter 8)"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from refinemath.expression import OPERATOR_TOKEN
from refinemath.fitting import Points

MOST_MONOMIALS = 400


def monomials(variables: int) -> np.ndarray:
    """The exponents (monomials, variables) of 1 and of products of powers of up to three variables,
    up to squares for one variable and, where there are few, for two.  Fewest factors first.
    """
    rows = [np.zeros(variables, np.int32)]
    for count in range(1, min(variables, 3) + 1):
        sizes = (-2, -1, 1, 2) if count == 1 or (count == 2 and variables <= 4) else (-1, 1)
        for columns in itertools.combinations(range(variables), count):
            for powers in itertools.product(sizes, repeat=count):
                rows.append(np.zeros(variables, np.int32))
                rows[-1][list(columns)] = powers
    return np.array(rows[:MOST_MONOMIALS])


def monomial_values(exponents: np.ndarray, points: Points) -> Float[Array, "monomials points"]:
    """The monomials on the points; not finite where one is undefined."""
    x = points.x[0]
    powers = jnp.stack([1.0 / x**2, 1.0 / x, jnp.ones_like(x), x, x**2])
    columns = [powers[exponents[:, j] + 2, j] for j in range(len(x))]
    return jnp.prod(jnp.stack(columns), axis=0)


def around(exponents: Sequence[int]) -> tuple[list[int], list[int]]:
    """Tokens before and after what is multiplied by a monomial."""
    before: list[int] = []
    after: list[int] = []
    for variable, power in enumerate(exponents, 1):
        square = [OPERATOR_TOKEN["square"]] * (abs(power) == 2)
        if power > 0:
            before += [OPERATOR_TOKEN["mul"], *square, variable]
        elif power < 0:
            before.append(OPERATOR_TOKEN["div"])
            after = [*square, variable, *after]
    return before, after
