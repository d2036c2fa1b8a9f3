"""High-dimensional gradient fields: the piecewise quadratic one of "Gradient Networks", two nonconvex ones of ours."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets_studies.problems.fields import Field

#: Fields are scaled by the mean length of their gradient over so many uniform points.
_SCALE_POINTS = 10_000
#: The seed of these points, and of the fields' own random numbers.
_SCALE_SEED = 0


class PiecewiseQuadratic(Field):
    r"""The gradient of F = max over A in {S, P, Q} of (x - 1/2)^T A (x - 1/2) / c: convex, with edges.

    With :math:`a_{ij} = (i + j - 2) / (2d - 2)` and :math:`\delta_{ij} = \ln d\,(1 + |i - j|)`,

    .. math:: S = (2 + \sin 4\pi a) / \delta, \quad P = (1 + 2a) / \delta, \quad Q = (3 - 2a) / \delta,

    entry by entry, and c the mean of ||grad F|| over 10,000 points, so that gradients have length one on average.

    Args:
        features: d >= 2.
        dtype: of the matrices and the samples.

    Attributes:
        matrices: S, P, Q, (3, d, d).
        scale: c; 3.00, 5.46, 8.67 at d = 32, 256, 1024 by our draw of points.

    Raises:
        InvalidInputError: d < 2.

    Reference:
        Chaudhari, Pranav, Moura, "Gradient Networks", IEEE TSP 73 (2025), eq. 22, and the authors' code.

    >>> field = PiecewiseQuadratic(32)
    >>> x, g = field.sample(1000, torch.Generator().manual_seed(1))
    >>> round(field.scale, 1), round(float(g.norm(dim=1).mean()), 1)
    (3.0, 1.0)
    """

    name = "piecewise-quadratic"
    formula = "F = max over A in {S, P, Q} of (x - 1/2)' A (x - 1/2) / c"
    convex = True

    def __init__(self, features: int, dtype: torch.dtype = torch.float32) -> None:
        _check_features(features, self.name)
        self.features = features
        self.dtype = dtype
        self.matrices = piecewise_matrices(features).to(dtype)
        self.scale = 1.0
        self.scale = _mean_length(self)

    def pieces(self, x: Tensor) -> Tensor:
        """Which of S, P, Q (0, 1, 2) is the largest at points (*, d)."""
        return self._largest(x)[2]

    def potential(self, x: Tensor) -> Tensor:
        return self._largest(x)[0] / self.scale

    def gradient(self, x: Tensor) -> Tensor:
        return self._largest(x)[1] * (2 / self.scale)

    def _largest(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The largest (x - 1/2)^T A (x - 1/2), the A (x - 1/2) that belongs to it, and the number of that A."""
        y = x - 0.5
        product = y @ self.matrices[0]
        value = (product * y).sum(dim=-1)
        piece = torch.zeros_like(value, dtype=torch.long)
        for k, matrix in enumerate(self.matrices[1:], start=1):
            other = y @ matrix
            larger = (other * y).sum(dim=-1) > value
            product = torch.where(larger.unsqueeze(-1), other, product)
            value = (product * y).sum(dim=-1)
            piece = torch.where(larger, k, piece)
        return value, product, piece


class PiecewiseDifference(Field):
    r"""The gradient of G = (F(x) - F(x shuffled)) / c, a difference of two piecewise quadratic maxima.

    The field is ours. F is :class:`PiecewiseQuadratic`; the second maximum is over the same matrices with the
    coordinates in a fixed random order, so G is piecewise quadratic with up to nine pieces, and neither convex nor
    concave.

    >>> field = PiecewiseDifference(8)
    >>> field.gradient(torch.full((8,), 0.5)).abs().max().item()
    0.0
    """

    name = "piecewise-difference"
    formula = "G = (F(x) - F(x[order])) / c with F of piecewise-quadratic"
    convex = False

    def __init__(self, features: int, dtype: torch.dtype = torch.float32) -> None:
        self.features = features
        self.dtype = dtype
        self.part = PiecewiseQuadratic(features, dtype)
        self.order = torch.randperm(features, generator=torch.Generator().manual_seed(_SCALE_SEED))
        self.inverse_order = self.order.argsort()
        self.scale = 1.0
        self.scale = _mean_length(self)

    def potential(self, x: Tensor) -> Tensor:
        return (self.part.potential(x) - self.part.potential(x[..., self.order])) / self.scale

    def gradient(self, x: Tensor) -> Tensor:
        shuffled = self.part.gradient(x[..., self.order])[..., self.inverse_order]
        return (self.part.gradient(x) - shuffled) / self.scale


class SinusoidalRidges(Field):
    r"""The gradient of G = sum_i sin(w_i . (x - 1/2) + p_i) / (||w_i|| c), random oscillating ridges.

    The field is ours. There are 32 ridges with random directions; the lengths of w_i are evenly spread over [2, 12],
    so that the arguments vary by 0.6 to 3.5 (standard deviation) over the cube, at every d. Phases p_i are uniform.

    >>> field = SinusoidalRidges(8)
    >>> field.directions.shape
    torch.Size([32, 8])
    """

    name = "sinusoidal-ridges"
    formula = "G = sum over 32 ridges of sin(w_i . (x - 1/2) + p_i) / (|w_i| c)"
    convex = False

    def __init__(self, features: int, dtype: torch.dtype = torch.float32) -> None:
        _check_features(features, self.name)
        self.features = features
        self.dtype = dtype
        generator = torch.Generator().manual_seed(_SCALE_SEED)
        direction = torch.randn(32, features, generator=generator, dtype=torch.float64)
        self.lengths = torch.linspace(2, 12, 32, dtype=dtype)
        self.directions = (direction / direction.norm(dim=1, keepdim=True)).to(dtype) * self.lengths.unsqueeze(1)
        self.phases = (2 * math.pi * torch.rand(32, generator=generator, dtype=torch.float64)).to(dtype)
        self.scale = 1.0
        self.scale = _mean_length(self)

    def _arguments(self, x: Tensor) -> Tensor:
        return (x - 0.5) @ self.directions.mT + self.phases

    def potential(self, x: Tensor) -> Tensor:
        return (torch.sin(self._arguments(x)) / (self.lengths * self.scale)).sum(dim=-1)

    def gradient(self, x: Tensor) -> Tensor:
        return (torch.cos(self._arguments(x)) / (self.lengths * self.scale)) @ self.directions


#: The high-dimensional fields by name, as functions of the dimension.
HIGH_DIMENSIONAL: dict[str, Callable[..., Field]] = {
    field.name: field for field in (PiecewiseQuadratic, PiecewiseDifference, SinusoidalRidges)
}


def piecewise_matrices(features: int) -> Tensor:
    """S, P, Q of :class:`PiecewiseQuadratic` in float64, (3, d, d): positive definite.

    >>> matrices = piecewise_matrices(16)
    >>> bool((torch.linalg.eigvalsh(matrices) > 0).all())
    True
    """
    index = torch.arange(features, dtype=torch.float64)
    a = (index.unsqueeze(1) + index) / (2 * features - 2)
    delta = math.log(features) * (1 + (index.unsqueeze(1) - index).abs())
    return torch.stack([2 + torch.sin(4 * math.pi * a), 1 + 2 * a, 3 - 2 * a]) / delta


def _mean_length(field: Field) -> float:
    generator = torch.Generator().manual_seed(_SCALE_SEED)
    return float(field.sample(_SCALE_POINTS, generator)[1].norm(dim=1).mean())


def _check_features(features: int, owner: str) -> None:
    if features < 2:
        raise InvalidInputError(f"{owner}: expected at least 2 features, got {features}.")
