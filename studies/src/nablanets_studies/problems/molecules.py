"""Ethanol: energies and forces by the semi-empirical method GFN2-xTB, in angstrom, eV and eV / angstrom."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Chemical symbols; particles of one group may be exchanged: hydrogens of CH2 and of CH3.
SYMBOLS = ("C", "C", "O", "H", "H", "H", "H", "H", "H")
ALIKE = ((4, 5), (6, 7, 8))
#: eV per (atomic mass unit times (angstrom / fs)^2).
MASS_UNIT = 103.642696
#: Boltzmann's constant in eV / K.
BOLTZMANN = 8.617333262e-5
#: Groups that can be turned about a bond: the bond's atoms, and the atoms that move.
TURNS = {"hydroxyl": ((1, 2), (3,)), "methyl": ((1, 0), (6, 7, 8))}
#: Trajectories for training; one for validation and two for tests follow.
_TRAINING = 4
_FILE = "data/ethanol.npz"


class Frames(NamedTuple):
    """Positions and forces, (n, 27), and energies, (n); energies relative to the lowest of the file."""

    positions: Tensor
    forces: Tensor
    energies: Tensor


class Scan(NamedTuple):
    """A group of atoms turned through a full circle, both ends included: positions, (n, 27), and energies, (n)."""

    positions: Tensor
    energies: Tensor


@dataclass(frozen=True)
class Ethanol:
    """Frames of seven independent trajectories at 500 K, split by trajectory, and two rigid scans.

    Attributes:
        training: 2,000 frames of four trajectories, in a fixed random order, so that the first n are a sample.
        validation: 500 frames of one.
        test: 1,000 frames of two.
        scans: the "hydroxyl" and the "methyl" group turned, from the relaxed trans conformer.
        masses: in atomic mass units, (9,).
    """

    training: Frames
    validation: Frames
    test: Frames
    scans: dict[str, Scan]
    masses: Tensor


def load_ethanol() -> Ethanol:
    """The file that comes with the package, made by ``scripts/ethanol.py``; float32 but for energies and scans.

    >>> ethanol = load_ethanol()
    >>> ethanol.training.positions.shape, len(ethanol.test.energies)
    (torch.Size([2000, 27]), 1000)
    """
    with files("nablanets_studies.problems").joinpath(_FILE).open("rb") as file, np.load(file) as data:
        arrays = {name: torch.from_numpy(data[name]) for name in data}
    lowest = arrays["energies"].min()
    positions = arrays["positions"].flatten(2)  # (trajectories, frames, 27)
    forces = arrays["forces"].flatten(2)
    energies = arrays["energies"] - lowest  # (trajectories, frames)
    every = [Frames(*parts) for parts in zip(positions, forces, energies, strict=True)]
    scans = {
        name: Scan(arrays[f"{name}_positions"].flatten(1), arrays[f"{name}_energies"] - lowest)
        for name in ("hydroxyl", "methyl")
    }
    order = torch.randperm(_TRAINING * len(every[0].energies), generator=torch.Generator().manual_seed(0))
    pool = _joined(every[:_TRAINING])
    training = Frames(*(part[order] for part in pool))
    return Ethanol(training, every[_TRAINING], _joined(every[_TRAINING + 1 :]), scans, arrays["masses"])


def _joined(parts: list[Frames]) -> Frames:
    return Frames(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def turned(x: Tensor, group: str, angles: Tensor) -> Tensor:
    """Conformers (n, 27) in which a group of the molecule x (27,) is turned about its bond by angles (n,), in radians.

    >>> x = load_ethanol().scans["methyl"].positions
    >>> bool((turned(x[0], "methyl", torch.tensor([torch.pi / 2]))[0] - x[18]).abs().max() < 1e-6)
    True
    """
    (base, tip), moving = TURNS[group]
    atoms = x.unflatten(-1, (len(SYMBOLS), 3))
    axis = atoms[tip] - atoms[base]
    axis = axis / axis.norm()
    arm = atoms[list(moving)] - atoms[tip]
    # Rodrigues' formula: the part along the axis stays, the part across it turns.
    along = (arm @ axis).unsqueeze(-1) * axis
    across = arm - along
    beside = torch.linalg.cross(axis.expand_as(arm), arm)
    c = torch.cos(angles.to(x))[:, None, None]
    s = torch.sin(angles.to(x))[:, None, None]
    result = atoms.expand(len(angles), -1, -1).clone()
    result[:, list(moving)] = atoms[tip] + along + c * across + s * beside
    return result.flatten(-2)
