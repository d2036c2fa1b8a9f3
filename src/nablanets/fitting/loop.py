"""fit: from samples of a gradient field to a trained network."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nablanets.fitting.batches import Sampler
from nablanets.fitting.checkpoint import read_checkpoint, write_checkpoint
from nablanets.fitting.objective import error
from nablanets.fitting.optimizers import make_stepper, resolve
from nablanets.fitting.problem import Pair, Problem, Targets, as_samples, make_problem
from nablanets.fitting.settings import FitResult, FitSettings, HistoryRow, decibels, setting_names
from nablanets.fitting.stepper import Stepper
from nablanets.keywords import check_keywords
from nablanets.parameters import fixed_buffers
from nablanets.printing import make_progress_bar

#: Called with each row of a history.
Report: TypeAlias = Callable[[HistoryRow], None]

# A machine that fails costs at most so much time; large networks take a second to write.
_SECONDS_BETWEEN_CHECKPOINTS = 30.0
# What fit takes by name beside its settings.
_KEYWORDS = ("validation", "progress", "checkpoint", "report", "settings")


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
        x: points, (n, d), as a tensor, an array, a table or lists of numbers (:mod:`nablanets.arrays`); or a function
            (count, generator) that draws fresh samples (x, g) for every batch.
        g: gradients at the points, (n, d); or what else is known there, as :class:`SobolevTargets` (potential values,
            Hessian-vector products, incomplete gradients, weights) or other targets; None for fresh samples.
        validation: fraction of the samples to hold out (rows at random, whole lines of grids, see
            :func:`~nablanets.fitting.grids.hold_out`), or a pair (x, g) of validation samples (always a pair for fresh
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
    check_keywords("fit", changes, (*setting_names(), *_KEYWORDS))
    x, g = as_samples(x, g, "fit")
    settings = resolve((settings or FitSettings()).update(**changes), net, x, g)
    problem = make_problem(net, x, g, validation, settings)
    with fixed_buffers(net):
        stepper = make_stepper(net, problem, settings)
        return run_fit(net, stepper, problem, settings, progress=progress, checkpoint=checkpoint, report=report)


def run_fit(
    net: nn.Module,
    stepper: Stepper,
    problem: Problem,
    settings: FitSettings,
    *,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    report: Report | None = None,
) -> FitResult:
    """The loop of :func:`fit` around an optimiser: it validates, records, stops, resumes and keeps the best weights.

    Each step takes the learning rate of the schedule, and every so many steps

    1. the weights are validated, and copied if they are the best so far;
    2. a row of the history is written;
    3. the fit stops if a limit is reached, the numbers are no longer finite, or there is nothing more to gain;
    4. with a checkpoint, the state is copied: it is from here that an interrupted fit goes on, so that a step that was
       interrupted half way is taken again as a whole.

    ``fit_many`` has a loop of its own, since its members share one program and none of them may stop or be interrupted
    alone; so has the training on pictures of the studies, which spreads a batch over processes and loads the next one
    in the background. Settings, schedule, history and checkpoints are the same in all three.

    Args:
        net: the network that the stepper trains; it ends with the best weights, also when the fit is interrupted.
        stepper: takes the steps.
        problem: what to validate on; the stepper has the training samples.
        settings: of the loop: steps, limits, schedule, validation.
        progress, checkpoint, report: see :func:`fit`.
    """
    trainer = _Trainer(net, stepper, problem, settings)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        trainer.restore(read_checkpoint(path, trainer.fingerprint))
    try:
        with _progress_bar(progress, settings.steps) as show:
            reports = [show] if report is None else [show, report]
            trainer.run(path, reports)
    finally:
        if path is not None:
            trainer.write(path)
        trainer.install_best()
    return trainer.result()


class _Trainer:
    """The state of one fit."""

    def __init__(self, net: nn.Module, stepper: Stepper, problem: Problem, settings: FitSettings) -> None:
        self.net = net
        self.stepper = stepper
        self.problem = problem
        self.settings = settings
        self.schedule = settings.make_schedule()
        self.fingerprint = _fingerprint(net, stepper, problem, settings)
        self.step = 0
        self.seconds = 0.0
        self.stop_reason = ""
        self.history: list[HistoryRow] = []
        self.best_error = math.inf
        self.best_step = 0
        self.best_start = 0
        self.best_weights = _copy_weights(net)
        self.since_best = 0  # validations
        self.resumable: dict[str, Any] | None = None  # the state at the last validation, if checkpoints are kept

    def run(self, path: Path | None, reports: Sequence[Report]) -> None:
        began = time.perf_counter() - self.seconds
        written = time.perf_counter()
        total = torch.zeros(())  # of the training errors since the last validation
        while not self.stop_reason:
            total = total + self._advance()
            self.seconds = time.perf_counter() - began
            limit = self._limit_reached()
            if not limit and self.step % self.settings.validation_interval != 0:
                continue
            row = self._validate(total)
            total = torch.zeros(())
            self.seconds = time.perf_counter() - began
            self.stop_reason = self.stop_reason or limit
            if path is not None:
                self.resumable = self._state()
                if time.perf_counter() - written > _SECONDS_BETWEEN_CHECKPOINTS:
                    self.write(path)
                    written = time.perf_counter()
            for report in reports:
                report(row)

    def _advance(self) -> Tensor:
        loss = self.stepper.advance(self.schedule.at(self._progress()))
        self.step += 1
        return loss

    def _progress(self) -> float:
        """The fraction of the run that is over, by steps or by time, whichever is further."""
        by_steps = self.step / self.settings.steps
        limit = self.settings.max_seconds
        by_time = 0.0 if limit is None else self.seconds / limit
        return min(1.0, max(by_steps, by_time))

    def _limit_reached(self) -> str:
        """Why the fit ends with this step, or the empty string."""
        if self.step >= self.settings.steps:
            return "steps"
        limit = self.settings.max_seconds
        if limit is not None and self.seconds >= limit:
            return "max_seconds"
        return self.stepper.stop_reason

    def _validate(self, total: Tensor) -> HistoryRow:
        """Compare the present weights with the best ones, and write a row of the history."""
        steps = self.step - (self.history[-1].step if self.history else 0)
        training_error = float(total) / max(steps, 1) * self.stepper.error_unit
        start = self.stepper.publish()
        value = error(self.net, *self.problem.validation, self.problem.objective)
        row = HistoryRow(
            self.step, self.seconds, training_error, value, self.stepper.learning_rate, self.stepper.damping
        )
        self.history.append(row)
        if value < self.best_error:
            self.best_error = value
            self.best_step = self.step
            self.best_start = start
            self.best_weights = _copy_weights(self.net)
            self.since_best = 0
            return row
        self.since_best += 1
        patience = self.settings.patience
        if not (math.isfinite(value) and math.isfinite(training_error)):
            self.stop_reason = "diverged"
        elif patience is not None and self.since_best >= patience:
            self.stop_reason = "patience"
        return row

    def install_best(self) -> None:
        self.net.load_state_dict(self.best_weights)

    def result(self) -> FitResult:
        return FitResult(
            history=self.history,
            best_validation_error=self.best_error,
            best_step=self.best_step,
            stop_reason=self.stop_reason,
            steps=self.step,
            seconds=self.seconds,
            starts=self.stepper.starts(),
            best_start=self.best_start,
        )

    def write(self, path: Path) -> None:
        """Write the state of the last validation, if there was one; the history is only ever appended to."""
        if self.resumable is None:
            return
        rows = [list(row) for row in self.history if row.step <= self.resumable["step"]]
        write_checkpoint(path, self.fingerprint, self.resumable | {"history": rows})

    def _state(self) -> dict[str, Any]:
        """A copy of everything but the history."""
        changing = {"stepper": self.stepper.state(), "random": _random_state(self.net)}
        return {
            **copy.deepcopy(changing),
            "step": self.step,
            "seconds": self.seconds,
            "stop_reason": self.stop_reason,
            "best_error": self.best_error,
            "best_step": self.best_step,
            "best_start": self.best_start,
            "best_weights": self.best_weights,  # replaced as a whole, never written to
            "since_best": self.since_best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.stop_reason = state["stop_reason"]
        self.best_error = state["best_error"]
        self.best_step = state["best_step"]
        self.best_start = state["best_start"]
        self.best_weights = state["best_weights"]
        self.since_best = state["since_best"]
        self.history = [HistoryRow(*row) for row in state["history"]]
        self.stepper.restore(state["stepper"])
        _restore_random_state(self.net, state["random"])


def _fingerprint(net: nn.Module, stepper: Stepper, problem: Problem, settings: FitSettings) -> dict[str, Any]:
    return {
        "kind": "fit",
        "settings": asdict(settings),
        "network": {
            "modules": [type(module).__name__ for module in net.modules()],
            "shapes": {name: list(value.shape) for name, value in net.state_dict().items()},
        },
        **problem.signature(),
        **stepper.signature(),
    }


def _copy_weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def _random_state(net: nn.Module) -> dict[str, Tensor]:
    """What dropout and its like will draw from: torch's generator for the CPU, and that of the network's GPU."""
    states = {"cpu": torch.get_rng_state()}
    device = _device(net)
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random_state(net: nn.Module, states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    device = _device(net)
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _device(net: nn.Module) -> torch.device:
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def _progress_bar(enabled: bool, steps: int) -> Iterator[Report]:
    if not enabled:
        yield lambda row: None
        return
    with make_progress_bar("fit") as bar:
        task = bar.add_task("fit", total=steps, status="")

        def show(row: HistoryRow) -> None:
            training = decibels(row.training_error)
            held_out = decibels(row.validation_error)
            status = f"step {row.step}/{steps}  training {training:.1f} dB  validation {held_out:.1f} dB"
            if row.damping is not None:
                status += f"  damping {row.damping:.0e}"
            bar.update(task, completed=row.step, status=status)

        yield show
