"""Conjugate gradients: solves with positive definite operators that are known by their products only, batched."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_STEPS_PER_FEATURE = 3


class Products(Protocol):
    """What the method needs of an operator."""

    features: int

    def __matmul__(self, v: Tensor) -> Tensor: ...


@torch.no_grad()
def conjugate_gradients(operator: Products, b: Tensor) -> tuple[Tensor, Tensor]:
    """x with J x = b, of the shape of b, and where that failed.

    Samples stop when their residual is within rounding of |b|; one fails if a direction of no curvature turns up, or
    if its residual is above the square root of rounding after three times d steps.
    """
    rounding = torch.finfo(b.dtype).eps
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    square, target = b.square().sum(dim=-1), (8 * rounding) ** 2 * b.square().sum(dim=-1)
    failed = torch.zeros_like(square, dtype=torch.bool)
    for _ in range(_STEPS_PER_FEATURE * operator.features):
        active = (square > target) & ~failed
        if not bool(active.any()):
            break
        product = operator @ direction
        curvature = (direction * product).sum(dim=-1)
        failed = failed | (active & ~(curvature > 0))
        length = torch.where(active & ~failed, square / curvature, 0.0).unsqueeze(-1)
        x = x + length * direction
        residual = residual - length * product
        new = residual.square().sum(dim=-1)
        direction = residual + (new / square.clamp(min=torch.finfo(b.dtype).tiny)).unsqueeze(-1) * direction
        square = new
    return x, failed | (square > rounding * b.square().sum(dim=-1))
