"""Torch programs (.pt2), which torch.export.load runs without this package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nablanets.interop.tracing import Gradient, Potential, trace
from nablanets.maps import GradientMap
from nablanets.serialization import atomic_path


def write(net: GradientMap, x: Tensor, path: Path) -> tuple[Path, ...]:
    """Write one program for f and one for F: a .pt2 file holds one, and one for both would always compute both."""
    files = path, path.with_name(f"{path.stem}-potential{path.suffix}")
    programs = trace(Gradient(net), x), trace(Potential(net), x)
    for file, program in zip(files, programs, strict=True):
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            torch.export.save(program, stream)
    return files


def evaluate(files: tuple[Path, ...], x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and F(x) by the programs."""
    with torch.no_grad():
        gradient, potential = (torch.export.load(file).module()(x) for file in files)
    return gradient, potential
