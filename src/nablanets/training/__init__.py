"""Fitting networks to samples."""

from nablanets.training.loop import error, fit
from nablanets.training.settings import FitResult, FitSettings, HistoryRow, decibels

__all__ = ["FitResult", "FitSettings", "HistoryRow", "decibels", "error", "fit"]
