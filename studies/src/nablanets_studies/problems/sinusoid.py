"""A sinusoid of high frequency on an interval, to be learned from noisy samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError


@dataclass(frozen=True)
class Sinusoid:
    r"""y = sin(d pi x) on [-1, 1], which holds d periods.

    "Gradient Residual Connections" has a one-dimensional regression on a sinusoid and figures with d = 16. That d is
    the frequency in this sense, the interval, the noise and the uniform points are our choices.

    Args:
        frequency: d.
        noise: standard deviation of what :meth:`sample` adds to y.

    Raises:
        InvalidInputError: the frequency is not positive or the noise is negative.

    >>> Sinusoid(4).value(torch.tensor([[0.125]]))
    tensor([[1.]])
    """

    frequency: int
    noise: float = 0.1

    def __post_init__(self) -> None:
        if not (self.frequency > 0 and self.noise >= 0):
            raise InvalidInputError(
                f"Sinusoid: expected frequency > 0 and noise >= 0, got {self.frequency} and {self.noise}."
            )

    def value(self, x: Tensor) -> Tensor:
        """The function without noise, at points of any shape."""
        return torch.sin(self.frequency * math.pi * x)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform points, (count, 1), and noisy values there."""
        x = 2 * torch.rand(count, 1, generator=generator) - 1
        return x, self.value(x) + self.noise * torch.randn(count, 1, generator=generator)

    def grid(self, count: int) -> tuple[Tensor, Tensor]:
        """The middles of equal cells, (count, 1), and the values there without noise."""
        x = (2 * torch.arange(count).unsqueeze(1) + 1) / count - 1
        return x, self.value(x)
