"""Plots that several experiments share. Figures are made without pyplot, so nothing global changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nablanets_studies.machinery.base import Picture
from nablanets_studies.machinery.store import RunFolder


def panels(rows: int, columns: int, *, width: float = 3.4, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of axes, and the axes in reading order."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel())


def learning_curves(run: RunFolder, arms: Sequence[str], caption: str, *, versus: str = "step") -> Picture:
    """Validation error in dB against steps or seconds: mean over seeds, with the range shaded."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    seeds: Mapping[str, list[int]] = {a: [row.seed for row in run.rows() if row.arm == a] for a in arms}
    for arm in arms:
        curves = [c for seed in seeds[arm] if len(c := run.history(arm, seed)) > 1]
        if not curves:
            continue
        length = min(map(len, curves))
        x = np.mean([[getattr(row, versus) for row in curve[:length]] for curve in curves], axis=0)
        errors = [[row.validation_error for row in curve[:length]] for curve in curves]
        y = 10 * np.log10(np.minimum.accumulate(np.asarray(errors), axis=1))
        (line,) = axes.plot(x, y.mean(axis=0), label=arm)
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(
        xlabel={"step": "optimisation step", "seconds": "training time [s]"}[versus], ylabel="validation error [dB]"
    )
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return Picture(f"learning-curves-{versus}", caption, figure)
