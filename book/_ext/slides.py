"""Slides for every chapter, made from the executed notebook, and a button on the chapter's page
that opens them.

    python book/_ext/slides.py [folder of the built pages]

Sphinx runs it at the end of each build.  Every second-level heading starts a new column of slides.
On the slides stand formulas, tables, takeaways, code, all figures, and the first sentence of each
paragraph; the full text goes into the speaker notes (press S).  Solutions are left out, and
the answers of the quiz appear on a click.  Everything is served from the book's own _static folder.
"""

import html
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = ("References", "Next")
DETAILS = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
FORMATTER = HtmlFormatter(style="friendly", nowrap=True)

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{title} (slides)</title>
<link rel="icon" href="../_static/favicon.svg">
<link rel="stylesheet" href="../_static/reveal/reset.css">
<link rel="stylesheet" href="../_static/reveal/reveal.css">
<link rel="stylesheet" href="../_static/slides.css">
<style>{code_style}</style>
<script src="../_static/reveal/reveal.js" defer></script>
<script src="../_static/reveal/notes.js" defer></script>
<script src="../_static/slides.js" defer></script>
<script src="../_static/mathjax/tex-chtml-full.js" defer></script>
</head>
<body>
<main class="reveal"><div class="slides">
{slides}
</div></main>
</body>
</html>
"""


def make_markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    dollarmath_plugin(markdown, double_inline=True, renderer=typeset)
    return markdown


def typeset(source: str, options: dict[str, Any]) -> str:
    left, right = (r"\[", r"\]") if options["display_mode"] else (r"\(", r"\)")
    return f"{left}{html.escape(source)}{right}"


@dataclass
class Slide:
    """What is seen, and what the speaker reads.  A paragraph has a short form for slides with code
    or a figure.
    """

    body: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, part: str, short: str = "") -> None:
        self.body.append(part)
        self.short.append(short or part)

    @property
    def words_only(self) -> bool:
        return not any(re.search("<(pre|table|figure|div)", part) for part in self.body)

    def html(self) -> str:
        seen = self.body if self.words_only and len("".join(self.body)) < 700 else self.short
        notes = f'\n<aside class="notes">{"".join(self.notes)}</aside>' if self.notes else ""
        return f"<section>\n<div class='sheet'>{''.join(seen)}</div>{notes}\n</section>"


def links(text: str) -> str:
    """Links between notebooks lead to the pages of the book."""
    return re.sub(r"\]\((?!https?:)([\w./-]+)\.ipynb", r"](../notebooks/\1.html", text)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The blocks of a markdown text with their kind: heading, paragraph, math, table, list, quote,
    code or html.
    """
    kinds = {
        "heading_open": "heading",
        "paragraph_open": "paragraph",
        "math_block": "math",
        "table_open": "table",
        "bullet_list_open": "list",
    }
    kinds |= {
        "ordered_list_open": "list",
        "blockquote_open": "quote",
        "fence": "code",
        "code_block": "code",
        "html_block": "html",
    }
    source = text.splitlines()
    for token in make_markdown().parse(text):
        if token.level == 0 and token.map and token.type in kinds:
            yield kinds[token.type], "\n".join(source[slice(*token.map)]).strip()


def output_html(cell: dict[str, Any]) -> list[str]:
    """The stored outputs of a cell, the richest form of each."""
    shown = []
    options = cell["metadata"].get("mystnb", {})
    for output in cell["outputs"]:
        data = {
            kind: "".join(value) if isinstance(value, list) else value
            for kind, value in output.get("data", {}).items()
        }
        if output["output_type"] == "stream":
            shown.append(f"<pre class='output'>{html.escape(''.join(output['text']))}</pre>")
        elif "text/html" in data:
            shown.append(f"<div class='rich'>{data['text/html']}</div>")
        elif "image/png" in data:
            alt = html.escape(options.get("image", {}).get("alt", ""), quote=True)
            caption = make_markdown().renderInline(options.get("figure", {}).get("caption", ""))
            picture = f"<img alt='{alt}' src='data:image/png;base64,{data['image/png'].strip()}'>"
            shown.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
        elif "text/latex" in data:
            shown.append(f"<div class='formula'>{make_markdown().render(data['text/latex'])}</div>")
        elif "text/plain" in data:
            shown.append(f"<pre class='output'>{html.escape(data['text/plain'])}</pre>")
    return shown


