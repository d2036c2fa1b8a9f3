"""Fitting networks to samples."""

from nablanets.training.initialise import initialise_from_data
from nablanets.training.loop import error, fit
from nablanets.training.settings import FitResult, FitSettings, HistoryRow, decibels
from nablanets.training.standardise import standardised

__all__ = ["FitResult", "FitSettings", "HistoryRow", "decibels", "error", "fit", "initialise_from_data", "standardised"]
