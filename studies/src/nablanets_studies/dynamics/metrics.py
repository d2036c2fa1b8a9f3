"""How well a learned system follows a known one: fields, trajectories, and what should be conserved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nablanets.dynamics import HamiltonianSystem, SeparableHamiltonian, SympNet, System, integrate, rotate_back
from nablanets.errors import ConvergenceError
from nablanets.fitting import decibels
from nablanets_studies.dynamics.arms import DynamicsConfig, Orbits, Trained
from nablanets_studies.machinery.metrics import Metrics, nested, series
from nablanets_studies.problems.mechanics import Mechanics

#: Distances above this count as this: an orbit that is lost is lost.
LOST = 3.0
#: Long runs that go this many times further from the origin than they started are lost.
_FAR = 10.0
#: Parts of a long run.
WINDOWS = 10
#: States of a long run per period, and steps of its integrator between two of them.
_STATES_PER_PERIOD = 12
_STEPS_PER_STATE = 3
#: Relative changes of an invariant count as at most this, where a trajectory diverges.
_LARGEST_BAND = 1e3


@dataclass(frozen=True, kw_only=True)
class LongRun(Metrics):
    """Drifts over many periods.

    Attributes:
        lost: 1 if an orbit went far away or an implicit solve failed; such a run may have no other numbers.
        energy_band, angular_band: the largest relative changes of the true energy and angular momentum.
        trend: the part of the learned energy's band that lies between the means of the first and last tenth of the time
            (0: no trend; 1: it moved steadily). The true energy takes its place for models without one.
        windows: the largest relative change of the true energy in each tenth of the time.
    """

    lost: float
    energy_band: float | None = None
    angular_band: float | None = None
    trend: float | None = None
    windows: tuple[float, ...] = field(default=(), metadata=series("window_"))


@dataclass(frozen=True, kw_only=True)
class OrbitMetrics(Metrics):
    """What is measured of a learned system.

    Attributes:
        processor: seconds of processor time of all fits that led to it.
        gradient_db: mean squared error of grad H on test orbits, in dB; None for a learned flow, which has no gradient.
        trajectory: distance of the positions from the true ones, mean over orbits and times.
        distances: the same at each time.
        long: over many periods.
    """

    processor: float
    gradient_db: float | None = None
    trajectory: float
    distances: tuple[float, ...] = field(default=(), metadata=series("distance_"))
    long: LongRun = field(metadata=nested(LongRun))


def measure(
    trained: Trained,
    problem: Mechanics,
    config: DynamicsConfig,
    orbits: Orbits,
    *,
    step: float,
    start: Tensor,
    period: float,
) -> OrbitMetrics:
    """Everything that is reported of a system.

    Args:
        trained: the system.
        problem: what it learned.
        config: says how many orbits are followed, and for how many periods.
        orbits: test data are used here for the first time.
        step: of the integrator over the span of the problem.
        start: states (m, d) of the long run.
        period: one of its periods.
    """
    system = trained.system
    interval = orbits.times[1]
    gradient = None
    if isinstance(system, System):
        gradient = gradient_db(system, problem, orbits.test.flatten(0, 1))
    truth = orbits.test[:, : config.followed]  # (t, m, d)
    predicted = follow(system, truth[0], orbits.times, step=step, interval=interval)
    curve = distance_curve(predicted, truth)  # (t,)
    return OrbitMetrics(
        processor=trained.processor_seconds,
        gradient_db=gradient,
        trajectory=float(curve.mean()),
        distances=tuple(curve.tolist()),
        long=long_run(system, problem, start, period, config.periods, interval),
    )


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
    positions, _ = (predicted - truth).chunk(2, dim=-1)  # (t, m, d / 2)
    distance = positions.norm(dim=-1)
    return distance.nan_to_num(nan=LOST, posinf=LOST).clamp(max=LOST).mean(dim=-1)


@torch.no_grad()
def long_run(model: nn.Module, problem: Mechanics, x0: Tensor, period: float, periods: int, interval: float) -> LongRun:
    """Drifts over many periods from x0 (m, d); ``interval`` is that of a :class:`SympNet`."""
    count = _STATES_PER_PERIOD * periods
    times = torch.linspace(0, periods * period, count + 1, dtype=torch.float64).tolist()
    if isinstance(model, SympNet):
        times = [interval * k for k in range(max(2, round(times[-1] / interval)))]
    step = period / (_STATES_PER_PERIOD * _STEPS_PER_STATE)
    try:
        x = _follow_long(model, x0, times, step, interval)  # (t, m, d)
    except ConvergenceError:
        return LongRun(lost=1.0)
    bands = {name: _band(values) for name, values in problem.invariants(x).items()}
    stayed = float(x.abs().max()) < _FAR * float(x0.abs().max())  # False for nan too
    learned_energy = model.energy(x) if isinstance(model, HamiltonianSystem) else problem.energy(x)
    trend = _trend(learned_energy)
    return LongRun(
        lost=0.0 if stayed else 1.0,
        energy_band=bands["energy"],
        angular_band=bands.get("angular momentum"),
        trend=trend if math.isfinite(trend) else None,
        windows=_windows(problem.energy(x)),
    )


def _trend(energy: Tensor) -> float:
    """How much of the band of energies (t, m) lies between the means of the first and last tenth, mean over orbits."""
    tenth = len(energy) // WINDOWS
    moved = (energy[-tenth:].mean(dim=0) - energy[:tenth].mean(dim=0)).abs()
    band = energy.amax(dim=0) - energy.amin(dim=0)
    return float((moved / band.clamp(min=1e-12)).mean())


def _windows(energy: Tensor) -> tuple[float, ...]:
    """The largest relative change of energies (t, m) since the start in each tenth of the time, mean over orbits."""
    parts = energy[1:].tensor_split(WINDOWS)
    return tuple(_band(torch.cat([energy[:1], part])) for part in parts)


def _follow_long(model: nn.Module, x0: Tensor, times: list[float], step: float, interval: float) -> Tensor:
    """As :func:`follow`, but Hamiltonians that are not separable are followed by Gauss 4, which is symplectic."""
    if isinstance(model, HamiltonianSystem) and not isinstance(model, SeparableHamiltonian):
        return integrate(model, x0, times, method="gauss4")
    return follow(model, x0, times, step=step, interval=interval)


def _band(values: Tensor) -> float:
    """Mean over orbits of the largest relative change of values (t, m), at most 1000."""
    change = (values - values[0]).abs().amax(dim=0) / values[0].abs()
    largest = _LARGEST_BAND
    worst = float(change.nan_to_num(nan=largest, posinf=largest).clamp(max=largest).mean())
    return worst if math.isfinite(worst) else largest
