"""What gradient networks cost beside their peers: time, memory, accuracy per second and per parameter, growth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nablanets.fitting import FitSettings, HistoryRow, decibels, error
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.fields import efficiency_pictures
from nablanets_studies.fields.efficiency_arms import (
    ARMS,
    FEATURES,
    FORWARD,
    MODES,
    REFERENCE,
    STEP,
    TASK,
    TEST_SIDE,
    Arm,
    EfficiencyConfig,
    Mode,
    Size,
)
from nablanets_studies.fields.efficiency_findings import EfficiencyFindings
from nablanets_studies.fields.efficiency_metrics import (
    TEST_DB,
    Cost,
    EfficiencyMetrics,
    exponent_name,
    memory_name,
    ratio_name,
)
from nablanets_studies.fields.efficiency_results import EfficiencyResults
from nablanets_studies.fields.efficiency_sheets import sheets_of
from nablanets_studies.machinery.base import Column, Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.costs import Call, interleaved_times, peak_bytes
from nablanets_studies.machinery.selection import fit_best_rate, start_from_data
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.fields import ConvexField, unit_grid

_FIELD = ConvexField()


class EfficiencyExperiment(Experiment[EfficiencyConfig]):
    """Costs at equal parameters, and how they grow."""

    name = "efficiency"
    summary = (
        "Time, memory and accuracy of gradient networks and their peers on an equal task, and growth with d and batch."
    )
    template = "efficiency.md.j2"
    presets = {  # noqa: RUF012
        "quick": EfficiencyConfig(
            budgets=(100, 400),
            steps=400,
            rates=(2e-2,),
            features=(2, 16, 128, 256, 512),
            batches=(1, 32, 256, 1024),
            large_features=128,
            repeats=6,
            at_least=1e-3,
        ),
        "paper": EfficiencyConfig(),
    }
    seeds = {"quick": 1, "paper": 5}  # noqa: RUF012
    columns = (
        Column(TEST_DB, "test error, equal steps [dB]", ".1f"),
        Column(ratio_name(FORWARD, TASK), "forward time / GradNet-C's"),
        Column(ratio_name(STEP, TASK), "step time / GradNet-C's"),
        Column(memory_name(STEP, TASK), "peak memory of a step [bytes]", ",.0f"),
        Column(exponent_name(FORWARD, FEATURES), "forward ~ d^", ".2f"),
        Column(exponent_name(STEP, FEATURES), "step ~ d^", ".2f"),
    )

    def arms(self, config: EfficiencyConfig) -> list[str]:
        return list(ARMS)

    def run_part(self, config: EfficiencyConfig, arm: str, seed: int, report: Report) -> PartResult:
        learned = [_learn(config, ARMS[arm], budget, seed) for budget in config.budgets]
        for row in learned[-1].history:
            report(row)
        measured = EfficiencyMetrics(
            errors={each.budget: each.test_db for each in learned},
            parameters={each.budget: each.parameters for each in learned},
            costs=_costs(config, ARMS[arm], seed),
        )
        seconds = sum(each.seconds for each in learned)
        return PartResult(None, learned[-1].parameters, seconds, measured.to_metrics(config))

    def facts(self, config: EfficiencyConfig) -> ConvexField:
        return _FIELD

    def sheets(self, config: EfficiencyConfig, run: RunFolder) -> list[Sheet]:
        return sheets_of(EfficiencyResults(config, run))

    def findings(self, config: EfficiencyConfig, run: RunFolder) -> EfficiencyFindings:
        return EfficiencyFindings.of(EfficiencyResults(config, run))

    def pictures(self, config: EfficiencyConfig, run: RunFolder) -> Iterator[Picture]:
        yield from efficiency_pictures.pictures_of(EfficiencyResults(config, run))


@dataclass(frozen=True)
class _Learned:
    """A network of some budget that has learned the task.

    Attributes:
        budget, parameters: at most, and in fact.
        test_db: its error.
        seconds: of the fits with all rates.
        history: of the fit with the best rate.
    """

    budget: int
    parameters: int
    test_db: float
    seconds: float
    history: list[HistoryRow]


def _learn(config: EfficiencyConfig, arm: Arm, budget: int, seed: int) -> _Learned:
    """Train the widest network within a budget, with the rate that is best by validation data."""
    generator = torch.Generator().manual_seed(1000 + seed)
    train = _FIELD.sample(config.samples, generator)
    validation = _FIELD.sample(config.validation_samples, generator)

    def fresh() -> nn.Module:
        net = arm.build(_FIELD.features, budget)
        start_from_data(net, *train)
        return net

    settings = FitSettings(steps=config.steps, batch_size=config.batch_size, schedule="constant")
    net, result, tried = fit_best_rate(fresh, train, validation, rates=config.rates, seed=seed, settings=settings)
    x = unit_grid(TEST_SIDE).flatten(0, 1)  # (points, 2)
    test_db = decibels(error(net, x, _FIELD.gradient(x)))
    seconds = sum(record.seconds for record in tried)
    return _Learned(budget, count_parameters(net), test_db, seconds, result.history)


def _costs(config: EfficiencyConfig, arm: Arm, seed: int) -> dict[tuple[Mode, Size], Cost]:
    """Time and memory of an arm for every mode and size.

    All calls are timed in one sequence of turns, each call of the arm beside the same call of the reference, so that a
    disturbance of the machine meets both.
    """
    torch.manual_seed(seed)
    own_calls: dict[tuple[Mode, Size], Call] = {}
    reference_calls: dict[tuple[Mode, Size], Call] = {}
    memory: dict[tuple[Mode, Size], int] = {}
    for size in config.sizes():
        x = torch.rand(size.batch, size.features)
        for mode in MODES:
            own_calls[mode, size] = _call(mode, arm, size, x)
            reference_calls[mode, size] = _call(mode, REFERENCE, size, x)
            memory[mode, size] = peak_bytes(_call(mode, arm, size, x))
    turns: list[Call] = []
    for key, call in own_calls.items():
        turns += [call, reference_calls[key]]
    times = interleaved_times(turns, config.repeats, at_least=config.at_least, clock=time.process_time)
    own_times = times[0::2]
    reference_times = times[1::2]
    costs: dict[tuple[Mode, Size], Cost] = {}
    for key, own, reference in zip(own_calls, own_times, reference_times, strict=True):
        costs[key] = Cost(own, reference, memory[key])
    return costs


def _call(mode: Mode, arm: Arm, size: Size, x: Tensor) -> Call:
    return mode.call(arm.build(size.features, size.parameters), x)
