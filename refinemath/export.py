"""A formula as other programs take it: Python, C, Excel, NumPy, JAX, a line of a LaTeX table.
(Chapter 10)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import sympy
from jax import Array
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from refinemath.answer.symbolic import latex_of, pretty, python_names, python_of
from refinemath.expression import FIRST_OPERATOR, OPERATOR_TOKEN, OPERATORS, VARIABLES, fold
from refinemath.problem import Origin
from refinemath.reading import read_inputs


class Written:
    """A formula with the names of its variables, in every form in which it can be taken away.

    Who inherits has `law`, `names`, `target`, `digits` (of the numbers that are printed) and
    `origins` (of variables that were dates).
    """

    law: Any
    names: tuple[str, ...]
    target: str
    digits: int
    origins: tuple[Origin | None, ...]

    def sympy(self) -> sympy.Expr:
        """The formula as a SymPy expression in symbols with the columns' names, its numbers rounded
        as they are printed.
        """
        return pretty(self.law, self.digits, self.names)

    def python(self) -> str:
        """The formula as a line of Python that needs `import math`, with all digits of its numbers
        and the columns' names as identifiers.
        """
        return python_of(self.law, self.names)

    def c(self) -> str:
        """The formula as an expression of C that needs `math.h`, with all digits."""
        return str(sympy.ccode(pretty(self.law, 17, python_names(self.names)), standard="c99"))

    def excel(self, cells: Sequence[str] = ()) -> str:
        """The formula as Excel and LibreOffice take it, with all digits.  `cells`: where its
        variables stand, A2, B2, and so on if it is not said.
        """
        cells = cells or [f"{chr(65 + i)}2" for i in range(len(self.names))]
        if len(cells) != len(self.names):
            raise ValueError(f"the formula has {len(self.names)} variable(s), not {len(cells)}")
        return "=" + Excel().doprint(pretty(self.law, 17, list(cells)))

    def to_numpy(self) -> Callable[..., np.ndarray]:
        """A function of one argument a variable, arrays of any shape; NaN where undefined."""
        law, count = self.law, len(self.names)

        def function(*arguments: Any) -> np.ndarray:
            _check_count(arguments, count)
            x = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in arguments))
            return law.evaluate(np.stack([a.ravel() for a in x])).reshape(x[0].shape)

        return function

    def to_jax(self) -> Callable[..., Array]:
        """The same for JAX, to be compiled and differentiated; in the precision of its
        arguments.
        """
        law, count = self.law, len(self.names)

        def function(*arguments: Any) -> Array:
            _check_count(arguments, count)
            x = jnp.broadcast_arrays(*map(jnp.asarray, arguments))

            def node(part: str | float, *operands: Array) -> Array:
                if not isinstance(part, str):
                    return jnp.full_like(x[0], part, jnp.result_type(x[0], jnp.float32))
                if part in VARIABLES:
                    return x[VARIABLES.index(part)]
                return OPERATORS[OPERATOR_TOKEN[part] - FIRST_OPERATOR].jax(*operands)

            return jnp.asarray(fold(law.parts, node))

        return function

    def predict(self, x: Any) -> np.ndarray:
        """Values at x: numbers (points,), rows (points, variables), or a data frame with columns of
        the variables' names.  NaN where the formula is undefined.  Raises `DataError`.
        """
        return self.law.evaluate(read_inputs(x, self.names, self.origins).T)

    def __str__(self) -> str:
        return f"{self.target} = {sympy.sstr(self.sympy(), full_prec=False)}"


def _check_count(arguments: Sequence[Any], count: int) -> None:
    if len(arguments) != count:
        raise TypeError(f"the formula has {count} variable(s), not {len(arguments)}")


class Excel(StrPrinter):
    """SymPy expressions as formulas of Excel, where a minus binds tighter than a power."""

    def _print_Pow(self, e: sympy.Pow, rational: bool = False) -> str:
        if e.exp == sympy.Rational(1, 2):
            return f"SQRT({self._print(e.base)})"
        if e.exp == -1:
            return f"(1/{self.parenthesize(e.base, PRECEDENCE['Pow'])})"
        base = self.parenthesize(e.base, PRECEDENCE["Pow"])
        return f"({base}^{self.parenthesize(e.exp, PRECEDENCE['Pow'])})"

    def _print_Function(self, e: sympy.Function) -> str:
        name = {"log": "LN", "floor": "INT"}.get(type(e).__name__, type(e).__name__.upper())
        return f"{name}({', '.join(map(self._print, e.args))})"

    def _print_Mul(self, e: sympy.Mul) -> str:
        if e.as_coeff_Mul()[0].is_negative:
            return f"-({self._print(-e)})"
        return str(super()._print_Mul(e))

    def _print_Float(self, e: sympy.Float) -> str:
        return repr(float(e)).upper()

    def _print_Pi(self, e: Any) -> str:
        return "PI()"

    _print_exp = _print_log = _print_floor = _print_Abs = _print_Min = _print_Max = _print_Function


def latex_row(written: Written, *more: str) -> str:
    """A row of a LaTeX table: the formula, then what else there is to say."""
    return " & ".join([f"${latex_of(written.law, written.digits, written.names)}$", *more]) + r" \\"
