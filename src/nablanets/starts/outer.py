"""The outer coefficients of a gradient network in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.fitting.batches import check_samples
from nablanets.maps import GradNetC, GradNetM
from nablanets.parameters import inverse_softplus

_CHUNK = 65536
# Directions in which the normal equations say less than this, relative to the best known one, are left at zero.
_CUTOFF = 1e-13


@torch.no_grad()
def solve_outer(net: GradNetC | GradNetM, x: Tensor, g: Tensor, *, least: float = 1e-3) -> None:
    r"""Put the least-squares values of all coefficients that f is linear in into a network.

    With the inner weights fixed, :math:`f(x) = \sum_k \theta_k z_k(x) v_k` with known scalars z_k and vectors v_k, and
    the least-squares coefficients solve

    .. math:: (V V^\top \circ Z^\top Z)\,\theta = \mathrm{diag}(V G^\top Z).

    They are alpha of the last layer (GradNet-C) or the scales a_m (GradNet-M), the constant b, and of the linear term
    the diagonal, and the weights c_k if it is not monotone. In monotone networks alpha, a and the diagonal are bounded
    from below (bounded-variable least squares), so f stays monotone.

    Args:
        net: a GradNetC or GradNetM, changed in place.
        x: points, (n, d).
        g: gradients, (n, d).
        least: bound from below of the coefficients that monotonicity keeps positive. At zero, the derivative of
            softplus would vanish and training could not bring them back.

    Raises:
        InvalidInputError: another kind of map, or least <= 0. ShapeError: samples of the wrong shape.

    >>> net, x = GradNetC(2, 20, activation="tanh"), torch.rand(200, 2)
    >>> solve_outer(net, x, 3 * x.flip(-1))
    >>> bool((net(x) - 3 * x.flip(-1)).square().mean() < 1e-3)
    True
    """
    if not least > 0:
        raise InvalidInputError(f"solve_outer: expected least > 0, got {least}.")
    x, g = check_samples(net, x, g, owner="solve_outer")
    terms = outer_terms(net)
    gram, right = _normal_equations(net, terms, x, g)
    lower = torch.cat([torch.full((term.target.numel(),), least if term.positive else -torch.inf) for term in terms])
    solution = torch.from_numpy(_bounded(gram.numpy(), right.numpy(), lower.numpy())).to(x)
    for term, part in zip(terms, solution.split([term.target.numel() for term in terms]), strict=True):
        term.target.copy_(inverse_softplus(part) if term.positive else part)


class OuterTerm(NamedTuple):
    """Coefficients, each of ``width`` consecutive columns z_j(x) v_j: z gives (n, q), ``vectors`` is (q, d)."""

    target: Tensor
    z: Callable[[Tensor], Tensor]
    vectors: Tensor
    positive: bool = False
    width: int = 1

    def columns(self, x: Tensor) -> Tensor:
        """f per unit of each coefficient, (*, d, p)."""
        z = self.z(x).unsqueeze(-2) * self.vectors.mT
        return z.unflatten(-1, (-1, self.width)).sum(dim=-1)


def outer_terms(net: GradNetC | GradNetM) -> list[OuterTerm]:
    """All coefficients that a network is linear in."""
    identity = torch.eye(net.features).to(next(net.parameters()))
    if isinstance(net, GradNetC):
        first = OuterTerm(net.ridge.alpha_raw[-1], net.hidden, net.weight, net.monotone)
    elif isinstance(net, GradNetM):
        hidden, width = net.hidden, net.hidden_features
        first = OuterTerm(net.scale_raw, lambda x: hidden(x).flatten(-2), net.weight.flatten(0, 1), net.monotone, width)
    else:
        raise InvalidInputError(f"solve_outer: expected a GradNetC or GradNetM, got {type(net).__name__}.")
    terms = [first, OuterTerm(net.bias, torch.ones_like, identity)]
    if net.linear is not None:
        terms.append(OuterTerm(net.linear.diagonal_raw, lambda x: x, identity, net.monotone))
        factor, weights = net.linear.factor, net.linear.weights
        if factor is not None and weights is not None:
            terms.append(OuterTerm(weights, lambda x: x @ factor.mT, factor))
    return terms


def _fixed_part(net: GradNetC | GradNetM, x: Tensor) -> Tensor:
    """What f has besides the terms: V^T V x of a monotone linear term."""
    linear = net.linear
    if linear is None or linear.factor is None or linear.weights is not None:
        return torch.zeros_like(x)
    return x @ linear.factor.mT @ linear.factor


def _normal_equations(net: GradNetC | GradNetM, terms: list[OuterTerm], x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """V V^T o Z^T Z and diag(V G^T Z), columns of one coefficient summed, in float64 on the CPU."""
    vectors = torch.cat([term.vectors for term in terms]).double()
    inner = torch.zeros(len(vectors), len(vectors)).to(vectors)
    outer = torch.zeros_like(vectors)
    for points, values in zip(x.split(_CHUNK), g.split(_CHUNK), strict=True):
        z = torch.cat([term.z(points) for term in terms], dim=-1).double()
        inner += z.mT @ z
        outer += z.mT @ (values - _fixed_part(net, points)).double()
    widths = torch.tensor([term.width for term in terms for _ in range(term.target.numel())])
    owners = torch.nn.functional.one_hot(torch.arange(len(widths)).repeat_interleave(widths)).double()
    gram, right = (vectors @ vectors.mT * inner).cpu(), (vectors * outer).sum(dim=-1).cpu()
    return owners.mT @ gram @ owners / len(x), owners.mT @ right / len(x)


def _bounded(gram: np.ndarray, right: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The minimiser of t'At/2 - b't with t >= lower; the shortest one where A is singular."""
    values, basis = np.linalg.eigh(gram)
    kept = values > _CUTOFF * values[-1]
    root = np.sqrt(values[kept])
    matrix, target = root[:, None] * basis[:, kept].T, basis[:, kept].T @ right / root
    return lsq_linear(matrix, target, bounds=(lower, np.inf), method="bvls", tol=1e-14).x
