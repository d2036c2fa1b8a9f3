"""The two-body experiment of "Gradient Networks", with equal structure for networks and baselines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from nablanets.dynamics import SeparableHamiltonian, integrate
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.dynamics.arms import PAIR, PLAIN, RADIAL, TWO_BODY, DynamicsConfig, draw_orbits, train
from nablanets_studies.dynamics.findings import (
    GroupComparison,
    compare_group,
    compare_sides,
    distance_picture,
    orbit_picture,
    window_picture,
)
from nablanets_studies.dynamics.metrics import OrbitMetrics, measure
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.metrics import measured
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.gravity import TwoBody

#: Step of the integrator over the span of the problem.
_STEP = 0.05
#: Steps per period of the integrators that are compared, so that all evaluate the field about equally often.
_INTEGRATORS = {"leapfrog": 40, "yoshida4": 20, "gauss4": 12, "rk4": 12}
#: The arm whose learned energy they are compared on.
_INTEGRATED = TWO_BODY["radial-gradnet-c"]
#: Baselines without any structure.
_PLAIN_BASELINES = [arm.name for arm in TWO_BODY.values() if arm.structure is PLAIN and not arm.ours]


class TwoBodyExperiment(Experiment[DynamicsConfig]):
    """Learn grad H of two bodies from near-circular orbits, and follow the learned systems."""

    name = "two-body"
    summary = "Learn grad H of the two-body problem: error in dB, trajectories, drifts over 100 periods."
    template = "two_body.md.j2"
    columns = (
        Column("gradient_db", "grad H [dB]", ".1f"),
        Column("trajectory", "distance, t in [0, 20]", ".2g"),
        Column("energy_band", "energy, 100 periods", ".1e"),
        Column("angular_band", "angular momentum", ".1e"),
        Column("trend", "trend", ".2f"),
        Column("lost", "lost", ".1f"),
        Column("processor", "processor s", ".1f"),
    )
    presets = {  # noqa: RUF012
        "quick": DynamicsConfig(
            orbits=120, parameters=600, steps=150, rates=(2e-2,), lm_steps=40, lm_starts=2, lm_samples=200, followed=10,
            long_orbits=2, periods=10,
        ),
        "paper": DynamicsConfig(),
    }  # fmt: skip
    seeds = {"quick": 2, "paper": 5}  # noqa: RUF012

    def arms(self, config: DynamicsConfig) -> list[str]:
        return list(TWO_BODY)

    def run_part(self, config: DynamicsConfig, arm: str, seed: int, report: Report) -> PartResult:
        problem = TwoBody(config.noise)
        orbits = draw_orbits(problem, config, seed)
        trained = train(TWO_BODY[arm], problem, config, orbits, seed)
        for row in trained.result.history:
            report(row)
        start, period = _typical(problem, orbits.test[0], config.long_orbits)
        metrics = measure(trained, problem, config, orbits, step=_STEP, start=start, period=period)
        parameters = count_parameters(trained.system)
        return PartResult(trained.system, parameters, trained.result.seconds, metrics.to_metrics())

    def findings(self, config: DynamicsConfig, run: RunFolder) -> list[GroupComparison]:
        """The best of ours against the best baseline, within each structure and over all."""
        results = measured(run.rows(), OrbitMetrics)
        found = []
        for structure in (PLAIN, PAIR, RADIAL):
            arms = {name: arm for name, arm in TWO_BODY.items() if arm.structure is structure}
            found.append(compare_sides(structure.title, results, arms))
        ours = [arm.name for arm in TWO_BODY.values() if arm.ours]
        found.append(compare_group("Any of our structures against plain baselines", results, ours, _PLAIN_BASELINES))
        return [comparison for comparison in found if comparison is not None]

    def sheets(self, config: DynamicsConfig, run: RunFolder) -> list[Sheet]:
        arm = _INTEGRATED.name
        if (arm, 0) not in run.finished():
            return []
        problem = TwoBody(config.noise)
        start, period = _typical(problem, draw_orbits(problem, config, 0).test[0], 1)
        system = cast(SeparableHamiltonian, run.load_model(arm, 0))
        rows = [_integrator_row(system, start, period, config.periods, method) for method in _INTEGRATORS]
        columns = (
            "method",
            "steps per period",
            "band of the learned energy",
            "of it, moved from the first to the last tenth",
        )
        return [Sheet(f"Integrators on {arm} (seed 0) over {config.periods} periods", columns, rows)]

    def pictures(self, config: DynamicsConfig, run: RunFolder) -> Iterator[Picture]:
        names = [arm for arm in TWO_BODY if (arm, 0) in run.finished()]
        times = torch.linspace(0, TwoBody.span, config.points).tolist()
        results = measured(run.rows(), OrbitMetrics)
        yield distance_picture(results, names, times)
        yield window_picture(results, names, config.periods, "periods")
        problem = TwoBody(config.noise)
        truth = draw_orbits(problem, config, 0).test[:, 0]
        models = {name: run.load_model(name, 0) for name in names}
        yield orbit_picture(models, truth, times, (0, 1), step=_STEP)


def _typical(problem: TwoBody, x: Tensor, count: int) -> tuple[Tensor, float]:
    """States whose periods are nearest to the median, and that median."""
    periods = problem.period(x)
    median = periods.median()
    return x[(periods - median).abs().argsort()[:count]], float(median)


@torch.no_grad()
def _integrator_row(system: SeparableHamiltonian, x0: Tensor, period: float, periods: int, method: str) -> list[str]:
    """One line: at about equal numbers of evaluations per period."""
    steps = _INTEGRATORS[method]
    times = torch.linspace(0, periods * period, 4 * periods + 1, dtype=torch.float64)
    energy = system.energy(integrate(system, x0, times, method=method, step=period / steps))
    band = energy.max() - energy.min()
    tenth = len(energy) // 10
    moved = (energy[-tenth:].mean() - energy[:tenth].mean()).abs() / band
    return [method, str(steps), f"{float(band / energy[0].abs().max()):.1e}", f"{float(moved):.2f}"]
