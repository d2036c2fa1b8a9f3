"""Baselines: what a study compares gradient networks with."""

from nablanets_studies.baselines.networks import (
    ICNN,
    MLP,
    AffineField,
    CoordinateField,
    Rescaled,
    convex_ridge,
    icnn_gradient,
    match_parameters,
    mlp_potential,
)

__all__ = [
    "ICNN",
    "MLP",
    "AffineField",
    "CoordinateField",
    "Rescaled",
    "convex_ridge",
    "icnn_gradient",
    "match_parameters",
    "mlp_potential",
]
