"""What the rules of single layers share: how a reverse sweep goes, and modules that hand their input on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

Pull = Callable[[Tensor], Tensor]


class Sweep(NamedTuple):
    """How the reverse sweep goes: with a constant Jacobian (detached), with constant statistics in norms."""

    detach: bool = False
    constant_statistics: bool = False

    def hold(self, t: Tensor) -> Tensor:
        return t.detach() if self.detach else t


@dataclass
class ChannelScale:
    """c -> c s with one number per channel, (C, 1, ...): a pullback that the one after it may take over."""

    scale: Tensor

    def __call__(self, c: Tensor) -> Tensor:
        return c * self.scale


class Absorbing(ABC):
    """A pullback c -> c A that can take over a :class:`ChannelScale` before it, as c -> c (s A)."""

    @abstractmethod
    def after(self, scale: ChannelScale) -> Pull:
        """c -> (c s) A."""


Rule = Callable[[Any, Tensor, Sweep], tuple[Tensor, Pull]]


class PassThrough(nn.Module):
    """Put before a module's class: it hands its input on, since another module computes what it did."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def original_forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def call(module: nn.Module, x: Tensor) -> Tensor:
    """The value of a module, also of one that hands its input on now."""
    result: Tensor = module.original_forward(x) if isinstance(module, PassThrough) else module(x)
    return result


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward; hooks are taken for observers."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)
