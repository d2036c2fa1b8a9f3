"""What the efficiency study measures of a network, and the numbers of results.json that keep it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nablanets_studies.fields.efficiency_arms import AXES, MODES, Axis, EfficiencyConfig, Mode, Size
from nablanets_studies.machinery.costs import growth_exponent

#: Names of numbers in results.json that are columns of the results table.
TEST_DB = "db"


@dataclass(frozen=True)
class Cost:
    """What a call costs at one size.

    Attributes:
        seconds: of the network.
        reference_seconds: of the reference that took turns with it.
        memory: the most bytes that the call holds at a time.
    """

    seconds: float
    reference_seconds: float
    memory: float

    @property
    def ratio(self) -> float:
        """Of the times: what a disturbance of the machine leaves as it is."""
        return self.seconds / self.reference_seconds


@dataclass(frozen=True)
class EfficiencyMetrics:
    """Accuracy by budget of parameters, and costs by mode and size.

    Attributes:
        errors: test error in dB by budget.
        parameters: how many the network has, by budget.
        costs: by mode and size.
    """

    errors: Mapping[int, float]
    parameters: Mapping[int, float]
    costs: Mapping[tuple[Mode, Size], Cost]

    def time_exponent(self, config: EfficiencyConfig, mode: Mode, axis: Axis) -> float | None:
        """The p of time ~ size^p over the large sizes of an axis; None for fewer than two of them."""
        return self._exponent({s: self.costs[mode, s].seconds for s in config.large(axis)})

    def memory_exponent(self, config: EfficiencyConfig, mode: Mode, axis: Axis) -> float | None:
        """The same of the peak memory."""
        return self._exponent({s: self.costs[mode, s].memory for s in config.large(axis)})

    @staticmethod
    def _exponent(values: Mapping[Size, float]) -> float | None:
        if len(values) < 2:
            return None
        return growth_exponent([size.value for size in values], list(values.values()))

    def to_metrics(self, config: EfficiencyConfig) -> dict[str, float]:
        """Numbers by name for results.json, with ratios and exponents for readers of that file."""
        metrics: dict[str, float] = {}
        for budget in config.budgets:
            metrics[_error_name(budget)] = self.errors[budget]
            metrics[_parameters_name(budget)] = self.parameters[budget]
        metrics[TEST_DB] = self.errors[config.budgets[-1]]
        for (mode, size), cost in self.costs.items():
            metrics[memory_name(mode, size.name)] = cost.memory
            metrics[_seconds_name(mode, size.name)] = cost.seconds
            metrics[_reference_name(mode, size.name)] = cost.reference_seconds
            metrics[ratio_name(mode, size.name)] = cost.ratio
        for axis in AXES:
            for mode in MODES:
                exponents = {
                    exponent_name(mode, axis): self.time_exponent(config, mode, axis),
                    _memory_exponent_name(mode, axis): self.memory_exponent(config, mode, axis),
                }
                metrics |= {name: value for name, value in exponents.items() if value is not None}
        return metrics

    @classmethod
    def from_metrics(cls, config: EfficiencyConfig, metrics: Mapping[str, float]) -> EfficiencyMetrics:
        """What was written; the configuration says which budgets and sizes there are."""
        costs: dict[tuple[Mode, Size], Cost] = {}
        for size in config.sizes():
            for mode in MODES:
                costs[mode, size] = Cost(
                    seconds=metrics[_seconds_name(mode, size.name)],
                    reference_seconds=metrics[_reference_name(mode, size.name)],
                    memory=metrics[memory_name(mode, size.name)],
                )
        errors = {budget: metrics[_error_name(budget)] for budget in config.budgets}
        parameters = {budget: metrics[_parameters_name(budget)] for budget in config.budgets}
        return cls(errors, parameters, costs)


def ratio_name(mode: Mode, size: str) -> str:
    """The time of a call, relative to the reference's."""
    return f"{mode.name}_{size}_ratio"


def exponent_name(mode: Mode, axis: Axis) -> str:
    """How the time of a call grows."""
    return f"{mode.name}_{axis.name}_exponent"


def memory_name(mode: Mode, size: str) -> str:
    """The peak memory of a call."""
    return f"memory_{mode.name}_{size}"


def _memory_exponent_name(mode: Mode, axis: Axis) -> str:
    return f"memory_{mode.name}_{axis.name}_exponent"


def _seconds_name(mode: Mode, size: str) -> str:
    return f"{mode.name}_{size}"


def _reference_name(mode: Mode, size: str) -> str:
    return f"{mode.name}_{size}_reference"


def _error_name(budget: int) -> str:
    return f"db_{budget}"


def _parameters_name(budget: int) -> str:
    return f"parameters_{budget}"
