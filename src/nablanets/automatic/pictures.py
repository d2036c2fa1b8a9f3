"""Pictures of an automatic fit: predictions against data, errors over the inputs, the learning curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.extras import needed
from nablanets.fitting import decibels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nablanets.automatic.result import AutofitResult

# Components that are drawn; a page of more says no more.
_MOST_COMPONENTS = 4
# Inches of one panel.
_PANEL = 3.2


def draw(result: AutofitResult, x: Tensor | None = None) -> Figure:
    """A figure with a parity plot of each component, the errors over the first two inputs, and the learning curve.

    Predictions are those of networks that had not seen the sample.

    Args:
        result: of :func:`~nablanets.automatic.autofit`.
        x: the points that were fitted, (n, d), for the map of errors; without them it is left out.

    Raises:
        InvalidInputError: nothing was held out. MissingPackageError: matplotlib is not installed.
    """
    if result.out_of_fold is None:
        raise InvalidInputError("plot: nothing was held out of this fit, so there are no predictions to draw.")
    figures = needed("matplotlib.figure", extra="plots", purpose="Pictures")
    rows, g, predicted = result.out_of_fold
    components = result.components[:_MOST_COMPONENTS]
    panels = len(components) + (x is not None) + bool(result.history)
    figure = figures.Figure(figsize=(_PANEL * panels, _PANEL), layout="constrained")
    axes = iter(figure.subplots(1, panels, squeeze=False)[0])
    for place, component in enumerate(components):
        label = f"{component.name} [{component.unit}]" if component.unit else component.name
        _parity(next(axes), label, g[:, place], predicted[:, place])
    if x is not None:
        _errors(figure, next(axes), x[rows].cpu(), predicted - g)
    if result.history:
        _learning_curve(next(axes), result)
    return cast("Figure", figure)


def _parity(ax: Axes, label: str, g: Tensor, predicted: Tensor) -> None:
    low = float(min(g.min(), predicted.min()))
    high = float(max(g.max(), predicted.max()))
    ax.plot([low, high], [low, high], color="0.7", linewidth=1)
    ax.plot(g.numpy(), predicted.numpy(), ".", markersize=3)
    ax.set(title=label, xlabel="data", ylabel="prediction (held out)")


def _errors(figure: Any, ax: Axes, x: Tensor, difference: Tensor) -> None:
    size = difference.norm(dim=1)
    if x.shape[1] == 1:
        ax.plot(x[:, 0].numpy(), size.numpy(), ".", markersize=3)
        ax.set(title="error over the input", xlabel="x1", ylabel="|f - g|")
        return
    marks = ax.scatter(x[:, 0].numpy(), x[:, 1].numpy(), c=size.numpy(), s=8)
    figure.colorbar(marks, ax=ax)
    ax.set(title="|f - g|, held out", xlabel="x1", ylabel="x2")


def _learning_curve(ax: Axes, result: AutofitResult) -> None:
    steps = [row.step for row in result.history]
    best = max(decibels(min(row.validation_error for row in result.history)), -400.0)
    shift = result.db - best  # from squared units to decibels of the mean square gradient, about
    ax.plot(steps, [decibels(row.validation_error) + shift for row in result.history], label="held out")
    ax.plot(steps, [decibels(row.training_error) + shift for row in result.history], label="training")
    ax.set(title="learning curve, first fold", xlabel="step", ylabel="error [dB]")
    ax.legend(fontsize=7)
