"""How benchmarks measure: medians of repeated runs on one thread, and ratios within one run of the program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table

from nablanets_studies.machinery.costs import interleaved_times

QUICK = "--quick" in sys.argv


def median_time(run: Callable[[], object], repeats: int, *, warm_up: int = 2) -> float:
    """Median wall time of a call in seconds."""
    return interleaved_times([run], repeats, warm_up=warm_up)[0]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
