"""Gradient residual connections: the layer, its closed forms, and the conversion of existing models."""

from nablanets.residual.branch import ConstantSumError
from nablanets.residual.convert import ConversionReport, add_gradient_residuals, remove_gradient_residuals
from nablanets.residual.layer import GradientResidual

__all__ = [
    "ConstantSumError",
    "ConversionReport",
    "GradientResidual",
    "add_gradient_residuals",
    "remove_gradient_residuals",
]
