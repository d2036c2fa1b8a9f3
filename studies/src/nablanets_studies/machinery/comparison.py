"""Paired comparisons of the arms of a study, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from nablanets.errors import InvalidInputError

K = TypeVar("K")
#: A deviation of fewer differences than this says nothing.
_LEAST_PAIRS = 3
#: Of Student's distribution, for an interval of 95 % confidence.
_UPPER_QUANTILE = 0.975


class Comparison(NamedTuple):
    """How the errors of an arm differ from those of a reference.

    ``ratio`` and ``median_ratio`` are those of the means and medians; ``interval`` is that of 95 % confidence for the
    mean difference; ``effect`` the mean difference in units of its standard deviation over seeds (Cohen's d_z); the p
    values are those of the paired t-test and of Wilcoxon's signed rank test, by Holm's method for all arms of the
    comparison.
    """

    ratio: float
    median_ratio: float
    difference: float
    interval: tuple[float, float]
    effect: float
    p_t: float
    p_wilcoxon: float


def compare(reference: Sequence[float], arms: Mapping[str, Sequence[float]]) -> dict[str, Comparison]:
    """Each arm against a reference, values with the same index belonging together.

    Raises:
        InvalidInputError: fewer than three values, or not as many as in the reference.

    >>> found = compare([1.0, 2.0, 3.0, 4.0], {"less": [0.5, 1.4, 2.6, 3.5], "same": [1.1, 1.9, 3.1, 3.9]})
    >>> found["less"].p_t < 0.01, found["same"].p_t, round(found["less"].ratio, 2)
    (True, 1.0, 0.8)
    """
    count = len(reference)
    if count < _LEAST_PAIRS or any(len(values) != count for values in arms.values()):
        sizes = {name: len(values) for name, values in arms.items()}
        raise InvalidInputError(f"compare: expected at least three pairs per arm, got {count} values and {sizes}.")
    base = np.asarray(reference)
    differences = {name: np.asarray(values) - base for name, values in arms.items()}
    p_t = holm({name: _p_value(_t_test, difference) for name, difference in differences.items()})
    p_wilcoxon = holm({name: _p_value(stats.wilcoxon, difference) for name, difference in differences.items()})
    found = {}
    for name, difference in differences.items():
        mean = float(difference.mean())
        deviation = float(difference.std(ddof=1))
        half_width = float(stats.t.ppf(_UPPER_QUANTILE, count - 1)) * deviation / count**0.5
        found[name] = Comparison(
            ratio=1 + mean / float(base.mean()),
            median_ratio=float(np.median(base + difference) / np.median(base)),
            difference=mean,
            interval=(mean - half_width, mean + half_width),
            effect=_effect(mean, deviation),
            p_t=p_t[name],
            p_wilcoxon=p_wilcoxon[name],
        )
    return found


def _effect(mean: float, deviation: float) -> float:
    """A mean in units of a deviation; infinite for a deviation of zero, unless the mean is zero as well."""
    if deviation:
        return mean / deviation
    return math.copysign(math.inf, mean) if mean else 0.0


def _t_test(difference: np.ndarray) -> Any:
    return stats.ttest_1samp(difference, 0)


def _p_value(test: Callable[[np.ndarray], Any], difference: np.ndarray) -> float:
    """Of a test whether the differences are zero; 1 if they all are, where tests are not defined."""
    return float(test(difference).pvalue) if difference.any() else 1.0


def holm(p: Mapping[K, float]) -> dict[K, float]:
    """p values adjusted for being several, by Holm's step-down method.

    >>> holm({"a": 0.01, "b": 0.5, "c": 0.02})
    {'a': 0.03, 'c': 0.04, 'b': 0.5}
    """
    adjusted: dict[K, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        # The smallest p is multiplied by the number of tests, the next by one less; never below one that came before.
        scaled = min(1.0, (len(p) - rank) * p[name])
        largest = max(largest, scaled)
        adjusted[name] = largest
    return adjusted
