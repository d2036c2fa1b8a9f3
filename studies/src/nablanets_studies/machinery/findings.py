"""Numbers that follow from the rows of a run: summaries over seeds, leads of one arm over another, tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nablanets_studies.machinery.base import Column, Sheet
from nablanets_studies.machinery.prose import listing
from nablanets_studies.machinery.store import Row

__all__ = ["Lead", "Summary", "listing", "lowest", "sheet", "summaries"]


class Summary(NamedTuple):
    """Mean and standard deviation of a metric over seeds (zero deviation for one seed)."""

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), deviation, len(values))

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


class Lead(NamedTuple):
    """By how much one summary is lower than another, and whether that exceeds the spread over seeds.

    The macro ``lead`` of the template sentences.md.j2 says it in words.

    Attributes:
        gap: mean of theirs minus mean of ours; positive if ours is lower.
        spread: the standard deviations of both, as of independent numbers.
        several_seeds: whether both have one.

    >>> Lead.of(Summary(-50.0, 1.0, 5), Summary(-40.0, 1.0, 5)).exceeds_spread
    True
    """

    gap: float
    spread: float
    several_seeds: bool

    @classmethod
    def of(cls, ours: Summary, theirs: Summary) -> Lead:
        spread = math.hypot(ours.deviation, theirs.deviation)
        several_seeds = min(ours.seeds, theirs.seeds) > 1
        return cls(theirs.mean - ours.mean, spread, several_seeds)

    @property
    def exceeds_spread(self) -> bool:
        return abs(self.gap) > self.spread


def sheet(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> Sheet:
    """A table of metrics by arm: mean and standard deviation over seeds, a dash where an arm has none."""
    found = [summaries(rows, column.metric) for column in columns]
    lines = []
    for arm in dict.fromkeys(row.arm for row in rows):
        cells = [arm]
        for column, values in zip(columns, found, strict=True):
            cells.append(values[arm].text(column.spec) if arm in values else "-")
        lines.append(cells)
    return Sheet(title, ("arm", *(column.title for column in columns)), lines)
