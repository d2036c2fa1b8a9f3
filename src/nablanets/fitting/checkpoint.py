"""Checkpoints of a fit: written atomically, read without executing code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nablanets.errors import ModelFileError
from nablanets.serialization import atomic_path


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a nested dictionary of tensors, numbers and strings."""
    try:
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
    except OSError as error:
        raise ModelFileError(f"cannot write the checkpoint {path}: {error}.") from error


def read_checkpoint(path: Path, fingerprint: str) -> dict[str, Any]:
    """Read what :func:`write_checkpoint` wrote.

    Raises:
        ModelFileError: the file is damaged, or belongs to a fit with other settings, data or architecture.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise ModelFileError(f"the checkpoint {path} cannot be read ({error}). Delete it to start afresh.") from error
    if state.get("fingerprint") != fingerprint:
        raise ModelFileError(
            f"the checkpoint {path} belongs to a fit with other settings, data or network:\n  there: "
            f"{state.get('fingerprint')}\n  here:  {fingerprint}\nDelete it, or give another path."
        )
    return state
