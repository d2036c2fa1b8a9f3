"""What a fit minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nablanets.fitting.scale import power_of_two, root_mean_square

#: The loss of a network on points (n, d) and their targets (n, k), a scalar.
Objective: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]

# Points that are evaluated at once: enough to keep a processor busy, and the arrays of wide networks still fit.
_CHUNK = 65536


class PackedTargets(ABC):
    """What is known at n points and how it is fitted: targets that :func:`fit` takes in place of gradients."""

    @abstractmethod
    def pack(self, x: Tensor) -> Tensor:
        """Everything that belongs to points (n, d) side by side, (n, columns), without NaN."""

    @abstractmethod
    def __call__(self, net: nn.Module, x: Tensor, packed: Tensor) -> Tensor:
        """The objective on points and their packed targets, a scalar."""

    def size(self, x: Tensor, packed: Tensor) -> float:
        """Of the targets: the square root of the objective of a map that is zero, about; one if nothing is known."""
        return 1.0

    @abstractmethod
    def signature(self) -> dict[str, Any]:
        """JSON values that tell this objective from others, for checkpoints."""


def squared_error(net: nn.Module, x: Tensor, g: Tensor, unit: float = 1.0) -> Tensor:
    """Mean ||net(x) - g||^2, in multiples of unit^2."""
    residual = net(x) - g
    if unit != 1.0:
        residual = residual / unit
    return residual.square().sum(dim=-1).mean()


def error(net: nn.Module, x: Tensor, g: Tensor, objective: Objective = squared_error) -> float:
    """The objective (mean ||net(x) - g||^2) on all samples, in chunks, without building an autograd graph."""
    unit = 1.0
    if objective is squared_error:
        unit = power_of_two(root_mean_square(g))  # no square overflows, and no digit changes
        objective = partial(squared_error, unit=unit)
    total = 0.0
    with torch.no_grad():
        for points, targets in zip(x.split(_CHUNK), g.split(_CHUNK), strict=True):
            total += len(points) * float(objective(net, points, targets))
    return total / len(x) * unit * unit
