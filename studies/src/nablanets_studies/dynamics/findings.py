"""What the pages on dynamics say and show: comparisons within a structure, errors over time, orbits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

from nablanets_studies.dynamics.arms import Arm
from nablanets_studies.dynamics.metrics import WINDOWS, OrbitMetrics, follow
from nablanets_studies.machinery.base import Picture
from nablanets_studies.machinery.findings import Lead, Summary
from nablanets_studies.machinery.metrics import Best, Measured, summaries_of
from nablanets_studies.machinery.plots import panels

OrbitResults = Sequence[Measured[OrbitMetrics]]

#: What the paper claims for the gradient error, in decibels.
GOAL_DB = 11.0
#: Our aim for the trajectories: how many times smaller their error should be.
GOAL_RATIO = 5.0
#: Errors below this are drawn as this, on a logarithmic axis.
_FLOOR = 1e-12


@dataclass(frozen=True)
class GroupComparison:
    """The best of ours against the best baseline, by gradient error (dB) and by trajectory error."""

    title: str
    our_gradient: Best
    their_gradient: Best
    our_distance: Best
    their_distance: Best
    goal_db: float = GOAL_DB
    goal_ratio: float = GOAL_RATIO

    @property
    def gap(self) -> float:
        """By how many dB our gradient error is lower."""
        return self.their_gradient.value.mean - self.our_gradient.value.mean

    @property
    def lead(self) -> Lead:
        """The same, and whether it exceeds the spread over seeds."""
        return Lead.of(self.our_gradient.value, self.their_gradient.value)

    @property
    def ratio(self) -> float:
        """How many times smaller our trajectory error is."""
        return self.their_distance.value.mean / self.our_distance.value.mean

    @property
    def reached(self) -> bool:
        """Whether both aims are met."""
        return self.gap >= self.goal_db and self.ratio >= self.goal_ratio


def compare_group(
    title: str, results: OrbitResults, ours: Iterable[str], theirs: Iterable[str]
) -> GroupComparison | None:
    """The best of our arms against the best baseline; None if there is none of either."""
    gradient = summaries_of(results, lambda metrics: metrics.gradient_db)
    distance = summaries_of(results, lambda metrics: metrics.trajectory)
    ours = list(ours)
    theirs = list(theirs)
    our_gradient = _of_arms(gradient, ours)
    their_gradient = _of_arms(gradient, theirs)
    our_distance = _of_arms(distance, ours)
    their_distance = _of_arms(distance, theirs)
    if not (our_gradient and their_gradient and our_distance and their_distance):
        return None
    return GroupComparison(
        title,
        our_gradient=Best.of(our_gradient),
        their_gradient=Best.of(their_gradient),
        our_distance=Best.of(our_distance),
        their_distance=Best.of(their_distance),
    )


def compare_sides(title: str, results: OrbitResults, arms: Mapping[str, Arm]) -> GroupComparison | None:
    """As :func:`compare_group`, of arms by the name that they have in the results."""
    ours = [name for name, arm in arms.items() if arm.ours]
    theirs = [name for name, arm in arms.items() if not arm.ours]
    return compare_group(title, results, ours, theirs)


def _of_arms(values: Mapping[str, Summary], arms: Sequence[str]) -> dict[str, Summary]:
    return {arm: values[arm] for arm in arms if arm in values}


def distance_picture(results: OrbitResults, arms: Sequence[str], times: Sequence[float]) -> Picture:
    """Distance from the truth by time: geometric mean over seeds with the band of 95 % confidence for it."""
    curves: dict[str, list[tuple[float, ...]]] = {}
    for arm in arms:
        # All start at the true state, where the distance is zero.
        curves[arm] = [result.metrics.distances[1:] for result in results if result.arm == arm]
    picture = _bands(curves, np.asarray(times[1:]), "time", "distance of the positions")
    caption = "Distance from the true positions: geometric mean over seeds, 95 % confidence band."
    return Picture("distances", caption, picture)


def window_picture(results: OrbitResults, arms: Sequence[str], length: float, unit: str) -> Picture:
    """The largest change of the true energy in each tenth of a long run."""
    curves: dict[str, list[tuple[float, ...]]] = {}
    for arm in arms:
        found = [result.metrics.long.windows for result in results if result.arm == arm]
        finished = [windows for windows in found if windows]
        if finished:
            curves[arm] = finished
    ends = np.arange(1, WINDOWS + 1) * length / WINDOWS
    caption = "Largest relative change of the true energy in each tenth of a long run; level curves: no drift."
    return Picture("energy", caption, _bands(curves, ends, unit, "relative change of the energy"))


def _bands(curves: Mapping[str, Sequence[Sequence[float]]], x: np.ndarray, xlabel: str, ylabel: str) -> Figure:
    """Curves of several seeds by arm: the mean of their logarithms, with the confidence band of Student's t."""
    figure, (axes,) = panels(1, 1, width=8, height=5)
    for k, (arm, values) in enumerate(curves.items()):
        level = np.log10(np.maximum(np.asarray(values), _FLOOR))  # (seeds, times)
        seeds = len(level)
        mean = level.mean(axis=0)
        half = np.zeros_like(mean)
        if seeds > 1:
            half = stats.t.ppf(0.975, seeds - 1) * level.std(axis=0, ddof=1) / math.sqrt(seeds)
        color = colormaps["tab20"](k)
        axes.plot(x, 10**mean, label=arm, color=color)
        axes.fill_between(x, 10 ** (mean - half), 10 ** (mean + half), color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return figure


def orbit_picture(
    models: Mapping[str, nn.Module],
    truth: Tensor,
    times: Sequence[float],
    axes: tuple[int, int],
    *,
    step: float,
) -> Picture:
    """Small multiples: one test orbit, true and learned, in the plane of two coordinates."""
    columns = min(4, max(1, len(models)))
    figure, panes = panels(math.ceil(max(1, len(models)) / columns), columns, width=2.6, height=2.6)
    horizontal = truth[:, axes[0]].numpy()
    vertical = truth[:, axes[1]].numpy()
    width = 1.4 * np.abs(horizontal).max() + 0.1
    height = 1.4 * np.abs(vertical).max() + 0.1
    for ax, (name, model) in zip(panes, models.items(), strict=False):
        x = follow(model, truth[0], times, step=step, interval=times[1])  # (t, d)
        ax.plot(horizontal, vertical, color="0.6", linewidth=3)
        ax.plot(x[:, axes[0]].numpy(), x[:, axes[1]].numpy(), color="C3", linewidth=1)
        ax.set(xlim=(-width, width), ylim=(-height, height))
        ax.set_title(name, fontsize="small")
    for ax in panes[len(models) :]:
        ax.set_axis_off()
    return Picture(
        "orbits", "A test orbit (seed 0): true (grey) and as each learned system continues it (red).", figure
    )
