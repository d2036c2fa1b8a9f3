"""Changes of training pictures by random numbers that the sampler gives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift(x: Tensor, u: Tensor, reach: int) -> Tensor:
    """Move each picture by up to ``reach`` pixels each way, zeros coming in; u has two numbers in [0, 1) per picture.

    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> shift(x, torch.tensor([[0.0, 0.5]]), 1)[0, 0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    count, _, height, width = x.shape
    padded = F.pad(x, (reach,) * 4)
    start = (u * (2 * reach + 1)).long()
    rows = start[:, :1] + torch.arange(height)  # (count, height)
    columns = start[:, 1:] + torch.arange(width)  # (count, width)
    samples = torch.arange(count)[:, None, None]
    channels_last = padded.permute(0, 2, 3, 1)
    moved = channels_last[samples, rows[:, :, None], columns[:, None, :]]  # (count, height, width, channels)
    return moved.permute(0, 3, 1, 2)


def mirror(x: Tensor, u: Tensor) -> Tensor:
    """Mirror the pictures whose number in [0, 1) is below a half, left to right.

    >>> mirror(torch.tensor([[[[1, 2]]], [[[1, 2]]]]), torch.tensor([0.1, 0.9])).flatten().tolist()
    [2, 1, 1, 2]
    """
    return torch.where((u < 0.5).reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


def shifted_and_mirrored(x: Tensor, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """What is usual for CIFAR: shifts by up to 4 pixels, and mirroring; three numbers per picture."""
    return mirror(shift(x, u[:, :2], 4), u[:, 2]), y
