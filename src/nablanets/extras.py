"""Packages that not every user needs, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from nablanets.errors import MissingPackageError


def needed(module: str, *, extra: str, purpose: str, distribution: str = "nablanets") -> Any:
    """A module of an optional package.

    Args:
        module: its dotted name.
        extra: the extra that installs it.
        purpose: what needs it, as the start of a sentence.
        distribution: whose extra it is.

    Raises:
        MissingPackageError: it is not installed; the message says how to install it.

    >>> needed("json", extra="none", purpose="examples").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".", maxsplit=1)[0]
        raise MissingPackageError(
            f"{purpose} need {package}, which is not installed: pip install '{distribution}[{extra}]'."
        ) from error
