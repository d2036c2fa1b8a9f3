"""The numbers of a run of the efficiency study that tables, pictures and sentences are made from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np

from nablanets.fitting import HistoryRow, decibels
from nablanets_studies.fields.efficiency_arms import ARMS, AXES, REFERENCE, STEP, EfficiencyConfig, Mode, Size
from nablanets_studies.fields.efficiency_metrics import Cost, EfficiencyMetrics
from nablanets_studies.machinery.findings import Summary
from nablanets_studies.machinery.store import RunFolder


class EfficiencyResults:
    """The measurements of a run by arm, and what is computed from several of them.

    Attributes:
        config: of the run.
        arms: names of the arms that have run; ``ours`` and ``peers`` are the gradient networks and the others of them.
    """

    def __init__(self, config: EfficiencyConfig, run: RunFolder) -> None:
        self.config = config
        self._measured: dict[str, list[EfficiencyMetrics]] = {}
        self._curves: dict[str, list[list[HistoryRow]]] = {}
        curves = run.histories()
        for row in run.rows():
            measured = EfficiencyMetrics.from_metrics(config, row.metrics)
            self._measured.setdefault(row.arm, []).append(measured)
            self._curves.setdefault(row.arm, []).append(curves.get((row.arm, row.seed), []))
        self.arms = list(self._measured)
        self.ours = [arm for arm in self.arms if ARMS[arm].ours]
        self.peers = [arm for arm in self.arms if not ARMS[arm].ours]

    def curves(self, arm: str) -> list[list[HistoryRow]]:
        """The learning curves of an arm, one for each seed."""
        return self._curves[arm]

    def summary(self, arm: str, value: Callable[[EfficiencyMetrics], float | None]) -> Summary | None:
        """A value over the seeds of an arm; None where it has none."""
        found = [value(each) for each in self._measured[arm]]
        numbers = [number for number in found if number is not None]
        return Summary.of(numbers) if numbers else None

    def test_error(self, budget: int | None = None) -> dict[str, Summary]:
        """Test error in dB by arm, at a budget or at the last."""
        chosen = self.config.budgets[-1] if budget is None else budget
        return {arm: Summary.of([m.errors[chosen] for m in each]) for arm, each in self._measured.items()}

    def ratio(self, arm: str, mode: Mode, size: Size) -> Summary:
        """The time of an arm relative to that of the reference."""
        return Summary.of([m.costs[mode, size].ratio for m in self._measured[arm]])

    def memory(self, arm: str, mode: Mode, size: Size) -> float:
        """The mean peak memory of an arm in bytes."""
        return statistics.fmean(m.costs[mode, size].memory for m in self._measured[arm])

    def seconds(self, arm: str, mode: Mode, size: Size) -> float:
        """The time of an arm: its ratio to the reference, times the median time of the reference over all parts."""
        everything: list[Cost] = [m.costs[mode, size] for each in self._measured.values() for m in each]
        reference = statistics.median(cost.reference_seconds for cost in everything)
        return self.ratio(arm, mode, size).mean * reference

    def noise(self, mode: Mode) -> float:
        """The largest |log ratio| of the reference to another network of its kind, over all sizes of growth."""
        if REFERENCE.name not in self.arms:
            return math.nan
        sizes = [size for axis in AXES for size in self.config.growth(axis)]
        ratios = [self.ratio(REFERENCE.name, mode, size).mean for size in sizes]
        return max(abs(math.log(ratio)) for ratio in ratios)

    def equal_time(self, fraction: float = 1.0) -> dict[str, Summary]:
        """Validation error in dB by arm after a fraction of the time in which the fastest arm makes all its steps.

        An arm that has not come to a validation by then is left out.
        """
        per_step = {arm: self.seconds(arm, STEP, self.config.task) for arm in self.arms}
        limit = fraction * self.config.steps * min(per_step.values())
        reached: dict[str, Summary] = {}
        for arm in self.arms:
            best: list[float] = []
            for curve in self._curves[arm]:
                errors = [row.validation_error for row in curve if row.step * per_step[arm] <= limit]
                if errors:
                    best.append(decibels(min(errors)))
            if best:
                reached[arm] = Summary.of(best)
        return reached

    def per_doubling(self, arm: str) -> float:
        """dB gained with each doubling of the parameters, by regression over the budgets; NaN for one budget."""
        budgets = self.config.budgets
        if len(budgets) < 2:
            return math.nan
        parts = self._measured[arm]
        sizes = [statistics.fmean(m.parameters[budget] for m in parts) for budget in budgets]
        errors = [statistics.fmean(m.errors[budget] for m in parts) for budget in budgets]
        slope, _ = np.polyfit(np.log2(sizes), errors, 1)
        return float(slope)
