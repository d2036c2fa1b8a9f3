"""From columns of a table to tensors: names are matched strictly, and only numbers are taken for numbers."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nablanets.errors import DataFileError
from nablanets.tables.names import split_unit

#: How files write that a value is missing.
_MISSING = frozenset({"", "nan", "na", "n/a", "#n/a", "null", "none", "-", "?"})
#: The first integer that float64 cannot tell from its neighbour.
_LARGEST_EXACT = 2**53
_SHOWN = 20


def select_columns(table: pd.DataFrame, names: str | None, prefix: str, source: object) -> Tensor:
    """Columns as a tensor (n, d), in float64.

    Args:
        table: the table.
        names: comma-separated column names (in quotes where a name holds a comma); None takes prefix1, prefix2, ... in
            numerical order, with a unit in brackets or without.
        prefix: "x" or "g".
        source: the file, for messages.

    Raises:
        DataFileError: columns are missing, or not numbers.

    >>> select_columns(pd.DataFrame({"x2": [2.0], "x1": [1.0]}), None, "x", "table").tolist()
    [[1.0, 2.0]]
    """
    return numbers(table, find_columns(table, names, prefix, source), source)


def find_columns(
    table: pd.DataFrame, names: str | Sequence[str] | None, prefix: str, source: object, *, count: int | None = None
) -> list[str]:
    """The names of the columns that :func:`select_columns` takes.

    Args:
        table: the table.
        names: as a comma-separated string or one by one; None for prefix1, prefix2, ...
        prefix: "x" or "g".
        source: the file, for messages.
        count: how many they must be, if that is known.

    Raises:
        DataFileError: columns are missing, written differently, given twice, or not as many as expected.
    """
    present = [str(column).strip() for column in table.columns]
    if names is None:
        columns = _numbered(present, prefix, source)
    else:
        columns = split_names(names, prefix) if isinstance(names, str) else list(names)
        _check_present(columns, present, prefix, source)
    if count is not None and len(columns) != count:
        raise DataFileError(
            f"{source}: expected {count} {_KINDS[prefix]} columns, got {len(columns)}: {', '.join(columns)}. "
            f"Name them with --{prefix}-columns."
        )
    return columns


_KINDS = {"x": "point", "g": "gradient"}


def split_names(names: str, prefix: str) -> list[str]:
    """The names in a comma-separated list; quotes keep commas inside a name.

    >>> split_names('H [A/m], "B, measured"', "x")
    ['H [A/m]', 'B, measured']
    """
    parts = next(csv.reader([names], skipinitialspace=True), [])
    columns = [part.strip() for part in parts]
    if not columns or not all(columns):
        raise DataFileError(f"--{prefix}-columns: expected names separated by commas, got {names!r}.")
    if len(set(columns)) != len(columns):
        raise DataFileError(f"--{prefix}-columns: a name stands twice in {names!r}. Give every column once.")
    return columns


def _numbered(present: list[str], prefix: str, source: object) -> list[str]:
    """prefix1, prefix2, ... in numerical order; refused if a number is missing or a column almost has such a name."""
    found: dict[int, str] = {}
    similar: list[str] = []
    for name in present:
        base = split_unit(name)[0]
        if match := re.fullmatch(rf"{prefix}([1-9]\d{{0,8}})", base):
            number = int(match[1])
            if number in found:
                raise DataFileError(
                    f"{source}: columns {found[number]!r} and {name!r} are both {prefix}{number}. Rename one of them, "
                    f"or name the columns with --{prefix}-columns."
                )
            found[number] = name
        elif re.fullmatch(rf"{prefix}[\s_.\-\[(]*\d+[\])]?", base, re.IGNORECASE):
            similar.append(name)
    missing = [f"{prefix}{i}" for i in range(1, min(max(found, default=1), _SHOWN) + 1) if i not in found]
    if similar:
        raise DataFileError(
            f"{source}: expected columns {prefix}1..{prefix}d, got {', '.join(map(repr, similar))}, which are written "
            f"differently. Rename the columns, or name those to take with --{prefix}-columns."
        )
    if missing or len(found) != max(found):
        raise _missing(missing or ["others"], present, prefix, source)
    return [found[number] for number in sorted(found)]


def _check_present(columns: list[str], present: list[str], prefix: str, source: object) -> None:
    missing = [name for name in columns if name not in present]
    if not missing:
        return
    offers = []
    for name in missing:
        base = split_unit(name)[0].casefold()
        alike = [other for other in present if split_unit(other)[0].casefold() == base]
        offers += alike or difflib.get_close_matches(name, present, n=1)
    raise _missing(missing, present, prefix, source, offers)


def _missing(
    missing: Sequence[str], present: Sequence[str], prefix: str, source: object, offers: Sequence[str] = ()
) -> DataFileError:
    shown = ", ".join(present[:_SHOWN]) + (", ..." if len(present) > _SHOWN else "")
    hint = f" Did you mean {', '.join(map(repr, dict.fromkeys(offers)))}?" if offers else ""
    return DataFileError(
        f"{source}: expected columns {prefix}1..{prefix}d (or names given by --{prefix}-columns), missing "
        f"{', '.join(missing)}.{hint} The file has: {shown}."
    )


def numbers(
    table: pd.DataFrame, columns: Sequence[str], source: object, *, padded: Collection[str] = frozenset()
) -> Tensor:
    """Columns as a tensor (n, d), in float64.

    Dates, complex numbers, truth values and text are refused, and so are integers that float64 cannot hold.

    Args:
        table: the table.
        columns: their names.
        source: the file, for messages.
        padded: text columns that hold integers with leading zeros.

    Raises:
        DataFileError: a column holds something else than finite numbers.
    """
    stripped = [str(column).strip() for column in table.columns]
    values = np.empty((len(table), len(columns)))
    for place, name in enumerate(columns):
        column = table.iloc[:, stripped.index(name)]
        values[:, place] = _floats(column, name, source, is_padded=name in padded)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise DataFileError(
            f"{source}: {int(bad.sum())} rows have empty, NaN or infinite values in {', '.join(columns)}, the first is "
            f"data row {int(bad.argmax()) + 1}. Remove or fill them first."
        )
    return torch.from_numpy(values)


def _floats(column: pd.Series, name: str, source: object, *, is_padded: bool) -> np.ndarray:
    """A column as float64, NaN where a value is missing."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(dtype):
        kind = "categories" if isinstance(dtype, pd.CategoricalDtype) else "truth values"
        raise _no_numbers(name, source, kind, "Write them as numbers, such as 0 and 1, if they are coordinates.")
    if pd.api.types.is_complex_dtype(dtype):
        raise _no_numbers(name, source, "complex numbers", "Give real and imaginary parts as two columns.")
    if isinstance(dtype, pd.PeriodDtype) or pd.api.types.is_datetime64_any_dtype(dtype):
        raise _no_numbers(name, source, "dates", "Write them as numbers, such as seconds since the first sample.")
    if pd.api.types.is_timedelta64_dtype(dtype):
        raise _no_numbers(name, source, "durations", "Write them as numbers, such as seconds.")
    if pd.api.types.is_numeric_dtype(dtype):
        _check_exact(column, name, source)
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    if is_padded:
        return np.array([np.nan if pd.isna(cell) else _exact(int(cell), name, source) for cell in column])
    return _mixed(column.tolist(), name, source)


