"""Standardised coordinates that keep a map a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from nablanets.arrays import as_tensor
from nablanets.maps import Constant, Coordinates, GradientMap, Pullback, Scale, Sum


def standardised(net: GradientMap, x: Tensor, g: Tensor, *, isotropic: bool = False) -> GradientMap:
    """The map x -> c A g(A x + b) + m around a net g that then sees data of zero mean and unit size.

    A is diagonal with 1 / standard deviation of each feature, b centres, m is the mean gradient and c the size of the
    rest; separate scalings of input and output would break the symmetry of the Jacobian.

    Args:
        net: the map to wrap; it is not copied.
        x: points, (n, d).
        g: gradients, (n, d).
        isotropic: one scale for all features.

    >>> from nablanets import GradNetC
    >>> x = 100 * torch.rand(50, 2) + 1000
    >>> standardised(GradNetC(2, 8), x, 5 * x)(x).shape
    torch.Size([50, 2])
    """
    x = as_tensor(x, owner="standardised", name="x")
    g = as_tensor(g, owner="standardised", name="g")
    deviation = x.std(dim=0, correction=0)  # (d)
    if isotropic:
        deviation = deviation.square().mean().sqrt().expand_as(deviation)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    mean = g.mean(dim=0)  # (d)
    size = float(((g - mean) * deviation).square().mean().sqrt())
    if size == 0:
        size = 1.0
    reference = next(net.parameters(), x)
    scale = (1 / deviation).to(reference)
    offset = (-x.mean(dim=0) / deviation).to(reference)
    inner = net.pullback(scale, offset)
    return Sum([Scale(inner, size), Constant(mean.to(reference))])


def standardised_inside(net: GradientMap, coordinates: Coordinates, x: Tensor, g: Tensor) -> GradientMap:
    """The map phi -> c A g(A phi + b) around a net g that then sees coordinates of zero mean and unit size.

    c makes J_phi^T c A v as large as the data g for v of unit variance. To be used inside a
    :class:`~nablanets.maps.CoordinatePullback` to the same coordinates.

    Args:
        net: the map to wrap; it is not copied.
        coordinates: phi.
        x: points, (n, d).
        g: gradients with respect to x, (n, d).

    >>> from nablanets import GradNetC
    >>> from nablanets.maps import CoordinatePullback, pair_distances
    >>> phi, x = pair_distances(3), torch.randn(50, 9)
    >>> CoordinatePullback(standardised_inside(GradNetC(3, 8), phi, x, -x), phi)(x).shape
    torch.Size([50, 9])
    """
    reference = next(net.parameters(), x)
    scale, offset, size = coordinate_scales(coordinates, x, g)
    inner = Pullback(net, scale.to(reference), offset.to(reference))
    return Scale(inner, float(size))


def coordinate_scales(coordinates: Coordinates, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A (m,), b (m,) and c of :func:`standardised_inside`."""
    value, pull = coordinates.linearise(x)  # (n, m)
    deviation = value.std(dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    random = torch.Generator().manual_seed(0)
    unit = torch.randn(value.shape, generator=random).to(value)
    pulled = pull(unit / deviation)  # (n, d)
    size = (g.square().mean() / pulled.square().mean()).sqrt()
    return 1 / deviation, -value.mean(dim=0) / deviation, size
