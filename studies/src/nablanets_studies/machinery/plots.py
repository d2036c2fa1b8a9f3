"""Plots that several experiments share. Figures are made without pyplot, so nothing global changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nablanets_studies.machinery.base import Picture
from nablanets_studies.machinery.store import RunFolder

#: The words below learning curves, by what they are against.
_AXES = {"step": "optimisation step", "seconds": "training time [s]"}


def panels(rows: int, columns: int, *, width: float = 3.4, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of axes, and the axes in reading order."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel())


def learning_curves(run: RunFolder, arms: Sequence[str], caption: str, *, versus: str = "step") -> Picture:
    """Validation error in dB against steps or seconds: mean over seeds, with the range shaded."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    finished = run.finished()
    histories = run.histories()
    for arm in arms:
        parts = [rows for (name, seed), rows in histories.items() if name == arm and (arm, seed) in finished]
        curves = [rows for rows in parts if len(rows) > 1]
        if not curves:
            continue
        # Seeds may have stopped at different steps: what all of them have is shown.
        length = min(len(curve) for curve in curves)
        x = np.mean([[getattr(row, versus) for row in curve[:length]] for curve in curves], axis=0)
        errors = np.asarray([[row.validation_error for row in curve[:length]] for curve in curves])  # (seeds, rows)
        y = 10 * np.log10(np.minimum.accumulate(errors, axis=1))
        (line,) = axes.plot(x, y.mean(axis=0), label=arm)
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=_AXES[versus], ylabel="validation error [dB]")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return Picture(f"learning-curves-{versus}", caption, figure)
