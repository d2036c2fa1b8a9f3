"""Linear and convolutional layers: value and pullback."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nablanets.residual.sweep import Pull, Sweep, call, hooked


def linear(module: nn.Linear, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    """x W^T + b, pulled back by c W."""
    weight = module.weight
    y = call(module, x) if hooked(module) else F.linear(x, weight, module.bias)
    weight = how.hold(weight)

    def pull(c: Tensor) -> Tensor:
        if c.ndim == 0 or c.shape[-1] != weight.shape[0]:
            c = c.expand(*c.shape[:-1], weight.shape[0])
        return c @ weight

    return y, pull


def conv(module: _ConvNd, x: Tensor, how: Sweep) -> tuple[Tensor, Pull]:
    """Any stride, padding, padding mode, dilation and groups."""
    weight = module.weight
    y = call(module, x) if hooked(module) else module._conv_forward(x, weight, module.bias)
    weight = how.hold(weight).to(y.dtype)
    n = weight.ndim - 2
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if module.padding == "same":
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = [(0, 0)] * n if module.padding == "valid" else [(int(p), int(p)) for p in module.padding]
    direct = module.padding_mode == "zeros" and all(left == right for left, right in pads)
    padded = [size if direct else size + left + right for size, (left, right) in zip(x.shape[-n:], pads, strict=True)]
    padding = [left if direct else 0 for left, _ in pads]

    def pull(c: Tensor) -> Tensor:
        c = c.to(y.dtype)
        groups = module.groups
        if c.numel() in {1, weight.shape[0]} and c.shape[-n:] != y.shape[-n:]:
            # The same for every sample and position: the outputs of a group are summed first.
            kernel = (c.reshape(-1, *[1] * (n + 1)) * weight).reshape(groups, -1, *weight.shape[1:]).sum(dim=1)
            g = _spread(kernel.flatten(0, 1), y.shape[-n:], padded, module.stride, padding, module.dilation)
            return _laid_out(g if direct else _unpadded(g, x.shape[-n:], pads, module.padding_mode), x)
        if c.shape != y.shape[-c.ndim :]:
            c = c.expand(y.shape)
        g = _transposed(c, weight, padded, module.stride, padding, module.dilation, groups)
        return g if direct else _unpadded(g, x.shape[-n:], pads, module.padding_mode)

    return y, pull


def _spread(
    kernel: Tensor, outputs: Sequence[int], size: list[int], stride: Any, padding: list[int], dilation: Any
) -> Tensor:
    """The transposed convolution of ones: for each position the sum of the taps (channels, *k) that hit it."""
    for i, length in enumerate(size):
        taps = _taps(
            kernel.shape[1], length, outputs[i], stride[i], padding[i], dilation[i], kernel.dtype, kernel.device
        )
        kernel = torch.tensordot(kernel, taps, dims=([1], [0]))
    return kernel


def _taps(taps: int, length: int, outputs: int, stride: int, padding: int, dilation: int, *kind: Any) -> Tensor:
    """(taps, positions): 1 where a tap hits a position."""
    make = _hits if torch.compiler.is_compiling() else _kept_hits
    return make(taps, length, outputs, stride, padding, dilation, *kind)


def _hits(
    taps: int, length: int, outputs: int, stride: int, padding: int, dilation: int, dtype: torch.dtype, device: Any
) -> Tensor:
    reach = torch.arange(length).unsqueeze(0) + padding - torch.arange(taps).unsqueeze(1) * dilation
    return ((reach >= 0) & (reach < outputs * stride) & (reach % stride == 0)).to(device, dtype)


@lru_cache(maxsize=256)
def _kept_hits(*arguments: Any) -> Tensor:
    with torch.inference_mode(mode=False):
        return _hits(*arguments)


def _laid_out(g: Tensor, x: Tensor) -> Tensor:
    """g (channels, *positions), the channels innermost where they are in x: what combines both is slow otherwise."""
    channels = -g.ndim
    if x.ndim < g.ndim or x.shape[channels] == 1 or x.stride(channels) != 1:
        return g
    return g.movedim(0, -1).contiguous().movedim(-1, 0)


def _transposed(
    c: Tensor, weight: Tensor, size: list[int], stride: Any, padding: list[int], dilation: Any, groups: int
) -> Tensor:
    """The transposed convolution of c onto a grid of the given size."""
    n = len(size)
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
