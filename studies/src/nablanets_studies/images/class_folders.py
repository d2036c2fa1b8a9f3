"""Pictures in folders named after their classes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nablanets.errors import DataFileError
from nablanets_studies.datasets.labelled import Labelled
from nablanets_studies.images.files import pictures_in, rgb_bytes


def read_class_folders(folder: str | Path, *, train: bool, size: int = 64) -> Labelled:
    """The pictures in ``train/CLASS`` or ``test/CLASS`` of a folder, reduced or enlarged to squares of one size.

    The middle square of each picture is kept. Classes are numbered in the order of their names in ``train``.

    Raises:
        DataFileError: a folder is missing or empty, a class has pictures for the test only, or a picture is damaged.
    """
    known = _classes(Path(folder) / "train")
    part = Path(folder) / ("train" if train else "test")
    unknown = sorted(set(_classes(part)) - set(known))
    if unknown:
        raise DataFileError(
            f"{part / unknown[0]}: expected the classes of {Path(folder) / 'train'}: {', '.join(known)}."
        )
    pictures = []
    labels = []
    for label, name in enumerate(known):
        if train or (part / name).is_dir():
            found = [squared(rgb_bytes(path), size) for path in pictures_in(part / name)]
            pictures += found
            labels += [label] * len(found)
    return Labelled(torch.stack(pictures), torch.tensor(labels), len(known))


def squared(picture: Tensor, size: int) -> Tensor:
    """The middle square of a picture in bytes, at another size.

    >>> squared(torch.zeros(3, 20, 50, dtype=torch.uint8), 10).shape
    torch.Size([3, 10, 10])
    """
    side = min(picture.shape[-2:])
    top, left = ((n - side) // 2 for n in picture.shape[-2:])
    square = picture[:, top : top + side, left : left + side].float().unsqueeze(0)
    scaled = F.interpolate(square, size=(size, size), mode="bilinear", antialias=True)[0]
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _classes(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not names:
        raise DataFileError(f"{folder}: expected a folder with one folder of pictures for each class.")
    return names
