"""Experiments by name."""

from dataclasses import replace
from typing import Any

from nablanets.errors import unknown_name
from nablanets_studies.dynamics.hamiltonian_zoo import HamiltonianZooExperiment
from nablanets_studies.dynamics.molecule import MoleculeExperiment
from nablanets_studies.dynamics.solar_system import SolarSystemExperiment
from nablanets_studies.dynamics.two_body import TwoBodyExperiment
from nablanets_studies.fields.activations import ActivationsExperiment
from nablanets_studies.fields.efficiency import EfficiencyExperiment
from nablanets_studies.fields.field2d import Field2DExperiment
from nablanets_studies.fields.high_dimensional import HighDimensionalConfig, HighDimensionalExperiment
from nablanets_studies.fields.terrain import TerrainExperiment
from nablanets_studies.machinery.base import Experiment
from nablanets_studies.pictures.classification import ClassificationExperiment
from nablanets_studies.pictures.segmentation import SegmentationExperiment
from nablanets_studies.pictures.super_resolution import SuperResolutionExperiment
from nablanets_studies.problems.fields import ConvexField, NonconvexField
from nablanets_studies.sinusoid.ablation import AblationExperiment
from nablanets_studies.sinusoid.experiment import SinusoidExperiment
from nablanets_studies.sinusoid.search import SearchExperiment

#: Of the high-dimensional fields: d = 32, a few hundred steps and one rate.
_QUICK = HighDimensionalConfig(
    features=(32,),
    methods=(
        "affine",
        "gradnet-c-ridge-start",
        "gradnet-m-ridge-start",
        "mixture",
        "identified",
        "identified-noisy",
        "identified-6",
        "mlp",
    ),
    steps=300,
    rates=(3e-3,),
    samples=2000,
    test_samples=5000,
)

EXPERIMENTS: dict[str, Experiment[Any]] = {
    experiment.name: experiment
    for experiment in (
        Field2DExperiment(ConvexField()),
        Field2DExperiment(NonconvexField()),
        TerrainExperiment(),
        SinusoidExperiment(),
        SuperResolutionExperiment(),
        AblationExperiment(),
        SearchExperiment(),
        HighDimensionalExperiment(
            "piecewise-quadratic",
            "Learn the paper's convex piecewise quadratic field at d = 32, 256, 1024, by training and identification.",
            ("piecewise-quadratic",),
            _QUICK,
        ),
        HighDimensionalExperiment(
            "nonconvex-fields",
            "Learn two high-dimensional nonconvex fields of ours: a difference of maxima, and sinusoidal ridges.",
            ("piecewise-difference", "sinusoidal-ridges"),
            replace(_QUICK, methods=("affine", "gradnet-c-ridge-start", "gradnet-m-affine-start", "mlp")),
        ),
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
