"""Bicubic resizing as the super-resolution literature does it: MATLAB's ``imresize``, with antialiasing."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache, reduce

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError

#: Keys' parameter: with -1/2 the interpolation is exact for quadratic functions.
_A = -0.5


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2, of support [-2, 2].

    >>> cubic(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.5]))
    tensor([ 1.0000,  0.5625,  0.0000, -0.0625,  0.0000])
    """
    t = x.abs()
    inner = (_A + 2) * t**3 - (_A + 3) * t**2 + 1
    outer = _A * (t**3 - 5 * t**2 + 8 * t - 4)
    return torch.where(t <= 1, inner, torch.where(t <= 2, outer, 0))


@lru_cache(maxsize=64)
def contributions(size: int, scale: Fraction) -> tuple[Tensor, Tensor]:
    """Which inputs make each output, and with what weights: two tensors of shape (outputs, taps).

    An output's centre lies at (i + 1/2) / scale - 1/2 of the inputs. Going down, the kernel is stretched by 1 / scale, which is the antialiasing: its support is 4 / scale inputs. Beyond
    the border the picture is mirrored, the border pixel twice. The weights of an output sum to one.

    Args:
        size: inputs.
        scale: outputs per input.

    >>> index, weight = contributions(8, Fraction(1, 2))
    >>> tuple(weight.shape), weight.sum(dim=1)
    ((4, 8), tensor([1., 1., 1., 1.], dtype=torch.float64))
    """
    outputs = math.ceil(size * scale)
    stretch = max(1.0, float(1 / scale))
    center = (torch.arange(outputs, dtype=torch.float64) + 0.5) / float(scale) - 0.5
    first = torch.floor(center - 2 * stretch).long() + 1
    taps = torch.arange(math.ceil(4 * stretch))
    position = first.unsqueeze(1) + taps  # (outputs, taps)
    weight = cubic((center.unsqueeze(1) - position) / stretch)
    weight = weight / weight.sum(dim=1, keepdim=True)
    # Mirrored at both borders the picture has period 2 size.
    wrapped = position % (2 * size)
    index = torch.where(wrapped < size, wrapped, 2 * size - 1 - wrapped)
    return index, weight


def bicubic(x: Tensor, scale: Fraction | int) -> Tensor:
    """A picture (*, H, W) scaled to (*, ceil(scale H), ceil(scale W)).

    Pictures of bytes are rounded after each of the two passes, rows of the height first, as MATLAB does.

    Args:
        x: floating point, or bytes.
        scale: outputs per input, above one or below, such as 2 or Fraction(1, 3).

    Raises:
        InvalidInputError: the scale is not positive, or x has no pixels.

    >>> bicubic(torch.ones(3, 4, 6), Fraction(1, 2)).shape
    torch.Size([3, 2, 3])
    """
    scale = Fraction(scale)
    if scale <= 0 or x.ndim < 2 or 0 in x.shape[-2:]:
        raise InvalidInputError(
            f"bicubic: expected a picture of shape (*, H, W) and a scale > 0, got {tuple(x.shape)} and {scale}."
        )
    return _along(_along(x, -2, scale), -1, scale)


def _along(x: Tensor, dim: int, scale: Fraction) -> Tensor:
    """One pass, along the dimension -2 or -1: the sum over taps of the inputs times their weights."""
    index, weight = contributions(x.shape[dim], scale)
    values = x if x.is_floating_point() else x.float()
    shape = (-1, *[1] * (-1 - dim))  # of the outputs against the dimensions behind them
    taps = zip(index.T.to(x.device), weight.T.to(values), strict=True)
    total = reduce(Tensor.add_, (values.index_select(dim, i).mul_(w.reshape(shape)) for i, w in taps))
    if x.is_floating_point():
        return total
    return total.round_().clamp_(0, 255).to(x.dtype)
