"""What the gradient networks share: a nonlinear core, a constant, and a linear term."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nablanets.activations import ActivationSpec, normalise_spec
from nablanets.errors import check_positive_int
from nablanets.maps.base import GradientMap
from nablanets.maps.quadratic import LinearSpec, make_linear_term
from nablanets.operators import StructuredOperator, SymmetricOperator


class AffineParts(NamedTuple):
    """What surrounds the hidden units of f(x) = V phi(A x + a) + v + Q x.

    Parameters with leading dimensions, one entry per network, give parts with the same.

    Attributes:
        inner, shift: A, (units, d), and a, (units).
        outer: V, (d, units), with the coefficients of the units.
        constant: v, (d).
        linear: Q, (d, d), or None.
    """

    inner: Tensor
    shift: Tensor
    outer: Tensor
    constant: Tensor
    linear: Tensor | None = None


class GradientNetwork(GradientMap):
    """f(x) = core(x) + b + A x. Abstract: a subclass defines the core."""

    def __init__(
        self, features: int, *, sizes: dict[str, int], activation: ActivationSpec, monotone: bool, linear: LinearSpec
    ) -> None:
        for name, value in {"features": features, **sizes}.items():
            check_positive_int(value, owner=type(self).__name__, name=name)
        super().__init__(features, monotone=monotone)
        self._config = {
            "features": features,
            **sizes,
            "activation": list(normalise_spec(activation)),
            "monotone": monotone,
            "linear": linear,
        }
        self.bias = nn.Parameter(torch.zeros(features))
        self.linear = make_linear_term(linear, features, monotone=monotone)

    @abstractmethod
    def _core(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _core_potential(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _core_jacobian(self, x: Tensor) -> StructuredOperator: ...

    @abstractmethod
    def _core_value_and_jacobian(self, x: Tensor) -> tuple[Tensor, StructuredOperator]: ...

    @abstractmethod
    def _core_envelope(self) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _core_along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]: ...

    def config(self) -> dict[str, Any]:
        return self._config

    def _forward(self, x: Tensor) -> Tensor:
        y = self._core(x) + self.bias
        return y if self.linear is None else y + self.linear(x)

    def _potential(self, x: Tensor) -> Tensor:
        value = self._core_potential(x) + x @ self.bias
        return value if self.linear is None else value + self.linear.potential(x)

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        operator = self._core_jacobian(x)
        return operator if self.linear is None else operator + self.linear.jacobian(x)

    def _value_and_jacobian(self, x: Tensor) -> tuple[Tensor, SymmetricOperator]:
        y, operator = self._core_value_and_jacobian(x)
        if self.linear is None:
            return y + self.bias, operator
        return y + self.bias + self.linear(x), operator + self.linear.jacobian(x)

    def along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        """The products of x and p with the weights are computed once, so that each t costs O(hidden units)."""
        core, constant = self._core_along(x, p), p @ self.bias
        if self.linear is None:
            return lambda t: core(t) + constant
        linear = self.linear.along(x, p)
        return lambda t: core(t) + constant + linear(t)

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        lower, upper = self._core_envelope()
        matrix = self._linear_matrix()
        return (lower, upper) if matrix is None else (lower + matrix, upper + matrix)

    def _linear_matrix(self) -> Tensor | None:
        return None if self.linear is None else self.linear.matrix()
