"""Sentences that follow from numbers: what the conclusions of a report are written with."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nablanets_studies.machinery.base import Column, Sheet
from nablanets_studies.machinery.store import Row


class Summary(NamedTuple):
    """Mean and standard deviation of a metric over seeds (zero deviation for one seed)."""

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))

    def text(self, spec: str = ".1f") -> str:
        return f"{self.mean:{spec}}" + (f" ± {self.deviation:{spec}}" if self.seeds > 1 else "")


def summaries(rows: Iterable[Row], metric: str) -> dict[str, Summary]:
    """The metric by arm, for the arms that have it, in the order of the rows."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if metric in row.metrics:
            values.setdefault(row.arm, []).append(row.metrics[metric])
    return {arm: Summary.of(group) for arm, group in values.items()}


def lowest(values: Mapping[str, Summary]) -> str:
    """The arm of the least mean."""
    return min(values, key=lambda arm: values[arm].mean)


def lead(ours: Summary, theirs: Summary, unit: str) -> str:
    """By how much the first is lower than the second, or higher, and whether that exceeds the spread over seeds.

    >>> lead(Summary(-50.0, 1.0, 5), Summary(-40.0, 1.0, 5), "dB")
    'ahead by 10.0 dB, more than the spread over seeds'
    >>> lead(Summary(-40.0, 3.0, 5), Summary(-41.0, 1.0, 5), "dB")
    'behind by 1.0 dB, within the spread over seeds'
    """
    gap = theirs.mean - ours.mean
    noise = math.hypot(ours.deviation, theirs.deviation)
    known = min(ours.seeds, theirs.seeds) > 1
    remark = "more than the spread over seeds" if abs(gap) > noise else "within the spread over seeds"
    return f"{'ahead' if gap > 0 else 'behind'} by {abs(gap):.1f} {unit}, {remark if known else 'from one seed'}"


def listing(names: Sequence[str], none: str = "none") -> str:
    """Names with commas, or the word for no names."""
    return ", ".join(names) if names else none


def sheet(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Sheet:
    """A table of metrics by arm: mean and standard deviation over seeds, a dash where an arm has none."""
    found = [summaries(rows, column.metric) for column in columns]
    arms = dict.fromkeys(row.arm for row in rows)
    lines = [
        [arm, *(values[arm].text(c.spec) if arm in values else "-" for c, values in zip(columns, found, strict=True))]
        for arm in arms
    ]
    return Sheet(title, ("arm", *(column.title for column in columns)), lines)
