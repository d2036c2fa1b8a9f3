"""Samples of a field in files: CSV, NPZ and Parquet with columns x1..xd and g1..gd."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nablanets.errors import DataFileError
from nablanets.serialization import atomic_path

_SUFFIXES = (".csv", ".npz", ".parquet")


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table of numbers.

    Raises:
        DataFileError: missing, empty or unreadable file, or an ending other than .csv, .npz, .parquet.
    """
    path = Path(path)
    _check_suffix(path)
    if not path.is_file():
        raise DataFileError(f"there is no file {path}.")
    try:
        table = _READERS[path.suffix](path)
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataFileError(f"{path} cannot be read as {path.suffix}: {error}") from error
    if table.empty:
        raise DataFileError(f"{path} has no rows. Expected a header line with column names and one row per sample.")
    return table


def _read_npz(path: Path) -> pd.DataFrame:
    with np.load(path, allow_pickle=False) as data:
        columns: dict[str, np.ndarray] = {}
        for name in data.files:
            array = data[name]
            if array.ndim == 1:
                columns[name] = array
            elif array.ndim == 2:
                columns |= {f"{name}{i + 1}": array[:, i] for i in range(array.shape[1])}
            else:
                raise ValueError(f"expected arrays with one or two dimensions, got {name} of shape {array.shape}.")
        return pd.DataFrame(columns)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise DataFileError("Parquet files need pyarrow: pip install 'nablanets[parquet]'.") from error


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": pd.read_csv,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
}


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table, atomically; the ending of the file name chooses the format.

    Raises:
        DataFileError: the file cannot be written, or has another ending.
    """
    path = Path(path)
    _check_suffix(path)
    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".csv":
                table.to_csv(temporary, index=False)
            elif path.suffix == ".parquet":
                table.to_parquet(temporary, index=False)
            else:
                with temporary.open("wb") as file:
                    columns: dict[str, Any] = {str(name): table[name].to_numpy() for name in table.columns}
                    np.savez(file, **columns)
    except ImportError as error:
        raise DataFileError("Parquet files need pyarrow: pip install 'nablanets[parquet]'.") from error
    except OSError as error:
        raise DataFileError(f"cannot write {path}: {error}") from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in _SUFFIXES:
        raise DataFileError(f"{path}: expected a file that ends in {', '.join(_SUFFIXES)}, got {path.suffix!r}.")


def select_columns(table: pd.DataFrame, names: str | None, prefix: str, source: str | Path) -> Tensor:
    """Columns as a tensor (n, d), in float64.

    Args:
        table: the table.
        names: comma-separated column names; None takes prefix1, prefix2, ... in numerical order.
        prefix: "x" or "g".
        source: the file, for messages.

    Raises:
        DataFileError: columns are missing, or not numbers.

    >>> select_columns(pd.DataFrame({"x2": [2.0], "x1": [1.0]}), None, "x", "table").tolist()
    [[1.0, 2.0]]
    """
    if names is None:
        numbered = {int(m[1]): str(c) for c in table.columns if (m := re.fullmatch(rf"{prefix}(\d+)", str(c)))}
        columns = [numbered[i] for i in sorted(numbered)]
        missing = [f"{prefix}{i}" for i in range(1, max(numbered, default=1) + 1) if i not in numbered]
    else:
        columns = [name.strip() for name in names.split(",")]
        missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataFileError(
            f"{source}: expected columns {prefix}1..{prefix}d (or names given by --{prefix}-columns), missing "
            f"{', '.join(missing)}. The file has: {', '.join(map(str, table.columns))}."
        )
    try:
        values = table[columns].to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataFileError(f"{source}: columns {', '.join(columns)} must hold numbers: {error}") from error
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise DataFileError(
            f"{source}: {int(bad.sum())} rows have empty, NaN or infinite values in {', '.join(columns)}, the first is "
            f"data row {int(bad.argmax()) + 1}. Remove or fill them first."
        )
    return torch.from_numpy(np.ascontiguousarray(values))
