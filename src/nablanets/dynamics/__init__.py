"""Dynamics: Hamiltonian systems made of gradient maps, symplectic integrators, and fitting to trajectories."""

from nablanets.dynamics.fitting import fit_derivatives, fit_positions, fit_trajectories, windows
from nablanets.dynamics.integrate import ORDERS, integrate
from nablanets.dynamics.kinetic import Kinetic
from nablanets.dynamics.port import PortHamiltonian
from nablanets.dynamics.second_order import SecondOrder
from nablanets.dynamics.sympnet import SympNet
from nablanets.dynamics.systems import (
    ConditionalHamiltonian,
    FieldSystem,
    HamiltonianSystem,
    SeparableHamiltonian,
    System,
    rotate,
    rotate_back,
)

__all__ = [
    "ORDERS",
    "ConditionalHamiltonian",
    "FieldSystem",
    "HamiltonianSystem",
    "Kinetic",
    "PortHamiltonian",
    "SecondOrder",
    "SeparableHamiltonian",
    "SympNet",
    "System",
    "fit_derivatives",
    "fit_positions",
    "fit_trajectories",
    "integrate",
    "rotate",
    "rotate_back",
    "windows",
]
