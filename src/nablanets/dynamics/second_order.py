"""Newton's second law for forces that any module gives, conservative or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from nablanets.dynamics.systems import System
from nablanets.errors import InvalidInputError, check_positive_int
from nablanets.serialization import savable
from nablanets.tensors import is_known, kept, tensor_of


@savable
class SecondOrder(System):
    r"""m x'' = f(x) for the state (x, x'), with any module as the force.

    If the force is a gradient map, the energy :math:`m |x'|^2 / 2 - F(x)` is conserved. All explicit symplectic methods
    of :func:`~nablanets.dynamics.integrate` apply: velocity and force are those of a separable system.

    Args:
        field: f, maps (*, n) to (*, n).
        positions: n.
        masses: m of each component, (n,); one if None. They are copied, or kept as they are if they carry derivatives.

    >>> from nablanets import GradNetC
    >>> system = SecondOrder(GradNetC(3, 8), 3, masses=[1.0, 1.0, 2.0])
    >>> system(torch.zeros(5, 6)).shape, system.energy(torch.zeros(5, 6)).shape
    (torch.Size([5, 6]), torch.Size([5]))
    """

    masses: Tensor

    def __init__(self, field: nn.Module, positions: int, masses: Tensor | Sequence[float] | None = None) -> None:
        check_positive_int(positions, owner="SecondOrder", name="positions")
        values = torch.ones(positions) if masses is None else kept(tensor_of(masses))
        if values.shape != (positions,) or (is_known(values) and not bool((values > 0).all())):
            raise InvalidInputError(f"SecondOrder: expected {positions} positive masses, got {tuple(values.shape)}.")
        super().__init__(2 * positions)
        self.field = field
        self.register_buffer("masses", values)

    def config(self) -> dict[str, Any]:
        return {"field": self.field, "positions": self.features // 2, "masses": self.masses.tolist()}

    def velocity(self, p: Tensor) -> Tensor:
        """The velocity itself, which stands where a Hamiltonian system has its momenta."""
        return p

    def force(self, q: Tensor) -> Tensor:
        """x'' = f(x) / m."""
        return cast(Tensor, self.field(q)) / self.masses

    def vector_field(self, x: Tensor) -> Tensor:
        q, v = x.chunk(2, dim=-1)
        return torch.cat([v, self.force(q)], dim=-1)

    def kinetic_energy(self, x: Tensor) -> Tensor:
        """m |x'|^2 / 2."""
        return (self.masses * x.chunk(2, dim=-1)[1].square()).sum(dim=-1) / 2

    def energy(self, x: Tensor) -> Tensor:
        """m |x'|^2 / 2 - F(x), for forces with a potential.

        Raises:
            InvalidInputError: the force has none.
        """
        potential = getattr(self.field, "potential", None)
        if potential is None:
            raise InvalidInputError(
                f"SecondOrder.energy: {type(self.field).__name__} has no potential, so there is no energy. Take a "
                "gradient map as the force."
            )
        return self.kinetic_energy(x) - potential(x.chunk(2, dim=-1)[0])
