"""Samples of a field in files: text (CSV, TSV), NPZ and Parquet.

A table is read right, or refused with a reason: no row, column or value is guessed at silently. What was decided on
the way (a separator, decimal commas, a line with units) is told in ``TableFile.remarks``.
"""

from nablanets.tables.columns import find_columns, numbers, select_columns
from nablanets.tables.names import ColumnNames, split_unit
from nablanets.tables.reading import SUFFIXES, check_suffix, read_table, read_table_file
from nablanets.tables.table_file import TableFile, TextLayout
from nablanets.tables.writing import write_table

__all__ = [
    "SUFFIXES",
    "ColumnNames",
    "TableFile",
    "TextLayout",
    "check_suffix",
    "find_columns",
    "numbers",
    "read_table",
    "read_table_file",
    "select_columns",
    "split_unit",
    "write_table",
]
