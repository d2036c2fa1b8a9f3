"""Which activation? All of them, in both networks, on smooth and on non-differentiable targets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from nablanets.fitting import FitSettings, HistoryRow, error
from nablanets.fitting.batches import Samples
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets.pieces.gating import count_stored
from nablanets_studies.fields.activation_arms import (
    ARMS,
    PIECES,
    TARGETS,
    ActivationsConfig,
    Arm,
    SolvedArm,
    TrainedArm,
    arms_of,
    solve_affine,
)
from nablanets_studies.fields.activation_findings import ActivationFindings
from nablanets_studies.fields.activation_metrics import (
    BEST_DB,
    WORST_DB,
    ActivationMetrics,
    TargetMetrics,
    asymmetry,
    measure,
)
from nablanets_studies.fields.activation_pictures import cuts, heat_map
from nablanets_studies.fields.activation_results import ActivationResults
from nablanets_studies.fields.activation_sheets import sheets_of
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.selection import fit_best_rate, start_from_data
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.fields import Field

#: A fit fails if its last validation error is more than this times that of the affine map.
_FAILURE = 1.05
#: Validations of a fit.
_VALIDATIONS = 20


class Facts(NamedTuple):
    """Numbers of the protocol that are no settings."""

    targets: list[Field]
    worst_db: float
    best_db: float
    pieces: int
    failure: float


class ActivationsExperiment(Experiment[ActivationsConfig]):
    """All activations at equal parameters, steps and choice of rates."""

    name = "activations"
    summary = "Compare all activations in GradNet-C and GradNet-M on smooth and non-differentiable fields."
    template = "activations.md.j2"
    presets = {  # noqa: RUF012
        "quick": ActivationsConfig(targets=("convex", "max-affine"), steps=350, rates=(4e-2,), test_side=40),
        "paper": ActivationsConfig(),
    }
    seeds = {"quick": 1, "paper": 5}  # noqa: RUF012
    columns = (
        *(Column(f"{name}_db", f"{name} [dB]", ".1f") for name in TARGETS),
        Column("asymmetry32", "asymmetry, float32", ".0e"),
        Column("asymmetry64", "asymmetry, float64", ".0e"),
        Column("failures", "failed fits", ".0%"),
    )

    def arms(self, config: ActivationsConfig) -> list[str]:
        return list(arms_of(config.activations))

    def run_part(self, config: ActivationsConfig, arm: str, seed: int, report: Report) -> PartResult:
        learned = {target: _learn(config, ARMS[arm], TARGETS[target], seed) for target in config.targets}
        parts = list(learned.values())
        for row in parts[0].history:
            report(row)
        failed = [each for part in parts for each in part.failed]
        measured = ActivationMetrics(
            targets={target: part.metrics for target, part in learned.items()},
            asymmetry32=max(part.asymmetry[0] for part in parts),
            asymmetry64=max(part.asymmetry[1] for part in parts),
            failures=statistics.fmean(failed) if failed else None,
        )
        last = parts[-1]
        seconds = sum(part.seconds for part in parts)
        return PartResult(last.net, last.parameters, seconds, measured.to_metrics())

    def facts(self, config: ActivationsConfig) -> Facts:
        return Facts([TARGETS[name] for name in config.targets], WORST_DB, BEST_DB, PIECES, _FAILURE)

    def sheets(self, config: ActivationsConfig, run: RunFolder) -> list[Sheet]:
        return sheets_of(ActivationResults(config.targets, run.rows()))

    def findings(self, config: ActivationsConfig, run: RunFolder) -> ActivationFindings:
        return ActivationFindings.of(ActivationResults(config.targets, run.rows()))

    def pictures(self, config: ActivationsConfig, run: RunFolder) -> Iterator[Picture]:
        yield heat_map(ActivationResults(config.targets, run.rows()))
        models = {arm: run.load_model(arm, 0) for arm in self.arms(config) if (arm, 0) in run.finished()}
        yield cuts(TARGETS[config.targets[-1]], models)


@dataclass(frozen=True)
class _Learned:
    """A map that has learned one target.

    Attributes:
        net: the map.
        parameters: how many it has, or stores.
        metrics: its errors.
        asymmetry: of its Jacobian, in float32 and float64.
        failed: for each rate that was tried, whether the fit failed; empty for what is solved for.
        seconds: of all fits.
        history: of the fit with the best rate.
    """

    net: nn.Module
    parameters: int
    metrics: TargetMetrics
    asymmetry: tuple[float, float]
    failed: list[bool]
    seconds: float
    history: list[HistoryRow]


def _learn(config: ActivationsConfig, arm: Arm, target: Field, seed: int) -> _Learned:
    generator = torch.Generator().manual_seed(1000 + seed)
    train = target.sample(config.samples, generator)
    validation = target.sample(config.validation_samples, generator)
    if isinstance(arm, TrainedArm):
        return _train(config, arm, target, seed, train, validation)
    return _solve(config, arm, target, seed, train)


def _solve(config: ActivationsConfig, arm: SolvedArm, target: Field, seed: int, train: Samples) -> _Learned:
    begin = time.perf_counter()
    net = arm.solve(train, target, seed)
    seconds = time.perf_counter() - begin
    return _Learned(net, count_stored(net), measure(config, target, net), asymmetry(net), [], seconds, [])


def _train(
    config: ActivationsConfig, arm: TrainedArm, target: Field, seed: int, train: Samples, validation: Samples
) -> _Learned:
    """The network of the best rate by validation data; gradient networks start as large as the data."""

    def fresh() -> nn.Module:
        net = arm.build(config.parameters, monotone=target.convex and arm.can_be_monotone)
        if arm.activation is not None:
            start_from_data(net, *train)
        return net

    every = max(1, config.steps // _VALIDATIONS)
    settings = FitSettings(steps=config.steps, batch_size=config.batch_size, validate_every=every)
    net, result, tried = fit_best_rate(fresh, train, validation, rates=config.rates, seed=seed, settings=settings)
    limit = _FAILURE * error(solve_affine(train, target, seed), *validation)
    # A fit that ended with NaN has failed as well.
    failed = [not record.history[-1].validation_error <= limit for record in tried]
    metrics = measure(config, target, net, statistics.fmean(failed))
    seconds = sum(record.seconds for record in tried)
    return _Learned(net, count_parameters(net), metrics, asymmetry(net), failed, seconds, result.history)
