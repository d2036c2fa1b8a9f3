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
    grey, white = grey.astype(np.int16), white.astype(np.int16)
    tissue = np.stack([255 - grey - white, grey, white]).argmax(axis=0)
    inside = [slice(0, n // millimetres // multiple * multiple * millimetres, millimetres) for n in t1.shape[:2]]
    x, y = (torch.from_numpy(np.ascontiguousarray(a[inside[0], inside[1]].transpose(2, 0, 1))) for a in (t1, tissue))
    kept = (y > 0).float().mean(dim=(1, 2)) > 0.02
    return x[kept].unsqueeze(1), y[kept]


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
    use = [{2: 1, 4: 2}.get(k % 5, 0) for k in range(len(starts))]
    parts = [
        [i for start, kind in zip(starts, use, strict=True) if kind == part for i in range(start, start + size)]
        for part in range(3)
    ]
    train, validation, test = map(torch.tensor, parts)
    return train, validation, test
