"""A result as text, and as one HTML file: formula, numbers, doubts, candidates, pictures.
(Chapter 10)
"""

from __future__ import annotations

import base64
import html
import io
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sympy

from refinemath.front import Front
from refinemath.plots import plot_fit, plot_front, plot_velocity
from refinemath.result import Result

PACKAGES = ("refinemath", "jax", "numpy", "scipy", "sympy")
STYLE = """body { font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: left; }
tr { border-bottom: 1px solid #ddd; } math { font-size: 150%; } img { max-width: 100%; }"""


def text_report(result: Result, threshold: float) -> str:
    """What the command line prints: a label of 12 columns and a text in each line."""
    exact = " (exact to float64)" if result.exact else ""
    settled = "settled" if result.converged else "not settled"
    searches = f"{result.searches} search{'es' if result.searches > 1 else ''}"
    work = result.seconds - result.compile_seconds
    lines = [
        ("formula", str(result)),
        ("LaTeX", result.latex),
        ("Python", result.python()),
        ("fit", f"unexplained variance {result.fvu:.3g}{exact}"),
        ("iterations", f"{result.iterations}, latent {settled} at threshold {threshold:g}"),
        ("work", f"{result.steps} steps in {searches}"),
        ("time", f"{work:.1f} s, and {result.compile_seconds:.1f} s until all was compiled"),
        ("unused", ", ".join(result.unused)),
    ]
    if result.uncertainty is not None and not result.exact:
        unit = "units of y" if result.errors.sigma is None else "in sigmas"
        lines += [("scatter", f"standard deviation {result.uncertainty.scale:.3g}, {unit}")]
    if result.intervals and not result.exact:
        lines += [("numbers", f"{result.target} = {result.form}, with 95 % intervals:")]
        lines += [(" ", str(i)) for i in result.intervals]
    lines += [("note", note) for note in result.notes]
    lines += [("in doubt", doubt) for doubt in result.warnings]
    return "\n".join(f"{label:<12}{text}" for label, text in lines if text)


def html_report(result: Result, *, source: str = "", command: str = "") -> str:
    """The whole report; it refers to nothing outside itself.  `source`: where the data are from."""
    best = sympy.Eq(sympy.Symbol(result.target), result.sympy(), evaluate=False)
    facts = [
        ("data", f"{source} ({len(result.y)} points)"),
        ("unexplained variance", f"{result.fvu:.3g}{' (exact)' if result.exact else ''}"),
        ("Python", result.python()),
        ("Excel", result.excel()),
        ("searches", f"{result.searches}, {result.seconds:.1f} s"),
        ("command", command),
        ("versions", ", ".join(f"{p} {version(p)}" for p in PACKAGES)),
        ("Python and system", f"{platform.python_version()}, {platform.platform()}"),
    ]
    numbers = [
        (i.name, f"{i.estimate:.6g}", f"{i.error:.2g}", f"{i.low:.6g} to {i.high:.6g}")
        for i in result.intervals
        if i.name
    ]
    pictures = [plot_fit(result), plot_front(Front(result.candidates)), plot_velocity(result)]
    odds = [(c.formula, f"{c.fvu:.3g}", f"{c.odds:.3g} : 1") for c in result.runners_up]
    body = [
        f"<h1>{html.escape(str(result))}</h1>",
        f"<p>{sympy.mathml(best, printer='presentation')}</p>".replace(
            "<p>", '<p><math display="block">'
        ).replace("</p>", "</math></p>"),
        _list((*result.notes, *result.warnings)),
        f"<h2>Numbers</h2><p>{html.escape(f'{result.target} = {result.form}')}</p>",
        _table(("number", "estimate", "standard error", "95 % interval"), numbers),
        "<h2>Candidates</h2>",
        Front(result.candidates)._repr_html_(),
        "<h2>Odds against the runners-up</h2>",
        _table(("formula", "FVU", "odds"), odds),
        "<h2>Pictures</h2>",
        *map(_picture, pictures),
        "<h2>How it was found</h2>",
        _table(("", ""), [f for f in facts if f[1]]),
    ]
    title = html.escape(str(result))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>'


def write_report(result: Result, path: str | Path, *, source: str = "", command: str = "") -> None:
    """`html_report` into a file."""
    Path(path).write_text(html_report(result, source=source, command=command), encoding="utf-8")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, *rows]
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in lines]
    return f"<table>{''.join(f'<tr>{c}</tr>' for c in cells)}</table>"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _picture(figure: Any) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    text = base64.b64encode(file.getvalue()).decode()
    return f'<p><img alt="" src="data:image/png;base64,{text}"></p>'
