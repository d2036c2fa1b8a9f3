"""What is solved for rather than evaluated: f(x) = y for strongly monotone f, and for I + step f.

The solution is found without derivatives, by :func:`nablanets.newton.solve_monotone`. Its derivatives come from Newton
steps that are taken at the solution: they do not change the value beyond rounding, but the first gives it the exact
first derivatives (those of the implicit function theorem), and the second the exact second derivatives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from nablanets.newton import Solution, Solvable, solve_monotone
from nablanets.operators import StructuredOperator, SymmetricOperator
from nablanets.tensors import has_tangent, working_dtype

#: Newton steps that carry derivatives: as many as the orders of derivatives that are exact.
_DERIVATIVE_STEPS = 2


class SolvableMap(Solvable, Protocol):
    """A solvable map that may have parameters."""

    features: int


class Resolvent:
    """x -> x + step f(x), whose inverse is the resolvent of f, the proximal map of F."""

    def __init__(self, net: SolvableMap, step: float | Tensor) -> None:
        self.net = net
        self.step = step
        self.features = net.features

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.step * self.net(x)

    def value_and_jacobian(self, x: Tensor) -> tuple[Tensor, SymmetricOperator]:
        value, jacobian = self.net.value_and_jacobian(x)
        ones = torch.ones_like(x[..., :1]).expand_as(x)
        identity = StructuredOperator(self.features, (), ones, positive_semidefinite=True)
        scaled = jacobian.scale(self.step)
        scaled.positive_semidefinite = jacobian.positive_semidefinite  # the step is positive, also as a tensor
        return x + self.step * value, identity + scaled

    def rows(self, index: Tensor) -> Resolvent:
        return Resolvent(self.net.rows(index), self.step)  # type: ignore[arg-type]

    def along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        inner = self.net.along(x, p)
        xp = (x * p).sum(dim=-1)
        pp = p.square().sum(dim=-1)
        return lambda t: xp + t * pp + self.step * inner(t)


class WithStep(nn.Module):
    """A map beside the step of its resolvent, a tensor, so that solutions are differentiable in both."""

    step: Tensor

    def __init__(self, net: nn.Module, step: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("step", step)

    def resolvent(self) -> Resolvent:
        return Resolvent(cast(SolvableMap, self.net), self.step)

    def rows(self, index: Tensor) -> WithStep:
        """The same for some samples of a flattened batch; itself where the map is the same for all."""
        net = cast(Any, self.net).rows(index)
        return self if net is self.net else WithStep(net, self.step)


@dataclass(frozen=True)
class Problem:
    """What is to be solved, for right-hand sides y.

    Attributes:
        net: a gradient map f.
        equation: makes of f what is solved: f itself, or a resolvent.
        tolerance: of the residual, relative to 1 + |y|; 64 roundings if None.
        max_steps: Newton steps at most.
        throw: raise an error if a sample does not converge.
    """

    net: nn.Module
    equation: Callable[[Any], Solvable]
    tolerance: float | None = None
    max_steps: int = 100
    throw: bool = True

    def solve(self, y: Tensor) -> Solution:
        """The solution, whose value is differentiable in y and in the parameters of the map, twice.

        16-bit types are solved in float32, and the result is rounded.
        """
        dtype = y.dtype
        wide = working_dtype(dtype)
        if wide == dtype:
            return self._solve_in_type(y)
        narrow = [tensor for tensor in tensors_of(self.net) if tensor.dtype == dtype]
        net = with_tensors(self.net, {id(tensor): tensor.to(wide) for tensor in narrow})
        solution = replace(self, net=net)._solve_in_type(y.to(wide))
        value = solution.value.to(dtype)
        return replace(
            solution,
            value=value,
            residual=solution.residual.to(dtype),
            converged=solution.converged & torch.isfinite(value).all(dim=-1),
        )

    def _solve_in_type(self, y: Tensor) -> Solution:
        tensors = tensors_of(self.net)
        forward = any(map(has_tangent, (y, *tensors)))
        reverse = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (y, *tensors))
        if forward or torch._C._are_functorch_transforms_active():
            # Transformations of functions see one operation that has no derivatives, whatever happens inside.
            solution = Solution(*_Solve.apply(self, y.detach(), *(tensor.detach() for tensor in tensors)))
        else:
            solution = self.solve_plainly(y)
        return self._with_derivatives(solution, y) if forward or reverse else solution

    def solve_plainly(self, y: Tensor) -> Solution:
        """The solution without derivatives."""
        solution = solve_monotone(self.equation(self.net), y, tolerance=self.tolerance, max_steps=self.max_steps)
        if self.throw:
            solution.require()
        return solution

    def _with_derivatives(self, solution: Solution, y: Tensor) -> Solution:
        equation = self.equation(self.net)
        sound = solution.converged.unsqueeze(-1)  # (*batch, 1)
        # Samples that failed must not touch the derivatives of others, so all is finite there.
        x = torch.where(sound, solution.value, 0.0)
        for _ in range(_DERIVATIVE_STEPS):
            value, jacobian = equation.value_and_jacobian(x)
            residual = torch.where(sound, value - y, 0.0)
            x = x - jacobian.solve_ex(residual).value
        return replace(solution, value=torch.where(sound, x, solution.value))


def tensors_of(net: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a map, each once."""
    return list(chain(net.parameters(), net.buffers()))


