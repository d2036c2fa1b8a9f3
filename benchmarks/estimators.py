"""Estimators beside scikit-learn's, as they are without tuning: errors on fresh points without noise, and seconds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from autofit_cases import MOTOR, motor_samples
from nablanets.estimators import ConvexRegressor, GradientFieldRegressor, MonotoneRegressor
from timing import QUICK, one_thread, print_table

#: Seeds of samples and models.
SEEDS = range(1 if QUICK else 5)
NOISE = 0.05


class Data(NamedTuple):
    """Samples to fit and to judge by."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def noisy(function: Callable[[np.ndarray], np.ndarray], count: int, features: int, seed: int) -> Data:
    """Samples of a function in [-2, 2]^d with noise in training, relative to the spread of the values."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(-2, 2, (count, features))
    x_test = generator.uniform(-2, 2, (2000, features))
    values = function(x)
    noise = NOISE * values.std(axis=0) * generator.standard_normal(values.shape)
    return Data(x, values + noise, x_test, function(x_test))


def wells(x: np.ndarray) -> np.ndarray:
    """The gradient of sum sin(x_i) + exp(-|x|^2 / 2) in three dimensions."""
    return np.cos(x) - x * np.exp(-np.square(x).sum(axis=1, keepdims=True) / 2)


def cost(x: np.ndarray) -> np.ndarray:
    """A convex function: the logarithm of a sum of exponentials and a square."""
    planes = np.stack([x @ [1.0, 2.0, -1.0], -2 * x[:, 0], 1.5 * x[:, 2]])
    return np.logaddexp.reduce(planes, axis=0) + 0.2 * x[:, 1] ** 2


def growth(x: np.ndarray) -> np.ndarray:
    """Increasing in the first two features, decreasing in the third, anything in the fourth."""
    return np.tanh(x[:, 0] + 0.5 * x[:, 1]) + np.log1p(np.exp(2 * x[:, 1])) - x[:, 2] ** 3 / 4 + np.sin(2 * x[:, 3])


def motor(seed: int) -> Data:
    """Flux linkages of currents of an electric motor, a tenth of a measured map, in per unit."""
    x, y = (part.numpy() for part in motor_samples(MOTOR))
    chosen = np.arange(len(x)) % 10 == seed
    return Data(x[chosen], y[chosen], x[~chosen], y[~chosen])


def peers(monotonic_cst: list[int] | None = None) -> dict[str, Any]:
    """scikit-learn's regressors of smooth functions, standardised, and of trees."""
    kernel = ConstantKernel() * RBF() + WhiteKernel(1e-2)
    return {
        "MLPRegressor (lbfgs)": make_pipeline(StandardScaler(), MLPRegressor(solver="lbfgs", max_iter=1000)),
        "GaussianProcessRegressor": make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True)),
        "HistGradientBoostingRegressor": HistGradientBoostingRegressor(monotonic_cst=monotonic_cst),
    }


def measure(model: Any, data: Data, seed: int) -> tuple[float, float]:
    """Root mean square error over the spread of the test values, and seconds to fit."""
    fitted = clone(model)
    seeded = {name: seed for name in fitted.get_params() if name.endswith("random_state")}
    fitted.set_params(**seeded)
    if data.y.ndim > 1 and isinstance(fitted, HistGradientBoostingRegressor):
        fitted = MultiOutputRegressor(fitted)
    start = time.perf_counter()
    fitted.fit(data.x, data.y)
    seconds = time.perf_counter() - start
    error = fitted.predict(data.x_test) - data.y_test
    return float(np.sqrt(np.square(error).mean() / data.y_test.var(axis=0).mean())), seconds


def main() -> None:
    one_thread()
    warnings.simplefilter("ignore", ConvergenceWarning)
    signs = [1, 1, -1, 0]
    field = GradientFieldRegressor()
    problems: list[tuple[str, Callable[[int], Data], Any, dict[str, Any]]] = [
        ("gradients, d = 3, n = 300", lambda seed: noisy(wells, 300, 3, seed), field, peers()),
        ("convex, d = 3, n = 300", lambda seed: noisy(cost, 300, 3, seed), ConvexRegressor(), peers()),
        (
            "monotone, d = 4, n = 300",
            lambda seed: noisy(growth, 300, 4, seed),
            MonotoneRegressor(monotonic_cst=signs),
            peers(signs),
        ),
    ]
    if MOTOR.exists():
        problems.insert(1, ("flux of a motor, d = 2, n = 57", motor, GradientFieldRegressor(monotone=True), peers()))
    rows = []
    for name, sample, model, others in problems:
        candidates = {type(model).__name__: model}
        if isinstance(model, GradientFieldRegressor):
            candidates["the same, budget=10"] = clone(model).set_params(budget=10.0)
        for number, (label, candidate) in enumerate({**candidates, **others}.items()):
            outcomes = [measure(candidate, sample(seed), seed) for seed in SEEDS]
            errors, seconds = np.median(outcomes, axis=0)
            worst = max(error for error, _ in outcomes)
            rows.append(["" if number else name, label, f"{errors:.4f}", f"{worst:.4f}", f"{seconds:.2f}"])
    print_table(
        f"RMSE over the spread of y on held-out points without noise, {len(SEEDS)} seeds, one thread",
        ["samples", "estimator", "median", "worst", "seconds"],
        rows,
    )


if __name__ == "__main__":
    main()
