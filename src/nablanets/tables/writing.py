"""Writing a table, whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from nablanets.errors import DataFileError
from nablanets.extras import needed
from nablanets.serialization import atomic_path
from nablanets.tables.reading import check_suffix
from nablanets.tables.table_file import TextLayout


def write_table(
    table: pd.DataFrame,
    path: str | Path,
    *,
    layout: TextLayout | None = None,
    units: Mapping[str, str] | None = None,
) -> None:
    """Write a table, atomically; the ending of the file name chooses the format.

    An index that is no plain range is written too: as the index in Parquet, as columns in front in other formats.

    Args:
        table: the columns.
        path: the file.
        layout: how a text file is laid out; commas (tabs in a .tsv), decimal points and UTF-8 if None.
        units: units by column, for layouts with a line of units.

    Raises:
        DataFileError: the file cannot be written, or has another ending.
    """
    path = Path(path)
    suffix = check_suffix(path)
    if suffix == ".parquet":
        needed("pyarrow", extra="parquet", purpose="Parquet files")
    try:
        with atomic_path(path) as temporary:
            if suffix == ".parquet":
                table.to_parquet(temporary, index=None if _has_plain_index(table) else True)
            elif suffix == ".npz":
                _write_npz(with_index_columns(table), temporary)
            else:
                chosen = layout or TextLayout(separator="\t" if suffix.startswith(".tsv") else ",")
                is_compressed = suffix.endswith(".gz")
                _write_text(with_index_columns(table), temporary, chosen, units or {}, is_compressed=is_compressed)
    except (OSError, ValueError, TypeError) as error:
        raise DataFileError(f"cannot write {path}: {error}") from error


def _has_plain_index(table: pd.DataFrame) -> bool:
    index = table.index
    return isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1 and index.name is None


def with_index_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an index that is no plain range as columns in front."""
    if _has_plain_index(table):
        return table
    taken = set(map(str, table.columns))
    names = []
    for level, name in enumerate(table.index.names):
        wanted = str(name) if name is not None else "index" if table.index.nlevels == 1 else f"level_{level}"
        while wanted in taken:
            wanted += "_"
        taken.add(wanted)
        names.append(wanted)
    return table.reset_index(names=names)


def _write_npz(table: pd.DataFrame, path: Path) -> None:
    # Entry by entry, since numpy.savez takes a column named "file" for its own argument.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name in table.columns:
            values = table[name].to_numpy()
            if values.dtype == object:
                values = values.astype(str)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, values, allow_pickle=False)


def _write_text(
    table: pd.DataFrame, path: Path, layout: TextLayout, units: Mapping[str, str], *, is_compressed: bool
) -> None:
    # Runs of blanks cannot show empty values or names of several words; tabs can.
    separator = "\t" if layout.separator == " " else layout.separator
    with _text_file(path, layout.encoding, is_compressed=is_compressed) as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        names = [str(name) for name in table.columns]
        writer.writerow(names)
        if layout.has_units:
            writer.writerow([units.get(name, "") for name in names])
        table.to_csv(file, sep=separator, decimal=layout.decimal, index=False, header=False, lineterminator="\n")


@contextmanager
def _text_file(path: Path, encoding: str, *, is_compressed: bool) -> Iterator[TextIO]:
    if not is_compressed:
        with path.open("w", encoding=encoding, newline="") as file:
            yield file
        return
    with gzip.open(path, "wb") as packed, io.TextIOWrapper(packed, encoding=encoding, newline="") as file:
        yield file
