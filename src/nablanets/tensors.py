"""What can be asked of a tensor, and lengths of vectors of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad


def is_known(value: Tensor) -> bool:
    """Whether Python may look at the values: not inside ``vmap`` and not while ``torch.compile`` traces.

    >>> is_known(torch.ones(2))
    True
    """
    if torch.compiler.is_compiling():
        return False
    # torch has no public way to ask: bool(value) raises an error of the same type as a failing kernel.
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            return False
        value = functorch.get_unwrapped(value)
    return True


def any_of(mask: Tensor) -> bool:
    """Whether any entry is true; True where that cannot be known, so that what follows must hold for both."""
    return not is_known(mask) or bool(mask.any())


def carries_derivatives(value: Tensor) -> bool:
    """Whether derivatives with respect to a tensor are wanted, by reverse or by forward mode.

    Inside transformations of functions (``torch.func``) every tensor that they pass counts: which of them has
    derivatives cannot be seen from outside a ``vmap``.

    >>> carries_derivatives(torch.ones(2)), carries_derivatives(torch.ones(2, requires_grad=True))
    (False, True)
    """
    return value.requires_grad or has_tangent(value) or torch._C._functorch.is_functorch_wrapped_tensor(value)


def kept(value: Tensor) -> Tensor:
    """What a map keeps of a fixed tensor that it is given: a copy, or the tensor itself if it carries derivatives.

    >>> a, b = torch.ones(2), torch.ones(2, requires_grad=True)
    >>> kept(a) is a, kept(b) is b
    (False, True)
    """
    return value if carries_derivatives(value) else value.detach().clone()


def tensor_of(values: Tensor | Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor; those in a list that are tensors keep their derivatives, which ``torch.as_tensor`` drops.

    >>> tensor_of([0.0, torch.ones((), requires_grad=True)]).requires_grad
    True
    """
    is_list = not isinstance(values, Tensor) and isinstance(values, Sequence)
    if is_list and any(isinstance(value, Tensor) for value in values):
        return torch.stack([torch.as_tensor(value, dtype=dtype) for value in values])
    return torch.as_tensor(values, dtype=dtype)


def has_tangent(value: Tensor) -> bool:
    """Whether a tensor takes part in forward-mode differentiation."""
    return forward_ad.unpack_dual(value).tangent is not None


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type to factorise and solve in: float32 for 16-bit types, which linear algebra has no routines for.

    >>> working_dtype(torch.bfloat16), working_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


def length(v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Euclidean norms of the last dimension that neither overflow nor underflow; not for differentiation.

    Vectors are divided by their largest entry before they are squared, as in LAPACK's nrm2.

    >>> length(torch.tensor([[3e30, 4e30], [3e-30, 4e-30]])).tolist() == torch.tensor([5e30, 5e-30]).tolist()
    True
    """
    scale = largest_entry(v)  # (*batch, 1)
    return (v / scale).norm(dim=-1) * scale.squeeze(-1)


def largest_entry(v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
    """The largest magnitude in each vector, to divide by; one where it is zero or not finite."""
    largest = v.abs().amax(dim=-1, keepdim=True)
    return torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
