"""What follows from a run of the efficiency study; the template efficiency.md.j2 says it in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from nablanets_studies.fields.efficiency_arms import AXES, FEATURES, MODES, STEP, Axis, Mode
from nablanets_studies.fields.efficiency_results import EfficiencyResults
from nablanets_studies.fields.efficiency_sheets import large_range, time_exponent
from nablanets_studies.machinery.findings import Lead, Summary, lowest


class Noise(NamedTuple):
    """By how much, as a fraction, equal networks differ in a mode."""

    mode: Mode
    fraction: float


class Ranking(NamedTuple):
    """Arms by error, the lowest first; the best of ours against the best peer."""

    order: list[tuple[str, Summary]]
    best: str
    peer: str
    lead: Lead


class Winner(NamedTuple):
    """The arm of the lowest error at a budget of parameters."""

    arm: str
    budget: int


class RelativeTime(NamedTuple):
    """The time of an arm relative to a peer's: at the first and last d, and the d at which it is certainly not equal."""

    peer: str
    first: float
    last: float
    slower: list[str]
    faster: list[str]


class TimesOf(NamedTuple):
    """A mode of one of our arms beside all peers."""

    arm: str
    mode: Mode
    peers: list[RelativeTime]


class RelativeMemory(NamedTuple):
    """The memory of a step relative to a peer's, at the first and last d."""

    peer: str
    first: float
    last: float


class MemoryOf(NamedTuple):
    """The memory of a step of one of our arms beside all peers."""

    arm: str
    peers: list[RelativeMemory]


class Extreme(NamedTuple):
    """An arm and its exponent."""

    arm: str
    value: Summary


class Exponents(NamedTuple):
    """How a mode grows: the arms of the least and the largest exponent, and our arms."""

    mode: Mode
    low: Extreme
    high: Extreme
    ours: list[Extreme]


class Growth(NamedTuple):
    """How all modes grow along an axis over a range of sizes; no exponents if there are fewer than two sizes in it."""

    axis: Axis
    first: int
    last: int
    exponents: list[Exponents]


@dataclass(frozen=True)
class EfficiencyFindings:
    """Accuracy per step, second and parameter, costs beside the peers, and growth.

    Attributes:
        compared: whether there are arms of ours and peers; what compares them is empty if not.
        noise: of the timing, by mode.
        equal_steps, equal_time: rankings; None if ours or peers had no time for a validation.
        winners, slopes: by budget; dB per doubling of the parameters, the best first.
        times, memory: of our arms.
        growth: by axis.
        first, last: the ends of the range of d.
    """

    compared: bool
    noise: list[Noise]
    equal_steps: Ranking | None
    equal_time: Ranking | None
    winners: list[Winner]
    slopes: list[tuple[str, float]]
    times: list[TimesOf]
    memory: list[MemoryOf]
    growth: list[Growth]
    first: int
    last: int

    @classmethod
    def of(cls, results: EfficiencyResults) -> EfficiencyFindings:
        slopes = [(arm, results.per_doubling(arm)) for arm in results.arms]
        winners = [Winner(lowest(results.test_error(budget)), budget) for budget in results.config.budgets]
        return cls(
            compared=bool(results.ours and results.peers),
            noise=[Noise(mode, math.expm1(results.noise(mode))) for mode in MODES],
            equal_steps=_ranking(results, results.test_error()),
            equal_time=_ranking(results, results.equal_time()),
            winners=winners,
            slopes=sorted(slopes, key=lambda pair: pair[1]),
            times=[_times(results, arm, mode) for arm in results.ours for mode in MODES],
            memory=[_memory(results, arm) for arm in results.ours],
            growth=[_growth(results, axis) for axis in AXES],
            first=results.config.features[0],
            last=results.config.features[-1],
        )


def _ranking(results: EfficiencyResults, errors: Mapping[str, Summary]) -> Ranking | None:
    ours = {arm: errors[arm] for arm in results.ours if arm in errors}
    theirs = {arm: errors[arm] for arm in results.peers if arm in errors}
    if not ours or not theirs:
        return None
    best = lowest(ours)
    peer = lowest(theirs)
    order = sorted(errors.items(), key=lambda pair: pair[1].mean)
    return Ranking(order, best, peer, Lead.of(ours[best], theirs[peer]))


def _times(results: EfficiencyResults, arm: str, mode: Mode) -> TimesOf:
    """Where an arm is faster and slower than each peer, over all d, beyond what timing can tell."""
    noise = results.noise(mode)
    sizes = results.config.growth(FEATURES)
    peers = []
    for peer in results.peers:
        ratios = {
            size.value: results.ratio(arm, mode, size).mean / results.ratio(peer, mode, size).mean for size in sizes
        }
        slower = [str(d) for d, ratio in ratios.items() if math.log(ratio) > noise]
        faster = [str(d) for d, ratio in ratios.items() if -math.log(ratio) > noise]
        peers.append(RelativeTime(peer, ratios[sizes[0].value], ratios[sizes[-1].value], slower, faster))
    return TimesOf(arm, mode, peers)


def _memory(results: EfficiencyResults, arm: str) -> MemoryOf:
    sizes = results.config.growth(FEATURES)
    ends = (sizes[0], sizes[-1])
    peers = []
    for peer in results.peers:
        first, last = (results.memory(arm, STEP, size) / results.memory(peer, STEP, size) for size in ends)
        peers.append(RelativeMemory(peer, first, last))
    return MemoryOf(arm, peers)


def _growth(results: EfficiencyResults, axis: Axis) -> Growth:
    first, last = large_range(results, axis)
    exponents = []
    for mode in MODES:
        found = {arm: time_exponent(results, arm, mode, axis) for arm in results.arms}
        values = [Extreme(arm, value) for arm, value in found.items() if value is not None]
        if values:
            low = min(values, key=lambda each: each.value.mean)
            high = max(values, key=lambda each: each.value.mean)
            ours = [each for each in values if each.arm in results.ours]
            exponents.append(Exponents(mode, low, high, ours))
    return Growth(axis, first, last, exponents)
