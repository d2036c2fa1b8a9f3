"""scikit-learn's estimators: its own checks, and what they promise."""

from __future__ import annotations

import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import nablanets
from nablanets import verify
from nablanets.errors import InvalidInputError
from nablanets.estimators import ConvexRegressor, GradientFieldRegressor, MonotoneRegressor

X = np.random.default_rng(0).uniform(-1, 1, (90, 2))
FIELD = np.sinh(2 * X) + X.sum(axis=1, keepdims=True)
BOWL = np.cosh(2 * X).sum(axis=1)
SLOPE = np.tanh(3 * X[:, 0]) - np.sin(3 * X[:, 1])
SMALL = {"n_starts": 1, "max_iter": 5, "num_modules": 1, "hidden_features": 4}
QUICK = {"n_starts": 2, "max_iter": 60, "random_state": 0}


@pytest.mark.parametrize("cls", [GradientFieldRegressor, ConvexRegressor, MonotoneRegressor])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_accepts_it(cls):
    check_estimator(cls(**SMALL))


def test_a_field_has_a_potential_and_a_symmetric_jacobian():
    field = GradientFieldRegressor(**QUICK).fit(X, FIELD)
    assert field.score(X, FIELD) > 0.999
    step = 1e-5 * np.eye(2)
    for i in range(2):
        slope = (field.potential(X + step[i]) - field.potential(X - step[i])) / 2e-5
        np.testing.assert_allclose(slope, field.predict(X)[:, i], atol=1e-7)
        bend = (field.predict(X + step[i]) - field.predict(X - step[i])) / 2e-5
        np.testing.assert_allclose(bend, field.jacobian(X)[:, :, i], atol=1e-6)
    assert verify.certificate(field.network_).passed


def test_derivatives_by_some_features():
    """The field of exp(x1 - x2): its second column is not shown, and its first depends on both features."""
    column = np.exp(X[:, 0] - X[:, 1])
    flat = GradientFieldRegressor(**QUICK).fit(X, column)
    table = GradientFieldRegressor(**QUICK).fit(X, column[:, None])
    assert flat.score(X, column) > 0.99
    np.testing.assert_array_equal(flat.predict(X), table.predict(X)[:, 0])
    assert table.jacobian(X).shape == (90, 1, 2)
    with pytest.raises(InvalidInputError, match="3 columns for 2 features"):
        flat.fit(X, np.ones((90, 3)))


def test_a_budget_lets_autofit_choose():
    field = GradientFieldRegressor(budget=2.0, random_state=0).fit(X, FIELD)
    assert field.score(X, FIELD) > 0.999
    assert 0 < field.validation_error_ < 0.1 * np.square(FIELD).sum(axis=1).mean()
    with pytest.raises(InvalidInputError, match="a column for each feature, 2, got 1"):
        field.fit(X, FIELD[:, 0])


def test_promises_hold_far_from_the_data():
    far = 100 * X
    bowl = ConvexRegressor(**QUICK).fit(X, BOWL)
    assert bowl.score(X, BOWL) > 0.99
    assert np.linalg.eigvalsh(bowl.hessian(far)).min() > -1e-9
    monotone = GradientFieldRegressor(monotone=True, **QUICK).fit(X, FIELD)
    assert np.linalg.eigvalsh(monotone.jacobian(far)).min() > -1e-9
    slope = MonotoneRegressor(monotonic_cst=[1, 0], **QUICK).fit(X, SLOPE)
    assert slope.score(X, SLOPE) > 0.98
    assert slope.gradient(far)[:, 0].min() >= 0
    falling = MonotoneRegressor(monotonic_cst=[-1, 0], **QUICK).fit(X, SLOPE)
    assert falling.gradient(far)[:, 0].max() <= 0
    assert falling.score(X, SLOPE) < 0.9


def test_values_have_their_gradients():
    for model, y in ((ConvexRegressor(**QUICK), BOWL), (MonotoneRegressor(**QUICK), X.sum(axis=1))):
        model.fit(X, y)
        for i in range(2):
            step = np.zeros(2)
            step[i] = 1e-5
            slope = (model.predict(X + step) - model.predict(X - step)) / 2e-5
            np.testing.assert_allclose(slope, model.gradient(X)[:, i], atol=1e-6)
        np.testing.assert_allclose(np.mean(model.predict(X) - y), 0, atol=1e-9)


