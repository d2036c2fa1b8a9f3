"""The pictures of the sinusoid studies' pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from scipy import stats

from nablanets_studies.machinery.base import Picture
from nablanets_studies.machinery.plots import panels
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.sinusoid import Sinusoid
from nablanets_studies.sinusoid.arms import Arm, SinusoidConfig
from nablanets_studies.sinusoid.results import SinusoidResults

#: With more methods than there are colours, curves have no bands, and the further ones are dotted.
_COLOURS = 20
#: Periods of the sinusoid that are shown.
_PERIODS = 2


def pictures_of(config: SinusoidConfig, run: RunFolder) -> Iterator[Picture]:
    """Learning curves of all frequencies that have run, and what was learned at each of them."""
    results = SinusoidResults(config, run)
    frequencies = [d for d in config.every_frequency if results.test_errors(d)]
    if frequencies:
        yield _curves(config, run, frequencies)
    for d in frequencies:
        yield _functions(config, run, d)


def _curves(config: SinusoidConfig, run: RunFolder, frequencies: Sequence[int]) -> Picture:
    histories = run.histories()
    methods = list(dict.fromkeys(arm.method for arm in config.arms().values()))
    crowded = len(methods) > _COLOURS
    figure, axes = panels(1, len(frequencies), width=9 if crowded else 5, height=4.5)
    for ax, d in zip(axes, frequencies, strict=True):
        for method in config.methods_at(d):
            name = Arm(method, d).name
            curves = [rows for (arm, _), rows in histories.items() if arm == name]
            if not curves:
                continue
            epochs = [row.step * config.batch_size / config.samples for row in curves[0]]
            errors = np.log10([[row.validation_error for row in rows] for rows in curves])  # (seeds, validations)
            level, half = _band(errors)
            index = methods.index(method)
            color = colormaps["tab20"](index % _COLOURS)
            ax.plot(epochs, 10**level, label=method, color=color, linestyle="-" if index < _COLOURS else ":")
            if not crowded:
                low = 10 ** (level - half)
                high = 10 ** (level + half)
                ax.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0)
        ax.set(title=f"d = {d}", xlabel="epochs", ylabel="validation MSE", yscale="log")
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small", ncols=1 + crowded)
    band = "" if crowded else ", with the band of 95 % confidence for it"
    caption = (
        f"Validation MSE by epoch: geometric mean over seeds{band}. The noise of the validation targets alone is "
        f"{config.noise**2:.2g}."
    )
    return Picture("learning-curves", caption, figure)


def _functions(config: SinusoidConfig, run: RunFolder, d: int) -> Picture:
    end = min(1.0, 2 * _PERIODS / d - 1)
    x = torch.linspace(-1, end, 400).unsqueeze(1)  # (points, 1)
    finished = run.finished()
    names = [Arm(method, d).name for method in config.methods_at(d)]
    shown = [name for name in names if (name, 0) in finished]
    figure, axes = panels(math.ceil(max(1, len(shown)) / 4), 4, width=3, height=2.2)
    for ax, name in zip(axes, shown, strict=False):
        with torch.no_grad():
            y = run.load_model(name, 0)(x)
        ax.plot(x, Sinusoid(d).value(x), color="0.6", linewidth=2)
        ax.plot(x, y, color="C3", linewidth=1)
        ax.set(title=name, ylim=(-1.5, 1.5))
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    caption = f"What was learned of sin({d} pi x) (seed 0, red) and the truth (grey), on [-1, {end:g}]."
    return Picture(f"functions-{d}", caption, figure)


def _band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the first axis, and half the width of its band of 95 % confidence (zero for one row)."""
    count = len(values)
    if count == 1:
        return values[0], np.zeros_like(values[0])
    deviation = values.std(axis=0, ddof=1)
    half = stats.t.ppf(0.975, count - 1) * deviation / count**0.5
    return values.mean(axis=0), half
