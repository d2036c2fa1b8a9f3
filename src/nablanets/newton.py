"""Damped Newton iteration for f(x) = y with a strongly monotone gradient map f, batched.

f(x) = y holds where the convex function phi(x) = F(x) - x.y is least, since its gradient is f(x) - y. Newton's step
from x is p = -J(x)^{-1} (f(x) - y). Full steps may run away, so each is followed by a line search: the derivative of
phi along the step is t -> <f(x + t p) - y, p>, which increases, and t is taken where it is small (Nocedal and Wright,
"Numerical Optimization", chapter 3). So the iteration converges from any start, and near the solution t = 1 doubles the
digits.

Each sample of a batch goes its own way: it stops when it has converged, when it no longer gets better, or when it
fails, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nablanets.errors import ConvergenceError, SingularJacobianError
from nablanets.operators import SymmetricOperator
from nablanets.tensors import largest_entry, length

# The tolerance of |f(x) - y| in roundings of 1 + |y|, where none is given.
_TOLERANCE_ROUNDINGS = 64
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
        value: x, of the shape of y; NaN where y is not finite, and the last finite point where a solve failed.
        iterations: Newton steps per sample.
        residual: |f(x) - y| per sample.
        converged: which samples reached the tolerance; never with a residual that is not finite.
        singular: which samples were given up at a Jacobian without an inverse.
    """

    value: Tensor
    iterations: Tensor
    residual: Tensor
    converged: Tensor
    singular: Tensor

    def require(self) -> Tensor:
        """The value.

        Raises:
            SingularJacobianError: a Jacobian has no inverse.
            ConvergenceError: some samples did not converge.
        """
        if bool(self.converged.all()):
            return self.value
        if bool(self.singular.any()):
            raise SingularJacobianError(
                f"{int(self.singular.sum())} of {self.singular.numel()} Jacobians are numerically singular. A positive "
                "definite linear term (linear=True) keeps the Jacobian of a monotone map invertible, unless its slopes "
                "are further apart than the digits of the type reach: take float64, or a smaller y."
            )
        bad = ~self.converged
        raise ConvergenceError(
            f"{int(bad.sum())} of {bad.numel()} solves did not converge; the largest residual is "
            f"{float(self.residual[bad].max()):.2e} after up to {int(self.iterations.max())} steps. Is y finite and in "
            "the range of the map, and the map strongly monotone (linear=True)? Use float64, or look at the Solution "
            "of solve(y, throw=False). At a kink, and at the sharp edges of a mixture, f may jump from one number to "
            "the next, and y lie between."
        )


@torch.no_grad()
def solve_monotone(
    net: Solvable, y: Tensor, *, start: Tensor | None = None, tolerance: float | None = None, max_steps: int = 100
) -> Solution:
    """Find x with f(x) = y.

    Args:
        net: a strongly monotone map.
        y: right-hand sides (*, d).
        start: first guess; zero if None.
        tolerance: of |f(x) - y|, relative to 1 + |y|; 64 roundings if None.
        max_steps: Newton steps at most.

    Raises:
        SingularJacobianError: the Jacobian is singular by structure, for every x.
    """
    shape = y.shape
    first = torch.zeros_like(y) if start is None else start.expand(shape)
    search = _Search(net, y.reshape(-1, shape[-1]), first.reshape(-1, shape[-1]).clone(), tolerance)
    for _ in range(max_steps):
        active = search.active()
        if active.numel() == 0:
            break
        search.step(active)
    converged = search.converged()
    value = torch.where(torch.isfinite(search.y).all(dim=-1, keepdim=True), search.x, torch.nan)
    batch = shape[:-1]
    return Solution(
        value=value.reshape(shape),
        iterations=search.iterations.reshape(batch),
        residual=search.residual.reshape(batch),
        converged=converged.reshape(batch),
        singular=search.singular.reshape(batch),
    )


