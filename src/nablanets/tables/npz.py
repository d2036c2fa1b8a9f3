"""NPZ: a zip file of arrays. Nothing in it is believed before it is compared with the bytes that are there."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.lib import format as npy

from nablanets.errors import DataFileError
from nablanets.tables.table_file import TableFile, check_growth, check_names

_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_IS_ENCRYPTED: Final = 0x1


def read_npz(path: Path) -> TableFile:
    """The arrays of an NPZ file: one-dimensional ones are columns, (n, k) ones become k numbered columns."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        check_growth(sum(entry.file_size for entry in entries), path.stat().st_size, path)
        names: list[str] = []
        columns: list[np.ndarray] = []
        for entry in entries:
            _check_entry(entry)
            name = entry.filename.removesuffix(".npy").strip()
            array = _array(archive.read(entry), name)
            names += _column_names(name, array)
            columns += list(array.T) if array.ndim == 2 else [array]
            check_names(names, path)
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        told = ", ".join(f"{name}: {len(column)}" for name, column in zip(names[:10], columns[:10], strict=True))
        raise DataFileError(f"{path}: expected arrays with the same number of rows, got {told}.")
    return TableFile(pd.DataFrame(dict(zip(names, columns, strict=True))))


def _check_entry(entry: zipfile.ZipInfo) -> None:
    if not entry.filename.endswith(".npy"):
        raise ValueError(f"{entry.filename!r} is no array. Write the file with numpy.savez.")
    if entry.flag_bits & _IS_ENCRYPTED or entry.compress_type not in _METHODS:
        raise ValueError(
            f"{entry.filename!r} is encrypted or compressed in a way that numpy.savez does not use. Write it again."
        )


def _array(content: bytes, name: str) -> np.ndarray:
    """The array in the bytes of an .npy file, as a view of them."""
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, is_fortran, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, is_fortran, dtype = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"array {name!r} has version {version} of the format; 1.0 and 2.0 are read.")
    if dtype.hasobject or dtype.kind == "V":
        raise ValueError(f"array {name!r} holds objects or records. Store plain numbers.")
    if len(shape) not in (1, 2):
        raise ValueError(f"expected arrays with one or two dimensions, got {name} of shape {shape}.")
    start = stream.tell()
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(
            f"array {name!r} says that it has the shape {shape} of {dtype}, but {len(content) - start} bytes are there."
        )
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    flat = np.frombuffer(content, dtype, offset=start)
    native = flat.astype(dtype.newbyteorder("="), copy=False)
    return native.reshape(shape, order="F" if is_fortran else "C")


def _column_names(name: str, array: np.ndarray) -> list[str]:
    if array.ndim == 1:
        return [name]
    return [f"{name}{i + 1}" for i in range(array.shape[1])]
