"""Cut-outs on photographs: pictures with exact masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nablanets.errors import DataFileError, InvalidInputError
from nablanets_studies.images.extras import needed
from nablanets_studies.images.files import read_picture, rgb_bytes
from nablanets_studies.images.training import Ticket

#: Random numbers for each picture: photograph, top, left, cut-out, size, row, column.
_DRAWS = 7
#: A pixel belongs to the cut-out where its opacity exceeds this.
_OPAQUE = 0.5
#: Cut-outs of drawings.
_DRAWINGS = {"cartoon", "toys"}


class CutOut(NamedTuple):
    """Colours (3, H, W) and opacity (1, H, W) as floats in [0, 1], and a class from 1."""

    colors: Tensor
    alpha: Tensor
    label: int


class Composites:
    """A batch source: on a piece of a photograph one cut-out at random, mirrored, scaled and placed at random.

    Targets are the class of the cut-out where its opacity exceeds a half, and 0 elsewhere.

    Args:
        cutouts: what is pasted.
        photographs: bytes (3, H, W), at least ``size`` pixels each way.
        size: of the pictures, square.
        samples: how many count as an epoch.

    Raises:
        InvalidInputError: there is nothing to paste, or a photograph is too small.

    >>> cut = CutOut(torch.zeros(3, 8, 8), torch.ones(1, 8, 8), 1)
    >>> source = Composites([cut], [torch.full((3, 40, 50), 255, dtype=torch.uint8)], size=32, samples=10)
    >>> x, y = source.batch(Ticket(seed=0, step=0, size=4, first=0, last=4))
    >>> x.shape, y.shape, bool(((x[:, 0] < 0.5) == (y == 1)).all())
    (torch.Size([4, 3, 32, 32]), torch.Size([4, 32, 32]), True)
    """

    def __init__(self, cutouts: Sequence[CutOut], photographs: Sequence[Tensor], *, size: int, samples: int) -> None:
        if not cutouts or not photographs or samples < 1:
            raise InvalidInputError(
                f"Composites: expected cut-outs, photographs and samples, got {len(cutouts)}, {len(photographs)} and "
                f"{samples}."
            )
        for k, photograph in enumerate(photographs):
            if min(photograph.shape[-2:]) < size:
                raise InvalidInputError(
                    f"Composites: expected photographs of at least {size} x {size} pixels, got "
                    f"{tuple(photograph.shape[-2:])} for number {k}. Choose a smaller size."
                )
        self.cutouts = list(cutouts)
        self.photographs = list(photographs)
        self.size = size
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def batch(self, ticket: Ticket) -> tuple[Tensor, Tensor]:
        pairs = [self._compose(u) for u in ticket.uniform(_DRAWS).tolist()]
        return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])

    def fixed(self, seed: int) -> tuple[Tensor, Tensor]:
        """All samples at once, as bytes and classes, for validation and tests."""
        x, y = self.batch(Ticket(seed, 0, self.samples, 0, self.samples))
        return (x * 255).round().to(torch.uint8), y

    def _compose(self, u: list[float]) -> tuple[Tensor, Tensor]:
        """A picture (3, size, size) and its classes (size, size), from numbers in [0, 1)."""
        photograph = self.photographs[int(u[0] * len(self.photographs))]
        height, width = photograph.shape[-2:]
        top = int(u[1] * (height - self.size + 1))
        left = int(u[2] * (width - self.size + 1))
        x = photograph[:, top : top + self.size, left : left + self.size].float() / 255
        y = torch.zeros(self.size, self.size, dtype=torch.long)
        # The whole part of the position says which cut-out, the rest whether it is mirrored.
        position = u[3] * len(self.cutouts)
        cutout = self.cutouts[int(position)]
        colors, alpha = self._scaled(cutout, u[4], mirrored=position % 1 < 0.5)
        height, width = alpha.shape[-2:]
        row = int(u[5] * (self.size - height + 1))
        column = int(u[6] * (self.size - width + 1))
        rows = slice(row, row + height)
        columns = slice(column, column + width)
        x[:, rows, columns] = torch.lerp(x[:, rows, columns], colors, alpha)
        y[rows, columns][alpha[0] > _OPAQUE] = cutout.label
        return x, y

    def _scaled(self, cutout: CutOut, u: float, *, mirrored: bool) -> tuple[Tensor, Tensor]:
        """Colours and opacity with the longer side between 0.4 and 0.9 of the picture.

        Colours are scaled times opacity, and divided by it after, so that invisible ones do not shine through.
        """
        factor = (0.4 + 0.5 * u) * self.size / max(cutout.alpha.shape[-2:])
        size = [max(1, round(n * factor)) for n in cutout.alpha.shape[-2:]]
        both = torch.cat([cutout.colors * cutout.alpha, cutout.alpha]).unsqueeze(0)
        scaled = F.interpolate(both, size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        scaled = scaled.flip(-1) if mirrored else scaled
        alpha = scaled[3:]
        return (scaled[:3] / alpha.clamp_min(1e-3)).clamp(0, 1), alpha


def read_cutouts(folder: str | Path, classes: Sequence[str]) -> list[CutOut]:
    """Pictures with transparency in the subfolders named after classes; drawings in "cartoon" and "toys" are left out.

    Raises:
        DataFileError: a subfolder is missing, or holds no picture with transparency.
    """
    found = []
    for label, name in enumerate(classes, start=1):
        inside = [_cutout(path, label) for path in sorted((Path(folder) / name).rglob("*.png")) if _photographic(path)]
        kept = [cutout for cutout in inside if cutout is not None]
        if not kept:
            raise DataFileError(f"{Path(folder) / name}: expected PNG files with transparency there, found none.")
        found += kept
    return found


def digit_cutouts() -> list[CutOut]:
    """The handwritten digits of scikit-learn as white cut-outs of class 1."""
    digits = torch.from_numpy(needed("sklearn.datasets").load_digits().images).float() / 16
    return [CutOut(torch.ones(3, 8, 8), digit.unsqueeze(0), 1) for digit in digits]


def photographs(paths: Sequence[Path], longest: int) -> list[Tensor]:
    """The colours of picture files as bytes (3, H, W), reduced so that the longer side has at most so many pixels."""
    return [_reduced(rgb_bytes(path), longest) for path in paths]


def _reduced(picture: Tensor, longest: int) -> Tensor:
    factor = longest / max(picture.shape[-2:])
    if factor >= 1:
        return picture
    size = [round(n * factor) for n in picture.shape[-2:]]
    scaled = F.interpolate(picture.float().unsqueeze(0), size=size, mode="bilinear", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _photographic(path: Path) -> bool:
    return not _DRAWINGS & set(path.parts)


def _cutout(path: Path, label: int) -> CutOut | None:
    """The smallest rectangle that holds what is visible; None without transparency."""
    picture = read_picture(path)
    if picture.alpha is None:
        return None
    alpha = picture.alpha.float() / picture.peak
    visible = (alpha[0] > _OPAQUE).nonzero()  # (pixels, 2)
    if not len(visible):
        return None
    top, left = visible.min(dim=0).values.tolist()
    bottom, right = visible.max(dim=0).values.tolist()
    rows = slice(top, bottom + 1)
    columns = slice(left, right + 1)
    colors = (picture.colors.float() / picture.peak).expand(3, -1, -1)
    return CutOut(colors[:, rows, columns], alpha[:, rows, columns], label)
