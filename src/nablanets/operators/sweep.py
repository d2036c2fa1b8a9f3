"""The sweep operator: determinants and inverses of many small symmetric matrices at once.

Sweeping row k of a symmetric matrix A replaces

    a_ij  by  a_ij - a_ik a_kj / a_kk        (i, j other than k)
    a_kj  by  a_kj / a_kk                    (and a_jk likewise)
    a_kk  by  -1 / a_kk

After all rows are swept A has become -A^{-1}, and the product of the pivots a_kk is the determinant. This is
Gauss-Jordan elimination that keeps the matrix symmetric (Goodnight, "A tutorial on the SWEEP operator", The American
Statistician 33, 1979). Each step is one operation on the whole batch, where LAPACK goes from matrix to matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nablanets.operators.packing import pack_first, unpack_first


def sweep(packed: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """log det A and vech(A^{-1}) from vech(A), and where A was not positive definite.

    Args:
        packed: lower triangles of A, (*batch, d (d + 1) / 2).
        d: rows of A.

    Returns:
        (*batch), (*batch, d (d + 1) / 2), (*batch).
    """
    a = unpack_first(packed, d)  # (d, d, *batch): the batch runs fastest
    pivots = []
    for k in range(d):
        row = a[k].clone()  # (d, *batch)
        pivot = a[k, k].clone()  # (*batch)
        scaled = row / pivot
        a.addcmul_(row.unsqueeze(1), scaled.unsqueeze(0), value=-1)
        a[k] = scaled
        a[:, k] = scaled
        a[k, k] = -1 / pivot
        pivots.append(pivot)
    stacked = torch.stack(pivots)  # (d, *batch)
    failed = ~(stacked > 0).all(dim=0)
    return stacked.log().sum(dim=0), -pack_first(a), failed
