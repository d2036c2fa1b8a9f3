"""Regression of functions that are convex or monotone, whose gradients come for free."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.estimators.base import Array, PotentialRegressor, dense_jacobian
from nablanets.estimators.training import train
from nablanets.fitting import SobolevTargets
from nablanets.maps import Constant, GradientMap, GradNetM, Pullback, Scale, from_potential
from nablanets.maps.signed import SignedNetwork

Self = TypeVar("Self", bound="ValueRegressor")


class ValueRegressor(PotentialRegressor):
    """Fits y = F(X) + c by the potential F of a network in standardised coordinates."""

    intercept_: float

    @abstractmethod
    def _network(self, features: int, size: int) -> GradientMap:
        """A fresh network of inputs and potentials of about unit size."""

    def fit(self: Self, X: Any, y: Any, gradients: Any = None) -> Self:
        """Fit values y, (n), at points X, (n, d).

        Args:
            X: points.
            y: values.
            gradients: derivatives of y by each feature, (n, d), if they are known; NaN where they are not. They weigh
                as much as the values, each relative to its own size.

        Raises:
            InvalidInputError: one sample, gradients of another shape, or parameters out of range.
        """
        x, values = self._check_training(X, y, multi_output=False)
        self._check_parameters()
        mean = x.mean(dim=0)
        spread = x.std(dim=0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        size = float(values.std())
        centred = torch.from_numpy(values - values.mean())
        numbers = values.size if gradients is None else values.size * (1 + x.shape[1])
        effort = self._effort()

        def build() -> GradientMap:
            net = self._network(x.shape[1], self._units(numbers)).double()
            return Scale(Pullback(net, 1 / spread, -mean / spread), size)

        if size == 0:
            self.network_ = Constant(torch.zeros(x.shape[1], dtype=torch.float64))
            self.validation_error_ = 0.0
            self.n_iter_ = 1
        else:
            targets = _targets(centred, gradients, x)
            self.network_, result = train(build, x, targets, effort)
            self.validation_error_ = result.best_validation_error
            self.n_iter_ = max(1, result.steps)
        with torch.no_grad():
            potential = self.network_.potential(x).numpy()
        self.intercept_ = float(np.mean(values - potential))
        return self

    def _check_parameters(self) -> None:
        """Refuse parameters that do not belong to the data."""

    def predict(self, X: Any) -> Array:
        """The values, (n)."""
        return self._evaluate(X, GradientMap.potential) + self.intercept_

    def gradient(self, X: Any) -> Array:
        """The derivatives of the values by each feature, (n, d)."""
        return self._evaluate(X, GradientMap.__call__)

    def hessian(self, X: Any) -> Array:
        """The second derivatives of the values, (n, d, d)."""
        return self._evaluate(X, dense_jacobian)


def _targets(values: Tensor, gradients: Any, x: Tensor) -> SobolevTargets:
    if gradients is None:
        return SobolevTargets(potential=values)
    known = torch.as_tensor(np.array(gradients, dtype=np.float64))
    if known.shape != x.shape:
        raise InvalidInputError(
            f"estimator: expected gradients of shape {tuple(x.shape)}, as X has, got {tuple(known.shape)}."
        )
    square = float(known.square().nanmean()) * x.shape[1]
    weight = square / float(values.square().mean()) if square > 0 else 1.0
    return SobolevTargets(gradient=known, potential=values, potential_weight=weight)


class ConvexRegressor(ValueRegressor):
    r"""Fits a convex function to values: the prediction is convex by construction, with its gradient and Hessian.

    The function is the potential of a monotone GradNet-M,

    .. math:: F(x) = \sum_k \frac{c_k}{t_k} \log \sum_j e^{t_k (w_{kj} \cdot x + b_{kj})} + \tfrac12 x^\top A x + b
        \cdot x,

    with A positive semidefinite, in standardised coordinates. It is fitted by L-BFGS from ``n_starts`` starts, the best
    of which by validation goes on. For a concave function fit -y.

    Args:
        hidden_features: units per module; None chooses 4 to 16, at most one parameter for three samples.
        num_modules: modules of the network.
        n_starts: how many starts.
        max_iter: iterations in all.
        max_seconds: training time at most.
        validation_fraction: of the samples, to choose by; they are not trained on. Below 20 samples none are held out.
        random_state: of initial weights and of what is held out.

    Attributes:
        network_: the gradient of the fitted function, a :class:`~nablanets.GradientMap`.
        intercept_: what is added to its potential.
        validation_error_: mean squared error of the values on what was held out (with gradients, the objective).
        n_iter_: iterations taken.

    >>> X = np.random.default_rng(0).uniform(-1, 1, size=(100, 2))
    >>> bowl = ConvexRegressor(max_iter=50, random_state=0).fit(X, np.cosh(X).sum(axis=1))
    >>> bowl.score(X, np.cosh(X).sum(axis=1)) > 0.99
    True
    >>> bool((np.linalg.eigvalsh(bowl.hessian(10 * X)) > -1e-9).all())                # convex everywhere
    True
    """

    def _network(self, features: int, size: int) -> GradientMap:
        return GradNetM(features, size, self.num_modules, activation="softmax", monotone=True)


class MonotoneRegressor(ValueRegressor):
    """Fits a function that is monotone in given features, as ``monotonic_cst`` of other regressors has it.

    The function is a network of two layers whose weights have fixed signs
    (:class:`~nablanets.maps.signed.SignedNetwork`) in standardised coordinates: smooth, and with its gradient. It is
    fitted by L-BFGS from ``n_starts`` starts, the best of which by validation goes on. For a function of one variable
    whose derivative is monotone see :class:`ConvexRegressor`.

    Args:
        monotonic_cst: for each feature 1 (increasing), -1 (decreasing) or 0 (no constraint), in the order of the
            columns, or by their names; None is 1 for all.
        hidden_features: units in the first layer; None chooses 4 to 16, by the number of samples.
        num_modules: units in the second layer.
        n_starts: how many starts.
        max_iter: iterations in all.
        max_seconds: training time at most.
        validation_fraction: of the samples, to choose by; they are not trained on. Below 20 samples none are held out.
        random_state: of initial weights and of what is held out.

    Attributes:
        network_: the gradient of the fitted function, a :class:`~nablanets.GradientMap`.
        intercept_: what is added to its potential.
        validation_error_: mean squared error of the values on what was held out (with gradients, the objective).
        n_iter_: iterations taken.

    >>> X = np.random.default_rng(0).uniform(-1, 1, size=(100, 2))
    >>> y = np.tanh(2 * X[:, 0]) - X[:, 1] ** 3
    >>> demand = MonotoneRegressor(monotonic_cst=[1, -1], max_iter=100, random_state=0).fit(X, y)
    >>> demand.score(X, y) > 0.99
    True
    >>> slopes = demand.gradient(10 * X)
    >>> bool((slopes[:, 0] >= 0).all()), bool((slopes[:, 1] <= 0).all())              # everywhere
    (True, True)
    """

    def __init__(
        self,
        *,
        monotonic_cst: Sequence[int] | Mapping[str, int] | None = None,
        hidden_features: int | None = None,
        num_modules: int = 8,
        n_starts: int = 3,
        max_iter: int = 400,
        max_seconds: float | None = None,
        validation_fraction: float = 0.1,
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
        self.monotonic_cst = monotonic_cst

    def _check_parameters(self) -> None:
        self._signs = self._constraints()

    def _network(self, features: int, size: int) -> GradientMap:
        return from_potential(SignedNetwork(features, size, self.num_modules, self._signs), features)

    def _numbers_per_unit(self) -> int:
        """One and a half for each weight of a unit in the first layer."""
        return (3 * (self.n_features_in_ + 1 + self.num_modules)) // 2

    def _constraints(self) -> list[int]:
        """A sign for each feature."""
        given = self.monotonic_cst
        if given is None:
            return [1] * self.n_features_in_
        if isinstance(given, Mapping):
            names = list(getattr(self, "feature_names_in_", []))
            unknown = [name for name in given if name not in names]
            if unknown:
                raise InvalidInputError(
                    f"monotonic_cst names {', '.join(map(repr, unknown))}, but the features are {names or 'unnamed'}."
                )
            signs = [int(given.get(name, 0)) for name in names]
        else:
            signs = [int(sign) for sign in given]
        if len(signs) != self.n_features_in_ or not set(signs) <= {-1, 0, 1}:
            raise InvalidInputError(
                f"monotonic_cst: expected -1, 0 or 1 for each of {self.n_features_in_} features, got {given!r}."
            )
        return signs
