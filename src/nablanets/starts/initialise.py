"""Initial values that depend on the data."""

from __future__ import annotations

import torch
from torch import Tensor

from nablanets.maps import GradientMap, GradNetC, GradNetM
from nablanets.parameters import inverse_softplus

# Standard deviation of t_m W_m x over the data that module activations start with.
_MODULE_SPREAD = 1.35


@torch.no_grad()
def initialise_from_data(net: GradientMap, x: Tensor) -> None:
    """Put the bends of a fresh network where the data are.

    GradNet-C: each unit's offset in each layer makes W x + b zero at a random point of the data. GradNet-M: the common
    sharpness t gives t W x a standard deviation of 1.35. Both are our choice; on the 2-D fields they gain several dB
    over offsets that ignore the data (docs/log.md). Other maps are left alone.

    Args:
        net: a fresh network, changed in place.
        x: points, (n, d); which of them are taken is drawn from torch's random state.

    >>> net, x = GradNetC(2, 5, num_layers=1), torch.rand(100, 2) + 50
    >>> initialise_from_data(net, x)
    >>> u = x @ net.weight.mT + net.ridge.bias[0]
    >>> bool(((u.amin(dim=0) <= 1e-4) & (u.amax(dim=0) >= -1e-4)).all())
    True
    """
    if isinstance(net, GradNetC):
        rows = torch.randint(len(x), net.ridge.bias.shape, device=x.device)
        net.ridge.bias.copy_(-(x.to(net.weight)[rows] * net.weight).sum(dim=-1))
    elif isinstance(net, GradNetM):
        spread = (x.to(net.weight) @ net.weight.flatten(0, 1).mT).std(dim=0).square().mean().sqrt()
        if spread > 0:
            net.sharpness_raw.fill_(inverse_softplus(_MODULE_SPREAD / float(spread)))
