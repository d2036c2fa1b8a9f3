"""Regression of gradient fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from nablanets.errors import InvalidInputError
from nablanets.estimators.base import Array, PotentialRegressor, dense_jacobian
from nablanets.estimators.training import search, train
from nablanets.fitting import SobolevTargets
from nablanets.maps import GradientMap, GradNetM
from nablanets.starts import standardised


class GradientFieldRegressor(PotentialRegressor):
    r"""Fits y = grad F(X): what it predicts is the gradient of a potential, whatever the data are.

    y has a column for each feature: :math:`y_i = \partial F / \partial x_i`. It may also have fewer, which are then
    the derivatives by the first features; F depends on the others as well (a temperature beside coordinates, say).

    The network is a GradNet-M in standardised coordinates. ``n_starts`` networks begin from the data, and the best one
    by validation goes on (Levenberg-Marquardt up to 500 parameters and 16 features, else L-BFGS).

    Args:
        monotone: only monotone fields, so that F is convex: (f(x) - f(y)) . (x - y) >= 0 for all x and y.
        hidden_features: units per module; None chooses 4 to 16, at most one parameter for three numbers in y.
        num_modules: modules of the network.
        n_starts: how many starts.
        max_iter: iterations in all.
        max_seconds: training time at most.
        validation_fraction: of the samples, to choose by; they are not trained on. Below 20 samples none are held out.
        budget: seconds for :func:`~nablanets.autofit`, which then chooses network, size and fit, in place of all of the
            above but ``monotone``: better, and dependent on the machine's speed. y needs a column for each feature.
        random_state: of initial weights and of what is held out.

    Attributes:
        network_: the fitted :class:`~nablanets.GradientMap`, in the units of X and y; ``network_.save(path)``.
        validation_error_: mean squared error (summed over y's columns) on what was held out.
        n_iter_: iterations taken.

    >>> X = np.random.default_rng(0).uniform(size=(100, 2))
    >>> field = GradientFieldRegressor(max_iter=50, random_state=0).fit(X, np.exp(X))
    >>> field.predict(X[:3]).shape, field.potential(X[:3]).shape, field.jacobian(X[:3]).shape
    ((3, 2), (3,), (3, 2, 2))
    >>> field.score(X, np.exp(X)) > 0.99
    True
    """

    def __init__(
        self,
        *,
        monotone: bool = False,
        hidden_features: int | None = None,
        num_modules: int = 4,
        n_starts: int = 3,
        max_iter: int = 200,
        max_seconds: float | None = None,
        validation_fraction: float = 0.1,
        budget: float | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            hidden_features=hidden_features,
            num_modules=num_modules,
            n_starts=n_starts,
            max_iter=max_iter,
            max_seconds=max_seconds,
            validation_fraction=validation_fraction,
            random_state=random_state,
        )
        self.monotone = monotone
        self.budget = budget

    def fit(self, X: Any, y: Any) -> GradientFieldRegressor:
        """Fit gradients y, (n, d) or (n, m) with m < d, at points X, (n, d).

        Raises:
            InvalidInputError: y has more columns than X, or there is one sample; parameters out of range.
        """
        x, targets = self._check_training(X, y, multi_output=True)
        d = x.shape[1]
        self._is_flat = targets.ndim == 1
        columns = targets.reshape(len(targets), -1)
        self._count = columns.shape[1]
        if self._count > d:
            raise InvalidInputError(
                f"GradientFieldRegressor: y has {self._count} columns for {d} features. Column i is the derivative of "
                "one potential by feature i, so there are at most as many as features."
            )
        known = torch.from_numpy(np.array(columns))
        if self.budget is not None:
            return self._search(x, known, self.budget)
        unknown = torch.zeros(len(x), d - self._count, dtype=torch.float64)
        size = self._units(columns.size)

        def build() -> GradientMap:
            net = GradNetM(d, size, self.num_modules, monotone=self.monotone).double()
            return standardised(net, x, torch.cat([known, unknown], dim=1))

        gradient = torch.cat([known, unknown + torch.nan], dim=1)
        complete = self._count == d
        self.network_, result = train(build, x, known if complete else SobolevTargets(gradient), self._effort())
        self.validation_error_ = result.best_validation_error
        self.n_iter_ = max(1, result.steps)
        return self

    def _search(self, x: torch.Tensor, known: torch.Tensor, budget: float) -> GradientFieldRegressor:
        """Fit by a search within a budget of seconds."""
        if known.shape != x.shape:
            raise InvalidInputError(
                f"GradientFieldRegressor: budget needs y with a column for each feature, {x.shape[1]}, got "
                f"{known.shape[1]}. Leave budget out."
            )
        self.network_, self.validation_error_ = search(x, known, self.monotone, budget, self._effort().seed)
        self.n_iter_ = 1
        return self

    def predict(self, X: Any) -> Array:
        """The gradients, of the shape that y had."""
        values = self._evaluate(X, GradientMap.__call__)[:, : self._count]
        return values[:, 0] if self._is_flat else values

    def potential(self, X: Any) -> Array:
        """F, (n): known up to a constant."""
        return self._evaluate(X, GradientMap.potential)

    def jacobian(self, X: Any) -> Array:
        """The derivatives of predicted column i by feature j, (n, m, d); symmetric where m = d."""
        return self._evaluate(X, dense_jacobian)[:, : self._count]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
