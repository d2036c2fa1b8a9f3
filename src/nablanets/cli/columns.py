"""Tables on the command line: reading with remarks, and which columns a model means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from torch import Tensor

from nablanets.automatic.result import ComponentError
from nablanets.cli.app import console
from nablanets.errors import InvalidInputError, ShapeError
from nablanets.printing import make_table
from nablanets.serialization import check_writable
from nablanets.tables import ColumnNames, TableFile, find_columns, numbers, read_table_file
from nablanets.tables.names import split_unit

_ERROR_COLUMNS = ("component", "RMSE", "R^2")

XColumns = Annotated[
    str | None, typer.Option(help="Comma-separated point columns; those the model knows, or x1..xd, if not given.")
]
GColumns = Annotated[
    str | None, typer.Option(help="Comma-separated gradient columns; those the model knows, or g1..gd, if not given.")
]
Separator = Annotated[
    str | None, typer.Option(help="Between columns of a text file: , ; tab | or space. Found out if not given.")
]


def read(file: Path, separator: str | None) -> TableFile:
    """Read a table and say what was decided on the way."""
    table = read_table_file(file, separator=separator)
    for remark in table.remarks:
        console.print(f"{file}: {remark}", soft_wrap=True, highlight=False, markup=False)
    return table


def points(
    table: TableFile, given: str | None, known: ColumnNames | None, file: Path, count: int | None = None
) -> tuple[list[str], Tensor]:
    """The point columns and their values: those of the option, else those that the model knows, else x1..xd.

    Args:
        table: the table.
        given: the option.
        known: the names in the model file.
        file: the table's file, for messages.
        count: the features of the model; any number if None.
    """
    remembered = known.x_option if known is not None and given is None else None
    columns = find_columns(table.frame, given if remembered is None else remembered, "x", file)
    if count is not None and len(columns) != count:
        raise ShapeError(f"the model takes {count} features, and {file} has {len(columns)} point columns.")
    return columns, numbers(table.frame, columns, file, padded=table.padded)


def gradients(
    table: TableFile, given: str | None, known: ColumnNames | None, file: Path, features: int
) -> tuple[list[str], Tensor]:
    """The gradient columns, as many as features, and their values; see :func:`points`."""
    remembered = known.g_option if known is not None and given is None else None
    columns = find_columns(table.frame, given if remembered is None else remembered, "g", file)
    if len(columns) != features:
        raise ShapeError(f"{file}: {features} point columns but {len(columns)} gradient columns; expected as many.")
    return columns, numbers(table.frame, columns, file, padded=table.padded)


def has_gradients(table: TableFile, known: ColumnNames) -> bool:
    """Whether a table has any of the gradient columns that a model knows."""
    names = [str(name) for name in table.frame.columns]
    if known.g_option is not None:
        return any(name in names for name in known.g_option)
    return any(name == "g1" or name.startswith(("g1 ", "g1[", "g1(")) for name in names)


def check_out(out: Path, *inputs: Path, option: str = "--out") -> None:
    """Refuse to write over a file that is read, or where nothing can be written, before any work is done."""
    try:
        check_writable(out)
    except OSError as error:
        raise InvalidInputError(
            f"{option}: cannot write {out}: {error}. Choose a folder that you may write to, and the name of a file."
        ) from error
    for file in inputs:
        is_same = out.exists() and file.exists() and out.samefile(file)
        if is_same or out.absolute() == file.absolute():
            raise InvalidInputError(f"{option}: {out} is the file that is read ({file}). Choose another name.")


def components(names: ColumnNames) -> tuple[list[str], list[str]]:
    """Names of the gradients without units, and units, empty where none is known."""
    bare = [split_unit(name)[0] for name in names.g]
    units = [unit or "" for unit in names.g_units]
    return bare, units


def error_table(errors: Sequence[ComponentError], title: str) -> Table:
    """Errors of each component for people."""
    rows = [[each.name, f"{each.rmse:.4g} {each.unit}".strip(), f"{each.r2:.6f}"] for each in errors]
    return make_table(_ERROR_COLUMNS, rows, title=title, numbers=_ERROR_COLUMNS[1:])
