"""Make src/nablanets_studies/problems/data/ethanol.npz: energies and forces of ethanol by GFN2-xTB.

    pip install ase tblite
    python studies/scripts/ethanol.py

Seven trajectories of Langevin dynamics at 500 K, from the two conformers in turn; 500 frames each, 25 fs apart, after
2.5 ps of equilibration. And two rigid scans from the relaxed trans conformer: the hydroxyl and the methyl group turned
through a full turn. About ten minutes on one core. Units: angstrom, eV, eV / angstrom.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.optimize import BFGS
from tblite.ase import TBLite

TARGET = Path(__file__).parents[1] / "src/nablanets_studies/problems/data/ethanol.npz"
TEMPERATURE, STEP, FRICTION = 500.0, 0.5 * units.fs, 0.01 / units.fs
#: The dihedral angle that a scan turns, and the atoms that move with it.
SCANS = {"hydroxyl": ((0, 1, 2, 3), [3]), "methyl": ((2, 1, 0, 6), [6, 7, 8])}


def ethanol(dihedral: float) -> Atoms:
    """Ethanol, relaxed from the given C-C-O-H dihedral angle in degrees."""
    atoms = molecule("CH3CH2OH")
    atoms.set_dihedral(0, 1, 2, 3, dihedral, indices=[3])
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0, accuracy=0.1)
    BFGS(atoms, logfile=None).run(fmax=1e-4, steps=500)
    return atoms


def trajectory(seed: int, frames: int, spacing: int, equilibration: int) -> dict[str, list[Any]]:
    """Frames of one trajectory, ``spacing`` steps apart."""
    atoms, generator = ethanol((180.0, 60.0)[seed % 2]), np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=generator)
    Stationary(atoms)
    dynamics = Langevin(atoms, STEP, temperature_K=TEMPERATURE, friction=FRICTION, rng=generator)
    dynamics.run(equilibration)
    result: dict[str, list[Any]] = {"positions": [], "forces": [], "energies": []}
    for _ in range(frames):
        dynamics.run(spacing)
        result["positions"].append(atoms.positions - atoms.get_center_of_mass())
        result["forces"].append(atoms.get_forces())
        result["energies"].append(atoms.get_potential_energy())
    return result


def scan(name: str, points: int = 73) -> dict[str, Any]:
    """Positions and energies along a rigid turn of a group, both ends included."""
    (a, b, c, d), moving = SCANS[name]
    atoms = ethanol(180.0)
    start = atoms.get_dihedral(a, b, c, d)
    positions, energies = [], []
    for angle in np.linspace(0, 360, points):
        atoms.set_dihedral(a, b, c, d, start + angle, indices=moving)
        positions.append(atoms.positions.copy())
        energies.append(atoms.get_potential_energy())
    return {f"{name}_positions": np.array(positions), f"{name}_energies": np.array(energies)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=7)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    runs = [trajectory(seed, options.frames, 50, 5000) for seed in range(options.trajectories)]
    arrays = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    atoms = ethanol(180.0)
    np.savez_compressed(
        options.out,
        numbers=atoms.numbers,
        masses=atoms.get_masses(),
        positions=arrays["positions"].astype(np.float32),
        forces=arrays["forces"].astype(np.float32),
        energies=arrays["energies"],
        **scan("hydroxyl"),
        **scan("methyl"),
    )
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
