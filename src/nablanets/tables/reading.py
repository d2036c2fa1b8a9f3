"""Reading a table: the ending of the file name chooses the format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from nablanets.errors import DataFileError, NablaError
from nablanets.serialization import is_file
from nablanets.tables.npz import read_npz
from nablanets.tables.parquet import read_parquet
from nablanets.tables.table_file import TableFile, check_names
from nablanets.tables.text import read_text

#: Endings of file names that are read and written; upper case is the same.
SUFFIXES = (".csv", ".npz", ".parquet", ".tsv", ".csv.gz", ".tsv.gz")


def check_suffix(path: str | Path) -> str:
    """The ending of a file name that tells its format, in lower case.

    Raises:
        DataFileError: it has none of the known endings.

    >>> check_suffix("measured.CSV.gz")
    '.csv.gz'
    """
    name = Path(path).name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix) and name != suffix:
            return suffix
    raise DataFileError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, got {Path(path).suffix!r}.")


def read_table(path: str | Path, *, separator: str | None = None) -> pd.DataFrame:
    """Read a table of numbers.

    Args:
        path: the file.
        separator: between the columns of a text file: ",", ";", "tab", "|" or "space"; found out if None.

    Raises:
        DataFileError: missing, empty, unreadable or ambiguous file, or an ending that is not known.
    """
    return read_table_file(path, separator=separator).frame


def read_table_file(path: str | Path, *, separator: str | None = None) -> TableFile:
    """Read a table with its layout, its units and what was decided in reading it; see :func:`read_table`."""
    path = Path(path)
    suffix = check_suffix(path)
    if not is_file(path):
        raise DataFileError(f"there is no file {path}.")
    reader = _reader(suffix, separator)
    try:
        table = reader(path)
    except NablaError:
        raise
    except (Exception, MemoryError) as error:
        # A damaged file can make a reader of another library raise anything.
        reason = str(error) or type(error).__name__
        raise DataFileError(f"{path} cannot be read as {suffix}: {reason:.300}") from error
    check_names([str(column) for column in table.frame.columns], path)
    if len(table.frame) == 0 or len(table.frame.columns) == 0:
        raise DataFileError(f"{path} has no rows. Expected a header line with column names and one row per sample.")
    return table


def _reader(suffix: str, separator: str | None) -> Callable[[Path], TableFile]:
    if suffix == ".npz":
        return read_npz
    if suffix == ".parquet":
        return read_parquet
    return lambda path: read_text(path, separator=separator)
