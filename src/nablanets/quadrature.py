"""Quadrature on [0, 1] by Gauss-Legendre and Chebyshev points, and integrals of fields along segments, in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: Panels of line integrals, as a rule.
PANELS = 8
# Nodes of each panel.
_NODES = 16
# Paths are halved this often at most, which locates a kink to less than the square root of a rounding...
_MOST_HALVINGS = 32
# ...and a path has this many parts at a time at most.
_MOST_PARTS = 4096

# Degree of interpolation at Chebyshev points: one more than eight Gauss nodes integrate exactly.
_DEGREE = 16
# Its coefficients that must be small.
_LAST = 3

Rule = tuple[tuple[float, ...], tuple[float, ...]]


def _rule(nodes: int) -> Rule:
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return tuple(((points + 1) / 2).tolist()), tuple((weights / 2).tolist())


# Computed at import, so that torch.compile meets numbers and not numpy's algorithm.
_RULES = {nodes: _rule(nodes) for nodes in (2, 4, 8, 16, 32, 64)}


def gauss_legendre(nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Points in (0, 1) and weights that integrate polynomials of degree 2 nodes - 1 over [0, 1] exactly.

    Args:
        nodes: 2, 4, 8, 16, 32 or 64.
        like: a tensor whose dtype and device they take.

    >>> t, w = gauss_legendre(4, torch.zeros((), dtype=torch.double))
    >>> round(float((w * t**7).sum()), 15)
    0.125
    """
    points, weights = _RULES[nodes]
    return like.new_tensor(points), like.new_tensor(weights)


class ChebyshevRule(NamedTuple):
    """The interpolation of functions on [0, 1] by polynomials of degree 16, from their values at 17 points."""

    #: cos(pi k / 16), moved to [0, 1]; both ends are among them.
    points: Float[Tensor, 17]
    #: Of the integral of the polynomial (Clenshaw-Curtis).
    weights: Float[Tensor, 17]
    #: values @ last_coefficients are the last three Chebyshev coefficients of the polynomial.
    last_coefficients: Float[Tensor, "17 3"]


def _chebyshev() -> tuple[list[float], list[float], list[list[float]]]:
    degrees = np.arange(_DEGREE + 1)
    points = np.cos(np.pi * degrees / _DEGREE)
    coefficients = np.linalg.inv(np.polynomial.chebyshev.chebvander(points, _DEGREE))  # (degrees, points)
    means = np.where(degrees % 2 == 0, 1 / (1.0 - degrees**2 + (degrees == 1)), 0.0)  # of Chebyshev polynomials
    last = coefficients[-_LAST:].T
    return ((1 + points) / 2).tolist(), (means @ coefficients).tolist(), last.tolist()


_CHEBYSHEV = _chebyshev()


def chebyshev(like: Tensor) -> ChebyshevRule:
    """What tells whether a function is resolved: as in Chebfun, it is if its last coefficients are small.

    Two coefficients see even and odd functions, and the third those where one of them is small by chance. Since the
    ends are among the points, kinks and steps close to them are seen too, which Gauss nodes miss.

    Args:
        like: a tensor whose dtype and device the rule takes.

    >>> rule = chebyshev(torch.zeros((), dtype=torch.double))
    >>> round(float(rule.points**16 @ rule.weights) * 17, 12)
    1.0
    >>> smooth = torch.exp(rule.points) @ rule.last_coefficients
    >>> kink = (rule.points - 0.3).abs() @ rule.last_coefficients
    >>> bool(smooth.abs().max() < 1e-14), bool(kink.abs().max() > 1e-4)
    (True, True)
    """
    points, weights, last = _CHEBYSHEV
    return ChebyshevRule(like.new_tensor(points), like.new_tensor(weights), like.new_tensor(last))


class PathIntegral(NamedTuple):
    """An integral and an estimate of its absolute quadrature error."""

    value: Float[Tensor, "*batch"]
    error: Float[Tensor, "*batch"]


