"""Points on grids, and what to hold out of them.

Between the nodes of a grid nothing is known. A network can be right at every node and wrong everywhere else, and nodes
that are held out at random do not tell: their neighbours on the same lines of the grid have the same coordinates. So
whole lines (in three dimensions planes) are held out: all samples that share one value of a coordinate. The network
has then never seen that value.

The same holds of repeated measurements at one point: all of them are held out, or none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError

# Values of a column that differ by fewer roundings of its largest number are the same level.
_ROUNDINGS = 4
# A column is on a grid if it has levels that are shared by so many samples on average,
_SAMPLES_PER_LEVEL = 4
# and at least so many levels: with one of three held out, two are left, which tell nothing of a curve.
_LEAST_LEVELS = 4
# Lines of more columns are held out as long as that takes no more of the samples than this.
_LARGEST_FRACTION = 0.35
# What is held out may exceed the fraction that was asked for by this factor, so that whole lines fit.
_EXCESS = 1.5


class HeldOut(NamedTuple):
    """Rows to train on and to validate on, and in words what was held out.

    Attributes:
        training, validation: indices of rows.
        lines: for each column on a grid of which lines were held out, how many.
        description: such as "lines of a grid: 1 of the 27 values of column 1, 1 of the 21 values of column 2".
    """

    training: Tensor
    validation: Tensor
    lines: dict[int, int]
    description: str


def levels(column: Tensor) -> Tensor:
    """The number of the level of each entry, (n,), from the least value on; entries that differ by rounding share one.

    >>> levels(torch.tensor([0.3, 0.0, 0.1 + 0.2], dtype=torch.double)).tolist()
    [1, 0, 1]
    """
    tolerance = _ROUNDINGS * torch.finfo(column.dtype).eps * float(column.abs().max())
    ordered, order = column.sort()
    is_next = ordered.diff() > tolerance
    numbers = torch.cat([is_next.new_zeros(1), is_next]).cumsum(dim=0)
    result = torch.empty_like(numbers)
    result[order] = numbers
    return result


def grid_columns(x: Tensor) -> dict[int, Tensor]:
    """The columns of points (n, d) that are on a grid, each with the level of every sample, (n,).

    A column is on a grid if it has at least four levels, and four samples on each of them on average.

    >>> nodes = torch.cartesian_prod(torch.arange(5.0), torch.rand(20))
    >>> [(column, int(level.max()) + 1) for column, level in grid_columns(nodes).items()]
    [(0, 5), (1, 20)]
    >>> grid_columns(torch.rand(100, 2))
    {}
    """
    found = {}
    for column in range(x.shape[1]):
        level = levels(x[:, column])
        count = int(level.max()) + 1
        if _LEAST_LEVELS <= count <= len(x) / _SAMPLES_PER_LEVEL:
            found[column] = level
    return found


def hold_out(x: Tensor, fraction: float, generator: torch.Generator, *, groups: Tensor | None = None) -> HeldOut:
    """Choose what to hold out: whole groups if there are any, whole lines of grids, else rows at random.

    1. With groups, groups at random until the fraction is reached.
    2. Else, where columns are on a grid (:func:`grid_columns`), lines of each such column at random, never the first or
       the last, which would ask the network to extrapolate. Columns of which a single line is too much are left out.
    3. Else rows at random; rows of equal points stay together.

    Args:
        x: points, (n, d).
        fraction: of the samples; of a grid it may be up to about a third, since lines are held out as a whole.
        generator: draws what is held out.
        groups: for each sample the number of the group that it belongs to, (n,).

    Raises:
        InvalidInputError: a fraction outside (0, 1), too few samples, or a single group.

    >>> nodes = torch.cartesian_prod(torch.arange(6.0), torch.arange(9.0))
    >>> held_out = hold_out(nodes, 0.1, torch.Generator().manual_seed(0))
    >>> held_out.description
    'lines of a grid: 1 of the 6 values of column 1, 1 of the 9 values of column 2'
    """
    if not 0 < fraction < 1:
        raise InvalidInputError(f"fit: expected validation to be a fraction in (0, 1) or samples, got {fraction}.")
    count = max(1, round(fraction * len(x)))
    if count >= len(x):
        raise InvalidInputError(f"fit: {len(x)} samples are too few to hold out {fraction:.0%} of them.")
    if groups is not None:
        return _whole_groups(groups, count, generator)
    lines = _choose_lines(grid_columns(x), fraction, generator)
    if lines:
        return _whole_lines(lines, generator)
    _, equal = torch.unique(x, dim=0, return_inverse=True)
    number = int(equal.max()) + 1
    if 1 < number < len(x):
        return _whole_groups(equal, count, generator, "points")
    order = torch.randperm(len(x), generator=generator).to(x.device)
    return HeldOut(order[count:], order[:count], {}, f"{count} of {len(x)} samples at random")


def _whole_groups(groups: Tensor, count: int, generator: torch.Generator, name: str = "groups") -> HeldOut:
    """Groups at random until they have so many samples, but not all of them."""
    _, number = torch.unique(groups, return_inverse=True)
    sizes = number.bincount()
    if len(sizes) < 2:
        raise InvalidInputError(
            "fit: all samples belong to one group, so none can be held out. Give groups of which some can be left out, "
            "or none."
        )
    order = torch.randperm(len(sizes), generator=generator).to(sizes.device)
    reached = sizes[order].cumsum(dim=0) >= count
    wanted = int(reached.to(torch.int8).argmax()) + 1
    chosen = order[: min(wanted, len(sizes) - 1)]
    is_held_out = torch.isin(number, chosen)
    training, validation = _shuffled(is_held_out, generator)
    return HeldOut(training, validation, {}, f"{len(chosen)} of {len(sizes)} {name}, {len(validation)} samples")


class _Lines(NamedTuple):
    """Lines of one column that are held out: the level of each sample, how many levels there are, and those chosen."""

    level: Tensor
    total: int
    chosen: Tensor


def _choose_lines(columns: dict[int, Tensor], fraction: float, generator: torch.Generator) -> dict[int, _Lines]:
    """Inner lines of as many columns as can be held out together; each column gets an equal part of the fraction."""
    lines: dict[int, _Lines] = {}
    kept = 1.0  # the share of samples that is left, about
    names = list(columns)
    for place in torch.randperm(len(names), generator=generator).tolist():
        column = names[place]
        level = columns[column]
        count = int(level.max()) + 1
        number = max(1, math.floor(fraction / len(names) * count))
        left = kept * (1 - number / count)
        if lines and 1 - left > max(_LARGEST_FRACTION, _EXCESS * fraction):
            continue
        inner = 1 + torch.randperm(count - 2, generator=generator).to(level.device)
        lines[column] = _Lines(level, count, inner[:number])
        kept = left
    return dict(sorted(lines.items()))


def _whole_lines(lines: dict[int, _Lines], generator: torch.Generator) -> HeldOut:
    parts = []
    is_held_out = torch.zeros_like(next(iter(lines.values())).level, dtype=torch.bool)
    for column, line in lines.items():
        is_held_out |= torch.isin(line.level, line.chosen)
        parts.append(f"{len(line.chosen)} of the {line.total} values of column {column + 1}")
    numbers = {column: len(line.chosen) for column, line in lines.items()}
    training, validation = _shuffled(is_held_out, generator)
    return HeldOut(training, validation, numbers, f"lines of a grid: {', '.join(parts)}")


def _shuffled(is_held_out: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows that are not held out and those that are, in random order."""
    order = torch.randperm(len(is_held_out), generator=generator).to(is_held_out.device)
    chosen = is_held_out[order]
    return order[~chosen], order[chosen]
