"""The two-dimensional gradient fields of "Gradient Networks", with baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nablanets import verify
from nablanets.fitting import FitResult, decibels, error
from nablanets.fitting.loop import Report
from nablanets.maps import GradientMap
from nablanets.parameters import count_parameters
from nablanets_studies.fields.field2d_arms import (
    BASELINES,
    GRADNETS,
    PAPER,
    SECOND_ORDER,
    Field2DConfig,
    affine_field,
    train_arm,
)
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture
from nablanets_studies.machinery.plots import learning_curves, panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.fields import Field2D, unit_grid


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
        return [*GRADNETS, *SECOND_ORDER, *PAPER, "affine", *BASELINES]

    def run_part(self, config: Field2DConfig, arm: str, seed: int, report: Report) -> PartResult:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        train = self.field.sample(config.samples, generator)
        validation = self.field.sample(config.validation_samples, generator)
        timing: dict[str, float] = {}
        seconds = 0.0
        if arm == "affine":
            model: nn.Module = affine_field(train)
        else:
            model, result = train_arm(config, arm, seed, train, validation, monotone=self.field.convex)
            for row in result.history:
                report(row)
            seconds, timing = result.seconds, time_to_level(result, PUBLISHED[self.field.name].level)
        x = unit_grid(config.test_side).flatten(0, 1)
        g = self.field.gradient(x)
        with torch.no_grad():
            largest = float((model(x) - g).norm(dim=1).max())
        metrics = {
            "test_db": decibels(error(model, x, g)),
            "max_error": largest,
            "asymmetry": verify.symmetry_error(model, x[::97]),
            **timing,
        }
        parameters = 6 if arm == "affine" else count_parameters(model)
        return PartResult(model, parameters, seconds, metrics)

    def facts(self, config: Field2DConfig) -> Published:
        return PUBLISHED[self.field.name]

    def pictures(self, config: Field2DConfig, run: RunFolder) -> Iterator[Picture]:
        arms = [arm for arm in self.arms(config) if (arm, 0) in run.finished()]
        models = {arm: run.load_model(arm, 0) for arm in arms}
        yield self._fields({arm: models[arm] for arm in arms if arm.startswith("gradnet") or arm == "mlp"})
        yield self._error_maps(models)
        yield self._potentials({arm: net for arm, net in models.items() if isinstance(net, GradientMap)})
        yield learning_curves(run, arms, "Validation error by step: best so far, mean and range over seeds.")

    def _fields(self, models: dict[str, nn.Module]) -> Picture:
        x = unit_grid(15)
        figure, axes = panels(1, 1 + len(models))
        fields: list[tuple[str, Callable[[Tensor], Tensor]]] = [("truth", self.field.gradient), *models.items()]
        for ax, (title, f) in zip(axes, fields, strict=True):
            with torch.no_grad():
                g = f(x).numpy()
            ax.quiver(x[..., 0], x[..., 1], g[..., 0], g[..., 1], np.hypot(g[..., 0], g[..., 1]), cmap="viridis")
            ax.set(title=title, xlabel="$x_1$", aspect="equal")
        return Picture("fields", "The field and what was learned of it (seed 0); colour is the length.", figure)

    def _error_maps(self, models: dict[str, nn.Module]) -> Picture:
        x = unit_grid(100)
        figure, axes = panels(2, (len(models) + 1) // 2)
        image = None
        for ax, (arm, net) in zip(axes, models.items(), strict=False):
            with torch.no_grad():
                size = (net(x) - self.field.gradient(x)).norm(dim=-1)
            levels = np.log10(size.clamp(min=1e-9).numpy()).T
            image = ax.imshow(levels, origin="lower", extent=(0, 1, 0, 1), vmin=-4, vmax=0, cmap="magma")
            ax.set(title=arm)
        for ax in axes[len(models) :]:
            ax.set_axis_off()
        if image is not None:
            figure.colorbar(image, ax=axes, label=r"$\log_{10}\|f - f^*\|$", shrink=0.8)
        return Picture("errors", "Where the error is (seed 0), on one logarithmic scale.", figure)

    def _potentials(self, models: dict[str, GradientMap]) -> Picture:
        x = unit_grid(60)
        truth = self.field.potential(x)
        figure, axes = panels(1, 1 + len(models))
        levels = np.linspace(float(truth.min() - truth.mean()), float(truth.max() - truth.mean()), 15)
        named = [("truth", self.field.potential), *((arm, net.potential) for arm, net in models.items())]
        for ax, (title, potential) in zip(axes, named, strict=True):
            with torch.no_grad():
                values = potential(x)
            ax.contour(x[..., 0], x[..., 1], values - values.mean(), levels=levels, cmap="viridis")
            ax.set(title=title, aspect="equal")
        return Picture("potentials", "Potentials that belong to the learned gradients (seed 0, mean removed).", figure)


def time_to_level(result: FitResult, level: float) -> dict[str, float]:
    """Training seconds until the validation error was first below a level, or all of them if it never was."""
    hits = [row.seconds for row in result.history if decibels(row.validation_error) <= level]
    return {"seconds_to_level": hits[0] if hits else result.seconds, "reached": float(bool(hits))}
