"""Fitting systems to derivatives, to trajectories, and to positions alone."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nablanets.arrays import as_tensor
from nablanets.dynamics.kinetic import Kinetic
from nablanets.dynamics.systems import HamiltonianSystem, SeparableHamiltonian, System, rotate_back
from nablanets.dynamics.targets import DerivativeTargets, PositionTargets, TrajectoryTargets
from nablanets.errors import InvalidInputError, ShapeError
from nablanets.fitting import FitResult, SobolevTargets, fit
from nablanets.parameters import first_tensor

# Coefficients of second differences q'' h^2 by order of accuracy, from the middle outwards.
_SECOND = {2: (-2.0, 1.0), 4: (-5 / 2, 4 / 3, -1 / 12), 6: (-49 / 18, 3 / 2, -3 / 20, 1 / 90)}


def fit_derivatives(
    system: nn.Module,
    x: Float[Tensor, "n d"],
    v: Float[Tensor, "n d"],
    *,
    inputs: Tensor | None = None,
    energies: Tensor | None = None,
    energy_weight: float = 1.0,
    validation: float | tuple[Tensor, Tensor] = 0.1,
    **options: Any,
) -> FitResult:
    """Fit a system to states x and their derivatives x' = v.

    A Hamiltonian system is fitted exactly as its gradient map to gradients J^T x', so every optimiser serves; if it is
    separable with fixed masses, its potential alone to (q, -p').

    Args:
        system: Hamiltonian or any other; also a :class:`ConditionalHamiltonian`.
        x, v: states and derivatives.
        inputs: u of a port-Hamiltonian system, or contexts of a conditional one, (n, k).
        energies: values of H at the states, up to a constant, if they are known (Hamiltonian systems).
        energy_weight: of their squared error beside that of the gradients.
        validation: a fraction, or a pair (x, v) where there are no inputs and no energies.
        options: further ones of :func:`nablanets.fit`.

    >>> from nablanets import GradNetC
    >>> x = torch.randn(200, 2)
    >>> system = HamiltonianSystem(GradNetC(2, 8))
    >>> fit_derivatives(system, x, torch.stack([x[:, 1], -x[:, 0]], dim=1), steps=20, progress=False).steps
    20
    """
    x = as_tensor(x, owner="fit_derivatives", name="x")
    v = as_tensor(v, owner="fit_derivatives", name="v")
    inputs = None if inputs is None else as_tensor(inputs, owner="fit_derivatives", name="inputs")
    if isinstance(validation, tuple):
        x_held_out, v_held_out = (as_tensor(part, owner="fit_derivatives", name="validation") for part in validation)
        validation = (x_held_out, v_held_out)
    pair = isinstance(validation, tuple)
    if pair and (inputs is not None or energies is not None):
        raise InvalidInputError("fit_derivatives: with inputs or energies give validation as a fraction.")
    if inputs is not None:
        return fit(system, x, DerivativeTargets(v, inputs), validation=validation, **options)
    if not isinstance(system, HamiltonianSystem):
        return fit(system, x, v, validation=validation, **options)
    if energies is not None:
        known = SobolevTargets(gradient=rotate_back(v), potential=energies, potential_weight=energy_weight)
        return fit(system.hamiltonian, x, known, validation=validation, **options)
    if isinstance(system, SeparableHamiltonian) and isinstance(system.kinetic, Kinetic):
        held_out = _forces(*validation) if isinstance(validation, tuple) else validation
        return fit(system.potential, *_forces(x, v), validation=held_out, **options)
    held_out = (validation[0], rotate_back(validation[1])) if isinstance(validation, tuple) else validation
    return fit(system.hamiltonian, x, rotate_back(v), validation=held_out, **options)


def fit_trajectories(
    system: System,
    trajectories: Float[Tensor, "t m d"],
    interval: float,
    *,
    horizon: int = 1,
    stride: int | None = None,
    method: str | None = None,
    step: float | None = None,
    energy_weight: float = 0.0,
    validation: float = 0.1,
    **options: Any,
) -> FitResult:
    """Fit a system to observed trajectories through the integrator, over ``horizon`` intervals at a time.

    Longer horizons average noise better and cost more; :class:`~.targets.TrajectoryTargets` has the objective.

    Args:
        system: any system that the method can integrate.
        trajectories: m trajectories of t states, as :func:`~nablanets.dynamics.integrate` returns them.
        interval: the time between two states.
        horizon: intervals per piece.
        stride: states from the start of a piece to that of the next; the horizon if None.
        method, step: of the integrator.
        energy_weight: weight of the variance of the learned energy along what was observed.
        validation: fraction of the trajectories to hold out, whole ones.
        options: further ones of :func:`nablanets.fit`.

    >>> from nablanets import GradNetC
    >>> t = torch.linspace(0, 6, 31)
    >>> circles = torch.stack([torch.sin(t), torch.cos(t)], dim=-1).unsqueeze(1) * torch.linspace(0.5, 1, 10)[:, None]
    >>> system = HamiltonianSystem(GradNetC(2, 8))
    >>> fit_trajectories(system, circles, 0.2, horizon=2, method="rk4", steps=10, progress=False).steps
    10
    """
    trajectories = as_tensor(trajectories, owner="fit_trajectories", name="trajectories")
    train, test = _held_out(trajectories, validation, options.get("seed", 0))
    pieces = [windows(part, horizon + 1, stride or horizon) for part in (train, test)]
    targets = [TrajectoryTargets(p[:, 1:], interval, method, step, energy_weight) for p in pieces]
    return fit(system, pieces[0][:, 0], targets[0], validation=(pieces[1][:, 0], targets[1]), **options)


def fit_positions(
    system: SeparableHamiltonian,
    positions: Float[Tensor, "t m n"],
    interval: float,
    *,
    horizon: int = 1,
    order: int = 2,
    validation: float = 0.1,
    **options: Any,
) -> FitResult:
    """Fit the potential of a system with fixed masses to positions at equal intervals; momenta are not needed.

    Args:
        system: separable, with :class:`Kinetic` masses.
        positions: m trajectories of t positions.
        interval: the time between them.
        horizon: 1 fits -grad V to M times second differences, a plain fit of gradients; more follow Verlet's recursion
            from two positions, see :class:`~.targets.PositionTargets`.
        order: of accuracy of the second differences: 2, 4 or 6; higher ones need less noise.
        validation: fraction of the trajectories to hold out.
        options: further ones of :func:`nablanets.fit`.

    Raises:
        InvalidInputError: masses that are not fixed, an unknown order, or an order other than 2 with a longer horizon.
    """
    if not isinstance(system, SeparableHamiltonian) or not isinstance(system.kinetic, Kinetic):
        raise InvalidInputError(
            "fit_positions: expected a SeparableHamiltonian(masses, potential) with fixed masses: without momenta, "
            "forces are known up to the masses only."
        )
    if order not in _SECOND or (horizon > 1 and order != 2):
        raise InvalidInputError(f"fit_positions: expected order 2, 4 or 6 (2 for horizon > 1), got {order}.")
    positions = _as_states(system, positions, "fit_positions", "positions")
    parts = _held_out(positions, validation, options.get("seed", 0))
    if horizon == 1:
        (q, g), held_out = (_accelerated(system.kinetic, part, interval, order) for part in parts)
        return fit(system.potential, q, g, validation=held_out, **options)
    pieces = [windows(part, horizon + 2, horizon) for part in parts]
    points = [p[:, :2].flatten(1) for p in pieces]
    train, test = (PositionTargets(p[:, 2:], interval) for p in pieces)
    return fit(system, points[0], train, validation=(points[1], test), **options)


def windows(trajectories: Float[Tensor, "t m d"], length: int, stride: int) -> Float[Tensor, "n length d"]:
    """Pieces of consecutive states.

    >>> windows(torch.arange(7.0).reshape(7, 1, 1), 3, 2).squeeze(-1).tolist()
    [[0.0, 1.0, 2.0], [2.0, 3.0, 4.0], [4.0, 5.0, 6.0]]
    """
    if trajectories.ndim != 3 or not 2 <= length <= len(trajectories):
        raise ShapeError(
            f"expected trajectories of shape (t, m, d) with t >= {max(length, 2)} states, got "
            f"{tuple(trajectories.shape)}. Shorten the horizon."
        )
    return trajectories.unfold(0, length, stride).movedim(-1, 2).flatten(0, 1)


def _as_states(system: nn.Module, values: Any, owner: str, name: str) -> Tensor:
    """Observed states, also as an array or lists of numbers, in the dtype and on the device of the system."""
    states = as_tensor(values, owner=owner, name=name)
    like = first_tensor(system)
    return states if like is None else states.to(like)


def _forces(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and -p' = grad V there."""
    return x.chunk(2, dim=-1)[0], -v.chunk(2, dim=-1)[1]


def _accelerated(kinetic: Kinetic, positions: Tensor, interval: float, order: int) -> tuple[Tensor, Tensor]:
    """Positions and grad V = -M q'' there, by second differences."""
    coefficients = _SECOND[order]
    reach = len(coefficients) - 1
    pieces = windows(positions, 2 * reach + 1, 1)
    kernel = pieces.new_tensor([*coefficients[:0:-1], *coefficients])
    acceleration = torch.einsum("k,nkd->nd", kernel, pieces) / interval**2
    mass = kinetic.jacobian(acceleration)
    return pieces[:, reach], -mass.solve(acceleration)


def _held_out(trajectories: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Training and validation trajectories."""
    count = trajectories.shape[1] if trajectories.ndim == 3 else 0
    kept = round(fraction * count) if 0 < fraction < 1 else 0
    if not 1 <= max(1, kept) < count or not 0 < fraction < 1:
        raise InvalidInputError(
            "expected trajectories (t, m, d) with m >= 2 and validation in (0, 1), got "
            f"{tuple(trajectories.shape)} and {fraction}."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(trajectories.device)
    return trajectories[:, order[max(1, kept) :]], trajectories[:, order[: max(1, kept)]]
