"""Neural networks that are gradients, and layers that carry them."""

import importlib
from typing import TYPE_CHECKING, Any

import nablanets.interrupt  # noqa: F401 (before what takes seconds to import)

# isort: split
from nablanets import verify
from nablanets.activations import ElementwiseActivation, GroupActivation, GroupDerivative, register_activation
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

if TYPE_CHECKING:
    from nablanets.automatic import AutofitResult, autofit

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

# What loads more of SciPy than most programs need is imported when it is asked for.
_LAZY = {"AutofitResult": "nablanets.automatic", "autofit": "nablanets.automatic"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
