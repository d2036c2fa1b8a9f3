"""Operators without structure: known by their products only, congruences and inverses of such."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nablanets.operators.base import SymmetricOperator
from nablanets.tensors import is_known

# Up to this size the dense form, d forward-mode derivatives at once, is cheap enough to solve with.
_DENSE_FEATURES = 64


class HessianOperator(SymmetricOperator):
    """The Jacobian of ``gradient`` at ``x`` by forward-mode differentiation, for maps without a structured form.

    ``gradient`` maps (*, d) to (*, d) sample by sample and must have a symmetric Jacobian.
    """

    def __init__(self, gradient: Callable[[Tensor], Tensor], x: Tensor, *, positive_semidefinite: bool = False) -> None:
        self.gradient = gradient
        self.x = x
        self.features = x.shape[-1]
        self.batch_shape = x.shape[:-1]
        self.positive_semidefinite = positive_semidefinite

    @property
    def reference(self) -> Tensor:
        return self.x

    @property
    def matrix_free(self) -> bool:
        return self.features > _DENSE_FEATURES

    def _product(self, v: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(v.shape, self.x.shape)
        return torch.func.jvp(self.gradient, (self.x.expand(batch),), (v.expand(batch),))[1]

    def dense(self) -> Tensor:
        basis = torch.eye(self.features, dtype=self.x.dtype, device=self.x.device)
        columns = torch.func.vmap(lambda e: self._product(e.expand_as(self.x)))(basis)
        return columns.movedim(0, -1)

    def diagonal(self) -> Tensor:
        return self.dense().diagonal(dim1=-2, dim2=-1)

    def scale(self, factor: float | Tensor) -> SymmetricOperator:
        scalar = factor.unsqueeze(-1) if isinstance(factor, Tensor) else factor
        psd = self.positive_semidefinite and isinstance(factor, float | int) and factor > 0
        return HessianOperator(lambda x: self.gradient(x) * scalar, self.x, positive_semidefinite=psd)

    def congruence(self, a: Tensor) -> SymmetricOperator:
        return CongruenceOperator(self, a)


class CongruenceOperator(SymmetricOperator):
    """A^T J A for an unstructured J; A of shape (d, n), or (d,) for a diagonal."""

    def __init__(self, inner: SymmetricOperator, a: Tensor) -> None:
        self.inner = inner
        self.matrix = torch.diag(a) if a.ndim == 1 else a
        self.features = self.matrix.shape[-1]
        self.batch_shape = inner.batch_shape
        self.positive_semidefinite = inner.positive_semidefinite

    @property
    def reference(self) -> Tensor:
        return self.inner.reference

    @property
    def matrix_free(self) -> bool:
        return self.inner.matrix_free

    def to(self, dtype: torch.dtype) -> SymmetricOperator:
        return CongruenceOperator(self.inner.to(dtype), self.matrix.to(dtype))

    def _product(self, v: Tensor) -> Tensor:
        return (self.inner @ (v @ self.matrix.mT)) @ self.matrix

    def dense(self) -> Tensor:
        return self.matrix.mT @ self.inner.dense() @ self.matrix

    def diagonal(self) -> Tensor:
        return self.dense().diagonal(dim1=-2, dim2=-1)

    def scale(self, factor: float | Tensor) -> SymmetricOperator:
        return CongruenceOperator(self.inner.scale(factor), self.matrix)

    def congruence(self, a: Tensor) -> SymmetricOperator:
        return CongruenceOperator(self, a)


class InverseOperator(SymmetricOperator):
    """J^{-1}: the Jacobian of an inverse map."""

    def __init__(self, inner: SymmetricOperator) -> None:
        self.inner = inner
        self.features = inner.features
        self.batch_shape = inner.batch_shape
        self.positive_semidefinite = inner.positive_semidefinite

    @property
    def reference(self) -> Tensor:
        return self.inner.reference

    def _product(self, v: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(v.shape, self.shape[:-1])
        return self.inner.solve(v.expand(batch))

    def _solve(self, b: Tensor) -> tuple[Tensor, Tensor]:
        product = self.inner @ b
        return product, torch.zeros_like(product[..., 0], dtype=torch.bool)

    def _slogdet(self) -> tuple[Tensor, Tensor]:
        sign, value = self.inner.slogdet()
        return sign, -value

    @property
    def structural_fault(self) -> str:
        return self.inner.structural_fault

    def to(self, dtype: torch.dtype) -> SymmetricOperator:
        return InverseOperator(self.inner.to(dtype))

    def dense(self) -> Tensor:
        wide = self.inner._wide().dense()
        inverse, info = torch.linalg.inv_ex(wide)
        if is_known(info):
            self._refuse_singular(info != 0)
        return inverse.to(self.reference.dtype)

    def diagonal(self) -> Tensor:
        return self.dense().diagonal(dim1=-2, dim2=-1)

    def scale(self, factor: float | Tensor) -> SymmetricOperator:
        return InverseOperator(self.inner.scale(1 / factor))

    def congruence(self, a: Tensor) -> SymmetricOperator:
        return CongruenceOperator(self, a)
