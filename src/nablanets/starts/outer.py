"""The outer coefficients of a gradient network in closed form."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from nablanets.errors import InvalidInputError
from nablanets.fitting.batches import check_samples
from nablanets.maps.base import GradientMap
from nablanets.maps.protocols import FactoredTerm, HasOuterTerms, OuterTerm, require, write_terms

# Samples whose scalars z are held at once.
_CHUNK = 65536
# Numbers in the columns (rows, d, p) that are held at once where they have no factors.
_COLUMN_NUMBERS = 2**25
# Directions in which the normal equations say less than this, relative to the best known one, are left at zero.
_CUTOFF = 1e-13


@torch.no_grad()
def solve_outer(net: GradientMap, x: Tensor, g: Tensor, *, least: float = 1e-3) -> None:
    r"""Put the least-squares values of all coefficients that f is linear in into a network.

    With the inner weights fixed, :math:`f(x) = \sum_k \theta_k z_k(x) v_k` with known scalars z_k and vectors v_k, and
    the least-squares coefficients solve

    .. math:: (V V^\top \circ Z^\top Z)\,\theta = \mathrm{diag}(V G^\top Z).

    They are alpha of the last layer (GradNet-C), the scales a_m (GradNet-M) or the coefficients of rho_m'
    (GradNetTransformed), the constant b, and of the linear term the diagonal, and the weights c_k if it is not
    monotone. In monotone networks alpha, a and the diagonal are bounded from below (bounded-variable least squares), so
    f stays monotone. In maps around a network the vectors v_k may depend on x; then all columns are formed.

    Args:
        net: a map with the methods of :class:`~nablanets.maps.protocols.HasOuterTerms`, such as a gradient network, a
            sum, a scaling or a change of coordinates of one; changed in place.
        x: points, (n, d).
        g: gradients, (n, d).
        least: bound from below of the coefficients that monotonicity keeps positive. At zero, the derivative of
            softplus would vanish and training could not bring them back.

    Raises:
        InvalidInputError: a map without these methods, or least <= 0. ShapeError: samples of the wrong shape.

    >>> from nablanets import GradNetC
    >>> net, x = GradNetC(2, 20, activation="tanh"), torch.rand(200, 2)
    >>> solve_outer(net, x, 3 * x.flip(-1))
    >>> bool((net(x) - 3 * x.flip(-1)).square().mean() < 1e-3)
    True
    """
    if not least > 0:
        raise InvalidInputError(f"solve_outer: expected least > 0, got {least}.")
    linear: HasOuterTerms = require(net, HasOuterTerms, owner="solve_outer")
    x, g = check_samples(net, x, g, owner="solve_outer")
    terms = linear.outer_terms()
    gram, right = normal_equations(net, x, g)
    bounds = [torch.full((term.count,), least if term.positive else -torch.inf) for term in terms]
    lower = torch.cat(bounds).double()
    solution = _bounded_minimiser(gram.numpy(), right.numpy(), lower.numpy())
    write_terms(terms, torch.from_numpy(solution).to(x))


def terms_at(net: GradientMap, begin: int, end: int) -> tuple[list[OuterTerm], HasOuterTerms]:
    """The terms of a map for samples begin to end, if it has something of its own for each sample, and that map."""
    part = net.rows(torch.arange(begin, end))
    linear: HasOuterTerms = require(part, HasOuterTerms, owner="outer coefficients")
    return linear.outer_terms(), linear


def normal_equations(net: GradientMap, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Z^T Z / n and Z^T (g - rest) / n for f = Z theta + rest, in float64 on the CPU.

    Where every coefficient multiplies scalars z_k(x) times fixed vectors v_k this costs n p^2 multiply-adds for p
    coefficients, else d times as many.
    """
    terms, _ = terms_at(net, 0, len(x))
    factored = [term for term in terms if isinstance(term, FactoredTerm)]
    if len(factored) == len(terms):
        return _factored_equations(net, factored, x, g)
    return column_equations(net, x, g)


def column_equations(net: GradientMap, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The same from the columns of Z, over chunks of samples."""
    terms, _ = terms_at(net, 0, len(x))
    size = sum(term.count for term in terms)
    rows = max(1, _COLUMN_NUMBERS // (size * net.features))
    gram = torch.zeros(size, size, dtype=torch.float64)
    right = torch.zeros(size, dtype=torch.float64)
    for begin in range(0, len(x), rows):
        points = x[begin : begin + rows]
        terms, linear = terms_at(net, begin, begin + len(points))
        columns = torch.cat([term.columns(points) for term in terms], dim=-1)  # (rows, d, p)
        target = g[begin : begin + rows] - linear.outer_rest(points)  # (rows, d)
        z = columns.flatten(0, 1).double()  # (rows d, p)
        gram += (z.mT @ z).cpu()
        right += (z.mT @ target.flatten().double()).cpu()
    return gram / len(x), right / len(x)


def _factored_equations(net: GradientMap, terms: list[FactoredTerm], x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The same from V V^T o Z^T Z and diag(V G^T Z): each z_k v_k first, then summed over those of one coefficient."""
    vectors = torch.cat([term.vectors for term in terms]).double()  # (q, d)
    inner = torch.zeros(len(vectors), len(vectors)).to(vectors)
    outer = torch.zeros_like(vectors)
    for begin in range(0, len(x), _CHUNK):
        points = x[begin : begin + _CHUNK]
        values = g[begin : begin + _CHUNK]
        own, linear = terms_at(net, begin, begin + len(points))
        scalars = [term.z(points) for term in own if isinstance(term, FactoredTerm)]
        z = torch.cat(scalars, dim=-1).double()  # (rows, q)
        inner += z.mT @ z
        outer += z.mT @ (values - linear.outer_rest(points)).double()
    gram = (inner * (vectors @ vectors.mT)).cpu()
    right = (vectors * outer).sum(dim=-1).cpu()
    widths = torch.cat([torch.full((term.count,), term.width) for term in terms])  # (p)
    if int(widths.max()) > 1:
        owner = torch.arange(len(widths)).repeat_interleave(widths)  # (q): whose coefficient it is
        gram = _summed(_summed(gram, owner, len(widths)).mT, owner, len(widths))
        right = _summed(right, owner, len(widths))
    return gram / len(x), right / len(x)


def _summed(rows: Tensor, owner: Tensor, count: int) -> Tensor:
    """Sums of the rows that have the same owner, (count, *)."""
    return rows.new_zeros(count, *rows.shape[1:]).index_add_(0, owner, rows)


def _bounded_minimiser(gram: np.ndarray, right: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The minimiser of t'At/2 - b't with t >= lower; the shortest one where A is singular.

    With A = R^T R, R = diag(root of the eigenvalues) basis^T, it is the least-squares solution of R t = R^{-T} b, which
    scipy's bounded-variable least squares (Stark and Parker, 1995) finds.
    """
    values, basis = np.linalg.eigh(gram)
    kept = values > _CUTOFF * values[-1]
    root = np.sqrt(values[kept])
    kept_basis = basis[:, kept]
    matrix = root[:, None] * kept_basis.T
    target = kept_basis.T @ right / root
    return lsq_linear(matrix, target, bounds=(lower, np.inf), method="bvls", tol=1e-14).x
