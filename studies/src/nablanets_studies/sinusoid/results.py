"""The errors of a run of a sinusoid study, by method, and what tables and sentences of all these studies need of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nablanets.fitting import HistoryRow
from nablanets_studies.machinery.comparison import Comparison, compare
from nablanets_studies.machinery.metrics import measured
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.sinusoid.arms import SinusoidConfig
from nablanets_studies.sinusoid.metrics import SinusoidMetrics

#: Errors in the order of seeds, by method.
Errors = dict[str, list[float]]

#: Of a run, where errors during training are reported.
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
#: The head of a table of comparisons; see :func:`comparison_cells`.
COMPARISON = ("ratio of means", "of medians", "difference [95 %]", "effect d_z", "p (t)", "p (Wilcoxon)")
#: Tests over fewer seeds than this are not made.
LEAST_SEEDS = 3
#: An arm is still getting better if the second half of training takes its error below this part of what it was.
_CONVERGED = 0.9


class SinusoidResults:
    """The errors of a run; methods of which seeds are missing are left out everywhere."""

    def __init__(self, config: SinusoidConfig, run: RunFolder) -> None:
        self.config = config
        self._measured = sorted(measured(run.rows(), SinusoidMetrics), key=lambda each: each.seed)
        self._curves = sorted(run.histories().items(), key=lambda item: item[0][1])

    def test_errors(self, d: int) -> Errors:
        """Test errors at a frequency."""
        return self._errors(d, lambda metrics: metrics.test_mse)

    def validation_errors(self, d: int) -> Errors:
        """Validation errors of the best weights at a frequency."""
        return self._errors(d, lambda metrics: metrics.validation_mse)

    def _errors(self, d: int, value: Callable[[SinusoidMetrics], float]) -> Errors:
        arms = self.config.arms()
        errors: Errors = {method: [] for method in self.config.methods_at(d)}
        for each in self._measured:
            arm = arms[each.arm]
            if arm.frequency == d:
                errors[arm.method].append(value(each.metrics))
        return _complete(errors)

    def errors_after(self, d: int, share: float) -> Errors:
        """Validation errors of the best weights so far when a share of the run is over."""
        arms = self.config.arms()
        errors: Errors = {method: [] for method in self.config.methods_at(d)}
        for (name, _), rows in self._curves:
            arm = arms[name]
            if arm.frequency == d:
                errors[arm.method].append(_least_error(rows, share))
        return _complete(errors)


def _least_error(rows: Sequence[HistoryRow], share: float) -> float:
    count = max(1, math.ceil(share * len(rows)))
    return min(row.validation_error for row in rows[:count])


def _complete(errors: Errors) -> Errors:
    most = max(map(len, errors.values()), default=0)
    return {method: values for method, values in errors.items() if values and len(values) == most}


def mean_error(errors: Errors, method: str) -> float:
    """The mean over seeds."""
    return float(np.mean(errors[method]))


def lowest_mean(errors: Errors, methods: Sequence[str]) -> str | None:
    """The method of the least mean error among those that have errors."""
    there = [method for method in methods if method in errors]
    return min(there, key=lambda method: mean_error(errors, method), default=None)


def compared(errors: Errors, reference: str, method: str) -> Comparison:
    """A method with a reference, seed by seed."""
    return compare(errors[reference], {method: errors[method]})[method]


def against(errors: Errors, reference: str) -> Mapping[str, Comparison]:
    """Every other method with a reference; nothing if there is none, or too few seeds."""
    others = {method: values for method, values in errors.items() if method != reference}
    if reference not in errors or len(errors[reference]) < LEAST_SEEDS or not others:
        return {}
    return compare(errors[reference], others)


class Ratio(NamedTuple):
    """A method, or a change of one, and a ratio of errors."""

    name: str
    ratio: float


class Convergence(NamedTuple):
    """The methods that were still getting better in the second half of training: their errors, end over middle."""

    d: int
    moving: list[Ratio]


def convergence(results: SinusoidResults, d: int) -> Convergence | None:
    """Which methods had not converged; None without learning curves."""
    middle = results.errors_after(d, 0.5)
    end = results.errors_after(d, 1.0)
    ratios = [Ratio(m, mean_error(end, m) / mean_error(middle, m)) for m in end if m in middle]
    if not ratios:
        return None
    return Convergence(d, [each for each in ratios if each.ratio < _CONVERGED])


def comparison_cells(c: Comparison) -> list[str]:
    """The cells of a table of comparisons under :data:`COMPARISON`."""
    low, high = c.interval
    return [
        f"{c.ratio:.3f}",
        f"{c.median_ratio:.3f}",
        f"{c.difference:+.4f} [{low:+.4f}, {high:+.4f}]",
        f"{c.effect:+.2f}",
        f"{c.p_t:.1g}",
        f"{c.p_wilcoxon:.1g}",
    ]
