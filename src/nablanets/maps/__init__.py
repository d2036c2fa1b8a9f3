"""Gradient maps."""

from nablanets.maps.base import GradientMap, Pullback, Scale, Sum
from nablanets.maps.cascaded import GradNetC
from nablanets.maps.conditional import ConditionalGradNet, GivenContext
from nablanets.maps.conjugate import Conjugate
from nablanets.maps.constrained import Constrained, constrain
from nablanets.maps.coordinates import Coordinates, Distances, distances_from, pair_distances, pair_permutations
from nablanets.maps.groups import generated_group
from nablanets.maps.invariant import CoordinatePullback, pair_forces
from nablanets.maps.mixture import GradNetMixture
from nablanets.maps.modular import GradNetM
from nablanets.maps.pairs import PairAcceleration, PairLaw
from nablanets.maps.potential import FromPotential, from_potential
from nablanets.maps.quadratic import Constant, Quadratic
from nablanets.maps.signed import SignedNetwork
from nablanets.maps.symmetrized import Symmetrized, odd
from nablanets.maps.transformed import GradNetTransformed

__all__ = [
    "ConditionalGradNet",
    "Conjugate",
    "Constant",
    "Constrained",
    "CoordinatePullback",
    "Coordinates",
    "Distances",
    "FromPotential",
    "GivenContext",
    "GradNetC",
    "GradNetM",
    "GradNetMixture",
    "GradNetTransformed",
    "GradientMap",
    "PairAcceleration",
    "PairLaw",
    "Pullback",
    "Quadratic",
    "Scale",
    "SignedNetwork",
    "Sum",
    "Symmetrized",
    "constrain",
    "distances_from",
    "from_potential",
    "generated_group",
    "odd",
    "pair_distances",
    "pair_forces",
    "pair_permutations",
]
