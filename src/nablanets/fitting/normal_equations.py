"""Symmetric products and systems of many small problems at once, in float64, by their upper triangles.

On a CPU they are done by BLAS and LAPACK, one problem after the other: dsyrk computes one triangle of F F^T, in half of
the time of the full product, and dposv takes half of the time of torch's batched Cholesky factor and solve. On other
devices torch does all problems in one call. Lower triangles mean nothing.
"""

from __future__ import annotations

import torch
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dposv
from torch import Tensor

from nablanets.fitting.derivatives import Rows, Workspace


def write_gram(result: Tensor, rows: Rows, weight: float, workspace: Workspace) -> None:
    r"""Write the Gram matrices of derivatives, times a weight, to the upper triangles of an array (B, p, p).

    The sums are over samples and features. Of rows that are products z v of numbers z (n) and vectors v (d), the
    entries are <z_i, z_j> <v_i, v_j>, and with other rows D (d, n) they are
    :math:`\sum_k v_{ik} \langle z_i, D_k \rangle`, all with products over n numbers only.
    """
    dense = rows.dense.flatten(2)  # (B, p - q, d n)
    count, num_dense, _ = dense.shape
    if rows.scalars is None or rows.vectors is None:
        write_own_products(result, dense, weight)
        return
    num_products = rows.scalars.shape[1]
    own = workspace("dense", count, num_dense, num_dense)
    write_own_products(own, dense, weight)
    result[:, :num_dense, :num_dense] = own
    crossed = rows.dense.flatten(1, 2) @ rows.scalars.mT  # (B, (p - q) d, q)
    lines = weight * rows.vectors.mT.unsqueeze(1)  # (B, 1, d, q)
    mixed = crossed.unflatten(1, rows.dense.shape[1:3]).mul_(lines)
    result[:, :num_dense, num_dense:] = mixed.sum(dim=2)
    corner = workspace("scalars", count, num_products, num_products)
    write_own_products(corner, rows.scalars, weight)
    angles = torch.bmm(rows.vectors, rows.vectors.mT, out=workspace("vectors", count, num_products, num_products))
    torch.mul(corner, angles, out=result[:, num_dense:, num_dense:])


def times_residual(rows: Rows, residual: Tensor) -> Tensor:
    """J^T r of residuals (B, d, n), (B, p)."""
    first = (rows.dense.flatten(2) @ residual.flatten(1).unsqueeze(-1)).squeeze(-1)
    if rows.scalars is None or rows.vectors is None:
        return first
    by_feature = rows.scalars @ residual.mT  # (B, q, d)
    return torch.cat([first, (by_feature * rows.vectors).sum(dim=-1)], dim=1)


def write_own_products(result: Tensor, factors: Tensor, weight: float) -> None:
    """Write weight F F^T, for factors F (m, p, columns), to the upper triangles of an array (m, p, p)."""
    if factors.device.type != "cpu":
        torch.bmm(factors, factors.mT, out=result).mul_(weight)
        return
    if factors.shape[1] == 0:
        return
    for total, factor in zip(result.numpy(), factors.contiguous().numpy(), strict=True):
        # Fortran sees the transposes: C = A^T A for A = factor.T, and its lower triangle is our upper one.
        dsyrk(weight, factor.T, c=total.T, trans=1, overwrite_c=1, lower=1)


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
