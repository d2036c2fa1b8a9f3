"""How well a system or a flow has the properties of a Hamiltonian one: numbers, and an assertion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nablanets.dynamics.systems import HamiltonianSystem, rotate, rotate_back
from nablanets.errors import VerificationError
from nablanets.verify import TOLERANCE, autodiff_jacobian, takes_arrays

Map = Callable[[Tensor], Tensor]


@takes_arrays
def hamiltonian_error(field: Map, x: Tensor) -> float:
    """max |A - A^T| / max |A| for A = J^T v'(x) at points x (n, d): zero if and only if the field is Hamiltonian.

    >>> decay = lambda x: -x
    >>> hamiltonian_error(decay, torch.randn(3, 2))
    2.0
    """
    gradient = autodiff_jacobian(lambda points: rotate_back(field(points)), x)
    return float((gradient - gradient.mT).abs().max() / _positive(gradient.abs().max()))


@takes_arrays
def energy_rate_error(system: HamiltonianSystem, x: Tensor) -> float:
    """max |grad H . x'| / (|grad H| |x'|) at points, with the gradient of the energy by automatic differentiation."""
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(system.energy(point).sum(), point)
    v = system(x).detach()
    rate = (gradient * v).sum(dim=-1).abs()
    return float((rate / _positive(gradient.norm(dim=-1) * v.norm(dim=-1))).max())


@takes_arrays
def symplecticity_error(flow: Map, x: Tensor) -> float:
    """max |M^T Omega M - Omega| for the Jacobians M of a flow map at points x (n, d), with Omega = J.

    >>> symplecticity_error(lambda x: 2 * x, torch.randn(3, 2))
    3.0
    """
    jacobian = autodiff_jacobian(flow, x)
    omega = symplectic_form(x.shape[-1]).to(x)
    return float((jacobian.mT @ omega @ jacobian - omega).abs().max())


def symplectic_form(features: int) -> Tensor:
    """J = [[0, I], [-I, 0]].

    >>> symplectic_form(2).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """
    return rotate(torch.eye(features)).mT + 0.0  # no negative zeros


@takes_arrays
def assert_hamiltonian(system: HamiltonianSystem, x: Tensor, tolerance: float | None = None) -> None:
    """Raise VerificationError unless the field is Hamiltonian and conserves its energy at the points, to rounding."""
    allowed = TOLERANCE[x.dtype] if tolerance is None else tolerance
    checks = {
        "asymmetry of J^T v'": hamiltonian_error(system, x),
        "rate of the energy along the field": energy_rate_error(system, x),
    }
    for name, value in checks.items():
        if not value <= allowed:
            raise VerificationError(f"{name} is {value:.3e}, above the tolerance {allowed:.1e}.")


def _positive(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny)
