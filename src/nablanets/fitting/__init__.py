"""Fitting networks to samples."""

from nablanets.fitting.loop import fit
from nablanets.fitting.many import Member, fit_many
from nablanets.fitting.multistart import fit_best_start
from nablanets.fitting.objective import error
from nablanets.fitting.schedule import Schedule
from nablanets.fitting.settings import FitResult, FitSettings, HistoryRow, StartRecord, decibels
from nablanets.fitting.sobolev import SobolevTargets

__all__ = [
    "FitResult",
    "FitSettings",
    "HistoryRow",
    "Member",
    "Schedule",
    "SobolevTargets",
    "StartRecord",
    "decibels",
    "error",
    "fit",
    "fit_best_start",
    "fit_many",
]
