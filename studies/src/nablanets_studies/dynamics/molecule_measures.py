"""What is measured of the force fields of the molecule study."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nablanets import verify
from nablanets.dynamics import SecondOrder, integrate
from nablanets.maps import GradientMap, pair_distances
from nablanets.quadrature import line_integral
from nablanets_studies.dynamics.molecule_arms import ATOMS, MoleculeConfig
from nablanets_studies.problems.molecules import BOLTZMANN, MASS_UNIT, TURNS, Ethanol, Frames, Scan, turned

#: A molecule has fallen apart when two of its atoms are this far from each other (in angstrom; 4.4 at most in the data).
_BROKEN = 7.0


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
