"""Finite groups of orthogonal matrices: checking them, and generating them."""

from __future__ import annotations

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError, ShapeError

#: Entries of matrices that are meant to be equal may differ by this much (float32 rounding of products).
_TOLERANCE = 1e-4


def check_group(matrices: Tensor, *, owner: str) -> None:
    """Raise unless the matrices (n, d, d), or diagonals (n, d), are distinct, orthogonal and closed under products."""
    square = matrices.ndim == 3 and matrices.shape[-1] == matrices.shape[-2]
    if not (square or matrices.ndim == 2) or len(matrices) == 0:
        raise ShapeError(
            f"{owner}: expected n >= 1 matrices of shape (n, d, d), or diagonals (n, d), got {tuple(matrices.shape)}."
        )
    group = _dense(matrices)
    _check_orthogonal(group, owner)
    if int(_same(group, group).sum()) != len(group):
        raise InvalidInputError(f"{owner}: expected distinct matrices, got some twice. Remove the copies.")
    for i, r in enumerate(group):
        closed = _same(r @ group, group).any(dim=-1)
        if not bool(closed.all()):
            raise InvalidInputError(
                f"{owner}: expected a group, but the product of matrices {i} and {int((~closed).nonzero()[0])} is not "
                "among them, so the average over them would not be symmetric. Complete the set with "
                "generated_group(matrices)."
            )


def generated_group(generators: Tensor, *, limit: int = 1024) -> Tensor:
    """All products of orthogonal matrices (n, d, d): the finite group that they generate, the identity first.

    Raises:
        InvalidInputError: a generator is not orthogonal, or there are more than ``limit`` products.

    >>> quarter, flip = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.diag(torch.tensor([1.0, -1.0]))
    >>> generated_group(torch.stack([quarter, flip])).shape  # the symmetries of the square
    torch.Size([8, 2, 2])
    """
    _check_orthogonal(_dense(generators), "generated_group")
    group = new = torch.eye(generators.shape[-1], dtype=generators.dtype, device=generators.device).unsqueeze(0)
    while len(new):
        known = len(group)
        for product in (new.unsqueeze(1) @ generators).flatten(0, 1).split(1):
            if not bool(_same(product, group).any()):
                group = torch.cat([group, product])
        new = group[known:]
        if len(group) > limit:
            raise InvalidInputError(
                f"generated_group: more than {limit} products. Is an angle of rotation no fraction of a turn? Raise "
                "limit if the group is that large."
            )
    return group


def _check_orthogonal(group: Tensor, owner: str) -> None:
    identity = torch.eye(group.shape[-1], dtype=group.dtype, device=group.device)
    error = (group.mT @ group - identity).abs().amax(dim=(-2, -1)).nan_to_num(torch.inf)
    if not bool((error <= _TOLERANCE).all()):
        raise InvalidInputError(
            f"{owner}: expected orthogonal matrices, but |R^T R - I| is {float(error.max()):.1e} for matrix "
            f"{int(error.argmax())}. Rotations, reflections and permutations are orthogonal."
        )


def _dense(matrices: Tensor) -> Tensor:
    matrices = matrices.detach().double()
    return torch.diag_embed(matrices) if matrices.ndim == 2 else matrices


def _same(left: Tensor, right: Tensor) -> Tensor:
    """Which of the left matrices (n, d, d) equal which of the right ones, (n, m)."""
    return torch.cdist(left.flatten(1), right.flatten(1), p=torch.inf) <= _TOLERANCE
