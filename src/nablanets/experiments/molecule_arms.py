"""The force fields of the molecule study, and what is measured of them."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from nablanets import verify
from nablanets.baselines import MLP, CoordinateField, Rescaled, count_parameters, match_parameters, mlp_potential
from nablanets.dynamics import SecondOrder, integrate
from nablanets.experiments.selection import fit_best_rate
from nablanets.maps import (
    CoordinatePullback,
    GradientMap,
    GradNetC,
    GradNetM,
    Symmetrized,
    pair_distances,
    pair_permutations,
)
from nablanets.problems.molecules import ALIKE, BOLTZMANN, MASS_UNIT, TURNS, Ethanol, Frames, Scan, turned
from nablanets.quadrature import line_integral
from nablanets.training import FitSettings, coordinate_scales, solve_ridge, standardised_inside
from nablanets.training.batches import Samples
from nablanets.training.settings import HistoryRow

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
#: A molecule has fallen apart when two of its atoms are this far from each other (in angstrom; 4.7 in the data).
_BROKEN = 7.0


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
    budget = count_parameters(GradNetC(pairs, h, 1))
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


def measure(config: MoleculeConfig, net: nn.Module, data: Ethanol, seed: int) -> dict[str, float]:
    """Everything that is reported of a force field; see the notes of the experiment. Computed in float64."""
    net = copy.deepcopy(net).double().requires_grad_(False)
    test = Frames(*(part[: config.test_frames].double() for part in data.test))
    force_errors = 1000 * (torch.cat([net(x) for x in test.positions.split(100)]) - test.forces)
    metrics = {
        "force_mae": float(force_errors.abs().mean()),
        "force_rmse": float(force_errors.square().mean().sqrt()),
        "rotation": rotation_error(net, test.positions[:100]),
        "loop": random_loops(net, test.positions),
        "turn_work": turn_work(net, test.positions),
    }
    for name, scan in data.scans.items():
        energies = scan_energies(net, scan)
        metrics[f"{name}_rmse"] = 1000 * _centred(energies - scan.energies)
    if isinstance(net, GradientMap):
        energies = torch.cat([-net.potential(x) for x in test.positions.split(100)])
        difference = 1000 * (energies - test.energies)
        metrics["energy_mae"] = float((difference - difference.median()).abs().mean())
    return metrics | molecular_dynamics(config, net, data, seed)[0]


def _centred(difference: Tensor) -> float:
    return float((difference - difference.mean()).square().mean().sqrt())


def rotation_error(net: nn.Module, x: Tensor) -> float:
    """Root mean square of f(R x) - R f(x) over that of f, for one random rotation R of each frame."""
    generator = torch.Generator().manual_seed(0)
    turns, _ = torch.linalg.qr(torch.randn(len(x), 3, 3, generator=generator, dtype=torch.float64))
    turns = turns * turns.det()[:, None, None]

    def turned(value: Tensor) -> Tensor:
        return (value.unflatten(-1, (ATOMS, 3)) @ turns.mT).flatten(-2)

    expected = turned(net(x))
    return float((net(turned(x)) - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def random_loops(net: nn.Module, x: Tensor) -> float:
    """The largest circulation around triangles of a frame and two small random displacements of it."""
    corners = x[:8].unsqueeze(1) + 0.1 * torch.randn(8, 3, 27, generator=torch.Generator().manual_seed(0)).double()
    return max(verify.loop_error(net, each, panels=2) for each in corners)


def turn_work(net: nn.Module, x: Tensor) -> float:
    """Root mean square work, in meV, of turning the hydroxyl or the methyl group of a frame through a full circle.

    The paths start at distorted frames: from the relaxed conformer, which has a mirror plane, the way back would cancel
    the way out for any forces along the distances.
    """
    angles = torch.linspace(0, 2 * torch.pi, 73, dtype=x.dtype)
    works = [scan_work(net, turned(start, group, angles))[-1] for start in x[:8] for group in TURNS]
    return float(1000 * torch.stack(works).square().mean().sqrt())


def scan_work(net: nn.Module, path: Tensor) -> Tensor:
    """Work of the forces along a path of points (n, 27), from its beginning to each of them, (n,)."""
    steps = line_integral(net, path[:-1], path[1:], panels=1)
    return torch.cat([steps.new_zeros(1), steps.cumsum(dim=0)])


def scan_energies(net: nn.Module, scan: Scan) -> Tensor:
    """Energies along a scan, by the work of the forces: zero at its beginning."""
    return -scan_work(net, scan.positions)


def molecular_dynamics(
    config: MoleculeConfig, net: nn.Module, data: Ethanol, seed: int
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Verlet trajectories at constant energy: metrics, times in ps, and the mean total or kinetic energy in meV."""
    generator = torch.Generator().manual_seed(seed)
    masses = (MASS_UNIT * data.masses).repeat_interleave(3)
    x = data.test.positions[
        torch.randperm(len(data.test.positions), generator=generator)[: config.trajectories]
    ].double()
    v = (500 * BOLTZMANN / masses).sqrt() * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    system = SecondOrder(net, 3 * ATOMS, masses)
    times = torch.linspace(0, 1000 * config.picoseconds, 101, dtype=torch.float64)
    with torch.no_grad():
        states = integrate(system, torch.cat([x, v], dim=-1), times, method="verlet", step=config.femtoseconds)
        whole = _whole(states[..., :27]).all(dim=0)
        kinetic = 1000 * system.kinetic_energy(states)
        total = 1000 * system.energy(states) if isinstance(net, GradientMap) else kinetic
    metrics = {"whole": float(whole.double().mean())}
    if not bool(whole.any()):
        return metrics, times / 1000, total.mean(dim=1)
    kinetic, total = kinetic[:, whole], total[:, whole]
    half = len(times) // 2
    rise = kinetic[half:].mean() - kinetic[:half].mean()
    metrics["heating"] = float(rise / 1000 / (13.5 * BOLTZMANN) / (config.picoseconds / 2))
    if isinstance(net, GradientMap):
        metrics["drift"] = float((total[-10:].mean(dim=0) - total[:10].mean(dim=0)).abs().mean() / config.picoseconds)
    return metrics, times / 1000, total.mean(dim=1)


def _whole(x: Tensor) -> Tensor:
    distances = pair_distances(ATOMS, kind="distance").double()(x)
    return (distances < _BROKEN).all(dim=-1)
