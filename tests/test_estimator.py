"""The scikit-learn face: parameters, attributes, clone, pickle, grid search, and scikit-learn's own
checks.

One small budget serves every test, so the search is compiled once.
"""

import pickle
from typing import Any

import numpy as np
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

BUDGET = SearchConfig(
    thoughts=4, samples=16, edits=0, fits=2, fit_steps=2, keep=16, search_steps=2, patience=1
)
SETTINGS: dict[str, Any] = {"budget": BUDGET, "max_iters": 4, "time_budget": 0.05}
X = np.linspace(-2, 2, 24)[:, None]
Y = X[:, 0] ** 2 + X[:, 0]

# Every check of this list brings data of two or more columns, and the shipped weights read one.
# The same checks run, and pass, below, where
# the model looks at the first column alone.
MORE_THAN_ONE_VARIABLE = [
    "check_fit_score_takes_y",
    "check_estimators_overwrite_params",
    "check_dont_overwrite_parameters",
    "check_estimators_fit_returns_self",
    "check_readonly_memmap_input",
    "check_n_features_in_after_fitting",
    "check_positive_only_tag_during_fit",
    "check_estimators_dtypes",
    "check_dtype_object",
    "check_pipeline_consistency",
    "check_estimators_nan_inf",
    "check_estimators_pickle",
    "check_f_contiguous_array_estimator",
    "check_regressors_train",
    "check_regressor_data_not_an_array",
    "check_regressors_no_decision_function",
    "check_supervised_y_2d",
    "check_regressors_int",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_dict_unchanged",
    "check_fit_idempotent",
    "check_fit_check_is_fitted",
    "check_n_features_in",
    "check_fit2d_predict1d",
]
# On the first column alone, one check cannot pass: it asks for R^2 > 0.5 on data in which that
# column says little.
ON_FIRST_COLUMN = {
    "check_regressors_train": "asks for a good fit on ten columns, nine of which the model does not see"
}


@pytest.fixture(scope="module")
def fitted() -> SymbolicRegressor:
    return SymbolicRegressor(**SETTINGS).fit(X, Y)


def test_fit_finds_a_parabola(fitted: SymbolicRegressor) -> None:
    assert fitted.score(X, Y) > 1 - 1e-12
    assert fitted.n_features_in_ == 1 and 0 < fitted.n_iter_ <= 4
    np.testing.assert_allclose(fitted.predict([[3.0], [-1.0]]), [12.0, 0.0], atol=1e-6)
    assert "x" in fitted.latex_ and fitted.formula_ == fitted.result_.formula


def test_it_says_what_solve_says(fitted: SymbolicRegressor) -> None:
    direct = RefineMath(max_iters=4, budget=BUDGET).solve(X, Y, time_budget=0.05, seed=0)
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
        fitted.result_.outcome.z,
        fitted.result_.velocity,
    ]
    assert all(isinstance(a, np.ndarray | np.generic) for a in arrays)


def test_grid_search_over_options_of_the_search() -> None:
    grid = GridSearchCV(
        SymbolicRegressor(**SETTINGS),
        {"sweep": [True], "random_state": [0, 1], "threshold": [1e-5, 1e-3]},
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
    with pytest.raises(ValueError, match="variables"):
        SymbolicRegressor(**SETTINGS).fit(np.hstack([X, 2 * X]), Y)
    with pytest.raises(ValueError, match="threshold"):
        SymbolicRegressor(**SETTINGS | {"threshold": 2.0}).fit(X, Y)


class FirstColumnResult(Result):
    """Predicts from the first column."""

    def predict(self, x: Any) -> np.ndarray:
        return super().predict(np.asarray(x)[:, :1])


class FirstColumn(RefineMath):
    """A model that looks at the first column alone, to run scikit-learn's checks on their data of
    many columns.
    """

    def solve(self, data: Any, y: Any = None, **options: Any) -> Result:
        first = data._replace(x=data.x[:, :1], names=data.names[:1])
        return FirstColumnResult(**vars(super().solve(first, **options)))


@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn_with_the_weights_as_they_are(fitted: SymbolicRegressor) -> None:
    expected = dict.fromkeys(MORE_THAN_ONE_VARIABLE, "the shipped weights read one variable")
    expected["check_fit2d_1sample"] = (
        "several columns are named as the defect before the single row"
    )
    records = check_estimator(
        SymbolicRegressor(**SETTINGS), expected_failed_checks=expected, on_skip=None
    )
    assert sum(r["status"] == "passed" for r in records) >= 20
    assert not [r["check_name"] for r in records if r["status"] == "failed"]


@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn_on_the_first_column(
    monkeypatch: pytest.MonkeyPatch, fitted: SymbolicRegressor
) -> None:
    monkeypatch.setattr(estimator, "RefineMath", FirstColumn)
    records = check_estimator(
        SymbolicRegressor(**SETTINGS),
        expected_failed_checks=ON_FIRST_COLUMN,
        on_fail=None,
        on_skip=None,
    )
    failed = {
        r["check_name"]: repr(r["exception"])[:300] for r in records if r["status"] == "failed"
    }
    assert not failed
