"""What never enters training: benchmark formulas, the laws of the real data, and the held-out
formulas.  (Chapter 2)

`excluded.txt` in the package lists them all, one formula a line; `training_exclusions` turns the
list into signatures (for the table) and fingerprints (for every single example).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from jax import Array
from jaxtyping import Float

from refinemath.corpus.signatures import PROBE_CONSTANTS, fingerprint, numbered, signature_words
from refinemath.examples import Reject
from refinemath.expression import VARIABLES, Formula, FormulaError, combine, encode, split_terms
from refinemath.text import parse

_WIDE = 40  # slots that any benchmark formula fits
UNKNOWN = re.compile(r"\b(asin|acos)\(")  # functions that no formula of ours can have
GENERATED = ("table-", "deep-")  # origins whose formulas are written as the generator does
MOST_ORDERED = 4  # of so many constants every order is tried


def read_excluded() -> list[tuple[str, Formula]]:
    """Origin and formula of every line of the published list that the language can say."""
    text = resources.files("refinemath").joinpath("excluded.txt").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return [(origin, parse(text)) for origin, text in rows if not UNKNOWN.search(text)]


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


def _variants(formula: Formula, generated: bool) -> Iterator[Formula]:
    """The formula, its skeleton as the generator writes it, and unless it was `generated` itself
    what SymPy makes of it: expanded, and as one fraction.
    """
    yield formula
    yield _bare(formula)
    if generated:
        return
    plain = formula.sympy()
    plain = plain.xreplace({s: sympy.Symbol(s.name) for s in plain.free_symbols})
    for expression in (_strip(plain), _strip(sympy.expand(plain)), _strip(sympy.together(plain))):
        with contextlib.suppress(FormulaError):
            yield parse(str(expression))


def _forms(formula: Formula, generated: bool) -> list[Formula]:
    """Every form of a formula with its own constants and, as a skeleton, with the probe constants
    in every order.
    """
    forms = []
    for variant in dict.fromkeys(_variants(formula, generated)):
        count = len(variant.constants())
        orders: Iterable[Sequence[int]] = ()
        if count <= MOST_ORDERED:
            orders = itertools.permutations(range(count))
        elif count <= len(PROBE_CONSTANTS):
            orders = [range(count)]
        forms.append(variant)
        forms += [variant.with_constants(PROBE_CONSTANTS[k] for k in order) for order in orders]
    return forms


def _arrays(formulas: Iterable[Formula]) -> tuple[np.ndarray, np.ndarray]:
    tokens, values = encode([f for f in formulas if len(f) <= _WIDE], _WIDE)
    return numbered(tokens), values


@functools.cache
def training_exclusions(variables: int = 1) -> tuple[np.ndarray, jax.Array]:
    """Signatures (n, 2) that the table must not contain, and fingerprints (m, 24) that no example
    may have, of the listed formulas with at most `variables` variables.  Chapter 2.
    """
    generated = {e: origin.startswith(GENERATED) for origin, e in reversed(read_excluded())}
    few = [e for e in generated if len({p for p in e.parts if p in VARIABLES}) <= variables]
    words = signature_words(*_arrays(form for e in few for form in _forms(e, generated[e])))
    tokens, values = _arrays(few)
    probes = fingerprint(jnp.asarray(tokens), jnp.asarray(values, jnp.float32), variables=variables)
    return np.unique(words).view(np.int32).reshape(-1, 2), probes


def excludes(probes: Float[Array, "excluded 24"], variables: int = 1) -> Reject:
    """What `draw_examples` takes as `reject`: true for a function that is one of the excluded up to
    a factor, an offset and names, by its values (correlation above 1 - 1e-6).
    """

    def reject(tokens: Array, values: Array, coefficient: Array) -> Array:
        own = fingerprint(tokens, values, coefficient, variables=variables)
        return jnp.any(own @ probes.T > 1 - 1e-6, axis=1)

    return reject
