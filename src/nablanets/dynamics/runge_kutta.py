"""Runge-Kutta methods: the classical explicit one, and Gauss-Legendre collocation, implicit and symplectic."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from nablanets.errors import ConvergenceError
from nablanets.tensors import carries_derivatives

# Newton's iteration: iterations at most, and for how many a matrix is kept.
_ITERATIONS, _KEPT = 50, 4

#: A number, or a tensor without dimensions where derivatives in it are wanted.
Time: TypeAlias = float | Tensor


class Linearised(Protocol):
    """A field of time and state, with its Jacobian matrices in the state."""

    def __call__(self, t: Time, x: Tensor) -> Tensor: ...
    def linearisation(self, x: Tensor) -> Tensor: ...


def rk4_step(field: Callable[[Time, Tensor], Tensor], t: Time, x: Tensor, h: Time) -> Tensor:
    """One step of the classical method of order 4, which is not symplectic."""
    a = field(t, x)
    b = field(t + h / 2, x + h / 2 * a)
    c = field(t + h / 2, x + h / 2 * b)
    d = field(t + h, x + h * c)
    return x + h / 6 * (a + 2 * b + 2 * c + d)


class Gauss(NamedTuple):
    r"""Gauss-Legendre collocation with s stages, of order 2s; with s = 1 the implicit midpoint rule.

    .. math:: Z_i = h \sum_j a_{ij} v(t + c_j h, x + Z_j), \qquad x_1 = x + h \sum_i b_i v(t + c_i h, x + Z_i).

    Symplectic for any Hamiltonian, and it conserves quadratic invariants. The stages are solved by Newton's iteration
    with a matrix that is kept for some iterations; each sample stops when it has converged, whatever the others do.
    """

    nodes: tuple[float, ...]
    weights: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]

    @property
    def order(self) -> int:
        return 2 * len(self.nodes)

    def step(self, field: Linearised, t: Time, x: Tensor, h: Time) -> Tensor:
        """One step; its derivatives in x, in parameters and in the times are exact, also second ones.

        Raises:
            ConvergenceError: the stages of some samples could not be found.
        """
        problem = _Stages(self, field, t, x, h)
        with torch.no_grad():
            # Forward-mode derivatives are not stopped by no_grad.
            z = problem.solve().detach()
        slopes = problem.slopes(z)
        # The change of x by the step carries all derivatives that there are: those in x, parameters, times and size.
        change = h * torch.einsum("s,...sd->...d", x.new_tensor(self.weights), slopes)
        if not carries_derivatives(change):
            return x + change
        for _ in range(2):  # each Newton step at the solution doubles the order of the derivatives that are exact
            z = z + problem.correction(z)
        return x + h * torch.einsum("s,...sd->...d", x.new_tensor(self.weights), problem.slopes(z))


def gauss(stages: int) -> Gauss:
    """The coefficients, from the conditions that polynomials of degree s - 1 are integrated exactly.

    >>> gauss(1)
    Gauss(nodes=(0.5,), weights=(1.0,), matrix=((0.5,),))
    """
    points, weights = np.polynomial.legendre.leggauss(stages)
    c = (points + 1) / 2
    powers = np.arange(1, stages + 1)
    integrals = c[:, None] ** powers / powers
    a = np.linalg.solve((c[:, None] ** (powers - 1)).T, integrals.T).T
    return Gauss(tuple(c.tolist()), tuple((weights / 2).tolist()), tuple(map(tuple, a.tolist())))


class _Stages:
    """The equations Z = h A v(x + Z) of one step, for Z of shape (*batch, s, d)."""

    def __init__(self, rule: Gauss, field: Linearised, t: Time, x: Tensor, h: Time) -> None:
        self.field, self.x, self.h = field, x, h
        self.a = x.new_tensor(rule.matrix)
        self.times = [t + c * h for c in rule.nodes]

    def slopes(self, z: Tensor) -> Tensor:
        """v at the stages."""
        points = (self.x.unsqueeze(-2) + z).unbind(dim=-2)
        return torch.stack([self.field(t, point) for t, point in zip(self.times, points, strict=True)], dim=-2)

    def residual(self, z: Tensor) -> Tensor:
        return self.h * self.a @ self.slopes(z) - z

    def matrix(self, z: Tensor) -> Tensor:
        """I - h (A x I) diag(Jacobians), (*batch, s d, s d)."""
        jacobians = self.field.linearisation(self.x.unsqueeze(-2) + z)
        blocks = torch.einsum("ij,...jkl->...ikjl", self.a, jacobians)
        size = z.shape[-2] * z.shape[-1]
        one = torch.eye(size, dtype=z.dtype, device=z.device)
        return one - self.h * blocks.reshape(*z.shape[:-2], size, size)

    def correction(self, z: Tensor) -> Tensor:
        """A Newton step."""
        solved = torch.linalg.solve(self.matrix(z), self.residual(z).flatten(-2).unsqueeze(-1))
        return solved.reshape(z.shape)

    def solve(self) -> Tensor:
        z = torch.zeros_like(self.x).unsqueeze(-2).repeat_interleave(len(self.times), dim=-2)
        z = self.residual(z)
        goal = 32 * torch.finfo(z.dtype).eps * (1 + self.x.abs().amax(dim=-1) + z.abs().amax(dim=(-2, -1)))
        moving = torch.ones_like(goal, dtype=torch.bool)
        size = torch.full_like(goal, torch.inf)
        factors: tuple[Tensor, Tensor] | None = None
        for iteration in range(_ITERATIONS):
            if iteration % _KEPT == 0 or factors is None:
                lu, pivots, _ = torch.linalg.lu_factor_ex(self.matrix(z))
                factors = lu, pivots
            step = torch.linalg.lu_solve(*factors, self.residual(z).flatten(-2).unsqueeze(-1)).reshape(z.shape)
            z = torch.where(moving[..., None, None], z + step, z)
            size = torch.where(moving, step.abs().amax(dim=(-2, -1)), size)
            moving = moving & ~(size <= goal)
            if not bool(moving.any()):
                return z
        raise ConvergenceError(
            f"{int(moving.sum())} of {max(1, moving.numel())} implicit steps of size {self.h:.3g} did not converge in "
            f"{_ITERATIONS} Newton iterations (the last changed the stages by {float(size[moving].max()):.1e}, "
            f"the goal is {float(goal.min()):.1e}). Take smaller steps, float64, or an explicit method."
        )
