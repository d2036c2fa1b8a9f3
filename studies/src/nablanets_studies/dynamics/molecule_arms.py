"""The force fields of the molecule study: how they are built and trained."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from nablanets.fitting import FitSettings
from nablanets.fitting.batches import Samples
from nablanets.fitting.settings import HistoryRow
from nablanets.maps import (
    CoordinatePullback,
    GradientMap,
    GradNetC,
    GradNetM,
    Symmetrized,
    pair_distances,
    pair_permutations,
)
from nablanets.parameters import count_parameters
from nablanets.starts import coordinate_scales, solve_ridge, standardised_inside
from nablanets_studies.baselines import MLP, CoordinateField, Rescaled, match_parameters, mlp_potential
from nablanets_studies.machinery.selection import fit_best_rate
from nablanets_studies.problems.molecules import ALIKE, Ethanol, Frames

ATOMS = 9
METHODS = (
    "gradnet-c",
    "gradnet-m",
    "random-ridge",
    "mlp-potential",
    "direct-pairs",
    "direct-positions",
)
#: The gradient networks; the others are their peers.
OURS = METHODS[:3]
# Random directions of standardised coordinates are scaled by one of these; validation decides.
_SCALES, _RIDGES = (0.03, 0.1), (1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


@dataclass(frozen=True)
class MoleculeConfig:
    """Settings of the study.

    Attributes:
        methods: which are compared.
        frames: sizes of the training set.
        hidden_features: of gradnet-c, which all others match in parameters.
        random_features: of random-ridge.
        steps: of Adam, for each rate.
        rates: Adam's learning rates to choose from by validation.
        batch_size: of Adam.
        test_frames: how many are used.
        trajectories, picoseconds: of molecular dynamics with the learned forces, from test frames at 500 K.
        femtoseconds: its time step.
    """

    methods: tuple[str, ...] = METHODS
    frames: tuple[int, ...] = (200, 1000)
    hidden_features: int = 256
    random_features: int = 1000
    steps: int = 1000
    rates: tuple[float, ...] = (1e-2, 3e-2)
    batch_size: int = 50
    test_frames: int = 1000
    trajectories: int = 8
    picoseconds: float = 1.0
    femtoseconds: float = 0.5


class Trained(NamedTuple):
    """A force field, its training time, and its learning curve."""

    net: nn.Module
    seconds: float
    history: list[HistoryRow]
    rate: float


def build(config: MoleculeConfig, method: str, train: Frames) -> nn.Module:
    """A fresh force field."""
    x, f = train.positions, train.forces
    phi, group = pair_distances(ATOMS), pair_permutations(ATOMS, ALIKE)

    def symmetric(inner: GradientMap) -> GradientMap:
        return CoordinatePullback(Symmetrized(standardised_inside(inner, phi, x, f), group), phi)

    pairs, h = phi.outputs, config.hidden_features
    budget = count_parameters(GradNetC(pairs, h, 1, activation="softplus"))
    if method == "gradnet-c":
        return symmetric(GradNetC(pairs, h, 1, activation="softplus"))
    if method == "gradnet-m":
        return symmetric(_matched(lambda width: GradNetM(pairs, width, 4), budget))
    if method == "mlp-potential":
        return symmetric(_matched(lambda width: mlp_potential(pairs, width, 2, activation="softplus"), budget))
    if method == "direct-pairs":
        scale, offset, size = coordinate_scales(phi, x, f)
        free = _matched(lambda width: MLP(pairs, width, 2, activation="softplus"), budget)
        return CoordinateField(Rescaled(free, scale, offset, float(size)), phi, group)
    return match_parameters(lambda width: MLP(3 * ATOMS, width, 2, activation="softplus"), budget)


def _matched(constructor: Any, budget: int) -> Any:
    return match_parameters(constructor, budget)


def train(config: MoleculeConfig, method: str, data: Ethanol, count: int, seed: int) -> Trained:
    """A force field trained on ``count`` frames; different seeds take frames from different places."""
    frames = _subset(data.training, count, seed)
    samples, held_out = (frames.positions, frames.forces), (data.validation.positions, data.validation.forces)
    if method == "random-ridge":
        return _random_ridge(config, frames, held_out, seed)
    settings = FitSettings(steps=config.steps, batch_size=config.batch_size, validate_every=50)
    start = partial(build, config, method, frames)
    found = fit_best_rate(start, samples, held_out, rates=config.rates, seed=seed, settings=settings)
    rate = config.rates[found.tried.index(found.result)]
    return Trained(found.net, found.result.seconds, found.result.history, rate)


def _subset(frames: Frames, count: int, seed: int) -> Frames:
    rows = (torch.arange(count) + seed * len(frames.positions) // 5) % len(frames.positions)
    return Frames(*(part[rows] for part in frames))


def _timed_ridge(net: nn.Module, frames: Frames, held_out: Samples) -> tuple[float, float]:
    """Solve for the outer coefficients: seconds, and the validation error."""
    begin = time.perf_counter()
    fitted = solve_ridge(cast(GradientMap, net), frames.positions, frames.forces, validation=held_out, ridges=_RIDGES)
    return time.perf_counter() - begin, min(fitted.errors.values())


def _random_ridge(config: MoleculeConfig, frames: Frames, held_out: Samples, seed: int) -> Trained:
    """One layer with random directions and offsets; only its outer coefficients are fitted."""
    tried = []
    for scale in _SCALES:
        torch.manual_seed(seed)
        net = build(replace(config, hidden_features=config.random_features), "gradnet-c", frames)
        core = next(module for module in net.modules() if isinstance(module, GradNetC))
        with torch.no_grad():
            core.projection.normal_(std=scale)
            core.ridge.bias[0].normal_()
        tried.append((*_timed_ridge(net, frames, held_out), net))
    seconds, _, net = min(tried, key=lambda each: each[1])
    return Trained(net, seconds, [], 0.0)
