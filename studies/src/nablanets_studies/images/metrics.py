"""How super-resolution is measured: PSNR and SSIM of the luminance, without a border."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.errors import ShapeError
from nablanets.fitting.settings import decibels
from nablanets_studies.images.color import luma
from nablanets_studies.images.extras import needed
from nablanets_studies.images.patches import trimmed
from nablanets_studies.images.resize import bicubic


class Quality(NamedTuple):
    """Of one picture: PSNR in dB and the structural similarity."""

    psnr: float
    ssim: float


def psnr(x: Tensor, target: Tensor, border: int = 0) -> float:
    """10 log10(1 / mean square difference) of the luminance of two pictures (3, H, W) in [0, 1], in dB.

    Args:
        x, target: the pictures; grey ones (1, H, W) are compared as they are.
        border: how many pixels at each side do not count; the scale, by the field's convention.

    >>> round(psnr(torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.1)), 3)
    20.0
    """
    return -decibels(float((_inner(x, border) - _inner(target, border)).square().mean()))


def ssim(x: Tensor, target: Tensor, border: int = 0) -> float:
    """Structural similarity of the luminance: Gaussian windows of 11 pixels that lie inside (Wang et al. 2004)."""
    measure = needed("torchmetrics.functional.image").structural_similarity_index_measure
    first = _inner(x, border).unsqueeze(0).float()  # float64 is slow
    second = _inner(target, border).unsqueeze(0).float()
    _, every = measure(first, second, data_range=1.0, sigma=1.5, return_full_image=True)
    return float(every[..., 5:-5, 5:-5].mean())  # windows of 11 pixels that lie inside


@torch.inference_mode()
def reconstruction(enlarge: Callable[[Tensor], Tensor], picture: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """What a network makes of the bicubic reduction of a picture (3, H, W) of bytes, and the original.

    Both are float64 in [0, 1] with sides that are multiples of the scale; the first is rounded to bytes.
    """
    original = trimmed(picture, scale)
    small = bicubic(original, Fraction(1, scale)).float() / 255
    bytes_ = enlarge(small.unsqueeze(0))[0].double().clamp(0, 1).mul(255).round()
    return bytes_ / 255, original.double() / 255


def quality(enlarge: Callable[[Tensor], Tensor], pictures: Sequence[Tensor], scale: int) -> list[Quality]:
    """PSNR and SSIM of each picture: of the luminance, from outputs in bytes, with a border of ``scale`` cut off.

    >>> picture = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    >>> quality(lambda x: bicubic(x, 2), [picture], 2)[0].ssim
    1.0
    """
    pairs = (reconstruction(enlarge, picture, scale) for picture in pictures)
    return [Quality(psnr(x, y, scale), ssim(x, y, scale)) for x, y in pairs]


def mean_psnr(enlarge: Callable[[Tensor], Tensor], pictures: Sequence[Tensor], scale: int) -> float:
    """The mean over pictures of their PSNR, as tables of super-resolution print it."""
    pairs = [reconstruction(enlarge, picture, scale) for picture in pictures]
    return sum(psnr(x, y, scale) for x, y in pairs) / len(pairs)


def _inner(x: Tensor, border: int) -> Tensor:
    height, width = x.shape[-2:]
    if min(height, width) <= 2 * border:
        raise ShapeError(f"psnr: expected pictures larger than two borders of {border} pixels, got {tuple(x.shape)}.")
    inner = x[..., border : height - border, border : width - border]
    return luma(inner) if x.shape[-3] == 3 else inner
