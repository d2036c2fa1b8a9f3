"""The force fields of the molecule study: how they are built and trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, cast

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
#: Distances between them.
_PAIRS = ATOMS * (ATOMS - 1) // 2
#: Random directions of standardised coordinates are scaled by one of these; validation decides.
_SCALES = (0.03, 0.1)
#: Penalties of the outer coefficients of random-ridge; validation decides.
_RIDGES = (1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
#: Training frames of different seeds begin so many parts of the pool apart.
_POOL_PARTS = 5


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

    methods: tuple[str, ...] = (
        "gradnet-c",
        "gradnet-m",
        "random-ridge",
        "mlp-potential",
        "direct-pairs",
        "direct-positions",
    )
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
    """A force field, its training time, its learning curve, and Adam's rate if it was trained by Adam."""

    net: nn.Module
    seconds: float
    history: list[HistoryRow]
    learning_rate: float | None


class Task(NamedTuple):
    """What a force field is trained on, with which seed."""

    config: MoleculeConfig
    frames: Frames
    held_out: Samples
    seed: int


#: A fresh force field that fits a configuration, standardised by training frames.
Build = Callable[[MoleculeConfig, Frames], nn.Module]


@dataclass(frozen=True)
class Method:
    """A kind of force field, and how it is trained.

    Attributes:
        name: of the method.
        build: makes a fresh one.
        fit: trains it: by Adam, or in closed form.
        ours: whether it is one of our gradient networks; the others are their peers.
    """

    name: str
    build: Build
    fit: Callable[[Method, Task], Trained]
    ours: bool = False


@dataclass(frozen=True)
class MoleculeArm:
    """A method that learns from so many frames."""

    method: Method
    frames: int

    @property
    def name(self) -> str:
        return f"{self.method.name}-{self.frames}"


def _budget(config: MoleculeConfig) -> int:
    """The parameters of gradnet-c, which no other network exceeds."""
    return count_parameters(_one_layer(config.hidden_features))


def _one_layer(width: int) -> GradNetC:
    return GradNetC(_PAIRS, width, 1, activation="softplus")


def _symmetric(constructor: Callable[[int], GradientMap]) -> Build:
    """Gradient maps of the distances between atoms, averaged over exchanges of hydrogens; constructor takes a width."""

    def build(config: MoleculeConfig, frames: Frames) -> nn.Module:
        phi = pair_distances(ATOMS)
        group = pair_permutations(ATOMS, ALIKE)
        inner = cast(GradientMap, match_parameters(constructor, _budget(config)))
        standardised = standardised_inside(inner, phi, frames.positions, frames.forces)
        return CoordinatePullback(Symmetrized(standardised, group), phi)

    return build


def _direct_pairs(config: MoleculeConfig, frames: Frames) -> nn.Module:
    """As a symmetric gradient map, but with any network of 36 outputs in the place of the gradient."""
    phi = pair_distances(ATOMS)
    group = pair_permutations(ATOMS, ALIKE)
    budget = _budget(config)
    scale, offset, size = coordinate_scales(phi, frames.positions, frames.forces)
    free = match_parameters(lambda width: MLP(_PAIRS, width, 2, activation="softplus"), budget)
    return CoordinateField(Rescaled(free, scale, offset, float(size)), phi, group)


def _direct_positions(config: MoleculeConfig, frames: Frames) -> nn.Module:
    """Forces from positions by an MLP, without any symmetry."""
    return match_parameters(lambda width: MLP(3 * ATOMS, width, 2, activation="softplus"), _budget(config))


def _by_adam(method: Method, task: Task) -> Trained:
    """A fit with each learning rate; the best by validation error is kept."""
    config = task.config
    found = fit_best_rate(
        partial(method.build, config, task.frames),
        (task.frames.positions, task.frames.forces),
        task.held_out,
        rates=config.rates,
        seed=task.seed,
        settings=FitSettings(steps=config.steps, batch_size=config.batch_size, validate_every=50),
    )
    learning_rate = config.rates[found.tried.index(found.result)]
    return Trained(found.net, found.result.seconds, found.result.history, learning_rate)


class _Solved(NamedTuple):
    """A network whose outer coefficients were solved for, the seconds that took, and its validation error."""

    net: nn.Module
    seconds: float
    error: float


def _by_ridge(method: Method, task: Task) -> Trained:
    """One layer with random directions and offsets; only its outer coefficients are fitted, by ridge regression."""
    config = replace(task.config, hidden_features=task.config.random_features)
    tried = []
    for scale in _SCALES:
        torch.manual_seed(task.seed)
        net = method.build(config, task.frames)
        core = next(module for module in net.modules() if hasattr(module, "draw_features"))
        cast(GradNetC, core).draw_features(scale)
        tried.append(_solve(net, task))
    best = min(tried, key=lambda solved: solved.error)
    return Trained(best.net, best.seconds, [], None)


def _solve(net: nn.Module, task: Task) -> _Solved:
    begin = time.perf_counter()
    frames = task.frames
    solution = solve_ridge(
        cast(GradientMap, net), frames.positions, frames.forces, validation=task.held_out, ridges=_RIDGES
    )
    return _Solved(net, time.perf_counter() - begin, min(solution.errors.values()))


_gradnet_m = _symmetric(lambda width: GradNetM(_PAIRS, width, 4))
_mlp_potential = _symmetric(lambda width: mlp_potential(_PAIRS, width, 2, activation="softplus"))

_ALL_METHODS = (
    Method("gradnet-c", _symmetric(_one_layer), _by_adam, ours=True),
    Method("gradnet-m", _gradnet_m, _by_adam, ours=True),
    Method("random-ridge", _symmetric(_one_layer), _by_ridge, ours=True),
    Method("mlp-potential", _mlp_potential, _by_adam),
    Method("direct-pairs", _direct_pairs, _by_adam),
    Method("direct-positions", _direct_positions, _by_adam),
)
METHODS = {method.name: method for method in _ALL_METHODS}


def train(config: MoleculeConfig, arm: MoleculeArm, data: Ethanol, seed: int) -> Trained:
    """A force field; different seeds take training frames from different places."""
    frames = _subset(data.training, arm.frames, seed)
    held_out = (data.validation.positions, data.validation.forces)
    return arm.method.fit(arm.method, Task(config, frames, held_out, seed))


def _subset(frames: Frames, count: int, seed: int) -> Frames:
    total = len(frames.positions)
    first = seed * total // _POOL_PARTS
    rows = (torch.arange(count) + first) % total
    return Frames(*(part[rows] for part in frames))
