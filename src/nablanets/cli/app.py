"""The application that the commands join, and where they print."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

app = typer.Typer(
    help="Neural networks that are gradients: experiments, fitting, verification.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Where output goes to a file there is no width to respect, and tables should stay whole.
console = Console(width=None if sys.stdout.isatty() else 130)
