"""Dynamics: Hamiltonian systems made of gradient maps, symplectic integrators, and fitting to trajectories."""

from nablanets.dynamics.integrate import ORDERS, integrate
from nablanets.dynamics.kinetic import Kinetic
from nablanets.dynamics.port import PortHamiltonian
from nablanets.dynamics.systems import (
    FieldSystem,
    HamiltonianSystem,
    SeparableHamiltonian,
    System,
    rotate,
    rotate_back,
)

__all__ = [
    "ORDERS",
    "FieldSystem",
    "HamiltonianSystem",
    "Kinetic",
    "PortHamiltonian",
    "SeparableHamiltonian",
    "System",
    "integrate",
    "rotate",
    "rotate_back",
]
