r"""Symmetric linear operators: what the Jacobian of a gradient map is.

A Jacobian is never stored as an array unless asked for. It is a sum of Gram terms and a diagonal,

.. math:: J = \mathrm{diag}(m) + \sum_k U_k^\top \mathrm{diag}(c_k)\, U_k,

closed under sums, scalings and congruences A^T J A. In this module vectors have shape ``(*batch, d)`` and operators
act on vectors: ``J @ v`` is the batch of products, for ``v`` of the batch shape of ``J`` (or broadcastable to it).

Costs per sample in multiply-adds, for one shared factor U of shape (h, d): product 2hd, trace h, diagonal hd, dense
hd(d+1)/2, log-determinant dense + d^3/6, or k^3 with k < d rows beside a positive diagonal (Woodbury).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nablanets.errors import ShapeError, SingularJacobianError

# Up to this size a batch of dense W^T D W is one product with the rows vech(w_i w_i^T).
_VECH_FEATURES = 64


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

    @abstractmethod
    def _product(self, v: Tensor) -> Tensor:
        """J v for v of shape (*batch, d)."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "*batch d d"]:
        """The matrices as an array."""

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
        dense = self.dense()
        if self.positive_semidefinite:
            factor, info = torch.linalg.cholesky_ex(dense)
            self._refuse_singular(info != 0)
            return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        value = torch.linalg.slogdet(dense).logabsdet
        self._refuse_singular(torch.isinf(value))
        return value

    def solve(self, b: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """J^{-1} b.

        Raises:
            SingularJacobianError: a matrix is singular, by structure or numerically.
        """
        dense = self.dense()
        if self.positive_semidefinite:
            factor, info = torch.linalg.cholesky_ex(dense)
            self._refuse_singular(info != 0)
            return torch.cholesky_solve(b.unsqueeze(-1), factor).squeeze(-1)
        solution, info = torch.linalg.solve_ex(dense, b.unsqueeze(-1))
        self._refuse_singular(info != 0)
        return solution.squeeze(-1)

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


class GramTerm(NamedTuple):
    """U^T diag(c) U with a factor U shared by the batch, (k, d), or one per sample, (*batch, k, d)."""

    factor: Tensor
    weights: Float[Tensor, "*batch k"]

    def product(self, v: Tensor) -> Tensor:
        if self.factor.ndim == 2:
            return ((v @ self.factor.mT) * self.weights) @ self.factor
        inner = torch.einsum("...kd,...d->...k", self.factor, v) * self.weights
        return torch.einsum("...kd,...k->...d", self.factor, inner)

    def dense(self) -> Tensor:
        d = self.factor.shape[-1]
        if self.factor.ndim == 2 and 1 < d <= _VECH_FEATURES and self.weights.shape[:-1].numel() > d:
            rows, columns, unpack = _vech_indices(d)
            packed = self.weights @ (self.factor[:, rows] * self.factor[:, columns])
            return packed[..., unpack].unflatten(-1, (d, d))
        return self.factor.mT @ (self.weights.unsqueeze(-1) * self.factor)

    def diagonal(self) -> Tensor:
        squares = self.factor.square()
        if self.factor.ndim == 2:
            return self.weights @ squares
        return torch.einsum("...k,...kd->...d", self.weights, squares)

    def trace(self) -> Tensor:
        return (self.weights * self.factor.square().sum(dim=-1)).sum(dim=-1)

    def congruence(self, a: Tensor) -> GramTerm:
        return GramTerm(self.factor @ a, self.weights)


@lru_cache(maxsize=_VECH_FEATURES)
def _vech_indices(d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of the lower triangle, and where each entry of the full matrix lies in it."""
    rows, columns = torch.tril_indices(d, d)
    unpack = torch.empty(d, d, dtype=torch.long)
    unpack[rows, columns] = unpack[columns, rows] = torch.arange(rows.numel())
    return rows, columns, unpack.flatten()


class StructuredOperator(SymmetricOperator):
    """diag(shift) + sum of Gram terms.

    Args:
        features: d.
        terms: the Gram terms.
        shift: a diagonal of shape broadcastable to (*batch, d), or None. With ``positive_semidefinite`` it must be
            strictly positive.
        positive_semidefinite: promise that all weights and the shift are of one sign, or that their sum is.

    >>> w, c = torch.eye(2, dtype=torch.double), torch.tensor([[1.0, 2.0]], dtype=torch.double)
    >>> J = StructuredOperator(2, (GramTerm(w, c),), positive_semidefinite=True)
    >>> J.dense().tolist(), J.trace().tolist()
    ([[[1.0, 0.0], [0.0, 2.0]]], [3.0])
    >>> ones = torch.ones(1, 2, dtype=torch.double)
    >>> torch.allclose(J.solve(J @ ones), ones)
    True
    """

    def __init__(
        self,
        features: int,
        terms: tuple[GramTerm, ...],
        shift: Tensor | None = None,
        *,
        positive_semidefinite: bool = False,
    ) -> None:
        self.features = features
        self.terms = terms
        self.shift = shift
        self.positive_semidefinite = positive_semidefinite
        shapes = [term.weights.shape[:-1] for term in terms] + ([] if shift is None else [shift.shape[:-1]])
        self.batch_shape = torch.broadcast_shapes(*shapes)

    @property
    def rank_bound(self) -> int:
        """Upper bound of the rank of the Gram terms."""
        return sum(term.weights.shape[-1] for term in self.terms)

    def _product(self, v: Tensor) -> Tensor:
        total = sum((term.product(v) for term in self.terms), torch.zeros_like(v))
        return total if self.shift is None else total + self.shift * v

    def dense(self) -> Tensor:
        matrix = self._identity_like() if self.shift is None else torch.diag_embed(self.shift)
        for term in self.terms:
            matrix = matrix + term.dense()
        return matrix.expand(self.shape)

    def _identity_like(self) -> Tensor:
        """A zero matrix to add to."""
        return self.terms[0].weights.new_zeros(self.features, self.features)

    def diagonal(self) -> Tensor:
        parts = [term.diagonal() for term in self.terms] + ([] if self.shift is None else [self.shift])
        return sum(parts[1:], parts[0]).expand(*self.batch_shape, self.features)

    def trace(self) -> Tensor:
        """The traces, in O(k) per sample beyond the row norms of shared factors, which are computed once."""
        parts = [term.trace() for term in self.terms]
        if self.shift is not None:
            parts.append(self.shift.sum(dim=-1))
        return sum(parts[1:], parts[0]).expand(self.batch_shape)

    def logdet(self) -> Tensor:
        self._refuse_structural_rank()
        if not self._low_rank:
            return super().logdet()
        _, shift, _, capacitance = self._woodbury()
        sign, value = torch.linalg.slogdet(capacitance)
        self._refuse_singular(sign == 0)
        return (value + shift.log().sum(dim=-1)).expand(self.batch_shape)

    def solve(self, b: Tensor) -> Tensor:
        self._refuse_structural_rank()
        if not self._low_rank:
            return super().solve(b)
        factor, shift, weights, capacitance = self._woodbury()
        start = b / shift
        inner = weights * torch.einsum("...kd,...d->...k", factor, start)
        correction, info = torch.linalg.solve_ex(capacitance, inner.unsqueeze(-1))
        self._refuse_singular(info != 0)
        return start - torch.einsum("...kd,...k->...d", factor, correction.squeeze(-1)) / shift

    @property
    def _low_rank(self) -> bool:
        return self.shift is not None and self.positive_semidefinite and self.rank_bound < self.features

    def _woodbury(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Stacked factor U, shift S, weights C, and I + C U S^{-1} U^T, whose determinant is det J / det S."""
        if self.shift is None:
            raise ShapeError("Woodbury's identity needs a diagonal term.")
        batch = self.batch_shape if any(t.factor.ndim > 2 for t in self.terms) or self.shift.ndim > 1 else ()
        factor = torch.cat([t.factor.expand(*batch, *t.factor.shape[-2:]) for t in self.terms], dim=-2)
        weights = torch.cat([t.weights.expand(*self.batch_shape, t.weights.shape[-1]) for t in self.terms], dim=-1)
        gram = (factor / self.shift.unsqueeze(-2)) @ factor.mT
        identity = torch.eye(self.rank_bound, dtype=weights.dtype, device=weights.device)
        return factor, self.shift, weights, identity + weights.unsqueeze(-1) * gram

    def _refuse_structural_rank(self) -> None:
        if self.shift is None and self.rank_bound < self.features:
            raise SingularJacobianError(
                f"This Jacobian has rank at most {self.rank_bound} in {self.features} dimensions, so its determinant "
                "is zero for every x and it has no inverse. Keep the linear term of the map (linear=True, the "
                f"default), or use at least {self.features} hidden units."
            )

    def scale(self, factor: float | Tensor) -> StructuredOperator:
        scalar = factor.unsqueeze(-1) if isinstance(factor, Tensor) else factor
        terms = tuple(GramTerm(t.factor, t.weights * scalar) for t in self.terms)
        shift = None if self.shift is None else self.shift * scalar
        psd = self.positive_semidefinite and isinstance(factor, float | int) and factor > 0
        return StructuredOperator(self.features, terms, shift, positive_semidefinite=psd)

    def congruence(self, a: Tensor) -> StructuredOperator:
        if a.ndim == 1:
            terms = tuple(GramTerm(t.factor * a, t.weights) for t in self.terms)
            shift = None if self.shift is None else self.shift * a.square()
            return StructuredOperator(self.features, terms, shift, positive_semidefinite=self.positive_semidefinite)
        terms = tuple(term.congruence(a) for term in self.terms)
        if self.shift is not None:
            terms = (*terms, GramTerm(a, self.shift.expand(*self.batch_shape, self.features)))
        return StructuredOperator(a.shape[-1], terms, positive_semidefinite=self.positive_semidefinite)

    def __add__(self, other: SymmetricOperator) -> SymmetricOperator:
        if not isinstance(other, StructuredOperator):
            return super().__add__(other)
        shifts = [s for s in (self.shift, other.shift) if s is not None]
        return StructuredOperator(
            self.features,
            self.terms + other.terms,
            sum(shifts[1:], shifts[0]) if shifts else None,
            positive_semidefinite=self.positive_semidefinite and other.positive_semidefinite,
        )


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


class SumOperator(SymmetricOperator):
    """The sum of two operators of different kinds."""

    def __init__(self, left: SymmetricOperator, right: SymmetricOperator) -> None:
        self.left, self.right = left, right
        self.features = left.features
        self.batch_shape = torch.broadcast_shapes(left.batch_shape, right.batch_shape)
        self.positive_semidefinite = left.positive_semidefinite and right.positive_semidefinite

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


class CongruenceOperator(SymmetricOperator):
    """A^T J A for an unstructured J; A of shape (d, n), or (d,) for a diagonal."""

    def __init__(self, inner: SymmetricOperator, a: Tensor) -> None:
        self.inner = inner
        self.matrix = torch.diag(a) if a.ndim == 1 else a
        self.features = self.matrix.shape[-1]
        self.batch_shape = inner.batch_shape
        self.positive_semidefinite = inner.positive_semidefinite

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
