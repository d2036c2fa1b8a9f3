"""Training on one device or many processes, with exact resume.

This is a loop of its own beside ``nablanets.fit``, with the same schedule, history and checkpoints, for what pictures
need and small fields do not: batches spread over processes and parts, loading in the background, budgets without the
time of validation, mixed precision, and a moving average of the weights in place of the best ones. Merged, either loop
would be longer than both are now.

A step:

1. take the batch that was loaded in the background, and begin to load the next one;
2. seed torch for this step and process, so that dropout does not depend on what came before;
3. set the learning rate, and add up the gradients of the parts of the batch, of all processes with the last part;
4. clip, step, and update the moving average.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nablanets.errors import InvalidInputError
from nablanets.fitting.checkpoint import read_checkpoint, restore_optimizer, write_checkpoint
from nablanets.fitting.settings import HistoryRow
from nablanets_studies.images.training.fabric import Loss, Objective, make_fabric, parts_of_batch
from nablanets_studies.images.training.optimizer import make_optimizer
from nablanets_studies.images.training.seeds import derived_seed
from nablanets_studies.images.training.settings import TrainSettings
from nablanets_studies.images.training.sources import Source, Ticket

_Part: TypeAlias = tuple[Tensor, Tensor]

#: A number of a network in evaluation, the less the better.
Validate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class TrainResult:
    """What training did; the network holds the last weights, or their moving average.

    Attributes:
        history: one row per validation.
        steps: steps taken.
        epochs: passes over the data.
        seconds: training time without validation.
    """

    history: list[HistoryRow] = field(repr=False)
    steps: int
    epochs: float
    seconds: float


def train(
    net: nn.Module,
    source: Source,
    loss: Loss,
    *,
    settings: TrainSettings | None = None,
    validate: Validate | None = None,
    checkpoint: str | Path | None = None,
    report: Callable[[HistoryRow], None] = lambda _: None,
) -> TrainResult:
    """Train a network in place.

    The batch of a step is a function of the seed and the step, whoever computes it: several processes (torchrun, or
    ``devices``) take equal parts of it and do what one does, up to rounding, for networks without batch norm, whose
    statistics are those of a process's part. A run that was killed goes on from its last checkpoint and ends with the
    same bits as one that was not; with a limit in seconds it ends where its time ends.

    Args:
        net: any network.
        source: batches by ticket, see :class:`Source`.
        loss: of outputs and targets, a mean over samples.
        settings: :class:`TrainSettings`.
        validate: called with the network in evaluation, before the first step, every so many steps and at the end.
        checkpoint: a file to keep the state in; if it is there, the run goes on from it.
        report: told of each validation, in the first process only.

    Raises:
        InvalidInputError: the batch cannot be divided, or the loss is not finite.
        ModelFileError: the checkpoint is damaged or belongs to another run.

    >>> from nablanets_studies.images.training import Stored
    >>> x, y = torch.rand(64, 3), torch.rand(64, 1)
    >>> net, settings = nn.Linear(3, 1), TrainSettings(epochs=20, batch_size=16, learning_rate=0.1)
    >>> result = train(net, Stored(x, y), nn.functional.mse_loss, settings=settings)
    >>> result.steps, bool(nn.functional.mse_loss(net(x), y) < 0.2)
    (80, True)
    """
    settings = settings or TrainSettings()
    fabric = make_fabric(settings)
    fabric.launch()
    run = _Run(fabric, net, source, loss, settings, None if checkpoint is None else Path(checkpoint))
    with torch.random.fork_rng(), ThreadPoolExecutor(1) as background:
        run.go(background, validate, report if fabric.is_global_zero else lambda _: None)
    fabric.barrier()
    return TrainResult(run.history, run.step, run.step * settings.batch_size / len(source), run.seconds)


class _RunningLoss:
    """The sum of losses since the last validation.

    Each process adds its own, and :meth:`average_over_processes` makes the sums equal. That is a collective operation:
    all processes must call it at the same step. It may be repeated before :meth:`reset`, since the mean of equal sums
    is that sum.
    """

    def __init__(self, fabric: Any) -> None:
        self.fabric = fabric
        self.total = torch.zeros((), dtype=torch.float64, device=fabric.device)
        self.steps = 0

    def average_over_processes(self) -> None:
        if self.fabric.world_size > 1:
            self.total = self.fabric.all_reduce(self.total, reduce_op="mean")

    def check_finite(self, step: int) -> None:
        if not bool(self.total.isfinite()):
            raise InvalidInputError(
                f"train: the loss is not finite at step {step}. Choose a lower learning_rate or set clip_norm; "
                "the last checkpoint is from before."
            )

    def mean(self) -> float:
        """The mean over steps; NaN if there were none."""
        return float(self.total) / self.steps if self.steps else float("nan")

    def reset(self) -> None:
        self.total = torch.zeros_like(self.total)
        self.steps = 0


class _Ahead:
    """Batches, of which the next one is loaded in the background while one is used."""

    def __init__(self, background: ThreadPoolExecutor, load: Callable[[int], list[_Part]], step: int) -> None:
        self.background = background
        self.load = load
        self.coming: Future[list[_Part]] = background.submit(load, step)

    def take(self, step: int) -> list[_Part]:
        """The batch of this step; that of the next begins to load."""
        parts = self.coming.result()
        self.coming = self.background.submit(self.load, step + 1)
        return parts

    def finish(self) -> None:
        """Wait for the batch that nobody will take, so that what went wrong in loading it is raised."""
        self.coming.result()


class _Run:
    """The state of a run and its steps."""

    def __init__(
        self, fabric: Any, net: nn.Module, source: Source, loss: Loss, settings: TrainSettings, file: Path | None
    ) -> None:
        self.fabric = fabric
        self.net = net
        self.source = source
        self.settings = settings
        self.file = file
        self.schedule = settings.make_schedule()
        self.parts = parts_of_batch(settings, fabric.world_size, fabric.global_rank)
        if settings.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.wrapped, self.optimizer = fabric.setup(Objective(net, loss), make_optimizer(net, settings))
        self.average: AveragedModel | None = None
        if settings.ema is not None:
            self.average = AveragedModel(net, multi_avg_fn=_moving_average(settings.ema))
        self.clock = time.process_time if fabric.device.type == "cpu" else time.perf_counter
        self.step = 0
        self.seconds = 0.0
        self.learning_rate: float | None = None  # of the last step
        self.losses = _RunningLoss(fabric)
        self.history: list[HistoryRow] = []
        if file is not None and file.exists():
            self._restore(read_checkpoint(file, self._fingerprint()))

    def go(
        self, background: ThreadPoolExecutor, validate: Validate | None, report: Callable[[HistoryRow], None]
    ) -> None:
        """Train to the end, from wherever the run is."""
        every = self.settings.interval(len(self.source))
        batches = _Ahead(background, self._load, self.step)
        if self.step == 0:
            self._validate(validate, report)
        self.net.train()
        while (progress := self._progress()) < 1:
            began = self.clock()
            self._advance(batches.take(self.step), progress)
            self.seconds += self.clock() - began
            if self.step % every == 0:
                self._validate(validate, report)
            if self.step % self.settings.checkpoint_every == 0:
                self._keep()
        batches.finish()
        if not self.history or self.history[-1].step != self.step:
            self._validate(validate, report)
        self._keep()
        if self.average is not None:
            self.net.load_state_dict(self.average.module.state_dict())

    def _advance(self, parts: list[_Part], progress: float) -> None:
        """One step on a batch."""
        torch.manual_seed(derived_seed(self.settings.seed, self.step, self.fabric.global_rank))
        self.learning_rate = self.schedule.at(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        for number, (x, y) in enumerate(parts, start=1):
            last = number == len(parts)
            with self.fabric.no_backward_sync(self.wrapped, enabled=not last):
                value = self.wrapped(x, y, 1 / len(parts))
                self.fabric.backward(value)
            self.losses.total += value.detach()
        if self.settings.clip_norm is not None:
            self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.net)
        self.step += 1
        self.losses.steps += 1

    def _load(self, step: int) -> list[_Part]:
        """The parts of a batch on the device."""
        loaded = []
        for first, last in self.parts:
            ticket = Ticket(self.settings.seed, step, self.settings.batch_size, first, last)
            x, y = self.source.batch(ticket)
            loaded.append((self._placed(x), self._placed(y)))
        return loaded

    def _placed(self, x: Tensor) -> Tensor:
        if self.settings.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        device = self.fabric.device
        return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)

    def _progress(self) -> float:
        """The fraction of the run that is over, the same in all processes (a collective operation if time counts)."""
        steps = self.settings.steps(len(self.source))
        by_steps = 0.0 if steps is None else self.step / steps
        if self.settings.seconds is None:
            return by_steps
        by_time = self.seconds / self.settings.seconds
        if self.fabric.world_size > 1:
            by_time = float(self.fabric.broadcast(by_time))
        return max(by_steps, by_time)

    def _validate(self, validate: Validate | None, report: Callable[[HistoryRow], None]) -> None:
        """Write a row of the history; a collective operation."""
        net = self.net if self.average is None else self.average.module
        value = float("nan")
        if validate is not None:
            net.eval()
            with torch.no_grad():
                value = float(validate(net))
            net.train()
        self.losses.average_over_processes()
        self.losses.check_finite(self.step)
        row = HistoryRow(self.step, self.seconds, self.losses.mean(), value, self.learning_rate)
        self.losses.reset()
        self.history.append(row)
        report(row)

    def _keep(self) -> None:
        """Write a checkpoint, from the first process; a collective operation, since the losses of all belong to it."""
        if self.file is None:
            return
        self.losses.average_over_processes()
        self.losses.check_finite(self.step)
        if self.fabric.is_global_zero:
            write_checkpoint(self.file, self._fingerprint(), self._state())

    def _state(self) -> dict[str, Any]:
        """Everything that a resumed run needs; random numbers follow from seed and step."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "learning_rate": self.learning_rate,
            "loss": self.losses.total,
            "loss_steps": self.losses.steps,
            "history": [list(row) for row in self.history],
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict()["state"],
            "average": None if self.average is None else self.average.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.learning_rate = state["learning_rate"]
        self.losses.total.copy_(state["loss"])
        self.losses.steps = state["loss_steps"]
        self.history = [HistoryRow(*row) for row in state["history"]]
        self.net.load_state_dict(state["net"])
        restore_optimizer(self.optimizer.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _fingerprint(self) -> dict[str, Any]:
        shapes = {name: list(parameter.shape) for name, parameter in self.net.named_parameters()}
        settings = self.settings.fingerprint(len(self.source))
        return {"kind": "pictures", "settings": settings, "network": shapes}


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average whose decay rises as (1 + t) / (10 + t), so that it soon forgets the start.

    As in tf.train.ExponentialMovingAverage with ``num_updates``. torch copies the weights at the first update, t = 0.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        t = int(count)
        decay_now = min(decay, (1 + t) / (10 + t))
        torch._foreach_lerp_(averages, current, 1 - decay_now)

    return update