def _mixed(cells: list[Any], name: str, source: object) -> np.ndarray:
    """A column of objects or text as float64: numbers, and NaN where a value is missing.

    Text that looks like a number makes a column of text, which is refused; but the reason is the first cell that does
    not look like one, if there is any.
    """
    values = np.full(len(cells), np.nan)
    texts: list[int] = []
    has_missing = False
    for row, cell in enumerate(cells):
        if _is_missing(cell):
            has_missing = True
        elif isinstance(cell, str) and _looks_like_number(cell):
            texts.append(row)
            values[row] = 0.0  # refused in any case, but not for being missing
        elif isinstance(cell, int | float | Decimal | np.integer | np.floating) and not isinstance(cell, bool):
            values[row] = _exact(cell, name, source)
        else:
            raise _no_number(cells, row, name, source)
    if texts and not has_missing:
        raise _no_number(cells, texts[0], name, source)
    return values


def _is_missing(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell.strip().lower() in _MISSING
    return cell is None or cell is pd.NA or cell is pd.NaT


def _looks_like_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _no_number(cells: list[Any], row: int, name: str, source: object) -> DataFileError:
    cell = cells[row]
    what = "text" if isinstance(cell, str) else f"values of type {type(cell).__name__}"
    remedy = f"Data row {row + 1} has {cell!r:.60}. Remove or correct it, or choose other columns."
    return _no_numbers(name, source, what, remedy)


def _check_exact(column: pd.Series, name: str, source: object) -> None:
    """Refuse integers beyond 2^53 that float64 rounds."""
    if not pd.api.types.is_integer_dtype(column.dtype):
        return
    present = column.dropna()
    if present.empty:
        return
    extent = max(abs(int(present.min())), abs(int(present.max())))
    if extent <= _LARGEST_EXACT:
        return
    for value in present.tolist():
        _exact(int(value), name, source)


def _exact(value: Any, name: str, source: object) -> float:
    """A number as float64, if it is no integer that loses digits by it."""
    try:
        rounded = float(value)
    except OverflowError:
        rounded = np.inf
    if isinstance(value, int | np.integer) and (not np.isfinite(rounded) or int(rounded) != int(value)):
        kind = f"integers such as {value!r:.40}, of which float64 loses digits"
        raise _no_numbers(name, source, kind, "Subtract an offset first.")
    return rounded


def _no_numbers(name: str, source: object, kind: str, remedy: str) -> DataFileError:
    return DataFileError(f"{source}: column {name!r} must hold numbers, and holds {kind}. {remedy}")
