r"""Operators known by their structure,

.. math:: J = \mathrm{diag}(m) + \sum_k U_k^\top \mathrm{diag}(c_k)\, U_k,

closed under sums, scalings and congruences A^T J A.

Costs per sample in multiply-adds, for one shared factor U of shape (h, d): product 2hd, trace h, diagonal hd, dense
hd(d+1)/2, log-determinant dense + d^3/6 and its derivative d^3/3 + hd(d+1), or k^3 with k < d rows beside a positive
diagonal (Woodbury).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nablanets.operators.base import SumOperator, SymmetricOperator
from nablanets.operators.packing import pack, pack_diagonal, unpack
from nablanets.operators.woodbury import LowRankForm

# Up to this size a batch of dense W^T D W is best made packed: as one product of D with the rows vech(w_i w_i^T).
_PACKED_FEATURES = 64
_NO_BATCH = torch.Size()


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
        return self.factor.mT @ (self.weights.unsqueeze(-1) * self.factor)

    def packed(self) -> Tensor:
        """vech of the dense form: one product for the whole batch where the factor is shared."""
        if self.factor.ndim > 2:
            return pack(self.dense())
        factor = self.factor.contiguous()
        return self.weights @ pack(factor.unsqueeze(-1) * factor.unsqueeze(-2))

    def diagonal(self) -> Tensor:
        squares = self.factor.square()
        if self.factor.ndim == 2:
            return self.weights @ squares
        return torch.einsum("...k,...kd->...d", self.weights, squares)

    def trace(self) -> Tensor:
        return (self.weights * self.factor.square().sum(dim=-1)).sum(dim=-1)

    def congruence(self, a: Tensor) -> GramTerm:
        return GramTerm(self.factor @ a, self.weights)


class StructuredOperator(SymmetricOperator):
    """diag(shift) + sum of Gram terms.

    Args:
        features: d.
        terms: the Gram terms.
        shift: a diagonal of shape broadcastable to (*batch, d), or None. With ``positive_semidefinite`` it must be
            strictly positive.
        positive_semidefinite: promise that all weights and the shift are of one sign, or that their sum is.
        batch_shape: of the operator, where weights and shift, equal for all samples, have none themselves.

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
        batch_shape: torch.Size = _NO_BATCH,
    ) -> None:
        self.features = features
        self.terms = terms
        self.shift = shift
        self.positive_semidefinite = positive_semidefinite
        shapes = [term.weights.shape[:-1] for term in terms] + ([] if shift is None else [shift.shape[:-1]])
        self.batch_shape = torch.broadcast_shapes(batch_shape, *shapes)

    @property
    def reference(self) -> Tensor:
        return self.terms[0].weights if self.shift is None else self.shift

    @property
    def rank_bound(self) -> int:
        """Upper bound of the rank of the Gram terms."""
        return sum(term.weights.shape[-1] for term in self.terms)

    def _product(self, v: Tensor) -> Tensor:
        total = sum((term.product(v) for term in self.terms), torch.zeros_like(v))
        return total if self.shift is None else total + self.shift * v

    def dense(self) -> Tensor:
        if self._packs:
            return unpack(self._sum_of_triangles(), self.features).expand(self.shape)
        return self._sum_of_matrices()

    def packed(self) -> Tensor:
        if self._packs:
            return self._sum_of_triangles()
        return pack(self._sum_of_matrices())

    @property
    def _packs(self) -> bool:
        """Whether a large batch of small matrices is best made packed."""
        return 1 < self.features <= _PACKED_FEATURES and self.batch_shape.numel() > self.features

    def _sum_of_triangles(self) -> Tensor:
        """vech(J), (*batch, d (d + 1) / 2), or without batch where all matrices are equal."""
        parts = [term.packed() for term in self.terms]
        if self.shift is not None:
            parts.append(pack_diagonal(self.shift))
        return sum(parts[1:], parts[0])

    def _sum_of_matrices(self) -> Tensor:
        """J, (*batch, d, d)."""
        d = self.features
        matrix = self.reference.new_zeros(d, d) if self.shift is None else torch.diag_embed(self.shift)
        for term in self.terms:
            matrix = matrix + term.dense()
        return matrix.expand(self.shape)

    def diagonal(self) -> Tensor:
        parts = [term.diagonal() for term in self.terms] + ([] if self.shift is None else [self.shift])
        return sum(parts[1:], parts[0]).expand(*self.batch_shape, self.features)

    def trace(self) -> Tensor:
        """The traces, in O(k) per sample beyond the row norms of shared factors, which are computed once."""
        parts = [term.trace() for term in self.terms]
        if self.shift is not None:
            parts.append(self.shift.sum(dim=-1))
        return sum(parts[1:], parts[0]).expand(self.batch_shape)

    def _slogdet(self) -> tuple[Tensor, Tensor]:
        if self._low_rank:
            return self._low_rank_form().slogdet()
        if self.structural_fault:
            zero = torch.zeros_like(self.reference[..., 0])
            return zero, zero - torch.inf
        return super()._slogdet()

    def _solve(self, b: Tensor) -> tuple[Tensor, Tensor]:
        return self._low_rank_form().solve(b) if self._low_rank else super()._solve(b)

    def to(self, dtype: torch.dtype) -> StructuredOperator:
        terms = tuple(GramTerm(term.factor.to(dtype), term.weights.to(dtype)) for term in self.terms)
        return self._with(terms, None if self.shift is None else self.shift.to(dtype))

    @property
    def _low_rank(self) -> bool:
        """Whether J is a positive diagonal plus terms of lower rank than d."""
        return self.shift is not None and self.positive_semidefinite and self.rank_bound < self.features

    def _low_rank_form(self) -> LowRankForm:
        """All terms stacked into one factor and its weights, beside the shift."""
        shift = self.reference
        factor_batch = torch.Size()
        if shift.ndim > 1 or any(term.factor.ndim > 2 for term in self.terms):
            factor_batch = self.batch_shape
        # Empty parts first, so that an operator without terms has something to stack.
        factors = [shift.new_zeros(*factor_batch, 0, self.features)]
        weights = [shift.new_zeros(*self.batch_shape, 0)]
        for term in self.terms:
            factors.append(term.factor.expand(*factor_batch, *term.factor.shape[-2:]))
            weights.append(term.weights.expand(*self.batch_shape, term.weights.shape[-1]))
        return LowRankForm(shift, torch.cat(factors, dim=-2), torch.cat(weights, dim=-1))

    @property
    def structural_fault(self) -> str:
        if self.shift is not None or self.rank_bound >= self.features:
            return ""
        return (
            f"This Jacobian has rank at most {self.rank_bound} in {self.features} dimensions, so its determinant is "
            "zero for every x and it has no inverse. Keep the linear term of the map (linear=True, the default), or "
            f"use at least {self.features} hidden units."
        )

    def scale(self, factor: float | Tensor) -> StructuredOperator:
        scalar = factor.unsqueeze(-1) if isinstance(factor, Tensor) else factor
        terms = tuple(GramTerm(t.factor, t.weights * scalar) for t in self.terms)
        shift = None if self.shift is None else self.shift * scalar
        psd = self.positive_semidefinite and isinstance(factor, float | int) and factor > 0
        return self._with(terms, shift, positive_semidefinite=psd)

    def congruence(self, a: Tensor) -> StructuredOperator:
        if a.ndim == 1:
            terms = tuple(GramTerm(t.factor * a, t.weights) for t in self.terms)
            shift = None if self.shift is None else self.shift * a.square()
            return self._with(terms, shift)
        terms = tuple(term.congruence(a) for term in self.terms)
        if self.shift is not None:
            terms = (*terms, GramTerm(a, self.shift))
        return self._with(terms, None, features=a.shape[-1])

    def _with(self, terms: tuple[GramTerm, ...], shift: Tensor | None, **changes: Any) -> StructuredOperator:
        """An operator with other parts that keeps what is not changed."""
        arguments: dict[str, Any] = {
            "features": self.features,
            "positive_semidefinite": self.positive_semidefinite,
            "batch_shape": self.batch_shape,
        }
        return StructuredOperator(terms=terms, shift=shift, **{**arguments, **changes})

    def __add__(self, other: SymmetricOperator) -> SymmetricOperator:
        if not isinstance(other, StructuredOperator):
            return SumOperator(self, other)
        shifts = [s for s in (self.shift, other.shift) if s is not None]
        return self._with(
            self.terms + other.terms,
            sum(shifts[1:], shifts[0]) if shifts else None,
            positive_semidefinite=self.positive_semidefinite and other.positive_semidefinite,
            batch_shape=torch.broadcast_shapes(self.batch_shape, other.batch_shape),
        )
