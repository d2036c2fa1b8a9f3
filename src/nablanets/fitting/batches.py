"""Samples of a field: checks, the validation split, and batches whose order can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nablanets.arrays import as_tensor
from nablanets.errors import InvalidInputError, ShapeError, check_finite, check_points
from nablanets.fitting.grids import hold_out
from nablanets.maps import GradientMap


def check_samples(net: nn.Module, x: Any, g: Any, *, owner: str) -> tuple[Tensor, Tensor]:
    """Samples on the device and in the dtype of the network, after checks of shape, type and values.

    Arrays, tables and lists of numbers are taken as well, see :mod:`nablanets.arrays`.
    """
    x = as_tensor(x, owner=owner, name="x")
    g = as_tensor(g, owner=owner, name="g")
    features = getattr(net, "features", None)
    if not isinstance(features, int):
        features = x.shape[-1] if isinstance(x, Tensor) and x.ndim else 1
    for name, value in (("x", x), ("g", g)):
        check_points(value, features, owner=owner, name=name)
        if value.ndim != 2 or value.shape[0] == 0:
            raise ShapeError(
                f"{owner}: expected {name} of shape (n, {features}) with n >= 1, got {tuple(value.shape)}."
            )
        check_finite(value, owner=owner, name=name)
    if len(x) != len(g):
        raise ShapeError(f"{owner}: expected as many points as gradients, got {len(x)} points and {len(g)} gradients.")
    reference = next(net.parameters(), x)
    points = net.as_points(x.detach()) if isinstance(net, GradientMap) else x.detach().to(reference)
    targets = g.detach().to(reference)
    for name, value in (("x", points), ("g", targets)):
        if not bool(torch.isfinite(value).all()):
            raise InvalidInputError(
                f"{owner}: {name} has numbers that {value.dtype}, the type of the network, cannot hold. Take other "
                "units, or net.double()."
            )
    return points, targets


Samples = tuple[Tensor, Tensor]
#: Draws so many fresh samples of a field.
Sampler = Callable[[int, torch.Generator], Samples]


def split(x: Tensor, g: Tensor, validation: float | Samples, generator: torch.Generator) -> tuple[Samples, Samples]:
    """Training and validation samples.

    Args:
        x, g: all samples.
        validation: a fraction in (0, 1) to hold out, see :func:`~nablanets.fitting.grids.hold_out`: rows at random, and
            whole lines where points are on a grid; or the validation samples themselves.
        generator: draws what is held out.
    """
    if not isinstance(validation, int | float):
        return (x, g), validation
    held_out = hold_out(x, validation, generator)
    for_training = (x[held_out.training], g[held_out.training])
    for_validation = (x[held_out.validation], g[held_out.validation])
    return for_training, for_validation


class BatchSource(Protocol):
    """Where a fit takes its batches from: endless, and resumable from its state."""

    def next(self) -> Samples:
        """The next batch."""
        ...

    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs to give the batches that would come next: tensors and numbers."""
        ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def signature(self) -> list[Any]:
        """JSON values that tell these samples from others, for checkpoints."""
        ...


class Batches:
    """An endless stream of batches, reshuffled every epoch, that can be stored and resumed exactly.

    An epoch is shuffled once, as a whole, so that a batch is a view of consecutive rows. To resume, the generator is
    set back to where the epoch began, and the same order is drawn again.

    Args:
        x, g: samples, (n, d) and (n, k).
        size: of a batch; n if that is less.
        generator: draws the orders.
    """

    def __init__(self, x: Tensor, g: Tensor, size: int, generator: torch.Generator) -> None:
        self.x = x
        self.g = g
        self.size = min(size, len(x))
        self.generator = generator
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch_state = self.generator.get_state()
        self.position = 0
        order = torch.randperm(len(self.x), generator=self.generator).to(self.x.device)
        self._x = self.x.index_select(0, order)
        self._g = self.g.index_select(0, order)

    def next(self) -> Samples:
        """The next batch; rows that do not fill a batch at the end of an epoch wait for the next one."""
        if self.position + self.size > len(self.x):
            self._begin_epoch()
        rows = slice(self.position, self.position + self.size)
        self.position += self.size
        return self._x[rows], self._g[rows]

    def epoch(self) -> Samples:
        """All samples in the order of the present epoch."""
        return self._x, self._g

    def signature(self) -> list[Any]:
        """What tells these samples from others, for checkpoints."""
        return [list(self.x.shape), float(self.x.double().sum()), float(self.g.double().sum())]

    def state(self) -> dict[str, Any]:
        return {"epoch_state": self.epoch_state, "position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["epoch_state"])
        self._begin_epoch()
        self.position = state["position"]


class StackedBatches:
    """The batches that several :class:`Batches` would give at once, (B, size, d), each in its own order.

    Args:
        samples: common ones, or one entry for each generator, all of one shape.
        size: of a batch.
        generators: of the orders.
    """

    def __init__(self, samples: Sequence[Samples], size: int, generators: Sequence[torch.Generator]) -> None:
        self.features = samples[0][0].shape[1]
        self.generators = generators
        rows = [torch.cat(own, dim=1) for own in samples]  # x and g side by side: (n, 2 d)
        self.rows = rows if len(rows) > 1 else rows * len(generators)
        self.shuffled = rows[0].new_empty(len(generators), *rows[0].shape)  # (B, n, 2 d)
        self.size = min(size, self.shuffled.shape[1])
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.position = 0
        for rows, generator, shuffled in zip(self.rows, self.generators, self.shuffled, strict=True):
            order = torch.randperm(len(rows), generator=generator).to(rows.device)
            torch.index_select(rows, 0, order, out=shuffled)

    def next(self) -> Samples:
        """The next batches, views of an array that the next epoch overwrites."""
        if self.position + self.size > self.shuffled.shape[1]:
            self._begin_epoch()
        rows = self.shuffled[:, self.position : self.position + self.size]
        self.position += self.size
        return rows[..., : self.features], rows[..., self.features :]


class FreshBatches:
    """Batches of samples that are drawn when they are needed and seen once."""

    def __init__(self, net: nn.Module, sampler: Sampler, size: int, generator: torch.Generator) -> None:
        self.net = net
        self.sampler = sampler
        self.size = size
        self.generator = generator

    def next(self) -> Samples:
        x, g = self.sampler(self.size, self.generator)
        return check_samples(self.net, x, g, owner="fit")

    def signature(self) -> list[Any]:
        return ["fresh", self.size]

    def state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
