"""Several starts, the best of which is trained on: insurance against a bad draw of the initial weights.

With an optimiser that takes cheap steps, each start is trained for a while by itself and the best goes on. With
Levenberg-Marquardt all starts advance together and the worse half is dropped now and then, see
:mod:`nablanets.fitting.levenberg`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.fitting.loop import Report, fit, run_fit
from nablanets.fitting.optimizers import make_levenberg, resolve
from nablanets.fitting.problem import Pair, Targets, as_samples, make_problem
from nablanets.fitting.settings import FitResult, FitSettings, StartRecord


def fit_best_start(
    build: Callable[[], nn.Module],
    x: Tensor,
    g: Targets,
    *,
    starts: int,
    start_steps: int,
    settings: FitSettings,
    validation: float | Pair = 0.1,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    report: Report | None = None,
) -> tuple[nn.Module, FitResult]:
    """Train ``starts`` fresh networks for ``start_steps`` each, and the best by validation error for the rest.

    All of it takes ``settings.steps`` steps, so that it compares with one network trained for that long. With
    Levenberg-Marquardt all starts advance together, and every ``start_steps`` iterations the worse half is dropped
    and the samples are doubled, on to the end.

    Args:
        build: makes a fresh network (from torch's random state).
        x, g: samples, (n, d).
        starts: how many; 1 is plain :func:`fit`.
        start_steps: steps of each start, at a constant learning rate; iterations between halvings with
            Levenberg-Marquardt.
        settings: of the whole.
        validation, progress: see :func:`fit`.
        checkpoint: a file to keep the state in, see :func:`fit`; starts that are trained one after the other keep
            theirs beside it, in files of the same name with ``.start-0`` and so on at the end.
        report: called with each row of the history of each start, and of the rest.

    Returns:
        The trained network and the record of its own training, with what became of the starts.

    Raises:
        InvalidInputError: the starts need more steps than there are.

    >>> import torch
    >>> from nablanets import GradNetM
    >>> x, settings = torch.rand(100, 2), FitSettings(steps=100)
    >>> net, result = fit_best_start(
    ...     lambda: GradNetM(2, 5), x, x, starts=3, start_steps=20, settings=settings, progress=False)
    >>> result.steps, [start.steps for start in result.starts]
    (100, [20, 20, 20])
    """
    if starts < 1 or start_steps < 1:
        raise InvalidInputError(
            f"fit_best_start: expected starts and start_steps >= 1, got {starts} and {start_steps}."
        )
    x, g = as_samples(x, g, "fit_best_start")
    nets = [build() for _ in range(starts)]
    settings = resolve(settings, nets[0], x, g)
    if settings.optimizer == "levenberg":
        problem = make_problem(nets[0], x, g, validation, settings)
        stepper = make_levenberg(nets, problem, settings, halve_every=start_steps)
        result = run_fit(nets[0], stepper, problem, settings, progress=progress, checkpoint=checkpoint, report=report)
        return nets[0], result

    def train(net: nn.Module, own: FitSettings, file: Path | None) -> FitResult:
        return fit(net, x, g, validation=validation, progress=progress, checkpoint=file, report=report, settings=own)

    file = None if checkpoint is None else Path(checkpoint)
    if starts == 1:
        return nets[0], train(nets[0], settings, file)
    used = starts * start_steps
    if used >= settings.steps:
        raise InvalidInputError(
            f"fit_best_start: {starts} starts of {start_steps} steps do not fit into {settings.steps} steps. Take "
            "fewer or shorter starts, or more steps."
        )
    brief = settings.update(steps=start_steps, schedule="constant", validate_every=start_steps)
    trials = []
    for k, net in enumerate(nets):
        trials.append(train(net, brief, None if file is None else file.with_name(f"{file.name}.start-{k}")))
    best = min(range(starts), key=lambda k: trials[k].best_validation_error)
    rest = train(nets[best], settings.update(steps=settings.steps - used), file)
    return nets[best], _joined(trials, best, rest)


def _joined(trials: list[FitResult], best: int, rest: FitResult) -> FitResult:
    """The record of the best start, counted from the first step of the first start."""
    steps = sum(trial.steps for trial in trials)
    seconds = sum(trial.seconds for trial in trials)
    rows = [row._replace(step=row.step + steps, seconds=row.seconds + seconds) for row in rest.history]
    return replace(
        rest,
        history=[*trials[best].history, *rows],
        best_step=rest.best_step + steps,
        steps=rest.steps + steps,
        seconds=rest.seconds + seconds,
        starts=tuple(StartRecord(trial.steps, trial.best_validation_error) for trial in trials),
        best_start=best,
    )
