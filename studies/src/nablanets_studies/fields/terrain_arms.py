"""The terrain study in tables: its settings, and the networks and the interpolation that learn the slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from nablanets.fitting import FitSettings
from nablanets.maps import GradNetM
from nablanets.parameters import count_parameters
from nablanets_studies.baselines import MLP, match_parameters, mlp_potential

#: More than any network makes in its time.
_MANY_STEPS = 1_000_000


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


def ridge_network(directions: int, knots: int) -> GradNetM:
    """A sum of ridge functions with free spline profiles over [-1, 1], in fixed, evenly spread directions of the plane.

    Only the profiles (and a constant) are trained, so the fit is a linear least-squares problem.
    """
    net = GradNetM(2, directions, 1, activation=("spline", {"knots": knots, "radius": 1.0}), linear=False)
    angle = (torch.arange(directions) + 0.5) * (math.pi / directions)
    with torch.no_grad():
        net.set_inner(torch.stack([angle.cos(), angle.sin()], dim=-1), torch.zeros(directions), sharpness=1.0)
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        for parameter in net.units.parameters():
            parameter.zero_().requires_grad_()
    net.bias.requires_grad_()
    return net


def _gradnet(config: TerrainConfig) -> nn.Module:
    return ridge_network(config.directions, config.knots)


def _budget(config: TerrainConfig) -> int:
    """The parameters of the gradient network, which all others get at most."""
    return count_parameters(_gradnet(config))


def _mlp(config: TerrainConfig) -> nn.Module:
    def make(width: int) -> nn.Module:
        return MLP(2, width, 3, activation="sine", frequency=config.mlp_frequency)

    return match_parameters(make, _budget(config))


def _potential(config: TerrainConfig) -> nn.Module:
    def make(width: int) -> nn.Module:
        return mlp_potential(2, width, 2, activation="sine", frequency=config.potential_frequency)

    return match_parameters(make, _budget(config))


@dataclass(frozen=True)
class NetworkArm:
    """A network that is trained.

    Attributes:
        name: on the page.
        make: its constructor.
        learning_rate, weight_decay: what the configuration says of them.
    """

    name: str
    make: Callable[[TerrainConfig], nn.Module]
    learning_rate: Callable[[TerrainConfig], float]
    weight_decay: Callable[[TerrainConfig], float] = lambda config: 0.0

    def settings(self, config: TerrainConfig, seed: int) -> FitSettings:
        """Of its training."""
        return FitSettings(
            steps=_MANY_STEPS,
            max_seconds=config.seconds,
            batch_size=config.batch_size,
            learning_rate=self.learning_rate(config),
            weight_decay=self.weight_decay(config),
            validate_every=100,
            seed=seed,
        )


@dataclass(frozen=True)
class InterpolationArm:
    """Cubic interpolation of the measured slopes."""

    name: str


Arm = NetworkArm | InterpolationArm

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        NetworkArm("gradnet", _gradnet, lambda config: config.gradnet_rate, lambda config: config.gradnet_decay),
        NetworkArm("mlp", _mlp, lambda config: config.mlp_rate),
        NetworkArm("mlp-potential", _potential, lambda config: config.potential_rate),
        InterpolationArm("interpolation"),
    )
}
