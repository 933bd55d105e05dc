"""What a chapter's slides show, what they leave to the speaker, and what they keep back."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book" / "_ext"))
from slides import Deck

GOALS = "# Why?\n\n**After this chapter you can**\n\n1. see $x^2$;"
QUIZ = "## Quiz\n\n**1. Is it so?**\n\n<details><summary>Answer</summary>\n\nIt is.\n\n</details>\n\n## References\n\n* A book."


def text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": [source]}


def code(source: str, *tags: str, output: str = "") -> dict[str, Any]:
    outputs = [{"output_type": "stream", "name": "stdout", "text": [output]}] if output else []
    return {
        "cell_type": "code",
        "metadata": {"tags": list(tags)},
        "source": [source],
        "outputs": outputs,
    }


def deck(*cells: dict[str, Any]) -> str:
    return Deck([text(GOALS), *cells], "../notebooks/x.html").html()


def test_title_and_goals() -> None:
    page = deck()
    assert "<h1>Why?</h1>" in page
    assert r"\(x^2\)" in page


def test_each_section_is_a_column() -> None:
    assert (
        deck(text("## One\n\nA.\n\n### Deeper\n\nB.\n\n## Two\n\nC.")).count("<section>\n<section>")
        == 3
    )


def test_beside_code_a_paragraph_is_its_first_sentence_and_the_notes_have_the_rest() -> None:
    seen, notes = deck(text("## One\n\nFirst.\nSecond."), code("y = 1", output="7")).split(
        '<aside class="notes">'
    )[-2:]
    shown = seen.rsplit("<h2>One</h2>", 1)[-1]
    assert "First." in shown
    assert "Second." not in shown
    assert "Second." in notes


@pytest.mark.parametrize(
    ("tags", "seen"), [((), True), (("hide-input",), False), (("hide-cell",), False)]
)
def test_hidden_code_stays_hidden(tags: tuple[str, ...], seen: bool) -> None:
    slide = deck(text("## One"), code("secret = 1", *tags, output="7")).rpartition("<h2>One</h2>")[
        2
    ]
    assert ("secret" in slide.partition("<aside")[0]) == seen


def test_solutions_and_references_are_left_out_and_answers_wait_for_a_click() -> None:
    page = deck(
        text("## Exercises\n\n### Exercise 1\n\nDo it."),
        code("solution = 1", output="7"),
        text(QUIZ),
    )
    assert "Do it." in page
    assert "solution" not in page
    assert "A book." not in page
    assert "<div class='fragment'><p>It is.</p>" in page


def test_links_between_notebooks_lead_to_pages() -> None:
    assert '<a href="../notebooks/02_data.html">' in deck(
        text("## One\n\nSee [two](02_data.ipynb).")
    )
