"""How well a learned system follows a known one: fields, trajectories, and what should be conserved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nablanets.dynamics import HamiltonianSystem, SeparableHamiltonian, SympNet, System, integrate, rotate_back
from nablanets.errors import ConvergenceError
from nablanets.fitting import decibels
from nablanets_studies.problems.mechanics import Mechanics

# Distances above this count as this: an orbit that is lost is lost.
LOST = 3.0
# Long runs that go this many times further from the origin than they started are lost.
_FAR = 10.0
#: Parts of a long run.
WINDOWS = 10


@torch.no_grad()
def gradient_db(system: System, problem: Mechanics, x: Tensor) -> float:
    """Mean squared error of grad H = J^T x' at states (n, d), in dB."""
    error = rotate_back(system(x)) - problem.gradient(x)
    return decibels(float(error.square().sum(dim=-1).mean()))


@torch.no_grad()
def follow(model: nn.Module, x0: Tensor, times: Sequence[float], *, step: float, interval: float = 0.0) -> Tensor:
    """The learned trajectories at times, by Yoshida 4 for separable systems and RK4 for others.

    A :class:`SympNet` makes its own steps, of the interval that it was trained for.
    """
    if isinstance(model, SympNet):
        counts = [round(t / interval) for t in times]
        return model.iterate(x0, counts[-1])[counts]
    method = "yoshida4" if isinstance(model, SeparableHamiltonian) else "rk4"
    return integrate(model, x0, times, method=method, step=step)  # type: ignore[arg-type]


def distance_curve(predicted: Tensor, truth: Tensor) -> Tensor:
    """Mean over orbits of the distance of positions at each time, (t); lost orbits count as LOST."""
    gap = (predicted - truth).chunk(2, dim=-1)[0].norm(dim=-1)
    return gap.nan_to_num(nan=LOST, posinf=LOST).clamp(max=LOST).mean(dim=-1)


@torch.no_grad()
def long_run(
    model: nn.Module, problem: Mechanics, x0: Tensor, period: float, periods: int, interval: float
) -> dict[str, float]:
    """Drifts over many periods, from 12 states per period.

    ``energy_band`` is the largest change of the true energy, relative to its size at the start, ``trend`` how much of
    the learned energy's band lies between the means of the first and last tenth (0: no trend; 1: it moved steadily).
    The true energy takes its place for models without one.
    """
    count = 12 * periods
    step = period / 36
    times = torch.linspace(0, periods * period, count + 1, dtype=torch.float64).tolist()
    if isinstance(model, SympNet):
        times = [interval * k for k in range(max(2, round(times[-1] / interval)))]
    try:
        x = _long(model, x0, times, step, interval)
    except ConvergenceError:
        return {"lost": 1.0}
    learned = model.energy(x) if isinstance(model, HamiltonianSystem) else problem.energy(x)
    result = {f"{name.split()[0]}_band": _band(values) for name, values in problem.invariants(x).items()}
    ends = len(learned) // WINDOWS
    moved = (learned[-ends:].mean(dim=0) - learned[:ends].mean(dim=0)).abs()
    trend = (moved / (learned.amax(dim=0) - learned.amin(dim=0)).clamp(min=1e-12)).mean()
    lost = not float(x.abs().max()) < _FAR * float(x0.abs().max())
    known = {"trend": float(trend)} if math.isfinite(float(trend)) else {}
    return {"lost": float(lost), **result, **_windows(problem, x), **known}


def _windows(problem: Mechanics, x: Tensor) -> dict[str, float]:
    """The largest relative change of the true energy in each tenth of the time, mean over orbits."""
    energy = problem.energy(x)
    parts = energy[1:].tensor_split(WINDOWS)
    return {f"window_{k}": _band(torch.cat([energy[:1], part])) for k, part in enumerate(parts)}


def _long(model: nn.Module, x0: Tensor, times: list[float], step: float, interval: float) -> Tensor:
    if isinstance(model, HamiltonianSystem) and not isinstance(model, SeparableHamiltonian):
        return integrate(model, x0, times, method="gauss4")
    return follow(model, x0, times, step=step, interval=interval)


def _band(values: Tensor) -> float:
    """Mean over orbits of the largest relative change, at most 1000."""
    change = (values - values[0]).abs().amax(dim=0) / values[0].abs()
    worst = float(change.nan_to_num(nan=1e3, posinf=1e3).clamp(max=1e3).mean())
    return worst if math.isfinite(worst) else 1e3
