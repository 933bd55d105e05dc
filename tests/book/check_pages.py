"""Check a built book on disk: pages, links, anchors, pictures and served files.

    python tests/book/check_pages.py [folder of the built pages] [_toc.yml]

It fails, and names each defect, when
  * a page of the table of contents was not built,
  * a link inside the book leads to no file or to no anchor,
  * a picture has no alt text or does not exist,
  * a script, style sheet, font or picture is missing, or would be fetched from another host,
  * markup of the source shows up in the text, such as an unresolved role.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

RAW_MARKUP = re.compile(r"\{(?:cite|ref|numref|doc|term|eq)(?::\w+)?\}`|^:::|\{\{ ", re.MULTILINE)


class Page(HTMLParser):
    """What one HTML file offers (its ids) and what it asks for (links and files)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.files: list[str] = []
        self.pictures_without_alt: list[str] = []
        self.prose: list[str] = []
        self._verbatim = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("pre", "code", "script", "style"):
            self._verbatim += 1
        for key in ("id", "name"):
            if values.get(key) and (key == "id" or tag == "a"):
                self.ids.add(values[key] or "")
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")
        if tag == "meta" and (values.get("http-equiv") or "").lower() == "refresh":
            self.links.append((values.get("content") or "").partition("url=")[2])
        if tag == "link" and set((values.get("rel") or "").split()) & {
            "stylesheet",
            "icon",
            "preload",
        }:
            self.files.append(values.get("href") or "")
        if tag in ("img", "script", "source", "video", "audio", "iframe", "embed") and values.get(
            "src"
        ):
            self.files.append(values["src"] or "")
        if tag == "object" and values.get("data"):
            self.files.append(values["data"] or "")
        if tag == "img" and not self._has_alt(values):
            self.pictures_without_alt.append(values.get("src") or "(no src)")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("pre", "code", "script", "style"):
            self._verbatim -= 1

    def handle_data(self, data: str) -> None:
        if self._verbatim == 0:
            self.prose.append(data)

    @staticmethod
    def _has_alt(values: dict[str, str | None]) -> bool:
        """A picture without alt text is allowed only where words stand beside it: the logo, and
        icons.
        """
        decorative = (
            "logo__image" in (values.get("class") or "") or values.get("aria-hidden") == "true"
        )
        return decorative or bool((values.get("alt") or "").strip())


def toc_pages(node: Any) -> Iterator[str]:
    """All documents of a parsed _toc.yml, in order."""
    if isinstance(node, dict):
        for key in ("root", "file"):
            if key in node:
                yield node[key]
        node = [
            value
            for key, value in node.items()
            if key in ("parts", "chapters", "sections", "subtrees")
        ]
    if isinstance(node, list):
        for child in node:
            yield from toc_pages(child)


def is_local(address: str) -> bool:
    parts = urlsplit(address)
    return not parts.scheme and not parts.netloc


def check(site: Path, toc: Path) -> list[str]:
    """The defects of the built pages under `site`, one line each."""
    defects: list[str] = []
    for document in toc_pages(yaml.safe_load(toc.read_text(encoding="utf-8"))):
        name = re.sub(r"\.(md|ipynb|rst)$", "", document)
        if not (site / f"{name}.html").is_file():
            defects.append(f"{document}: stands in {toc.name} but its page was not built")

    files = sorted(
        path for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts
    )
    if not files:
        defects.append(f"{site}: no pages here; build the book first")
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in files}

    for path, page in pages.items():
        where = path.relative_to(site.resolve())

        def target(address: str, path: Path = path) -> Path:
            local = unquote(urlsplit(address).path)
            found = path if not local else (path.parent / local).resolve()
            return found / "index.html" if found.is_dir() else found

        for address in filter(is_local, page.links):
            anchor = unquote(urlsplit(address).fragment)
            if not target(address).is_file():
                defects.append(f"{where}: link to {address}, a file that does not exist")
            elif anchor and target(address) in pages and anchor not in pages[target(address)].ids:
                defects.append(f"{where}: link to {address}, an anchor that does not exist")
        for address in page.files:
            if urlsplit(address).scheme == "data":
                continue
            if not is_local(address):
                defects.append(f"{where}: fetches {address} from another host")
            elif not target(address).is_file():
                defects.append(f"{where}: needs {address}, a file that does not exist")
        defects += [
            f"{where}: picture {name} has no alt text" for name in page.pictures_without_alt
        ]
        defects += [
            f"{where}: raw markup in the text: {hit!r}"
            for hit in RAW_MARKUP.findall("".join(page.prose))
        ]

    for sheet in sorted(site.rglob("*.css")):
        for address in re.findall(r"url\(\s*['\"]?([^'\")]+)", sheet.read_text(encoding="utf-8")):
            if is_local(address) and not address.startswith("#"):
                if not (sheet.parent / unquote(urlsplit(address).path)).exists():
                    defects.append(
                        f"{sheet.relative_to(site)}: needs {address}, a file that does not exist"
                    )
            elif urlsplit(address).scheme in ("http", "https"):
                defects.append(f"{sheet.relative_to(site)}: fetches {address} from another host")
    return defects


def main(arguments: list[str]) -> int:
    root = Path(__file__).resolve().parents[2]
    site = Path(arguments[0]) if arguments else root / "_build" / "html"
    toc = Path(arguments[1]) if len(arguments) > 1 else root / "_toc.yml"
    defects = check(site, toc)
    for defect in defects:
        print(defect)
    pages = sum(1 for _ in site.rglob("*.html"))
    print(f"{pages} pages checked, {len(defects)} defects")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