def line_integral(f: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, *, panels: int = PANELS) -> Tensor:
    """The integral of f along the segments from start to end, (*, d) each, by composite Gauss-Legendre quadrature.

    >>> work = line_integral(lambda x: 2 * x, torch.zeros(3), torch.ones(3))
    >>> round(float(work), 5)
    3.0
    """
    step = end - start

    def speed(t: Tensor) -> Tensor:
        return torch.einsum("...td,...d->...t", f(start.unsqueeze(-2) + t.unsqueeze(-1) * step.unsqueeze(-2)), step)

    return _composite(speed, start, panels)


def potential_between(
    f: Callable[[Tensor], Tensor],
    start: Float[Tensor, "*batch d"],
    end: Float[Tensor, "*batch d"],
    *,
    tolerance: float | None = None,
) -> PathIntegral:
    """F(end) - F(start) for any gradient field f = grad F, by the path integral along the segment.

    A segment is halved until f . dx is resolved on each part of it (see :func:`chebyshev`): so kinks and steep places
    of f are found. The error is the sum of what the last coefficients weigh, far above the true error for smooth
    fields.

    Args:
        f: maps (*, d) to (*, d); only values are used, so it may be a network of any library's making.
        start, end: points (*, d) with a common batch shape.
        tolerance: of the error of each part, relative to 1 + the integral of |f . dx|; ten roundings if None.

    >>> rise = potential_between(torch.cos, torch.zeros(2), torch.ones(2))
    >>> round(float(rise.value), 5), float(rise.error) < 1e-5
    (1.68294, True)
    """
    start, end = torch.broadcast_tensors(start, end)
    batch = start.shape[:-1]
    origin = start.reshape(-1, start.shape[-1])  # (n, d)
    step = (end - start).reshape(origin.shape)
    tolerance = 10 * torch.finfo(start.dtype).eps if tolerance is None else tolerance

    owner = torch.arange(len(origin), device=origin.device)  # the path that each part belongs to
    left = torch.zeros_like(origin[:, 0])  # where it starts, in [0, 1]
    width = 1.0  # of all parts
    allowed = None
    value = torch.zeros_like(left)
    error = torch.zeros_like(left)
    for depth in range(_MOST_HALVINGS + 1):
        work, size, missed = _work(f, origin[owner], step[owner], left, width)
        if allowed is None:
            allowed = tolerance * (1 + size)
        resolved = ~(missed > allowed[owner])  # NaN stays as it is
        if depth == _MOST_HALVINGS or 2 * len(owner) > _MOST_PARTS * len(origin):
            resolved = torch.ones_like(resolved)
        value = value.index_add(0, owner[resolved], work[resolved])
        error = error.index_add(0, owner[resolved], missed[resolved])
        halved = ~resolved
        if not bool(halved.any()):
            break
        width /= 2
        owner = torch.cat([owner[halved], owner[halved]])
        left = torch.cat([left[halved], left[halved] + width])
    return PathIntegral(value.reshape(batch), error.reshape(batch))


def _work(
    f: Callable[[Tensor], Tensor], origin: Tensor, step: Tensor, left: Tensor, width: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The integrals of f . dx and |f . dx| over the parts [left, left + width] of paths, and an error; all (n).

    Args:
        f: the field.
        origin, step: of the path origin + t step that each part belongs to, (n, d).
        left, width: t where the parts start, (n), and how long they are.
    """
    rule = chebyshev(origin)
    t = left.unsqueeze(-1) + width * rule.points  # (n, points)
    points = origin.unsqueeze(-2) + t.unsqueeze(-1) * step.unsqueeze(-2)
    speed = torch.einsum("ntd,nd->nt", f(points), step)
    known = speed.detach()
    missed = (known @ rule.last_coefficients).abs().amax(dim=-1)
    return width * (speed @ rule.weights), width * (known.abs() @ rule.weights), width * missed


def _composite(f: Callable[[Tensor], Tensor], like: Tensor, panels: int) -> Tensor:
    """The integral over [0, 1] of f, which maps nodes (t,) to values (*batch, t)."""
    nodes, weights = gauss_legendre(_NODES, like)
    offsets = torch.arange(panels, dtype=like.dtype, device=like.device)
    t = ((offsets.unsqueeze(-1) + nodes) / panels).flatten()
    return f(t) @ (weights / panels).repeat(panels)
