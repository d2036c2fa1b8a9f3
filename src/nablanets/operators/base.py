"""Symmetric linear operators: what the Jacobian of a gradient map is.

A Jacobian is not an array unless asked for. In this package vectors have shape ``(*batch, d)`` and operators act on
vectors: ``J @ v`` is the batch of products, for ``v`` of the batch shape of ``J`` (or broadcastable to it).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nablanets.errors import InvalidInputError, ShapeError, SingularJacobianError
from nablanets.operators.cg import conjugate_gradients
from nablanets.operators.determinant import spd_logdet
from nablanets.operators.lanczos import LogdetEstimate, estimate_logdet
from nablanets.operators.packing import pack


class SymmetricOperator(ABC):
    """A batch of symmetric d x d matrices, known by what it does.

    Attributes:
        features: d.
        batch_shape: shape of the batch of matrices.
        positive_semidefinite: True if that holds by construction.
    """

    features: int
    batch_shape: torch.Size
    positive_semidefinite: bool

    @property
    def shape(self) -> torch.Size:
        """Shape of ``dense()``."""
        return torch.Size((*self.batch_shape, self.features, self.features))

    @property
    @abstractmethod
    def reference(self) -> Tensor:
        """A tensor of the operator's dtype, on its device."""

    @property
    def matrix_free(self) -> bool:
        """Whether products are so much cheaper than the dense form that solves use nothing else."""
        return False

    @abstractmethod
    def _product(self, v: Tensor) -> Tensor:
        """J v for v of shape (*batch, d)."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "*batch d d"]:
        """The matrices as an array."""

    def packed(self) -> Float[Tensor, "*batch t"]:
        """The lower triangles, row by row, d(d+1)/2 entries; for one matrix where all are equal."""
        return pack(self.dense())

    @abstractmethod
    def diagonal(self) -> Float[Tensor, "*batch d"]:
        """The diagonals."""

    @abstractmethod
    def scale(self, factor: float | Tensor) -> SymmetricOperator:
        """The operator times a scalar."""

    @abstractmethod
    def congruence(self, a: Float[Tensor, "d n"]) -> SymmetricOperator:
        """A^T J A."""

    def __matmul__(self, v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        if v.ndim == 0 or v.shape[-1] != self.features:
            raise ShapeError(
                f"J @ v: expected v of shape (*, {self.features}), got {tuple(v.shape)}. v is a batch of vectors; "
                "for products with matrices use dense()."
            )
        return self._product(v)

    def trace(self) -> Float[Tensor, "*batch"]:
        """The traces: the Laplacian of the potential."""
        return self.diagonal().sum(dim=-1)

    def logdet(self) -> Float[Tensor, "*batch"]:
        """log |det J|.

        Raises:
            SingularJacobianError: a matrix is singular, by structure or numerically.
        """
        value, singular = self._logdet()
        self._refuse_singular(singular)
        return value.expand(self.batch_shape)

    def _logdet(self) -> tuple[Tensor, Tensor]:
        """log |det J| and where J is singular, of shapes that broadcast to the batch.

        By Cholesky's factorisation of the lower triangles where J is positive definite, by LU otherwise.
        """
        if self.positive_semidefinite:
            return spd_logdet(self.packed(), self.features)
        value = torch.linalg.slogdet(self.dense()).logabsdet
        return value, torch.isinf(value)

    def logdet_estimate(self, *, probes: int = 16, steps: int = 32, seed: int = 0) -> LogdetEstimate:
        """log det J with a standard error, by stochastic Lanczos quadrature: products J @ v only, for large d.

        Args:
            probes: random vectors; the standard error falls as probes^(-1/2).
            steps: Lanczos steps per probe; the error of the quadrature falls exponentially in steps / sqrt(condition).
            seed: of the random vectors.

        The value is differentiable once; its gradient is an unbiased estimate too, up to the same quadrature error.

        Raises:
            InvalidInputError: the matrices are not positive semidefinite by construction.

        >>> from nablanets import GradNetM
        >>> J = GradNetM(200, 10, monotone=True, linear="diagonal").jacobian(torch.randn(2, 200))
        >>> estimate = J.logdet_estimate(probes=64)
        >>> bool(((estimate.value - J.logdet()).abs() < 5 * estimate.standard_error).all())
        True
        """
        if not self.positive_semidefinite:
            raise InvalidInputError(
                "logdet_estimate: the Lanczos method needs a matrix that is positive definite by construction. Build "
                "the map with monotone=True, or use logdet()."
            )
        return estimate_logdet(self, probes=probes, steps=steps, seed=seed)

    def solve(self, b: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """J^{-1} b.

        Derivatives are exact to any order; to first order where the operator is ``matrix_free``.

        Raises:
            SingularJacobianError: a matrix is singular, by structure or numerically.
        """
        if self.positive_semidefinite and self.matrix_free:
            return self._solve_by_products(b)
        dense = self.dense()
        column = b.unsqueeze(-1)  # (*batch, d, 1)
        if self.positive_semidefinite:
            factor, info = torch.linalg.cholesky_ex(dense)
            self._refuse_singular(info != 0)
            solution = torch.cholesky_solve(column, factor)
        else:
            solution, info = torch.linalg.solve_ex(dense, column)
            self._refuse_singular(info != 0)
        return solution.squeeze(-1)

    def _solve_by_products(self, b: Tensor) -> Tensor:
        """J^{-1} b by conjugate gradients, which autograd does not see: a correction carries the derivatives."""
        b = b.expand(torch.broadcast_shapes(b.shape, self.shape[:-1]))
        x, failed = conjugate_gradients(self, b)
        self._refuse_singular(failed)
        if not torch.is_grad_enabled():
            return x
        return x + _Correction.apply(b - self @ x, self)

    def eigvalsh(self) -> Float[Tensor, "*batch d"]:
        """Eigenvalues in ascending order."""
        return torch.linalg.eigvalsh(self.dense())

    def __add__(self, other: SymmetricOperator) -> SymmetricOperator:
        return SumOperator(self, other)

    def __mul__(self, factor: float | Tensor) -> SymmetricOperator:
        return self.scale(factor)

    __rmul__ = __mul__

    def __neg__(self) -> SymmetricOperator:
        return self.scale(-1.0)

    def _refuse_singular(self, singular: Tensor) -> None:
        if bool(singular.any()):
            raise SingularJacobianError(
                f"{int(singular.sum())} of {max(1, self.batch_shape.numel())} Jacobians are numerically singular. A "
                "positive definite linear term (linear=True) keeps the Jacobian of a monotone map invertible."
            )


class _Correction(torch.autograd.Function):
    """r -> J^{-1} r for a residual r that is zero to rounding: nothing is added, but derivatives pass."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, operator: SymmetricOperator) -> Tensor:
        ctx.operator = operator
        return torch.zeros_like(residual)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.operator.solve(grad), None


class SumOperator(SymmetricOperator):
    """The sum of two operators of different kinds."""

    def __init__(self, left: SymmetricOperator, right: SymmetricOperator) -> None:
        self.left, self.right = left, right
        self.features = left.features
        self.batch_shape = torch.broadcast_shapes(left.batch_shape, right.batch_shape)
        self.positive_semidefinite = left.positive_semidefinite and right.positive_semidefinite

    @property
    def reference(self) -> Tensor:
        return self.left.reference

    @property
    def matrix_free(self) -> bool:
        return self.left.matrix_free or self.right.matrix_free

    def _product(self, v: Tensor) -> Tensor:
        return self.left @ v + self.right @ v

    def dense(self) -> Tensor:
        return self.left.dense() + self.right.dense()

    def diagonal(self) -> Tensor:
        return self.left.diagonal() + self.right.diagonal()

    def trace(self) -> Tensor:
        return self.left.trace() + self.right.trace()

    def scale(self, factor: float | Tensor) -> SymmetricOperator:
        return SumOperator(self.left.scale(factor), self.right.scale(factor))

    def congruence(self, a: Tensor) -> SymmetricOperator:
        return SumOperator(self.left.congruence(a), self.right.congruence(a))
