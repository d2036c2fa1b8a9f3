"""Parameters of all maps: how a free tensor becomes a sign-constrained one, how weights lie in memory, how many."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Above this value softplus(z) = z to the last bit of float64, and exp does not overflow in float32.
_SOFTPLUS_THRESHOLD = 60.0

M = TypeVar("M", bound=nn.Module)


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


def through_constraint(columns: Tensor, raw: Tensor, *, nonnegative: bool) -> Tensor:
    """Derivatives in ``constrained(raw)``, of a shape that raw can be broadcast to, as derivatives in raw."""
    return columns * torch.sigmoid(raw) if nonnegative else columns


def first_tensor(module: nn.Module) -> Tensor | None:
    """A floating-point parameter or buffer of a module, whose dtype and device stand for the module's; None if none.

    Parameters come before buffers, and own ones before those of the parts. Unlike ``next(module.parameters())`` this
    builds no iterator over all parts, so that it may be called in every forward pass.

    >>> first_tensor(nn.Sequential(nn.ReLU(), nn.Linear(2, 3))).shape
    torch.Size([3, 2])
    """
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter
    for buffer in module._buffers.values():
        if buffer is not None and buffer.is_floating_point():
            return buffer
    for part in module._modules.values():
        found = None if part is None else first_tensor(part)
        if found is not None:
            return found
    return None


def count_parameters(module: nn.Module) -> int:
    """The number of trainable numbers in a module.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def fixed_copy(module: M) -> M:
    """A deep copy in which buffers that were computed from what carries derivatives are values only.

    >>> module = nn.Module()
    >>> module.register_buffer("mass", 2 * torch.ones(3, requires_grad=True))
    >>> fixed_copy(module).mass.requires_grad
    False
    """
    computed = {id(buffer): buffer.detach().clone() for buffer in module.buffers() if not buffer.is_leaf}
    return copy.deepcopy(module, computed)


@contextlib.contextmanager
def fixed_buffers(module: nn.Module) -> Iterator[None]:
    """Inside this context, buffers that carry derivatives are values only.

    A training moves parameters. Else each of its steps would go back through what such a buffer was computed by, which
    autograd can do once.
    """
    held = []
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.requires_grad:
                held.append((part._buffers, name, buffer))
    try:
        for buffers, name, buffer in held:
            buffers[name] = buffer.detach().clone()
        yield
    finally:
        for buffers, name, buffer in held:
            buffers[name] = buffer
