"""The pictures of the efficiency study's page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from nablanets_studies.fields.efficiency_arms import AXES, MODES, STEP, Axis
from nablanets_studies.fields.efficiency_results import EfficiencyResults
from nablanets_studies.machinery.base import Picture
from nablanets_studies.machinery.plots import panels


def pictures_of(results: EfficiencyResults) -> Iterator[Picture]:
    """Times by size, and error by time."""
    for axis in AXES:
        yield _growth(results, axis)
    yield _error_by_time(results)


def _growth(results: EfficiencyResults, axis: Axis) -> Picture:
    sizes = results.config.growth(axis)
    values = [size.value for size in sizes]
    figure, axes = panels(1, 2, width=4.5)
    for ax, mode in zip(axes, MODES, strict=True):
        for arm in results.arms:
            times = [results.seconds(arm, mode, size) for size in sizes]
            ax.loglog(values, times, marker=".", label=arm)
        ax.set(xlabel=axis.title, ylabel="seconds", title=mode.title)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize="x-small")
    return Picture(f"growth-{axis.title}", f"Time against {axis.title}, at equal parameters for each d.", figure)


def _error_by_time(results: EfficiencyResults) -> Picture:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for arm in results.arms:
        curves = results.curves(arm)
        errors = [[row.validation_error for row in curve] for curve in curves]  # (seeds, validations)
        best = np.minimum.accumulate(errors, axis=1)
        steps = np.array([row.step for row in curves[0]])
        seconds = results.seconds(arm, STEP, results.config.task) * steps
        axes.semilogx(seconds, (10 * np.log10(best)).mean(axis=0), label=arm)
    axes.set(xlabel="training time [s]", ylabel="validation error, best so far [dB]")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return Picture("error-by-time", "Error against time at equal parameters, mean over seeds.", figure)
