"""Paired comparisons of the arms of a study, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from nablanets.errors import InvalidInputError

K = TypeVar("K")


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
    if count < 3 or any(len(values) != count for values in arms.values()):
        sizes = {name: len(values) for name, values in arms.items()}
        raise InvalidInputError(f"compare: expected at least three pairs per arm, got {count} values and {sizes}.")
    base = np.asarray(reference)
    differences = {name: np.asarray(values) - base for name, values in arms.items()}
    p_t = holm({name: _p_value(lambda d: stats.ttest_1samp(d, 0), d) for name, d in differences.items()})
    p_wilcoxon = holm({name: _p_value(stats.wilcoxon, d) for name, d in differences.items()})
    found = {}
    for name, d in differences.items():
        mean, deviation = float(d.mean()), float(d.std(ddof=1))
        half = float(stats.t.ppf(0.975, count - 1)) * deviation / count**0.5
        effect = mean / deviation if deviation else math.copysign(math.inf, mean) if mean else 0.0
        ratios = 1 + mean / float(base.mean()), float(np.median(base + d) / np.median(base))
        found[name] = Comparison(*ratios, mean, (mean - half, mean + half), effect, p_t[name], p_wilcoxon[name])
    return found


def _p_value(test: Callable[[np.ndarray], Any], difference: np.ndarray) -> float:
    return float(test(difference).pvalue) if difference.any() else 1.0


def holm(p: Mapping[K, float]) -> dict[K, float]:
    """p values adjusted for being several, by Holm's step-down method.

    >>> holm({"a": 0.01, "b": 0.5, "c": 0.02})
    {'a': 0.03, 'c': 0.04, 'b': 0.5}
    """
    adjusted: dict[K, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = largest
    return adjusted
