"""How the networks of the sinusoid studies are trained: all seeds of an arm as one program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch

from nablanets.fitting import FitSettings, Member, fit_many
from nablanets.fitting.batches import Samples
from nablanets_studies.problems.sinusoid import Sinusoid
from nablanets_studies.residual.arms import ARMS
from nablanets_studies.sinusoid.nets import VARIANTS, SinusoidNet

METHODS = (
    *(*ARMS, "gradient-full-x4", "wider", "fourier", "siren"),
    *("standard-torch", "no-skip-torch", "damped-torch", "gradient-torch"),
)
#: The products of a step of the dearest methods, in those of a plain step.
_DEAREST = 1.5
#: The first seed of the trainings that only choose settings.
_TRIAL_SEED = 1000


class Arm(NamedTuple):
    """A network and the d of the sin(d pi x) that it learns."""

    method: str
    frequency: int

    @property
    def name(self) -> str:
        """In results.json and on the page."""
        return f"{self.method}-{self.frequency}"


@dataclass(frozen=True)
class SinusoidConfig:
    """Settings of a run.

    Attributes:
        frequencies, methods: the d of sin(d pi x), and the networks that learn them all.
        other_frequencies, other_methods: further d, for a selection of networks.
        width, blocks, first_scale, activation: of the networks, see :class:`SinusoidNet`; each block has two layers.
        samples, noise: training points and the standard deviation of the noise on their targets, drawn for each seed.
        validation_samples: further noisy points.
        test_points: a regular grid without noise.
        steps, batch_size, warmup: of training by Adam with cosine decay.
        equal_compute: cheaper networks make more steps, until they have the products of the dearest ones.
        rates, alphas: what each arm chooses from by validation error.
        trial_steps, trial_seeds: the choice is made after so many steps, on so many seeds of its own.
        slots: networks in one program.
    """

    frequencies: tuple[int, ...] = (16,)
    methods: tuple[str, ...] = METHODS
    other_frequencies: tuple[int, ...] = (4, 8, 32)
    other_methods: tuple[str, ...] = ("standard", "damped", "gradient", "gradient-full-x4")
    width: int = 64
    blocks: int = 3
    first_scale: float = 16.0
    activation: str = "tanh"
    samples: int = 1000
    noise: float = 0.1
    validation_samples: int = 500
    test_points: int = 2000
    steps: int = 3000
    batch_size: int = 50
    warmup: float = 0.05
    equal_compute: bool = False
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    alphas: tuple[float, ...] = (0.0, 3.0)
    trial_steps: int = 1200
    trial_seeds: int = 2
    slots: int = 32

    @property
    def every_frequency(self) -> tuple[int, ...]:
        """All d, the main ones first."""
        return (*self.frequencies, *self.other_frequencies)

    def methods_at(self, frequency: int) -> tuple[str, ...]:
        """The methods that run at a frequency."""
        return self.methods if frequency in self.frequencies else self.other_methods

    def arms(self) -> dict[str, Arm]:
        """The arms by name."""
        arms = [Arm(method, d) for d in self.every_frequency for method in self.methods_at(d)]
        return {arm.name: arm for arm in arms}

    @property
    def epochs(self) -> float:
        """Of a run."""
        return self.steps * self.batch_size / self.samples

    def factor(self, method: str) -> float:
        """By how much a method makes more steps than the dearest ones."""
        return _DEAREST / VARIANTS[method].cost if self.equal_compute else 1.0


class Choice(NamedTuple):
    """What validation data chose for an arm."""

    alpha: float
    rate: float


def train(
    config: SinusoidConfig,
    arm: Arm,
    alpha: float,
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    steps: int,
    slots: int,
) -> list[Member]:
    """Networks of an arm with each rate and seed."""
    problem = Sinusoid(arm.frequency, config.noise)
    # Each seed draws its training points first, then its validation points, from one generator.
    generators = [torch.Generator().manual_seed(1_000_000 * arm.frequency + seed) for seed in seeds]
    samples = _stacked([problem.sample(config.samples, generator) for generator in generators])
    validation = _stacked([problem.sample(config.validation_samples, generator) for generator in generators])
    build = partial(SinusoidNet, arm.method, config.width, config.blocks, alpha, config.first_scale, config.activation)
    settings = FitSettings(
        steps=round(steps * config.factor(arm.method)), batch_size=config.batch_size, warmup=config.warmup
    )
    return fit_many(
        build,
        *samples,
        validation=validation,
        seeds=seeds,
        grid={"learning_rate": rates},
        settings=settings,
        slots=slots,
    )


@lru_cache(maxsize=256)
def choose(config: SinusoidConfig, arm: Arm) -> Choice:
    """The alpha and rate with the least mean validation error over trial seeds."""
    alphas = config.alphas if gated(arm.method) else (0.0,)
    if len(alphas) * len(config.rates) == 1:
        return Choice(alphas[0], config.rates[0])
    seeds = range(_TRIAL_SEED, _TRIAL_SEED + config.trial_seeds)
    slots = config.trial_seeds * len(config.rates)
    errors: dict[Choice, float] = {}
    for alpha in alphas:
        for member in train(config, arm, alpha, config.rates, seeds, steps=config.trial_steps, slots=slots):
            choice = Choice(alpha, member.settings.learning_rate)
            error = member.result.best_validation_error
            errors[choice] = errors.get(choice, 0.0) + (error if math.isfinite(error) else math.inf)
    return min(errors, key=errors.__getitem__)


def gated(method: str) -> bool:
    """Whether a network mixes its skip by alpha, and the study says by which."""
    net = SinusoidNet(method, 4, 1)
    return any(name.endswith("alpha") for name in net.state_dict()) and "alpha" not in VARIANTS[method].arm


def _stacked(samples: Sequence[Samples]) -> Samples:
    x = torch.stack([each[0] for each in samples])  # (seeds, points, 1)
    y = torch.stack([each[1] for each in samples])
    return x, y
