"""Pictures with a class for each pixel, from files: Pascal VOC, and any two folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nablanets.errors import DataFileError, InvalidInputError
from nablanets_studies.datasets.labelled import find_file
from nablanets_studies.images.files import Picture, as_rgb_bytes, by_stem, pictures_in, read_picture
from nablanets_studies.images.opening import is_white_zero, load_upright, opened, rawmode_of
from nablanets_studies.images.training import Ticket

#: The class of pixels that do not count.
IGNORED = 255
VOC_CLASSES = 21
#: Larger masks are refused, as pictures are.
_MEGAPIXELS = 200
#: By what Pillow multiplies grey samples of 2 and 4 bits, so that the largest becomes 255.
_GREY_STEPS = {"L;2": 85, "L;4": 17}
#: EXIF orientations: rows and columns exchanged; and after that mirrored left to right, and top to bottom.
_SIDEWAYS = (5, 6, 7, 8)
_FROM_THE_RIGHT = (2, 3, 6, 7)
_FROM_BELOW = (3, 4, 7, 8)


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
        DataFileError: a folder is missing or empty, a file has no partner, or two have one name (a.png and a.jpg).
    """
    found = [by_stem(pictures_in(folder)) for folder in (pictures, masks)]
    unpaired = sorted(set(found[0]) ^ set(found[1]))
    if unpaired:
        lonely = [str((found[0] | found[1])[stem]) for stem in unpaired]
        raise DataFileError(
            f"{len(lonely)} files have no partner, among them {', '.join(lonely[:3])}. Expected a mask in {masks} for "
            f"each picture in {pictures}, of the same name up to the ending."
        )
    return [Pair(found[0][stem], found[1][stem]) for stem in sorted(found[0])]


def read_pair(pair: Pair, classes: int, *, class_of_255: int | None = None) -> tuple[Tensor, Tensor]:
    """Colours as bytes (3, H, W) and the class of each pixel (H, W), 255 where it does not count.

    Both are upright. A mask that has no EXIF orientation of its own turns with its picture, unless its size says that
    it is upright already.

    Args:
        pair: the files.
        classes: how many there are, at most 255.
        class_of_255: what 255 in a mask means: a class, or 255 (``IGNORED``) for pixels that do not count. If None, it
            means the latter beside other classes, and a mask of 0 and 255 alone is refused.

    Raises:
        DataFileError: a file is damaged, the sizes differ, a class is out of range, or a mask has only 0 and 255 and
            ``class_of_255`` is None.
        InvalidInputError: ``classes`` or ``class_of_255`` is out of range.
    """
    check_classes(classes, class_of_255)
    picture = read_picture(pair.picture)
    colors = as_rgb_bytes(picture)
    mask = _beside(picture, _read(pair.mask), pair)
    mask = _with_class_of_255(mask, class_of_255, pair.mask)
    wrong = mask[(mask >= classes) & (mask != IGNORED)].unique().tolist()
    if wrong:
        raise DataFileError(
            f"{pair.mask}: expected classes from 0 to {classes - 1}, or {IGNORED} for pixels that do not count, got "
            f"{', '.join(map(str, wrong[:5]))}."
        )
    return colors, mask


def check_classes(classes: int, class_of_255: int | None) -> None:
    """Raise unless there are 1 to 255 classes, and 255 means one of them, or none."""
    if not 1 <= classes <= IGNORED:
        raise InvalidInputError(f"expected 1 to {IGNORED} classes, since {IGNORED} means none, got {classes}.")
    if class_of_255 is not None and class_of_255 != IGNORED and not 0 <= class_of_255 < classes:
        raise InvalidInputError(
            f"class_of_255: expected a class from 0 to {classes - 1}, or {IGNORED} for pixels that do not count, got "
            f"{class_of_255}."
        )


class _Mask(NamedTuple):
    """The numbers of a mask (H, W), turned by its own orientation, and that orientation."""

    numbers: Tensor
    orientation: int


