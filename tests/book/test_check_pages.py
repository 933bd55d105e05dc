"""The checker must find each kind of defect in a small book, and none in a sound one."""

from pathlib import Path

import pytest
from check_pages import check

SOUND = """<html><body><h1 id="top">A</h1><a href="b.html#there">b</a><a href="#top">up</a>
<img src="dot.png" alt="A dot."><a href="https://example.org/">out</a></body></html>"""


def book(
    folder: Path, body: str = SOUND, toc: str = "root: a\nchapters:\n- file: b.ipynb\n"
) -> list[str]:
    (folder / "a.html").write_text(body)
    (folder / "b.html").write_text('<html><body><h1 id="there">B</h1></body></html>')
    (folder / "dot.png").write_bytes(b"")
    (folder / "_toc.yml").write_text(toc)
    return check(folder, folder / "_toc.yml")


def test_a_sound_book_has_no_defects(tmp_path: Path) -> None:
    assert book(tmp_path) == []


def test_a_missing_chapter_is_found(tmp_path: Path) -> None:
    toc = "root: a\nparts:\n- chapters:\n  - file: b\n    sections:\n    - file: notebooks/c\n"
    assert book(tmp_path, toc=toc) == ["notebooks/c: stands in _toc.yml but its page was not built"]


@pytest.mark.parametrize(
    ("body", "defect"),
    [
        ('<a href="c.html">c</a>', "link to c.html, a file that does not exist"),
        ('<a href="b.html#here">b</a>', "link to b.html#here, an anchor that does not exist"),
        (
            '<meta http-equiv="Refresh" content="0; url=c.html">',
            "link to c.html, a file that does not exist",
        ),
        ('<img src="dot.png">', "picture dot.png has no alt text"),
        ('<img src="no.png" alt="No.">', "needs no.png, a file that does not exist"),
        (
            '<script src="https://example.org/x.js"></script>',
            "fetches https://example.org/x.js from another host",
        ),
        ('<link rel="stylesheet" href="no.css">', "needs no.css, a file that does not exist"),
        ("<p>See {cite}`x`.</p>", "raw markup in the text: '{cite}`'"),
        ("<p>As {{ ch05 }} shows.</p>", "raw markup in the text: '{{ '"),
    ],
)
def test_each_defect_is_named(tmp_path: Path, body: str, defect: str) -> None:
    assert book(tmp_path, body=body) == [f"a.html: {defect}"]


def test_markup_inside_code_is_left_alone(tmp_path: Path) -> None:
    assert book(tmp_path, body="<pre>{cite}`x`</pre>") == []


def test_a_style_sheet_must_find_its_fonts(tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text("@font-face { src: url('no.woff2') }")
    assert book(tmp_path) == ["x.css: needs no.woff2, a file that does not exist"]
