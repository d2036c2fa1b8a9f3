"""One law for all pairs of particles: potentials sum_{i<j} m_i m_j H(phi_ij), and the accelerations they cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nablanets.errors import InvalidInputError, ShapeError, check_points
from nablanets.maps.base import GradientMap
from nablanets.maps.coordinates import pair_distances
from nablanets.maps.describing import describe_map
from nablanets.maps.invariant import CoordinatePullback
from nablanets.operators import StructuredOperator, SymmetricOperator
from nablanets.parameters import first_tensor
from nablanets.serialization import savable
from nablanets.tensors import carries_derivatives, is_known, kept, tensor_of


@savable
class PairLaw(GradientMap):
    r"""g(phi)_k = m_i m_j h(phi_k) for all pairs k = (i, j), the gradient of :math:`\sum_k m_i m_j H(\phi_k)`.

    Invariant under exchanges of particles together with their masses m > 0. Masses are trained with the law h; the
    first stays as given, since only products m_i m_j h are known. Masses that carry derivatives are not trained: the
    map passes their derivatives on. It is made of their values, so build it again when these have changed.

    Args:
        law: h, a gradient map with one feature.
        masses: to start from, (particles,); or, where they carry derivatives, to take.

    >>> from nablanets import GradNetC
    >>> PairLaw(GradNetC(1, 8), torch.ones(4))(torch.rand(5, 6)).shape
    torch.Size([5, 6])
    """

    first: Tensor
    log_ratios: Tensor

    def __init__(self, law: GradientMap, masses: Tensor | Sequence[float]) -> None:
        masses = tensor_of(masses)
        if law.features != 1:
            raise ShapeError(f"PairLaw: expected a law with one feature, got {law.features}.")
        if masses.ndim != 1 or len(masses) < 2 or (is_known(masses) and not bool((masses > 0).all())):
            raise InvalidInputError("PairLaw: expected positive masses of at least two particles, (particles,).")
        pairs = len(masses) * (len(masses) - 1) // 2
        super().__init__(pairs, monotone=False)
        self.law = law
        self.register_buffer("first", kept(masses[:1]))
        log_ratios = (masses[1:] / masses[:1]).log()
        if carries_derivatives(masses):
            self.register_buffer("log_ratios", log_ratios)
        else:
            self.log_ratios = nn.Parameter(log_ratios)

    def config(self) -> dict[str, Any]:
        return {"law": self.law, "masses": self.masses().tolist()}

    def masses(self) -> Tensor:
        """m, (particles,)."""
        return torch.cat([self.first, self.first * self.log_ratios.exp()])

    def _products(self) -> Tensor:
        masses = self.masses()
        i, j = torch.triu_indices(len(masses), len(masses), 1, device=masses.device)
        return masses[i] * masses[j]

    def _forward(self, x: Tensor) -> Tensor:
        return self._products() * self.law(x.unsqueeze(-1)).squeeze(-1)

    def _potential(self, x: Tensor) -> Tensor:
        return self.law.potential(x.unsqueeze(-1)) @ self._products()

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        return StructuredOperator(self.features, (), self._products() * self.law.laplacian(x.unsqueeze(-1)))


@savable
class PairAcceleration(nn.Module):
    r"""Accelerations of particles that attract or repel each other, :math:`m_i \ddot x_i = \partial_{x_i} F`.

    F = sum_{i<j} m_i m_j H(s(r_ij)) is minus the potential energy. Energy, momentum and angular momentum are conserved.

    Args:
        law: h = H', a gradient map with one feature.
        masses: to start from, (particles,); see :class:`PairLaw`.
        dimensions: of space.
        kind: s(r), "distance", "inverse" or "log".

    Shapes:
        x ``(*, particles * dimensions)`` -> accelerations of the same shape.

    >>> from nablanets import GradNetC
    >>> PairAcceleration(GradNetC(1, 8), torch.ones(4))(torch.rand(5, 12)).shape
    torch.Size([5, 12])
    """

    def __init__(
        self, law: GradientMap, masses: Tensor | Sequence[float], dimensions: int = 3, kind: str = "inverse"
    ) -> None:
        super().__init__()
        self.dimensions, self.kind = dimensions, kind
        self.force = CoordinatePullback(PairLaw(law, masses), pair_distances(len(masses), dimensions, kind=kind))
        self.features = self.force.features

    @property
    def pairs(self) -> PairLaw:
        """The law and the masses."""
        return cast(PairLaw, self.force.inner)

    def config(self) -> dict[str, Any]:
        masses = self.pairs.masses().tolist()
        return {"law": self.pairs.law, "masses": masses, "dimensions": self.dimensions, "kind": self.kind}

    def __repr__(self) -> str:
        return describe_map(self, self.config, features=self.features)

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        check_points(x, self.features, owner="PairAcceleration", like=first_tensor(self))
        return self.force(x) / self.pairs.masses().repeat_interleave(self.dimensions)
