"""Gradient maps."""

from nablanets.maps.base import GradientMap, Pullback, Scale, Sum
from nablanets.maps.cascaded import GradNetC
from nablanets.maps.conjugate import Conjugate
from nablanets.maps.constrained import Constrained, constrain
from nablanets.maps.mixture import GradNetMixture
from nablanets.maps.modular import GradNetM
from nablanets.maps.potential import FromPotential, from_potential
from nablanets.maps.quadratic import Constant, Quadratic

__all__ = [
    "Conjugate",
    "Constant",
    "Constrained",
    "FromPotential",
    "GradNetC",
    "GradNetM",
    "GradNetMixture",
    "GradientMap",
    "Pullback",
    "Quadratic",
    "Scale",
    "Sum",
    "constrain",
    "from_potential",
]
