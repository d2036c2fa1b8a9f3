"""Where a training begins: from data, affine, with ridges, with the best outer coefficients, in standard units."""

from nablanets.starts.affine import initialise_affine
from nablanets.starts.initialise import initialise_from_data
from nablanets.starts.linear import solve_ridge
from nablanets.starts.outer import solve_outer
from nablanets.starts.pursuit import Ridges, pursue_ridges
from nablanets.starts.random_units import random_units
from nablanets.starts.ridges import initialise_ridges
from nablanets.starts.standardise import coordinate_scales, standardised, standardised_inside

__all__ = [
    "Ridges",
    "coordinate_scales",
    "initialise_affine",
    "initialise_from_data",
    "initialise_ridges",
    "pursue_ridges",
    "random_units",
    "solve_outer",
    "solve_ridge",
    "standardised",
    "standardised_inside",
]
