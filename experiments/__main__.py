"""Measure everything anew: the commands that results/README.md lists, one after the other; what is
in runs/ is not done again.

`python -m experiments --quick` goes through all of them with tiny sizes, in minutes, and writes
nothing.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commands(text: str, *, quick: bool = False) -> list[list[str]]:
    """The arguments of `python` for every experiment that a text lists, each once."""
    listed = re.findall(r"`python -m (experiments\.\w+)([^`]*)`", text)
    return [
        list(c)
        for c in dict.fromkeys(
            ("-m", module, *(["--quick"] if quick else shlex.split(options)))
            for module, options in listed
        )
    ]


def main() -> None:
    """Run them; the first that fails ends it."""
    for command in commands(
        (ROOT / "results" / "README.md").read_text(encoding="utf-8"), quick="--quick" in sys.argv
    ):
        print("python", shlex.join(command), flush=True)
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
