"""What was found in the file of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pandas as pd

from nablanets.errors import DataFileError

#: A compressed file that says that it grows by more than this is refused (numbers grow by 2 to 10).
MOST_GROWTH: Final = 100
#: ... unless what it grows to is no more than this, in bytes.
SMALL: Final = 64 * 2**20
#: Columns at most. Pictures of 64 x 64 with their gradients have 8,192.
MOST_COLUMNS: Final = 20_000


@dataclass(frozen=True)
class TextLayout:
    """How a text file writes a table, so that what is computed from it can be written alike.

    Attributes:
        separator: between columns; " " stands for any run of blanks.
        decimal: "." or ",".
        encoding: of the file, as Python names it.
        has_units: whether a line with units follows the names.
    """

    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    has_units: bool = False


@dataclass(frozen=True)
class TableFile:
    """A table with what its file tells beside the numbers.

    Attributes:
        frame: the columns, with the index that the file has.
        layout: of a text file; None for NPZ and Parquet.
        units: units by column, from a line below the names.
        padded: integer columns with leading zeros; they are kept as text.
        remarks: what was decided in reading, for the user.
    """

    frame: pd.DataFrame
    layout: TextLayout | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    padded: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()


def check_growth(declared: int, size: int, source: object) -> None:
    """Refuse a file of ``size`` bytes that says it holds ``declared`` bytes, if that is no plausible compression."""
    if declared > max(SMALL, MOST_GROWTH * size):
        raise DataFileError(
            f"{source}: a file of {size} bytes that expands to {declared} bytes or more, over {MOST_GROWTH} times its "
            "size, is not opened. If it is what you expect, write it again without compression."
        )


def check_names(names: Sequence[str], source: object) -> None:
    """Refuse names that appear twice, and more columns than any table of samples has."""
    if len(names) > MOST_COLUMNS:
        raise DataFileError(
            f"{source} has {len(names)} columns, more than the {MOST_COLUMNS} that are read. Expected one row per "
            "sample and one column per feature; is it transposed?"
        )
    seen: set[str] = set()
    twice: list[str] = []
    for name in names:
        if name in seen and name not in twice:
            twice.append(name)
        seen.add(name)
    if twice:
        listed = ", ".join(repr(name) if name else "(without a name)" for name in twice[:10])
        raise DataFileError(
            f"{source}: several columns have the same name: {listed}. Give every column a name of its own."
        )