M = TypeVar("M", bound=nn.Module)


def with_tensors(module: M, tensors: dict[int, Tensor]) -> M:
    """A copy of a module with other parameters and buffers, and with everything else shared.

    Args:
        module: the module.
        tensors: the new ones, under the ``id`` of those in their places.
    """
    made: dict[int, nn.Module] = {}

    def replaced(old: Tensor | None) -> Any:
        return None if old is None else tensors.get(id(old), old)

    def visit(old: nn.Module) -> nn.Module:
        if id(old) in made:
            return made[id(old)]
        new = copy.copy(old)
        made[id(old)] = new
        new._parameters = {name: replaced(value) for name, value in old._parameters.items()}
        new._buffers = {name: replaced(value) for name, value in old._buffers.items()}
        new._modules = {name: child and visit(child) for name, child in old._modules.items()}
        return new

    return visit(module)  # type: ignore[return-value]


class _Solve(torch.autograd.Function):
    """(problem, y, tensors of the map) -> the fields of a :class:`~nablanets.newton.Solution`, without derivatives.

    ``vmap`` over y only is one batched solve; over parameters it solves for each by itself.
    """

    @staticmethod
    def forward(problem: Problem, y: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        solution = _with_these(problem, tensors).solve_plainly(y)
        return solution.value, solution.iterations, solution.residual, solution.converged, solution.singular

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], problem: Problem, y: Tensor, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        y_dim = in_dims[1]
        if y_dim is not None and all(dim is None for dim in in_dims[2:]):
            net: Any = _with_these(problem, tensors).net
            first = torch.zeros(1, dtype=torch.long, device=y.device)
            if net.rows(first) is net:  # samples may be put together as one batch
                together = _Solve.apply(problem, y.movedim(y_dim, 0), *tensors)
                return together, (0,) * len(together)
        each = []
        for k in range(info.batch_size):
            chosen = [
                value if dim is None else value.select(dim, k)
                for value, dim in zip((y, *tensors), in_dims[1:], strict=True)
            ]
            each.append(_Solve.apply(problem, *chosen))
        stacked = tuple(map(torch.stack, zip(*each, strict=True)))
        return stacked, (0,) * len(stacked)


def _with_these(problem: Problem, tensors: tuple[Tensor, ...]) -> Problem:
    """The problem with other tensors of its map."""
    places = map(id, tensors_of(problem.net))
    net = with_tensors(problem.net, dict(zip(places, tensors, strict=True)))
    return replace(problem, net=net)
