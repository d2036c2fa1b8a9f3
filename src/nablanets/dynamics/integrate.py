"""integrate: trajectories of systems, by symplectic, explicit or adaptive methods."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nablanets.dynamics.adaptive import ADAPTIVE
from nablanets.dynamics.runge_kutta import Gauss, Time, gauss, rk4_step
from nablanets.dynamics.splitting import SPLITTINGS, Separable, Splitting
from nablanets.dynamics.systems import System
from nablanets.errors import InvalidInputError, ShapeError, check_points, unknown_name
from nablanets.parameters import first_tensor
from nablanets.tensors import carries_derivatives, tensor_of

#: Symplectic for every Hamiltonian system, by name.
GAUSS = {"midpoint": gauss(1), "gauss4": gauss(2), "gauss6": gauss(3)}
#: Orders of the methods with fixed steps.
ORDERS = {**{name: rule.order for name, rule in (SPLITTINGS | GAUSS).items()}, "rk4": 4}
#: u(t): the input of a port-Hamiltonian system.
Inputs = Callable[[Any], Tensor]


def integrate(
    system: System,
    x0: Float[Tensor, "*batch d"],
    times: Tensor | Sequence[float | Tensor],
    *,
    method: str | None = None,
    step: float | Tensor | None = None,
    inputs: Inputs | None = None,
    **options: Any,
) -> Float[Tensor, "t *batch d"]:
    """The trajectories x(t) that start at x0, at the given times.

    Differentiable in the states, the parameters and the times, by reverse and forward mode, through every step (but for
    "dop853", which is SciPy's). Symplectic methods keep the energy error bounded over very long times if all steps are
    equal: give equally spaced times.

    Args:
        system: any :class:`System`.
        x0: states at the first time.
        times: increasing or decreasing; the first is that of x0. Tensors, also in a list, have derivatives.
        method: for separable systems "symplectic-euler" (order 1), "leapfrog", "verlet" (2), "yoshida4", "yoshida6";
            for all systems "midpoint" (2), "gauss4", "gauss6", implicit and symplectic, and "rk4", which is not;
            adaptive, as references: "dop853" (SciPy), "torchdiffeq" (needs that package). If None, "yoshida4" for
            separable systems, else "gauss4".
        step: largest step; each interval between times is divided equally. One step per interval if None. It chooses
            how many steps there are and nothing else, so there is no derivative with respect to it.
        inputs: u(t) of a port-Hamiltonian system; t is a tensor without dimensions where times carry derivatives.
        options: rtol and atol of adaptive methods.

    Raises:
        UnknownNameError: no such method.
        InvalidInputError: an explicit symplectic method for a system that is not separable; bad times or
            steps; a step that carries derivatives.
        ConvergenceError: the implicit equations could not be solved.

    >>> from nablanets import GradNetC
    >>> from nablanets.dynamics import HamiltonianSystem
    >>> system = HamiltonianSystem(GradNetC(2, 8).double())
    >>> x = integrate(system, torch.ones(5, 2, dtype=torch.double), torch.linspace(0, 10, 101))
    >>> energy = system.energy(x)
    >>> x.shape, bool((energy - energy[0]).abs().max() < 1e-6)
    (torch.Size([101, 5, 2]), True)
    """
    check_points(x0, system.features, owner="integrate", name="x0", like=first_tensor(system))
    method = method or ("yoshida4" if isinstance(system, Separable) else "gauss4")
    moments = _moments(times, step)
    flow = Driven(system, inputs)
    if method in ADAPTIVE:
        return ADAPTIVE[method](flow, x0, moments, **options)
    if options:
        raise unknown_name("option of a method with fixed steps", next(iter(options)), ("method", "step", "inputs"))
    advance = _advance(flow, method)
    states, x = [x0], x0
    for start, end in itertools.pairwise(moments):
        count = 1 if step is None else _count(start, end, float(step))
        h = (end - start) / count
        for k in range(count):
            x = advance(start + k * h, x, h)
        states.append(x)
    return torch.stack(states)


class Driven:
    """The field v(t, x) of a system whose input is a function of time."""

    def __init__(self, system: System, inputs: Inputs | None) -> None:
        if inputs is not None and not hasattr(system, "inputs"):
            raise InvalidInputError(
                f"integrate: expected a PortHamiltonian for inputs u(t), got {type(system).__name__}."
            )
        self.system, self.inputs = system, inputs

    def __call__(self, t: Time, x: Tensor) -> Tensor:
        if self.inputs is None:
            return self.system.vector_field(x)
        return self.system.vector_field(x, self.inputs(t).to(x))  # type: ignore[call-arg]

    def linearisation(self, x: Tensor) -> Tensor:
        return self.system.linearisation(x)


def _advance(flow: Driven, method: str) -> Callable[[Time, Tensor, Time], Tensor]:
    """(t, x, h) -> x(t + h)."""
    if method == "rk4":
        return lambda t, x, h: rk4_step(flow, t, x, h)
    rule: Gauss | Splitting | None = GAUSS.get(method) or SPLITTINGS.get(method)
    if rule is None:
        raise unknown_name("method", method, (*ORDERS, *ADAPTIVE))
    if isinstance(rule, Gauss):
        return lambda t, x, h: rule.step(flow, t, x, h)
    system = flow.system
    if not isinstance(system, Separable):
        raise InvalidInputError(
            f"integrate: {method!r} needs a separable system (velocity(p) and force(q)), got {type(system).__name__}. "
            f"Build a SeparableHamiltonian, or take one of {', '.join(GAUSS)}."
        )
    return lambda t, x, h: rule.step(system, x, h)


def _moments(times: Tensor | Sequence[float | Tensor], step: float | Tensor | None) -> list[Any]:
    """The times, checked: as numbers, or as tensors without dimensions where they carry derivatives."""
    # Tensors without dimensions go with those of any type and device, and leave both as they are.
    moments = tensor_of(times, torch.float64).to("cpu")
    if moments.ndim != 1 or len(moments) < 1:
        raise ShapeError(f"integrate: expected times of shape (t) with t >= 1, got {tuple(moments.shape)}.")
    change = moments.diff()
    if not bool((change > 0).all() or (change < 0).all()) or not bool(torch.isfinite(moments).all()):
        raise InvalidInputError("integrate: expected finite times that all increase or all decrease.")
    if isinstance(step, Tensor) and carries_derivatives(step):
        raise InvalidInputError(
            "integrate: expected a step without derivatives. The trajectory depends on it by a whole number of steps, "
            "so its derivative is zero or does not exist; for derivatives in the length of the steps give the time of "
            "each of them, times = h * torch.arange(count + 1), or step.detach()."
        )
    if step is not None and not step > 0:
        raise InvalidInputError(f"integrate: expected step > 0 (its sign follows the times), got {step}.")
    return list(moments.unbind()) if carries_derivatives(moments) else moments.tolist()


def _count(start: float | Tensor, end: float | Tensor, step: float) -> int:
    """How many equal steps of at most this size an interval takes; a step that is too small by rounding is no more."""
    change = end - start
    size = float(change.detach() if isinstance(change, Tensor) else change)
    return max(1, math.ceil(abs(size) / step * (1 - 1e-9)))
