"""Symmetric linear operators: what the Jacobian of a gradient map is.

A Jacobian is not an array unless asked for. In this package vectors have shape ``(*batch, d)`` and operators act on
vectors: ``J @ v`` is the batch of products, for ``v`` of the batch shape of ``J`` (or broadcastable to it).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nablanets.errors import (
    IndefiniteJacobianError,
    InvalidInputError,
    ShapeError,
    SingularJacobianError,
    check_points,
    fits,
)
from nablanets.operators.cg import conjugate_gradients
from nablanets.operators.determinant import spd_logdet
from nablanets.operators.display import Displayed
from nablanets.operators.lanczos import LogdetEstimate, estimate_logdet
from nablanets.operators.packing import pack
from nablanets.tensors import any_of, is_known, working_dtype


class SignedLogdet(NamedTuple):
    """The sign of a determinant, and the logarithm of its magnitude."""

    sign: Float[Tensor, "*batch"]
    logabsdet: Float[Tensor, "*batch"]


class Solved(NamedTuple):
    """J^{-1} b, and which J are numerically singular."""

    value: Float[Tensor, "*batch d"]
    singular: Bool[Tensor, "*batch"]


class SymmetricOperator(Displayed, ABC):
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
        if isinstance(v, Tensor) and (v.ndim == 0 or v.shape[-1] != self.features):
            raise ShapeError(
                f"J @ v: expected v of shape (*, {self.features}), got {tuple(v.shape)}. v is a batch of vectors; "
                "for products with matrices use dense()."
            )
        check_points(v, self.features, owner="J @ v", name="v", like=self.reference)
        return self._product(v)

    def trace(self) -> Float[Tensor, "*batch"]:
        """The traces: the Laplacian of the potential."""
        return self.diagonal().sum(dim=-1)

    def slogdet(self) -> SignedLogdet:
        """The sign of det J and log |det J|, as ``torch.linalg.slogdet`` gives them.

        Singular matrices have sign 0 and minus infinity; where J holds NaN, both are NaN. Never raises, so it works in
        ``vmap`` and ``torch.compile``.

        >>> from nablanets import Quadratic
        >>> J = Quadratic.from_matrix(torch.diag(torch.tensor([-1.0, 2.0]))).jacobian(torch.zeros(2))
        >>> sign, value = J.slogdet()
        >>> float(sign), round(float(value.exp()), 5)
        (-1.0, 2.0)
        """
        sign, value = self._wide()._slogdet()
        dtype = self.reference.dtype
        return SignedLogdet(sign.to(dtype).expand(self.batch_shape), value.to(dtype).expand(self.batch_shape))

    def logdet(self) -> Float[Tensor, "*batch"]:
        """log det J, where det J > 0.

        Minus infinity where det J = 0 and NaN where det J < 0 in ``vmap`` and ``torch.compile``, which cannot raise
        an error for a value; NaN where J holds NaN.

        Raises:
            SingularJacobianError: a matrix is singular, by structure or numerically.
            IndefiniteJacobianError: a determinant is negative, so that it has no logarithm.
        """
        self._refuse_structural_rank()
        sign, value = self.slogdet()
        if not is_known(sign):
            return torch.where(sign < 0, torch.nan, value)
        if bool((sign <= 0).any()):
            self._refuse_singular(sign == 0)
            self._refuse_negative(sign < 0)
        return value

    def _slogdet(self) -> tuple[Tensor, Tensor]:
        """The sign of det J and log |det J|, of shapes that broadcast to the batch, in float32 or float64.

        By Cholesky's factorisation of the lower triangles where J is positive definite, by LU otherwise.
        """
        if not self.positive_semidefinite:
            sign, value = torch.linalg.slogdet(self.dense())
            return torch.where(value.isnan(), value, sign), value
        packed = self.packed()
        value, failed = spd_logdet(packed, self.features)
        sign = torch.ones_like(value)
        if any_of(failed):
            return _without_failed(sign, value, failed, packed.isnan().any(dim=-1))
        return sign, value

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
        estimate = estimate_logdet(self._wide(), probes=probes, steps=steps, seed=seed)
        return LogdetEstimate(*(part.to(self.reference.dtype) for part in estimate))

    def solve(self, b: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """J^{-1} b; NaN where J or b holds NaN.

        Derivatives are exact to any order; to first order where the operator is ``matrix_free``.

        Raises:
            SingularJacobianError: a matrix is singular, by structure or numerically.
        """
        value, singular = self.solve_ex(b)
        if is_known(singular):
            self._refuse_singular(singular)
        return value

    def solve_ex(self, b: Float[Tensor, "*batch d"]) -> Solved:
        """J^{-1} b and where J is numerically singular, there without a meaning; :meth:`solve` raises an error instead.

        So samples that can be solved are not held up by others. 16-bit types are solved in float32.
        """
        if not fits(b, self.features, self.reference):
            check_points(b, self.features, owner="J.solve", name="b", like=self.reference)
        self._refuse_structural_rank()
        wide = self._wide()
        right = b if wide is self else b.to(wide.reference.dtype)
        value, singular = wide._solve(right)
        return Solved(value if wide is self else value.to(self.reference.dtype), singular)

    def _solve(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """J^{-1} b and where J is singular, in float32 or float64."""
        if self.positive_semidefinite and self.matrix_free:
            return self._solve_by_products(b)
        dense = self.dense()
        column = b.unsqueeze(-1)  # (*batch, d, 1)
        if self.positive_semidefinite:
            factor, info = torch.linalg.cholesky_ex(dense)
            solution = torch.cholesky_solve(column, factor)
        else:
            solution, info = torch.linalg.solve_ex(dense, column)
        singular = info != 0
        if any_of(singular):
            unknown = dense.isnan().any(dim=-1).any(dim=-1)
            solution = torch.where(unknown[..., None, None], torch.nan, solution)
            singular = singular & ~unknown
        return solution.squeeze(-1), singular

    def _solve_by_products(self, b: Tensor) -> tuple[Tensor, Tensor]:
        """J^{-1} b by conjugate gradients, which autograd does not see: a correction carries the derivatives."""
        b = b.expand(torch.broadcast_shapes(b.shape, self.shape[:-1]))
        x, failed = conjugate_gradients(self, b)
        if not torch.is_grad_enabled():
            return x, failed
        return x + _Correction.apply(b - self @ x, self), failed

    def eigvalsh(self) -> Float[Tensor, "*batch d"]:
        """Eigenvalues in ascending order."""
        return torch.linalg.eigvalsh(self._wide().dense()).to(self.reference.dtype)

    def to(self, dtype: torch.dtype) -> SymmetricOperator:
        """The operator in another floating-point type."""
        return self if dtype == self.reference.dtype else ConvertedOperator(self, dtype)

    def _wide(self) -> SymmetricOperator:
        """The operator in float32 or float64, to factorise and solve with."""
        dtype = self.reference.dtype
        wide = working_dtype(dtype)
        return self if wide == dtype else self.to(wide)

    def __add__(self, other: SymmetricOperator) -> SymmetricOperator:
        return SumOperator(self, other)

    def __mul__(self, factor: float | Tensor) -> SymmetricOperator:
        return self.scale(factor)

    __rmul__ = __mul__

    def __neg__(self) -> SymmetricOperator:
        return self.scale(-1.0)

    @property
    def structural_fault(self) -> str:
        """Why J is singular for every x, as a message; empty if it is not."""
        return ""

    def _refuse_structural_rank(self) -> None:
        if self.structural_fault:
            raise SingularJacobianError(self.structural_fault)

    def _refuse_negative(self, negative: Tensor) -> None:
        if bool(negative.any()):
            raise IndefiniteJacobianError(
                f"logdet: {int(negative.sum())} of {max(1, self.batch_shape.numel())} Jacobians have a negative "
                "determinant, which has no logarithm. Take slogdet(), which gives the sign and log |det J|; or build "
                "the map with monotone=True, so that every determinant is positive."
            )

    def _refuse_singular(self, singular: Tensor) -> None:
        if bool(singular.any()):
            raise SingularJacobianError(
                f"{int(singular.sum())} of {max(1, self.batch_shape.numel())} Jacobians are numerically singular. A "
                "positive definite linear term (linear=True) keeps the Jacobian of a monotone map invertible."
            )


def _without_failed(sign: Tensor, value: Tensor, failed: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Sign 0 and minus infinity where a factorisation failed; NaN where that was due to NaN in the matrix."""
    instead = torch.where(unknown, torch.nan, -torch.inf).to(value)
    return sign.masked_fill(failed, 0.0) + torch.where(unknown, torch.nan, 0.0), torch.where(failed, instead, value)


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

    def to(self, dtype: torch.dtype) -> SymmetricOperator:
        return SumOperator(self.left.to(dtype), self.right.to(dtype))

    def scale(self, factor: float | Tensor) -> SymmetricOperator:
        return SumOperator(self.left.scale(factor), self.right.scale(factor))

    def congruence(self, a: Tensor) -> SymmetricOperator:
        return SumOperator(self.left.congruence(a), self.right.congruence(a))


class ConvertedOperator(SymmetricOperator):
    """An operator in another type, which is as exact as the operator itself.

    Its products are those of the dense form: products rounded to a narrow type are not linear enough to solve with.
    """

    def __init__(self, inner: SymmetricOperator, dtype: torch.dtype) -> None:
        self.inner = inner
        self.dtype = dtype
        self.features = inner.features
        self.batch_shape = inner.batch_shape
        self.positive_semidefinite = inner.positive_semidefinite

    @property
    def reference(self) -> Tensor:
        return self.inner.reference.to(self.dtype)

    def _product(self, v: Tensor) -> Tensor:
        return (self.dense() @ v.unsqueeze(-1)).squeeze(-1)

    def dense(self) -> Tensor:
        dense = self.inner.dense().to(self.dtype)
        return (dense + dense.mT) / 2

    def diagonal(self) -> Tensor:
        return self.inner.diagonal().to(self.dtype)

    def scale(self, factor: float | Tensor) -> SymmetricOperator:
        return ConvertedOperator(self.inner.scale(factor), self.dtype)

    def congruence(self, a: Tensor) -> SymmetricOperator:
        return ConvertedOperator(self.inner.congruence(a), self.dtype)
