"""RefineMath: points in, formula out, by refining one latent thought in a compiled loop."""

from refinemath.expression import Formula, FormulaError
from refinemath.forms import FittedForm, fit_form
from refinemath.loop import SearchConfig
from refinemath.problem import DataError
from refinemath.result import Result, load_result
from refinemath.solver import RefineMath
from refinemath.text import parse, parse_prefix
from refinemath.weights import CheckpointError

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "DataError",
    "FittedForm",
    "Formula",
    "FormulaError",
    "RefineMath",
    "Result",
    "SearchConfig",
    "fit_form",
    "load_result",
    "parse",
    "parse_prefix",
]
