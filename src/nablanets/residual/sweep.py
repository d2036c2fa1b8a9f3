"""The words of the reverse sweep: cotangents, pullbacks, and what a rule of a layer is.

Let y = f(x), and let c be the derivative of some number with respect to y: a cotangent, of the shape of y. The pullback
of f at x is c -> J_f(x)^T c, the derivative of that number with respect to x. The gradient of a block's output sum is
the cotangent of ones, pulled back through the layers from the last one to the first. This is reverse-mode
differentiation (Griewank and Walther, "Evaluating Derivatives", 2008, chapter 3). It is written out here, instead of
left to autograd, so that it runs inside of a forward pass, and is itself differentiated, compiled and batched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

#: A pullback, c -> J^T c.
Pull = Callable[[Tensor], Tensor]


class Sweep(NamedTuple):
    """What counts as a constant in a reverse sweep.

    Attributes:
        detach: the Jacobian, for autograd: derivatives with respect to c alone are wanted.
        constant_statistics: means, variances and normalisers, as if they did not depend on x.
    """

    detach: bool = False
    constant_statistics: bool = False

    def maybe_detach(self, factor: Tensor) -> Tensor:
        """A factor of the Jacobian, without its history where the Jacobian counts as a constant."""
        return factor.detach() if self.detach else factor


#: (layer, x, sweep) -> (layer(x), its pullback at x).
Rule = Callable[[Any, Tensor, Sweep], tuple[Tensor, Pull]]


@dataclass
class ChannelScale:
    """The pullback c -> c s with one number per channel, s of shape (C, 1, ...).

    The layer before it in the forward, which comes after it in the sweep, may take it over.
    """

    scale: Tensor

    def __call__(self, c: Tensor) -> Tensor:
        return c * self.scale


class Absorbing(ABC):
    """A pullback c -> c A that can take over a :class:`ChannelScale`, as c -> c (s A)."""

    @abstractmethod
    def after(self, scale: ChannelScale) -> Pull:
        """c -> (c s) A."""


class PassThrough(nn.Module):
    """Put before a module's class: its forward hands the input on, since another module computes what it did."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def original_forward(self, x: Tensor) -> Tensor:
        """The forward of the class behind this one."""
        return super().forward(x)


def call(module: nn.Module, x: Tensor) -> Tensor:
    """The value of a module, also of one that hands its input on now."""
    result: Tensor = module.original_forward(x) if isinstance(module, PassThrough) else module(x)
    return result


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward. Hooks are taken for observers, which change nothing."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)
