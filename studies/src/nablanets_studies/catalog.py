"""Experiments by name."""

from __future__ import annotations

from typing import Any

from nablanets.errors import unknown_name
from nablanets_studies.dynamics.hamiltonian_zoo import HamiltonianZooExperiment
from nablanets_studies.dynamics.molecule import MoleculeExperiment
from nablanets_studies.dynamics.solar_system import SolarSystemExperiment
from nablanets_studies.dynamics.two_body import TwoBodyExperiment
from nablanets_studies.fields.activations import ActivationsExperiment
from nablanets_studies.fields.efficiency import EfficiencyExperiment
from nablanets_studies.fields.field2d import Field2DExperiment
from nablanets_studies.fields.high_dimensional import NONCONVEX_FIELDS, PIECEWISE_QUADRATIC
from nablanets_studies.fields.motor import MotorExperiment
from nablanets_studies.fields.terrain import TerrainExperiment
from nablanets_studies.machinery.base import Experiment
from nablanets_studies.pictures.classification import ClassificationExperiment
from nablanets_studies.pictures.segmentation import SegmentationExperiment
from nablanets_studies.pictures.super_resolution import SuperResolutionExperiment
from nablanets_studies.problems.fields import ConvexField, NonconvexField
from nablanets_studies.sinusoid.ablation import AblationExperiment
from nablanets_studies.sinusoid.experiment import SinusoidExperiment
from nablanets_studies.sinusoid.search import SearchExperiment

EXPERIMENTS: dict[str, Experiment[Any]] = {
    experiment.name: experiment
    for experiment in (
        Field2DExperiment(ConvexField()),
        Field2DExperiment(NonconvexField()),
        TerrainExperiment(),
        MotorExperiment(),
        SinusoidExperiment(),
        SuperResolutionExperiment(),
        AblationExperiment(),
        SearchExperiment(),
        PIECEWISE_QUADRATIC,
        NONCONVEX_FIELDS,
        ActivationsExperiment(),
        EfficiencyExperiment(),
        ClassificationExperiment(),
        SegmentationExperiment(),
        SolarSystemExperiment(),
        MoleculeExperiment(),
        TwoBodyExperiment(),
        HamiltonianZooExperiment(),
    )
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
