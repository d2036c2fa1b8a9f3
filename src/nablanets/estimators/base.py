"""What the estimators share: parameters, checks, and the potential."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.estimators.training import Effort
from nablanets.maps import GradientMap

Array = NDArray[np.float64]
Self = TypeVar("Self", bound="PotentialRegressor")

# Points that are evaluated at a time.
_CHUNK = 16_384
# Sizes of hidden layers that are chosen for the data.
_FEWEST_UNITS = 4
_MOST_UNITS = 16


class PotentialRegressor(RegressorMixin, BaseEstimator):
    """A regressor around a gradient map."""

    network_: GradientMap
    n_features_in_: int

    def __init__(
        self,
        *,
        hidden_features: int | None = None,
        num_modules: int = 4,
        n_starts: int = 3,
        max_iter: int = 400,
        max_seconds: float | None = None,
        validation_fraction: float = 0.1,
        random_state: Any = None,
    ) -> None:
        self.hidden_features = hidden_features
        self.num_modules = num_modules
        self.n_starts = n_starts
        self.max_iter = max_iter
        self.max_seconds = max_seconds
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def _effort(self) -> Effort:
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return Effort(self.n_starts, self.max_iter, self.max_seconds, self.validation_fraction, seed)

    def _units(self, numbers: int) -> int:
        """Hidden units as given, or as many as so many numbers to fit allow."""
        if self.hidden_features is not None:
            return self.hidden_features
        return int(np.clip(numbers // self._numbers_per_unit(), _FEWEST_UNITS, _MOST_UNITS))

    def _numbers_per_unit(self) -> int:
        """Three numbers to fit for each parameter of a unit of all modules."""
        return 3 * self.num_modules * (self.n_features_in_ + 1)

    def _check_training(self, X: Any, y: Any, *, multi_output: bool) -> tuple[Tensor, Array]:
        points, targets = validate_data(self, X, y, dtype=np.float64, multi_output=multi_output, y_numeric=True)
        if len(points) < 2:
            raise InvalidInputError(f"{type(self).__name__}: expected at least 2 samples, got n_samples = 1.")
        return torch.from_numpy(np.array(points)), np.asarray(targets, dtype=np.float64)

    def _points(self, X: Any) -> Tensor:
        check_is_fitted(self)
        return torch.from_numpy(np.array(validate_data(self, X, dtype=np.float64, reset=False)))

    def _evaluate(self, X: Any, function: Callable[[GradientMap, Tensor], Tensor]) -> Array:
        """A function of the network and points at the rows of X, some at a time."""
        points = self._points(X)
        with torch.no_grad():
            return torch.cat([function(self.network_, chunk) for chunk in points.split(_CHUNK)]).numpy()


def dense_jacobian(net: GradientMap, points: Tensor) -> Tensor:
    """The derivatives of a map, (n, d, d)."""
    return net.jacobian(points).dense()
