"""Symplectic maps made of shears: a network that learns the flow over one fixed time step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nablanets import serialization
from nablanets.errors import InvalidInputError, check_points
from nablanets.maps import GradientMap
from nablanets.maps.describing import describe_map
from nablanets.parameters import first_tensor
from nablanets.serialization import savable


@savable
class SympNet(nn.Module):
    r"""A composition of shears, alternately q += f_k(p) and p += f_k(q) with gradient maps f_k; symplectic for any.

    It learns the map from x(t) to x(t + h) for one h, and no field. With one-layer ridge maps it is the gradient
    SympNet of Jin et al.

    Args:
        shears: gradient maps of n features; the first moves q.

    Reference:
        Jin, Zhang, Zhu, Tang, Karniadakis, "SympNets", Neural Networks 132 (2020); that any gradient map can be a
        shear follows from its symmetric Jacobian.

    >>> from nablanets import GradNetC
    >>> net = SympNet([GradNetC(2, 8, 1) for _ in range(4)])
    >>> net(torch.randn(5, 4)).shape
    torch.Size([5, 4])
    """

    def __init__(self, shears: Sequence[GradientMap]) -> None:
        super().__init__()
        dimensions = {shear.features for shear in shears}
        if len(dimensions) != 1:
            raise InvalidInputError(
                f"SympNet: expected gradient maps with one number of features, got {sorted(dimensions)}."
            )
        self.features = 2 * dimensions.pop()
        self.shears = nn.ModuleList(shears)

    def config(self) -> dict[str, Any]:
        return {"shears": list(self.shears)}

    def __repr__(self) -> str:
        return describe_map(self, self.config, features=self.features)

    def save(self, path: str | Path) -> None:
        """Write architecture and weights to a safetensors file; :func:`nablanets.load` reads it back."""
        serialization.save(self, path)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        check_points(x, self.features, owner="SympNet", like=first_tensor(self))
        q, p = x.chunk(2, dim=-1)
        for k, shear in enumerate(self.shears):
            if k % 2 == 0:
                q = q + cast(Tensor, shear(p))
            else:
                p = p + cast(Tensor, shear(q))
        return torch.cat([q, p], dim=-1)

    def iterate(self, x0: Float[Tensor, "*batch d"], steps: int) -> Float[Tensor, "t *batch d"]:
        """x0 and the states after 1 .. steps steps."""
        states = [x0]
        for _ in range(steps):
            states.append(self(states[-1]))
        return torch.stack(states)
