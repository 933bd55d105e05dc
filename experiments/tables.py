"""Write the tables of README.md and of the model card from their records; `--check` only says
whether they are up to date.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; nobody edits it by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {
    "refinemath": "RefineMath",
    "null-edits": "without the network",
    "no-sweep": "without short formulas",
    "no-edits": "the network's draws alone",
    "null": "blind draws alone",
}
PARTS = {
    "suites": "benchmark formulas",
    "heldout": "held-out formulas of 3 to 12 tokens",
    "noise": "held-out formulas with 1 % noise",
    "real": "real data, textbook form",
}


def evaluation(record: dict[str, Any]) -> str:
    """Recovered problems of every part and system, and the median seconds of a solve."""
    results = record["results"]
    parts = [p for p in PARTS if any(f"{s}/{p}" in results for s in SYSTEMS)]
    lines = [
        "| recovered | " + " | ".join(SYSTEMS.values()) + " |",
        "|---|" + "---|" * len(SYSTEMS),
    ]

    def cell(system: str, part: str) -> str:
        one, ours = results.get(f"{system}/{part}"), results[f"refinemath/{part}"]
        if one is None:
            return "not run"
        count = f"{one['summary']['recovered']} of {one['summary']['problems']}"
        if one["summary"]["problems"] == ours["summary"]["problems"]:
            return count
        names = {r["name"] for r in one["records"]}
        return f"{count} (RefineMath {sum(r['recovered'] for r in ours['records'] if r['name'] in names)})"

    for part in parts:
        lines.append(f"| {PARTS[part]} | " + " | ".join(cell(s, part) for s in SYSTEMS) + " |")
    seconds = [
        results[f"{s}/heldout"]["summary"]["seconds_median"] if f"{s}/heldout" in results else None
        for s in SYSTEMS
    ]
    lines.append(
        "| median seconds, held-out | "
        + " | ".join("not run" if s is None else f"{s:.1f}" for s in seconds)
        + " |"
    )
    rest = results["refinemath/heldout"]["summary"]
    origins = [
        results[f"{s}/{p}"]["origin"] for s in SYSTEMS for p in PARTS if f"{s}/{p}" in results
    ]
    budgets = " or ".join(dict.fromkeys(f"{o['time_budget']:g} s" for o in origins))
    dates = ", ".join(dict.fromkeys(o["date"] for o in origins))
    text = f"Measured on {dates} with `python -m refinemath evaluate`: {budgets} a problem, two CPU cores.  Commands and commits: `results/evaluation.json`."
    text += "\nWhere a column met fewer problems, the count of RefineMath on the same ones stands in brackets."
    still = f"On the held-out problems {rest['settled']:.0%} of the thoughts settled under the threshold of 1e-5 within 32 steps; "
    return "\n".join(
        [*lines, "", text, still + f"on {rest['converged']:.0%} of the problems all of them did."]
    )


def scores(record: dict[str, Any]) -> str:
    """One line for the model card: what the weights recover, with which clock, and when it was
    measured.
    """
    results, said = record["results"], []
    for part, text in PARTS.items():
        one = results[f"refinemath/{part}"]["summary"]
        said.append(f"{one['recovered']} of {one['problems']} {text}")
    origin = results["refinemath/heldout"]["origin"]
    return f"* **Scores**: {', '.join(said)}; {origin['time_budget']:g} s a problem on two CPU cores, {origin['date']}, at commit {origin['commit']}."


def clock(record: dict[str, Any]) -> str:
    """One line: how long a first formula takes, on a new machine, in a later process and where the
    search is compiled already.
    """
    fresh, warm = record["fresh process"], record["solve"]["warm answer"]
    seconds = [
        fresh[name]["value"] for name in ("first formula on a machine", "first formula later")
    ]
    return (
        f"On two CPU cores the first formula stood after {seconds[0]:.1f} s, {seconds[1]:.1f} s "
        "in later processes, Python's imports included; from then on "
        f"the median answer to clean data took {warm['value']:.1f} s (`results/profile.json`)."
    )


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "evaluation": ("evaluation.json", evaluation),
    "scores": ("evaluation.json", scores),
    "clock": ("profile.json", clock),
}
TEXTS = (ROOT / "README.md", ROOT / "refinemath" / "weights" / "refinemath-512.md")


def filled(text: str) -> str:
    """The text with every table made anew."""

    def table(match: re.Match[str]) -> str:
        file, make = TABLES[match.group(1)]
        record = json.loads((ROOT / "results" / file).read_text(encoding="utf-8"))
        return f"<!-- table: {match.group(1)} -->\n{make(record)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> int:
    """0 if the texts hold the tables of their records, after writing them unless only checking."""
    stale = 0
    for path in TEXTS:
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if old != new and "--check" not in sys.argv:
            path.write_text(new, encoding="utf-8")
        else:
            stale += old != new
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main())
