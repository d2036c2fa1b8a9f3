"""fit: from samples of a gradient field to a trained network."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets.fitting.batches import Batches, BatchSource, FreshBatches, Sampler, Samples, check_samples, split
from nablanets.fitting.checkpoint import read_checkpoint, write_checkpoint
from nablanets.fitting.objective import Objective, PackedTargets, error, squared_error
from nablanets.fitting.optimizers import make_stepper, resolve
from nablanets.fitting.settings import FitResult, FitSettings, HistoryRow, decibels
from nablanets.fitting.stepper import Stepper
from nablanets.printing import make_progress_bar

Targets: TypeAlias = Tensor | PackedTargets
Pair: TypeAlias = tuple[Tensor, Targets]
Report = Callable[[HistoryRow], None]
_CHECKPOINT_SECONDS = 30.0


def fit(
    net: nn.Module,
    x: Tensor | Sampler,
    g: Targets | None = None,
    *,
    validation: float | Pair = 0.1,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    report: Report | None = None,
    settings: FitSettings | None = None,
    **changes: Any,
) -> FitResult:
    """Train a network on samples of a gradient field: minimise mean ||net(x) - g||^2.

    The weights of the best validation are put into the network at the end, also when the fit is interrupted.

    Args:
        net: any module that maps (n, d) to (n, d): a gradient map or a baseline.
        x: points, (n, d); or a function (count, generator) that draws fresh samples (x, g) for every batch.
        g: gradients at the points, (n, d); or what else is known there, as :class:`SobolevTargets` (potential values,
            Hessian-vector products, incomplete gradients, weights) or other targets; None for fresh samples.
        validation: fraction of the samples to hold out, or a pair (x, g) of validation samples (always a pair for fresh
            samples).
        progress: show a progress bar.
        checkpoint: a file to keep the state in; if it is there, the fit goes on from it and ends exactly as it would
            have ended without the interruption.
        report: called with each row of the history.
        settings: see :class:`FitSettings`; its fields can also be given by name, ``fit(net, x, g, steps=2000)``.

    Returns:
        history, best validation error, and the reason for stopping.

    Raises:
        ShapeError, InvalidInputError: samples of the wrong shape or type, or with NaN; unknown settings.

    >>> from nablanets import GradNetM
    >>> x = torch.rand(200, 2)
    >>> result = fit(GradNetM(2, 8), x, 2 * x, steps=50, progress=False)
    >>> result.stop_reason, len(result.history)
    ('steps', 50)
    """
    settings = (settings or FitSettings()).update(**changes)
    return fit_starts(
        [net], x, g, validation=validation, progress=progress, checkpoint=checkpoint, report=report, settings=settings
    )


def fit_starts(
    nets: Sequence[nn.Module],
    x: Tensor | Sampler,
    g: Targets | None = None,
    *,
    settings: FitSettings,
    halve_every: int | None = None,
    validation: float | Pair = 0.1,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    report: Report | None = None,
) -> FitResult:
    """:func:`fit` for one network, or Levenberg-Marquardt from several starts; the first ends with the best weights."""
    net = nets[0]
    settings = resolve(settings, net, x, g)
    problem = _problem(net, x, g, validation, settings)
    stepper = make_stepper(nets, problem.batches, problem.test, settings, halve_every, problem.objective)
    trainer = _Trainer(net, stepper, problem, settings, _fingerprint(nets, problem, settings, halve_every))
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        trainer.restore(read_checkpoint(path, trainer.fingerprint))
    try:
        with _progress_bar(progress, settings.steps) as show:
            trainer.run(path, [show, *([report] if report else [])])
    finally:
        if path is not None:
            write_checkpoint(path, trainer.state())
        trainer.install_best()
    return trainer.result()


class _Problem(NamedTuple):
    """Training batches, validation samples, and what is minimised on both."""

    batches: BatchSource
    test: Samples
    objective: Objective


def _problem(
    net: nn.Module, x: Tensor | Sampler, g: Targets | None, validation: float | Pair, settings: FitSettings
) -> _Problem:
    generator = torch.Generator().manual_seed(settings.seed)
    held_out = validation if isinstance(validation, int | float) else _samples(net, *validation, "fit (validation)")
    if isinstance(x, Tensor) and g is not None:
        train, test = split(*_samples(net, x, g, "fit"), held_out, generator)
        objective = g if isinstance(g, PackedTargets) else squared_error
        return _Problem(Batches(*train, settings.batch_size, generator), test, objective)
    if isinstance(x, Tensor) or g is not None or isinstance(held_out, int | float):
        raise InvalidInputError(
            "fit: expected points and gradients; or a function (count, generator) that draws fresh samples, without "
            f"gradients and with validation=(x, g). Got {type(x).__name__}, {type(g).__name__} and validation of type "
            f"{type(validation).__name__}."
        )
    return _Problem(FreshBatches(net, x, settings.batch_size, generator), held_out, squared_error)


def _samples(net: nn.Module, x: Tensor, g: Targets, owner: str) -> Samples:
    """Points, and gradients or packed targets."""
    if not isinstance(g, PackedTargets):
        return check_samples(net, x, g, owner=owner)
    x, _ = check_samples(net, x, x, owner=owner)
    return x, g.pack(x)


class _Trainer:
    """The state of one fit."""

    def __init__(
        self, net: nn.Module, stepper: Stepper, problem: _Problem, settings: FitSettings, fingerprint: str
    ) -> None:
        self.net, self.stepper, self.problem = net, stepper, problem
        self.settings, self.fingerprint = settings, fingerprint
        self.step = 0
        self.seconds = 0.0
        self.stop_reason = ""
        self.history: list[HistoryRow] = []
        self.best_error, self.best_step = math.inf, 0
        self.best_state = _copy_state(net)

    def run(self, path: Path | None, reports: list[Report]) -> None:
        begin = time.perf_counter() - self.seconds
        saved = time.perf_counter()
        running = torch.zeros(())
        while not self.stop_reason:
            running = running + self._advance()
            self.seconds = time.perf_counter() - begin
            last = self._finished()
            if last or self.step % self.settings.validation_interval == 0:
                count = self.step - (self.history[-1].step if self.history else 0)
                self._validate(float(running) / max(count, 1), reports)
                running = torch.zeros(())
                self.seconds = time.perf_counter() - begin
                self.stop_reason = self.stop_reason or last
                if path is not None and time.perf_counter() - saved > _CHECKPOINT_SECONDS:
                    write_checkpoint(path, self.state())
                    saved = time.perf_counter()

    def _advance(self) -> Tensor:
        loss = self.stepper.advance(self.settings.rate(self._progress()))
        self.step += 1
        return loss

    def _progress(self) -> float:
        limit = self.settings.max_seconds
        by_time = 0.0 if limit is None else self.seconds / limit
        return min(1.0, max(self.step / self.settings.steps, by_time))

    def _finished(self) -> str:
        if self.step >= self.settings.steps:
            return "steps"
        limit = self.settings.max_seconds
        return "max_seconds" if limit is not None and self.seconds >= limit else self.stepper.stop_reason

    def _validate(self, training_error: float, reports: list[Report]) -> None:
        self.stepper.publish()
        value = error(self.net, *self.problem.test, self.problem.objective)
        self.history.append(HistoryRow(self.step, self.seconds, training_error, value, self.stepper.rate))
        if value < self.best_error:
            self.best_error, self.best_step, self.best_state = value, self.step, _copy_state(self.net)
        elif not (math.isfinite(value) and math.isfinite(training_error)):
            self.stop_reason = "diverged"
        elif self._stale():
            self.stop_reason = "patience"
        for report in reports:
            report(self.history[-1])

    def _stale(self) -> bool:
        patience = self.settings.patience
        since_best = sum(row.step > self.best_step for row in self.history)
        return patience is not None and since_best >= patience

    def install_best(self) -> None:
        self.net.load_state_dict(self.best_state)

    def result(self) -> FitResult:
        return FitResult(self.history, self.best_error, self.best_step, self.stop_reason, self.step, self.seconds)

    def state(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "seconds": self.seconds,
            "stop_reason": self.stop_reason,
            "history": [list(row) for row in self.history],
            "best": [self.best_error, self.best_step],
            "best_state": self.best_state,
            "stepper": self.stepper.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step, self.seconds, self.stop_reason = state["step"], state["seconds"], state["stop_reason"]
        self.history = [HistoryRow(*row) for row in state["history"]]
        self.best_error, self.best_step = state["best"]
        self.best_state = state["best_state"]
        self.stepper.restore(state["stepper"])


def _fingerprint(nets: Sequence[nn.Module], problem: _Problem, settings: FitSettings, halve_every: int | None) -> str:
    shapes = {name: list(p.shape) for name, p in nets[0].state_dict().items()}
    description: dict[str, Any] = {"settings": asdict(settings), "network": shapes, "data": problem.batches.signature()}
    if halve_every is not None:
        description |= {"starts": len(nets), "halve_every": halve_every}
    if isinstance(problem.objective, PackedTargets):
        description |= problem.objective.signature()
    return json.dumps(description, sort_keys=True)


def _copy_state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


@contextlib.contextmanager
def _progress_bar(enabled: bool, steps: int) -> Iterator[Report]:
    if not enabled:
        yield lambda row: None
        return
    with make_progress_bar("fit") as bar:
        task = bar.add_task("fit", total=steps, status="")

        def show(row: HistoryRow) -> None:
            training, held_out = decibels(row.training_error), decibels(row.validation_error)
            status = f"step {row.step}/{steps}  training {training:.1f} dB  validation {held_out:.1f} dB"
            bar.update(task, completed=row.step, status=status)

        yield show