def read_mask(path: Path) -> Tensor:
    """The numbers of a mask, ``torch.int64`` of shape (H, W), turned by its EXIF orientation.

    Indices of a palette, or grey samples: of 1 bit from 0 (black) to 1 (white), of 2 bits to 3, of 4 bits to 15, of 8
    and 16 bits as they are.

    Raises:
        DataFileError: the file is damaged, too large, or has colours or several frames instead of numbers; it is a
            JPEG, which changes numbers; or a TIFF of more than one bit in which zero is white.
    """
    return _read(path).numbers


def _read(path: Path) -> _Mask:
    with opened(path, megapixels=_MEGAPIXELS) as image:
        _refuse_mask(path, image)
        rawmode = rawmode_of(image)
        orientation = load_upright(image)
        numbers = np.array(image).astype(np.int64)
    scale = _GREY_STEPS.get(rawmode.rstrip("R"), 1)  # "R": the bits of a byte lie the other way round
    return _Mask(torch.from_numpy(numbers // scale), orientation)


def _refuse_mask(path: Path, image: Any) -> None:
    """Refuse files whose numbers are no classes."""
    if image.format in ("JPEG", "MPO"):
        raise DataFileError(f"{path}: a mask cannot be a JPEG, which changes numbers. Save masks as PNG.")
    if image.mode not in ("P", "L", "1") and not image.mode.startswith("I;16"):
        raise DataFileError(f"{path}: expected a mask with a palette or grey values, got mode {image.mode}.")
    if getattr(image, "n_frames", 1) > 1:
        raise DataFileError(f"{path}: expected one mask in a file, got {image.n_frames} frames. Save them one by one.")
    if is_white_zero(image) and image.mode != "1":
        raise DataFileError(
            f"{path}: zero is white in this TIFF, so it is not known whether its classes count from black or from "
            "white. Save the mask as PNG."
        )


def _beside(picture: Picture, mask: _Mask, pair: Pair) -> Tensor:
    """The numbers of a mask, upright as its picture."""
    upright = tuple(picture.colors.shape[-2:])
    stored = upright[::-1] if picture.orientation in _SIDEWAYS else upright
    shape = tuple(mask.numbers.shape)
    if mask.orientation == 1 and shape == stored:
        return turned(mask.numbers, picture.orientation)
    if shape != upright:
        raise DataFileError(f"{pair.mask}: expected the size of {pair.picture}, {upright}, got {shape}.")
    return mask.numbers


def turned(x: Tensor, orientation: int) -> Tensor:
    """A picture (*, H, W) as it lies in a file, upright by the EXIF orientation of the file, 1 to 8.

    >>> turned(torch.tensor([[1, 2], [3, 4]]), 6)
    tensor([[3, 1],
            [4, 2]])
    """
    if orientation in _SIDEWAYS:
        x = x.mT
    if orientation in _FROM_THE_RIGHT:
        x = x.flip(-1)
    if orientation in _FROM_BELOW:
        x = x.flip(-2)
    return x.contiguous()


def _with_class_of_255(mask: Tensor, class_of_255: int | None, path: Path) -> Tensor:
    is_255 = mask == IGNORED
    if class_of_255 is not None:
        return torch.where(is_255, class_of_255, mask)
    if bool(is_255.any()) and bool((is_255 | (mask == 0)).all()):
        raise DataFileError(
            f"{path} has no numbers but 0 and 255, and 255 is a class in some masks and stands for pixels that do not "
            f"count in others. Say which: class_of_255=1 for class 1, class_of_255={IGNORED} for pixels that do not count."
        )
    return mask


class MaskedPictures:
    """A batch source that reads files as it goes: random pieces of one size, mirrored at random.

    Pictures that are too small are filled up with black that does not count. What 255 in a mask means says
    ``class_of_255``, as for :func:`read_pair`.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int, *, size: int, class_of_255: int | None = None) -> None:
        check_classes(classes, class_of_255)
        self.pairs = list(pairs)
        self.classes = classes
        self.size = size
        self.class_of_255 = class_of_255

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
        x, y = read_pair(self.pairs[index], self.classes, class_of_255=self.class_of_255)
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
