"""Normalising layers: value and pullback, exact or with constant statistics.

With u = (x - mean) / std over some dimensions and c' = gamma c, the pullback of gamma u is
(c' - mean(c') - u mean(c' u)) / std, or c' / std where mean and std count as constants (Ioffe and Szegedy, "Batch
Normalization", 2015, section 3). Fused kernels of torch are used where they exist and nothing differentiates them.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from nablanets.residual.sweep import ChannelScale, Pull, Sweep, call, hooked

_aten = torch.ops.aten
_ONLY_INPUT = [True, False, False]

#: Modules whose outputs have a constant sum; for the first kind under any weights that are constant per channel.
BATCH_NORMS = (_BatchNorm, _InstanceNorm)
GROUPED_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.Softmax)


def batch_norm(module: _BatchNorm, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    """Batch statistics couple the samples, and so does the exact pullback in training."""
    shape = (-1, *[1] * (x.ndim - 2))
    gamma = None if module.weight is None else sweep.maybe_detach(module.weight)
    if not (module.training or module.running_var is None):
        scale = torch.rsqrt(module.running_var + module.eps)
        scale = (scale if gamma is None else scale * gamma).view(shape)
        return call(module, x), ChannelScale(scale)
    if hooked(module):
        dims = [d for d in range(x.ndim) if d != 1]
        return call(module, x), _normalised(x, dims, module.eps, None if gamma is None else gamma.view(shape), sweep)
    y, mean, inverse_std = _batch_statistics(module, x)
    if sweep.constant_statistics:
        return y, ChannelScale((inverse_std if gamma is None else inverse_std * gamma).view(shape).to(x.dtype))

    def pull(c: Tensor) -> Tensor:
        c = c.to(x.dtype).expand(x.shape).contiguous()
        statistics = None, None, mean, inverse_std, True, module.eps
        return _aten.native_batch_norm_backward(c, sweep.maybe_detach(x), gamma, *statistics, _ONLY_INPUT)[0]

    return y, pull


def _batch_statistics(module: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value in training, with the mean and 1 / std that it used; running statistics move as in torch."""
    module._check_input_dim(x)
    momentum, batches = module.momentum, module.num_batches_tracked if module.training else None
    if batches is not None:
        batches.add_(1)
    if momentum is None:
        momentum = 0.0 if batches is None else 1 / float(batches)
    running = (module.running_mean, module.running_var) if module.training else (None, None)
    return torch.native_batch_norm(x, module.weight, module.bias, *running, True, momentum, module.eps)


def layer_norm(module: nn.LayerNorm, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    """In one fused kernel, or with constant mean and variance."""
    gamma = None if module.weight is None else sweep.maybe_detach(module.weight)
    shape = list(module.normalized_shape)
    frozen = _normalised(x, list(range(-len(shape), 0)), module.eps, gamma, sweep)

    def pull(c: Tensor) -> Tensor:
        if sweep.constant_statistics:
            return frozen(c)
        u = sweep.maybe_detach(x)
        _, mean, inverse_std = torch.native_layer_norm(u.detach(), shape, None, None, module.eps)
        c = (c if gamma is None else c * gamma).to(u.dtype).expand(u.shape).contiguous()
        return _aten.native_layer_norm_backward(c, u, shape, mean, inverse_std, None, None, _ONLY_INPUT)[0]

    return call(module, x), pull


def group_norm(module: nn.GroupNorm, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    """In one fused kernel where nothing is differentiated again; by means of channels in the layout of x elsewhere."""
    shape = (-1, *[1] * (x.ndim - 2))
    gamma = None if module.weight is None else sweep.maybe_detach(module.weight)

    def pull(c: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() or sweep.constant_statistics):
            return _fused_group_norm(module, x, c)
        u = sweep.maybe_detach(x.detach() if sweep.constant_statistics else x)
        centred = u - _group_means(u, module.num_groups)
        inverse_std = torch.rsqrt(_group_means(centred * centred, module.num_groups) + module.eps)
        c = c if gamma is None else c * gamma.view(shape)
        if sweep.constant_statistics:
            return c * inverse_std
        c, unit = c.expand(x.shape), centred * inverse_std
        along = _group_means(c * unit, module.num_groups)
        return inverse_std * (c - _group_means(c, module.num_groups) - unit * along)

    return call(module, x), pull


def _fused_group_norm(module: nn.GroupNorm, x: Tensor, c: Tensor) -> Tensor:
    samples, channels = x.shape[:2]
    sizes = samples, channels, x.shape[2:].numel(), module.num_groups
    _, mean, inverse_std = torch.native_group_norm(x, None, None, *sizes, module.eps)
    c = torch.empty_like(x).copy_(c)  # in the layout of x
    gamma = None if module.weight is None else module.weight.to(x.dtype)
    return _aten.native_group_norm_backward(c, x, mean, inverse_std, gamma, *sizes, _ONLY_INPUT)[0]


def _group_means(t: Tensor, groups: int) -> Tensor:
    """Means over each group of channels and all positions, (B, C, 1, ...)."""
    means = t.mean(dim=list(range(2, t.ndim))) if t.ndim > 2 else t
    grouped = means.unflatten(1, (groups, -1)).mean(dim=2, keepdim=True)
    return grouped.expand(-1, -1, t.shape[1] // groups).flatten(1).reshape(*t.shape[:2], *[1] * (t.ndim - 2))


def instance_norm(module: _InstanceNorm, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    """Normalised channels of each sample."""
    n = module._get_no_batch_dim() - 1
    shape = (-1, *[1] * n)
    gamma = None if module.weight is None else sweep.maybe_detach(module.weight).view(shape)
    if not module.training and module.running_var is not None:
        inverse_std = torch.rsqrt(module.running_var + module.eps).view(shape)
        return call(module, x), lambda c: c * (inverse_std if gamma is None else inverse_std * gamma)
    return call(module, x), _normalised(x, list(range(-n, 0)), module.eps, gamma, sweep)


def _normalised(x: Tensor, dims: list[int], eps: float, gamma: Tensor | None, sweep: Sweep) -> Pull:
    """The pullback of gamma (x - mean) / std over ``dims``."""

    def pull(c: Tensor) -> Tensor:
        u = sweep.maybe_detach(x.detach() if sweep.constant_statistics else x)
        variance, mean = torch.var_mean(u, dim=dims, correction=0, keepdim=True)
        inverse_std = torch.rsqrt(variance + eps)
        c = c if gamma is None else c * gamma
        if sweep.constant_statistics:
            return c * inverse_std
        c, unit = c.expand(x.shape), (u - mean) * inverse_std
        along = (c * unit).mean(dim=dims, keepdim=True)
        return inverse_std * (c - c.mean(dim=dims, keepdim=True) - unit * along)

    return pull


def softmax(module: nn.Softmax, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    """p (c - <p, c>), or p c with a constant normaliser."""
    y = call(module, x)
    p = sweep.maybe_detach(y.detach() if sweep.constant_statistics else y)

    def pull(c: Tensor) -> Tensor:
        weighted = c * p
        if sweep.constant_statistics:
            return weighted
        return weighted - p * weighted.sum(dim=cast(int, module.dim), keepdim=True)

    return y, pull
