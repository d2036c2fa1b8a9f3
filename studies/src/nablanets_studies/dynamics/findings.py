"""What the pages on dynamics say and show: comparisons within a structure, errors over time, orbits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor, nn

from nablanets_studies.dynamics.metrics import WINDOWS, follow
from nablanets_studies.machinery.base import Picture
from nablanets_studies.machinery.findings import lead, lowest, summaries
from nablanets_studies.machinery.plots import panels
from nablanets_studies.machinery.store import Row

#: What the issue and the paper ask for: decibels, and the ratio of trajectory errors.
GOAL_DB, GOAL_RATIO = 11.0, 5.0


def compare_group(title: str, rows: Sequence[Row], ours: Sequence[str], theirs: Sequence[str]) -> str:
    """The best of ours against the best baseline, by gradient error and by trajectory error; empty if there is none."""
    gradient, distance = summaries(rows, "gradient_db"), summaries(rows, "trajectory")
    sides = [
        [{k: values[k] for k in names if k in values} for names in (ours, theirs)] for values in (gradient, distance)
    ]
    if not all(side for pair in sides for side in pair):
        return ""
    (our_db, their_db), (our_way, their_way) = ((lowest(a), lowest(b)) for a, b in sides)
    gap = gradient[their_db].mean - gradient[our_db].mean
    ratio = distance[their_way].mean / distance[our_way].mean
    compared = f"{ratio:.2g} times smaller" if ratio >= 1 else f"{1 / ratio:.2g} times larger"
    reached = "reached" if gap >= GOAL_DB and ratio >= GOAL_RATIO else "not reached"
    return (
        f"{title}: gradient error {gradient[our_db].text()} dB ({our_db}) against {gradient[their_db].text()} dB "
        f"({their_db}): {lead(gradient[our_db], gradient[their_db], 'dB')}. Distance along trajectories "
        f"{distance[our_way].text('.2g')} ({our_way}) against {distance[their_way].text('.2g')} ({their_way}): "
        f"{compared}. The aim of {GOAL_DB:.0f} dB and {GOAL_RATIO:.0f} times is {reached}."
    )


def distance_picture(rows: Sequence[Row], arms: Sequence[str], times: Sequence[float]) -> Picture:
    """Distance from the truth by time: geometric mean over seeds with the band of 95 % confidence for it."""
    curves = {
        arm: [[r.metrics[f"distance_{k}"] for k in range(1, len(times))] for r in rows if r.arm == arm] for arm in arms
    }
    picture = _bands(curves, np.asarray(times[1:]), "time", "distance of the positions")
    return Picture(
        "distances", "Distance from the true positions: geometric mean over seeds, 95 % confidence band.", picture
    )


def window_picture(rows: Sequence[Row], arms: Sequence[str], length: float, unit: str) -> Picture:
    """The largest change of the true energy in each tenth of a long run."""
    kept = {arm: [r for r in rows if r.arm == arm and "window_0" in r.metrics] for arm in arms}
    curves = {
        a: [[r.metrics[f"window_{k}"] for k in range(WINDOWS)] for r in group] for a, group in kept.items() if group
    }
    ends = np.arange(1, WINDOWS + 1) * length / WINDOWS
    caption = "Largest relative change of the true energy in each tenth of a long run; level curves: no drift."
    return Picture("energy", caption, _bands(curves, ends, unit, "relative change of the energy"))


def _bands(curves: Mapping[str, list[list[float]]], x: np.ndarray, xlabel: str, ylabel: str) -> Figure:
    figure, (axes,) = panels(1, 1, width=8, height=5)
    for k, (arm, values) in enumerate(curves.items()):
        level = np.log10(np.maximum(np.asarray(values), 1e-12))
        mean, count = level.mean(axis=0), len(level)
        half = stats.t.ppf(0.975, count - 1) * level.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else 0 * mean
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
    paths = [truth[:, axis].numpy() for axis in axes]
    limits = [1.4 * np.abs(path).max() + 0.1 for path in paths]
    for ax, (name, model) in zip(panes, models.items(), strict=False):
        x = follow(model, truth[0], times, step=step, interval=times[1])
        ax.plot(*paths, color="0.6", linewidth=3)
        ax.plot(*(x[:, axis].numpy() for axis in axes), color="C3", linewidth=1)
        ax.set(xlim=(-limits[0], limits[0]), ylim=(-limits[1], limits[1]))
        ax.set_title(name, fontsize="small")
    for ax in panes[len(models) :]:
        ax.set_axis_off()
    return Picture(
        "orbits", "A test orbit (seed 0): true (grey) and as each learned system continues it (red).", figure
    )
