"""What networks are compared with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nablanets.serialization import savable
from nablanets_studies.images.resize import bicubic


@savable
class Bicubic(nn.Module):
    """Bicubic enlargement as a network without parameters.

    >>> import torch
    >>> Bicubic(3)(torch.rand(1, 3, 4, 5)).shape
    torch.Size([1, 3, 12, 15])
    """

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale

    def config(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def forward(self, x: Tensor) -> Tensor:
        return bicubic(x, self.scale)
