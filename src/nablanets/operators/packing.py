"""Symmetric matrices packed as their lower triangle, vech(S) of length d(d+1)/2: linear maps with fast adjoints.

The adjoints are gathers, where autograd's own (of indexing) would scatter with accumulation, several times slower.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class _Layout(NamedTuple):
    """Where entries lie: of the triangle in the flat matrix, of its mirror image, and of the matrix in the triangle."""

    lower: Tensor
    upper: Tensor
    matrix: Tensor
    on_diagonal: Tensor


@lru_cache(maxsize=128)
def _layout(d: int) -> _Layout:
    rows, columns = torch.tril_indices(d, d)
    matrix = torch.empty(d, d, dtype=torch.long)
    matrix[rows, columns] = matrix[columns, rows] = torch.arange(rows.numel())
    return _Layout(rows * d + columns, columns * d + rows, matrix.flatten(), rows == columns)


def _layout_for(d: int, like: Tensor) -> _Layout:
    return _Layout(*(index.to(like.device) for index in _layout(d)))


def weigh_off_diagonal(packed: Float[Tensor, "*batch t"], d: int, weight: float) -> Float[Tensor, "*batch t"]:
    """Entries off the diagonal times a weight: 2 for what the adjoint of :func:`unpack` makes of a symmetric matrix."""
    return packed * torch.where(_layout_for(d, packed).on_diagonal, 1.0, weight).to(packed)


class _Unpack(torch.autograd.Function):
    """vech(S) -> S. The adjoint is :class:`_Fold`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(packed: Tensor, d: int) -> Tensor:
        return packed.index_select(-1, _layout_for(d, packed).matrix).unflatten(-1, (d, d))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.d = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Fold.apply(grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return unpack(tangent, ctx.d)


class _Fold(torch.autograd.Function):
    """M -> vech(M + M^T) with the diagonal counted once. The adjoint is :class:`_Unpack`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        layout = _layout_for(matrix.shape[-1], matrix)
        flat = matrix.flatten(-2)
        mirror = flat.index_select(-1, layout.upper).masked_fill_(layout.on_diagonal, 0.0)
        return flat.index_select(-1, layout.lower).add_(mirror)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.d = inputs[0].shape[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return unpack(grad, ctx.d)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _Fold.apply(tangent)


class _Pack(torch.autograd.Function):
    """S -> vech(S). The adjoint, on symmetric matrices, halves what it puts on both sides of the diagonal."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        return matrix.flatten(-2).index_select(-1, _layout_for(matrix.shape[-1], matrix).lower)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.d = inputs[0].shape[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return unpack(weigh_off_diagonal(grad, ctx.d, 0.5), ctx.d)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return pack(tangent)


def unpack(packed: Float[Tensor, "*batch t"], d: int) -> Float[Tensor, "*batch d d"]:
    """The symmetric matrices with the given lower triangles, row by row.

    >>> unpack(torch.tensor([1.0, 2.0, 3.0]), 2).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    return _Unpack.apply(packed, d)


def pack(matrix: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch t"]:
    """The lower triangles, row by row, of matrices that are symmetric (for every value of what they depend on).

    >>> pack(torch.tensor([[1.0, 2.0], [2.0, 3.0]])).tolist()
    [1.0, 2.0, 3.0]
    """
    return _Pack.apply(matrix)


def pack_diagonal(diagonal: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch t"]:
    """The lower triangles of diagonal matrices.

    >>> pack_diagonal(torch.tensor([1.0, 2.0])).tolist()
    [1.0, 0.0, 2.0]
    """
    d = diagonal.shape[-1]
    ends = torch.arange(d, device=diagonal.device)
    empty = diagonal.new_zeros(*diagonal.shape[:-1], d * (d + 1) // 2)
    return empty.index_add(-1, ends * (ends + 3) // 2, diagonal)


def unpack_first(packed: Float[Tensor, "*batch t"], d: int) -> Float[Tensor, "d d *batch"]:
    """As :func:`unpack`, but with the batch last, for work on all matrices at once. Not differentiable."""
    return packed.movedim(-1, 0).contiguous().index_select(0, _layout_for(d, packed).matrix).unflatten(0, (d, d))


def pack_first(matrix: Float[Tensor, "d d *batch"]) -> Float[Tensor, "*batch t"]:
    """As :func:`pack`, for matrices with the batch last. Not differentiable."""
    lower = _layout_for(matrix.shape[0], matrix).lower
    return matrix.flatten(0, 1).index_select(0, lower).movedim(0, -1)
