"""Hamiltonian systems of many kinds, learned by small networks with and without structure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nablanets.errors import unknown_name
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.dynamics.arms import PLAIN, SEPARABLE, ZOO, Arm, DynamicsConfig, draw_orbits, train
from nablanets_studies.dynamics.findings import (
    GroupComparison,
    compare_sides,
    distance_picture,
    orbit_picture,
)
from nablanets_studies.dynamics.metrics import OrbitMetrics, measure
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture
from nablanets_studies.machinery.metrics import measured
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.gravity import MECHANICS
from nablanets_studies.problems.mechanics import Mechanics

#: Steps of the integrator over the span of a problem.
_STEPS = 400
#: The long run takes the configuration's periods times this.
_PERIOD = 2 * math.pi


@dataclass(frozen=True)
class ZooConfig(DynamicsConfig):
    """Settings of a run: those of :class:`DynamicsConfig`, and which problems.

    Attributes:
        problems: by name.
    """

    problems: tuple[str, ...] = ("mass-spring", "pendulum", "henon-heiles", "double-pendulum", "three-body")
    orbits: int = 200
    parameters: int = 250
    structured_parameters: int = 120
    lm_steps: int = 60
    lm_starts: int = 2
    lm_samples: int = 300
    steps: int = 1000
    rates: tuple[float, ...] = (1e-2,)
    followed: int = 20
    long_orbits: int = 3
    periods: int = 30


@dataclass(frozen=True)
class ZooArm:
    """A network that learns one of the problems."""

    problem: Mechanics
    arm: Arm

    @property
    def name(self) -> str:
        return f"{self.problem.name}-{self.arm.name}"


class ZooFacts(NamedTuple):
    """What the protocol says of the problems."""

    problems: list[Mechanics]


class HamiltonianZooExperiment(Experiment[ZooConfig]):
    """Learn grad H of systems from oscillators to three bodies with networks of equal size."""

    name = "hamiltonian-zoo"
    summary = "Learn grad H of springs, pendulums, Henon-Heiles and three bodies; follow the learned systems."
    template = "hamiltonian_zoo.md.j2"
    columns = (
        Column("gradient_db", "grad H [dB]", ".1f"),
        Column("trajectory", "distance", ".2g"),
        Column("energy_band", "energy, long run", ".1e"),
        Column("trend", "trend", ".2f"),
        Column("lost", "lost", ".1f"),
        Column("processor", "processor s", ".1f"),
    )
    presets = {  # noqa: RUF012
        "quick": ZooConfig(
            problems=("pendulum", "henon-heiles"), orbits=60, parameters=120, structured_parameters=60, lm_steps=25,
            steps=100, lm_starts=1, followed=5, long_orbits=2, periods=5,
        ),
        "paper": ZooConfig(),
    }  # fmt: skip
    seeds = {"quick": 2, "paper": 5}  # noqa: RUF012

    def arms(self, config: ZooConfig) -> list[str]:
        return list(self._arms(config))

    def _arms(self, config: ZooConfig) -> dict[str, ZooArm]:
        found = {}
        for name in config.problems:
            if name not in MECHANICS:
                raise unknown_name("problem", name, MECHANICS)
            problem = MECHANICS[name]
            for arm in ZOO.values():
                if arm.applies_to(problem):
                    each = ZooArm(problem, arm)
                    found[each.name] = each
        return found

    def run_part(self, config: ZooConfig, arm: str, seed: int, report: Report) -> PartResult:
        each = self._arms(config)[arm]
        problem = each.problem
        orbits = draw_orbits(problem, config, seed)
        trained = train(each.arm, problem, config, orbits, seed)
        for row in trained.result.history:
            report(row)
        metrics = measure(
            trained,
            problem,
            config,
            orbits,
            step=problem.span / _STEPS,
            start=orbits.test[0, : config.long_orbits],
            period=_PERIOD,
        )
        parameters = count_parameters(trained.system)
        return PartResult(trained.system, parameters, trained.result.seconds, metrics.to_metrics())

    def findings(self, config: ZooConfig, run: RunFolder) -> list[GroupComparison]:
        """The best of ours against the best baseline, for each problem and structure."""
        results = measured(run.rows(), OrbitMetrics)
        found = []
        for problem in config.problems:
            for structure in (PLAIN, SEPARABLE):
                arms = {
                    name: each.arm
                    for name, each in self._arms(config).items()
                    if each.problem.name == problem and each.arm.structure is structure
                }
                found.append(compare_sides(f"{problem}, {structure.name}", results, arms))
        return [comparison for comparison in found if comparison is not None]

    def facts(self, config: ZooConfig) -> ZooFacts:
        return ZooFacts([MECHANICS[name] for name in config.problems])

    def pictures(self, config: ZooConfig, run: RunFolder) -> Iterator[Picture]:
        results = measured(run.rows(), OrbitMetrics)
        finished = run.finished()
        for name in config.problems:
            problem = MECHANICS[name]
            arms = [arm for arm, each in self._arms(config).items() if each.problem is problem and (arm, 0) in finished]
            times = torch.linspace(0, problem.span, config.points, dtype=torch.float64).tolist()
            curves = distance_picture(results, arms, times)
            yield curves._replace(name=f"distances-{name}", caption=f"{name}: {curves.caption}")
            truth = draw_orbits(problem, config, 0).test[:, 0]  # (t, d)
            models = {arm: run.load_model(arm, 0) for arm in arms}
            # One position against its momentum, or two positions.
            plane = (0, 1)
            orbits = orbit_picture(models, truth, times, plane, step=problem.span / _STEPS)
            yield orbits._replace(name=f"orbits-{name}", caption=f"{name}: {orbits.caption}")
