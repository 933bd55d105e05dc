"""Formulas beside the answer: the front over length and fit, and the runners-up.  (Chapter 9)"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refinemath.answer.symbolic import latex_name, latex_of
from refinemath.export import Written
from refinemath.expression import Formula
from refinemath.problem import Origin


@dataclass(frozen=True)
class Candidate(Written):
    """One formula of the front, or a runner-up: how long, how good, what.

    `formula`: as text, its numbers rounded for reading.  `odds`: how many times more likely the
    answer is than this one by their code lengths, exp(difference in nats); NaN for the front.
    """

    length: int
    fvu: float
    formula: str
    law: Formula
    odds: float = math.nan
    names: tuple[str, ...] = ("x",)
    target: str = "y"
    digits: int = 6
    origins: tuple[Origin | None, ...] = ()

    @property
    def latex(self) -> str:
        """The formula in LaTeX."""
        return latex_of(self.law, self.digits, self.names)

    def to_dict(self) -> dict[str, Any]:
        """What `candidate_of` needs, as JSON can write it."""
        odds = None if math.isnan(self.odds) else self.odds
        own = {"length": self.length, "fvu": self.fvu, "formula": self.formula}
        return own | {"prefix": self.law.prefix(), "odds": odds}

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {latex_name(self.target)} = {self.latex}$"


class Front(tuple[Candidate, ...]):
    """Formulas from short to long, each fitting better than the one before; a table in
    notebooks.
    """

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td>{i}</td><td>{c.length}</td><td>{c.fvu:.3g}</td>"
            f"<td><code>{html.escape(c.formula)}</code></td></tr>"
            for i, c in enumerate(self)
        ]
        head = "<tr><th></th><th>tokens</th><th>FVU</th><th>formula</th></tr>"
        return f"<table>{head}{''.join(rows)}</table>"

    def plot(self, path: str | Path | None = None) -> Any:
        """FVU over length, as a Matplotlib figure; saved if a path is given."""
        from refinemath.plots import plot_front

        return save_figure(plot_front(self), path)


def odds_in_words(candidate: Candidate) -> str:
    """What the odds against a runner-up mean."""
    if candidate.odds < 1.5:
        return f"{candidate.formula} is about as likely as the answer"
    if candidate.odds < 1000:
        return f"the answer is {candidate.odds:.2g} times as likely as {candidate.formula}"
    return f"{candidate.formula} is ruled out"


def save_figure(figure: Any, path: str | Path | None) -> Any:
    """The figure, saved if a path is given."""
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
