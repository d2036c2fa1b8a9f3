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

from nablanets.fitting.loop import Report
from nablanets.parameters import count_parameters
from nablanets_studies.images.training import Loss, Source, Ticket, TrainResult, TrainSettings, Validate, train
from nablanets_studies.machinery.base import Experiment, PartResult, Picture, Sheet
from nablanets_studies.machinery.costs import Call, interleaved_times
from nablanets_studies.machinery.metrics import measured
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.pictures.arms import ARMS, GRADIENT, STANDARD, Method, arms_of
from nablanets_studies.pictures.picture_findings import (
    PictureFindings,
    PictureMetrics,
    Score,
    alpha_sheet,
    comparison_sheet,
    curves,
    find,
)
from nablanets_studies.residual.arms import Arm

#: Of the short trainings that choose rates and alphas; test trainings have small seeds.
_TRIAL_SEED = 1000
#: Steps of each kind that are timed, alternately; the cost is a ratio of medians.
_TIMED_STEPS = 9


@dataclass(frozen=True)
class PictureConfig:
    """Settings that studies of networks for pictures share.

    Attributes:
        methods: names of :data:`nablanets_studies.pictures.arms.METHODS`; those that carry gradients have a second arm,
            trained for the time that the standard skip takes.
        width: of the first stage.
        epochs, batch_size, weight_decay, warmup, precision, channels_last: of training by AdamW, see
            :class:`TrainSettings`.
        rates, alphas: what each arm chooses from by validation error; alpha is where training starts.
        trial_epochs: the choice is made after so many epochs, with a seed of its own.
    """

    methods: tuple[str, ...] = ("standard", "no-skip", "damped", "gradient", "gradient-full")
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
    test: Callable[[nn.Module], Score]


class Choice(NamedTuple):
    """What validation data chose for an arm."""

    alpha: float
    rate: float


P = TypeVar("P", bound=PictureConfig)


class PictureExperiment(Experiment[P]):
    """Arms of one network for pictures, at equal epochs and at equal training time."""

    #: What the test error is called.
    error_title: str

    @abstractmethod
    def task(self, config: P) -> Task:
        """The data and the networks; called once for a configuration."""

    def arms(self, config: P) -> list[str]:
        return list(arms_of(config.methods))

    def run_part(self, config: P, arm: str, seed: int, report: Report) -> PartResult:
        wanted = ARMS[arm]
        method = wanted.method
        choice = _choose(self, config, method)
        cost = _cost(self, config, method) if method.carries_gradients else 1.0
        epochs = config.epochs / cost if wanted.timed else config.epochs
        net, result = self.fit(config, method, choice, seed, epochs, report)
        alphas = {block: float(alpha.detach().mean()) for block, alpha in _alphas(net).items()}
        metrics = PictureMetrics(
            score=self.cached_task(config).test(net.eval()),
            rate=choice.rate,
            epochs=epochs,
            cost=cost,
            alpha=choice.alpha if alphas else None,
            alphas=alphas,
        )
        kept = net if seed == 0 else None
        return PartResult(kept, count_parameters(net), result.seconds, metrics.to_metrics())

    def sheets(self, config: P, run: RunFolder) -> list[Sheet]:
        results = measured(run.rows(), PictureMetrics)
        sheets = [comparison_sheet(results, self.error_title), alpha_sheet(results)]
        return [sheet for sheet in sheets if sheet.rows]

    def findings(self, config: P, run: RunFolder) -> PictureFindings:
        return find(measured(run.rows(), PictureMetrics))

    def pictures(self, config: P, run: RunFolder) -> Iterator[Picture]:
        yield curves(run, measured(run.rows(), PictureMetrics), self.arms(config), self.error_title)

    def fit(
        self, config: P, method: Method, choice: Choice, seed: int, epochs: float, report: Report = lambda _: None
    ) -> tuple[nn.Module, TrainResult]:
        """A network of a method, trained for so many epochs."""
        task = self.cached_task(config)
        torch.manual_seed(seed)
        net = task.build(method.skip(choice.alpha))
        settings = TrainSettings(
            epochs=epochs,
            batch_size=min(config.batch_size, len(task.source)),
            learning_rate=choice.rate,
            weight_decay=config.weight_decay,
            warmup=config.warmup,
            precision=config.precision,
            channels_last=config.channels_last,
            seed=seed,
        )
        result = train(net, task.source, task.loss, settings=settings, validate=task.validate, report=report)
        return net, result

    def cached_task(self, config: P) -> Task:
        """The task of a configuration, whose data are read once."""
        return _tasks(self, config)


@lru_cache(maxsize=2)
def _tasks(experiment: PictureExperiment[P], config: P) -> Task:
    return experiment.task(config)


def _alphas(net: nn.Module) -> dict[str, torch.Tensor]:
    """alpha of each block, in a name without what conversion adds to it."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in net.named_parameters():
        if name.endswith("alpha"):
            block = name.removesuffix(".alpha").removesuffix(".gradient_residual")
            found[block] = parameter
    return found


@lru_cache(maxsize=64)
def _choose(experiment: PictureExperiment[P], config: P, method: Method) -> Choice:
    """The start of alpha and the rate with the least validation error in a short run."""
    alphas: tuple[float, ...] = (0.0,)  # not used
    if method.alpha == "chosen":
        alphas = config.alphas
    elif method.alpha == "of gradient":
        alphas = (_choose(experiment, config, GRADIENT).alpha,)
    options = [Choice(alpha, rate) for alpha in alphas for rate in config.rates]
    if len(options) == 1:
        return options[0]
    errors = {}
    for option in options:
        _, result = experiment.fit(config, method, option, _TRIAL_SEED, config.trial_epochs)
        errors[option] = result.history[-1].validation_error
    return min(errors, key=errors.__getitem__)


@lru_cache(maxsize=64)
def _cost(experiment: PictureExperiment[P], config: P, method: Method) -> float:
    """Processor time of a training step relative to the standard skip's."""
    task = experiment.cached_task(config)
    size = min(config.batch_size, len(task.source))
    x, y = task.source.batch(Ticket(0, 0, size, 0, size))
    alpha = config.alphas[0]
    steps = [_step(task, config, each.skip(alpha), x, y) for each in (STANDARD, method)]
    standard, ours = interleaved_times(steps, _TIMED_STEPS, clock=time.process_time)
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
