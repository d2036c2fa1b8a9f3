"""What is solved for rather than evaluated: f(x) = y for strongly monotone f, and for I + step f."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from nablanets.newton import Solution, Solvable, solve_monotone
from nablanets.operators import StructuredOperator, SymmetricOperator


class SolvableMap(Solvable, Protocol):
    """A solvable map that may have parameters."""

    features: int


class Resolvent:
    """x -> x + step f(x), whose inverse is the resolvent of f, the proximal map of F."""

    def __init__(self, net: SolvableMap, step: float) -> None:
        self.net, self.step, self.features = net, step, net.features

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.step * self.net(x)

    def value_and_jacobian(self, x: Tensor) -> tuple[Tensor, SymmetricOperator]:
        value, jacobian = self.net.value_and_jacobian(x)
        one = StructuredOperator(
            self.features, (), torch.ones_like(x[..., :1]).expand_as(x), positive_semidefinite=True
        )
        return x + self.step * value, one + jacobian.scale(self.step)

    def rows(self, index: Tensor) -> Resolvent:
        return Resolvent(self.net.rows(index), self.step)  # type: ignore[arg-type]

    def along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        inner, xp, pp = self.net.along(x, p), (x * p).sum(dim=-1), p.square().sum(dim=-1)
        return lambda t: xp + t * pp + self.step * inner(t)


def solve(
    net: SolvableMap, y: Tensor, *, differentiable: bool, tolerance: float | None, max_steps: int, throw: bool
) -> Solution:
    """The solution of f(x) = y; if differentiable, its value has exact first and second derivatives.

    Each differentiable Newton step at the solution doubles the order of derivatives that are exact.
    """
    solution = solve_monotone(net, y, tolerance=tolerance, max_steps=max_steps)
    if throw:
        solution.require()
    if not (differentiable and torch.is_grad_enabled()):
        return solution
    x, sound = solution.value, solution.converged.unsqueeze(-1)
    for _ in range(2):
        value, jacobian = net.value_and_jacobian(x)
        x = x - jacobian.solve(torch.where(sound, value - y, 0.0))
    return replace(solution, value=x)
