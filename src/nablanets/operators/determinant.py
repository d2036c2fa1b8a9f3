"""The log-determinant of positive definite matrices, with its analytic derivative d log det A = <A^{-1}, dA>."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nablanets.operators.packing import pack, pack_first, unpack, unpack_first, weigh_off_diagonal

# Large batches of matrices up to this size are inverted all at once; for others LAPACK, one by one, is faster.
_SWEEP_FEATURES, _SWEEP_BATCH = 48, 256


class _LogdetAndInverse(torch.autograd.Function):
    """vech(A) -> log det A, vech(A^{-1}), and where A was not positive definite.

    The backward pass costs nothing beyond the inverse, which costs about as much as the Cholesky factor, and it is
    itself differentiable, since the inverse is an output.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(packed: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
        sweeps = d <= _SWEEP_FEATURES and packed[..., 0].numel() >= _SWEEP_BATCH
        return _sweep(packed, d) if sweeps else _factorise(packed, d)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, inverse, failed = output
        ctx.d = inputs[1]
        ctx.save_for_backward(inverse)
        ctx.save_for_forward(inverse)
        ctx.mark_non_differentiable(failed)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, of_value: Tensor | None, of_inverse: Tensor | None, _: None) -> tuple[Tensor | None, None]:
        (inverse,) = ctx.saved_tensors
        grad = None if of_value is None else of_value.unsqueeze(-1) * inverse
        if of_inverse is not None:
            change = _derivative_of_inverse(inverse, weigh_off_diagonal(of_inverse, ctx.d, 0.5), ctx.d)
            grad = change if grad is None else grad + change
        return (None if grad is None else weigh_off_diagonal(grad, ctx.d, 2.0)), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> tuple[Tensor, Tensor, None]:
        (inverse,) = ctx.saved_tensors
        value = (weigh_off_diagonal(inverse, ctx.d, 2.0) * tangent).sum(dim=-1)
        return value, _derivative_of_inverse(inverse, tangent, ctx.d), None


def _derivative_of_inverse(inverse: Tensor, tangent: Tensor, d: int) -> Tensor:
    """vech(-A^{-1} T A^{-1}) from vech(A^{-1}) and vech(T)."""
    full = unpack(inverse, d)
    return pack(-full @ unpack(tangent, d) @ full)


def _factorise(packed: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """By Cholesky's factorisation, one matrix after the other."""
    factor, info = torch.linalg.cholesky_ex(unpack(packed, d))
    value, failed = _logdet_of(factor), info != 0
    factor.diagonal(dim1=-2, dim2=-1).masked_fill_(failed.unsqueeze(-1), 1.0)  # so that an inverse exists at all
    return value, pack(torch.cholesky_inverse(factor)), failed


def _sweep(packed: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """By the sweep operator (symmetric Gauss-Jordan elimination), on all matrices at once: fast where d is small.

    Sweeping row k replaces a_ij by a_ij - a_ik a_kj / a_kk, a_kj by a_kj / a_kk and a_kk by -1 / a_kk; all rows swept
    leave -A^{-1}, and the product of the pivots a_kk is the determinant.
    """
    a = unpack_first(packed, d)
    pivots = []
    for k in range(d):
        row, pivot = a[k].clone(), a[k, k].clone()
        scaled = row / pivot
        a.addcmul_(row.unsqueeze(1), scaled.unsqueeze(0), value=-1)
        a[k], a[:, k] = scaled, scaled
        a[k, k] = -1 / pivot
        pivots.append(pivot)
    every = torch.stack(pivots)
    return every.log().sum(dim=0), -pack_first(a), ~(every > 0).all(dim=0)


def _logdet_of(factor: Tensor) -> Tensor:
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)


def spd_logdet(packed: Float[Tensor, "*batch t"], d: int) -> tuple[Float[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """log det A from vech(A) by Cholesky's factorisation, and where that failed; differentiable to any order.

    >>> value, failed = spd_logdet(torch.tensor([2.0, 1.0, 2.0]), 2)
    >>> round(float(value.exp()), 5), bool(failed)
    (3.0, False)
    """
    if torch.is_grad_enabled() and packed.requires_grad:
        value, _, failed = _LogdetAndInverse.apply(packed, d)
        return value, failed
    factor, info = torch.linalg.cholesky_ex(unpack(packed, d))
    return _logdet_of(factor), info != 0
