"""Experiments by name."""

from typing import Any

from nablanets.errors import unknown_name
from nablanets.experiments.base import Experiment
from nablanets.experiments.field2d import Field2DExperiment
from nablanets.experiments.terrain import TerrainExperiment
from nablanets.problems.fields import ConvexField, NonconvexField

EXPERIMENTS: dict[str, Experiment[Any]] = {
    experiment.name: experiment
    for experiment in (Field2DExperiment(ConvexField()), Field2DExperiment(NonconvexField()), TerrainExperiment())
}


def find_experiment(name: str) -> Experiment[Any]:
    """The experiment of that name.

    Raises:
        UnknownNameError: there is none; the message offers the nearest names.
    """
    if name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


__all__ = ["EXPERIMENTS", "Experiment", "find_experiment"]
