"""Write what every chapter has in common: the Colab line under its title, and its set-up cell.

The address of the repository stands in _config.yml and nowhere else; this script takes it from
there.  After the address has changed, run

    python book/frame.py

It changes the text form and the executed form of every notebook, and keeps the outputs.
"""

import json
import os
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TITLE = "#@title Set-up: installs `refinemath` only where it is missing"
COLAB = re.compile(r"^\[Open this chapter in Colab\]\(\S*\)", re.MULTILINE)


def repository() -> str:
    """The address of the repository, for instance https://github.com/owner/name."""
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]


def colab_link(name: str) -> str:
    """The link that opens the notebook `name`, for instance 05_newton_schulz, in Colab."""
    place = repository().removeprefix("https://github.com/")
    return f"[Open this chapter in Colab](https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}.ipynb)"


def setup_cell() -> str:
    """The first code cell of every chapter; it says on what it runs.  Colab has all but two of the
    packages; its JAX is left alone.
    """
    return f"""{TITLE} {{ display-mode: "form" }}
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("refinemath") is None:  # on Colab; on a laptop this cell does nothing
    subprocess.run(["git", "clone", "-q", "--depth", "1", "{repository()}", "book"], check=True)
    missing = ["./book", "jaxtyping", "wadler-lindig"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", *missing], check=True)
    os.chdir("book/notebooks")

import jax

print(f"JAX {{jax.__version__}} runs on: {{', '.join(device.device_kind for device in jax.devices())}}")"""


def framed_text(text: str, name: str) -> str:
    """The text form of a chapter with its Colab line and set-up cell renewed."""
    cell = re.compile(rf"^{re.escape(TITLE)}.*?(?=\n```$)", re.MULTILINE | re.DOTALL)
    for pattern, new in ((COLAB, colab_link(name)), (cell, setup_cell())):
        text, count = pattern.subn(lambda _, new=new: new, text, count=1)
        if count == 0:
            raise ValueError(f"{name}: no place for: {new.splitlines()[0]}")
    return text


def framed_notebook(text: str, name: str) -> str:
    """The executed form of a chapter, likewise."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        new = (
            setup_cell()
            if source.startswith(TITLE)
            else COLAB.sub(lambda _: colab_link(name), source)
        )
        if new != source:
            cell["source"] = new.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for path in sorted(ROOT.glob("book/chapters/*.md")):
        notebook = ROOT / "notebooks" / f"{path.stem}.ipynb"
        for file, framed in ((path, framed_text), (notebook, framed_notebook)):
            if file.is_file():
                old = file.read_text(encoding="utf-8")
                new = framed(old, path.stem)
                if new != old:
                    times = file.stat()
                    file.write_text(new, encoding="utf-8")
                    os.utime(
                        file, ns=(times.st_atime_ns, times.st_mtime_ns)
                    )  # whichever form was the newer one stays so
                    print(f"renewed {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
