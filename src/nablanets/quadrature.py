"""Gauss-Legendre quadrature on [0, 1], and integrals of fields along segments with it, in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: Panels of line integrals, as a rule.
PANELS = 8
#: Panels at most, which is enough for finely structured fields.
MOST_PANELS = 128
# Nodes of each panel.
_NODES = 16
# Smooth integrands lose more than this share of the error with each doubling.
_FAST = 1 / 4096

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

    The number of panels is doubled until two results agree within the tolerance, up to 128 panels of 16 nodes. The
    error is the last change, far above the true error, where changes fall as fast as for smooth fields; elsewhere (the
    field has kinks or jumps) it is not taken to have fallen faster than by a quarter with each doubling.

    Args:
        f: maps (*, d) to (*, d); only values are used, so it may be a network of any library's making.
        start, end: points (*, d) with a common batch shape.
        tolerance: of the change, relative to 1 + |result|; a hundred roundings if None.

    >>> rise = potential_between(torch.cos, torch.zeros(2), torch.ones(2))
    >>> round(float(rise.value), 5), float(rise.error) < 1e-5
    (1.68294, True)
    """
    start, end = torch.broadcast_tensors(start, end)
    allowed = 100 * torch.finfo(start.dtype).eps if tolerance is None else tolerance
    panels, value = 1, line_integral(f, start, end, panels=1)
    error, fell = torch.full_like(value.detach(), torch.inf), torch.zeros_like(value, dtype=torch.bool)
    while True:
        panels, previous = 2 * panels, value
        value = line_integral(f, start, end, panels=panels)
        change = (value - previous).abs().detach()
        falls = change < torch.maximum(_FAST * error, allowed * (1 + value.detach().abs()))
        error = torch.where(falls & fell, change, torch.maximum(change, (error / 4).nan_to_num(posinf=0.0)))
        fell = falls
        if panels >= MOST_PANELS or not bool((error > allowed * (1 + value.detach().abs())).any()):
            return PathIntegral(value, error)


def _composite(f: Callable[[Tensor], Tensor], like: Tensor, panels: int) -> Tensor:
    """The integral over [0, 1] of f, which maps nodes (t,) to values (*batch, t)."""
    nodes, weights = gauss_legendre(_NODES, like)
    offsets = torch.arange(panels, dtype=like.dtype, device=like.device)
    t = ((offsets.unsqueeze(-1) + nodes) / panels).flatten()
    return f(t) @ (weights / panels).repeat(panels)
