"""The networks of the sinusoid study, and how they are trained: all seeds of an arm as one program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nablanets.errors import unknown_name
from nablanets.problems.sinusoid import Sinusoid
from nablanets.residual.arms import ARMS, residual
from nablanets.serialization import savable
from nablanets.training import FitSettings, Member, fit_many

METHODS = (*ARMS, "wider", "fourier", "siren")
#: Arms that carry gradients, and the controls of their size that carry none.
CARRYING = ("magnitude", "pure", "gradient", "gradient-full", "gradient-probe")
CONTROLS = ("standard", "no-skip", "scalar", "damped", "random")

_CHOOSE_ALPHA = ("magnitude", "gradient", "gradient-full", "gradient-probe")
_ALPHA_OF_GRADIENT = ("damped", "random")
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
_TRIAL_SEED = 1000
_FOURIER_DEVIATION = 10.0
_SIREN_FREQUENCY = 30.0


@dataclass(frozen=True)
class SinusoidConfig:
    """Settings of a run.

    Attributes:
        frequencies: the d of sin(d pi x).
        methods: which of the arms to run; the names are those of the table without the frequency.
        width, blocks: of the networks; each block has two layers.
        activation: "relu", "gelu" or "tanh".
        samples, noise: training points and the standard deviation of the noise on their targets.
        validation_samples: further noisy points.
        test_points: a regular grid without noise.
        steps, batch_size: of training by Adam with cosine decay.
        rates, alphas: what each arm chooses from by validation error.
        trial_steps, trial_seeds: the choice is made after so many steps, on so many seeds of its own.
    """

    frequencies: tuple[int, ...] = (4, 8, 16, 32)
    methods: tuple[str, ...] = METHODS
    width: int = 64
    blocks: int = 3
    activation: str = "relu"
    samples: int = 1000
    noise: float = 0.1
    validation_samples: int = 500
    test_points: int = 2000
    steps: int = 10_000
    batch_size: int = 100
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    alphas: tuple[float, ...] = (-3.0, 0.0, 3.0)
    trial_steps: int = 2000
    trial_seeds: int = 4


class Choice(NamedTuple):
    """What validation data chose for an arm."""

    alpha: float
    rate: float


@savable
class SinusoidNet(nn.Module):
    """A network of one variable: a linear layer, residual blocks of two layers, a linear layer.

    "wider" is "standard" at a width with 1.5 times the products, the cost of back-propagating through the gradient;
    "fourier" is "standard" behind random Fourier features in place of the first layer; "siren" has as many layers of
    sines and no skips.

    >>> SinusoidNet("gradient", width=8, blocks=2, alpha=3.0)(torch.zeros(5, 1)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self, method: str, width: int = 64, blocks: int = 3, alpha: float = 0.0, activation: str = "relu"
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
        if activation not in _ACTIVATIONS:
            raise unknown_name("activation", activation, _ACTIVATIONS)
        self._arguments = {"method": method, "width": width, "blocks": blocks}
        self._arguments |= {"alpha": alpha, "activation": activation}
        if method == "siren":
            self.layers = _siren(width, blocks)
            return
        width = round(1.5**0.5 * width) if method == "wider" else width
        first = FourierFeatures(width, _FOURIER_DEVIATION) if method == "fourier" else nn.Linear(1, width)
        skip = ARMS.get(method, ARMS["standard"])
        middle = [_residual(width, _ACTIVATIONS[activation], alpha, skip) for _ in range(blocks)]
        self.layers = nn.Sequential(first, *middle, nn.Linear(width, 1))

    def config(self) -> dict[str, Any]:
        return self._arguments

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class FourierFeatures(nn.Module):
    """cos and sin of 2 pi w x, for fixed w from a normal distribution."""

    frequencies: Tensor

    def __init__(self, width: int, deviation: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", deviation * torch.randn(1, width // 2))

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * x @ self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=-1)


class Sine(nn.Module):
    """sin(w x), w that of SIREN."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(_SIREN_FREQUENCY * x)


def train(
    config: SinusoidConfig, arm: tuple[str, int], alpha: float, rates: Sequence[float], seeds: Sequence[int], steps: int
) -> list[Member]:
    """Networks of an arm (method and frequency) with each rate and seed."""
    method, frequency = arm
    problem, generator = Sinusoid(frequency, config.noise), torch.Generator().manual_seed(frequency)
    return fit_many(
        partial(SinusoidNet, method, config.width, config.blocks, alpha, config.activation),
        *problem.sample(config.samples, generator),
        validation=problem.sample(config.validation_samples, generator),
        seeds=seeds,
        grid={"learning_rate": rates},
        settings=FitSettings(steps=steps, batch_size=config.batch_size),
    )


@lru_cache(maxsize=256)
def choose(config: SinusoidConfig, method: str, frequency: int) -> Choice:
    """The alpha and rate with the least mean validation error over trial seeds."""
    alphas = config.alphas if method in _CHOOSE_ALPHA else (0.0,)
    if method in _ALPHA_OF_GRADIENT:
        alphas = (choose(config, "gradient", frequency).alpha,)
    if len(alphas) * len(config.rates) == 1:
        return Choice(alphas[0], config.rates[0])
    seeds = range(_TRIAL_SEED, _TRIAL_SEED + config.trial_seeds)
    errors: dict[Choice, float] = {}
    for alpha in alphas:
        for member in train(config, (method, frequency), alpha, config.rates, seeds=seeds, steps=config.trial_steps):
            choice, error = Choice(alpha, member.settings.learning_rate), member.result.best_validation_error
            errors[choice] = errors.get(choice, 0.0) + (error if math.isfinite(error) else math.inf)
    return min(errors, key=errors.__getitem__)


def _residual(width: int, activation: type[nn.Module], alpha: float, skip: dict[str, Any]) -> nn.Module:
    block = nn.Sequential(nn.Linear(width, width), activation(), nn.Linear(width, width))
    return residual(block, {**skip, "alpha": alpha, "learn_alpha": False})


@torch.no_grad()
def _siren(width: int, blocks: int) -> nn.Sequential:
    hidden = [nn.Linear(width, width) for _ in range(2 * blocks)]
    first, last = nn.Linear(1, width), nn.Linear(width, 1)
    first.weight.uniform_(-1, 1)
    bound = (6 / width) ** 0.5 / _SIREN_FREQUENCY
    for layer in (*hidden, last):
        layer.weight.uniform_(-bound, bound)
    return nn.Sequential(first, Sine(), *(part for layer in hidden for part in (layer, Sine())), last)
