"""The fitting loss of many networks at once, with its gradient by hand where the units are known, else by autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import vmap

from nablanets.fitting.hidden_units import Arrays, HiddenUnits, hidden_units
from nablanets.fitting.stack import Stack
from nablanets.maps.protocols import AffineParts, HasUnitForm

# Networks that one program trains, and how many where arrays would be large.
_SLOTS = 32
_FEW_SLOTS = 8
# Up to so many samples in a batch there is room for all slots...
_SMALL_BATCH = 128
# ... and, where gradients are by hand, up to so many numbers (units x samples) in an array of one network.
_SMALL_ARRAY = 2**15


class StackLoss(ABC):
    """mean ||f(x) - g||^2 of the networks of a stack, each at samples of its own.

    Args:
        stack: the networks.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    @abstractmethod
    def with_gradient(self, theta: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The losses (B) at samples (B, n, d), and their gradients in the rows of theta, (B, p)."""

    @abstractmethod
    def values(self, theta: Tensor, x: Tensor) -> Tensor:
        """The networks at common points (n, d) or own (B, n, d), (B, n, d)."""


def make_loss(stack: Stack) -> StackLoss:
    """By hand for the networks that :class:`ClosedForm` knows, else by autograd through vmap."""
    hidden = hidden_units(stack.skeleton)
    return ByAutograd(stack) if hidden is None else ClosedForm(stack, hidden)


def num_slots(net: nn.Module, batch_size: int) -> int:
    """How many networks one program trains: 32, or 8 where its arrays would be large.

    A program is always full (with copies, if need be), and each member has its own slot, so that shapes and memory
    alignment, and with them the rounding of every sum, are the same whichever other members there are.
    """
    small = batch_size <= _SMALL_BATCH
    if hidden_units(net) is not None:
        units = cast(HasUnitForm, net).affine_parts().shift.numel()
        small = small or units * batch_size <= _SMALL_ARRAY
    return _SLOTS if small else _FEW_SLOTS


class ByAutograd(StackLoss):
    """For networks of any kind."""

    def with_gradient(self, theta: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        value = vmap(self.stack.one)(theta, self.stack.fixed, x)
        loss = (value - g).square().sum(dim=-1).mean(dim=-1)
        (gradient,) = torch.autograd.grad(loss.sum(), theta)
        return loss.detach(), gradient

    def values(self, theta: Tensor, x: Tensor) -> Tensor:
        return self.stack.values(theta, x)


class ClosedForm(StackLoss):
    r"""For f(x) = V phi(A x + a) + v + Q x, with samples as the fast axis of every array.

    With E = 2 (f - g) / n the gradients are dV = E S^T, dA = U' X^T and so on, where S = phi(A X + a) and U' is the
    pullback of V^T E through phi. Autograd is left with the few numbers that A, a, V, v, Q and phi's parameters are
    made of. Softmax over a few units is twenty times as fast in this layout as over a short last axis.

    Args:
        stack: the networks.
        hidden: their phi.
    """

    def __init__(self, stack: Stack, hidden: HiddenUnits) -> None:
        super().__init__(stack)
        self.hidden = hidden
        self.arrays = Arrays(stack.theta)
        self.reading = _Reading(cast(HasUnitForm, stack.skeleton), hidden)

    def with_gradient(self, theta: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        parts, parameters = self._read(theta)
        inputs = [*(part for part in parts if part is not None), *parameters]
        with torch.no_grad():
            loss, gradients = self._loss(parts, parameters, x, g)
        outputs: list[Tensor] = []
        cotangents: list[Tensor] = []
        for part, part_gradient in zip(inputs, gradients, strict=True):
            if part.requires_grad:  # frozen parameters give parts without a gradient
                outputs.append(part)
                cotangents.append(part_gradient)
        (gradient,) = torch.autograd.grad(outputs, theta, cotangents)
        return loss, gradient

    @torch.no_grad()
    def values(self, theta: Tensor, x: Tensor) -> Tensor:
        points = x.mT.contiguous().expand(len(theta), *x.mT.shape[-2:])
        return self._evaluate(*self._read(theta), points)[0].mT

    def _read(self, theta: Tensor) -> tuple[AffineParts, tuple[Tensor, ...]]:
        return cast("tuple[AffineParts, tuple[Tensor, ...]]", self.stack.call(self.reading, theta))

    def _loss(
        self, parts: AffineParts, parameters: tuple[Tensor, ...], x: Tensor, g: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The losses, and their gradients in the parts and parameters."""
        x = self.arrays("x", *x.mT.shape).copy_(x.mT)
        value, hidden = self._evaluate(parts, parameters, x)
        error = value.sub_(g.mT)
        loss = torch.mul(error, error, out=self.arrays("square", *error.shape)).sum(dim=(1, 2)) / x.shape[2]
        error.mul_(2 / x.shape[2])
        back = torch.bmm(parts.outer.mT, error, out=self.arrays("back", *hidden.shape))
        inner, slopes = self.hidden.pullback(back, parameters, self.arrays)
        gradients = [
            inner @ x.mT,  # of A, (B, units, d)
            inner.sum(dim=2),  # of a, (B, units)
            error @ hidden.mT,  # of V, (B, d, units)
            error.sum(dim=2),  # of v, (B, d)
        ]
        if parts.linear is not None:
            gradients.append(error @ x.mT)  # of Q, (B, d, d)
        return loss, gradients + slopes

    def _evaluate(self, parts: AffineParts, parameters: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, Tensor]:
        """f and S at points (B, d, n)."""
        u = self.arrays("u", *parts.shift.shape, x.shape[2])
        torch.baddbmm(parts.shift.unsqueeze(2), parts.inner, x, out=u)
        hidden = self.hidden.evaluate(u, parameters, self.arrays)
        value = self.arrays("value", *parts.constant.shape, x.shape[2])
        torch.baddbmm(parts.constant.unsqueeze(2), parts.outer, hidden, out=value)
        return value if parts.linear is None else value.baddbmm_(parts.linear, x), hidden


class _Reading(nn.Module):
    """A network as the parts that :class:`ClosedForm` needs."""

    def __init__(self, net: HasUnitForm, hidden: HiddenUnits) -> None:
        super().__init__()
        self.net, self.hidden = net, hidden

    def forward(self) -> tuple[AffineParts, tuple[Tensor, ...]]:
        return self.hidden.read(self.net)
