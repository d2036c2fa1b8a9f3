"""Layers with a closed form: their value and how a cotangent is pulled back, c -> J^T c, without autograd.

A cotangent that is the same for every sample has no batch dimension (and spatial dimensions of size one where it is
constant over positions): it stays so until it meets the data, so that behind the last nonlinearity of a block nothing
is computed per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from nablanets.activations.base import ElementwiseActivation
from nablanets.residual.elementwise import MODULES, apply_slope, own_slope

Pull = Callable[[Tensor], Tensor]


class Sweep(NamedTuple):
    """How the reverse sweep goes: with a constant Jacobian (detached), with constant statistics in norms."""

    detach: bool = False
    constant_statistics: bool = False

    def hold(self, t: Tensor) -> Tensor:
        return t.detach() if self.detach else t


Rule = Callable[[Any, Tensor, Sweep], tuple[Tensor, Pull]]


class Passing(nn.Module):
    """Put before a module's class: it hands its input on, since another module computes what it did."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def original_forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def call(module: nn.Module, x: Tensor) -> Tensor:
    """The value of a module, also of one that hands its input on now."""
    result: Tensor = module.original_forward(x) if isinstance(module, Passing) else module(x)
    return result


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a module, or None if it has none of its own (a subclass with a forward of its own has none)."""
    known = list(type(module).__mro__)
    known = known[known.index(Passing) + 1 :] if Passing in known else known
    for cls in known:
        if cls in _RULES:
            return _RULES[cls] if known[0].forward is cls.forward else None  # type: ignore[attr-defined]
    return _activation_of_ours if isinstance(module, ElementwiseActivation) else None


def _hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward; hooks are taken for observers."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _linear(module: nn.Linear, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    weight = module.weight
    y = call(module, x) if _hooked(module) else F.linear(x, weight, module.bias)
    weight = how.hold(weight)

    def pull(c: Tensor) -> Tensor:
        if c.ndim == 0 or c.shape[-1] != weight.shape[0]:
            c = c.expand(*c.shape[:-1], weight.shape[0])
        return c @ weight

    return y, pull


def _conv(module: _ConvNd, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    weight = module.weight
    y = call(module, x) if _hooked(module) else module._conv_forward(x, weight, module.bias)
    weight = how.hold(weight).to(y.dtype)
    n = weight.ndim - 2
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding == "same":
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = [(0, 0) if module.padding == "valid" else (int(p), int(p)) for p in module.padding]
    direct = module.padding_mode == "zeros" and all(left == right for left, right in pads)
    padded = [size if direct else size + left + right for size, (left, right) in zip(x.shape[-n:], pads, strict=True)]
    padding = [left if direct else 0 for left, _ in pads]

    def pull(c: Tensor) -> Tensor:
        c = c.to(y.dtype)
        kernel, groups = weight, module.groups
        if c.numel() in {1, weight.shape[0]} and c.shape[-n:] != y.shape[-n:]:
            # The same for every sample and position: one input channel per group is enough.
            kernel = c.reshape(-1, *[1] * (n + 1)) * weight
            kernel = kernel.reshape(groups, -1, *weight.shape[1:]).sum(dim=1)
            c = c.new_ones(groups, *y.shape[-n:])
        elif c.shape != y.shape[-c.ndim :]:
            c = c.expand(y.shape)
        g = _transposed(c, kernel, padded, module.stride, padding, module.dilation, groups)
        if direct:
            return g
        return _unpadded(g, x.shape[-n:], pads, module.padding_mode)

    return y, pull


def _transposed(
    c: Tensor, weight: Tensor, size: list[int], stride: Any, padding: list[int], dilation: Any, groups: int
) -> Tensor:
    """The transposed convolution of c onto a grid of the given size."""
    n = len(size)
    if not torch.is_grad_enabled():  # the kernel that back-propagation uses; faster, but slow to differentiate again
        batch = c if c.ndim == n + 2 else c.unsqueeze(0)
        like = c.new_zeros(()).expand(batch.shape[0], groups * weight.shape[1], *size)
        mask = [True, False, False]
        arguments = (list(stride), padding, list(dilation), False, [0] * n, groups, mask)
        g = torch.ops.aten.convolution_backward(batch, like, weight, None, *arguments)[0]
        return g if c.ndim == n + 2 else g.squeeze(0)
    rest = [
        s - ((c.shape[i - n] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[i + 2] - 1) + 1)
        for i, s in enumerate(size)
    ]
    transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    return transpose(c, weight, None, stride, padding, rest, groups, dilation)


def _unpadded(g: Tensor, size: Sequence[int], pads: list[tuple[int, int]], mode: str) -> Tensor:
    """The adjoint of padding, one dimension after the other."""
    for i, (length, (left, right)) in enumerate(zip(size, pads, strict=True)):
        dim = i - len(size)
        if mode == "zeros":
            g = g.narrow(dim, left, length)
        elif left or right:
            places = torch.arange(length, dtype=torch.float32, device=g.device).reshape(1, 1, -1)
            index = F.pad(places, (left, right), mode=mode).long().flatten()
            shape = [*g.shape]
            shape[dim] = length
            g = g.new_zeros(shape).index_add(dim, index, g)
    return g


def _activation(module: nn.Module, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    function, names = next(MODULES[cls] for cls in type(module).__mro__ if cls in MODULES)
    arguments = {name: getattr(module, name) for name in names}
    # Never in place: the slope and the skip need what came in.
    y = call(module, x) if not getattr(module, "inplace", False) else function(x, **arguments)
    u, held = how.hold(x), how.hold(y)
    return y, lambda c: apply_slope(function, c, u, held, arguments)


def _activation_of_ours(module: ElementwiseActivation, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    u = how.hold(x)
    return call(module, x), lambda c: own_slope(module, c, u)


def _identity(module: nn.Module, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    return call(module, x), lambda c: c


def _dropout(module: nn.Dropout, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    return dropout(x, module.p, training=module.training)


def dropout(x: Tensor, p: float, *, training: bool) -> tuple[Tensor, Pull]:
    """Dropout with the same mask in both directions; it draws the random numbers that torch would."""
    if not training or p == 0:
        return x, lambda c: c
    mask = F.dropout(torch.ones_like(x), p)
    return x * mask, lambda c: c * mask


def _flatten(module: nn.Flatten, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    y = call(module, x)
    return y, lambda c: c.expand(y.shape).reshape(x.shape)


def _batch_norm(module: _BatchNorm, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    y = call(module, x)
    shape = (-1, *[1] * (x.ndim - 2))
    gamma = None if module.weight is None else how.hold(module.weight).view(shape)
    if not module.training and module.running_var is not None:
        rate = torch.rsqrt(module.running_var + module.eps).view(shape)
        return y, lambda c: c * (rate if gamma is None else rate * gamma)
    return y, _normalised(x, [d for d in range(x.ndim) if d != 1], module.eps, gamma, how)


def _layer_norm(module: nn.LayerNorm, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    gamma = None if module.weight is None else how.hold(module.weight)
    dims = list(range(-len(module.normalized_shape), 0))
    return call(module, x), _normalised(x, dims, module.eps, gamma, how)


def _group_norm(module: nn.GroupNorm, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    shape = (-1, *[1] * (x.ndim - 2))
    gamma = None if module.weight is None else how.hold(module.weight).view(shape)
    groups = x.unflatten(1, (module.num_groups, -1))
    inner = _normalised(groups, list(range(2, groups.ndim)), module.eps, None, how)

    def pull(c: Tensor) -> Tensor:
        scaled = (c if gamma is None else c * gamma).expand(x.shape)
        return inner(scaled.unflatten(1, (module.num_groups, -1))).flatten(1, 2)

    return call(module, x), pull


def _instance_norm(module: _InstanceNorm, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    n = module._get_no_batch_dim() - 1
    shape = (-1, *[1] * n)
    gamma = None if module.weight is None else how.hold(module.weight).view(shape)
    if not module.training and module.running_var is not None:
        rate = torch.rsqrt(module.running_var + module.eps).view(shape)
        return call(module, x), lambda c: c * (rate if gamma is None else rate * gamma)
    return call(module, x), _normalised(x, list(range(-n, 0)), module.eps, gamma, how)


def _normalised(x: Tensor, dims: list[int], eps: float, gamma: Tensor | None, how: Sweep) -> Pull:
    """The pullback of gamma (x - mean) / std over ``dims``."""

    def pull(c: Tensor) -> Tensor:
        u = how.hold(x.detach() if how.constant_statistics else x)
        variance, mean = torch.var_mean(u, dim=dims, correction=0, keepdim=True)
        rate = torch.rsqrt(variance + eps)
        c = c if gamma is None else c * gamma
        if how.constant_statistics:
            return c * rate
        c, unit = c.expand(x.shape), (u - mean) * rate
        along = (c * unit).mean(dim=dims, keepdim=True)
        return rate * (c - c.mean(dim=dims, keepdim=True) - unit * along)

    return pull


def _softmax(module: nn.Softmax, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    y = call(module, x)
    p = how.hold(y.detach() if how.constant_statistics else y)

    def pull(c: Tensor) -> Tensor:
        weighted = c * p
        if how.constant_statistics:
            return weighted
        return weighted - p * weighted.sum(dim=cast(int, module.dim), keepdim=True)

    return y, pull


#: Modules whose outputs have a constant sum; for the first kind under any weights that are constant per channel.
BATCH_NORMS = (_BatchNorm, _InstanceNorm)
GROUPED_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.Softmax)

_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.Identity: _identity,
    nn.Dropout: _dropout,
    nn.Flatten: _flatten,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Softmax: _softmax,
    **dict.fromkeys(MODULES, _activation),
}
