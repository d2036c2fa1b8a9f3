"""Packages that only pictures need, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from nablanets.errors import InvalidInputError


def needed(module: str) -> Any:
    """A module of the ``images`` extra.

    Raises:
        InvalidInputError: it is not installed; the message says how to install it.

    >>> needed("PIL.Image").__name__
    'PIL.Image'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".", maxsplit=1)[0]
        raise InvalidInputError(
            f"pictures need {package}, which is not installed: pip install 'nablanets[images]'."
        ) from error