def test_known_gradients_help_where_values_are_few():
    few = slice(0, 12)
    gradients = 2 * np.sinh(2 * X)
    gradients[::3, 0] = np.nan
    without = ConvexRegressor(**QUICK).fit(X[few], BOWL[few])
    model = ConvexRegressor(**QUICK).fit(X[few], BOWL[few], gradients=gradients[few])
    assert model.score(X, BOWL) > without.score(X, BOWL)
    with pytest.raises(InvalidInputError, match=r"gradients of shape \(12, 2\)"):
        model.fit(X[few], BOWL[few], gradients=gradients[few, :1])


def test_units_and_offsets_do_not_matter():
    moved = 1e6 * X + 1e9
    assert ConvexRegressor(**QUICK).fit(moved, 1e-8 * BOWL - 3).score(moved, 1e-8 * BOWL - 3) > 0.99
    assert GradientFieldRegressor(**QUICK).fit(moved, 1e-8 * FIELD - 3).score(moved, 1e-8 * FIELD - 3) > 0.999


def test_search_pipeline_and_groups():
    groups = np.arange(90) // 15
    pipeline = make_pipeline(FunctionTransformer(), MonotoneRegressor(**{**QUICK, "max_iter": 30}))
    grid = {"monotoneregressor__monotonic_cst": [[1, -1], [-1, 1]]}
    search = GridSearchCV(pipeline, grid, cv=GroupKFold(2)).fit(X, SLOPE, groups=groups)
    assert search.best_params_ == {"monotoneregressor__monotonic_cst": [1, -1]}
    scores = cross_val_score(GradientFieldRegressor(**QUICK), X, FIELD, groups=groups, cv=GroupKFold(2))
    assert scores.min() > 0.99


def test_names_of_columns():
    table = pd.DataFrame(X, columns=["price", "quality"])
    model = MonotoneRegressor(monotonic_cst={"price": 1, "quality": -1}, **QUICK).fit(table, SLOPE)
    assert list(model.feature_names_in_) == ["price", "quality"]
    assert model.gradient(table)[:, 1].max() <= 0
    with pytest.raises(ValueError, match="feature names"):
        model.predict(table[["quality", "price"]])
    with pytest.raises(InvalidInputError, match="monotonic_cst names 'prize'"):
        model.set_params(monotonic_cst={"prize": 1}).fit(table, SLOPE)
    with pytest.raises(InvalidInputError, match="-1, 0 or 1 for each of 2 features"):
        model.set_params(monotonic_cst=[1]).fit(table, SLOPE)


def test_copies_and_seeds(tmp_path):
    """Files and clones predict the same; the seed decides, and torch's own state is left alone."""
    state = torch.get_rng_state()
    model = GradientFieldRegressor(**QUICK).fit(X, FIELD)
    assert torch.equal(state, torch.get_rng_state())
    joblib.dump(model, tmp_path / "model")
    np.testing.assert_array_equal(joblib.load(tmp_path / "model").predict(X), model.predict(X))
    np.testing.assert_array_equal(clone(model).fit(X, FIELD).predict(X), model.predict(X))
    other = clone(model).set_params(random_state=1).fit(X, FIELD)
    assert np.abs(other.predict(X) - model.predict(X)).max() > 0


def test_networks_load_where_scikit_learn_is_not(tmp_path):
    model = MonotoneRegressor(**QUICK).fit(X, X.sum(axis=1))
    model.network_.save(tmp_path / "m.safetensors")
    code = (
        "import sys; sys.modules['sklearn'] = None; import nablanets\n"
        "net = nablanets.load('m.safetensors'); print(net.features)\n"
        "try:\n    import nablanets.estimators\nexcept nablanets.NablaError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2\n")
    assert "pip install 'nablanets[sklearn]'" in done.stdout


def test_bad_input_is_refused_and_odd_input_is_not():
    for name, value in (("n_starts", 0), ("max_iter", 0), ("max_seconds", 0.0), ("validation_fraction", 1.0)):
        with pytest.raises(InvalidInputError, match=name):
            ConvexRegressor(**{**QUICK, name: value}).fit(X, BOWL)
    constant = ConvexRegressor(**QUICK).fit(X, np.full(90, 4.0))
    np.testing.assert_allclose(constant.predict(X), 4.0)
    np.testing.assert_allclose(GradientFieldRegressor(**QUICK).fit(X, np.zeros((90, 2))).predict(X), 0, atol=1e-3)
    assert ConvexRegressor(**{**QUICK, "max_seconds": 0.05, "max_iter": 10**6}).fit(X, BOWL).n_iter_ < 10**5
    assert nablanets.GradientMap in type(constant.network_).__mro__