def code_parts(cell: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What of a code cell is seen, and what goes into the notes: a figure hides the code that drew
    it.
    """
    source = "".join(cell["source"])
    tags = cell["metadata"].get("tags", [])
    if "hide-cell" in tags or source.startswith("#@title"):
        return [], []
    shown = output_html(cell)
    code = f"<pre class='code'><code>{highlight(source, PythonLexer(), FORMATTER)}</code></pre>"
    drawn = "plt." in source or "vis." in source or "HTML(" in source
    hidden = "hide-input" in tags or (
        drawn and any("<figure>" in part or "class='rich'" in part for part in shown)
    )
    return (shown, [code]) if hidden else ([code, *shown], [])


class Deck:
    """The slides of one chapter: columns, and in each column the slides of one section."""

    def __init__(self, cells: list[dict[str, Any]], link: str) -> None:
        self.markdown = make_markdown()
        self.link = link
        self.title = ""
        self.section = ""
        self.columns: list[list[Slide]] = []
        self.full = False  # whether the newest slide already holds a cell
        for cell in cells:
            if cell["cell_type"] == "code":
                self.code(cell)
            else:
                for piece in re.split(
                    r"^(?=##+ )", links("".join(cell["source"])), flags=re.MULTILINE
                ):
                    self.text(piece)

    @property
    def slide(self) -> Slide:
        return self.columns[-1][-1]

    def start(self, part: str = "", *, column: bool = False) -> None:
        """A new slide, below the last one or in a column of its own."""
        if column:
            self.columns.append([])
        self.columns[-1].append(Slide())
        self.full = False
        if part:
            self.slide.add(part)

    def code(self, cell: dict[str, Any]) -> None:
        seen, notes = code_parts(cell)
        if self.section in ("", *SKIPPED, "Exercises", "Quiz") or not seen:
            return
        if (
            self.full
            or len(self.slide.body) > 4
            or any("<table>" in part for part in self.slide.body)
        ):
            self.start()
        for part in seen:
            self.slide.add(part)
        self.slide.notes += notes
        self.full = True

    def text(self, text: str) -> None:
        if not self.title:
            self.opening(text)
            return
        heading = re.match(r"(##+) (.*)", text)
        if heading:
            level = len(heading[1])
            if level == 2:
                self.section = heading[2].strip()
            if self.section in SKIPPED:
                return
            self.start(
                f"<h{level}>{self.markdown.renderInline(heading[2])}</h{level}>", column=level == 2
            )
            text = text.partition("\n")[2]
        if self.section == "Quiz":
            self.quiz(text)
        elif self.section not in SKIPPED:
            for kind, source in blocks(DETAILS.sub("", text)):
                self.block(kind, source)

    def opening(self, text: str) -> None:
        """The first cell of a chapter: its question, and its goals."""
        self.title = text.partition("\n")[0].removeprefix("# ")
        question = self.markdown.renderInline(self.title)
        self.start(
            f"<p class='book'>RefineMath</p><h1>{question}</h1><p><a href='{self.link}'>the "
            "chapter</a></p>",
            column=True,
        )
        goals = "\n".join(source for kind, source in blocks(text) if kind == "list")
        self.start(f"<h2>After this chapter you can</h2>{self.markdown.render(goals)}")
        self.slide.notes.append(self.markdown.render(text))

    def block(self, kind: str, source: str) -> None:
        if kind == "paragraph":
            takeaway = re.fullmatch(r"\*\*.+\*\*", source, re.DOTALL)
            if source.startswith(("**References", "**Next")):
                return
            if (self.full and not takeaway) or re.match(r"\*\*\d+ \(", source):
                self.start()
            if takeaway:
                self.slide.add(f"<p class='takeaway'>{self.markdown.renderInline(source)}</p>")
                return
            short = self.markdown.renderInline(source.splitlines()[0])
            self.slide.add(f"<p>{self.markdown.renderInline(source)}</p>", f"<p>{short}</p>")
            self.slide.notes.append(self.markdown.render(source))
        elif kind in ("math", "table", "list", "quote", "code"):
            if self.full:
                self.start()
            self.slide.add(self.markdown.render(source))

    def quiz(self, text: str) -> None:
        """A question for each slide; the answer comes with a click."""
        questions = re.findall(r"^\*\*(\d\. .*?)\*\*$", text, re.MULTILINE | re.DOTALL)
        answers = DETAILS.findall(text)
        asked = questions or [summary for summary, _ in answers]
        for question, (_, answer) in zip(asked, answers, strict=True):
            self.start(
                f"<h3>{self.markdown.renderInline(question)}</h3><div "
                f"class='fragment'>{self.markdown.render(answer)}</div>"
            )

    def html(self) -> str:
        columns = [[slide.html() for slide in column if slide.body] for column in self.columns]
        return "\n".join(f"<section>\n{chr(10).join(column)}\n</section>" for column in columns)


def write_slides(site: Path) -> list[Path]:
    """One file for each notebook, in the folder slides of the built book; pages that no longer have
    a notebook go.
    """
    folder = site / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.html"):
        old.unlink()
    written = []
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        deck = Deck(cells, f"../notebooks/{path.stem}.html")
        target = folder / f"{path.stem}.html"
        style = FORMATTER.get_style_defs(".code")
        target.write_text(
            PAGE.format(title=html.escape(deck.title), slides=deck.html(), code_style=style),
            encoding="utf-8",
        )
        written.append(target)
    return written


def add_button(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    folder, _, name = pagename.rpartition("/")
    if folder == "notebooks" and "header_buttons" in context:
        button = {
            "type": "link",
            "url": f"../slides/{name}.html",
            "icon": "fas fa-display",
            "label": "slides",
            "tooltip": "Slides of this chapter",
        }
        context["header_buttons"].append(button)


def after_build(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html":
        write_slides(Path(app.outdir))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", add_button, priority=501)
    app.connect("build-finished", after_build)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    for page in write_slides(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "html"):
        print(page)
