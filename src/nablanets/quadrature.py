"""Gauss-Legendre quadrature on [0, 1], in torch."""

from __future__ import annotations

import numpy as np
from torch import Tensor

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

    >>> import torch
    >>> t, w = gauss_legendre(4, torch.zeros((), dtype=torch.double))
    >>> round(float((w * t**7).sum()), 15)
    0.125
    """
    points, weights = _RULES[nodes]
    return like.new_tensor(points), like.new_tensor(weights)
