"""A golden test of the whole search: eight held-out problems, one search each, one seed.

On the machine that made `golden.json` every search must end with the same skeleton in the same
number of steps; elsewhere, where sums round otherwise, as many must be solved, give or take one.
After a change that is meant to change the search: `python tests/test_golden.py` writes it anew.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import pytest

from refinemath import RefineMath
from refinemath.evaluation import heldout_problems
from refinemath.expression import decode

FILE = Path(__file__).with_name("golden.json")
DATA = Path(__file__).parents[1] / "data"
EVERY = 36  # of 287
SOLVED = 1e-9
FACTOR = 1.5  # in FVU, where the formula is not exact


def machine() -> dict[str, str]:
    """All that how a sum is rounded may depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return {
        "platform": f"{platform.system()} {platform.machine()} {' '.join(sorted(names))}",
        "jax": f"{jax.__version__} {jaxlib.__version__} {jax.default_backend()}",
    }


def searches() -> dict[str, dict[str, Any]]:
    """What one search finds in each of the problems."""
    model, found = RefineMath(), {}
    for problem in heldout_problems(DATA / "heldout.csv", every=EVERY):
        result = model.solve(problem.x, problem.y, searches=1, seed=0)
        assert result.searches == 1 and result.outcome is not None
        pool = result.outcome.pool
        best = decode(np.asarray(pool.tokens[0]), np.asarray(pool.values[0]))
        found[problem.name] = {
            "skeleton": " ".join(best.skeleton()),
            "fvu": float(f"{float(pool.fvu[0]):.3g}"),
            "steps": int(result.outcome.searched),
        }
    return found


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    return searches()


def test_the_same_problems_are_solved(
    golden: dict[str, Any], found: dict[str, dict[str, Any]]
) -> None:
    assert found.keys() == golden["searches"].keys() and len(found) == 8
    counts = [sum(s["fvu"] < SOLVED for s in them.values()) for them in (found, golden["searches"])]
    assert abs(counts[0] - counts[1]) <= 1 and counts[1] >= 3


def test_every_search_is_the_same_on_the_same_machine(
    golden: dict[str, Any], found: dict[str, dict[str, Any]]
) -> None:
    if machine() != golden["machine"]:
        pytest.skip(f"golden.json was made on {golden['machine']}, this is {machine()}")
    for name, was in golden["searches"].items():
        now = found[name]
        assert (now["skeleton"], now["steps"]) == (was["skeleton"], was["steps"]), name
        low, high = sorted((max(now["fvu"], 1e-11), max(was["fvu"], 1e-11)))
        assert high <= FACTOR * low, name


if __name__ == "__main__":
    record = {
        "command": "python tests/test_golden.py",
        "machine": machine(),
        "searches": searches(),
    }
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.exit(0)
