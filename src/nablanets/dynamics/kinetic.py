"""The kinetic energy of fixed masses as a gradient map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nablanets.errors import InvalidInputError, ShapeError
from nablanets.maps import GradientMap
from nablanets.operators import GramTerm, StructuredOperator, SymmetricOperator
from nablanets.serialization import savable
from nablanets.tensors import is_known, kept, tensor_of


@savable
class Kinetic(GradientMap):
    r"""f(p) = M^{-1} p, the gradient of T(p) = p . M^{-1} p / 2. The masses are fixed, not trained.

    For masses to be learned take ``Quadratic(n, 0, monotone=True, bias=False)``, whose diagonal is 1 / m. If the masses
    given carry derivatives, f passes them on; it is made of their values, so build it again when these have changed.

    Args:
        mass: the masses, (n), or a symmetric positive definite mass matrix, (n, n).

    Raises:
        ShapeError: another shape.
        InvalidInputError: a mass that is not positive, or a matrix that is not symmetric positive definite.

    >>> Kinetic([1.0, 4.0])(torch.ones(2)).tolist()
    [1.0, 0.25]
    """

    factor: Tensor

    def __init__(self, mass: Tensor | Sequence[Any]) -> None:
        mass = kept(tensor_of(mass))
        if not mass.is_floating_point():
            mass = mass.to(torch.get_default_dtype())
        if mass.ndim not in (1, 2) or mass.shape[0] != mass.shape[-1]:
            raise ShapeError(f"Kinetic: expected masses (n) or a mass matrix (n, n), got shape {tuple(mass.shape)}.")
        super().__init__(mass.shape[0], monotone=True)
        self._mass = mass.detach()
        self.register_buffer("factor", _inverse(mass))

    def config(self) -> dict[str, Any]:
        return {"mass": self._mass.tolist()}

    def _forward(self, p: Tensor) -> Tensor:
        return p * self.factor if self.factor.ndim == 1 else (p @ self.factor.mT) @ self.factor

    def _potential(self, p: Tensor) -> Tensor:
        return (self._forward(p) * p).sum(dim=-1) / 2

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        matrix = torch.diag(self.factor) if self.factor.ndim == 1 else self.factor.mT @ self.factor
        return matrix, matrix

    def _jacobian(self, p: Tensor) -> SymmetricOperator:
        terms: tuple[GramTerm, ...] = ()
        shift: Tensor | None = self.factor
        if self.factor.ndim == 2:
            terms, shift = (GramTerm(self.factor, torch.ones_like(self.factor[0])),), None
        return StructuredOperator(self.features, terms, shift, positive_semidefinite=True, batch_shape=p.shape[:-1])


def _inverse(mass: Tensor) -> Tensor:
    """1 / m; or, for a mass matrix, R with R^T R = M^{-1}."""
    if mass.ndim == 1:
        if is_known(mass) and not bool((mass > 0).all()):
            raise InvalidInputError(f"Kinetic: expected positive masses, got {mass.tolist()}.")
        return mass.reciprocal()
    root, failed = torch.linalg.cholesky_ex(mass)
    if is_known(mass) and (bool(failed) or not torch.allclose(mass, mass.mT)):
        raise InvalidInputError("Kinetic: expected a symmetric positive definite mass matrix.")
    one = torch.eye(len(mass), dtype=mass.dtype, device=mass.device)
    return torch.linalg.solve_triangular(root, one, upper=False)
