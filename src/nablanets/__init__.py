"""Neural networks that are gradients, and layers that carry them."""

from nablanets import baselines, verify
from nablanets.activations import ElementwiseActivation, GroupActivation, GroupDerivative, register_activation
from nablanets.errors import NablaError
from nablanets.interop import Exported, export
from nablanets.maps import (
    Conjugate,
    Constrained,
    FromPotential,
    GradientMap,
    GradNetC,
    GradNetM,
    GradNetMixture,
    Pullback,
    Quadratic,
    Scale,
    Sum,
    constrain,
    from_potential,
)
from nablanets.operators import SymmetricOperator
from nablanets.quadrature import potential_between
from nablanets.serialization import load, savable
from nablanets.training import FitResult, FitSettings, fit

__version__ = "0.1.0"

__all__ = [
    "Conjugate",
    "Constrained",
    "ElementwiseActivation",
    "Exported",
    "FitResult",
    "FitSettings",
    "FromPotential",
    "GradNetC",
    "GradNetM",
    "GradNetMixture",
    "GradientMap",
    "GroupActivation",
    "GroupDerivative",
    "NablaError",
    "Pullback",
    "Quadratic",
    "Scale",
    "Sum",
    "SymmetricOperator",
    "baselines",
    "constrain",
    "export",
    "fit",
    "from_potential",
    "load",
    "potential_between",
    "register_activation",
    "savable",
    "verify",
]
