"""autofit: from samples of a gradient field to the best map that can be found in a given time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from nablanets.arrays import as_tensor
from nablanets.automatic.assessment import falling_share
from nablanets.automatic.recipes import Affine, Trained
from nablanets.automatic.result import AutofitResult, component_errors, held_out_predictions, record
from nablanets.automatic.search import Attempt, Clock, Search
from nablanets.automatic.task import Fold, Task, make_folds
from nablanets.errors import InvalidInputError, ShapeError, check_finite
from nablanets.fitting import decibels, error
from nablanets.maps import GradientMap, Quadratic, Scale
from nablanets.printing import make_progress_bar

#: What is known about the direction: nothing (None or False), or that the field increases or decreases.
Monotone: TypeAlias = "bool | Literal['increasing', 'decreasing', 'auto'] | None"

# A field counts as increasing if no more than this share of the pairs of samples falls: noise makes some fall.
_INCREASING = 0.01
# With fewer samples nothing can be held out.
_FEWEST = 5


def autofit(
    x: Any,
    g: Any,
    *,
    monotone: Monotone = None,
    budget: float = 30.0,
    groups: Any = None,
    names: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AutofitResult:
    """Find the best gradient map for samples of a field within a budget of time.

    Networks of several kinds and sizes, closed forms and the affine map compete on samples that they have not seen:
    whole groups, whole lines of grids, or each part of few samples in turn. The best one is then fitted to all samples.
    :mod:`nablanets.automatic.search` says what is tried. Works in float64; the map has the type of the points.

    Args:
        x: points, (n, d), as a tensor, an array, a table or lists of numbers.
        g: gradients at the points, (n, d).
        monotone: True or "increasing" for the gradient of a convex potential; "decreasing" for that of a concave one;
            "auto" if the samples are to decide; None or False for any gradient (monotone networks compete as well where
            the samples increase).
        budget: seconds for everything, about.
        groups: for each sample the group that it belongs to (any labels), (n,): none is split by the validation.
        names, units: of the components, for the record.
        seed: of everything random. Results also depend on the speed of the machine, since time is what is limited.
        progress: show a progress bar.

    Returns:
        the map as ``net``, and the record. An interruption (Ctrl-C) ends the search with the best so far.

    Raises:
        ShapeError, InvalidInputError: samples of the wrong shape, with NaN, or none; a budget that is not positive.

    >>> x = torch.rand(300, 2)
    >>> result = autofit(x, torch.stack([x[:, 0].exp(), x[:, 1].sin()], dim=1), budget=3, progress=False)
    >>> result.db < -60, result.net(x).shape
    (True, torch.Size([300, 2]))
    """
    clock = _checked_clock(budget)
    points, gradients = _checked_samples(x, g)
    labels = _group_numbers(groups, len(points))
    sign, wants_monotone, remarks = _direction(monotone, points, gradients)
    names = [f"g{i + 1}" for i in range(points.shape[1])] if names is None else names
    units = [""] * points.shape[1] if units is None else units
    dtype = as_tensor(x, owner="autofit", name="x").dtype
    targets = sign * gradients
    mean_square = float(targets.square().sum(dim=1).mean())
    constant = bool((targets == targets[0]).all())
    if len(points) < _FEWEST or constant:
        few = len(points) < _FEWEST
        why = f"{len(points)} samples are too few to hold any out" if few else "all gradients are equal"
        remarks.append(f"{why}: the map is affine, and was not tested on other samples.")
        return _floor(points, gradients, wants_monotone, sign, names, units, clock, remarks, dtype)
    folds, held_out = make_folds(points, labels, seed)
    task = Task(points, targets, folds, held_out, wants_monotone, seed=seed)
    increases = wants_monotone or falling_share(points, targets) <= _INCREASING
    with _progress(progress, clock, mean_square) as say:
        search = Search(task, increases, clock, say)
        interrupted = _run(search)
    best = search.best()
    net = _refit(best, clock, interrupted)
    rows, truth, predicted = held_out_predictions(best)
    finished = "interrupted" if interrupted else "budget" if clock.left(0.5) < 0 else "finished"
    return AutofitResult(
        net=_turned(net, sign).to(dtype),
        chosen=best.name + (", negative" if sign < 0 else ""),
        components=component_errors(truth, predicted, names, units),
        db=decibels(best.error / mean_square),
        held_out=held_out,
        tried=record(search.attempts, mean_square),
        history=tuple(best.trained[0].history),
        stop_reason=finished,
        seconds=clock.spent,
        remarks=tuple(remarks),
        out_of_fold=(rows, sign * truth, sign * predicted),
    )


def _checked_clock(budget: float) -> Clock:
    if not (budget > 0 and math.isfinite(budget)):
        raise InvalidInputError(f"autofit: expected a budget of seconds > 0, got {budget}.")
    return Clock(budget)


def _checked_samples(x: Any, g: Any) -> tuple[Tensor, Tensor]:
    """Points and gradients in float64, of one shape (n, d) with n >= 1, without NaN."""
    points = as_tensor(x, owner="autofit", name="x").detach().cpu().double()
    gradients = as_tensor(g, owner="autofit", name="g").detach().cpu().double()
    if points.ndim != 2 or points.shape != gradients.shape or points.numel() == 0:
        raise ShapeError(
            "autofit: expected points and gradients of one shape (n, d) with n, d >= 1, got "
            f"{tuple(points.shape)} and {tuple(gradients.shape)}."
        )
    check_finite(points, owner="autofit", name="x")
    check_finite(gradients, owner="autofit", name="g")
    return points, gradients


def _group_numbers(groups: Any, count: int) -> Tensor | None:
    """The number of the group of each sample, whatever the labels are."""
    if groups is None:
        return None
    labels = [str(label) for label in groups]
    if len(labels) != count:
        raise ShapeError(f"autofit: expected one group for each of {count} samples, got {len(labels)}.")
    number = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return torch.tensor([number[label] for label in labels])


def _direction(monotone: Monotone, x: Tensor, g: Tensor) -> tuple[float, bool, list[str]]:
    """The sign that makes the field increase, whether only monotone maps are wanted, and what there is to say."""
    if monotone in (None, False):
        return 1.0, False, []
    if monotone in (True, "increasing"):
        return 1.0, True, []
    if monotone == "decreasing":
        return -1.0, True, []
    if monotone != "auto":
        raise InvalidInputError(
            f"autofit: expected monotone to be None, a bool, 'increasing', 'decreasing' or 'auto', got {monotone!r}."
        )
    falling = falling_share(x, g)
    rising = falling_share(x, -g)
    if falling <= _INCREASING:
        return 1.0, True, ["The samples increase: the map is the gradient of a convex potential."]
    if rising <= _INCREASING:
        return -1.0, True, ["The samples decrease: the map is minus the gradient of a convex potential."]
    return 1.0, False, [f"The samples are not monotone: {falling:.0%} of the pairs fall, {rising:.0%} rise."]


def _turned(net: GradientMap, sign: float) -> GradientMap:
    return net if sign > 0 else Scale(net, sign)


def _floor(
    x: Tensor,
    g: Tensor,
    monotone: bool,
    sign: float,
    names: Sequence[str],
    units: Sequence[str],
    clock: Clock,
    remarks: list[str],
    dtype: torch.dtype,
) -> AutofitResult:
    """The affine map where nothing more can be learned; its errors are those on the samples themselves."""
    if bool((g == g[0]).all()):
        net: GradientMap = Quadratic.from_matrix(torch.zeros(x.shape[1], x.shape[1]).to(x), sign * g[0])
    else:
        everything = Fold(torch.arange(len(x)), torch.arange(len(x)))
        task = Task(x, sign * g, (everything,), "nothing", monotone)
        net = Affine().train(task, everything, 0.0).net
    turned = _turned(net, sign)
    with torch.no_grad():
        predicted = turned(x)
    mean_square = float(g.square().sum(dim=1).mean()) or 1.0
    own_error = error(turned, x, g)
    return AutofitResult(
        net=turned.to(dtype),
        chosen="affine",
        components=component_errors(g, predicted, names, units),
        db=decibels(own_error / mean_square),
        held_out="nothing",
        tried=(),
        history=(),
        stop_reason="finished",
        seconds=clock.spent,
        remarks=tuple(remarks),
    )


def _run(search: Search) -> bool:
    """Search, and whether that was interrupted after something had been found."""
    try:
        search.run()
    except KeyboardInterrupt:
        if not any(attempt.is_complete for attempt in search.attempts):
            raise
        return True
    return False


def _refit(best: Attempt, clock: Clock, interrupted: bool) -> GradientMap:
    """The map from all samples; that of the best fold where there is no time, or where it would be no better."""
    task = best.task
    fallback = min(best.trained, key=_own_error).net
    if interrupted:
        return fallback
    net = best.recipe.refit(task, best.trained, max(1.0, clock.left()))
    is_better = error(net, task.x, task.g) <= error(fallback, task.x, task.g)
    return net if is_better else fallback


def _own_error(trained: Trained) -> float:
    return trained.error


@contextmanager
def _progress(enabled: bool, clock: Clock, mean_square: float) -> Iterator[Callable[[Attempt], None]]:
    """A bar over the budget that names the attempt and the best error so far."""
    if not enabled:
        yield lambda attempt: None
        return
    best = math.inf
    with make_progress_bar("autofit") as bar:
        line = bar.add_task("autofit", total=clock.budget, status="")

        def say(attempt: Attempt) -> None:
            nonlocal best
            best = min(best, attempt.first_error)
            status = f"{attempt.name}; best so far {decibels(best / mean_square):.1f} dB"
            bar.update(line, completed=min(clock.spent, clock.budget), status=status)

        yield say
