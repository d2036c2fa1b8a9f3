"""Gradient fields with known potentials; the two-dimensional ones are the first experiments of "Gradient Networks"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Field(ABC):
    """A gradient field on the unit cube of d = ``features`` dimensions with its potential."""

    name: ClassVar[str]
    formula: ClassVar[str]
    convex: ClassVar[bool]
    features: int
    dtype: torch.dtype = torch.float32

    @abstractmethod
    def potential(self, x: Tensor) -> Tensor:
        """F at points (*, d)."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """grad F at points (*, d)."""

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform points of the cube, (count, d), and the gradients there."""
        x = torch.rand(count, self.features, generator=generator, dtype=self.dtype)
        return x, self.gradient(x)


class Field2D(Field):
    """A gradient field on the unit square."""

    features = 2


class ConvexField(Field2D):
    """grad F for F = x1^4 + x1^2/2 + x1 x2/2 + 3 x2^2/2 - x2^3/3, convex on the unit square.

    >>> ConvexField().gradient(torch.tensor([1.0, 1.0])).tolist()
    [5.5, 2.5]
    """

    name = "convex"
    formula = "F = x1^4 + x1^2/2 + x1 x2/2 + 3 x2^2/2 - x2^3/3"
    convex = True

    def potential(self, x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        return a**4 + a**2 / 2 + a * b / 2 + 1.5 * b**2 - b**3 / 3

    def gradient(self, x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        return torch.stack([4 * a**3 + a + b / 2, 3 * b - b**2 + a / 2], dim=-1)


class NonconvexField(Field2D):
    """grad F for F = sin(2 pi x1) cos(pi x2)/4 + x1 x2/2 - x2^2/2.

    >>> NonconvexField().gradient(torch.tensor([0.0, 0.0])).tolist()[1]
    0.0
    """

    name = "nonconvex"
    formula = "F = sin(2 pi x1) cos(pi x2)/4 + x1 x2/2 - x2^2/2"
    convex = False

    def potential(self, x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        return torch.sin(2 * torch.pi * a) * torch.cos(torch.pi * b) / 4 + a * b / 2 - b**2 / 2

    def gradient(self, x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        first = torch.pi / 2 * torch.cos(2 * torch.pi * a) * torch.cos(torch.pi * b) + b / 2
        second = -torch.pi / 4 * torch.sin(2 * torch.pi * a) * torch.sin(torch.pi * b) + a / 2 - b
        return torch.stack([first, second], dim=-1)


def unit_grid(side: int) -> Tensor:
    """The points of a regular side x side grid on [0, 1]^2, (side, side, 2).

    >>> unit_grid(3)[0, 1].tolist()
    [0.0, 0.5]
    """
    axis = torch.linspace(0, 1, side)
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
