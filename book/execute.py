"""Run notebooks from top to bottom, keep the outputs, and bring both forms of each chapter
together.

    python book/execute.py [beginning of a name, for instance 05] ...

Without a name all notebooks are run.  Where the two forms differ, the newer one wins.
"""

import sys
import time
from pathlib import Path

import frame
import nbformat
from jupytext.cli import jupytext
from nbclient import NotebookClient

FOLDER = frame.ROOT / "notebooks"
SECONDS = 900  # the longest time that one cell may take


def execute(path: Path) -> None:
    jupytext(["--sync", "--quiet", str(path)])
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day would make every run a change
    place = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", record_timing=False, resources=place
    ).execute()
    nbformat.write(notebook, path)
    jupytext(["--sync", "--quiet", str(path)])


def main(beginnings: list[str]) -> None:
    frame.main()
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not beginnings or path.name.startswith(tuple(beginnings)):
            start = time.perf_counter()
            execute(path)
            print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
