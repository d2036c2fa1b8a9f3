"""CIFAR-10 and CIFAR-100 as they are distributed for Python: pickles, read without running what they name."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nablanets.errors import DataFileError
from nablanets_studies.datasets.labelled import Labelled, find_file, labelled


def read_cifar(folder: str | Path, *, train: bool) -> Labelled:
    """CIFAR-10 (``cifar-10-batches-py``) or CIFAR-100 (``cifar-100-python``), whichever the folder has.

    Raises:
        DataFileError: a file is missing, damaged, or asks for code to be run.
    """
    folder = Path(folder)
    of_cifar_100 = folder / ("train" if train else "test")
    if of_cifar_100.is_file():
        return _batch(of_cifar_100, b"fine_labels", 100)
    names = [f"data_batch_{k}" for k in range(1, 6)] if train else ["test_batch"]
    files = [find_file(folder, [name], "a batch of CIFAR-10, or train and test of CIFAR-100") for name in names]
    parts = [_batch(path, b"labels", 10) for path in files]
    pictures = torch.cat([part.pictures for part in parts])
    labels = torch.cat([part.labels for part in parts])
    return Labelled(pictures, labels, 10)


def _batch(path: Path, key: bytes, classes: int) -> Labelled:
    content = read_pickle(path)
    if not isinstance(content, dict) or b"data" not in content or key not in content:
        raise DataFileError(f"{path}: expected a dictionary with b'data' and {key!r}, as in CIFAR-{classes}.")
    data = content[b"data"]
    labels = content[key]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataFileError(f"{path}: expected b'data' to be bytes of shape (n, 3072), got {_shape(data)}.")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataFileError(f"{path}: expected {key!r} to be a list of integers.")
    pictures = torch.from_numpy(np.array(data).reshape(-1, 3, 32, 32))
    return labelled(pictures, torch.tensor(labels, dtype=torch.long), classes, path)


def _shape(data: Any) -> str:
    return f"{data.dtype} of {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__


def read_pickle(path: str | Path) -> Any:
    """A pickle of plain values and NumPy arrays. Anything else that it names is refused, not run.

    Raises:
        DataFileError: the file is missing, damaged, or names something else.
    """
    path = Path(path)
    try:
        return _Plain(io.BytesIO(path.read_bytes())).load()
    except FileNotFoundError as error:
        raise DataFileError(f"there is no file {path}.") from error
    except _RefusedError as error:
        raise DataFileError(
            f"{path} asks for {error} to be run, which data do not need. It was not. The file may be malicious."
        ) from error
    except Exception as error:  # damaged pickles raise errors of many kinds
        raise DataFileError(f"{path} is no whole pickle ({type(error).__name__}: {error}). Fetch it again.") from error


class _RefusedError(Exception):
    """A pickle names what is not on the list."""


class _Plain(pickle.Unpickler):
    """Knows NumPy's arrays and types, and nothing else."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        key = (module.replace("._core", ".core"), name)  # NumPy 2 has renamed its modules
        if key not in _KNOWN:
            raise _RefusedError(f"{module}.{name}")
        return _KNOWN[key]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What pickles of old protocols write for bytes, in the only encoding that they use."""
    if encoding not in ("latin1", b"latin1"):
        raise _RefusedError(f"the codec {encoding}")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}
