"""Hamiltonian systems that lose energy or are driven: x' = (J - R) grad H(x) + B u."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nablanets.dynamics.systems import System, check_hamiltonian, rotate
from nablanets.errors import InvalidInputError, check_points
from nablanets.maps import GradientMap
from nablanets.parameters import first_tensor
from nablanets.serialization import savable


@savable
class PortHamiltonian(System):
    r"""x' = (J - R) grad H(x) + B u with R = L^T L positive semidefinite by construction.

    The energy obeys H' = -|L grad H|^2 + (B^T grad H) . u for any weights: without inputs it never grows.

    Args:
        hamiltonian: grad H, of 2n features.
        dissipation: rows of L; None means full rank, 0 none.
        inputs: k, the dimension of u.
        momenta_only: damp momenta only, as friction does, so that q' = dH/dp stays exact.

    Raises:
        InvalidInputError: not a gradient map of an even number of features, or negative sizes.

    >>> from nablanets import GradNetC
    >>> system = PortHamiltonian(GradNetC(4, 8), inputs=1)
    >>> x, u = torch.randn(5, 4), torch.randn(5, 1)
    >>> system(x, u).shape, bool((system.energy_rate(x) <= 0).all())
    (torch.Size([5, 4]), True)
    """

    def __init__(
        self, hamiltonian: GradientMap, *, dissipation: int | None = None, inputs: int = 0, momenta_only: bool = True
    ) -> None:
        check_hamiltonian(hamiltonian, owner="PortHamiltonian")
        super().__init__(hamiltonian.features)
        damped = self.features // 2 if momenta_only else self.features
        rank = damped if dissipation is None else dissipation
        if rank < 0 or inputs < 0:
            raise InvalidInputError(
                f"PortHamiltonian: expected dissipation and inputs >= 0, got {dissipation} and {inputs}."
            )
        self._config = {"dissipation": rank, "inputs": inputs, "momenta_only": momenta_only}
        self.inputs = inputs
        self.hamiltonian = hamiltonian
        self.damping = nn.Parameter(torch.randn(rank, damped) * (0.1 / max(rank, 1)) ** 0.5)
        self.port = nn.Parameter(torch.randn(self.features, inputs) * 0.1)

    def config(self) -> dict[str, Any]:
        return {"hamiltonian": self.hamiltonian, **self._config}

    def _damped(self, g: Tensor) -> Tensor:
        """L g, of the momenta if they alone are damped."""
        return g[..., self.features - self.damping.shape[1] :] @ self.damping.mT

    def structure(self, g: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """(J - R) g."""
        loss = self._damped(g) @ self.damping
        return rotate(g) - nn.functional.pad(loss, (self.features - loss.shape[-1], 0))

    def forward(self, x: Float[Tensor, "*batch d"], u: Tensor | None = None) -> Float[Tensor, "*batch d"]:
        like = first_tensor(self)
        check_points(x, self.features, owner="PortHamiltonian", like=like)
        if u is not None:
            check_points(u, self.inputs, owner="PortHamiltonian", name="u", like=like)
        return self.vector_field(x, u)

    def vector_field(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """(J - R) grad H(x) + B u; without u that part is zero."""
        v = self.structure(self.hamiltonian(x))
        return v if u is None else v + u @ self.port.mT

    def energy(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """H(x), up to a constant."""
        return self.hamiltonian.potential(x)

    def energy_rate(self, x: Float[Tensor, "*batch d"], u: Tensor | None = None) -> Float[Tensor, "*batch"]:
        """H' = -|L grad H|^2 + (B^T grad H) . u."""
        g = self.hamiltonian(x)
        rate = -self._damped(g).square().sum(dim=-1)
        return rate if u is None else rate + (g @ self.port * u).sum(dim=-1)

    def linearisation(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d d"]:
        """(J - R) times the Hessian of H."""
        return self.structure(self.hamiltonian.jacobian(x).dense()).mT