class _Search:
    """Where each sample of a flattened batch is; ``step`` moves those that are asked for."""

    def __init__(self, net: Solvable, y: Tensor, x: Tensor, tolerance: float | None) -> None:
        rounding = torch.finfo(y.dtype).eps
        self.net = net.rows(torch.arange(len(y), device=y.device))
        self.y = y  # (n, d)
        self.x = x  # (n, d)
        self.relative = _TOLERANCE_ROUNDINGS * rounding if tolerance is None else tolerance
        self.size = 1 + length(y)  # (n)
        self.goal = self.relative * self.size
        # Where residuals are as small as this, rounding may keep them from becoming smaller.
        self.limit = rounding**0.5 * self.size
        self.rounding = 4 * rounding
        self.residual = length(self.net(x) - y)
        self.iterations = torch.zeros(len(y), dtype=torch.long, device=y.device)
        self.stalled = torch.zeros_like(self.iterations)
        self.singular = torch.zeros_like(self.residual, dtype=torch.bool)

    def active(self) -> Tensor:
        """The indices of samples that are to be moved; residuals that are not finite have no way to go."""
        moving = (self.residual > self.goal) & torch.isfinite(self.residual) & (self.stalled < _STALLED)
        return moving.nonzero().squeeze(-1)

    def step(self, active: Tensor) -> None:
        """A damped Newton step of some samples."""
        part = self.net.rows(active)
        point = self.x[active]  # (m, d)
        target = self.y[active]  # (m, d)
        before = self.residual[active]  # (m)
        value, jacobian = part.value_and_jacobian(point)
        solved, singular = jacobian.solve_ex(value - target)
        singular = singular.expand_as(before)
        direction = -solved
        has_direction = torch.isfinite(direction).all(dim=-1) & ~singular
        direction = torch.where(has_direction.unsqueeze(-1), direction, 0.0)
        step_size = _line_search(part, point, direction, target)  # (m)
        trial = point + step_size.unsqueeze(-1) * direction
        after = length(part(trial) - target)
        succeeds = has_direction & torch.isfinite(after)
        better = after < before
        # Far from the solution the residual may rise while the convex function falls. Near it rounding is the limit;
        # and so it is where x goes no further than to its neighbours, as where f jumps from one number to the next.
        goes_on = (after > self.limit[active]) & (length(trial - point) > self.rounding * length(point))
        stalled = torch.where(better | goes_on, 0, self.stalled[active] + 1)
        stalled = torch.where(succeeds, stalled, _STALLED)  # a failed sample would fail again
        moves = better | (stalled < _STALLED)
        self.x[active] = torch.where(moves.unsqueeze(-1), trial, point)
        self.residual[active] = torch.where(moves, after, before)
        self.stalled[active] = stalled
        self.singular[active] = singular
        self.iterations[active] += 1

    def converged(self) -> Tensor:
        """Which residuals are within the tolerance.

        At the limit of the arithmetic the residual stalls at a rounding error of f(x), which may be larger than of y.
        """
        rounding = self.relative * (self.size + _term_size(self.net, self.x))
        allowed = torch.maximum(self.goal, torch.minimum(rounding, self.limit))
        return (self.residual <= allowed) & torch.isfinite(self.residual)


def _term_size(net: Solvable, x: Tensor) -> Tensor:
    """How much f(x) changes where x changes by its own size, and so by roundings, in units of them.

    In the direction of x this is |J x|, and |f(x) - f(0)| by what f has added up; in any direction |x| times the
    steepest slope. Where slopes differ much, the latter is by far the largest: x is long because f is flat along it,
    and what adds up to f(x) cancels. The steepest slope is taken from a step of power iteration, as that along J x.
    """
    value, jacobian = net.value_and_jacobian(x)
    image = jacobian @ x  # (n, d)
    direction = image / largest_entry(image)
    steepest = length(jacobian @ direction) / length(direction).clamp(min=torch.finfo(x.dtype).tiny)
    return length(image) + length(value - net(torch.zeros_like(x))) + steepest * length(x)


def _line_search(net: Solvable, x: Tensor, p: Tensor, y: Tensor) -> Tensor:
    """t with |<f(x + t p) - y, p>| at most a tenth of its value at 0; t = 1 wherever that suffices.

    The zero of this increasing function of t is first enclosed, by doubling t while it is negative, and then closed in
    on by half secant, half bisection. Slopes are taken along p over its largest entry, so that they do not overflow.

    Args:
        net: f.
        x: (n, d).
        p: directions of descent, (n, d).
        y: (n, d).

    Returns:
        (n).
    """
    scale = largest_entry(p)  # (n, 1)
    unit = p / scale
    along = net.along(x, unit)
    offset = (y * unit).sum(dim=-1)  # (n)

    def slope(t: Tensor) -> Tensor:
        value = along(t * scale.squeeze(-1)) - offset
        return torch.where(torch.isfinite(value), value, torch.inf)  # beyond the range of numbers: too far

    low = torch.zeros_like(offset)
    high = torch.ones_like(offset)
    at_low = slope(low)
    at_high = slope(high)
    goal = _SLOPE_REDUCTION * at_low.abs()
    descends = at_low < 0  # at the limit of the arithmetic it may not: take the full step then
    t = high.clone()
    value = at_high.clone()
    for _ in range(_LINE_TRIALS):
        searching = descends & (value.abs() > goal)
        if not bool(searching.any()):
            break
        beyond = searching & (at_high < 0)  # the minimum lies further out: double the step
        low = torch.where(beyond, high, low)
        at_low = torch.where(beyond, at_high, at_low)
        secant = low - at_low * (high - low) / (at_high - at_low).clamp(min=torch.finfo(x.dtype).tiny)
        middle = (secant + (low + high) / 2) / 2  # half secant, half bisection: fast, and cannot stall at an end
        t = torch.where(beyond, 2 * high, torch.where(searching, middle, t))
        new = slope(t)
        value = torch.where(searching, new, value)
        left = searching & ~beyond & (value < 0)
        right = searching & ~beyond & (value >= 0)
        low = torch.where(left, t, low)
        at_low = torch.where(left, value, at_low)
        high = torch.where(beyond | right, t, high)
        at_high = torch.where(beyond | right, value, at_high)
    return t
