"""Gradient maps that are equivariant under a finite group, by averaging over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from nablanets.errors import ShapeError
from nablanets.maps.around import AroundOne
from nablanets.maps.base import GradientMap
from nablanets.maps.groups import check_group
from nablanets.maps.protocols import OuterTerm
from nablanets.operators import CongruenceOperator, GramTerm, StructuredOperator, SumOperator, SymmetricOperator
from nablanets.serialization import savable


@savable
class Symmetrized(AroundOne, GradientMap):
    r"""f(x) = (1/|G|) sum_R R^T g(R x) over a finite group G of orthogonal matrices R.

    f is equivariant, f(R x) = R f(x), and the gradient of the invariant potential (1/|G|) sum_R G(R x); it is monotone
    if g is. All R x are evaluated as one batch, so the cost is |G| times that of g.

    Args:
        inner: g.
        matrices: the group, (n, d, d), or (n, d) for diagonal matrices (which keeps diagonal terms of Jacobians
            diagonal). They take the dtype of ``inner``: for symmetry to the last bit of float64 start from
            ``inner.double()``. ``maps.generated_group`` completes a set of generators.

    Raises:
        ShapeError: matrices of the wrong shape.
        InvalidInputError: they are not orthogonal, not distinct, or not closed under products.

    >>> from nablanets import GradNetC
    >>> from nablanets.maps import generated_group
    >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> f = Symmetrized(GradNetC(2, 8), generated_group(quarter.unsqueeze(0)))
    >>> x = torch.randn(5, 2)
    >>> torch.allclose(f(x @ quarter.mT), f(x) @ quarter.mT, atol=1e-6)
    True
    """

    matrices: Tensor

    def __init__(self, inner: GradientMap, matrices: Tensor | Sequence[Any]) -> None:
        matrices = torch.as_tensor(matrices)
        matrices = matrices.to(next(chain(inner.parameters(), inner.buffers()), matrices))
        check_group(matrices, owner="Symmetrized")
        if matrices.shape[-1] != inner.features:
            raise ShapeError(
                f"Symmetrized: expected matrices for {inner.features} features, got shape {tuple(matrices.shape)}."
            )
        super().__init__(inner.features, monotone=inner.monotone)
        self.inner = inner
        self.register_buffer("matrices", matrices.clone())

    def config(self) -> dict[str, Any]:
        return {"inner": self.inner, "matrices": self.matrices.tolist()}

    def orbit(self, x: Tensor) -> Tensor:
        """R x for all R, (n, *, d): contexts and other batches of g broadcast from the right."""
        if self.matrices.ndim == 2:
            return torch.einsum("nd,...d->n...d", self.matrices, x)
        return torch.einsum("nij,...j->n...i", self.matrices, x)

    def _seen(self, x: Tensor) -> Tensor:
        return self.orbit(x)

    def _back(self, x: Tensor, columns: Tensor) -> Tensor:
        group = torch.diag_embed(self.matrices) if self.matrices.ndim == 2 else self.matrices
        return torch.einsum("nij,n...ip->...jp", group, columns) / len(group)

    def _passed_on(self, term: OuterTerm) -> OuterTerm:
        """One R after the other, so that the columns of one at a time are held."""
        group = torch.diag_embed(self.matrices) if self.matrices.ndim == 2 else self.matrices

        def columns(x: Tensor) -> Tensor:
            orbit = self.orbit(x)  # (n, *, d)
            total = group[0].mT @ term.columns(orbit[0])  # (*, d, p)
            for matrix, points in zip(group[1:], orbit[1:], strict=True):
                total = total + matrix.mT @ term.columns(points)
            return total / len(group)

        return OuterTerm(term.values, term.write, columns, positive=term.positive)

    def _forward(self, x: Tensor) -> Tensor:
        return _mean_back(self.matrices, self.inner(self.orbit(x)))

    def _potential(self, x: Tensor) -> Tensor:
        return self.inner.potential(self.orbit(x)).mean(dim=0)

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        return mean_congruence(self.inner.jacobian(self.orbit(x)), self.matrices)

    def _value_and_jacobian(self, x: Tensor) -> tuple[Tensor, SymmetricOperator]:
        values, operator = self.inner.value_and_jacobian(self.orbit(x))
        return _mean_back(self.matrices, values), mean_congruence(operator, self.matrices)

    def _along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        inner = self.inner.along(self.orbit(x), self.orbit(p))
        return lambda t: inner(t.expand(len(self.matrices), *t.shape)).mean(dim=0)

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        group = torch.diag_embed(self.matrices) if self.matrices.ndim == 2 else self.matrices
        lower, upper = ((group.mT @ bound @ group).mean(dim=0) for bound in self.inner.curvature_envelope())
        return lower, upper


def odd(net: GradientMap) -> Symmetrized:
    """The odd part of a map, f(x) = (g(x) - g(-x)) / 2, so that f(-x) = -f(x) and the potential is even.

    >>> from nablanets import GradNetC
    >>> f, x = odd(GradNetC(3, 8)), torch.randn(5, 3)
    >>> torch.equal(f(-x), -f(x)), bool((f(torch.zeros(3)) == 0).all())
    (True, True)
    """
    signs = torch.ones(2, net.features)
    signs[1] = -1
    return Symmetrized(net, signs)


def _mean_back(matrices: Tensor, values: Tensor) -> Tensor:
    """The mean of R^T v_R for v of shape (n, *, d)."""
    equation = "nd,n...d->...d" if matrices.ndim == 2 else "nij,n...i->...j"
    return torch.einsum(equation, matrices, values) / len(matrices)


def mean_congruence(operator: SymmetricOperator, matrices: Tensor) -> SymmetricOperator:
    """The mean of R^T J_R R, for an operator with batch (n, *) and matrices (n, d, d) or diagonals (n, d).

    Structured operators stay structured: a Gram factor U becomes the stack of all U R.
    """
    if isinstance(operator, SumOperator):
        return mean_congruence(operator.left, matrices) + mean_congruence(operator.right, matrices)
    if not isinstance(operator, StructuredOperator):
        return MeanCongruence(operator, matrices)
    terms = tuple(_stacked(term, operator.batch_shape, matrices) for term in operator.terms)
    shift = operator.shift
    if shift is not None and matrices.ndim == 2:
        squares = matrices.square()
        varies = shift.ndim > 1
        shift = _mean_back(squares, shift.expand(*operator.batch_shape, -1)) if varies else shift * squares.mean(dim=0)
    elif shift is not None:
        axes = torch.eye(operator.features, dtype=matrices.dtype, device=matrices.device)
        terms, shift = (*terms, _stacked(GramTerm(axes, shift), operator.batch_shape, matrices)), None
    return StructuredOperator(
        operator.features,
        terms,
        shift,
        positive_semidefinite=operator.positive_semidefinite,
        batch_shape=operator.batch_shape[1:],
    )


def _stacked(term: GramTerm, batch: torch.Size, matrices: Tensor) -> GramTerm:
    """The Gram term of the mean of R^T U_R^T diag(c_R) U_R R: all U_R R on top of each other."""
    varies = batch if term.weights.ndim > 1 else (len(matrices),)
    weights = term.weights.expand(*varies, -1).movedim(0, -2).flatten(-2) / len(matrices)
    if term.factor.ndim == 2:
        factor = term.factor * matrices.unsqueeze(1) if matrices.ndim == 2 else term.factor @ matrices
        return GramTerm(factor.flatten(0, 1), weights)
    factors = term.factor.expand(*batch, *term.factor.shape[-2:])
    turned = "n...kd,nd->...nkd" if matrices.ndim == 2 else "n...ki,nij->...nkj"
    return GramTerm(torch.einsum(turned, factors, matrices).flatten(-3, -2), weights)


class MeanCongruence(SymmetricOperator):
    """The mean of R^T J_R R for an unstructured J with batch (n, *)."""

    def __init__(self, inner: SymmetricOperator, matrices: Tensor) -> None:
        self.inner = inner
        self.matrices = torch.diag_embed(matrices) if matrices.ndim == 2 else matrices
        self.features = inner.features
        self.batch_shape = inner.batch_shape[1:]
        self.positive_semidefinite = inner.positive_semidefinite

    @property
    def reference(self) -> Tensor:
        return self.matrices

    def _product(self, v: Tensor) -> Tensor:
        return _mean_back(self.matrices, self.inner @ torch.einsum("nij,...j->n...i", self.matrices, v))

    def dense(self) -> Tensor:
        turned = torch.einsum("nij,n...ik,nkl->...jl", self.matrices, self.inner.dense(), self.matrices)
        return turned / len(self.matrices)

    def diagonal(self) -> Tensor:
        return self.dense().diagonal(dim1=-2, dim2=-1)

    def scale(self, factor: float | Tensor) -> SymmetricOperator:
        return MeanCongruence(self.inner.scale(factor), self.matrices)

    def congruence(self, a: Tensor) -> SymmetricOperator:
        return CongruenceOperator(self, a)
