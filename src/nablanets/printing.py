"""Tables and progress bars for people, drawn by rich.

Importing rich takes a tenth of the time that importing torch does, and most programs that use this package print no
table. So rich is loaded here, when the first table or bar is drawn, and no other module of the library imports it at
its top (the command line does).
"""

from __future__ import annotations

import html
import importlib
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table


def make_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, numbers: Collection[str] = ()
) -> Table:
    """A table for ``console.print``.

    Args:
        columns: the headings.
        rows: the cells of each row, one per column.
        title: above the table.
        numbers: the columns to align on the right.
    """
    table = cast("Table", importlib.import_module("rich.table").Table(title=title))
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*row)
    return table


def as_text(table: Table, *lines: str, width: int = 100) -> str:
    """What the console shows of a table and of lines below it, without colours.

    >>> print(as_text(make_table(["layer", "gate"], [["first", "0.50"]]), "one layer"))  # doctest: +ELLIPSIS
    ┏━...
    │ first │ 0.50 │
    └───────┴──────┘
    one layer
    <BLANKLINE>
    """
    console = importlib.import_module("rich.console").Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
        for line in lines:
            console.print(line, highlight=False, markup=False)
    return cast("str", capture.get())


def html_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", numbers: Collection[str] = ()
) -> str:
    """A table for notebooks, with everything escaped; the arguments are those of :func:`make_table`.

    >>> html_table(["layer"], [["<first>"]]).count("&lt;first&gt;")
    1
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        parts = []
        for column, text in zip(columns, row, strict=True):
            side = "right" if column in numbers else "left"
            parts.append(f'<{tag} style="text-align: {side}">{html.escape(text)}</{tag}>')
        return f"<tr>{''.join(parts)}</tr>"

    caption = f"<caption>{html.escape(title)}</caption>" if title else ""
    body = "".join(cells("td", row) for row in rows)
    return f"<table>{caption}<thead>{cells('th', columns)}</thead><tbody>{body}</tbody></table>"


def make_progress_bar(label: str) -> Progress:
    """A bar with a label before it, the task's field ``status`` behind it, and the time remaining."""
    rich = importlib.import_module("rich.progress")
    columns = (
        rich.TextColumn(label),
        rich.BarColumn(),
        rich.TextColumn("{task.fields[status]}"),
        rich.TimeRemainingColumn(),
    )
    return cast("Progress", rich.Progress(*columns))
