"""What a gradient activation is: s = grad psi, with psi, its derivative and its slope interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nablanets.parameters import constrained, inverse_softplus, through_constraint


class ParameterColumns(NamedTuple):
    """A parameter, and the derivatives of something in it; who returns them says what their shape is.

    Where ``vectors`` are given, (*parameter.shape, k), these are the derivatives of a vector (k) that does not leave
    fixed lines: ``columns``, (*parameter.shape, n), times the vectors.
    """

    parameter: Tensor
    columns: Tensor
    vectors: Tensor | None = None

    def full(self) -> Tensor:
        """The derivatives, (*parameter.shape, k, n) where vectors are given."""
        return self.columns if self.vectors is None else self.columns.unsqueeze(-2) * self.vectors.unsqueeze(-1)


class GradientActivation(nn.Module, ABC):
    r"""A map :math:`s = \nabla \psi` applied to hidden units.

    Abstract: subclass :class:`ElementwiseActivation` or :class:`GroupActivation`.

    Args:
        units: shape of the block of units that the activation acts on, for learnable activations: ``(h,)`` for
            one layer of ``h`` units, ``(M, h)`` for ``M`` stacked modules. Parameter-free ones ignore it.
        monotone: constrain learnable parameters so that the Jacobian of ``s`` is positive semidefinite.
    """

    #: Eigenvalues of the Jacobian of ``s`` lie in this interval for every ``z`` (parameter-free activations).
    slopes: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    #: Bound of |s(z)| for every ``z``: of each entry if elementwise, of the Euclidean norm if a group.
    bound: ClassVar[float] = math.inf

    def __init__(self, units: Sequence[int] = (), *, monotone: bool = False) -> None:
        super().__init__()
        self.units = tuple(units)
        self.monotone = monotone

    @property
    def increasing(self) -> bool:
        """True if psi is convex by construction, so that the activation is legal in a monotone map."""
        return self.slopes[0] >= 0

    def slope_interval(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of the eigenvalues of the Jacobian of ``s``, valid for every ``z``."""
        lower, upper = self.slopes
        return torch.tensor(lower), torch.tensor(upper)

    def value_bound(self) -> Tensor:
        """Bound of |s(z)|, valid for every ``z``: of each entry if elementwise, of the Euclidean norm if a group."""
        return torch.tensor(self.bound)

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """s(z), of the shape of ``z``."""

    @abstractmethod
    def potential(self, z: Tensor) -> Tensor:
        """psi(z) with s = grad psi."""

    def parameter_columns(self, z: Tensor) -> list[ParameterColumns] | None:
        """The derivatives of s(z), (*, *units), in its own parameters; None if they are not known.

        A parameter of shape (*units, k) has derivatives (*, *units, k), and one of shape (*groups, 1) those of all
        units of a group, (*, *units).
        """
        return [] if next(self.parameters(), None) is None else None

    def potential_columns(self, z: Tensor) -> list[ParameterColumns] | None:
        """The derivatives of psi(z) in its own parameters, as :meth:`parameter_columns`; None if they are not known.

        Elementwise: (*, *units). Groups: (*, *groups).
        """
        return [] if next(self.parameters(), None) is None else None


class TwoWeights(nn.Module):
    """Two learnable weights a and b of a given shape, positive (softplus) if monotone."""

    def __init__(self, shape: Sequence[int], a: float, b: float, *, monotone: bool) -> None:
        super().__init__()
        self.monotone = monotone
        start = inverse_softplus if monotone else float
        self.a_raw = nn.Parameter(torch.full(tuple(shape), start(a)))
        self.b_raw = nn.Parameter(torch.full(tuple(shape), start(b)))

    def forward(self) -> tuple[Tensor, Tensor]:
        return constrained(self.a_raw, nonnegative=self.monotone), constrained(self.b_raw, nonnegative=self.monotone)

    def columns(self, in_a: Tensor, in_b: Tensor) -> list[ParameterColumns]:
        """Derivatives in a and b as derivatives in the parameters behind them."""
        return [
            ParameterColumns(self.a_raw, through_constraint(in_a, self.a_raw, nonnegative=self.monotone)),
            ParameterColumns(self.b_raw, through_constraint(in_b, self.b_raw, nonnegative=self.monotone)),
        ]


class ElementwiseActivation(GradientActivation):
    r"""An activation that acts on each unit alone: :math:`s(z)_i = \psi_i'(z_i)`.

    To use an activation of your own, subclass it and define ``forward``, ``potential`` and ``derivative``, all of
    shape ``(*, h) -> (*, h)``. Declare ``slopes = (lower, upper)`` if you know bounds of the derivative: with
    ``lower >= 0`` the activation is legal in monotone maps.

    >>> class Cubic(ElementwiseActivation):
    ...     slopes = (0.0, float("inf"))
    ...     def forward(self, z): return z**3
    ...     def potential(self, z): return z**4 / 4
    ...     def derivative(self, z): return 3 * z**2
    >>> from nablanets import GradNetM
    >>> GradNetM(2, 5, activation=Cubic, monotone=True)(torch.zeros(3, 2)).shape
    torch.Size([3, 2])
    """

    #: The points between which a piecewise linear ``s`` is linear; empty for smooth ``s``.
    kinks: ClassVar[tuple[float, ...]] = ()

    @abstractmethod
    def derivative(self, z: Float[Tensor, "*batch h"]) -> Float[Tensor, "*batch h"]:
        """s'(z), elementwise."""

    def bends(self) -> tuple[float, ...]:
        """Where s is likely to bend or has knots: integrals of it are split there, and wherever else they need it."""
        return (0.0,)

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """s(z) and s'(z) together; override it where they share work."""
        return self(z), self.derivative(z)

    def all_derivatives(self, z: Tensor) -> tuple[Tensor, Tensor, list[ParameterColumns]] | None:
        """s(z), s'(z) and :meth:`parameter_columns` together; override it where they share work."""
        columns = self.parameter_columns(z)
        return None if columns is None else (*self.value_and_derivative(z), columns)


class GroupDerivative(NamedTuple):
    """The Jacobian of a group activation, diag(diagonal) + factors^T diag(weights) factors."""

    diagonal: Float[Tensor, "*batch h"]
    factors: Float[Tensor, "*batch r h"]
    weights: Float[Tensor, "*batch r"]


class GroupActivation(GradientActivation):
    r"""An activation that acts on a whole group of units (the last dimension) at once.

    ``potential`` maps ``(*, h)`` to ``(*)``; the Jacobian is diagonal plus low rank, see :class:`GroupDerivative`.
    """

    #: Whether the Jacobian is a combination of covariances diag(p) - p p^T of probabilities p, each counted with
    #: 1/2 in the slopes (as for softmax). Such Jacobians ignore what all units have in common.
    covariance: ClassVar[bool] = False

    @abstractmethod
    def derivative(self, z: Float[Tensor, "*batch h"]) -> GroupDerivative:
        """The symmetric Jacobian of s at z."""

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, GroupDerivative]:
        """s(z) and its Jacobian together; override it where they share work."""
        return self(z), self.derivative(z)

    def all_derivatives(self, z: Tensor) -> tuple[Tensor, GroupDerivative, list[ParameterColumns]] | None:
        """s(z), its Jacobian and :meth:`parameter_columns` together; override it where they share work."""
        columns = self.parameter_columns(z)
        return None if columns is None else (*self.value_and_derivative(z), columns)
