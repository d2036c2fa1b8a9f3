"""Degradation and measures of super-resolution against independent implementations and published values."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import skimage.color
import skimage.data
import skimage.metrics
import torch
from PIL import Image

from nablanets.errors import InvalidInputError, ShapeError
from nablanets_studies.images.color import luma
from nablanets_studies.images.edges import edges
from nablanets_studies.images.metrics import mean_psnr, psnr, quality, reconstruction, ssim
from nablanets_studies.images.patches import PatchPairs, trimmed, turned
from nablanets_studies.images.resize import bicubic, contributions, cubic

_PICTURE = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[:, 96:256, 64:256].contiguous()


def _by_definition(row: np.ndarray, scale: Fraction) -> np.ndarray:
    """One pass as MATLAB documents it, pixel by pixel, over a row that is mirrored far enough."""
    size, stretch = len(row), max(1.0, 1 / float(scale))
    mirrored = np.concatenate([row[::-1], row, row[::-1]])
    result = []
    for k in range(math.ceil(size * scale)):
        center = (k + 1) / float(scale) + 0.5 * (1 - 1 / float(scale)) - 1
        total = weights = 0.0
        for j in range(-size, 2 * size):
            t = abs(center - j) / stretch
            w = 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0
            total, weights = total + w * mirrored[j + size], weights + w
        result.append(total / weights)
    return np.array(result)


@pytest.mark.parametrize("scale", [2, 3, 4, Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(3, 5)])
def test_resizing_is_matlabs_by_its_definition(scale):
    x = torch.rand(13, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.stack([_by_definition(column, Fraction(scale)) for column in x.numpy().T], axis=1)
    expected = np.stack([_by_definition(row, Fraction(scale)) for row in expected])
    torch.testing.assert_close(bicubic(x, scale), torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_halving_has_the_known_weights_and_any_scale_has_weights_that_sum_to_one():
    index, weight = contributions(20, Fraction(1, 2))
    known = torch.tensor([-3.0, -9.0, 29.0, 111.0, 111.0, 29.0, -9.0, -3.0], dtype=torch.float64) / 256
    torch.testing.assert_close(weight[4], known)
    assert index[0].tolist() == [2, 1, 0, 0, 1, 2, 3, 4]
    assert index[9].tolist() == [15, 16, 17, 18, 19, 19, 18, 17]
    for scale in (2, 3, 4, Fraction(1, 3), Fraction(1, 4), Fraction(2, 7)):
        index, weight = contributions(11, Fraction(scale))
        assert weight.shape[1] == math.ceil(4 * max(1, 1 / Fraction(scale)))
        torch.testing.assert_close(weight.sum(1), torch.ones(len(weight), dtype=torch.float64))
        assert 0 <= int(index.min()) <= int(index.max()) < 11
    t = torch.linspace(-2, 2, 41, dtype=torch.float64)
    torch.testing.assert_close(sum(cubic(torch.tensor(0.3) - k) for k in range(-2, 4)), torch.tensor(1.0))
    assert torch.equal(cubic(t), cubic(-t))


@pytest.mark.parametrize("scale", [Fraction(2), Fraction(1, 2), Fraction(1, 3), Fraction(1, 4)])
def test_away_from_borders_resizing_agrees_with_pillow(scale):
    grey = _PICTURE[0, :144, :192].float()
    ours = bicubic(grey, scale)
    theirs = np.array(Image.fromarray(grey.numpy()).resize(ours.shape[::-1], Image.Resampling.BICUBIC))
    inner = (slice(5, -5), slice(5, -5))
    torch.testing.assert_close(ours[inner], torch.from_numpy(theirs)[inner], rtol=0, atol=2e-3)


def test_bytes_are_rounded_after_each_pass():
    small = bicubic(_PICTURE, Fraction(1, 2))
    assert small.dtype == torch.uint8
    rows = torch.stack([bicubic(_PICTURE.float()[:, :, i : i + 1], Fraction(1, 2))[..., 0] for i in range(192)], dim=-1)
    once = _one_pass(_PICTURE.float()).round().clamp(0, 255)
    twice = _one_pass(once.transpose(-2, -1)).transpose(-2, -1).round().clamp(0, 255)
    assert torch.equal(small.float(), twice)
    assert rows.shape == once.shape
    assert (small.float() - bicubic(_PICTURE.float(), Fraction(1, 2))).abs().max() > 0.5


def _one_pass(x):
    index, weight = contributions(x.shape[-2], Fraction(1, 2))
    return torch.einsum("ok,cokw->cow", weight.float(), x[:, index])


def test_luminance_psnr_and_ssim_agree_with_scikit_image():
    x, y = _PICTURE.double() / 255, (bicubic(bicubic(_PICTURE, Fraction(1, 2)), 2)).double() / 255
    theirs = [skimage.color.rgb2ycbcr(v.permute(1, 2, 0).numpy())[..., 0] / 255 for v in (x, y)]
    torch.testing.assert_close(luma(x)[0], torch.from_numpy(theirs[0]))
    inner = [v[2:-2, 2:-2] for v in theirs]
    assert psnr(y, x, 2) == pytest.approx(skimage.metrics.peak_signal_noise_ratio(*inner, data_range=1.0), abs=1e-6)
    _, theirs_map = skimage.metrics.structural_similarity(
        *inner, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert ssim(y, x, 2) == pytest.approx(theirs_map[5:-5, 5:-5].mean(), abs=1e-4)
    measured = quality(lambda v: bicubic(v, 2), [_PICTURE], 2)[0]
    assert measured.psnr == pytest.approx(psnr(y, x, 2), abs=0.02)
    assert mean_psnr(lambda v: bicubic(v, 2), [_PICTURE, _PICTURE], 2) == pytest.approx(measured.psnr)
    with pytest.raises(ShapeError, match="two borders of 80"):
        psnr(x, x, 80)


def test_the_protocol_rounds_to_bytes_and_trims():
    output, original = reconstruction(lambda v: 2 * bicubic(v, 3), _PICTURE[:, :100, :101], 3)
    assert output.shape == original.shape == (3, 99, 99)
    assert torch.equal((255 * output).round(), 255 * output)
    assert float(output.max()) == 1.0


def test_edges_of_a_plane_are_its_slopes():
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    x = torch.stack([2 * columns + 3 * rows, -columns]).unsqueeze(0)
    inner = edges(x)[0, :, 1:-1, 1:-1]
    assert inner.flatten(1).mean(1).tolist() == [2, 3, -1, 0]
    assert inner.flatten(1).std(1).max() == 0


def test_patches_are_aligned_varied_and_prefer_detail():
    flat = torch.full((3, 160, 192), 128, dtype=torch.uint8)
    pairs = PatchPairs([flat, _PICTURE], scale=2, size=12)
    small, large = pairs.draw(400, torch.Generator().manual_seed(0))
    assert small.shape == (400, 3, 12, 12)
    assert large.shape == (400, 3, 24, 24)
    detailed = [k for k in range(400) if float(small[k].std()) > 0]
    assert 0.75 < len(detailed) / 400 < 0.98
    for k in detailed[:40]:
        reduced = bicubic((255 * large[k]).round().byte(), Fraction(1, 2)).float() / 255
        torch.testing.assert_close(reduced[:, 3:-3, 3:-3], small[k][:, 3:-3, 3:-3], rtol=0, atol=1.5 / 255)
    again, _ = pairs.draw(400, torch.Generator().manual_seed(0))
    assert torch.equal(small, again)
    assert len({patch.numpy().tobytes() for patch in small[detailed]}) > 0.95 * len(detailed)
    square = torch.arange(9).reshape(3, 3)
    assert len({tuple(turned(square, k).flatten().tolist()) for k in range(8)}) == 8


def test_what_cannot_be_resized_or_cut_is_refused():
    with pytest.raises(InvalidInputError, match="scale > 0"):
        bicubic(torch.rand(3, 0, 4), 2)
    with pytest.raises(InvalidInputError, match="at least 64 pixels"):
        PatchPairs([torch.zeros(3, 80, 60, dtype=torch.uint8)], 2, 32)
    with pytest.raises(InvalidInputError, match="at least one picture"):
        PatchPairs([], 2, 32)
    assert trimmed(torch.zeros(3, 10, 11), 4).shape == (3, 8, 8)
