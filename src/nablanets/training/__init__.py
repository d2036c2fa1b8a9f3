"""Fitting networks to samples."""

from nablanets.training.initialise import initialise_from_data
from nablanets.training.loop import error, fit
from nablanets.training.multistart import fit_best_start
from nablanets.training.settings import FitResult, FitSettings, HistoryRow, decibels
from nablanets.training.standardise import standardised

__all__ = [
    "FitResult",
    "FitSettings",
    "HistoryRow",
    "decibels",
    "error",
    "fit",
    "fit_best_start",
    "initialise_from_data",
    "standardised",
]
