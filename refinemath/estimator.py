"""RefineMath as a scikit-learn regressor.  Needs the extra: `pip install "refinemath[sklearn]"`.
(Chapter 10)
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from refinemath.loop import Proposer, SearchConfig
from refinemath.problem import FEWEST_POINTS, Table, default_names
from refinemath.proposers.registry import DEFAULT
from refinemath.result import Result
from refinemath.solver import RefineMath

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.metrics import r2_score
    from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
except ImportError as error:
    raise ImportError(
        "the estimator needs scikit-learn 1.6 or newer; install it with: "
        'pip install "refinemath[sklearn]"'
    ) from error


class SymbolicRegressor(RegressorMixin, BaseEstimator):
    """A regressor that answers with a formula: `fit`, `predict` and `score` around
    `RefineMath.solve`.

    The parameters are those of `RefineMath` and of its `solve`; `random_state` is the seed (a
    number, a `RandomState`, or None for a new seed at each fit).  After `fit`: `formula_` (a
    `Formula`), `latex_`, `n_iter_` (refiner steps), `result_` (the whole `Result`, its arrays in
    NumPy), `n_features_in_` and, for a DataFrame, `feature_names_in_`, which the formula is printed
    in.  A formula can be undefined at a point: `predict` then gives NaN, and `score` takes the mean
    of the training y there.
    """

    def __init__(
        self,
        *,
        latent_dim: int = 512,
        max_iters: int = 32,
        threshold: float = 1e-5,
        random_state: Any = 0,
        time_budget: float = 8.0,
        searches: int | None = None,
        weights: str | Path | None = None,
        proposers: Iterable[str | Proposer] | None = None,
        config: SearchConfig | None = None,
        transforms: bool = True,
    ):
        self.latent_dim = latent_dim
        self.max_iters = max_iters
        self.threshold = threshold
        self.random_state = random_state
        self.time_budget = time_budget
        self.searches = searches
        self.weights = weights
        self.proposers = proposers
        self.config = config
        self.transforms = transforms

    def fit(self, X: Any, y: Any) -> Self:
        """Find a formula for the rows of X (samples, features) and y (samples,).  Raises
        `ValueError` as `RefineMath.solve` does.
        """
        X, y = validate_data(
            self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=FEWEST_POINTS
        )
        state = self.random_state
        if not isinstance(state, numbers.Integral):
            state = check_random_state(state).randint(2**31 - 1)
        model = RefineMath(
            self.latent_dim,
            self.max_iters,
            weights=self.weights,
            proposers=DEFAULT if self.proposers is None else self.proposers,
            config=self.config,
            transforms=self.transforms,
        )
        names = getattr(self, "feature_names_in_", default_names(X.shape[1]))
        result = model.solve(
            Table(X, np.asarray(y, np.float64), tuple(names), "y"),
            threshold=self.threshold,
            seed=int(state),
            time_budget=self.time_budget,
            searches=self.searches,
        )
        self.result_: Result = result
        self.formula_ = result.formula
        self.latex_ = result.latex
        self.n_iter_ = result.iterations
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The formula's values (samples,) at the rows of X; NaN where it is undefined over the
        reals.
        """
        check_is_fitted(self)
        return self.result_.predict(validate_data(self, X, dtype=np.float64, reset=False))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2 on given data, with the mean of the training y wherever the formula is undefined."""
        predicted = self.predict(X)
        predicted = np.where(np.isfinite(predicted), predicted, np.mean(self.result_.y))
        return float(r2_score(y, predicted, sample_weight=sample_weight))
