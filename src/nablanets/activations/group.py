"""Group activations: gradients of potentials that couple the units of a group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nablanets.activations.base import (
    ElementwiseActivation,
    GroupActivation,
    GroupDerivative,
    ParameterColumns,
    TwoWeights,
)
from nablanets.activations.elementwise import Tanh
from nablanets.errors import InvalidInputError


def softmax(z: Tensor) -> Tensor:
    """Softmax over the last dimension, along the first one in memory.

    Groups are a few units, batches many samples. Torch's loops run along the last dimension, over a few numbers at a
    time; with the first one, the samples, moved there it takes a tenth of the time. The result stays in that order.
    """
    if z.ndim < 2:
        return torch.softmax(z, dim=-1)
    return torch.softmax(z.movedim(0, -1), dim=-2).movedim(-1, 0)


def stacked(first: Tensor, second: Tensor) -> Tensor:
    """``torch.stack`` before the last dimension, along the first one in memory as in :func:`softmax`."""
    if first.ndim < 2:
        return torch.stack([first, second], dim=-2)
    return torch.stack([first.movedim(0, -1), second.movedim(0, -1)], dim=-3).movedim(-1, 0)


class Softmax(GroupActivation):
    r"""s = softmax(z), :math:`\psi = \mathrm{LSE}(z)`, Jacobian diag(p) - p p^T with eigenvalues in [0, 1/2]."""

    slopes = (0.0, 0.5)
    covariance = True
    bound = 1.0

    def forward(self, z: Tensor) -> Tensor:
        return softmax(z)

    def potential(self, z: Tensor) -> Tensor:
        return torch.logsumexp(z, dim=-1)

    def derivative(self, z: Tensor) -> GroupDerivative:
        return self.value_and_derivative(z)[1]

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, GroupDerivative]:
        p = softmax(z)
        return p, GroupDerivative(p, p.unsqueeze(-2), -torch.ones_like(p[..., :1]))


class WSoftmax(GroupActivation):
    r"""Learnable weighted softmax.

    s = a softmax(z) - b softmax(-z), :math:`\psi = a\,\mathrm{LSE}(z) + b\,\mathrm{LSE}(-z)`.
    a and b are scalars per group; positive (softplus) if monotone, else free. Initial a = b = 1 (our choice).
    """

    covariance = True

    def __init__(self, units: Sequence[int] = (), *, monotone: bool = False) -> None:
        super().__init__(units, monotone=monotone)
        self.weights = TwoWeights((*self.units[:-1], 1), 1.0, 1.0, monotone=monotone)

    @property
    def increasing(self) -> bool:
        return self.monotone

    def slope_interval(self) -> tuple[Tensor, Tensor]:
        halves = torch.cat(self.weights(), dim=-1) / 2
        return halves.clamp(max=0).sum(-1, keepdim=True), halves.clamp(min=0).sum(-1, keepdim=True)

    def value_bound(self) -> Tensor:
        a, b = self.weights()
        return a.abs() + b.abs()

    def forward(self, z: Tensor) -> Tensor:
        a, b = self.weights()
        return a * softmax(z) - b * softmax(-z)

    def potential(self, z: Tensor) -> Tensor:
        a, b = self.weights()
        return a.squeeze(-1) * torch.logsumexp(z, dim=-1) + b.squeeze(-1) * torch.logsumexp(-z, dim=-1)

    def derivative(self, z: Tensor) -> GroupDerivative:
        return self.value_and_derivative(z)[1]

    def value_and_derivative(self, z: Tensor) -> tuple[Tensor, GroupDerivative]:
        a, b = self.weights()
        p, q = softmax(z), softmax(-z)
        weights = -torch.cat([a, b], dim=-1).expand(*z.shape[:-1], 2)
        ap, bq = a * p, b * q
        return ap - bq, GroupDerivative(ap + bq, stacked(p, q), weights)

    def parameter_columns(self, z: Tensor) -> list[ParameterColumns]:
        """softmax(z) and -softmax(-z)."""
        return self.weights.columns(softmax(z), -softmax(-z))

    def all_derivatives(self, z: Tensor) -> tuple[Tensor, GroupDerivative, list[ParameterColumns]]:
        value, derivative = self.value_and_derivative(z)
        p, q = derivative.factors.unbind(-2)
        return value, derivative, self.weights.columns(p, -q)

    def potential_columns(self, z: Tensor) -> list[ParameterColumns]:
        """LSE(z) and LSE(-z)."""
        in_a = torch.logsumexp(z, dim=-1, keepdim=True)
        in_b = torch.logsumexp(-z, dim=-1, keepdim=True)
        columns = self.weights.columns(in_a, in_b)
        return [ParameterColumns(own.parameter, own.columns.squeeze(-1)) for own in columns]


class PNorm(GroupActivation):
    r"""Gradient of the smoothed norm :math:`\psi = (1 + \sum_i |z_i|^p)^{1/p}`, p >= 2.

    Jacobian eigenvalues in [0, p - 1]: psi is a norm of (z, 1), so it is convex; |s| <= 1 in the dual norm, which for
    p >= 2 is at least the Euclidean one.
    """

    bound = 1.0

    def __init__(self, units: Sequence[int] = (), *, monotone: bool = False, p: float = 4.0) -> None:
        super().__init__(units, monotone=monotone)
        if not p >= 2:
            raise InvalidInputError(f"PNorm: expected p >= 2 (the potential must be smooth), got {p}.")
        self.p = p

    @property
    def increasing(self) -> bool:
        return True

    def slope_interval(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(0.0), torch.tensor(self.p - 1)

    def potential(self, z: Tensor) -> Tensor:
        # Scaled by the largest entry (a constant to differentiation) so that powers do not overflow.
        top = z.detach().abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
        powers = (z / top).abs().pow(self.p).sum(dim=-1, keepdim=True) + top.pow(-self.p)
        return (top * powers.pow(1 / self.p)).squeeze(-1)

    def _ratio(self, z: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.potential(z).unsqueeze(-1)
        return z / norm, norm

    def forward(self, z: Tensor) -> Tensor:
        r, _ = self._ratio(z)
        return r * r.abs().pow(self.p - 2)

    def derivative(self, z: Tensor) -> GroupDerivative:
        r, norm = self._ratio(z)
        power = r.abs().pow(self.p - 2)
        diagonal = (self.p - 1) * power / norm
        return GroupDerivative(diagonal, (r * power).unsqueeze(-2), -(self.p - 1) / norm)


class Radial(GroupActivation):
    r"""s(z) = rho(nu) z / N with N = sqrt(1 + |z|^2), nu = N - 1, :math:`\psi = P(\nu)`, P' = rho = tanh.

    Equivariant under rotations of the group; Jacobian eigenvalues in [0, 1].
    """

    slopes = (0.0, 1.0)
    bound = 1.0

    def __init__(self, units: Sequence[int] = (), *, monotone: bool = False) -> None:
        super().__init__(units, monotone=monotone)
        self.profile: ElementwiseActivation = Tanh()

    def _radius(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """N and nu, (*, 1): of z over its largest entry (a constant to differentiation), so that squares are finite."""
        top = z.detach().abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
        square = (z / top).square().sum(dim=-1, keepdim=True)  # |z|^2 / top^2
        norm = top * torch.sqrt(top.pow(-2) + square)
        return norm, square / (norm / top + 1 / top) * top

    def forward(self, z: Tensor) -> Tensor:
        norm, nu = self._radius(z)
        return self.profile(nu) * (z / norm)

    def potential(self, z: Tensor) -> Tensor:
        return self.profile.potential(self._radius(z)[1]).squeeze(-1)

    def derivative(self, z: Tensor) -> GroupDerivative:
        norm, nu = self._radius(z)
        rho, slope = self.profile.value_and_derivative(nu)
        tangential = rho / norm
        return GroupDerivative(tangential.expand_as(z), (z / norm).unsqueeze(-2), slope - tangential)
