"""The lists of held-out and excluded formulas: made once, committed."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import jax
import numpy as np

from refinemath.corpus.build import build_table
from refinemath.examples import Examples, draw_examples, length_weights
from refinemath.expression import combine, decode, split_terms


def make_heldout(path: Path, *, seed: int = 20261124, per_length: int = 30) -> None:
    """Write `per_length` random formulas of each length 3 to 12, with their ranges, as CSV."""
    bank = build_table(400, seed=seed)
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
        "# Formulas that never enter training. Origin, then the formula. Made by "
        "refinemath.heldout.write_excluded."
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
