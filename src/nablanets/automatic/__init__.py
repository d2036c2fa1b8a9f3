"""From samples to the best map in a given time, without choices: autofit."""

from nablanets.automatic.autofitting import autofit
from nablanets.automatic.result import AutofitResult, ComponentError, Tried

__all__ = ["AutofitResult", "ComponentError", "Tried", "autofit"]
