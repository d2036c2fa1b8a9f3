"""The application, and where commands print."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

import nablanets
from nablanets.cli.commands import Commands

app = typer.Typer(
    cls=Commands,
    help="Neural networks that are gradients: fitting, verification, export, experiments.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Where output goes to a file there is no width to respect, and tables should stay whole.
console = Console(width=None if sys.stdout.isatty() else 130)


def say(text: str) -> None:
    """Print text as it is, without colours and without breaking its lines."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"nablanets {nablanets.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before a command."""
