"""What is to be fitted: samples, the folds that choose among networks, and the frame that networks see."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.errors import DataWarning
from nablanets.fitting.batches import Samples
from nablanets.fitting.grids import hold_out
from nablanets.maps import GradientMap, Symmetrized
from nablanets.starts import standardised

# With fewer samples than the first number, so many folds: one fold of few samples says little.
_FOLDS = ((400, 5), (1500, 3))
# Of the samples, what a single fold holds out at least.
_FRACTION = 0.1
# A coordinate can be symmetric about zero if its middle is this near to zero, relative to its range.
_NEAR_ZERO = 0.1


class Fold(NamedTuple):
    """Rows to train on and rows to judge by."""

    training: Tensor
    validation: Tensor


@dataclass(frozen=True)
class Task:
    """Samples of a field, and how they are to be fitted.

    Attributes:
        x, g: float64, (n, d).
        folds: each holds out other samples.
        held_out: in words, what the folds hold out.
        monotone: only monotone networks are wanted.
        reflections: coordinates whose reflection x_j -> -x_j the map is to follow, f(R x) = R f(x).
        seed: of everything random.
    """

    x: Tensor
    g: Tensor
    folds: tuple[Fold, ...]
    held_out: str
    monotone: bool
    reflections: tuple[int, ...] = ()
    seed: int = 0

    @property
    def features(self) -> int:
        return self.x.shape[1]

    def training(self, fold: Fold) -> Samples:
        return self.x[fold.training], self.g[fold.training]

    def validation(self, fold: Fold) -> Samples:
        return self.x[fold.validation], self.g[fold.validation]

    def all_samples(self) -> Fold:
        """A fold without anything held out, for the last fit."""
        everything = torch.arange(len(self.x))
        return Fold(everything, everything)

    def with_reflections(self, reflections: tuple[int, ...]) -> Task:
        return replace(self, reflections=reflections)

    def with_monotone(self) -> Task:
        return replace(self, monotone=True)

    def framed(self, core: GradientMap, samples: Samples) -> GradientMap:
        """The network inside the change of units, and inside the reflections, so that it sees numbers near one."""
        x, g = self._reflected(samples)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # what there is to say was said of all samples
            framed = standardised(core, x, g)
        if not self.reflections:
            return framed
        return Symmetrized(framed, _group(self.reflections, self.features).to(x))

    def seen(self, samples: Samples) -> Tensor:
        """The points as the network inside the frame sees them, about."""
        x, _ = self._reflected(samples)
        spread = x.std(dim=0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        return (samples[0] - x.mean(dim=0)) / spread

    def _reflected(self, samples: Samples) -> Samples:
        """With their images: their mean is then on the plane of the reflection."""
        if not self.reflections:
            return samples
        group = _group(self.reflections, self.features).to(samples[0])
        x = torch.cat([samples[0] @ matrix for matrix in group])
        g = torch.cat([samples[1] @ matrix for matrix in group])
        return x, g


def _group(coordinates: tuple[int, ...], features: int) -> Tensor:
    """All products of reflections of coordinates, (2^k, d, d)."""
    group = torch.eye(features).unsqueeze(0)
    for coordinate in coordinates:
        reflection = torch.eye(features)
        reflection[coordinate, coordinate] = -1
        group = torch.cat([group, group @ reflection])
    return group


def possible_reflections(x: Tensor) -> list[int]:
    """Coordinates whose range is about symmetric to zero."""
    low = x.amin(dim=0)
    high = x.amax(dim=0)
    is_central = (low + high).abs() < _NEAR_ZERO * (high - low)
    return is_central.nonzero().flatten().tolist()


def make_folds(x: Tensor, groups: Tensor | None, seed: int) -> tuple[tuple[Fold, ...], str]:
    """Folds of samples (n, d), and in words what they hold out: groups, lines of a grid, or rows at random.

    Raises:
        InvalidInputError: nothing can be held out.
    """
    number = next((count for limit, count in _FOLDS if len(x) < limit), 1)
    generator = torch.Generator().manual_seed(seed)
    fraction = max(_FRACTION, 1 / number if number > 1 else 0.0)
    first = hold_out(x, fraction, generator, groups=groups)
    folds = [Fold(first.training, first.validation)]
    if number > 1 and not first.lines and groups is None:
        return _partition(x, number, generator), f"each of {number} parts of the samples in turn"
    for _ in range(number - 1):
        other = hold_out(x, fraction, generator, groups=groups)
        folds.append(Fold(other.training, other.validation))
    times = f", {number} times" if number > 1 else ""
    return tuple(folds), first.description + times


def _partition(x: Tensor, number: int, generator: torch.Generator) -> tuple[Fold, ...]:
    """Each sample is held out once, and equal points together."""
    _, point = torch.unique(x, dim=0, return_inverse=True)
    points = int(point.max()) + 1
    part_of_point = torch.empty(points, dtype=torch.long)
    part_of_point[torch.randperm(points, generator=generator)] = torch.arange(points) % min(number, points)
    part = part_of_point[point]
    folds = []
    for k in range(min(number, points)):
        order = torch.randperm(len(x), generator=generator)
        folds.append(Fold(order[part[order] != k], order[part[order] == k]))
    return tuple(folds)
