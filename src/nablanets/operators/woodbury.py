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

from nablanets.tensors import any_of


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

    def slogdet(self) -> tuple[Tensor, Tensor]:
        """The sign of det J and log |det J|, for a J that is positive semidefinite.

        So a negative determinant of K is the rounding of zero.
        """
        sign, of_capacitance = torch.linalg.slogdet(self.capacitance())
        value = of_capacitance + self.shift.log().sum(dim=-1)
        if any_of(~(sign > 0)):
            value = torch.where(sign < 0, -torch.inf, value)
            sign = torch.where(value.isnan(), value, sign.clamp(min=0))
        return sign, value

    def solve(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """J^{-1} b for b of shape (*batch, d), and where J is singular."""
        start = b / self.shift
        right = self.weights * torch.einsum("...kd,...d->...k", self.factor, start)  # C U S^{-1} b
        capacitance = self.capacitance()
        inner, info = torch.linalg.solve_ex(capacitance, right.unsqueeze(-1))
        correction = torch.einsum("...kd,...k->...d", self.factor, inner.squeeze(-1)) / self.shift
        singular = info != 0
        if any_of(singular):  # what holds NaN is not known to be singular
            singular = singular & ~capacitance.isnan().any(dim=-1).any(dim=-1)
        return start - correction, singular
