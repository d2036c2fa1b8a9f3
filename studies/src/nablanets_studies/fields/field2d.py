"""The two-dimensional gradient fields of "Gradient Networks", with baselines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from nablanets import verify
from nablanets.fitting import FitResult, decibels, error
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets.pieces.gating import count_stored
from nablanets_studies.fields.field2d_arms import ARMS, Field2DConfig, SolvedArm
from nablanets_studies.fields.field2d_pictures import pictures_of
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture
from nablanets_studies.machinery.metrics import Metrics
from nablanets_studies.machinery.plots import learning_curves
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.fields import Field2D, unit_grid

#: The asymmetry of Jacobians is measured at every so many-th test point: at 104 of the paper preset's.
_ASYMMETRY_STRIDE = 97


class Published(NamedTuple):
    """What the authors' networks reach on a field, recomputed from their weights.

    Attributes:
        published: errors of C and M in dB, in words.
        level: the accuracy in dB to which the times of all arms are compared.
    """

    published: str
    level: float


PUBLISHED = {
    "convex": Published("C -49.05 ± 0.96, M -48.65 ± 4.87", -49.0),
    "nonconvex": Published("C -42.17 ± 3.98, M -39.53 ± 3.45", -42.0),
}


@dataclass(frozen=True, kw_only=True)
class Field2DMetrics(Metrics):
    """What is measured of a map.

    Attributes:
        test_db: mean square error over the test grid.
        max_error: the largest error there.
        asymmetry: of the Jacobian, relative to its largest entry.
        seconds_to_level, reached: when validation first came to the published accuracy, and whether it did (1 or 0); of
            networks that are trained.
    """

    test_db: float
    max_error: float
    asymmetry: float
    seconds_to_level: float | None = None
    reached: float | None = None


class Field2DExperiment(Experiment[Field2DConfig]):
    """Learn a field of the unit square from samples, with the published nets and baselines of their size."""

    template = "field2d.md.j2"
    presets = {  # noqa: RUF012
        "quick": Field2DConfig(
            samples=20_000,
            validation_samples=2000,
            steps=1500,
            starts=4,
            start_steps=60,
            schedule="cosine",
            learning_rate=2e-2,
            baseline_rates=(2e-2,),
            lm_iterations=150,
            lm_starts=8,
            lm_halving=40,
        ),
        "paper": Field2DConfig(),
    }
    seeds = {"quick": 5, "paper": 5}  # noqa: RUF012

    def __init__(self, field: Field2D) -> None:
        self.field = field
        self.name = f"field2d-{field.name}"
        self.columns = (
            Column("test_db", "test error [dB]"),
            Column("max_error", "largest error", ".4f"),
            Column("seconds_to_level", f"s to {PUBLISHED[field.name].level:.0f} dB", ".2f"),
            Column("reached", "got there", ".1f"),
            Column("asymmetry", "asymmetry of J", ".0e"),
        )
        self.summary = f"Learn the {field.name} gradient field of the paper's 2-D experiment: {field.formula}."

    def arms(self, config: Field2DConfig) -> list[str]:
        return list(ARMS)

    def run_part(self, config: Field2DConfig, arm: str, seed: int, report: Report) -> PartResult:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        train = self.field.sample(config.samples, generator)
        validation = self.field.sample(config.validation_samples, generator)
        chosen = ARMS[arm]
        if isinstance(chosen, SolvedArm):
            model = chosen.solve(train)
            return PartResult(model, count_stored(model), 0.0, self._measure(config, model).to_metrics())
        model, result = chosen.train(config, seed, train, validation, monotone=self.field.convex)
        for row in result.history:
            report(row)
        time = time_to_level(result, PUBLISHED[self.field.name].level)
        measured = replace(self._measure(config, model), seconds_to_level=time.seconds, reached=float(time.reached))
        return PartResult(model, count_parameters(model), result.seconds, measured.to_metrics())

    def _measure(self, config: Field2DConfig, model: nn.Module) -> Field2DMetrics:
        """The errors of a map on the test grid."""
        x = unit_grid(config.test_side).flatten(0, 1)  # (points, 2)
        g = self.field.gradient(x)
        with torch.no_grad():
            largest = float((model(x) - g).norm(dim=1).max())
        return Field2DMetrics(
            test_db=decibels(error(model, x, g)),
            max_error=largest,
            asymmetry=verify.symmetry_error(model, x[::_ASYMMETRY_STRIDE]),
        )

    def facts(self, config: Field2DConfig) -> Published:
        return PUBLISHED[self.field.name]

    def pictures(self, config: Field2DConfig, run: RunFolder) -> Iterator[Picture]:
        arms = [arm for arm in self.arms(config) if (arm, 0) in run.finished()]
        models = {arm: run.load_model(arm, 0) for arm in arms}
        yield from pictures_of(self.field, models)
        yield learning_curves(run, arms, "Validation error by step: best so far, mean and range over seeds.")


class TimeToLevel(NamedTuple):
    """Seconds until a validation error was reached, or of the whole training if it never was."""

    seconds: float
    reached: bool


def time_to_level(result: FitResult, level: float) -> TimeToLevel:
    """When the validation error was first below a level in dB."""
    hits = [row.seconds for row in result.history if decibels(row.validation_error) <= level]
    return TimeToLevel(hits[0], True) if hits else TimeToLevel(result.seconds, False)
