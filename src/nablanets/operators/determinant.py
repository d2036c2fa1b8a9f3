"""The log-determinant of positive definite matrices from their lower triangles, vech(A).

An operator that is positive semidefinite by construction hands its triangles to :func:`spd_logdet`:

- without derivatives, the Cholesky factor L of A gives log det A = 2 sum_i log L_ii;
- with derivatives, d log det A = <A^{-1}, dA>, so the inverse is computed along with the value and kept for the
  backward pass. Many small matrices are inverted at once by sweeping, others one by one by LAPACK.

Triangles instead of full matrices halve the work and the memory of everything around the factorisation.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nablanets.operators.packing import pack, unpack, weigh_off_diagonal
from nablanets.operators.sweep import sweep

# Matrices up to this size are swept, all at once: each step reads and writes all of them...
_SWEPT_FEATURES = 48
# ...which is worth it for batches of at least this size. Beyond, LAPACK is faster (measured on one core).
_SWEPT_BATCH = 256


def spd_logdet(packed: Float[Tensor, "*batch t"], d: int) -> tuple[Float[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """log det A from vech(A), and where A is not positive definite; differentiable to any order.

    >>> value, failed = spd_logdet(torch.tensor([2.0, 1.0, 2.0]), 2)
    >>> round(float(value.exp()), 5), bool(failed)
    (3.0, False)
    """
    if torch.is_grad_enabled() and packed.requires_grad:
        value, _, failed = _LogdetAndInverse.apply(packed, d)
        return value, failed
    factor, info = torch.linalg.cholesky_ex(unpack(packed, d))
    return _logdet_of_factor(factor), info != 0


class _LogdetAndInverse(torch.autograd.Function):
    """vech(A) -> log det A, vech(A^{-1}), and where A was not positive definite.

    The backward pass costs nothing beyond the inverse, which costs about as much as the Cholesky factor. It is itself
    differentiable, since the inverse is an output: d A^{-1} = -A^{-1} dA A^{-1}.

    A packed gradient counts an entry off the diagonal once for both of its places, hence the weights 2 and 1/2.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(packed: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
        batch_size = packed[..., 0].numel()
        if d <= _SWEPT_FEATURES and batch_size >= _SWEPT_BATCH:
            return sweep(packed, d)
        return _factorise(packed, d)

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
        parts = []  # of the gradient as the triangle of a symmetric matrix
        if of_value is not None:
            parts.append(of_value.unsqueeze(-1) * inverse)
        if of_inverse is not None:
            direction = weigh_off_diagonal(of_inverse, ctx.d, 0.5)
            parts.append(_derivative_of_inverse(inverse, direction, ctx.d))
        if not parts:
            return None, None
        total = sum(parts[1:], parts[0])
        return weigh_off_diagonal(total, ctx.d, 2.0), None

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
    """log det A, vech(A^{-1}) and where A is not positive definite, by Cholesky, one matrix after the other."""
    factor, info = torch.linalg.cholesky_ex(unpack(packed, d))
    failed = info != 0
    value = _logdet_of_factor(factor)
    # Ones on the diagonal of what failed, so that an inverse exists at all.
    factor.diagonal(dim1=-2, dim2=-1).masked_fill_(failed.unsqueeze(-1), 1.0)
    return value, pack(torch.cholesky_inverse(factor)), failed


def _logdet_of_factor(factor: Tensor) -> Tensor:
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
