"""Gradient maps."""

from nablanets.maps.base import GradientMap, Pullback, Scale, Sum
from nablanets.maps.cascaded import GradNetC
from nablanets.maps.conditional import ConditionalGradNet, GivenContext
from nablanets.maps.conjugate import Conjugate
from nablanets.maps.constrained import Constrained, constrain
from nablanets.maps.groups import generated_group
from nablanets.maps.mixture import GradNetMixture
from nablanets.maps.modular import GradNetM
from nablanets.maps.potential import FromPotential, from_potential
from nablanets.maps.quadratic import Constant, Quadratic
from nablanets.maps.symmetrized import Symmetrized, odd
from nablanets.maps.transformed import GradNetTransformed

__all__ = [
    "ConditionalGradNet",
    "Conjugate",
    "Constant",
    "Constrained",
    "FromPotential",
    "GivenContext",
    "GradNetC",
    "GradNetM",
    "GradNetMixture",
    "GradNetTransformed",
    "GradientMap",
    "Pullback",
    "Quadratic",
    "Scale",
    "Sum",
    "Symmetrized",
    "constrain",
    "from_potential",
    "generated_group",
    "odd",
]
