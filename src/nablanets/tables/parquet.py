"""Parquet: a table with types and, if pandas wrote it, with its index."""

from __future__ import annotations

from pathlib import Path

from nablanets.errors import DataFileError
from nablanets.extras import needed
from nablanets.tables.table_file import TableFile, check_growth, check_names

#: Bytes that one number takes in memory.
_BYTES = 8


def read_parquet(path: Path) -> TableFile:
    """The columns of a Parquet file, with the index that pandas stored; a range if there is none."""
    parquet = needed("pyarrow.parquet", extra="parquet", purpose="Parquet files")
    with parquet.ParquetFile(path, memory_map=False) as file:
        metadata = file.metadata
        if metadata.num_rows < 0:
            raise DataFileError(f"{path} says that it has {metadata.num_rows} rows: it is damaged.")
        check_names(file.schema_arrow.names, path)
        declared = max(
            metadata.num_rows * metadata.num_columns * _BYTES,
            sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)),
        )
        check_growth(declared, path.stat().st_size, path)
        content = file.read(use_threads=False, use_pandas_metadata=True)
        rows = metadata.num_rows
    content.validate(full=True)
    frame = content.to_pandas(use_threads=False)
    if len(frame) != rows:
        raise DataFileError(f"{path} says that it has {rows} rows, and has {len(frame)}: it is damaged.")
    frame.columns = [str(column).strip() for column in frame.columns]
    return TableFile(frame)
