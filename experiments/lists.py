"""The lists of held-out and excluded formulas: made once, committed.

`python -m experiments.lists` writes data/heldout_tables.csv, data/deep.csv and
refinemath/excluded.txt.  data/heldout.csv was made by `make_heldout` with an earlier generator.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from refinemath.corpus.build import build_table
from refinemath.examples import Examples, SkeletonTable, draw_examples, length_weights
from refinemath.expression import VARIABLES, Formula, combine, decode, split_terms

FIELDS = ["name", "variables", "length", "peels", "expression", "sampling"]


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
                        "expression": str(_formula(e, i)),
                        "low": round(float(x.min()), 3),
                        "high": round(float(x.max()), 3),
                    }
        rows += list(chosen.values())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["name", "length", "expression", "low", "high"])
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow({"name": f"heldout-{i:03d}", **row})


def _formula(examples: Examples, i: int) -> Formula:
    """The true formula of example i, every number rounded to 3 digits."""

    def rounded(v: float) -> float:
        return float(f"{v:.3g}")

    skeleton = decode(np.asarray(examples.tokens[i]), np.asarray(examples.values[i]))
    terms = [t.with_constants(map(rounded, t.constants())) for t in split_terms(skeleton)]
    coefficients = [rounded(float(a)) for a in examples.coefficient[i][: len(terms)]]
    return combine(terms, coefficients, rounded(float(examples.offset[i])))


def peels(parts: tuple[str | float, ...]) -> float:
    """How many operations must be undone before what remains is short; infinity where none can be.

    Short is a part of at most 5 tokens, a product or quotient of one of at most 4 and one of at
    most 5, or a sum of such.  What can be undone is a function at the root, or an operator there
    whose other operand has at most 4 tokens.
    """
    operands = _operands(parts)
    if _short(parts):
        return 0
    if len(operands) == 1:
        return 1 + peels(operands[0])
    left, right = operands
    return 1 + min(
        peels(left) if len(right) <= 4 else math.inf, peels(right) if len(left) <= 4 else math.inf
    )


def _short(parts: tuple[str | float, ...]) -> bool:
    if len(parts) <= 5:
        return True
    operands = _operands(parts)
    if parts[0] in ("mul", "div"):
        small, large = sorted(map(len, operands))
        return small <= 4 and large <= 5
    return parts[0] in ("add", "sub") and all(map(_short, operands))


def _operands(parts: tuple[str | float, ...]) -> list[tuple[str | float, ...]]:
    """The operands at the root."""
    found, start = [], 1
    while start < len(parts):
        stop = next(s for s in range(start + 1, len(parts) + 1) if _complete(parts[start:s]))
        found.append(parts[start:stop])
        start = stop
    return found


def _complete(parts: tuple[str | float, ...]) -> bool:
    try:
        Formula(parts)
    except ValueError:
        return False
    return True


def well_posed(formula: Formula, low: np.ndarray, high: np.ndarray) -> bool:
    """Finite on 500 random points of the box; not nearly constant or linear; and every variable,
    held at its middle, changes y by more than 1 % of its spread.
    """
    x = np.random.default_rng(0).uniform(low[:, None], high[:, None], (len(low), 500))
    y = formula.evaluate(x)
    spread = float(np.std(y))
    if not np.isfinite(y).all() or spread <= 1e-3 * np.abs(y).max() or np.abs(y).max() > 1e5:
        return False
    design = np.concatenate([np.ones((1, 500)), x]).T
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    if np.std(rest) <= 0.03 * spread:
        return False
    for v in range(len(low)):
        held = x.copy()
        held[v] = (low[v] + high[v]) / 2
        change = formula.evaluate(held) - y
        if np.isfinite(change).all() and np.std(change) <= 0.01 * spread:
            return False
    return True


def _drawn(
    table: SkeletonTable, variables: int, lengths: range, seed: int
) -> Iterator[dict[str, object]]:
    """Well-posed random formulas that use all of `variables` columns, without end, the lengths in
    turn; no skeleton twice.
    """
    draw = jax.jit(
        lambda key, weights: draw_examples(key, table, 64, variables=variables, weights=weights)
    )
    every = length_weights(table, dict.fromkeys(lengths, 1.0))
    exactly = every * (np.arange(table.start.shape[1]) == variables - 1)[None]
    seen: set[tuple[str, ...]] = set()
    for attempt in range(2000):
        length = lengths[attempt % len(lengths)]
        only = exactly * (np.arange(len(exactly)) == length)[:, None]
        e = jax.device_get(draw(jax.random.fold_in(jax.random.key(seed), attempt), only))
        for i in np.flatnonzero(e.weight)[:3]:
            skeleton = decode(e.tokens[i])
            formula = _formula(e, i)
            x = e.x[i][:, e.mask[i]]
            low, high = np.round(x.min(axis=1), 3), np.round(x.max(axis=1), 3)
            used = {p for p in formula.parts if p in VARIABLES}
            if (
                skeleton.skeleton() in seen
                or len(used) < variables
                or not well_posed(formula, low, high)
            ):
                continue
            seen.add(skeleton.skeleton())
            box = {
                name: {"U": [round(float(a), 3), round(float(b), 3)]}
                for name, a, b in zip(VARIABLES, low, high, strict=False)
            }
            yield {
                "variables": variables,
                "length": length,
                "peels": peels(skeleton.parts),
                "expression": str(formula),
                "sampling": json.dumps(box),
            }


def make_tables(path: Path, *, seed: int = 20261130, count: int = 100) -> None:
    """`count` random formulas of 3 to 16 tokens for each of 2, 3 and 5 variables."""
    rows = []
    for variables in (2, 3, 5):
        table = build_table(60 * variables, seed=seed, variables=variables, chunk=4096, patience=2)
        drawn = _drawn(table, variables, range(2 * variables - 1, 17), seed + variables)
        rows += _first(drawn, count)
    _write(path, "table", rows)


def make_deep(path: Path, *, seed: int = 20261131, count: int = 200) -> None:
    """`count` formulas of 12 to 20 tokens in one variable and as many in two or three that need two
    or more undone operations, see `peels`.
    """
    rows = []
    for variables, wanted in ((1, count), (2, count // 2), (3, count - count // 2)):
        table = build_table(
            150 * variables, seed=seed, variables=variables, slots=20, chunk=4096, patience=2
        )
        drawn = _drawn(table, variables, range(12, 21), seed + variables)
        rows += _first((row for row in drawn if 2 <= float(str(row["peels"])) < math.inf), wanted)
    _write(path, "deep", rows)


def _first(rows: Iterator[dict[str, object]], count: int) -> list[dict[str, object]]:
    found = [row for row, _ in zip(rows, range(count), strict=False)]
    if len(found) < count:
        raise RuntimeError(f"only {len(found)} of {count} formulas were found")
    return found


def _write(path: Path, name: str, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow({"name": f"{name}-{i:03d}", **row})


def write_excluded(data: Path, target: Path) -> None:
    """Collect `excluded.txt` from the lists and the laws in the folder `data`."""
    lines = [
        "# Formulas that never enter training. Origin, then the formula. Made by "
        "experiments.lists.write_excluded."
    ]
    lines.append("running-example\tsin(x)/(1 + x**2)")
    for row in _rows(data / "suites.csv"):
        lines.append(f"{row['name']}\t{row['expression']}")
    for row in (*_rows(data / "problems.csv"), *_rows(data / "problems_tables.csv")):
        for form in (row["expression"], *row["accept"].split(";")):
            if form.strip():
                for k, (a, b, c) in enumerate(((1.0, 1.0, 1.0), (1.5, 0.7, 2.0), (2.0, 1.3, 0.5))):
                    names = {"a": repr(a), "b": repr(b), "c": repr(c), "d": "0.9"}
                    lines.append(f"{row['name']}-{k}\t{_substitute(form.strip(), names)}")
    for name in ("heldout.csv", "heldout_tables.csv", "deep.csv"):
        for row in _rows(data / name):
            lines.append(f"{row['name']}\t{row['expression']}")
    if target.exists():  # what was excluded once stays excluded
        lines += target.read_text(encoding="utf-8").splitlines()[1:]
    target.write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def _substitute(text: str, names: dict[str, str]) -> str:
    return re.sub(r"\b([a-d])\b", lambda m: names[m.group(1)], text)


if __name__ == "__main__":
    DATA = Path(__file__).parents[1] / "data"
    make_tables(DATA / "heldout_tables.csv")
    make_deep(DATA / "deep.csv")
    write_excluded(DATA, DATA.parent / "refinemath" / "excluded.txt")
