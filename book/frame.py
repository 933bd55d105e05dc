"""Write what every chapter has in common, and the address of the repository wherever it stands.

Every chapter has a Colab line under its title and a set-up cell.  The address of the repository and
that of the book are chosen in _config.yml, with the anchors &repository and &site; this script takes them from
there.  After they have changed, as in a fork, run

    python book/frame.py

It changes the text form and the executed form of every notebook, and keeps the outputs; and it
changes the lines of other files that `places` names.
"""

import json
import os
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TITLE = "#@title Set-up: installs `refinemath` if it is missing"
COLAB = re.compile(r"^\[Open this chapter in Colab\]\(\S*\)", re.MULTILINE)


def repository() -> str:
    """The address of the repository, for instance https://github.com/owner/name."""
    return _addresses()["repository"]


def site() -> str:
    """The address of the book, for instance https://owner.github.io/name/."""
    return _addresses()["site"]


def _addresses() -> dict[str, str]:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return config["parse"]["myst_substitutions"]


def places() -> dict[str, tuple[str, ...]]:
    """For every other file with an address: its lines, each known by what stands before `http`."""
    return {
        "CITATION.cff": (f"url: {site()}", f"repository-code: {repository()}"),
        "README.md": (
            f"    git clone {repository()}",
            f'    pip install "git+{repository()}"',
            f"[The book]({site()})",
        ),
        "book/citing.md": (f"  url          = {{{site()}}},",),
        "pyproject.toml": (f'Documentation = "{site()}"', f'Repository = "{repository()}"'),
        ".github/ISSUE_TEMPLATE/config.yml": (f"    url: {site()}",),
    }


def colab_link(name: str) -> str:
    """The link that opens the notebook `name`, for instance 05_newton_schulz, in Colab."""
    place = repository().removeprefix("https://github.com/")
    return f"[Open this chapter in Colab](https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}.ipynb)"


def setup_cell() -> str:
    """The first code cell of every chapter: finds or fetches the repository, goes to its notebooks,
    and says on what it runs.  Any state of the session will do: a first run, a second one, a
    restart.  Colab has all but two of the packages; nothing that it has is touched.
    """
    return f"""{TITLE} {{ display-mode: "form" }}
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = "{repository()}" #@param {{type:"string"}}
NEEDED = "jax", "flax", "scipy", "sympy", "matplotlib"
missing = [name for name in NEEDED if find_spec(name) is None]
assert not missing, (
    f"no {{missing}}; in a clone of {{REPOSITORY}}: "
    "pip install -r requirements.txt")
folders = Path("_").resolve().parents
book = next((f for f in folders if (f / "_toc.yml").is_file()), Path("book"))
if not book.is_dir():  # on Colab
    clone = ["git", "clone", "-q", "--depth", "1", REPOSITORY, "book"]
    subprocess.run(clone, check=True)
os.chdir(book / "notebooks")
if find_spec("refinemath") is None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    packages = ["..", "jaxtyping", "wadler-lindig"]
    subprocess.run([*pip, *packages], check=True)

import jax

kinds = ", ".join(device.device_kind for device in jax.devices())
print(f"JAX {{jax.__version__}} runs on: {{kinds}}")"""


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


def framed_place(text: str, file: str) -> str:
    """Another file with its addresses renewed."""
    for line in places()[file]:
        before, _, after = re.split(r"(https://[^\s)}\"]+)", line, maxsplit=1)
        pattern = rf"{re.escape(before)}https://[^\s)}}\"]+{re.escape(after)}"
        text, count = re.subn(pattern, lambda _, line=line: line, text)
        if count == 0:
            raise ValueError(f"{file}: no place for: {line}")
    return text


def main() -> None:
    work = [(ROOT / file, framed_place, file) for file in places()]
    for path in sorted(ROOT.glob("book/chapters/*.md")):
        work.append((path, framed_text, path.stem))
        work.append((ROOT / "notebooks" / f"{path.stem}.ipynb", framed_notebook, path.stem))
    for path, framed, name in work:
        if path.is_file():
            old = path.read_text(encoding="utf-8")
            new = framed(old, name)
            if new != old:
                times = path.stat()
                path.write_text(new, encoding="utf-8")
                # whichever form of a notebook was the newer one stays so
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
                print(f"renewed {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
