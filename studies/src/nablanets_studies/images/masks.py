"""Pictures with a class for each pixel, from files: Pascal VOC, and any two folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nablanets.errors import DataFileError
from nablanets_studies.datasets.labelled import find_file
from nablanets_studies.images.extras import needed
from nablanets_studies.images.files import pictures_in, rgb_bytes
from nablanets_studies.images.training import Ticket

#: The class of pixels that do not count.
IGNORED = 255
VOC_CLASSES = 21


class Pair(NamedTuple):
    """Files of a picture and of its mask."""

    picture: Path
    mask: Path


def voc_pairs(folder: str | Path, split: str) -> list[Pair]:
    """The pictures of a split ("train", "val", "trainval") of Pascal VOC, the folder with JPEGImages in it.

    Raises:
        DataFileError: the list is missing or empty, or names a file that is not there.
    """
    root = Path(folder)
    listing = find_file(root / "ImageSets" / "Segmentation", [f"{split}.txt"], f"the list of the split {split!r}")
    names = listing.read_text(encoding="utf-8").split()
    pairs = [Pair(root / "JPEGImages" / f"{n}.jpg", root / "SegmentationClass" / f"{n}.png") for n in names]
    missing = [str(path) for pair in pairs for path in pair if not path.is_file()]
    if missing or not pairs:
        raise DataFileError(
            f"{listing} names {len(pairs)} pictures, of which {len(missing)} files are missing: "
            f"{', '.join(missing[:3]) or 'none'}. Unpack the data set again."
        )
    return pairs


def folder_pairs(pictures: str | Path, masks: str | Path) -> list[Pair]:
    """Pictures and masks of the same names in two folders.

    Raises:
        DataFileError: a folder is missing or empty, or a file has no partner.
    """
    found = [_by_stem(Path(folder)) for folder in (pictures, masks)]
    unpaired = sorted(set(found[0]) ^ set(found[1]))
    if unpaired:
        lonely = [str((found[0] | found[1])[stem]) for stem in unpaired]
        raise DataFileError(
            f"{len(lonely)} files have no partner, among them {', '.join(lonely[:3])}. Expected a mask in {masks} for "
            f"each picture in {pictures}, of the same name up to the ending."
        )
    return [Pair(found[0][stem], found[1][stem]) for stem in sorted(found[0])]


def _by_stem(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in pictures_in(folder)}


def read_pair(pair: Pair, classes: int) -> tuple[Tensor, Tensor]:
    """Colours as bytes (3, H, W) and the class of each pixel (H, W), 255 where it does not count.

    Raises:
        DataFileError: a file is damaged, the sizes differ, or a class is out of range.
    """
    colors = rgb_bytes(pair.picture)
    mask = read_mask(pair.mask)
    if colors.shape[-2:] != mask.shape:
        raise DataFileError(
            f"{pair.mask}: expected the size of {pair.picture}, {tuple(colors.shape[-2:])}, got {tuple(mask.shape)}."
        )
    wrong = mask[(mask >= classes) & (mask != IGNORED)].unique().tolist()
    if wrong:
        raise DataFileError(
            f"{pair.mask}: expected classes from 0 to {classes - 1}, or {IGNORED} for pixels that do not count, got "
            f"{', '.join(map(str, wrong[:5]))}."
        )
    return colors, mask


def read_mask(path: Path) -> Tensor:
    """The numbers of a mask: indices of a palette, or grey values.

    Raises:
        DataFileError: the file is damaged, or has colours instead of numbers.
    """
    pil = needed("PIL.Image")
    try:
        with pil.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise DataFileError(f"{path}: expected a mask with a palette or grey values, got mode {image.mode}.")
            return torch.from_numpy(np.array(image.convert("L") if image.mode == "1" else image)).long()
    except (OSError, SyntaxError, ValueError) as error:
        raise DataFileError(
            f"{path} cannot be read as a mask: {error}. The file may be damaged or truncated."
        ) from error


class MaskedPictures:
    """A batch source that reads files as it goes: random pieces of one size, mirrored at random.

    Pictures that are too small are filled up with black that does not count.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int, *, size: int) -> None:
        self.pairs = list(pairs)
        self.classes = classes
        self.size = size

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, ticket: Ticket) -> tuple[Tensor, Tensor]:
        indices = ticket.indices(len(self)).tolist()
        draws = ticket.uniform(3).tolist()
        found = [self._piece(index, u) for index, u in zip(indices, draws, strict=True)]
        return torch.stack([x for x, _ in found]).float() / 255, torch.stack([y for _, y in found])

    def fixed(self) -> tuple[Tensor, Tensor]:
        """The middle of each picture, as bytes and classes, for validation and tests."""
        found = [self._piece(k, [0.5, 0.5, 1.0]) for k in range(len(self))]
        return torch.stack([x for x, _ in found]), torch.stack([y for _, y in found])

    def _piece(self, index: int, u: list[float]) -> tuple[Tensor, Tensor]:
        """A piece of a picture: u[0] and u[1] say where, u[2] whether it is mirrored."""
        x, y = read_pair(self.pairs[index], self.classes)
        missing_rows = max(0, self.size - y.shape[0])
        missing_columns = max(0, self.size - y.shape[1])
        x = F.pad(x, (0, missing_columns, 0, missing_rows))
        y = F.pad(y, (0, missing_columns, 0, missing_rows), value=IGNORED)
        top = int(u[0] * (y.shape[0] - self.size + 1))
        left = int(u[1] * (y.shape[1] - self.size + 1))
        rows = slice(top, top + self.size)
        columns = slice(left, left + self.size)
        x = x[:, rows, columns]
        y = y[rows, columns]
        if u[2] < 0.5:
            return x.flip(-1), y.flip(-1)
        return x, y
