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

    def cell(system: str, part: str) -> str:
        one, ours = results.get(f"{system}/{part}"), results[f"refinemath/{part}"]
        if one is None:
            return "not run"
        count = f"{one['summary']['recovered']} of {one['summary']['problems']}"
        if one["summary"]["problems"] == ours["summary"]["problems"]:
            return count
        names = {r["name"] for r in one["records"]}
        same = sum(r["recovered"] for r in ours["records"] if r["name"] in names)
        return f"{count} (RefineMath {same})"

    def seconds(system: str) -> str:
        one = results.get(f"{system}/heldout")
        return "not run" if one is None else f"{one['summary']['seconds_median']:.1f}"

    rows = [["recovered", *SYSTEMS.values()], []]
    rows += [[PARTS[part], *(cell(s, part) for s in SYSTEMS)] for part in parts]
    rows.append(["median seconds, held-out", *map(seconds, SYSTEMS)])
    origins = [
        results[f"{s}/{p}"]["origin"] for s in SYSTEMS for p in PARTS if f"{s}/{p}" in results
    ]
    clocks = " or ".join(dict.fromkeys(f"{o['time_budget']:g} s" for o in origins))
    dates = ", ".join(dict.fromkeys(o["date"] for o in origins))
    rest = results["refinemath/heldout"]["summary"]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines[1] = "|" + "---|" * (len(SYSTEMS) + 1)
    return "\n".join(lines) + (
        f"\n\nMeasured on {dates} with `python -m refinemath evaluate`: {clocks} a problem, two "
        "CPU cores.  Commands and commits: `results/evaluation.json`.\nWhere a column met fewer "
        "problems, the count of RefineMath on the same ones stands in brackets.\nOn the held-out "
        f"problems {rest['settled']:.0%} of the thoughts settled under the threshold of 1e-5 "
        f"within 32 steps; on {rest['converged']:.0%} of the problems all of them did."
    )


def scores(record: dict[str, Any]) -> str:
    """One line for the model card: what the weights recover, at which clock, and when."""
    results, said = record["results"], []
    for part, text in PARTS.items():
        one = results[f"refinemath/{part}"]["summary"]
        said.append(f"{one['recovered']} of {one['problems']} {text}")
    o = results["refinemath/heldout"]["origin"]
    measured = f"{o['time_budget']:g} s a problem on two CPU cores, {o['date']}, at commit"
    return f"* **Scores**: {', '.join(said)}; {measured} {o['commit']}."


def clock(record: dict[str, Any]) -> str:
    """One line: how long a first formula takes, now, later, and when all is compiled."""
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
    texts = {path: path.read_text(encoding="utf-8") for path in TEXTS}
    stale = {path: filled(old) for path, old in texts.items() if filled(old) != old}
    if "--check" in sys.argv:
        return int(bool(stale))
    for path, new in stale.items():
        path.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
