"""What never enters training: benchmark formulas, the laws of the real data, and 300 random
formulas.  (Chapter 2)

`excluded.txt` in the package lists them all, one formula a line; `training_exclusions` turns the
list into signatures (for the bank) and probe values (for every single example).
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from refinemath.data import (
    PROBE_CONSTANTS,
    Examples,
    draw_examples,
    length_weights,
    make_bank,
    probe_points,
    signature,
    standardized_probe,
)
from refinemath.language import (
    MAX_VARIABLES,
    VARIABLES,
    Formula,
    FormulaError,
    combine,
    decode,
    encode,
    evaluate,
    parse,
    split_terms,
)

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


# making the lists (run once; the results are committed)


def make_heldout(path: Path, *, seed: int = 20261124, per_length: int = 30) -> None:
    """Draw `per_length` random formulas of each length 3 to 12 with constants, coefficients and a
    range; write them as CSV.
    """
    bank = make_bank(400, seed=seed)
    draw = jax.jit(lambda key, weights: draw_examples(key, bank, 64, weights=weights))
    rows = []
    for length in range(3, 13):
        weights = length_weights(bank, {length: 1.0})
        chosen: dict[bytes, dict[str, object]] = {}
        for attempt in range(40):
            key = jax.random.fold_in(jax.random.key(seed), 100 * length + attempt)
            e = draw(key, weights)
            for i in range(64):
                skeleton = np.asarray(e.tokens[i]).tobytes()
                if len(chosen) < per_length and float(e.weight[i]) > 0 and skeleton not in chosen:
                    x = np.asarray(e.x[i, 0])[np.asarray(e.mask[i])]
                    chosen[skeleton] = {
                        "length": length,
                        "expression": _expression(e, i),
                        "low": round(float(x.min()), 3),
                        "high": round(float(x.max()), 3),
                    }
        rows += list(chosen.values())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["name", "length", "expression", "low", "high"])
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow({"name": f"heldout-{i:03d}", **row})


def _expression(examples: Examples, i: int) -> str:
    """The true formula of example i as text, every number rounded to 3 digits."""

    def rounded(v: float) -> float:
        return float(f"{v:.3g}")

    skeleton = decode(np.asarray(examples.tokens[i]), np.asarray(examples.values[i]))
    terms = [t.with_constants(map(rounded, t.constants())) for t in split_terms(skeleton)]
    coefficients = [rounded(float(a)) for a in examples.coefficient[i][: len(terms)]]
    return str(combine(terms, coefficients, rounded(float(examples.offset[i]))))


def write_excluded(data: Path, target: Path) -> None:
    """Collect `excluded.txt` from suites.csv, problems.csv and heldout.csv in the folder `data`."""
    lines = [
        "# Formulas that never enter training. Origin, then the formula. Made by refinemath.heldout.write_excluded."
    ]
    lines.append("running-example\tsin(x)/(1 + x**2)")
    for row in _rows(data / "suites.csv"):
        lines.append(f"{row['name']}\t{row['expression']}")
    for row in _rows(data / "problems.csv"):
        for form in (row["expression"], *row["accept"].split(";")):
            if form.strip():
                for k, (a, b, c) in enumerate(((1.0, 1.0, 1.0), (1.5, 0.7, 2.0), (2.0, 1.3, 0.5))):
                    names = {"a": repr(a), "b": repr(b), "c": repr(c), "d": "0.9"}
                    lines.append(f"{row['name']}-{k}\t{_substitute(form.strip(), names)}")
    for row in _rows(data / "heldout.csv"):
        lines.append(f"{row['name']}\t{row['expression']}")
    target.write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def _substitute(text: str, names: dict[str, str]) -> str:
    return re.sub(r"\b([a-d])\b", lambda m: names[m.group(1)], text)
