"""Damped Newton iteration for f(x) = y with a strongly monotone gradient map f, batched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nablanets.errors import ConvergenceError
from nablanets.operators import SymmetricOperator

# A line search ends where the slope is at most this part of the slope at its start.
_SLOPE_REDUCTION = 0.1
# Points tried in one line search, at most: enough to double the step to 2^60, or to halve an interval to rounding.
_LINE_TRIALS = 60
# A sample is left alone after this many steps in a row that did not lower its residual near the solution.
_STALLED = 3


class Solvable(Protocol):
    """What the solver needs of a map."""

    def __call__(self, x: Tensor) -> Tensor: ...
    def value_and_jacobian(self, x: Tensor) -> tuple[Tensor, SymmetricOperator]: ...
    def rows(self, index: Tensor) -> Solvable: ...
    def along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]: ...


@dataclass(frozen=True)
class Solution:
    """The outcome of a solve.

    Attributes:
        value: x, of the shape of y.
        iterations: Newton steps per sample.
        residual: |f(x) - y| per sample.
        converged: which samples reached the tolerance.
    """

    value: Tensor
    iterations: Tensor
    residual: Tensor
    converged: Tensor

    def require(self) -> Tensor:
        """The value.

        Raises:
            ConvergenceError: some samples did not converge.
        """
        if not bool(self.converged.all()):
            bad = ~self.converged
            raise ConvergenceError(
                f"{int(bad.sum())} of {bad.numel()} solves did not converge; the largest residual is "
                f"{float(self.residual[bad].max()):.2e} after up to {int(self.iterations.max())} steps. Is the map "
                "strongly monotone (linear=True), and y in its range? Use float64, or inspect the Solution."
            )
        return self.value


@torch.no_grad()
def solve_monotone(
    net: Solvable, y: Tensor, *, start: Tensor | None = None, tolerance: float | None = None, max_steps: int = 100
) -> Solution:
    """Find x with f(x) = y.

    Newton steps p = -J^{-1}(f(x) - y) with a line search on t -> <f(x + t p) - y, p>, the derivative of the convex
    function F(x + t p) - y.(x + t p); so it converges from any start where undamped Newton may diverge. Samples that
    have converged are left alone.

    Args:
        net: a strongly monotone map.
        y: right-hand sides (*, d).
        start: first guess; zero if None.
        tolerance: of |f(x) - y|, relative to 1 + |y|; 64 roundings if None.
        max_steps: Newton steps at most.

    Raises:
        SingularJacobianError: a Jacobian has no inverse.
    """
    shape, d = y.shape, y.shape[-1]
    y = y.reshape(-1, d)
    net = net.rows(torch.arange(len(y), device=y.device))
    x = torch.zeros_like(y) if start is None else start.expand(shape).reshape(-1, d).clone()
    relative = 64 * torch.finfo(y.dtype).eps if tolerance is None else tolerance
    goal = relative * (1 + y.norm(dim=-1))
    limit = torch.finfo(y.dtype).eps ** 0.5 * (1 + y.norm(dim=-1))
    residual = (net(x) - y).norm(dim=-1)
    iterations = torch.zeros(len(y), dtype=torch.long, device=y.device)
    stalled = torch.zeros_like(iterations)
    for _ in range(max_steps):
        active = ((residual > goal) & (stalled < _STALLED)).nonzero().squeeze(-1)
        if active.numel() == 0:
            break
        part, point, target = net.rows(active), x[active], y[active]
        value, jacobian = part.value_and_jacobian(point)
        step = -jacobian.solve(value - target)
        trial = point + _line_search(part, point, step, target).unsqueeze(-1) * step
        size = (part(trial) - target).norm(dim=-1)
        better = size < residual[active]
        # Far from the solution the residual may rise while the convex function falls; near it, rounding is the limit.
        stalled[active] = torch.where(better | (size > limit[active]), 0, stalled[active] + 1)
        moves = better | (stalled[active] < _STALLED)
        x[active] = torch.where(moves.unsqueeze(-1), trial, point)
        residual[active] = torch.where(moves, size, residual[active])
        iterations[active] += 1
    # At the limit of the arithmetic the residual stalls at a rounding error of f(x), which may be larger than of y.
    rounding = relative * (1 + y.norm(dim=-1) + _term_size(net, x))
    batch = shape[:-1]
    converged = residual <= torch.maximum(goal, torch.minimum(rounding, limit))
    return Solution(x.reshape(shape), iterations.reshape(batch), residual.reshape(batch), converged.reshape(batch))


def _term_size(net: Solvable, x: Tensor) -> Tensor:
    """The size of what adds up to f(x): |J||x| as the part that depends on x."""
    value, jacobian = net.value_and_jacobian(x)
    return (jacobian @ x).norm(dim=-1) + (value - net(torch.zeros_like(x))).norm(dim=-1)


def _line_search(net: Solvable, x: Tensor, p: Tensor, y: Tensor) -> Tensor:
    """t with |<f(x + t p) - y, p>| at most a tenth of its value at 0; t = 1 wherever that suffices."""
    along, offset = net.along(x, p), (y * p).sum(dim=-1)

    def slope(t: Tensor) -> Tensor:
        return along(t) - offset

    low, high = torch.zeros_like(offset), torch.ones_like(offset)
    at_low, at_high = slope(low), slope(high)
    goal = _SLOPE_REDUCTION * at_low.abs()
    descends = at_low < 0  # at the limit of the arithmetic it may not: take the full step then
    t, value = high.clone(), at_high.clone()
    for _ in range(_LINE_TRIALS):
        searching = descends & (value.abs() > goal)
        if not bool(searching.any()):
            break
        beyond = searching & (at_high < 0)  # the minimum lies further out: double the step
        low, at_low = torch.where(beyond, high, low), torch.where(beyond, at_high, at_low)
        secant = low - at_low * (high - low) / (at_high - at_low).clamp(min=torch.finfo(x.dtype).tiny)
        middle = (secant + (low + high) / 2) / 2  # half secant, half bisection: fast, and cannot stall at an end
        t = torch.where(beyond, 2 * high, torch.where(searching, middle, t))
        new = slope(t)
        value = torch.where(searching, new, value)
        left = searching & ~beyond & (value < 0)
        right = searching & ~beyond & (value >= 0)
        low, at_low = torch.where(left, t, low), torch.where(left, value, at_low)
        high = torch.where(beyond | right, t, high)
        at_high = torch.where(beyond | right, value, at_high)
    return t
