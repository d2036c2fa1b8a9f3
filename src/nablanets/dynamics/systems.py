"""Dynamical systems x' = v(x), and those that a Hamiltonian makes: x' = J grad H(x)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nablanets import serialization
from nablanets.dynamics.kinetic import Kinetic
from nablanets.errors import InvalidInputError, ShapeError, check_points, check_positive_int
from nablanets.maps import ConditionalGradNet, GradientMap, Pullback, Sum
from nablanets.maps.describing import describe_map
from nablanets.parameters import first_tensor
from nablanets.serialization import savable


class System(nn.Module, ABC):
    """An autonomous system x' = v(x) in ``features`` dimensions; ``system(x)`` is v(x)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    @abstractmethod
    def vector_field(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """v(x)."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments, from which :func:`nablanets.load` rebuilds the system."""

    def __repr__(self) -> str:
        return describe_map(self, self.config, features=self.features)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        check_points(x, self.features, owner=type(self).__name__, like=first_tensor(self))
        return self.vector_field(x)

    def linearisation(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d d"]:
        """The Jacobian matrices of v at x, here by automatic differentiation."""
        flat = x.reshape(-1, self.features)
        each = torch.func.vmap(torch.func.jacrev(self.vector_field))(flat)
        return each.reshape(*x.shape, self.features)

    def divergence(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """div v, the rate at which the flow expands volumes."""
        return self.linearisation(x).diagonal(dim1=-2, dim2=-1).sum(dim=-1)

    def save(self, path: str | Path) -> None:
        """Write architecture and weights to a safetensors file; :func:`nablanets.load` reads it back."""
        serialization.save(self, path)


@savable
class FieldSystem(System):
    """x' = f(x) for any module f, without structure: what a network that learns derivatives is.

    Args:
        field: maps (*, d) to (*, d).
        features: d.

    >>> FieldSystem(nn.Linear(2, 2), 2).linearisation(torch.zeros(5, 2)).shape
    torch.Size([5, 2, 2])
    """

    def __init__(self, field: nn.Module, features: int) -> None:
        check_positive_int(features, owner="FieldSystem", name="features")
        super().__init__(features)
        self.field = field

    def config(self) -> dict[str, Any]:
        return {"field": self.field, "features": self.features}

    def vector_field(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.field(x))


def rotate(g: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """J g = (g_p, -g_q) for g = (g_q, g_p): the canonical structure matrix J.

    >>> rotate(torch.tensor([1.0, 2.0])).tolist()
    [2.0, -1.0]
    """
    gq, gp = g.chunk(2, dim=-1)
    return torch.cat([gp, -gq], dim=-1)


def rotate_back(v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """J^T v = (-v_p, v_q), which turns derivatives x' into gradients of the Hamiltonian.

    >>> rotate_back(rotate(torch.tensor([1.0, 2.0]))).tolist()
    [1.0, 2.0]
    """
    return -rotate(v)


@savable
class HamiltonianSystem(System):
    r"""x' = J grad H(x) for x = (q, p), with any gradient map as grad H.

    .. math:: q' = \partial H / \partial p, \qquad p' = -\partial H / \partial q.

    Energy is conserved (grad H . x' = 0) and the flow is symplectic and preserves volume, for any weights.

    Args:
        hamiltonian: grad H, of 2n features: positions q first, then momenta p. For a conditional network give
            ``net.given(c)`` with the parameters c (masses, couplings).

    Raises:
        InvalidInputError: not a gradient map of an even number of features.

    >>> from nablanets import GradNetC
    >>> system = HamiltonianSystem(GradNetC(4, 8))
    >>> x = torch.randn(5, 4)
    >>> system(x).shape, system.energy(x).shape, bool((system.divergence(x) == 0).all())
    (torch.Size([5, 4]), torch.Size([5]), True)
    """

    def __init__(self, hamiltonian: GradientMap) -> None:
        check_hamiltonian(hamiltonian, owner=type(self).__name__)
        super().__init__(hamiltonian.features)
        self.hamiltonian = hamiltonian

    def config(self) -> dict[str, Any]:
        return {"hamiltonian": self.hamiltonian}

    def vector_field(self, x: Tensor) -> Tensor:
        return rotate(self.hamiltonian(x))

    def energy(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """H(x), up to a constant."""
        return self.hamiltonian.potential(x)

    def linearisation(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d d"]:
        """J times the Hessian of H, from the structured Jacobian of the map."""
        return rotate(self.hamiltonian.jacobian(x).dense()).mT  # J S = (S J^T)^T

    def divergence(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Zero, since J is antisymmetric and the Hessian symmetric."""
        return torch.zeros_like(x[..., 0])


@savable
class SeparableHamiltonian(HamiltonianSystem):
    r"""H(q, p) = T(p) + V(q): q' = grad T(p), p' = -grad V(q), which explicit symplectic integrators need.

    Args:
        kinetic: grad T, a gradient map; or the masses, (n) or (n, n), for T = p . M^{-1} p / 2.
        potential: grad V, a gradient map of n features.

    Raises:
        InvalidInputError: the parts do not have the same number of features.

    >>> from nablanets import GradNetC
    >>> system = SeparableHamiltonian(torch.tensor([1.0, 2.0]), GradNetC(2, 8))
    >>> q, p = torch.randn(5, 2), torch.randn(5, 2)
    >>> torch.allclose(system(torch.cat([q, p], dim=-1)), torch.cat([system.velocity(p), system.force(q)], dim=-1))
    True
    """

    def __init__(self, kinetic: GradientMap | Tensor | Sequence[Any], potential: GradientMap) -> None:
        if not isinstance(potential, GradientMap):
            raise InvalidInputError(
                f"SeparableHamiltonian: expected the potential to be a GradientMap, got {type(potential).__name__}."
            )
        like = next(chain(potential.parameters(), potential.buffers()))
        if not isinstance(kinetic, GradientMap):
            kinetic = Kinetic(kinetic).to(like)
        n = potential.features
        if kinetic.features != n:
            raise InvalidInputError(
                "SeparableHamiltonian: expected kinetic and potential maps with one number of features, got "
                f"{kinetic.features} and {n}."
            )
        axes = torch.eye(2 * n, dtype=like.dtype, device=like.device)
        super().__init__(Sum([Pullback(potential, axes[:n]), Pullback(kinetic, axes[n:])]))

    def _part(self, index: int) -> GradientMap:
        pullback = cast(Pullback, cast(Sum, self.hamiltonian).parts[index])
        return pullback.inner

    @property
    def potential(self) -> GradientMap:
        """grad V."""
        return self._part(0)

    @property
    def kinetic(self) -> GradientMap:
        """grad T."""
        return self._part(1)

    def config(self) -> dict[str, Any]:
        return {"kinetic": self.kinetic, "potential": self.potential}

    def force(self, q: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """p' = -grad V(q)."""
        return -self.potential(q)

    def velocity(self, p: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """q' = grad T(p)."""
        return self.kinetic(p)

    def vector_field(self, x: Tensor) -> Tensor:
        q, p = x.chunk(2, dim=-1)
        return torch.cat([self.velocity(p), self.force(q)], dim=-1)


@savable
class ConditionalHamiltonian(nn.Module):
    """x' = J grad H(x; c) with parameters c, such as masses or couplings; ``given(c)`` is a Hamiltonian system.

    >>> from nablanets import ConditionalGradNet
    >>> family = ConditionalHamiltonian(ConditionalGradNet(2, 1, 8))
    >>> x, c = torch.randn(5, 2), torch.rand(5, 1)
    >>> torch.equal(family(x, c), family.given(c)(x))
    True
    """

    def __init__(self, net: ConditionalGradNet) -> None:
        super().__init__()
        self.net = net
        self.features = net.features

    def config(self) -> dict[str, Any]:
        return {"net": self.net}

    def __repr__(self) -> str:
        return describe_map(self, self.config, features=self.features)

    def given(self, c: Float[Tensor, "*batch k"]) -> HamiltonianSystem:
        return HamiltonianSystem(self.net.given(c))

    def forward(self, x: Float[Tensor, "*batch d"], c: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch d"]:
        return rotate(self.net(x, c))


def check_hamiltonian(hamiltonian: object, *, owner: str) -> None:
    """Raise unless it is a gradient map of an even number of features."""
    if not isinstance(hamiltonian, GradientMap):
        raise InvalidInputError(
            f"{owner}: expected grad H as a GradientMap, got {type(hamiltonian).__name__}. A scalar module becomes one "
            "by from_potential(module, features), a conditional network by net.given(c)."
        )
    if hamiltonian.features % 2:
        raise ShapeError(
            f"{owner}: expected grad H with an even number of features (positions, then momenta), got "
            f"{hamiltonian.features}."
        )
