"""Standardised coordinates that keep a map a gradient."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.arrays import as_tensor
from nablanets.errors import DataWarning
from nablanets.maps import Constant, Coordinates, GradientMap, Pullback, Scale, Sum

# A column that varies by fewer roundings of its largest number is constant.
_ROUNDINGS = 32
# The centre is subtracted in float64 where the type of the network would lose more of the spread than this.
_LARGEST_LOSS = 1e-4
# Size of the rest, compared with the mean, of gradients that are constant.
_SIZE_BESIDE_CONSTANT = 1e-6


def standardised(net: GradientMap, x: Tensor, g: Tensor, *, isotropic: bool = False) -> GradientMap:
    """The map x -> c A (g(A (x - mean)) + m) around a net g that then sees data of zero mean and unit size.

    A is diagonal with 1 / standard deviation of each feature, c A m is the mean gradient and c the size of the rest;
    separate scalings of input and output would break the symmetry of the Jacobian. All of it is computed in float64.
    Where points are far from zero the result takes them in float64, see :class:`~nablanets.maps.Pullback`.

    A feature that varies by no more than rounding counts as constant, with a :class:`~nablanets.errors.DataWarning`.

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
    reference = next(net.parameters(), x)
    scales = _Scales.of(x.detach(), g.detach(), isotropic)
    scale = (1 / scales.spread).to(reference)
    constant = Constant((scales.mean_g * scales.spread / scales.size).to(reference))
    loss = torch.finfo(reference.dtype).eps * float((scales.mean_x / scales.spread).abs().max())
    inner = Sum([net, constant])
    if loss > _LARGEST_LOSS:
        return Scale(Pullback(inner, scale, centre=scales.mean_x.to(reference.device)), scales.size)
    offset = (-scales.mean_x / scales.spread).to(reference)
    return Scale(Pullback(inner, scale, offset), scales.size)


class _Scales(NamedTuple):
    """What samples are measured in, float64.

    Attributes:
        mean_x, mean_g: means, (d).
        spread: standard deviations of the features, (d).
        size: of the gradients without their mean, in units of 1 / spread.
    """

    mean_x: Tensor
    mean_g: Tensor
    spread: Tensor
    size: float

    @classmethod
    def of(cls, x: Tensor, g: Tensor, isotropic: bool) -> _Scales:
        rounding = _ROUNDINGS * torch.finfo(x.dtype).eps
        x, g = x.double(), g.double()
        mean_x, mean_g = x.mean(dim=0), g.mean(dim=0)
        spread = x.std(dim=0, correction=0)  # (d)
        varies = spread > rounding * x.abs().amax(dim=0)
        _warn_of_constants(varies, mean_x)
        if isotropic and bool(varies.any()):
            spread = spread[varies].square().mean().sqrt().expand_as(spread)
            varies = torch.ones_like(varies)
        rest = g - mean_g
        if not bool(varies.any()):
            return cls(mean_x, mean_g, torch.ones_like(spread), _size(rest, mean_g))
        size = _size((rest * spread)[:, varies], (mean_g * spread)[varies])
        # Of a constant feature no spread is known; this one lets the net give its gradients their size.
        deviation = rest.square().mean(dim=0).sqrt()
        usual = spread[varies].log().mean().exp()
        instead = torch.where(deviation > rounding * mean_g.abs(), size / deviation, usual)
        return cls(mean_x, mean_g, torch.where(varies, spread, instead), size)


def _size(rest: Tensor, mean: Tensor) -> float:
    """The root mean square of gradients without their mean; little beside the mean if nothing is left."""
    size = float(rest.square().mean().sqrt())
    size_of_mean = float(mean.square().mean().sqrt())
    if size > _ROUNDINGS * torch.finfo(torch.float64).eps * size_of_mean:
        return size
    return _SIZE_BESIDE_CONSTANT * size_of_mean or 1.0


def _warn_of_constants(varies: Tensor, mean: Tensor) -> None:
    constant = [f"{i + 1} (at {float(mean[i]):.6g})" for i in (~varies).nonzero().flatten().tolist()]
    if constant:
        warnings.warn(
            f"feature {', '.join(constant)} does not vary by more than rounding and counts as constant: nothing can "
            "be learned of how the field depends on it.",
            DataWarning,
            stacklevel=4,
        )


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
