"""Experiments by name."""

from dataclasses import replace
from typing import Any

from nablanets.errors import unknown_name
from nablanets.experiments.base import Experiment
from nablanets.experiments.dynamics.hamiltonian_zoo import HamiltonianZooExperiment
from nablanets.experiments.dynamics.molecule import MoleculeExperiment
from nablanets.experiments.dynamics.solar_system import SolarSystemExperiment
from nablanets.experiments.dynamics.two_body import TwoBodyExperiment
from nablanets.experiments.fields.activations import ActivationsExperiment
from nablanets.experiments.fields.efficiency import EfficiencyExperiment
from nablanets.experiments.fields.field2d import Field2DExperiment
from nablanets.experiments.fields.high_dimensional import HighDimensionalConfig, HighDimensionalExperiment
from nablanets.experiments.fields.terrain import TerrainExperiment
from nablanets.experiments.images.classification import ClassificationExperiment
from nablanets.experiments.images.segmentation import SegmentationExperiment
from nablanets.experiments.images.super_resolution import SuperResolutionExperiment
from nablanets.experiments.sinusoid.ablation import AblationExperiment
from nablanets.experiments.sinusoid.experiment import SinusoidExperiment
from nablanets.experiments.sinusoid.search import SearchExperiment
from nablanets.problems.fields import ConvexField, NonconvexField

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
