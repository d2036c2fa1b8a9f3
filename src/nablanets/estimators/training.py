"""How estimators train: one function, behind which the way to fit may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from nablanets.automatic import autofit
from nablanets.errors import InvalidInputError
from nablanets.fitting import FitResult, FitSettings, fit_best_start
from nablanets.fitting.objective import PackedTargets
from nablanets.maps import GradientMap
from nablanets.starts import initialise_from_data

# Fewer samples than this are not divided: what is held out would say too little, and be missed in training.
_DIVIDED_FROM = 20
# L-BFGS and Levenberg-Marquardt see this many samples at once, at most.
_BATCH = 20_000
# Up to these sizes Levenberg-Marquardt is ahead, in error and in time.
_LEVENBERG_PARAMETERS = 500
_LEVENBERG_FEATURES = 16
# Validations in a training, and how many of them without a gain end it.
_VALIDATIONS = 40
_PATIENCE = 15


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes:
        starts: networks with different initial weights; the best one after a while goes on.
        max_iter: iterations of the optimiser, in all.
        max_seconds: training time at most; None for no limit.
        validation_fraction: of the samples that decide which start and which iteration is best.
        seed: of the initial weights and of the division.
    """

    starts: int
    max_iter: int
    max_seconds: float | None
    validation_fraction: float
    seed: int

    def __post_init__(self) -> None:
        for name, value in (("n_starts", self.starts), ("max_iter", self.max_iter)):
            if not value >= 1:
                raise InvalidInputError(f"estimator: expected {name} >= 1, got {value!r}.")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise InvalidInputError(f"estimator: expected max_seconds > 0 or None, got {self.max_seconds!r}.")
        if not 0 < self.validation_fraction < 1:
            raise InvalidInputError(
                f"estimator: expected validation_fraction between 0 and 1, got {self.validation_fraction!r}."
            )


def train(
    build: Callable[[], GradientMap], x: Tensor, targets: Tensor | PackedTargets, effort: Effort
) -> tuple[GradientMap, FitResult]:
    """The best of several trained networks, by validation. torch's random state is left alone.

    Args:
        build: makes a fresh network in float64, in the units of the data.
        x: points, (n, d), float64.
        targets: gradients, (n, d), or what else is known.
        effort: how much is tried.
    """

    def start() -> GradientMap:
        net = build()
        initialise_from_data(net, x)
        return net

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(effort.seed)
        sample = build()
        num_parameters = sum(parameter.numel() for parameter in sample.parameters())
        is_small = num_parameters <= _LEVENBERG_PARAMETERS and x.shape[1] <= _LEVENBERG_FEATURES
        levenberg = is_small and isinstance(targets, Tensor)
        starts = min(effort.starts, max(1, effort.max_iter // 4))
        start_steps = max(1, effort.max_iter // (8 if levenberg else 2 * starts))
        trainings = 1 if levenberg or starts == 1 else starts + 1  # one after the other, each with its own limit
        settings = FitSettings(
            steps=effort.max_iter,
            optimizer="levenberg" if levenberg else "lbfgs",
            batch_size=min(len(x), _BATCH),
            validate_every=max(1, effort.max_iter // _VALIDATIONS),
            patience=_PATIENCE,
            max_seconds=None if effort.max_seconds is None else effort.max_seconds / trainings,
            seed=effort.seed,
        )
        validation = effort.validation_fraction if len(x) >= _DIVIDED_FROM else (x, targets)
        net, result = fit_best_start(
            start,
            x,
            targets,
            starts=starts,
            start_steps=start_steps,
            settings=settings,
            validation=validation,
            progress=False,
        )
    return cast(GradientMap, net), result


def search(x: Tensor, gradients: Tensor, monotone: bool, budget: float, seed: int) -> tuple[GradientMap, float]:
    """The best map that :func:`~nablanets.autofit` finds in a time, and its mean squared error on held-out samples."""
    with torch.random.fork_rng(devices=[]):
        result = autofit(x, gradients, monotone=monotone or None, budget=budget, seed=seed, progress=False)
    mean_square = float(gradients.square().sum(dim=1).mean())
    return result.net, 10 ** (result.db / 10) * mean_square
