"""Neural networks that are gradients, and layers that carry them."""

import nablanets.interrupt  # noqa: F401 (before what takes seconds to import)

# isort: split
from nablanets import verify
from nablanets.activations import ElementwiseActivation, GroupActivation, GroupDerivative, register_activation
from nablanets.automatic import AutofitResult, autofit
from nablanets.errors import NablaError
from nablanets.fitting import FitResult, FitSettings, SobolevTargets, fit
from nablanets.interop import Exported, export
from nablanets.maps import (
    ConditionalGradNet,
    Conjugate,
    Constrained,
    CoordinatePullback,
    FromPotential,
    GradientMap,
    GradNetC,
    GradNetM,
    GradNetMixture,
    GradNetTransformed,
    Pullback,
    Quadratic,
    Scale,
    Sum,
    Symmetrized,
    constrain,
    from_potential,
    odd,
    pair_forces,
)
from nablanets.operators import SymmetricOperator
from nablanets.quadrature import potential_between
from nablanets.residual import GradientResidual, add_gradient_residuals, remove_gradient_residuals
from nablanets.serialization import load, savable

__version__ = "0.2.0"

__all__ = [
    "AutofitResult",
    "ConditionalGradNet",
    "Conjugate",
    "Constrained",
    "CoordinatePullback",
    "ElementwiseActivation",
    "Exported",
    "FitResult",
    "FitSettings",
    "FromPotential",
    "GradNetC",
    "GradNetM",
    "GradNetMixture",
    "GradNetTransformed",
    "GradientMap",
    "GradientResidual",
    "GroupActivation",
    "GroupDerivative",
    "NablaError",
    "Pullback",
    "Quadratic",
    "Scale",
    "SobolevTargets",
    "Sum",
    "SymmetricOperator",
    "Symmetrized",
    "add_gradient_residuals",
    "autofit",
    "constrain",
    "export",
    "fit",
    "from_potential",
    "load",
    "odd",
    "pair_forces",
    "potential_between",
    "register_activation",
    "remove_gradient_residuals",
    "savable",
    "verify",
]
