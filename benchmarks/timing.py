"""How benchmarks measure: medians of repeated runs on one thread, and ratios within one run of the program."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table

QUICK = "--quick" in sys.argv


def median_time(run: Callable[[], object], repeats: int, *, warm_up: int = 2) -> float:
    """Median wall time of a call in seconds."""
    return interleaved_times([run], repeats, warm_up=warm_up)[0]


def interleaved_times(runs: Sequence[Callable[[], object]], repeats: int, *, warm_up: int = 2) -> list[float]:
    """Median wall times of several calls that take turns, so that a disturbance of the machine meets all of them.

    At each turn a call runs once before it is timed: what another one left in caches and allocator is not its cost.
    """
    for run in runs:
        for _ in range(warm_up):
            run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, record in zip(runs, times, strict=True):
            if len(runs) > 1:
                run()
            begin = time.perf_counter()
            run()
            record.append(time.perf_counter() - begin)
    return [statistics.median(record) for record in times]


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
