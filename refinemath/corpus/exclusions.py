"""What never enters training: benchmark formulas, the laws of the real data, and 300 random
formulas.  (Chapter 2)

`excluded.txt` in the package lists them all, one formula a line; `training_exclusions` turns the
list into signatures (for the bank) and probe values (for every single example).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from refinemath.corpus.signatures import PROBE_CONSTANTS, signature
from refinemath.examples import probe_points, standardized_probe
from refinemath.execution import evaluate
from refinemath.expression import (
    MAX_VARIABLES,
    VARIABLES,
    Formula,
    FormulaError,
    combine,
    encode,
    split_terms,
)
from refinemath.text import parse

_WIDE = 40  # slots that any benchmark formula fits


def read_excluded() -> list[tuple[str, Formula]]:
    """Origin and formula of every line of the published list."""
    text = resources.files("refinemath").joinpath("excluded.txt").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return [(origin, parse(expression)) for origin, expression in rows]


def _strip(expression: sympy.Expr) -> sympy.Expr:
    """Without the constant term and the terms' numeric factors, which the free coefficients say."""
    terms = [t.as_coeff_Mul()[1] for t in sympy.Add.make_args(expression) if t.free_symbols]
    return sympy.Add(*terms)


def _bare(formula: Formula) -> Formula:
    """The same as `_strip` without SymPy, which would lose a 1 that stands for any constant: the
    skeleton as the generator writes it.
    """
    terms = []
    for term in split_terms(formula):
        parts = term.parts
        while parts[0] == "neg" or (parts[0] == "mul" and not isinstance(parts[1], str)):
            parts = parts[1:] if parts[0] == "neg" else parts[2:]
        if any(p in VARIABLES for p in parts):
            terms.append(Formula(parts))
    return combine(terms, [1.0] * len(terms), 0.0)


def _variants(formula: Formula) -> Iterator[Formula]:
    names = {f"x{i + 1}": sympy.Symbol(f"x{i + 1}") for i in range(MAX_VARIABLES)}
    plain = formula.sympy().subs(sympy.Symbol("x", real=True), names["x1"])
    plain = plain.subs({sympy.Symbol(n, real=True): s for n, s in names.items()})
    yield formula
    yield _bare(formula)
    for expression in (_strip(plain), _strip(sympy.expand(plain)), _strip(sympy.together(plain))):
        try:
            yield parse(str(expression.evalf(17)))
        except FormulaError:
            continue


def _renamed(formula: Formula, variables: int) -> Iterator[Formula]:
    """The formula in every choice of its variables from the first `variables`: sin(x1) + x2 and
    sin(x2) + x1 are one law.
    """
    used = sorted({p for p in formula.parts if p in VARIABLES})
    for names in itertools.permutations(VARIABLES[:variables], len(used)):
        name = dict(zip(used, names, strict=True))
        yield Formula(tuple(name.get(p, p) if isinstance(p, str) else p for p in formula.parts))


def training_exclusions(variables: int = 1) -> tuple[np.ndarray, jax.Array]:
    """Signatures (n, 2) that the bank must not contain, and probe values (m, probes) that no
    example may equal.

    Signatures are taken of each formula with its own constants and, as a skeleton, with the probe
    constants in every order.
    """
    forms, probes = [], []
    for _, listed in read_excluded():
        for formula in _renamed(listed, variables):
            probes.append(formula)
            for variant in _variants(formula):
                forms.append(variant)
                count = len(variant.constants())
                orders = (
                    itertools.permutations(range(count))
                    if count <= 4
                    else [range(count)]
                    if count <= len(PROBE_CONSTANTS)
                    else []
                )
                forms += [
                    variant.with_constants(PROBE_CONSTANTS[k] for k in order) for order in orders
                ]
    tokens, values = encode([f for f in forms if len(f) <= _WIDE], _WIDE)
    words = np.asarray(signature(jnp.asarray(tokens), jnp.asarray(values, jnp.float32)))
    tokens, values = encode([f for f in probes if len(f) <= _WIDE], _WIDE)
    y = evaluate(jnp.asarray(tokens), jnp.asarray(values, jnp.float32), probe_points(variables))
    return np.unique(words, axis=0), standardized_probe(y)
