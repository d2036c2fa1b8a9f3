"""The command line: `nablanets` and `python -m nablanets`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from nablanets.cli.app import app
from nablanets.errors import NablaError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; our errors and those of files become one message on standard error, with exit code 2."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="nablanets")
    except (NablaError, OSError) as error:
        Console(stderr=True).print(f"nablanets: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)


__all__ = ["app", "main"]
