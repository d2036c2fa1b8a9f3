"""Gradient maps in other coordinates: conservative forces whose energy has a symmetry by construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nablanets.errors import ShapeError
from nablanets.maps.around import AroundOne
from nablanets.maps.base import GradientMap
from nablanets.maps.coordinates import Coordinates, pair_distances, pair_permutations
from nablanets.maps.symmetrized import Symmetrized
from nablanets.operators import HessianOperator, SymmetricOperator
from nablanets.serialization import savable


@savable
class CoordinatePullback(AroundOne, GradientMap):
    r"""f(x) = J_phi(x)^T g(phi(x)), the gradient of G(phi(x)) for coordinates phi.

    Whatever leaves phi unchanged leaves the potential unchanged, and turns f with x. Fitted to forces, f = -grad V, so
    the energy is -potential. f is in closed form; its Jacobian, J_phi^T J_g J_phi + sum_k g_k Hess phi_k, is known by
    products. f is not monotone by construction, whatever g is.

    Args:
        inner: g, with as many features as phi has outputs.
        coordinates: phi, such as :func:`~nablanets.maps.pair_distances`.

    >>> import torch
    >>> from nablanets import GradNetC
    >>> from nablanets.maps import pair_distances
    >>> f, x = CoordinatePullback(GradNetC(3, 8), pair_distances(3)), torch.randn(5, 9)
    >>> shift = torch.tensor([1.0, 2.0, 3.0]).repeat(3)
    >>> torch.allclose(f(x + shift), f(x), atol=1e-4)
    True
    """

    def __init__(self, inner: GradientMap, coordinates: Coordinates) -> None:
        if inner.features != coordinates.outputs:
            raise ShapeError(
                f"CoordinatePullback: the coordinates have {coordinates.outputs} outputs, and the inner map takes "
                f"{inner.features} features. Build it with features=coordinates.outputs."
            )
        super().__init__(coordinates.features, monotone=False)
        self.inner = inner
        self.coordinates = coordinates

    def config(self) -> dict[str, Any]:
        return {"inner": self.inner, "coordinates": self.coordinates}

    def _seen(self, x: Tensor) -> Tensor:
        return self.coordinates(x)

    def _back(self, x: Tensor, columns: Tensor) -> Tensor:
        _, pull = self.coordinates.linearise(x)
        return torch.func.vmap(pull, in_dims=-1, out_dims=-1)(columns)

    def _forward(self, x: Tensor) -> Tensor:
        phi, pull = self.coordinates.linearise(x)
        return pull(self.inner(phi))

    def _potential(self, x: Tensor) -> Tensor:
        return self.inner.potential(self.coordinates(x))

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        return HessianOperator(self._forward, x)


def pair_forces(
    inner: GradientMap,
    particles: int,
    dimensions: int = 3,
    *,
    kind: str = "inverse",
    alike: Sequence[Sequence[int]] = (),
) -> CoordinatePullback:
    """A conservative force field of particles: a gradient map of all their distances.

    The energy is invariant under translations, rotations and exchanges of alike particles, and the forces on all
    particles add to zero, and so do their moments.

    Args:
        inner: a gradient map with particles (particles - 1) / 2 features.
        particles, dimensions: how many, and of which space; x is (*, particles * dimensions).
        kind: what it sees: the "distance", its "inverse" or its "log".
        alike: groups of particles that may be exchanged, over which it is averaged; the cost grows by their number.

    >>> from nablanets import GradNetM
    >>> pair_forces(GradNetM(36, 16), 9, alike=[(3, 4, 5), (6, 7)]).features
    27
    """
    if alike:
        inner = Symmetrized(inner, pair_permutations(particles, alike))
    return CoordinatePullback(inner, pair_distances(particles, dimensions, kind=kind))
