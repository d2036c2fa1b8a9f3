r"""Diagonal plus low rank: determinants and solves through a small matrix.

For :math:`J = S + U^\top C\,U` with diagonal S > 0, U of shape (k, d) and diagonal C, the capacitance matrix is

.. math:: K = I + C\,U S^{-1} U^\top, \qquad (k, k).

The matrix determinant lemma says :math:`\det J = \det K \det S`, and Woodbury's identity says
:math:`J^{-1} = S^{-1} - S^{-1} U^\top K^{-1} C\,U S^{-1}` (Golub and Van Loan, "Matrix Computations", 2.1.4). Both cost
k^3 instead of d^3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LowRankForm(NamedTuple):
    """The parts of S + U^T C U.

    Attributes:
        shift: the diagonal of S, broadcastable to (*batch, d).
        factor: U, (k, d) or (*batch, k, d).
        weights: the diagonal of C, (*batch, k).
    """

    shift: Tensor
    factor: Tensor
    weights: Tensor

    def capacitance(self) -> Tensor:
        """K = I + C U S^{-1} U^T, (*batch, k, k)."""
        gram = (self.factor / self.shift.unsqueeze(-2)) @ self.factor.mT
        rank = self.weights.shape[-1]
        identity = torch.eye(rank, dtype=self.weights.dtype, device=self.weights.device)
        return identity + self.weights.unsqueeze(-1) * gram

    def logdet(self) -> tuple[Tensor, Tensor]:
        """log |det J|, and where J is singular."""
        sign, of_capacitance = torch.linalg.slogdet(self.capacitance())
        of_shift = self.shift.log().sum(dim=-1)
        return of_capacitance + of_shift, sign == 0

    def solve(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """J^{-1} b for b of shape (*batch, d), and where J is singular."""
        start = b / self.shift
        right = self.weights * torch.einsum("...kd,...d->...k", self.factor, start)  # C U S^{-1} b
        inner, info = torch.linalg.solve_ex(self.capacitance(), right.unsqueeze(-1))
        correction = torch.einsum("...kd,...k->...d", self.factor, inner.squeeze(-1)) / self.shift
        return start - correction, info != 0
