"""The numbers of a run of the activation study that tables, pictures and sentences are made from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from nablanets_studies.fields.activation_arms import ARMS, GRADIENT_ARMS, KINDS
from nablanets_studies.fields.activation_metrics import ActivationMetrics, TargetMetrics
from nablanets_studies.machinery.findings import Summary
from nablanets_studies.machinery.metrics import measured, summaries_of
from nablanets_studies.machinery.store import Row


class ActivationResults:
    """The measurements of a run.

    Attributes:
        targets: names of the fields.
        arms: names of the arms that have run.
    """

    def __init__(self, targets: Sequence[str], rows: Sequence[Row]) -> None:
        self.targets = targets
        self.results = measured(rows, ActivationMetrics)
        self.arms = list(dict.fromkeys(result.arm for result in self.results))

    def summaries(self, target: str, value: Callable[[TargetMetrics], float | None]) -> dict[str, Summary]:
        """A value on a target, by arm."""
        return summaries_of(self.results, lambda metrics: value(metrics.targets[target]))

    def errors(self, target: str) -> dict[str, Summary]:
        """Test errors in dB by arm."""
        return self.summaries(target, lambda m: m.db)

    def away_errors(self, target: str) -> dict[str, Summary]:
        """Those away from the kinks; empty for a smooth target."""
        return self.summaries(target, lambda m: m.away_db)

    def failures(self) -> dict[str, Summary]:
        """Shares of failed fits over all targets, by arm."""
        return summaries_of(self.results, lambda metrics: metrics.failures)

    def worst_errors(self, target: str) -> dict[str, float]:
        """The error of the worst seed, by arm."""
        return self.largest(lambda metrics: metrics.targets[target].db)

    def largest(self, value: Callable[[ActivationMetrics], float]) -> dict[str, float]:
        """The largest value over seeds, by arm."""
        found = dict.fromkeys(self.arms, -math.inf)
        for result in self.results:
            found[result.arm] = max(found[result.arm], value(result.metrics))
        return found

    def kind_medians(self, target: str) -> dict[str, float]:
        """The median, over the gradient networks of each kind of activation, of their mean errors."""
        errors = ours(self.errors(target))
        medians: dict[str, float] = {}
        for kind in KINDS:
            group = [value.mean for arm, value in errors.items() if GRADIENT_ARMS[arm].kind == kind]
            if group:
                medians[kind] = statistics.median(group)
        return medians


def ours(values: dict[str, Summary]) -> dict[str, Summary]:
    """Those of the gradient networks."""
    return {arm: value for arm, value in values.items() if arm in GRADIENT_ARMS}


def baselines(values: dict[str, Summary]) -> dict[str, Summary]:
    """Those of the arms that gradient networks are compared with."""
    return {arm: value for arm, value in values.items() if ARMS[arm].baseline}
