"""The scikit-learn face: parameters, attributes, clone, pickle, grid search, and scikit-learn's own
checks.

One small budget serves every test, so the search is compiled once.
"""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator

from refinemath import estimator
from refinemath.estimator import SymbolicRegressor
from refinemath.loop import SearchConfig
from refinemath.result import Result
from refinemath.solver import RefineMath

CONFIG = SearchConfig(latents=4, pool=16, refit=8, fit_steps=2, subtrees=64, search_steps=2)
SETTINGS: dict[str, Any] = {
    "config": CONFIG,
    "proposers": ("network", "short", "missing_term"),
    "max_iters": 4,
    "searches": 1,
}
# one check asks for R^2 > 0.5 on data in which the first column says little
ON_FIRST_COLUMN = {"check_regressors_train": "nine of ten columns are not looked at"}
X = np.linspace(-2, 2, 24)[:, None]
Y = X[:, 0] ** 2 + X[:, 0]


@pytest.fixture(scope="module")
def fitted() -> SymbolicRegressor:
    return SymbolicRegressor(**SETTINGS).fit(X, Y)


def test_fit_finds_a_parabola(fitted: SymbolicRegressor) -> None:
    assert fitted.score(X, Y) > 1 - 1e-12
    assert fitted.n_features_in_ == 1 and 0 < fitted.n_iter_ <= 4
    np.testing.assert_allclose(fitted.predict([[3.0], [-1.0]]), [12.0, 0.0], atol=1e-6)
    assert "x" in fitted.latex_ and fitted.formula_ == fitted.result_.formula


def test_it_says_what_solve_says(fitted: SymbolicRegressor) -> None:
    direct = RefineMath(max_iters=4, config=CONFIG, proposers=SETTINGS["proposers"]).solve(
        X, Y, searches=1, seed=0
    )
    assert fitted.latex_ == direct.latex and fitted.n_iter_ == direct.iterations


def test_the_seed_makes_it_repeatable() -> None:
    for state in (3, np.int64(3)):
        again = [
            SymbolicRegressor(**SETTINGS, random_state=state).fit(X, np.sin(3 * X[:, 0])).latex_
            for _ in range(2)
        ]
        assert again[0] == again[1]
    drawn = [
        SymbolicRegressor(**SETTINGS, random_state=np.random.RandomState(3))
        .fit(X, np.sin(3 * X[:, 0]))
        .latex_
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]


def test_clone_and_pickle(fitted: SymbolicRegressor) -> None:
    assert clone(fitted).get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        clone(fitted).predict(X)
    twin = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(twin.predict(X), fitted.predict(X))
    assert twin.latex_ == fitted.latex_


def test_a_fitted_estimator_holds_numpy_arrays_only(fitted: SymbolicRegressor) -> None:
    assert fitted.result_.outcome is not None
    arrays = [
        *fitted.result_.outcome.pool,
        *fitted.result_.outcome.trace,
        fitted.result_.outcome.latents,
        fitted.result_.velocity,
    ]
    assert all(isinstance(a, np.ndarray | np.generic) for a in arrays)


def test_grid_search_over_options_of_the_search() -> None:
    grid = GridSearchCV(
        SymbolicRegressor(**SETTINGS),
        {"transforms": [True], "random_state": [0, 1], "threshold": [1e-5, 1e-3]},
        cv=2,
        error_score="raise",
    )
    grid.fit(X[::-1][np.argsort(np.arange(24) % 2)], Y[::-1][np.argsort(np.arange(24) % 2)])
    assert len(grid.cv_results_["params"]) == 4 and grid.best_score_ > 0.99


def test_an_undefined_prediction_is_nan_and_counts_as_the_mean(fitted: SymbolicRegressor) -> None:
    positive = np.linspace(0.1, 4, 24)[:, None]
    regressor = SymbolicRegressor(**SETTINGS).fit(positive, np.log(positive[:, 0]))
    assert np.isnan(regressor.predict([[-1.0]])).all()
    mean = float(np.log(positive[:, 0]).mean())
    assert regressor.score(np.array([[-1.0], [-2.0]]), [mean, mean + 1.0]) == pytest.approx(-1.0)


def test_bad_input_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="minimum of 4"):
        SymbolicRegressor(**SETTINGS).fit(X[:3], Y[:3])
    with pytest.raises(ValueError, match="11"):
        SymbolicRegressor(**SETTINGS).fit(np.hstack([X] * 11), Y)
    with pytest.raises(ValueError, match="threshold"):
        SymbolicRegressor(**SETTINGS | {"threshold": 2.0}).fit(X, Y)


def test_several_columns_keep_their_names() -> None:
    """A product of two of three columns of a DataFrame, printed in their names."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.uniform(1, 3, (40, 3)), columns=["mass", "T [K]", "speed"])
    regressor = SymbolicRegressor(**SETTINGS).fit(frame, frame["mass"] * frame["speed"])
    assert list(regressor.feature_names_in_) == list(frame.columns)
    assert regressor.score(frame, frame["mass"] * frame["speed"]) > 1 - 1e-9
    assert regressor.result_.unused == ("T [K]",) and "mass" in str(regressor.result_)


class FirstColumnResult(Result):
    """Predicts from the first column."""

    def predict(self, x: Any) -> np.ndarray:
        return super().predict(np.asarray(x)[:, :1])


class FirstColumn(RefineMath):
    """A model that looks at the first column alone: scikit-learn's checks bring data of many
    widths, and every width is a program to compile.
    """

    def solve(self, data: Any, y: Any = None, **options: Any) -> Result:
        first = data._replace(x=data.x[:, :1], names=data.names[:1])
        return FirstColumnResult(**vars(super().solve(first, **options)))


@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimator, "RefineMath", FirstColumn)
    few = {**SETTINGS, "proposers": ("short", "missing_term")}
    records = check_estimator(
        SymbolicRegressor(**few), expected_failed_checks=ON_FIRST_COLUMN, on_fail=None, on_skip=None
    )
    failed = {
        r["check_name"]: repr(r["exception"])[:300] for r in records if r["status"] == "failed"
    }
    assert not failed and sum(r["status"] == "passed" for r in records) >= 40
