"""Slices of the MNI152 brain with their tissues, and slabs of slices that do not touch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nablanets.errors import DataFileError, InvalidInputError
from nablanets_studies.datasets.labelled import find_file
from nablanets_studies.images.extras import needed

TISSUES = ("other", "grey matter", "white matter")
_FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


def read_volume(path: str | Path) -> Any:
    """The numbers of a NIfTI file as a NumPy array of three dimensions.

    Raises:
        DataFileError: the file is missing, damaged, or has another number of dimensions.
    """
    nibabel = needed("nibabel")
    try:
        array = np.asarray(nibabel.load(path).dataobj)
    except FileNotFoundError as error:
        raise DataFileError(f"there is no file {path}.") from error
    except (OSError, ValueError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        raise DataFileError(f"{path} cannot be read as NIfTI: {error}. It may be damaged; fetch it again.") from error
    if array.ndim != 3:
        raise DataFileError(f"{path}: expected a volume of three dimensions, got {array.shape}.")
    return array


def brain_slices(folder: str | Path, *, millimetres: int = 1, multiple: int = 16) -> tuple[Tensor, Tensor]:
    """Axial slices of the T1 picture (n, 1, H, W) as bytes and the tissue of each pixel (n, H, W).

    The tissue is that of the largest probability: grey matter, white matter, or what is left.

    Args:
        folder: with the three files of nilearn (``nablanets data get brain-tissue``).
        millimetres: size of a pixel; slices stay 1 mm apart.
        multiple: heights and widths are cropped to multiples of this.

    Raises:
        DataFileError: a file is missing or damaged, or the volumes do not belong together.
    """
    files = [find_file(folder, [_FILE.format(kind)], f"the {kind} volume") for kind in ("t1", "gm", "wm")]
    t1, grey, white = (read_volume(file) for file in files)
    if not t1.shape == grey.shape == white.shape:
        raise DataFileError(f"{folder}: expected volumes of one shape, got {t1.shape}, {grey.shape}, {white.shape}.")
    grey = grey.astype(np.int16)
    white = white.astype(np.int16)
    tissue = np.stack([255 - grey - white, grey, white]).argmax(axis=0)
    x = _axial(t1, millimetres, multiple)
    y = _axial(tissue, millimetres, multiple)
    kept = (y > 0).float().mean(dim=(1, 2)) > 0.02
    return x[kept].unsqueeze(1), y[kept]


def _axial(volume: np.ndarray, millimetres: int, multiple: int) -> Tensor:
    """Slices (n, H, W) of a volume (H, W, n) at a resolution, cropped to multiples."""
    height, width = (size // millimetres // multiple * multiple * millimetres for size in volume.shape[:2])
    coarse = volume[0:height:millimetres, 0:width:millimetres]
    return torch.from_numpy(np.ascontiguousarray(coarse.transpose(2, 0, 1)))


def slabs(count: int, *, size: int, gap: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of slices for training, choices and the end, in slabs with slices between them that nobody uses.

    Neighbouring slices are nearly equal, so a random split would test on what was seen. Of each five slabs, the third
    is for choices and the fifth for the end.

    Raises:
        InvalidInputError: there are too few slices for five slabs.

    >>> [part.tolist() for part in slabs(14, size=2, gap=1)]
    [[0, 1, 3, 4, 9, 10], [6, 7], [12, 13]]
    """
    starts = range(0, count - size + 1, size + gap)
    if len(starts) < 5 or size < 1 or gap < 0:
        raise InvalidInputError(
            f"slabs: expected at least five slabs, got {len(starts)} of {count} slices. Use thinner ones."
        )
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    for k, start in enumerate(starts):
        part = {2: validation, 4: test}.get(k % 5, train)
        part.extend(range(start, start + size))
    return torch.tensor(train), torch.tensor(validation), torch.tensor(test)
