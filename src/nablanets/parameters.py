"""Parametrisations shared by all maps: how a free tensor becomes a sign-constrained one."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

# Above this value softplus(z) = z to the last bit of float64, and exp does not overflow in float32.
_SOFTPLUS_THRESHOLD = 60.0


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), exact to rounding for all z (torch's default switches to z already at 20)."""
    return F.softplus(z, threshold=_SOFTPLUS_THRESHOLD)


def inverse_softplus(value: float) -> float:
    """The number z with softplus(z) = value > 0.

    >>> round(math.log1p(math.exp(inverse_softplus(0.25))), 12)
    0.25
    """
    return value + math.log(-math.expm1(-value))


def constrained(raw: Tensor, *, nonnegative: bool) -> Tensor:
    """softplus(raw) where the sign is constrained, else raw itself."""
    return softplus(raw) if nonnegative else raw
