"""What is measured of the force fields of the molecule study."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nablanets import verify
from nablanets.dynamics import SecondOrder, integrate
from nablanets.maps import GradientMap, pair_distances
from nablanets.quadrature import line_integral
from nablanets_studies.dynamics.molecule_arms import ATOMS, MoleculeConfig, Trained
from nablanets_studies.machinery.metrics import Metrics, nested
from nablanets_studies.problems.molecules import BOLTZMANN, MASS_UNIT, TURNS, Ethanol, Frames, Scan, turned

#: meV per eV, and fs per ps.
_MILLI = 1000
#: Frames that go through a network at a time, for memory.
_FRAMES_AT_ONCE = 100
#: Temperature of the trajectories that the frames come from, and of ours.
_KELVIN = 500
#: States of a trajectory that are kept.
_RECORDED = 101
#: A molecule has fallen apart when two of its atoms are this far from each other (in angstrom; 4.4 at most in the data).
_BROKEN = 7.0


@dataclass(frozen=True, kw_only=True)
class DynamicsMetrics(Metrics):
    """Of molecular dynamics with the learned forces.

    Attributes:
        whole: fraction of molecules that have not fallen apart; if all have, there is nothing else.
        heating: rise of the mean kinetic temperature from the first to the second half of the time, in K per ps.
        drift: mean absolute change of a molecule's total energy, in meV per ps; None without a potential.
    """

    whole: float
    heating: float | None = None
    drift: float | None = None


@dataclass(frozen=True, kw_only=True)
class MoleculeMetrics(Metrics):
    """What is measured of a force field; errors are in meV and angstrom.

    Attributes:
        force_mae, force_rmse: mean absolute and root mean square error of the components of forces on test frames.
        rotation: see :func:`rotation_error`.
        loop: see :func:`random_loops`.
        turn_work: see :func:`turn_work`.
        hydroxyl_rmse, methyl_rmse: of the energies along the scans, without the mean difference.
        energy_mae: mean absolute error of the energies of test frames, without the median difference; None without a
            potential.
        dynamics: of molecular dynamics.
        rate: Adam's learning rate that validation chose; None for a closed form.
    """

    force_mae: float
    force_rmse: float
    rotation: float
    loop: float
    turn_work: float
    hydroxyl_rmse: float
    methyl_rmse: float
    energy_mae: float | None = None
    dynamics: DynamicsMetrics = field(metadata=nested(DynamicsMetrics))
    rate: float | None = None


def measure(config: MoleculeConfig, trained: Trained, data: Ethanol, seed: int) -> MoleculeMetrics:
    """Everything that is reported of a force field. Computed in float64."""
    net = copy.deepcopy(trained.net).double().requires_grad_(False)
    test = Frames(*(part[: config.test_frames].double() for part in data.test))
    predicted = torch.cat([net(x) for x in test.positions.split(_FRAMES_AT_ONCE)])
    force_errors = _MILLI * (predicted - test.forces)
    return MoleculeMetrics(
        force_mae=float(force_errors.abs().mean()),
        force_rmse=float(force_errors.square().mean().sqrt()),
        rotation=rotation_error(net, test.positions[:100]),
        loop=random_loops(net, test.positions),
        turn_work=turn_work(net, test.positions),
        hydroxyl_rmse=scan_error(net, data.scans["hydroxyl"]),
        methyl_rmse=scan_error(net, data.scans["methyl"]),
        energy_mae=energy_error(net, test) if isinstance(net, GradientMap) else None,
        dynamics=molecular_dynamics(config, net, data, seed).metrics,
        rate=trained.learning_rate,
    )


def energy_error(net: GradientMap, test: Frames) -> float:
    """Mean absolute error of the energies of frames, without the median difference, in meV."""
    energies = torch.cat([-net.potential(x) for x in test.positions.split(_FRAMES_AT_ONCE)])
    difference = _MILLI * (energies - test.energies)
    return float((difference - difference.median()).abs().mean())


def scan_error(net: nn.Module, scan: Scan) -> float:
    """Root mean square error of the energies along a scan, without the mean difference, in meV."""
    return _MILLI * _centred(scan_energies(net, scan) - scan.energies)


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


class Dynamics(NamedTuple):
    """What is measured of trajectories, times in ps, and the mean total or kinetic energy at these times in meV."""

    metrics: DynamicsMetrics
    times: Tensor
    energy: Tensor


@torch.no_grad()
def molecular_dynamics(config: MoleculeConfig, net: nn.Module, data: Ethanol, seed: int) -> Dynamics:
    """Verlet trajectories at constant energy; the energy is the kinetic one for fields without a potential."""
    masses = (MASS_UNIT * data.masses).repeat_interleave(3)  # (27,)
    system = SecondOrder(net, 3 * ATOMS, masses)
    times = torch.linspace(0, _MILLI * config.picoseconds, _RECORDED, dtype=torch.float64)  # fs
    start = _thermal_states(config, data, masses, seed)
    states = integrate(system, start, times, method="verlet", step=config.femtoseconds)  # (times, molecules, 54)
    whole = _whole(states[..., : 3 * ATOMS]).all(dim=0)  # (molecules,)
    kinetic = _MILLI * system.kinetic_energy(states)  # (times, molecules)
    conservative = isinstance(net, GradientMap)
    total = _MILLI * system.energy(states) if conservative else kinetic
    heating = None
    drift = None
    if bool(whole.any()):
        kinetic = kinetic[:, whole]
        total = total[:, whole]
        heating = _heating(kinetic, config.picoseconds)
        if conservative:
            drift = float((total[-10:].mean(dim=0) - total[:10].mean(dim=0)).abs().mean() / config.picoseconds)
    metrics = DynamicsMetrics(whole=float(whole.double().mean()), heating=heating, drift=drift)
    return Dynamics(metrics, times / _MILLI, total.mean(dim=1))


def _thermal_states(config: MoleculeConfig, data: Ethanol, masses: Tensor, seed: int) -> Tensor:
    """Test frames with velocities of the Maxwell-Boltzmann distribution at 500 K, (molecules, 54)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.test.positions), generator=generator)
    x = data.test.positions[order[: config.trajectories]].double()
    speed = (_KELVIN * BOLTZMANN / masses).sqrt()  # (27,), standard deviation of each component
    v = speed * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return torch.cat([x, v], dim=-1)


def _heating(kinetic: Tensor, picoseconds: float) -> float:
    """Rise of the mean kinetic temperature from the first to the second half, in K per ps, of energies in meV."""
    half = len(kinetic) // 2
    rise = kinetic[half:].mean() - kinetic[:half].mean()
    degrees_of_freedom = 3 * ATOMS
    kelvin = rise / _MILLI / (degrees_of_freedom / 2 * BOLTZMANN)
    return float(kelvin / (picoseconds / 2))


def _whole(x: Tensor) -> Tensor:
    distances = pair_distances(ATOMS, kind="distance").double()(x)
    return (distances < _BROKEN).all(dim=-1)
