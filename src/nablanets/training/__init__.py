"""Fitting networks to samples."""

from nablanets.training.affine import initialise_affine
from nablanets.training.gating import Gate, fit_pieces, mixture_from_pieces
from nablanets.training.identify import Pieces, identify_pieces
from nablanets.training.initialise import initialise_from_data
from nablanets.training.linear import solve_ridge
from nablanets.training.loop import fit
from nablanets.training.many import Member, fit_many
from nablanets.training.multistart import fit_best_start
from nablanets.training.objective import error
from nablanets.training.outer import solve_outer
from nablanets.training.pursuit import Ridges, pursue_ridges
from nablanets.training.ridges import initialise_ridges
from nablanets.training.settings import FitResult, FitSettings, HistoryRow, decibels
from nablanets.training.sobolev import SobolevTargets
from nablanets.training.standardise import coordinate_scales, standardised, standardised_inside

__all__ = [
    "FitResult",
    "FitSettings",
    "Gate",
    "HistoryRow",
    "Member",
    "Pieces",
    "Ridges",
    "SobolevTargets",
    "coordinate_scales",
    "decibels",
    "error",
    "fit",
    "fit_best_start",
    "fit_many",
    "fit_pieces",
    "identify_pieces",
    "initialise_affine",
    "initialise_from_data",
    "initialise_ridges",
    "mixture_from_pieces",
    "pursue_ridges",
    "solve_outer",
    "solve_ridge",
    "standardised",
    "standardised_inside",
]
