"""The gradient of any scalar network."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nablanets.errors import ShapeError, check_positive_int
from nablanets.maps.base import GradientMap
from nablanets.operators import HessianOperator, SymmetricOperator
from nablanets.serialization import savable


@runtime_checkable
class HasGradient(Protocol):
    """A scalar module that has its gradient in closed form."""

    def gradient(self, x: Tensor) -> Tensor: ...


@savable
class FromPotential(GradientMap):
    """f = grad F for a scalar module F.

    The gradient comes from the module's own ``gradient(x)`` if it has one, else through torch.func, which works
    everywhere (no_grad, inference_mode, vmap, compile) but under torch.export.

    Args:
        module: maps (*, d) to (*) or (*, 1), each sample by itself (so no batch normalisation).
        features: d.
        monotone: state that F is convex by construction; nothing enforces it, ``verify.certificate`` checks it.

    Raises:
        ShapeError: at evaluation, if the module does not return one number per sample.

    >>> f = FromPotential(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), features=3)
    >>> f(torch.zeros(4, 3)).shape, f.jacobian(torch.zeros(4, 3)).dense().shape
    (torch.Size([4, 3]), torch.Size([4, 3, 3]))
    """

    def __init__(self, module: nn.Module, features: int, *, monotone: bool = False) -> None:
        check_positive_int(features, owner="FromPotential", name="features")
        super().__init__(features, monotone=monotone)
        self.module = module

    def config(self) -> dict[str, Any]:
        return {"module": self.module, "features": self.features, "monotone": self.monotone}

    def _potential(self, x: Tensor) -> Tensor:
        value = self.module(x)
        if value.shape == (*x.shape[:-1], 1):
            value = value.squeeze(-1)
        if value.shape != x.shape[:-1]:
            raise ShapeError(
                f"FromPotential: expected the module to map {tuple(x.shape)} to one number per sample, "
                f"{tuple(x.shape[:-1])} or {(*x.shape[:-1], 1)}, got {tuple(value.shape)}."
            )
        return value

    def _forward(self, x: Tensor) -> Tensor:
        if isinstance(self.module, HasGradient):
            return self.module.gradient(x)
        return torch.func.grad(lambda points: self._potential(points).sum())(x)

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        return HessianOperator(self._forward, x, positive_semidefinite=self.monotone)


def from_potential(module: nn.Module, features: int, *, monotone: bool = False) -> FromPotential:
    """The gradient map of a scalar module. See :class:`FromPotential`."""
    return FromPotential(module, features, monotone=monotone)
