"""`python -m experiments NAME` runs one experiment; without a name, all of results/README.md.

`python -m experiments --quick` goes through all of them with tiny sizes and writes nothing.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commands(text: str, *, quick: bool = False) -> list[list[str]]:
    """The arguments of `python` for every experiment that a text lists, each once."""
    found = dict.fromkeys(re.findall(r"`python -m experiments (\w+)([^`]*)`", text))
    kept = dict.fromkeys((name, "--quick" if quick else rest) for name, rest in found)
    return [["-m", "experiments", name, *shlex.split(rest)] for name, rest in kept]


def main() -> None:
    """Run one, or all; the first that fails ends it."""
    if len(sys.argv) > 1 and sys.argv[1].isidentifier():
        import_module(f"experiments.{sys.argv[1]}").EXPERIMENT.main(sys.argv[2:])
        return
    listed = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for command in commands(listed, quick="--quick" in sys.argv):
        print("python", shlex.join(command), flush=True)
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
