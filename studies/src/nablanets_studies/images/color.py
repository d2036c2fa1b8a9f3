"""Luminance as television standard BT.601 defines it, the channel in which super-resolution is measured."""

from __future__ import annotations

from torch import Tensor

_WEIGHTS = (65.481 / 255, 128.553 / 255, 24.966 / 255)


def luma(x: Tensor) -> Tensor:
    """The Y of MATLAB's ``rgb2ycbcr``: pictures (*, 3, H, W) in [0, 1] to (*, 1, H, W) in [16/255, 235/255].

    >>> import torch
    >>> (255 * luma(torch.tensor([[[0.0]], [[1.0]], [[0.0]]]))).round().item()
    145.0
    """
    return (x * x.new_tensor(_WEIGHTS).reshape(3, 1, 1)).sum(dim=-3, keepdim=True) + 16 / 255
