"""Hamiltonian systems of many kinds, learned by small networks with and without structure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nablanets.dynamics import System
from nablanets.errors import unknown_name
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.dynamics.arms import ZOO, Arm, DynamicsConfig, draw_orbits, train
from nablanets_studies.dynamics.findings import compare_group, distance_picture, orbit_picture
from nablanets_studies.dynamics.metrics import distance_curve, follow, gradient_db, long_run
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.gravity import MECHANICS
from nablanets_studies.problems.mechanics import Mechanics

_STEPS = 400


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


class HamiltonianZooExperiment(Experiment[ZooConfig]):
    """Learn grad H of systems from oscillators to three bodies with networks of equal size."""

    name = "hamiltonian-zoo"
    summary = "Learn grad H of springs, pendulums, Henon-Heiles and three bodies; follow the learned systems."
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

    def _arms(self, config: ZooConfig) -> dict[str, tuple[Mechanics, Arm]]:
        for problem in config.problems:
            if problem not in MECHANICS:
                raise unknown_name("problem", problem, MECHANICS)
        return {
            f"{problem}-{name}": (MECHANICS[problem], arm)
            for problem in config.problems
            for name, arm in ZOO.items()
            if _applies(MECHANICS[problem], name, arm)
        }

    def run_part(self, config: ZooConfig, arm: str, seed: int, report: Report) -> PartResult:
        problem, kind = self._arms(config)[arm]
        orbits = draw_orbits(problem, config, seed)
        trained = train(kind, problem, config, orbits, seed)
        for row in trained.result.history:
            report(row)
        metrics = {"processor": trained.processor_seconds}
        if isinstance(trained.system, System):
            metrics["gradient_db"] = gradient_db(trained.system, problem, orbits.test.flatten(0, 1))
        truth, interval = orbits.test[:, : config.followed], orbits.times[1]
        predicted = follow(trained.system, truth[0], orbits.times, step=problem.span / _STEPS, interval=interval)
        curve = distance_curve(predicted, truth)
        metrics |= {"trajectory": float(curve.mean())} | {f"distance_{k}": float(d) for k, d in enumerate(curve)}
        start = orbits.test[0, : config.long_orbits]
        metrics |= long_run(trained.system, problem, start, 2 * math.pi, config.periods, interval)
        return PartResult(trained.system, count_parameters(trained.system), trained.result.seconds, metrics)

    def conclusions(self, config: ZooConfig, run: RunFolder) -> list[str]:
        texts = []
        for problem in config.problems:
            arms = {name: arm for name, (p, arm) in self._arms(config).items() if p.name == problem}
            for structure in ("plain", "separable"):
                group = {name: arm for name, arm in arms.items() if arm.structure == structure}
                ours, theirs = ([n for n, arm in group.items() if arm.ours == side] for side in (True, False))
                texts.append(compare_group(f"{problem}, {structure}", run.rows(), ours, theirs))
        return [text for text in texts if text]

    def notes(self, config: ZooConfig) -> list[str]:
        formulas = "; ".join(f"{name}: {MECHANICS[name].formula}" for name in config.problems)
        return [
            f"The systems, ours: {formulas}. {config.orbits} orbits of {config.points} states each, exact or by DOP853; "
            f"{config.test_fraction:.0%} of the orbits are test, {config.validation_fraction:.0%} validation data. Derivatives are "
            "exact.",
            f"Plain networks see all of x = (q, p), with at most {config.parameters} parameters; separable-* are T(p) + V(q) with "
            f"learned masses and V of at most {config.structured_parameters} parameters, where the system has that form. icnn is "
            "there where H is convex. All but sympnet are trained by Levenberg-Marquardt in float64 "
            f"({config.lm_starts} starts, {config.lm_steps} iterations), sympnet (the flow over one interval) by Adam "
            f"({config.steps} steps, rates {config.rates}).",
            "“Distance” is that of the positions, mean over test orbits and times of the span of the problem (above 3 it counts as "
            f"3); the long run takes {config.periods} times 2 pi; the other columns are those of two-body.",
        ]  # fmt: skip

    def pictures(self, config: ZooConfig, run: RunFolder) -> Iterator[Picture]:
        for problem in config.problems:
            kind = MECHANICS[problem]
            names = [n for n, (p, _) in self._arms(config).items() if p.name == problem and (n, 0) in run.finished()]
            times = torch.linspace(0, kind.span, config.points, dtype=torch.float64).tolist()
            curves = distance_picture(run.rows(), names, times)
            yield curves._replace(name=f"distances-{problem}", caption=f"{problem}: {curves.caption}")
            truth = draw_orbits(kind, config, 0).test[:, 0]
            models = {name: run.load_model(name, 0) for name in names}
            plane = (0, kind.features // 2) if kind.features == 2 else (0, 1)
            orbits = orbit_picture(models, truth, times, plane, step=kind.span / _STEPS)
            yield orbits._replace(name=f"orbits-{problem}", caption=f"{problem}: {orbits.caption}")


def _applies(problem: Mechanics, name: str, arm: Arm) -> bool:
    """Separable networks for separable systems, ICNN for convex energies."""
    if name == "icnn":
        return problem.name == "mass-spring"
    return arm.structure == "plain" or problem.masses is not None
