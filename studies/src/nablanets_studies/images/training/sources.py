"""Where batches come from: functions of seed and step alone, so that runs resume and spread over processes exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError, ShapeError
from nablanets_studies.images.training.seeds import derived_seed

#: Changes of a batch of pictures (and targets) by random numbers in [0, 1), one row per sample.
Augment = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Ticket:
    """Which samples a process needs: rows ``first`` to ``last`` of the batch of a step.

    Attributes:
        seed, step: what the whole batch follows from.
        size: samples in the whole batch.
        first, last: the part that is wanted.
    """

    seed: int
    step: int
    size: int
    first: int
    last: int

    @property
    def part(self) -> slice:
        return slice(self.first, self.last)

    def generator(self) -> torch.Generator:
        """Random numbers for the whole batch; draw for all of it and take the ``part``."""
        return torch.Generator().manual_seed(derived_seed(self.seed, self.step))

    def uniform(self, count: int) -> Tensor:
        """Random numbers in [0, 1), so many for each sample of the part.

        The type is named, since Fabric changes the default in another thread while batches load.
        """
        return torch.rand(self.size, count, generator=self.generator(), dtype=torch.float32)[self.part]

    def indices(self, samples: int) -> Tensor:
        """Samples of the part: epoch after epoch in an order of its own, without gaps between epochs.

        The orders of all epochs end to end are one endless list, of which a batch takes the next ``size`` entries; a
        batch may begin in one epoch and end in the next.

        >>> tickets = [Ticket(seed=0, step=step, size=4, first=0, last=4) for step in range(3)]
        >>> sorted(torch.cat([ticket.indices(6) for ticket in tickets]).tolist()) == sorted([*range(6), *range(6)])
        True
        """
        begin = self.step * self.size  # of the batch in the endless list
        place = torch.arange(begin + self.first, begin + self.last)
        epochs = place // samples
        within = place % samples
        result = torch.empty_like(place)
        for epoch in epochs.unique().tolist():
            chosen = epochs == epoch
            order = _order(self.seed, epoch, samples)
            result[chosen] = order[within[chosen]]
        return result


class Source(Protocol):
    """Batches to train on. ``len`` is the number of samples that count as an epoch."""

    def __len__(self) -> int: ...

    def batch(self, ticket: Ticket) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the ticket's part, a function of the ticket alone."""


class Stored:
    """Samples in memory.

    Args:
        x: inputs with the samples along the first dimension; bytes become floats in [0, 1].
        y: targets, as many.
        augment: changes inputs and targets by ``draws`` random numbers per sample.
        draws: how many.

    Raises:
        ShapeError: there are not as many targets as inputs, or none.

    >>> source = Stored(torch.rand(10, 1, 8, 8), torch.arange(10))
    >>> source.batch(Ticket(seed=0, step=0, size=4, first=0, last=4))[0].shape
    torch.Size([4, 1, 8, 8])
    """

    def __init__(self, x: Tensor, y: Tensor, augment: Augment | None = None, draws: int = 0) -> None:
        if len(x) != len(y) or len(x) == 0:
            raise ShapeError(f"Stored: expected as many targets as inputs, at least one, got {len(y)} and {len(x)}.")
        if augment is not None and draws < 1:
            raise InvalidInputError(f"Stored: expected draws >= 1 for an augmentation, got {draws}.")
        self.x = x
        self.y = y
        self.augment = augment
        self.draws = draws

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, ticket: Ticket) -> tuple[Tensor, Tensor]:
        index = ticket.indices(len(self))
        x = as_floats(self.x[index])
        y = self.y[index]
        return (x, y) if self.augment is None else self.augment(x, y, ticket.uniform(self.draws))


def as_floats(x: Tensor) -> Tensor:
    """Bytes as floats in [0, 1]; anything else as it is."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


@lru_cache(maxsize=2)  # a batch may touch two epochs
def _order(seed: int, epoch: int, samples: int) -> Tensor:
    place = -1 - epoch  # steps count upwards from zero, so that no order shares its seed with an augmentation
    generator = torch.Generator().manual_seed(derived_seed(seed, place))
    return torch.randperm(samples, generator=generator)
