"""RefineMath: points in, formula out, by refining one latent thought in a compiled loop."""

from refinemath.checkpoint import CheckpointError
from refinemath.language import Formula, FormulaError, parse, parse_prefix
from refinemath.search import Budget
from refinemath.solve import DataError, RefineMath, Result

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "CheckpointError",
    "DataError",
    "Formula",
    "FormulaError",
    "RefineMath",
    "Result",
    "parse",
    "parse_prefix",
]
