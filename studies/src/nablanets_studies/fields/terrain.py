"""Real terrain: learn slopes at a fifth of the cells, reconstruct the elevation from gradients alone."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import LightSource
from torch import Tensor, nn

from nablanets import verify
from nablanets.fitting import FitSettings, decibels, fit
from nablanets.fitting.loop import Report
from nablanets.maps import GradientMap, GradNetM
from nablanets.parameters import count_parameters
from nablanets_studies.baselines import MLP, match_parameters, mlp_potential
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture
from nablanets_studies.machinery.plots import learning_curves, panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.terrain import (
    Grid,
    Terrain,
    elevation_error,
    integrate_slopes,
    interpolate_slopes,
    load_terrain,
)


@dataclass(frozen=True)
class TerrainConfig:
    """Settings of a run.

    Attributes:
        stride: use every stride-th cell of the elevation model in each direction.
        fraction: of the cells where slopes are measured.
        noise: standard deviation of the noise in the noisy variant, relative to the slopes.
        directions: of the gradient network; all networks get as many parameters as it has.
        knots: of each of its profiles.
        gradnet_rate, gradnet_decay: its learning rate and L2 penalty.
        mlp_rate, potential_rate: learning rates of the baselines.
        mlp_frequency, potential_frequency: of the baselines' first layers.
        batch_size: samples per step.
        seconds: training time of every network.
    """

    stride: int = 1
    fraction: float = 0.2
    noise: float = 0.05
    directions: int = 256
    knots: int = 256
    gradnet_rate: float = 1e-2
    gradnet_decay: float = 2e-4
    mlp_rate: float = 3e-3
    potential_rate: float = 4e-3
    mlp_frequency: float = 140.0
    potential_frequency: float = 140.0
    batch_size: int = 512
    seconds: float = 20.0


class Frame(NamedTuple):
    """The coordinates that networks see: points in the unit disk, slopes of unit size. One scale for both axes."""

    centre: Tensor
    radius: float
    size: float

    @classmethod
    def of(cls, x: Tensor, g: Tensor) -> Frame:
        centre = x.mean(dim=0)
        return cls(centre, float((x - centre).norm(dim=1).max()), float(g.square().mean().sqrt()))

    def points(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.radius

    def slopes(self, net: nn.Module, x: Tensor) -> Tensor:
        """Slopes in metres per metre."""
        return net(self.points(x)) * self.size

    def elevation(self, net: GradientMap, x: Tensor) -> Tensor:
        """Potential in metres: its gradient is ``slopes``."""
        return net.potential(self.points(x)) * self.size * self.radius


class TerrainExperiment(Experiment[TerrainConfig]):
    """Slopes of real terrain, with and without noise, at equal parameters and training time."""

    name = "terrain"
    summary = "Reconstruct real elevations from slopes measured at a fifth of the cells."
    template = "terrain.md.j2"
    presets = {  # noqa: RUF012
        "quick": TerrainConfig(seconds=9.0),
        "paper": TerrainConfig(seconds=20.0),
    }
    seeds = {"quick": 2, "paper": 5}  # noqa: RUF012
    columns = (
        Column("elevation_rmse", "elevation RMSE [m]", ".1f"),
        Column("elevation_rmse_noisy", "with noise [m]", ".1f"),
        Column("slope_db", "held-out slopes [dB]"),
        Column("slope_db_noisy", "with noise [dB]"),
        Column("loop", "loop integrals", ".0e"),
    )

    def arms(self, config: TerrainConfig) -> list[str]:
        return ["gradnet", "mlp", "mlp-potential", "interpolation"]

    def run_part(self, config: TerrainConfig, arm: str, seed: int, report: Report) -> PartResult:
        terrain = load_terrain(config.stride)
        clean = self._measure(config, terrain, arm, seed, 0.0, report)
        noisy = self._measure(config, terrain, arm, seed, config.noise, None)
        metrics = {**clean.metrics, **{f"{name}_noisy": v for name, v in noisy.metrics.items() if name != "loop"}}
        return PartResult(clean.model, clean.parameters, clean.seconds, metrics)

    def _measure(
        self, config: TerrainConfig, terrain: Terrain, arm: str, seed: int, noise: float, report: Report | None
    ) -> PartResult:
        """Learn from one set of measurements, and compare slopes and elevation with the truth."""
        torch.manual_seed(seed)
        x, g, mask = terrain.sample(config.fraction, noise, seed)
        if arm == "interpolation":
            begin = time.perf_counter()
            slopes = interpolate_slopes(terrain, x, g)
            elevation = integrate_slopes(slopes, terrain.spacing)
            metrics = _metrics(terrain, mask, slopes, elevation)
            return PartResult(None, 0, time.perf_counter() - begin, metrics)
        frame, net = Frame.of(x, g), self._build(config, arm)
        result = fit(
            net,
            frame.points(x),
            g / frame.size,
            validation=0.05,
            progress=False,
            report=report,
            settings=self._settings(config, arm, seed),
        )
        slopes, elevation = reconstruct(net, frame, terrain)
        metrics = _metrics(terrain, mask, slopes, elevation)
        metrics["loop"] = loop_error(net, frame.points(x))
        return PartResult(net, count_parameters(net), result.seconds, metrics)

    def _settings(self, config: TerrainConfig, arm: str, seed: int) -> FitSettings:
        rates = {"gradnet": config.gradnet_rate, "mlp": config.mlp_rate, "mlp-potential": config.potential_rate}
        return FitSettings(
            steps=1_000_000,
            max_seconds=config.seconds,
            batch_size=config.batch_size,
            learning_rate=rates[arm],
            weight_decay=config.gradnet_decay if arm == "gradnet" else 0.0,
            validate_every=100,
            seed=seed,
        )

    def _build(self, config: TerrainConfig, arm: str) -> nn.Module:
        net = ridge_network(config.directions, config.knots)
        if arm == "gradnet":
            return net
        if arm == "mlp":
            frequency = config.mlp_frequency
            return match_parameters(
                lambda width: MLP(2, width, 3, activation="sine", frequency=frequency), count_parameters(net)
            )
        frequency = config.potential_frequency
        return match_parameters(
            lambda width: mlp_potential(2, width, 2, activation="sine", frequency=frequency), count_parameters(net)
        )

    def pictures(self, config: TerrainConfig, run: RunFolder) -> Iterator[Picture]:
        terrain = load_terrain(config.stride)
        x, g, _ = terrain.sample(config.fraction, 0.0, 0)
        frame = Frame.of(x, g)
        slopes = interpolate_slopes(terrain, x, g)
        elevations = {}
        for arm in self.arms(config):
            if (arm, 0) not in run.finished():
                continue
            model = None if arm == "interpolation" else run.load_model(arm, 0)
            grid = integrate_slopes(slopes, terrain.spacing) if model is None else reconstruct(model, frame, terrain)[1]
            elevations[arm] = grid - grid.mean() + terrain.elevation.mean()
        yield _hillshades(terrain, elevations)
        yield _errors(terrain, elevations)
        learned = [arm for arm in elevations if arm != "interpolation"]
        yield learning_curves(run, learned, "Validation error of the slopes against training time.", versus="seconds")


def ridge_network(directions: int, knots: int) -> GradNetM:
    """A sum of ridge functions with free spline profiles over [-1, 1], in fixed, evenly spread directions of the plane.

    Only the profiles (and a constant) are trained, so the fit is a linear least-squares problem.
    """
    net = GradNetM(2, directions, 1, activation=("spline", {"knots": knots, "radius": 1.0}), linear=False)
    angle = (torch.arange(directions) + 0.5) * (math.pi / directions)
    with torch.no_grad():
        net.weight.copy_(torch.stack([angle.cos(), angle.sin()], dim=-1))
        net.hidden_bias.zero_()
        net.sharpness_raw.fill_(math.log(math.expm1(1.0)))
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        for parameter in net.units.parameters():
            parameter.zero_().requires_grad_()
    net.bias.requires_grad_()
    return net


@torch.no_grad()
def reconstruct(net: nn.Module, frame: Frame, terrain: Terrain) -> tuple[Grid, Grid]:
    """Slopes and elevation at all cells: the potential where the network has one, else Poisson integration."""
    x = torch.from_numpy(terrain.points).float().flatten(0, 1)
    shape = terrain.elevation.shape
    slopes = torch.cat([frame.slopes(net, part) for part in x.split(8192)]).double().numpy().reshape(*shape, 2)
    if not isinstance(net, GradientMap):
        return slopes, integrate_slopes(slopes, terrain.spacing)
    elevation = torch.cat([frame.elevation(net, part) for part in x.split(8192)])
    return slopes, elevation.double().numpy().reshape(shape)


def loop_error(net: nn.Module, x: Tensor) -> float:
    """Circulations around triangles between random points of the terrain, in float64."""
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:32]
    with torch.no_grad():
        return verify.loop_error(copy.deepcopy(net).double(), x[rows].double(), panels=64)


def _metrics(terrain: Terrain, mask: np.ndarray, slopes: Grid, elevation: Grid) -> dict[str, float]:
    held_out = ~mask
    difference = ((slopes - terrain.slopes)[held_out] ** 2).sum()
    return {
        "slope_db": decibels(float(difference / (terrain.slopes[held_out] ** 2).sum())),
        "elevation_rmse": elevation_error(elevation, terrain.elevation),
    }


def _hillshades(terrain: Terrain, elevations: dict[str, Grid]) -> Picture:
    figure, axes = panels(1, 1 + len(elevations))
    light = LightSource(azdeg=315, altdeg=45)
    for ax, (title, grid) in zip(axes, [("truth", terrain.elevation), *elevations.items()], strict=True):
        shade = light.hillshade(grid, vert_exag=2, dx=terrain.spacing[0], dy=terrain.spacing[1])
        ax.imshow(shade, cmap="gray", origin="lower", vmin=0, vmax=1)
        ax.set(title=title, xticks=[], yticks=[])
    return Picture("hillshade", "Hill-shaded elevation: truth and reconstructions (no noise, seed 0).", figure)


def _errors(terrain: Terrain, elevations: dict[str, Grid]) -> Picture:
    figure, axes = panels(1, len(elevations))
    image = None
    for ax, (arm, grid) in zip(axes, elevations.items(), strict=True):
        image = ax.imshow(grid - terrain.elevation, cmap="RdBu", origin="lower", vmin=-60, vmax=60)
        ax.set(title=f"{arm}: {elevation_error(grid, terrain.elevation):.1f} m", xticks=[], yticks=[])
    if image is not None:
        figure.colorbar(image, ax=axes, label="error [m]", shrink=0.8)
    return Picture("errors", "Error of the reconstructed elevation (no noise, seed 0).", figure)
