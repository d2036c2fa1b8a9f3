"""What systems are fitted to besides gradients: derivatives with inputs, trajectories, and positions alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nablanets.dynamics.integrate import integrate
from nablanets.dynamics.systems import HamiltonianSystem, SeparableHamiltonian, System
from nablanets.errors import InvalidInputError, ShapeError, check_finite
from nablanets.fitting.objective import PackedTargets


@dataclass(frozen=True)
class DerivativeTargets(PackedTargets):
    """Derivatives x' of a system with inputs: minimises mean ||net(x, u) - x'||^2.

    Attributes:
        derivative: x', (n, d).
        inputs: u of a port-Hamiltonian system, or the context of a conditional one, (n, k).
    """

    derivative: Tensor
    inputs: Tensor

    def pack(self, x: Tensor) -> Tensor:
        return torch.cat(
            [_column(self.derivative, "derivative", x.shape, x), _column(self.inputs, "inputs", (len(x), -1), x)], dim=1
        )

    def __call__(self, net: nn.Module, x: Tensor, packed: Tensor) -> Tensor:
        v, u = packed[:, : x.shape[1]], packed[:, x.shape[1] :]
        return (net(x, u) - v).square().sum(dim=-1).mean()

    def signature(self) -> dict[str, Any]:
        return {"targets": "derivatives"}


@dataclass(frozen=True)
class TrajectoryTargets(PackedTargets):
    r"""States that follow the points on trajectories, compared with those of the integrator.

    .. math:: \frac1k \sum_{j=1}^k \overline{\|\phi_{j\tau}(x) - x_j\|^2} + \lambda\, \overline{\mathrm{Var}_j H(x_j)}

    with the flow phi of the learned system. The second term asks the learned energy to be constant along what was
    observed; its scale is that of H.

    Attributes:
        states: x_1 .. x_k, (n, k, d), at intervals tau after the points.
        interval: tau.
        method, step: of :func:`~nablanets.dynamics.integrate`.
        energy_weight: lambda; for systems with an energy.
    """

    states: Tensor
    interval: float
    method: str | None = None
    step: float | None = None
    energy_weight: float = 0.0

    def pack(self, x: Tensor) -> Tensor:
        if self.states.ndim != 3:
            raise ShapeError(
                f"TrajectoryTargets: expected states of shape (n, k, {x.shape[1]}), got {tuple(self.states.shape)}."
            )
        return _column(self.states, "states", (len(x), self.states.shape[1], x.shape[1]), x).flatten(1)

    def __call__(self, net: nn.Module, x: Tensor, packed: Tensor) -> Tensor:
        if not isinstance(net, System):
            raise InvalidInputError(f"fit: trajectories need a dynamics.System, got {type(net).__name__}.")
        states = packed.unflatten(1, (-1, x.shape[1])).transpose(0, 1)
        times = [self.interval * k for k in range(len(states) + 1)]
        predicted = integrate(net, x, times, method=self.method, step=self.step)[1:]
        loss = (predicted - states).square().sum(dim=-1).mean()
        if not self.energy_weight:
            return loss
        if not isinstance(net, HamiltonianSystem):
            raise InvalidInputError(f"fit: energy_weight needs a HamiltonianSystem, got {type(net).__name__}.")
        energy = net.energy(torch.cat([x.unsqueeze(0), states]))
        return loss + self.energy_weight * energy.var(dim=0, correction=0).mean()

    def signature(self) -> dict[str, Any]:
        return {"targets": ["trajectories", self.interval, self.method, self.step, self.energy_weight]}


@dataclass(frozen=True)
class PositionTargets(PackedTargets):
    r"""Positions that follow two given ones, compared with Verlet's recursion, in which momenta do not appear.

    .. math:: q_{j+1} = 2 q_j - q_{j-1} - h^2 M^{-1} \nabla V(q_j).

    The points of the fit are pairs (q_0, q_1), as many numbers as a state. Noise of standard deviation s on them grows
    to about s j after j steps, so prefer positions that are smoothed, or short horizons.

    Attributes:
        positions: q_2 .. q_{k+1}, (n, k, d/2).
        interval: h.
    """

    positions: Tensor
    interval: float

    def pack(self, x: Tensor) -> Tensor:
        if self.positions.ndim != 3:
            raise ShapeError(
                f"PositionTargets: expected positions of shape (n, k, {x.shape[1] // 2}), got "
                f"{tuple(self.positions.shape)}."
            )
        shape = (len(x), self.positions.shape[1], x.shape[1] // 2)
        return _column(self.positions, "positions", shape, x).flatten(1)

    def __call__(self, net: nn.Module, x: Tensor, packed: Tensor) -> Tensor:
        if not isinstance(net, SeparableHamiltonian):
            raise InvalidInputError(f"fit: positions alone need a SeparableHamiltonian, got {type(net).__name__}.")
        targets = packed.unflatten(1, (-1, x.shape[1] // 2)).transpose(0, 1)
        before, now = x.chunk(2, dim=-1)
        loss = packed.new_zeros(())
        for target in targets:
            before, now = now, 2 * now - before + self.interval**2 * net.velocity(net.force(now))
            loss = loss + (now - target).square().sum(dim=-1).mean()
        return loss / len(targets)

    def signature(self) -> dict[str, Any]:
        return {"targets": ["positions", self.interval]}


def _column(value: Tensor, name: str, shape: tuple[int, ...], x: Tensor) -> Tensor:
    """The values in the type of x, after checks; -1 in the shape stands for any size."""
    fits = value.ndim == len(shape) and all(want in (-1, got) for want, got in zip(shape, value.shape, strict=True))
    if not fits:
        raise ShapeError(f"expected {name} of shape {tuple(shape)} for {len(x)} points, got {tuple(value.shape)}.")
    check_finite(value, owner="fit", name=name)
    return value.detach().to(x)
