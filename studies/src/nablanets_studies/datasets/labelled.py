"""Pictures with a class each, and checks that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.errors import DataFileError


class Labelled(NamedTuple):
    """Pictures as bytes (n, C, H, W), their classes (n,), and how many classes there are."""

    pictures: Tensor
    labels: Tensor
    classes: int


def labelled(pictures: Tensor, labels: Tensor, classes: int, source: Path) -> Labelled:
    """Pictures and labels that belong together.

    Raises:
        DataFileError: their numbers differ, there are none, or a label is out of range.
    """
    if len(pictures) != len(labels) or len(pictures) == 0:
        raise DataFileError(f"{source}: expected a label for each picture, got {len(labels)} and {len(pictures)}.")
    low = int(labels.min())
    high = int(labels.max())
    if low < 0 or high >= classes:
        raise DataFileError(f"{source}: expected labels from 0 to {classes - 1}, got {low} to {high}.")
    return Labelled(pictures, labels.to(torch.long), classes)


def find_file(folder: str | Path, names: list[str], what: str) -> Path:
    """The first of some files that is in a folder.

    Raises:
        DataFileError: none is there; the message says what was looked for and what is there.
    """
    folder = Path(folder)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = sorted(p.name for p in folder.iterdir())[:6] if folder.is_dir() else []
    state = f"it has {', '.join(there) or 'no files'}" if folder.is_dir() else "there is no such folder"
    raise DataFileError(f"{folder}: expected {what} ({names[0]}); {state}. Give the folder that has it.")
