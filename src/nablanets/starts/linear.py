"""Ridge regression for the outer coefficients of a gradient network, also inside other maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nablanets.errors import FitError, InvalidInputError
from nablanets.fitting.batches import Samples, check_samples
from nablanets.maps.base import GradientMap
from nablanets.maps.protocols import HasOuterTerms, require, write_terms
from nablanets.starts.outer import normal_equations

# Up to so many coefficients one eigendecomposition is cheaper than a Cholesky decomposition for each ridge.
_SPECTRAL = 1500


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

    with tau the mean diagonal of the normal matrix. One eigendecomposition of the normal matrix serves all lambda (with
    many coefficients a Cholesky decomposition each is faster). With random inner weights this is the primal form of a
    kernel method for gradient fields. Costs n p^2 multiply-adds for p coefficients of a network (n d p^2 inside maps
    that bend coordinates) and memory for p^2 numbers.

    Args:
        net: a map with the methods of :class:`~nablanets.maps.protocols.HasOuterTerms` whose coefficients are free: a
            network that is not monotone, also inside pullbacks (to coordinates, too), symmetrised maps, scalings and
            sums; changed in place.
        x, g: points and gradients, (n, d).
        validation: points and gradients that choose lambda.
        ridges: the lambda to try.

    Raises:
        InvalidInputError: a map without these methods, or a monotone one (:func:`~nablanets.starts.solve_outer` keeps
            signs). FitError: equations that are singular for every ridge.

    >>> from nablanets import GradNetC, pair_forces
    >>> net, x = pair_forces(GradNetC(3, 50, 1, activation="sine"), 3), torch.randn(50, 9)
    >>> solve_ridge(net, x, -x, validation=(x, -x)).ridge in (1e-12, 1e-10, 1e-8, 1e-6, 1e-4)
    True
    """
    linear: HasOuterTerms = require(net, HasOuterTerms, owner="solve_ridge")
    x, g = check_samples(net, x, g, owner="solve_ridge")
    held_out = check_samples(net, *validation, owner="solve_ridge (validation)")
    terms = linear.outer_terms()
    if any(term.positive for term in terms):
        raise InvalidInputError(
            f"solve_ridge: expected a map whose coefficients may have any sign, got a {type(net).__name__} that is "
            "monotone, or has a monotone map inside. Use solve_outer, which keeps signs."
        )
    gram, right = normal_equations(net, x, g)
    solution = _spectral_solver(gram, right) if len(gram) <= _SPECTRAL else _cholesky_solver(gram, right)

    errors: dict[float, float] = {}
    for ridge in sorted(ridges, reverse=True):
        coefficients = solution(ridge)
        if coefficients is None:  # and the smaller ones are no better
            break
        write_terms(terms, coefficients)
        residual = net(held_out[0]) - held_out[1]
        errors[ridge] = float(residual.square().sum(dim=-1).mean())
    if not errors:
        raise FitError(
            f"solve_ridge: the normal equations are singular for every ridge of {tuple(ridges)}. Give larger ones."
        )
    best = min(errors, key=errors.__getitem__)
    coefficients = solution(best)
    if coefficients is not None:
        write_terms(terms, coefficients)
    return RidgeFit(best, errors)


def _spectral_solver(gram: Tensor, right: Tensor) -> Callable[[float], Tensor | None]:
    """The solution for a ridge, by one eigendecomposition for all of them."""
    values, basis = torch.linalg.eigh(gram)
    values = values.clamp(min=0)
    rotated = basis.mT @ right
    size = gram.diagonal().mean()  # tau

    def solution(ridge: float) -> Tensor | None:
        return basis @ (rotated / (values + ridge * size))

    return solution


def _cholesky_solver(gram: Tensor, right: Tensor) -> Callable[[float], Tensor | None]:
    """The solution for a ridge, by a Cholesky decomposition for each; None if it is too small for one."""
    size = gram.diagonal().mean()  # tau

    def solution(ridge: float) -> Tensor | None:
        shifted = gram.clone()
        shifted.diagonal().add_(ridge * size)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if failed:
            return None
        return torch.cholesky_solve(right.unsqueeze(1), factor).squeeze(1)

    return solution
