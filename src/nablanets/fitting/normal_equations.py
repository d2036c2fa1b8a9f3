"""Symmetric products and systems of many small problems at once, in float64, by their upper triangles.

On a CPU they are done by BLAS and LAPACK, one problem after the other: dsyrk computes one triangle of F F^T, in half of
the time of the full product, and dposv takes half of the time of torch's batched Cholesky factor and solve. On other
devices torch does all problems in one call. Lower triangles are not defined.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dposv
from torch import Tensor


def add_gram(matrices: Tensor, members: Sequence[int], factors: Tensor, weight: float) -> None:
    """Add weight F F^T to some of the matrices (m, p, p), for factors F (len(members), p, columns)."""
    if matrices.device.type != "cpu":
        places = torch.tensor(members, device=matrices.device)
        matrices.index_add_(0, places, factors @ factors.mT, alpha=weight)
        return
    totals = matrices.numpy()
    for member, factor in zip(members, factors.contiguous().numpy(), strict=True):
        # Fortran sees the transposes: C = A^T A for A = factor.T, and its lower triangle is our upper one.
        dsyrk(weight, factor.T, beta=1.0, c=totals[member].T, trans=1, overwrite_c=1, lower=1)


def solve_positive(matrices: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solutions of A y = b for symmetric A (m, p, p), which are overwritten, and b (m, p).

    Also returns which of the A are positive definite, (m); solutions of others mean nothing.
    """
    if matrices.device.type != "cpu":
        factor, failed = torch.linalg.cholesky_ex(matrices, upper=True)
        return torch.cholesky_solve(right.unsqueeze(-1), factor, upper=True).squeeze(-1), failed == 0
    solution = right.clone()
    positive = []
    for matrix, vector in zip(matrices.numpy(), solution.numpy(), strict=True):
        _, result, failed = dposv(matrix.T, vector, lower=1, overwrite_a=1, overwrite_b=1)
        vector[:] = result.reshape(-1)
        positive.append(failed == 0)
    return solution, torch.tensor(positive)
