"""Gradient residual connections: the layer, its closed forms, and the conversion of existing models."""

from nablanets.residual.branch import ConstantSumError
from nablanets.residual.convert import ConversionReport, add_gradient_residuals, remove_gradient_residuals
from nablanets.residual.diagnostics import (
    LayerStatistics,
    ResidualHistory,
    neighbour_cosines,
    residual_statistics,
)
from nablanets.residual.kinds import SkipKind, register_skip
from nablanets.residual.layer import GradientResidual
from nablanets.residual.settings import ResidualSettings

__all__ = [
    "ConstantSumError",
    "ConversionReport",
    "GradientResidual",
    "LayerStatistics",
    "ResidualHistory",
    "ResidualSettings",
    "SkipKind",
    "add_gradient_residuals",
    "neighbour_cosines",
    "register_skip",
    "remove_gradient_residuals",
    "residual_statistics",
]
