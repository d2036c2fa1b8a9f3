"""Training on one device or many processes, with exact resume."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nablanets.errors import InvalidInputError, ModelFileError
from nablanets.fitting.settings import HistoryRow
from nablanets_studies.images.training.checkpoint import read_state, write_state
from nablanets_studies.images.training.fabric import Loss, Objective, make_fabric, parts_of_batch
from nablanets_studies.images.training.optimizer import make_optimizer, restore_optimizer
from nablanets_studies.images.training.settings import TrainSettings
from nablanets_studies.images.training.sources import Source, Ticket

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
    with torch.random.fork_rng(enabled=True), ThreadPoolExecutor(1) as background:
        run.go(background, validate, report if fabric.is_global_zero else lambda _: None)
    fabric.barrier()
    return TrainResult(run.history, run.step, run.step * settings.batch_size / len(source), run.seconds)


class _Run:
    """The state of a run and its steps."""

    def __init__(
        self, fabric: Any, net: nn.Module, source: Source, loss: Loss, settings: TrainSettings, file: Path | None
    ) -> None:
        self.fabric, self.net, self.source, self.loss, self.settings, self.file = (
            fabric, net, source, loss, settings, file,
        )  # fmt: skip
        self.parts = parts_of_batch(settings, fabric.world_size, fabric.global_rank)
        if settings.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.wrapped, self.optimizer = fabric.setup(Objective(net, loss), make_optimizer(net, settings))
        self.average: AveragedModel | None = None
        if settings.ema is not None:
            self.average = AveragedModel(net, multi_avg_fn=_moving_average(settings.ema))
        self.clock = time.process_time if fabric.device.type == "cpu" else time.perf_counter
        self.step, self.seconds = 0, 0.0
        self.total, self.count = torch.zeros((), dtype=torch.float64, device=fabric.device), 0
        self.history: list[HistoryRow] = []
        if file is not None and file.exists():
            self._restore(read_state(file))

    def go(
        self, background: ThreadPoolExecutor, validate: Validate | None, report: Callable[[HistoryRow], None]
    ) -> None:
        every = self.settings.interval(len(self.source))
        coming = background.submit(self._load, self.step)
        if self.step == 0:
            self._validate(validate, report)
        self.net.train()
        while (progress := self._progress()) < 1:
            start = self.clock()
            coming = self._advance(progress, coming, background)
            self.seconds += self.clock() - start
            if self.step % every == 0:
                self._validate(validate, report)
            if self.step % self.settings.checkpoint_every == 0:
                self._keep()
        coming.result()
        if not self.history or self.history[-1].step != self.step:
            self._validate(validate, report)
        self._keep()
        if self.average is not None:
            self.net.load_state_dict(self.average.module.state_dict())

    def _advance(self, progress: float, coming: Future[list], background: ThreadPoolExecutor) -> Future[list]:
        """One step on the batch that was loaded in the background, while the next one is."""
        parts = coming.result()
        coming = background.submit(self._load, self.step + 1)
        torch.manual_seed(hash((self.settings.seed, self.step, self.fabric.global_rank)) & 0x7FFFFFFF)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(progress)
        for last, (x, y) in zip([False] * (len(parts) - 1) + [True], parts, strict=True):
            with self.fabric.no_backward_sync(self.wrapped, enabled=not last):
                value = self.wrapped(x, y, 1 / len(parts))
                self.fabric.backward(value)
            self.total += value.detach()
        if self.settings.clip_norm is not None:
            self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.net)
        self.step, self.count = self.step + 1, self.count + 1
        return coming

    def _mean_loss(self) -> float:
        """Since the last validation, over all processes."""
        if self.fabric.world_size > 1:
            self.total = self.fabric.all_reduce(self.total, reduce_op="mean")
        if not bool(self.total.isfinite()):
            raise InvalidInputError(
                f"train: the loss is not finite at step {self.step}. Choose a lower learning_rate or set clip_norm; "
                "the last checkpoint is from before."
            )
        return float(self.total) / self.count if self.count else float("nan")

    def _load(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """The parts of a batch on the device."""
        tickets = [Ticket(self.settings.seed, step, self.settings.batch_size, *part) for part in self.parts]
        return [tuple(map(self._placed, self.source.batch(ticket))) for ticket in tickets]  # type: ignore[misc]

    def _placed(self, x: Tensor) -> Tensor:
        if self.settings.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        device = self.fabric.device
        return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)

    def _progress(self) -> float:
        """The fraction of the run that is over, the same in all processes."""
        steps = self.settings.steps(len(self.source))
        progress = 0.0 if steps is None else self.step / steps
        if self.settings.seconds is None:
            return progress
        spent = self.seconds / self.settings.seconds
        return max(progress, float(self.fabric.broadcast(spent)) if self.fabric.world_size > 1 else spent)

    def _validate(self, validate: Validate | None, report: Callable[[HistoryRow], None]) -> None:
        net = self.net if self.average is None else self.average.module
        value = float("nan")
        if validate is not None:
            net.eval()
            with torch.no_grad():
                value = float(validate(net))
            net.train()
        mean = self._mean_loss()
        self.total, self.count = torch.zeros_like(self.total), 0
        self.history.append(HistoryRow(self.step, self.seconds, mean, value, self.settings.rate(self._progress())))
        report(self.history[-1])

    def _keep(self) -> None:
        if self.file is None:
            return
        self._mean_loss()
        if not self.fabric.is_global_zero:
            return
        state = {
            "fingerprint": self._fingerprint(),
            "step": self.step,
            "seconds": self.seconds,
            "total": self.total,
            "count": self.count,
            "history": [list(row) for row in self.history],
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.optimizer.state_dict()["state"],
            "average": None if self.average is None else self.average.state_dict(),
        }
        write_state(self.file, state)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self._fingerprint():
            raise ModelFileError(
                f"the checkpoint {self.file} belongs to a run with other settings, data or network:\n  there: "
                f"{state['fingerprint']}\n  here:  {self._fingerprint()}\nDelete it, or give another path."
            )
        self.step, self.seconds, self.count = state["step"], state["seconds"], state["count"]
        self.total.copy_(state["total"])
        self.history = [HistoryRow(*row) for row in state["history"]]
        self.net.load_state_dict(state["net"])
        restore_optimizer(self.optimizer.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _fingerprint(self) -> dict[str, Any]:
        shapes = {name: list(p.shape) for name, p in self.net.named_parameters()}
        return self.settings.fingerprint(len(self.source)) | {"parameters": shapes}


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """An exponential moving average whose decay rises as (1 + t) / (10 + t), so that it soon forgets the start."""

    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, current, 1 - now)

    return update
