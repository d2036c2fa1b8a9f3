"""Gradients of pictures: Sobel maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def edges(x: Tensor) -> Tensor:
    """Derivatives of pictures (B, C, H, W) along columns and rows by Sobel's filter, as (B, 2 C, H, W).

    A ramp of one per pixel has the value one; beyond the border the picture is continued by its border pixels.

    >>> ramp = torch.arange(5.0).expand(1, 1, 4, 5)
    >>> edges(ramp)[0, :, 1, 1:4]
    tensor([[1., 1., 1.],
            [0., 0., 0.]])
    """
    smooth = x.new_tensor([1.0, 2.0, 1.0]) / 4
    differ = x.new_tensor([-1.0, 0.0, 1.0]) / 2
    along = torch.outer(smooth, differ)  # (3, 3): differences along columns, smoothed along rows
    kernel = torch.stack([along, along.T]).unsqueeze(1)  # (2, 1, 3, 3)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    channels = x.shape[1]
    return F.conv2d(padded, kernel.repeat(channels, 1, 1, 1), groups=channels)
