"""Real terrain: learn slopes at a fifth of the cells, reconstruct the elevation from gradients alone."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import LightSource
from torch import Tensor, nn

from nablanets import verify
from nablanets.fitting import decibels, fit
from nablanets.fitting.loop import Report
from nablanets.maps import GradientMap
from nablanets.parameters import count_parameters
from nablanets_studies.fields.terrain_arms import ARMS, Arm, InterpolationArm, NetworkArm, TerrainConfig
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture
from nablanets_studies.machinery.metrics import Metrics
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

# Share of the measured cells that choose the weights.
_HELD_OUT = 0.05


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


@dataclass(frozen=True, kw_only=True)
class TerrainMetrics(Metrics):
    """What is measured of an arm, from slopes without and with noise.

    Attributes:
        slope_db, slope_db_noisy: errors at the cells that were not measured.
        elevation_rmse, elevation_rmse_noisy: in metres.
        loop: relative circulation of the field that was learned without noise; None for the interpolation.
    """

    slope_db: float
    elevation_rmse: float
    loop: float | None = None
    slope_db_noisy: float
    elevation_rmse_noisy: float


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
        return list(ARMS)

    def run_part(self, config: TerrainConfig, arm: str, seed: int, report: Report) -> PartResult:
        terrain = load_terrain(config.stride)
        clean = _learn(config, terrain, ARMS[arm], seed, 0.0, report)
        noisy = _learn(config, terrain, ARMS[arm], seed, config.noise, None)
        measured = TerrainMetrics(
            slope_db=clean.slope_db,
            elevation_rmse=clean.elevation_rmse,
            loop=clean.loop,
            slope_db_noisy=noisy.slope_db,
            elevation_rmse_noisy=noisy.elevation_rmse,
        )
        return PartResult(clean.net, clean.parameters, clean.seconds, measured.to_metrics())

    def pictures(self, config: TerrainConfig, run: RunFolder) -> Iterator[Picture]:
        terrain = load_terrain(config.stride)
        x, g, _ = terrain.sample(config.fraction, 0.0, 0)
        frame = Frame.of(x, g)
        elevations: dict[str, Grid] = {}
        for arm in ARMS.values():
            if (arm.name, 0) not in run.finished():
                continue
            if isinstance(arm, InterpolationArm):
                grid = integrate_slopes(interpolate_slopes(terrain, x, g), terrain.spacing)
            else:
                _, grid = reconstruct(run.load_model(arm.name, 0), frame, terrain)
            elevations[arm.name] = grid - grid.mean() + terrain.elevation.mean()
        yield _hillshades(terrain, elevations)
        yield _errors(terrain, elevations)
        learned = [name for name in elevations if isinstance(ARMS[name], NetworkArm)]
        yield learning_curves(run, learned, "Validation error of the slopes against training time.", versus="seconds")


class _Learned(NamedTuple):
    """What was learned from one set of measurements, and its errors; no network and no loops of an interpolation."""

    net: nn.Module | None
    parameters: int
    seconds: float
    slope_db: float
    elevation_rmse: float
    loop: float | None


def _learn(
    config: TerrainConfig, terrain: Terrain, arm: Arm, seed: int, noise: float, report: Report | None
) -> _Learned:
    """Learn from one set of measurements, and compare slopes and elevation with the truth."""
    torch.manual_seed(seed)
    x, g, mask = terrain.sample(config.fraction, noise, seed)
    if isinstance(arm, InterpolationArm):
        begin = time.perf_counter()
        slopes = interpolate_slopes(terrain, x, g)
        elevation = integrate_slopes(slopes, terrain.spacing)
        seconds = time.perf_counter() - begin
        rmse = elevation_error(elevation, terrain.elevation)
        return _Learned(None, 0, seconds, _slope_db(terrain, mask, slopes), rmse, None)
    frame = Frame.of(x, g)
    points = frame.points(x)
    net = arm.make(config)
    settings = arm.settings(config, seed)
    # Cells at random are held out, as those that are judged by are: whole lines, which fit would take, leave gaps.
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    number = round(_HELD_OUT * len(points))
    held_out = (points[order[:number]], g[order[:number]] / frame.size)
    train = (points[order[number:]], g[order[number:]] / frame.size)
    result = fit(net, *train, validation=held_out, progress=False, report=report, settings=settings)
    slopes, elevation = reconstruct(net, frame, terrain)
    return _Learned(
        net=net,
        parameters=count_parameters(net),
        seconds=result.seconds,
        slope_db=_slope_db(terrain, mask, slopes),
        elevation_rmse=elevation_error(elevation, terrain.elevation),
        loop=loop_error(net, points),
    )


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


def _slope_db(terrain: Terrain, mask: np.ndarray, slopes: Grid) -> float:
    """The square error of slopes at the cells that were not measured, relative to the slopes there, in dB."""
    truth = terrain.slopes[~mask]
    error = slopes[~mask] - truth
    return decibels(float((error**2).sum() / (truth**2).sum()))


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
