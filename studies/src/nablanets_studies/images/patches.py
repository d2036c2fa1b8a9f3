"""Pairs of small and large patches to train super-resolution on, from whole pictures in memory."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from nablanets.errors import InvalidInputError, check_positive_int
from nablanets_studies.images.color import luma
from nablanets_studies.images.edges import edges
from nablanets_studies.images.resize import bicubic
from nablanets_studies.images.training import Ticket

#: Added to the weight of each place, as a part of the mean weight.
_FLOOR = 0.2


class PatchPairs:
    """Patches of pictures and of their bicubic reductions, turned and mirrored at random.

    Where to cut is drawn with weights: the mean Sobel gradient of the luminance around a place, plus a fifth of
    its mean over all places, so that skies and blurred backgrounds do not fill the batches. That is our choice.

    Args:
        pictures: bytes of shape (3, H, W).
        scale: of the large patches.
        size: of the small patches, in pixels.
        epoch: how many patches count as an epoch; 16,000 in EDSR's own training (1,000 batches of 16).

    Raises:
        InvalidInputError: there is no picture, or one is smaller than a patch.

    >>> pairs = PatchPairs([torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)], scale=2, size=16)
    >>> small, large = pairs.draw(4, torch.Generator().manual_seed(0))
    >>> small.shape, large.shape
    (torch.Size([4, 3, 16, 16]), torch.Size([4, 3, 32, 32]))
    """

    def __init__(self, pictures: Sequence[Tensor], scale: int, size: int, epoch: int = 16_000) -> None:
        check_positive_int(size, owner="PatchPairs", name="size")
        if not pictures:
            raise InvalidInputError("PatchPairs: expected at least one picture, got none.")
        self.scale = scale
        self.size = size
        self.epoch = epoch
        self.large = [trimmed(picture, scale) for picture in pictures]
        for picture in self.large:
            if min(picture.shape[-2:]) < scale * size:
                raise InvalidInputError(
                    f"PatchPairs: expected pictures of at least {scale * size} pixels each way, got "
                    f"{tuple(picture.shape)}. Leave small pictures out, or choose smaller patches."
                )
        self.small = [bicubic(picture, Fraction(1, scale)) for picture in self.large]
        # The places of all pictures are numbered one after the other; cumulated weights turn a uniform number into a place.
        details = [self._detail(picture) for picture in self.small]
        weights = torch.cat([detail.flatten() for detail in details]).double()
        self._cumulated = (weights + _FLOOR * weights.mean() + 1e-12).cumsum(0)
        self._shapes = [detail.shape for detail in details]
        counts = [detail.numel() for detail in details]
        self._starts = torch.tensor([0, *counts]).cumsum(0)

    def __len__(self) -> int:
        return self.epoch

    def batch(self, ticket: Ticket) -> tuple[Tensor, Tensor]:
        """The part of a batch that a process trains on."""
        return self.draw(ticket.size, ticket.generator(), ticket.part)

    def draw(self, count: int, generator: torch.Generator, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Small and large patches with values in [0, 1]; with a ``part`` only these of them."""
        place = torch.rand(count, generator=generator, dtype=torch.float64) * self._cumulated[-1]
        cells = torch.searchsorted(self._cumulated, place).clamp_max(len(self._cumulated) - 1)
        jitter = torch.randint(0, self.step, (count, 2), generator=generator).tolist()
        turns = torch.randint(0, 8, (count,), generator=generator).tolist()
        drawn = zip(cells[part].tolist(), jitter[part], turns[part], strict=True)
        pairs = [self._pair(cell, shift, turn) for cell, shift, turn in drawn]
        small = torch.stack([pair[0] for pair in pairs]).float() / 255
        large = torch.stack([pair[1] for pair in pairs]).float() / 255
        return small, large

    @property
    def step(self) -> int:
        """Places to cut are so many small pixels apart, and shifted by less than that."""
        return max(1, self.size // 2)

    def _detail(self, small: Tensor) -> Tensor:
        """The mean Sobel gradient of the luminance in the patch at each place, (rows, columns)."""
        gradient = edges(luma(small.float() / 255).unsqueeze(0)).norm(dim=1)
        return F.avg_pool2d(gradient, self.size, self.step)[0]

    def _pair(self, cell: int, shift: list[int], turn: int) -> tuple[Tensor, Tensor]:
        """The small and the large patch at a place, shifted by some pixels, and turned."""
        which = int(torch.searchsorted(self._starts, cell, right=True)) - 1
        row, column = divmod(cell - int(self._starts[which]), self._shapes[which][1])
        height, width = self.small[which].shape[-2:]
        top = min(row * self.step + shift[0], height - self.size)
        left = min(column * self.step + shift[1], width - self.size)
        small = self._cut(self.small[which], top, left, 1)
        large = self._cut(self.large[which], top, left, self.scale)
        return turned(small, turn), turned(large, turn)

    def _cut(self, picture: Tensor, top: int, left: int, factor: int) -> Tensor:
        """The patch of a picture that is ``factor`` times as large as the small one."""
        bottom = top + self.size
        right = left + self.size
        return picture[:, factor * top : factor * bottom, factor * left : factor * right]


def trimmed(picture: Tensor, scale: int) -> Tensor:
    """The largest part, from the upper left corner, whose sides are multiples of the scale."""
    height, width = (size // scale * scale for size in picture.shape[-2:])
    return picture[..., :height, :width]


def middle(picture: Tensor, side: int) -> Tensor:
    """The middle of a picture, at most ``side`` pixels each way."""
    top, left = (max(0, (size - side) // 2) for size in picture.shape[-2:])
    return picture[..., top : top + side, left : left + side].contiguous()


def turned(x: Tensor, turn: int) -> Tensor:
    """One of the eight symmetries of the square, applied to the last two dimensions.

    >>> [turned(torch.arange(4).reshape(2, 2), k).flatten().tolist() for k in (0, 1, 4)]
    [[0, 1, 2, 3], [1, 3, 0, 2], [0, 2, 1, 3]]
    """
    x = torch.rot90(x, turn % 4, (-2, -1))
    return x.transpose(-2, -1) if turn >= 4 else x
