"""Networks that start as the best affine gradient map, so that training can only gain on it."""

from __future__ import annotations

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.fitting.batches import check_samples
from nablanets.maps.base import GradientMap
from nablanets.maps.protocols import HasAffinePart, HasUnits, OuterTerm, require, supports
from nablanets.pieces.regression import symmetric_regression

# Size of the sum over units beside a linear term, relative to the gradients.
_UNITS_SHARE = 0.01


@torch.no_grad()
def initialise_affine(net: GradientMap, x: Tensor, g: Tensor) -> None:
    """Start a network as the best affine gradient map A x + b, found by least squares with a symmetric matrix.

    1. Fit A and b to the samples.
    2. With a linear term, A goes there, and the sum over the hidden units is made small. A monotone network without
       one gets A by its units: W = Q A^{1/2} with a random Q of orthonormal columns, and outer weights for which the
       units' mean slope over the data is one, so that W^T W = A is the mean Jacobian.
    3. The constant makes the mean error zero.

    GradNet-C with weighted tanh starts with equal weights, which makes its units linear. Our choice.

    Args:
        net: a fresh map with the methods of :class:`~nablanets.maps.protocols.HasAffinePart` and, where it has hidden
            units, of :class:`~nablanets.maps.protocols.HasUnits`; changed in place.
        x, g: samples, (n, d); Q is drawn from torch's random state.

    Raises:
        InvalidInputError: the map lacks the methods, or it has no linear term and is not monotone.

    >>> from nablanets import GradNetC
    >>> net, x = GradNetC(2, 5, monotone=True, linear=False), torch.rand(100, 2)
    >>> initialise_affine(net, x, 3 * x + 1)
    >>> torch.allclose(net(x), 3 * x + 1, atol=1e-4)
    True
    """
    affine: HasAffinePart = require(net, HasAffinePart, owner="initialise_affine")
    x, g = check_samples(net, x, g, owner="initialise_affine")
    matrix, _ = symmetric_regression(x.double(), g.double())
    if affine.has_linear_term():
        if supports(net, HasUnits):
            units: HasUnits = require(net, HasUnits, owner="initialise_affine")
            size = float((g - g.mean(dim=0)).square().mean().sqrt())
            shrink_units(units.unit_terms(), x, _UNITS_SHARE * size)
        affine.set_linear_term(matrix)
    elif net.monotone:
        units = require(net, HasUnits, owner="initialise_affine")
        weight = framed_root(matrix, len(units.directions()), units.unit_groups())
        units.place_units(weight.to(x), x)
    else:
        raise InvalidInputError(
            "initialise_affine: a network that is neither monotone nor has a linear term cannot start as an affine "
            "map. Build it with linear=True."
        )
    centre_error(net, x, g)


@torch.no_grad()
def centre_error(net: GradientMap, x: Tensor, g: Tensor) -> None:
    """Choose the constant b so that the mean error over samples is zero."""
    affine: HasAffinePart = require(net, HasAffinePart, owner="centre_error")
    mean_error = (g - net(x)).mean(dim=0)  # (d)
    affine.add_constant(mean_error)


def framed_root(matrix: Tensor, rows: int, groups: int = 1) -> Tensor:
    """W = Q A^{1/2}, (rows, d): Q random with orthonormal columns whose sums over each group of rows vanish.

    With fewer rows than A has eigenvalues (less one for each group, whose sum is taken out), the largest are kept.
    """
    values, vectors = torch.linalg.eigh(matrix)  # ascending
    spare = groups if groups > 1 else 0
    kept = min(len(values), rows - spare)
    draw = torch.randn(groups, rows // groups, kept, dtype=matrix.dtype)
    if groups > 1:
        draw = draw - draw.mean(dim=1, keepdim=True)
    frame = torch.linalg.qr(draw.flatten(0, 1)).Q.to(matrix.device)  # (rows, kept)
    lowest = len(values) - kept
    roots = values[lowest:].clamp(min=0).sqrt()
    return (frame * roots) @ vectors[:, lowest:].mT


def shrink_units(terms: list[OuterTerm], x: Tensor, size: float) -> None:
    """Give all coefficients of hidden units one magnitude, for which their sum has root mean square ``size`` at x.

    Signs stay, so that a network whose modules alternate still does.
    """
    signs = [torch.ones_like(term.values) if term.positive else term.values.sign() for term in terms]
    total = torch.zeros_like(x)
    for term, sign in zip(terms, signs, strict=True):
        total = total + term.value(x, sign)
    present = float(total.std(dim=0).square().mean().sqrt())
    factor = size / max(present, 1e-30)
    for term, sign in zip(terms, signs, strict=True):
        term.write(factor * sign)
