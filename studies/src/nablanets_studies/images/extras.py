"""Packages that only pictures need, imported when they are used."""

from __future__ import annotations

from typing import Any

from nablanets import extras


def needed(module: str) -> Any:
    """A module of the ``images`` extra.

    Raises:
        MissingPackageError: it is not installed; the message says how to install it.

    >>> needed("PIL.Image").__name__
    'PIL.Image'
    """
    return extras.needed(module, extra="images", purpose="pictures", distribution="nablanets-studies")
