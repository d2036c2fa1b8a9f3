"""What a fit is about: batches to train on, samples to validate on, and what is minimised on both."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from nablanets.arrays import as_tensor
from nablanets.errors import InvalidInputError
from nablanets.fitting.batches import Batches, BatchSource, FreshBatches, Sampler, Samples, check_samples, split
from nablanets.fitting.objective import Objective, PackedTargets, squared_error
from nablanets.fitting.scale import power_of_two, unit_of_targets, warn_of_units
from nablanets.fitting.settings import FitSettings

#: Gradients at the points, or what else is known there.
Targets: TypeAlias = Tensor | PackedTargets
#: Points and their targets.
Pair: TypeAlias = tuple[Tensor, Targets]


class Problem(NamedTuple):
    """What a fit is about.

    Attributes:
        batches: to train on; nothing of the validation samples is among them.
        validation: points and targets.
        objective: of the network on points and targets.
        unit: the size of the targets, a power of two.
    """

    batches: BatchSource
    validation: Samples
    objective: Objective
    unit: float = 1.0

    def loss_in(self, unit: float) -> Objective:
        """The objective in multiples of the square of a unit."""
        if unit == 1.0:
            return self.objective
        if self.objective is squared_error:
            return partial(squared_error, unit=unit)
        objective = self.objective
        return lambda net, points, targets: objective(net, points, targets) / unit**2

    def signature(self) -> dict[str, Any]:
        """JSON values that tell these samples and this objective from others, for checkpoints."""
        points, targets = self.validation
        sums = [float(points.double().sum()), float(targets.double().sum())]
        objective = self.objective.signature() if isinstance(self.objective, PackedTargets) else {}
        return {
            "training_samples": self.batches.signature(),
            "validation_samples": [list(points.shape), *sums],
            "objective": objective,
        }


def make_problem(
    net: nn.Module, x: Tensor | Sampler, g: Targets | None, validation: float | Pair, settings: FitSettings
) -> Problem:
    """Check the samples, hold out those to validate on, and say what is minimised.

    Args:
        net: decides on device and dtype.
        x, g, validation: see :func:`~nablanets.fitting.fit`.
        settings: batch_size, and the seed of the validation split and of the order of the batches.

    Raises:
        ShapeError, InvalidInputError: samples of the wrong shape or type, or with NaN; a combination of x, g and
            validation that says nothing.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    held_out = validation if isinstance(validation, int | float) else _samples(net, *validation, "fit (validation)")
    if isinstance(x, Tensor) and g is not None:
        train, held_out = split(*_samples(net, x, g, "fit"), held_out, generator)
        objective = g if isinstance(g, PackedTargets) else squared_error
        warn_of_units(net, x, g if isinstance(g, Tensor) else None)
        unit = power_of_two(g.size(*train)) if isinstance(g, PackedTargets) else unit_of_targets(train[1])
        batches = Batches(*train, settings.batch_size, generator)
        return Problem(batches, held_out, objective, unit)
    if isinstance(x, Tensor) or g is not None or isinstance(held_out, int | float):
        raise InvalidInputError(
            "fit: expected points and gradients; or a function (count, generator) that draws fresh samples, without "
            f"gradients and with validation=(x, g). Got {type(x).__name__}, {type(g).__name__} and validation of type "
            f"{type(validation).__name__}."
        )
    unit = unit_of_targets(held_out[1])
    return Problem(FreshBatches(net, x, settings.batch_size, generator), held_out, squared_error, unit)


def as_samples(x: Any, g: Any, owner: str) -> tuple[Any, Any]:
    """Points and gradients as tensors where they come as arrays, tables or lists; functions and targets as they are."""
    if not callable(x):
        x = as_tensor(x, owner=owner, name="x")
    if g is not None and not isinstance(g, PackedTargets):
        g = as_tensor(g, owner=owner, name="g")
    return x, g


def _samples(net: nn.Module, x: Tensor, g: Targets, owner: str) -> Samples:
    """Points, and gradients or packed targets."""
    if not isinstance(g, PackedTargets):
        return check_samples(net, x, g, owner=owner)
    x, _ = check_samples(net, x, x, owner=owner)
    return x, g.pack(x)
