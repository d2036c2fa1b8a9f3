"""What an automatic fit returns: the map, and the record of how it was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nablanets.automatic.pictures import draw
from nablanets.automatic.search import Attempt
from nablanets.fitting import HistoryRow, decibels
from nablanets.maps import GradientMap
from nablanets.printing import as_text, html_table, make_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ComponentError:
    """How well one component of the gradient is predicted where it was held out.

    Attributes:
        name: of the component.
        unit: of the data.
        rmse: root mean square error, in that unit.
        r2: coefficient of determination, 1 - (mean square error) / variance.
    """

    name: str
    unit: str
    rmse: float
    r2: float


@dataclass(frozen=True)
class Tried:
    """One line of the record.

    Attributes:
        name: what was tried.
        parameters: of the network.
        seconds: that it took, all folds together.
        db: mean square error on the samples held out, in decibels of the mean square gradient; of the first fold only
            where ``complete`` is False, and NaN for what failed.
        complete: whether it was trained on all folds.
        failure: why there is no error, if so.
    """

    name: str
    parameters: int
    seconds: float
    db: float
    complete: bool
    failure: str = ""


@dataclass(frozen=True)
class AutofitResult:
    """The best map that was found, and how.

    Errors are of the best recipe on samples held out while it was trained; ``net`` was then fitted to all samples.

    Attributes:
        net: the map.
        chosen: the recipe that it was made by, in words.
        components: errors of each component where it was held out.
        db: mean square error there, in decibels of the mean square gradient.
        held_out: what was held out, in words.
        tried: everything that was tried, the best first.
        history: of the training of the chosen recipe on the first fold; empty for closed forms.
        stop_reason: "finished", "budget" or "interrupted".
        seconds: that everything took.
        remarks: what there is to say about the data and the fit.
        out_of_fold: rows that were held out, their gradients, and what was predicted for them.
    """

    net: GradientMap
    chosen: str
    components: tuple[ComponentError, ...]
    db: float
    held_out: str
    tried: tuple[Tried, ...] = field(repr=False)
    history: tuple[HistoryRow, ...] = field(repr=False)
    stop_reason: str
    seconds: float
    remarks: tuple[str, ...] = ()
    out_of_fold: tuple[Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        table = make_table(_COLUMNS, self._rows(), title="errors on samples held out", numbers=_COLUMNS[1:])
        return as_text(table, *self._lines())

    def _repr_html_(self) -> str:
        tried = [_tried_row(line) for line in self.tried]
        parts = [
            html_table(_COLUMNS, self._rows(), title=self._lines()[0], numbers=set(_COLUMNS[1:])),
            html_table(_TRIED_COLUMNS, tried, title="What was tried", numbers=set(_TRIED_COLUMNS[1:])),
        ]
        return "".join(parts)

    def plot(self, x: Tensor | None = None) -> Figure:
        """A figure of predictions against data, errors over the inputs and the learning curve.

        Args:
            x: the points that were fitted, for the map of errors.

        Raises:
            MissingPackageError: matplotlib is not installed (extra ``plots``).
        """
        return draw(self, x)

    def _lines(self) -> list[str]:
        return [
            f"{self.chosen}: {self.db:.2f} dB of the mean square gradient, held out: {self.held_out}.",
            f"{len(self.tried)} recipes in {self.seconds:.1f} s; stopped: {self.stop_reason}.",
            *self.remarks,
        ]

    def _rows(self) -> list[list[str]]:
        rows = []
        for component in self.components:
            error = f"{component.rmse:.4g} {component.unit}".strip()
            rows.append([component.name, error, f"{component.r2:.6f}"])
        return rows


_COLUMNS = ("component", "RMSE", "R^2")
_TRIED_COLUMNS = ("recipe", "parameters", "held-out error [dB]", "seconds")


def _tried_row(line: Tried) -> list[str]:
    error = line.failure or (f"{line.db:.2f}" + ("" if line.complete else " (one fold)"))
    return [line.name, str(line.parameters), error, f"{line.seconds:.1f}"]


def record(attempts: Sequence[Attempt], mean_square: float) -> tuple[Tried, ...]:
    """All attempts, the best first."""
    lines = []
    for attempt in attempts:
        error = attempt.error if attempt.is_complete else attempt.first_error
        db = decibels(error / mean_square) if math.isfinite(error) else math.nan
        line = Tried(attempt.name, attempt.parameters, attempt.seconds, db, attempt.is_complete, attempt.failure)
        lines.append(line)
    return tuple(sorted(lines, key=lambda line: (math.isnan(line.db), line.db)))


@torch.no_grad()
def held_out_predictions(attempt: Attempt) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that some fold held out, their gradients, and the predictions of that fold's network."""
    rows = torch.cat([fold.validation for fold in attempt.task.folds])
    predicted = []
    for fold, trained in zip(attempt.task.folds, attempt.trained, strict=True):
        predicted.append(trained.net(attempt.task.x[fold.validation]))
    return rows, attempt.task.g[rows], torch.cat(predicted)


def component_errors(
    g: Tensor, predicted: Tensor, names: Sequence[str], units: Sequence[str]
) -> tuple[ComponentError, ...]:
    """Root mean square error and R^2 of each column of gradients (n, d); R^2 of a constant one is NaN."""
    mean_square = (predicted - g).square().mean(dim=0)  # (d)
    variance = (g - g.mean(dim=0)).square().mean(dim=0)
    components = []
    for name, unit, error, spread in zip(names, units, mean_square.tolist(), variance.tolist(), strict=True):
        r2 = 1 - error / spread if spread > 0 else math.nan
        components.append(ComponentError(name, unit, math.sqrt(error), r2))
    return tuple(components)
