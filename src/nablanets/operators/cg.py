"""Conjugate gradients: solves with positive definite operators that are known by their products only, batched.

Solves J x = b by minimising x.J x / 2 - b.x over growing Krylov spaces: each search direction is the residual made
J-orthogonal to the direction before, and the step along it is exact (Hestenes and Stiefel, 1952; Nocedal and Wright,
"Numerical Optimization", algorithm 5.2). Every sample of the batch takes its own steps and stops by itself.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from nablanets.tensors import any_of, largest_entry

# Steps at most, for each feature. Exact arithmetic needs one; rounding delays ill-conditioned solves.
_STEPS_PER_FEATURE = 3
# A sample stops when its residual is below this many roundings of |b|.
_STOP_ROUNDINGS = 8


class Products(Protocol):
    """What the method needs of an operator."""

    features: int

    def __matmul__(self, v: Tensor) -> Tensor: ...


@torch.no_grad()
def conjugate_gradients(operator: Products, b: Tensor) -> tuple[Tensor, Tensor]:
    """x with J x = b, of the shape of b, and where that failed.

    Samples stop when their residual is within rounding of |b|; one fails if a direction of no curvature turns up, or
    if its residual is above the square root of rounding after three times d steps. Right-hand sides are solved for
    divided by their largest entry, since squares of large numbers overflow. Where b or J holds NaN, so does x.

    Args:
        operator: J.
        b: right-hand sides, (*batch, d).

    Returns:
        x, (*batch, d); failed, (*batch).
    """
    rounding = torch.finfo(b.dtype).eps
    tiny = torch.finfo(b.dtype).tiny
    scale = largest_entry(b)  # (*batch, 1)
    residual = b / scale
    direction = residual
    residual_square = residual.square().sum(dim=-1)  # (*batch)
    goal = rounding * residual_square
    target = _STOP_ROUNDINGS**2 * rounding * goal
    x = torch.zeros_like(b)
    failed = torch.zeros_like(residual_square, dtype=torch.bool)
    for _ in range(_STEPS_PER_FEATURE * operator.features):
        active = (residual_square > target) & ~failed
        if not any_of(active):
            break
        product = operator @ direction
        curvature = (direction * product).sum(dim=-1)
        failed = failed | (active & (curvature <= 0))
        step_size = torch.where(active & ~failed, residual_square / curvature, 0.0).unsqueeze(-1)
        x = x + step_size * direction
        residual = residual - step_size * product
        new_square = residual.square().sum(dim=-1)
        momentum = (new_square / residual_square.clamp(min=tiny)).unsqueeze(-1)
        direction = residual + momentum * direction
        residual_square = new_square
    known = torch.isfinite(residual_square).unsqueeze(-1)
    return torch.where(known, x * scale, torch.nan), failed | (residual_square > goal)
