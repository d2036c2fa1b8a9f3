"""Linear regression with a symmetric matrix: the best affine gradient map of samples."""

from __future__ import annotations

import torch
from torch import Tensor

# Directions that the samples do not reach get a ridge at the level of rounding, relative to the largest variance.
_ROUNDING = 1e-13
_TINY = 1e-300


def symmetric_regression(x: Tensor, g: Tensor, ridge: float = 0.0) -> tuple[Tensor, Tensor]:
    r"""The symmetric A and the v that minimise :math:`\sum_i |A x_i + v - g_i|^2 + \text{ridge}\,|A|^2`.

    With centred samples X and G, A solves the Lyapunov equation A S + S A = C + C^T, where S = X^T X + ridge I and
    C = X^T G. In the eigenvectors of S the equation falls apart: entry (i, j) of the right side is divided by
    s_i + s_j.

    Args:
        x, g: points and gradients there, (n, d).
        ridge: pulls A to zero.

    Returns:
        A (d, d), v (d,).

    >>> x = torch.randn(50, 2, dtype=torch.double)
    >>> matrix, value = symmetric_regression(x, x @ torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double() + 1)
    >>> matrix.round(decimals=6).tolist(), value.round(decimals=6).tolist()
    ([[2.0, 1.0], [1.0, 3.0]], [1.0, 1.0])
    """
    mean_x = x.mean(dim=0)
    mean_g = g.mean(dim=0)
    x = x - mean_x
    g = g - mean_g
    values, vectors = torch.linalg.eigh(x.mT @ x)
    right = vectors.mT @ (x.mT @ g) @ vectors
    values = values.clamp(min=0) + max(ridge, _ROUNDING * float(values[-1]), _TINY)
    sums = values + values.unsqueeze(1)
    matrix = vectors @ ((right + right.mT) / sums) @ vectors.mT
    matrix = (matrix + matrix.mT) / 2
    return matrix, mean_g - matrix @ mean_x
