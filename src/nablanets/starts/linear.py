"""Ridge regression for the outer coefficients of a gradient network, also inside other maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.fitting.batches import Samples, check_samples
from nablanets.maps.base import GradientMap
from nablanets.maps.protocols import HasOuterTerms, require, write_terms
from nablanets.starts.outer import column_equations


class RidgeFit(NamedTuple):
    """The ridge that was taken, and the mean squared error on the validation samples for each one tried."""

    ridge: float
    errors: dict[float, float]


@torch.no_grad()
def solve_ridge(
    net: GradientMap,
    x: Tensor,
    g: Tensor,
    *,
    validation: Samples,
    ridges: Sequence[float] = (1e-12, 1e-10, 1e-8, 1e-6, 1e-4),
) -> RidgeFit:
    r"""Put the coefficients that f is linear in, theta, into a network by ridge regression; the ridge by validation.

    With the inner weights fixed, :math:`f(x) = Z(x)\,\theta`, and theta minimises

    .. math:: \tfrac1n \sum_i |Z(x_i)\theta - g_i|^2 + \lambda\,\tau\,|\theta|^2,

    with tau the mean diagonal of the normal matrix. One eigendecomposition of the normal matrix serves all lambda. With
    random inner weights this is the primal form of a kernel method for gradient fields. Costs n d p^2 multiply-adds for
    p coefficients, and memory for p^2 numbers.

    Args:
        net: a map with the methods of :class:`~nablanets.maps.protocols.HasOuterTerms` whose coefficients are free: a
            network that is not monotone, also inside pullbacks (to coordinates, too), symmetrised maps, scalings and
            sums; changed in place.
        x, g: points and gradients, (n, d).
        validation: points and gradients that choose lambda.
        ridges: the lambda to try.

    Raises:
        InvalidInputError: a map without these methods, or a monotone one (:func:`~nablanets.starts.solve_outer` keeps
            signs).

    >>> from nablanets import GradNetC, pair_forces
    >>> net, x = pair_forces(GradNetC(3, 50, 1, activation="sine"), 3), torch.randn(50, 9)
    >>> solve_ridge(net, x, -x, validation=(x, -x)).ridge in (1e-12, 1e-10, 1e-8, 1e-6, 1e-4)
    True
    """
    linear: HasOuterTerms = require(net, HasOuterTerms, owner="solve_ridge")
    x, g = check_samples(net, x, g, owner="solve_ridge")
    terms = linear.outer_terms()
    if any(term.positive for term in terms):
        raise InvalidInputError(
            f"solve_ridge: expected a map whose coefficients may have any sign, got a {type(net).__name__} that is "
            "monotone, or has a monotone map inside. Use solve_outer, which keeps signs."
        )
    gram, right = column_equations(net, x, g)
    values, basis = torch.linalg.eigh(gram)
    values = values.clamp(min=0)
    rotated = basis.mT @ right
    size = gram.diagonal().mean()  # tau

    def solution(ridge: float) -> Tensor:
        return basis @ (rotated / (values + ridge * size))

    errors: dict[float, float] = {}
    for ridge in ridges:
        write_terms(terms, solution(ridge))
        residual = net(validation[0]) - validation[1]
        errors[ridge] = float(residual.square().sum(dim=-1).mean())
    best = min(errors, key=errors.__getitem__)
    write_terms(terms, solution(best))
    return RidgeFit(best, errors)
