"""Both forms of every chapter: the executed notebook and its text must be one and the same,
complete and of the right size.

The rules are those of the book itself: what a chapter contains, how long it is, and which of its
outputs may differ from machine to machine.  nbval, in `make notebooks-test`, compares the outputs.
"""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))
import frame  # noqa: E402

NAMES = sorted(
    {
        path.stem
        for folder, end in (("notebooks", "ipynb"), ("book/chapters", "md"))
        for path in ROOT.glob(f"{folder}/*.{end}")
    }
)
FIRST_EDITION = {  # to be rewritten with the next network; their cells are still long
    "03_encoder",
    "04_refiner",
    "06_training",
    "07_halting",
    "08_decoding",
    "09_aha",
}
IGNORED = "nbval-ignore-output"
MAGIC = re.compile(r"^\s*[%!].*$", re.MULTILINE)

pytestmark = pytest.mark.filterwarnings("ignore")  # those of jupytext and nbformat are not ours


def executed(name: str) -> NotebookNode:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def text(name: str) -> NotebookNode:
    return jupytext.read(ROOT / "book" / "chapters" / f"{name}.md")


def code_cells(name: str) -> list[NotebookNode]:
    return [cell for cell in executed(name).cells if cell.cell_type == "code"]


def head(cell: NotebookNode) -> str:
    """How a message names a cell."""
    return next((line for line in cell.source.splitlines() if line.strip()), "")[:70]


def content(cell: NotebookNode) -> tuple[str, str, list[str], dict]:
    """What both forms of a cell must share."""
    return (
        cell.cell_type,
        cell.source.strip(),
        sorted(cell.metadata.get("tags", [])),
        dict(cell.metadata.get("mystnb", {})),
    )


def lines(cell: NotebookNode) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def tree(cell: NotebookNode) -> ast.Module:
    return ast.parse(MAGIC.sub("pass", cell.source))


def shows(cell: NotebookNode) -> bool:
    """Whether a cell must leave an output: it prints or shows at its top level, or ends with a
    value.
    """
    body = tree(cell).body
    calls = [
        ast.unparse(step.value.func)
        for step in body
        if isinstance(step, ast.Expr) and isinstance(step.value, ast.Call)
    ]
    last = body[-1] if body else None
    value = (
        isinstance(last, ast.Expr)
        and not isinstance(last.value, ast.Call | ast.Constant)
        and not cell.source.rstrip().endswith(";")
    )
    return value or "print" in calls or "plt.show" in calls


def pictures(cell: NotebookNode) -> int:
    return sum(
        kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})
    )


def test_there_are_chapters() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_hold_the_same_cells(name: str) -> None:
    notebook, page = executed(name).cells, text(name).cells
    for i, (a, b) in enumerate(zip(notebook, page, strict=False)):
        assert content(a) == content(b), f"cell {i} differs; run: make notebooks"
    assert len(notebook) == len(page)


@pytest.mark.parametrize("name", NAMES)
def test_it_was_run_from_top_to_bottom(name: str) -> None:
    assert [cell.execution_count for cell in code_cells(name)] == list(
        range(1, len(code_cells(name)) + 1)
    )


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_complete_and_clean(name: str) -> None:
    for cell in code_cells(name):
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds, f"an error is stored: {head(cell)}"
        assert not any(output.get("name") == "stderr" for output in cell.outputs), (
            f"a warning is stored: {head(cell)}"
        )
        assert cell.outputs or not shows(cell), f"no output is stored: {head(cell)}"


@pytest.mark.parametrize("name", NAMES)
def test_size(name: str) -> None:
    sizes = sorted(lines(cell) for cell in code_cells(name)[1:])  # without the set-up cell
    words = sum(
        len(cell.source.split()) for cell in executed(name).cells if cell.cell_type == "markdown"
    )
    assert 19 <= len(sizes) <= 50
    assert statistics.median(sizes) <= 6
    assert sizes[int(0.9 * len(sizes))] <= 18
    assert sizes[-1] <= (35 if name in FIRST_EDITION else 25)
    assert 1500 <= words <= 3000


@pytest.mark.parametrize("name", sorted(set(NAMES) - FIRST_EDITION))
def test_no_line_of_code_is_cut_off(name: str) -> None:
    """The page shows 79 characters."""
    wide = [line for cell in code_cells(name) for line in cell.source.splitlines()]
    assert [line for line in wide if len(line) > 79] == []


@pytest.mark.parametrize("name", NAMES)
def test_parts(name: str) -> None:
    """The title is a question; goals, recap, exercises and references are there."""
    prose = "\n\n".join(
        cell.source for cell in executed(name).cells if cell.cell_type == "markdown"
    )
    assert re.match(r"# .+\?\n", prose)
    for part in (
        "**Time:**",
        "**You need:**",
        "**After this chapter you can**",
        "**Recap.**",
        "## Exercises",
        "<summary>",
    ):
        assert part in prose, f"{part} is missing"


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_alt_text_and_caption(name: str) -> None:
    for cell in code_cells(name):
        if pictures(cell):
            options = cell.metadata.get("mystnb", {})
            assert len(options.get("image", {}).get("alt", "")) > 20, f"no alt text: {head(cell)}"
            assert options.get("figure", {}).get("caption"), f"no caption: {head(cell)}"
    for cell in executed(name).cells:
        assert cell.cell_type == "code" or not re.search(r"!\[\s*\]\(", cell.source), (
            f"no alt text: {head(cell)}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_whose_output_is_ignored_asserts_something(name: str) -> None:
    ignored = [cell for cell in code_cells(name) if IGNORED in cell.metadata.get("tags", [])]
    assert [
        head(cell)
        for cell in ignored
        if not any(isinstance(node, ast.Assert) for node in ast.walk(tree(cell)))
    ] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_frame_is_the_common_one(name: str) -> None:
    notebook = executed(name)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source == frame.setup_cell(), "run: python book/frame.py"
    assert frame.colab_link(name) in notebook.cells[0].source, "run: python book/frame.py"


def test_the_addresses_stand_in_one_place() -> None:
    """Outside _config.yml they may stand only in what book/frame.py writes."""
    address = frame.repository().removeprefix("https://")
    place, site = address.removeprefix("github.com/"), frame.site().removeprefix("https://")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = {}
    for file in listed.splitlines():
        path = ROOT / file
        if not path.is_file() or path.suffix in {".png", ".svg", ".npz", ".npy", ".woff", ".gif"}:
            continue
        words = path.read_text(encoding="utf-8", errors="ignore").replace('\\"', '"')
        written = (*frame.places().get(file, ()), *frame.setup_cell().splitlines())
        for line in (*written, frame.colab_link(path.stem)):
            words = words.replace(line, "")
        hits = words.count(address) + words.count(f"github/{place}") + words.count(site)
        if hits:
            found[file] = hits
    assert found == {"_config.yml": 2}


def test_the_table_of_contents_lists_every_chapter() -> None:
    listed = re.findall(
        r"notebooks/(\w+)",
        yaml.safe_dump(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))),
    )
    assert sorted(listed) == NAMES
