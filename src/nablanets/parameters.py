"""Parameters of all maps: how a free tensor becomes a sign-constrained one, how weights lie in memory, how many."""

from __future__ import annotations

import math
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Above this value softplus(z) = z to the last bit of float64, and exp does not overflow in float32.
_SOFTPLUS_THRESHOLD = 60.0


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), exact to rounding for all z (torch's default switches to z already at 20)."""
    return F.softplus(z, threshold=_SOFTPLUS_THRESHOLD)


@overload
def inverse_softplus(value: float) -> float: ...
@overload
def inverse_softplus(value: Tensor) -> Tensor: ...
def inverse_softplus(value: float | Tensor) -> float | Tensor:
    """The z with softplus(z) = value > 0.

    >>> round(math.log1p(math.exp(inverse_softplus(0.25))), 12)
    0.25
    """
    if isinstance(value, Tensor):
        return value + torch.log(-torch.expm1(-value))
    return value + math.log(-math.expm1(-value))


def units_last(weight: Tensor) -> Tensor:
    """Weights (*units, features) as (features, *units), which is how they are stored.

    With the units as the fast axis, the products that make the weights' gradients run along the units, which are many,
    instead of the features, which may be two: a training step of GradNet-M takes half the time at d = 2 to 8 and the
    same in high dimension.

    >>> units_last(torch.zeros(4, 7, 2)).shape
    torch.Size([2, 4, 7])
    """
    return weight.movedim(-1, 0).contiguous()


def constrained(raw: Tensor, *, nonnegative: bool) -> Tensor:
    """softplus(raw) where the sign is constrained, else raw itself."""
    return softplus(raw) if nonnegative else raw


def count_parameters(module: nn.Module) -> int:
    """The number of trainable numbers in a module.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
