"""Initial values that depend on the data."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from nablanets.arrays import as_tensor
from nablanets.maps.base import GradientMap
from nablanets.maps.protocols import HasBends, supports


@torch.no_grad()
def initialise_from_data(net: nn.Module, x: Tensor) -> None:
    """Put the bends of a fresh network where the data are.

    GradNet-C: each unit's offset in each layer makes W x + b zero at a random point of the data. Modular networks: the
    common sharpness t gives t W x a standard deviation of 1.35. Both are our choice; on the 2-D fields they gain
    several dB over offsets that ignore the data (docs/log.md). Sums, mixtures and changes of coordinates pass the
    points on as the maps inside see them. Maps without :class:`~nablanets.maps.protocols.HasBends` are left alone.

    Args:
        net: a fresh network, changed in place.
        x: points, (n, d); which of them are taken is drawn from torch's random state.

    >>> from nablanets import GradNetC
    >>> net, x = GradNetC(2, 5, num_layers=1), torch.rand(100, 2) + 50
    >>> initialise_from_data(net, x)
    >>> u = x @ net.weight.mT + net.ridge.bias[0]
    >>> bool(((u.amin(dim=0) <= 1e-4) & (u.amax(dim=0) >= -1e-4)).all())
    True
    """
    if supports(net, HasBends):
        x = as_tensor(x, owner="initialise_from_data", name="x")
        points = net.as_points(x) if isinstance(net, GradientMap) else x.to(next(net.parameters(), x))
        cast(HasBends, net).spread_units(points)
