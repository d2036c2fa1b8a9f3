"""Linear and convolutional layers: value and pullback.

The pullback of a convolution is the transposed convolution (with the adjoint of its padding). A cotangent that is the
same at all positions, as behind the last nonlinearity of a block, needs no convolution: each tap of the kernel hits a
position or not, so that the result is a product of the kernel with tables of zeros and ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nablanets.residual.sweep import Absorbing, ChannelScale, Pull, Sweep, call, hooked


def linear(module: nn.Linear, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    """x W^T + b, pulled back by c W."""
    weight = module.weight
    y = call(module, x) if hooked(module) else F.linear(x, weight, module.bias)
    weight = sweep.maybe_detach(weight)

    def pull(c: Tensor) -> Tensor:
        if c.ndim == 0:  # one number for all outputs
            return c * weight.sum(dim=0)
        if c.shape[-1] != weight.shape[0]:
            c = c.expand(*c.shape[:-1], weight.shape[0])
        return c @ weight

    return y, pull


def conv(module: _ConvNd, x: Tensor, sweep: Sweep) -> tuple[Tensor, Pull]:
    """Any stride, padding, padding mode, dilation and groups."""
    weight = module.weight
    y = call(module, x) if hooked(module) else module._conv_forward(x, weight, module.bias)
    n = weight.ndim - 2
    channels_last = x.ndim == n + 2 and x.shape[1] > 1 and x.stride(1) == 1
    return y, _ConvPull(module, sweep.maybe_detach(weight).to(y.dtype), x.shape[-n:], y.shape, channels_last)


@dataclass
class _ConvPull(Absorbing):
    """The transposed convolution of c s, where s is a scale per channel or None.

    ``positions`` are the sizes of the input, ``shape`` is the output's; ``channels_last`` is the layout of the input.
    """

    module: _ConvNd
    weight: Tensor
    positions: torch.Size
    shape: torch.Size
    channels_last: bool
    scale: Tensor | None = None

    def after(self, scale: ChannelScale) -> Pull:
        if self.weight.numel() > self.shape.numel():  # scaling cotangents is cheaper than scaling weights here
            return lambda c: self(scale(c))
        self.scale = scale.scale
        return self

    def __call__(self, c: Tensor) -> Tensor:
        module = self.module
        c = c.to(self.weight.dtype)
        pads = _pads(module)
        # Zeros, as many before as behind, are undone by the transposed convolution itself; other padding afterwards.
        in_one = module.padding_mode == "zeros" and all(left == right for left, right in pads)
        if in_one:
            grid = list(self.positions)
            padding = [left for left, _ in pads]
        else:
            grid = [size + left + right for size, (left, right) in zip(self.positions, pads, strict=True)]
            padding = [0] * len(pads)
        g = self._of_constant(c, grid, padding) if self._is_constant(c) else self._of_any(c, grid, padding)
        return g if in_one else _unpadded(g, self.positions, pads, module.padding_mode)

    def _is_constant(self, c: Tensor) -> bool:
        """Whether c has one number, or one per channel, for all samples and positions."""
        n = len(self.positions)
        return c.numel() in {1, self.weight.shape[0]} and c.shape[-n:] != self.shape[-n:]

    def _of_constant(self, c: Tensor, grid: list[int], padding: list[int]) -> Tensor:
        """The outputs of a group are summed first: (groups * inputs per group, *grid), without a batch."""
        module = self.module
        weight = self.weight  # (outputs, inputs per group, *kernel)
        n = len(self.positions)
        c = c if self.scale is None else c * self.scale
        one_number = c.numel() == 1
        kernel = weight if one_number else c.reshape(-1, *[1] * (n + 1)) * weight
        kernel = kernel.reshape(module.groups, -1, *weight.shape[1:]).sum(dim=1)
        if one_number:
            kernel = kernel * c.reshape(())
        outputs = self.shape[-n:]
        g = _spread(kernel.flatten(0, 1), outputs, grid, module.stride, padding, module.dilation)
        if self.channels_last:  # in the layout of x: what combines both is slow otherwise
            g = g.movedim(0, -1).contiguous().movedim(-1, 0)
        return g

    def _of_any(self, c: Tensor, grid: list[int], padding: list[int]) -> Tensor:
        """The transposed convolution of each sample."""
        module = self.module
        weight = self.weight
        if c.shape != self.shape[-c.ndim :]:
            c = c.expand(self.shape)
        if self.scale is not None:
            weight = weight * self.scale.to(weight.dtype).unsqueeze(-1)
        return _transposed(c, weight, grid, module.stride, padding, module.dilation, module.groups)


def _pads(module: _ConvNd) -> list[tuple[int, int]]:
    """Padding before and after each dimension."""
    if module.padding == "valid":
        return [(0, 0)] * len(module.kernel_size)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(int(p), int(p)) for p in module.padding]


def _spread(
    kernel: Tensor, outputs: Sequence[int], size: list[int], stride: Any, padding: list[int], dilation: Any
) -> Tensor:
    """The transposed convolution of ones: for each position the sum of the taps (channels, *k) that hit it."""
    geometry = tuple(kernel.shape[1:]), tuple(size), tuple(outputs), stride, tuple(padding), dilation
    make = _hits if torch.compiler.is_compiling() else _kept_hits
    for hits in make(geometry, kernel.dtype, kernel.device):
        kernel = kernel.movedim(1, -1) @ hits
    return kernel


def _hits(geometry: tuple[tuple[int, ...], ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """(taps, positions) for each dimension: 1 where a tap hits a position."""
    found = []
    for taps, length, outputs, stride, padding, dilation in zip(*geometry, strict=True):
        reach = torch.arange(length).unsqueeze(0) + padding - torch.arange(taps).unsqueeze(1) * dilation
        hit = (reach >= 0) & (reach < outputs * stride) & (reach % stride == 0)
        found.append(hit.to(device, dtype))
    return found


@lru_cache(maxsize=256)
def _kept_hits(*arguments: Any) -> list[Tensor]:
    with torch.inference_mode(mode=False):
        return _hits(*arguments)


def _transposed(
    c: Tensor, weight: Tensor, size: list[int], stride: Any, padding: list[int], dilation: Any, groups: int
) -> Tensor:
    """The transposed convolution of c onto a grid of the given size."""
    n = len(size)
    extra = []  # positions at the end that no output reached, because of the stride
    for i, wanted in enumerate(size):
        reach = dilation[i] * (weight.shape[i + 2] - 1) + 1
        covered = (c.shape[i - n] - 1) * stride[i] - 2 * padding[i] + reach
        extra.append(wanted - covered)
    transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    return transpose(c, weight, None, stride, padding, extra, groups, dilation)


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
