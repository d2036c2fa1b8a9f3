"""What studies of networks for pictures share: arms at equal epochs and at equal time, chosen by validation data."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from nablanets.errors import unknown_name
from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.images.training import Loss, Source, Ticket, TrainResult, TrainSettings, Validate, train
from nablanets_studies.machinery.base import Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.costs import Call, interleaved_times
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.pictures.picture_findings import (
    CARRYING,
    TIMED,
    against_standard,
    alpha_sheet,
    curves,
    verdicts,
)
from nablanets_studies.residual.arms import ARMS, Arm

METHODS = ("standard", "no-skip", "damped", "gradient", "gradient-full")
_TRIAL_SEED = 1000
_GATED = ("gradient", "gradient-full", "gradient-probe", "magnitude")


@dataclass(frozen=True)
class PictureConfig:
    """Settings that studies of networks for pictures share.

    Attributes:
        methods: the arms, names of ``residual.arms.ARMS``; those that carry gradients have a second arm, trained for
            the time that the standard skip takes.
        width: of the first stage.
        epochs, batch_size, weight_decay, warmup, precision, channels_last: of training by AdamW, see
            :class:`TrainSettings`.
        rates, alphas: what each arm chooses from by validation error; alpha is where training starts.
        trial_epochs: the choice is made after so many epochs, with a seed of its own.
    """

    methods: tuple[str, ...] = METHODS
    width: int = 16
    epochs: float = 2.0
    batch_size: int = 128
    weight_decay: float = 0.05
    warmup: float = 0.2
    precision: str = "32-true"
    channels_last: bool = True
    rates: tuple[float, ...] = (3e-3, 1e-2)
    alphas: tuple[float, ...] = (-3.0, 0.0)
    trial_epochs: float = 0.5


class Task(NamedTuple):
    """What a configuration asks for: networks by the skip of their blocks, data, and how they are judged."""

    build: Callable[[Arm], nn.Module]
    source: Source
    loss: Loss
    validate: Validate
    test: Callable[[nn.Module], dict[str, float]]


class Choice(NamedTuple):
    """What validation data chose for an arm."""

    alpha: float
    rate: float


P = TypeVar("P", bound=PictureConfig)


class PictureExperiment(Experiment[P]):
    """Arms of one network for pictures, at equal epochs and at equal training time."""

    #: The error that arms are compared by.
    error: str
    #: What it is called.
    error_title: str

    @abstractmethod
    def task(self, config: P) -> Task:
        """The data and the networks; called once for a configuration."""

    def arms(self, config: P) -> list[str]:
        for method in config.methods:
            if method not in ARMS:
                raise unknown_name("method", method, ARMS)
        return [*config.methods, *(m + TIMED for m in config.methods if m in CARRYING)]

    def run_part(self, config: P, arm: str, seed: int, report: Report) -> PartResult:
        method = arm.removesuffix(TIMED)
        choice = _choose(self, config, method)
        ratio = _cost(self, config, method) if method in CARRYING else 1.0
        epochs = config.epochs / ratio if arm.endswith(TIMED) else config.epochs
        net, result = self._train(config, method, choice, seed, epochs, report)
        gates = {f"alpha {name}": float(a.detach().mean()) for name, a in _alphas(net).items()}
        chosen = {"rate": choice.rate, "epochs": epochs, "cost": ratio} | ({"alpha": choice.alpha} if gates else {})
        metrics = {**self._task(config).test(net.eval()), **chosen, **gates}
        kept = net if seed == 0 else None
        return PartResult(kept, count_parameters(net), result.seconds, metrics)

    def sheets(self, config: P, run: RunFolder) -> list[Sheet]:
        compared = against_standard(run.rows(), self.error)
        return [sheet for sheet in (compared.sheet(self.error_title), alpha_sheet(run.rows())) if sheet.rows]

    def conclusions(self, config: P, run: RunFolder) -> list[str]:
        return verdicts(run.rows(), self.error, self.error_title)

    def pictures(self, config: P, run: RunFolder) -> Iterator[Picture]:
        yield curves(run, self.arms(config), self.error_title)

    def shared_notes(self, config: P) -> list[str]:
        """Paragraphs on what is the same for all studies of pictures."""
        chosen = (
            f"Each arm takes the rate of {config.rates} and, where it has one, the start of alpha of {config.alphas} with "
            f"the least validation error after {config.trial_epochs:g} epochs with a seed of its own; damped takes the "
            "alpha of gradient."
            if len(config.rates) * len(config.alphas) > 1
            else f"All arms have the rate {config.rates[0]:g}, and alpha starts at {config.alphas[0]:g}; nothing was chosen."
        )
        return [
            f"AdamW, {config.epochs:g} epochs of batches of {config.batch_size}, warm-up over {config.warmup:.0%} of the "
            f"run, cosine decay, {config.precision}. {chosen} Test data are used once, at the end.",
            "standard: x + F(x). no-skip: F(x). damped: (1 - s) x + F(x). gradient: (1 - s) x + s g(x) + F(x) with g "
            "normalised per position and under stop-gradient, as in the paper. gradient-full: g not normalised, with "
            "back-propagation through it. alpha is trained, one per block.",
            "Arms that end in -timed have the training time of the standard skip: their epochs are divided by the cost "
            "of their training step relative to it, a ratio of medians of processor time of steps that alternate.",
        ]

    def _train(
        self, config: P, method: str, choice: Choice, seed: int, epochs: float, report: Report = lambda _: None
    ) -> tuple[nn.Module, TrainResult]:
        task = self._task(config)
        torch.manual_seed(seed)
        net = task.build(_arm(method, choice.alpha))
        settings = TrainSettings(
            epochs=epochs, batch_size=min(config.batch_size, len(task.source)), learning_rate=choice.rate,
            weight_decay=config.weight_decay, warmup=config.warmup, precision=config.precision,
            channels_last=config.channels_last, seed=seed,
        )  # fmt: skip
        result = train(net, task.source, task.loss, settings=settings, validate=task.validate, report=report)
        return net, result

    def _task(self, config: P) -> Task:
        return _tasks(self, config)


@lru_cache(maxsize=2)
def _tasks(experiment: PictureExperiment[P], config: P) -> Task:
    return experiment.task(config)


def _arm(method: str, alpha: float) -> Arm:
    return {"arm": method, "alpha": alpha} if method in (*_GATED, "damped", "random") else method


def _alphas(net: nn.Module) -> dict[str, torch.Tensor]:
    """alpha of each block, in a name without what conversion adds to it."""
    found = {name: p for name, p in net.named_parameters() if name.endswith("alpha")}
    return {name.removesuffix(".alpha").removesuffix(".gradient_residual"): p for name, p in found.items()}


@lru_cache(maxsize=64)
def _choose(experiment: PictureExperiment[P], config: P, method: str) -> Choice:
    """The start of alpha and the rate with the least validation error in a short run."""
    alphas = config.alphas if method in _GATED else (0.0,)
    if method in ("damped", "random"):
        alphas = (_choose(experiment, config, "gradient").alpha,)
    options = [Choice(alpha, rate) for alpha in alphas for rate in config.rates]
    if len(options) == 1:
        return options[0]
    errors = {}
    for option in options:
        _, result = experiment._train(config, method, option, _TRIAL_SEED, config.trial_epochs)
        errors[option] = result.history[-1].validation_error
    return min(errors, key=errors.__getitem__)


@lru_cache(maxsize=64)
def _cost(experiment: PictureExperiment[P], config: P, method: str) -> float:
    """Processor time of a training step relative to the standard skip's."""
    task = experiment._task(config)
    size = min(config.batch_size, len(task.source))
    x, y = task.source.batch(Ticket(0, 0, size, 0, size))
    steps = [_step(task, config, arm, x, y) for arm in ("standard", _arm(method, config.alphas[0]))]
    standard, ours = interleaved_times(steps, 9, clock=time.process_time)
    return ours / standard


def _step(task: Task, config: PictureConfig, arm: Arm, x: torch.Tensor, y: torch.Tensor) -> Call:
    net = task.build(arm)
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16-mixed"):
            output = net(x)
        task.loss(output.float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run
