"""Several starts, the best of which is trained on: insurance against a bad draw of the initial weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.fitting.loop import fit, fit_starts
from nablanets.fitting.optimizers import resolve
from nablanets.fitting.settings import FitResult, FitSettings


def fit_best_start(
    build: Callable[[], nn.Module],
    x: Tensor,
    g: Tensor,
    *,
    starts: int,
    start_steps: int,
    settings: FitSettings,
    **options: Any,
) -> tuple[nn.Module, FitResult]:
    """Train ``starts`` fresh networks for ``start_steps`` each, and the best by validation error for the rest.

    All of it takes ``settings.steps`` steps, so that it compares with one network trained for that long. With
    Levenberg-Marquardt all starts advance together, and every ``start_steps`` iterations the worse half is dropped
    and the samples are doubled, on to the end.

    Args:
        build: makes a fresh network (from torch's random state).
        x, g: samples, (n, d).
        starts: how many; 1 is plain :func:`fit`.
        start_steps: steps of each start, at a constant rate; iterations between halvings with Levenberg-Marquardt.
        settings: of the whole.
        options: further arguments of :func:`fit`.

    Returns:
        The trained network and the record of its own training; steps and seconds count all starts.

    Raises:
        InvalidInputError: the starts need more steps than there are.

    >>> import torch
    >>> from nablanets import GradNetM
    >>> x, settings = torch.rand(100, 2), FitSettings(steps=100)
    >>> net, result = fit_best_start(
    ...     lambda: GradNetM(2, 5), x, x, starts=3, start_steps=20, settings=settings, progress=False)
    >>> result.steps
    100
    """
    if starts < 1 or start_steps < 1:
        raise InvalidInputError(
            f"fit_best_start: expected starts and start_steps >= 1, got {starts} and {start_steps}."
        )
    nets = [build() for _ in range(starts)]
    settings = resolve(settings, nets[0], x, g)
    if starts == 1 or settings.optimizer == "levenberg":
        return nets[0], fit_starts(nets, x, g, settings=settings, halve_every=start_steps, **options)
    if starts * start_steps >= settings.steps:
        raise InvalidInputError(
            f"fit_best_start: {starts} starts of {start_steps} steps do not fit into {settings.steps} steps."
        )
    brief = settings.update(steps=start_steps, schedule="constant", validate_every=start_steps)
    trials = [fit(net, x, g, settings=brief, **options) for net in nets]
    best = min(range(starts), key=lambda k: trials[k].best_validation_error)
    used = starts * start_steps
    rest = fit(nets[best], x, g, settings=settings.update(steps=settings.steps - used), **options)
    seconds = sum(trial.seconds for trial in trials)
    history = [row._replace(step=row.step + used, seconds=row.seconds + seconds) for row in rest.history]
    return nets[best], replace(
        rest,
        history=[*trials[best].history, *history],
        best_step=rest.best_step + used,
        steps=rest.steps + used,
        seconds=rest.seconds + seconds,
    )
