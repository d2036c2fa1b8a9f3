"""What the gradient networks share: hidden units on products with weights, a constant, and a linear term."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from nablanets.activations import ActivationSpec, normalise_spec
from nablanets.activations.base import ParameterColumns
from nablanets.errors import InvalidInputError, check_positive_int
from nablanets.maps.base import GradientMap
from nablanets.maps.protocols import FactoredTerm, OuterTerm, ParameterJacobian
from nablanets.maps.quadratic import LinearSpec, Quadratic, constant_columns, make_linear_term
from nablanets.operators import GramTerm, StructuredOperator, SymmetricOperator


@dataclass
class Parts:
    """The letters of f(x) = W^T r(W x) + b + A x at present.

    Attributes:
        weight: W, (units, d).
        constant: b, (d) or (*, d).
        linear: x -> A x, or None.
    """

    weight: Tensor
    constant: Tensor
    linear: Quadratic | None

    def combine(self, responses: Tensor, x: Tensor) -> Tensor:
        """W^T r + b + A x for the responses r of the units, (*, units)."""
        y = responses @ self.weight + self.constant
        return y if self.linear is None else y + self.linear._forward(x)  # of points that are checked


P = TypeVar("P", bound=Parts)


class UnitsMap(GradientMap, Generic[P]):
    r"""f(x) = W^T r(W x) + b + A x, where r is the gradient of a function R of u = W x.

    So F(x) = R(W x) + b . x + x . A x / 2. Abstract: a subclass says what the letters are (``_parts``) and what its
    units do with u, of shape (*, units); everything about x follows here. The parts are asked for once in each
    evaluation and passed on, so that a subclass may compute them from a context.
    """

    @abstractmethod
    def _parts(self, x: Tensor | None = None) -> P:
        """The letters, for an evaluation at x where there is one: a context may have to fit its shape."""

    @abstractmethod
    def _responses(self, u: Tensor, parts: P) -> Tensor:
        """r(u), (*, units)."""

    @abstractmethod
    def _units_potential(self, u: Tensor, parts: P) -> Tensor:
        """R(u), (*)."""

    @abstractmethod
    def _gram_terms(self, u: Tensor, parts: P) -> tuple[GramTerm, ...]:
        """The Jacobian of x -> W^T r(W x) at u = W x, as Gram terms."""

    @abstractmethod
    def _responses_and_gram_terms(self, u: Tensor, parts: P) -> tuple[Tensor, tuple[GramTerm, ...]]:
        """Both, sharing the work they have in common."""

    @abstractmethod
    def _units_envelope(self, parts: P) -> tuple[Tensor, Tensor]:
        """Matrices (d, d) below and above the Jacobian of x -> W^T r(W x), for every x."""

    @abstractmethod
    def unit_terms(self) -> list[OuterTerm]:
        """The coefficients of the hidden units; see :class:`~nablanets.maps.protocols.HasUnits`."""

    @abstractmethod
    def _constant_parameters(self) -> Tensor:
        """The parameters (d) that are added to f as they are: b, or the part of it that no context changes."""

    def _forward(self, x: Tensor) -> Tensor:
        parts = self._parts(x)
        u = x @ parts.weight.mT  # (*, units)
        return parts.combine(self._responses(u, parts), x)

    def _potential(self, x: Tensor) -> Tensor:
        parts = self._parts(x)
        u = x @ parts.weight.mT
        value = self._units_potential(u, parts) + (x * parts.constant).sum(dim=-1)
        return value if parts.linear is None else value + parts.linear.potential(x)

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        parts = self._parts(x)
        u = x @ parts.weight.mT
        return self._operator(self._gram_terms(u, parts), x, parts)

    def _value_and_jacobian(self, x: Tensor) -> tuple[Tensor, SymmetricOperator]:
        parts = self._parts(x)
        u = x @ parts.weight.mT
        responses, terms = self._responses_and_gram_terms(u, parts)
        return parts.combine(responses, x), self._operator(terms, x, parts)

    def _operator(self, terms: tuple[GramTerm, ...], x: Tensor, parts: P) -> SymmetricOperator:
        operator = StructuredOperator(self.features, terms, positive_semidefinite=self.monotone)
        return operator if parts.linear is None else operator + parts.linear.jacobian(x)

    def _along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        """The products of x and p with the weights are computed once, so that each t costs O(units)."""
        parts = self._parts(x)
        u = x @ parts.weight.mT
        v = p @ parts.weight.mT
        fixed = (parts.constant * p).sum(dim=-1)
        linear = None if parts.linear is None else parts.linear.along(x, p)

        def value(t: Tensor) -> Tensor:
            responses = self._responses(u + t.unsqueeze(-1) * v, parts)
            total = (responses * v).sum(dim=-1) + fixed
            return total if linear is None else total + linear(t)

        return value

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        parts = self._parts()
        lower, upper = self._units_envelope(parts)
        if parts.linear is None:
            return lower, upper
        matrix = parts.linear.matrix()
        return lower + matrix, upper + matrix

    # What starts ask for: see nablanets.maps.protocols.

    def outer_terms(self) -> list[OuterTerm]:
        """The coefficients of the units, the constant, and those of the linear term."""
        constant = self._constant_parameters()
        identity = torch.eye(self.features).to(constant)
        terms = [*self.unit_terms(), FactoredTerm.of(constant, torch.ones_like, identity)]
        linear = self._parts().linear
        return terms if linear is None else terms + linear.outer_terms()

    def outer_rest(self, x: Tensor) -> Tensor:
        """What the linear term has besides coefficients."""
        linear = self._parts().linear
        return torch.zeros_like(x) if linear is None else linear.outer_rest(x)

    def has_linear_term(self) -> bool:
        return self._parts().linear is not None

    def set_linear_term(self, matrix: Tensor) -> None:
        """Let A be the symmetric matrix (d, d), or what its rank can hold of it."""
        linear = self._parts().linear
        if linear is None:
            raise InvalidInputError(
                f"set_linear_term: {type(self).__name__} has no linear term. Build it with linear=True."
            )
        linear.set_linear_term(matrix)

    @torch.no_grad()
    def add_constant(self, vector: Tensor) -> None:
        """b <- b + vector."""
        self._constant_parameters().add_(vector)

    def directions(self) -> Tensor:
        """W, (units, d)."""
        return self._parts().weight


class GradientNetwork(UnitsMap[P]):
    """A network with parameters of its own: ``bias`` is b and ``linear`` the linear term. Abstract: it has no units."""

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

    def config(self) -> dict[str, Any]:
        return self._config

    def _constant_parameters(self) -> Tensor:
        return self.bias

    def _draw_constant(self) -> None:
        """b from U(-1, 1) / sqrt(d), the authors' start."""
        bound = self.features**-0.5
        self.bias.uniform_(-bound, bound)

    def _with_affine_columns(
        self, value: Tensor, found: list[ParameterColumns], x: Tensor, left: Tensor
    ) -> ParameterJacobian | None:
        """B f(x) from that of the units, and the derivatives with those in b and A."""
        value = value + left @ self.bias.unsqueeze(-1)
        found = [*found, constant_columns(self.bias, x, left)]
        if self.linear is None:
            return value, found
        linear = self.linear.parameter_jacobian(x, left)
        return None if linear is None else (value + linear[0], found + linear[1])

    def _linear_matrix(self) -> Tensor | None:
        return None if self.linear is None else self.linear.matrix()
