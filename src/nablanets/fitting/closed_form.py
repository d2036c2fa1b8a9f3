"""The fitting loss of one or many networks, with its gradient by hand where the units are known, else by autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import vmap

from nablanets.fitting.hidden_units import Arrays, HiddenUnits, hidden_units
from nablanets.fitting.stack import Stack
from nablanets.maps.protocols import AffineParts, HasUnitForm, unit_points

#: What surrounds phi, and the parameters of phi, each with a leading dimension (B).
Form: TypeAlias = tuple[AffineParts, tuple[Tensor, ...]]

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
    return ByAutograd(stack) if hidden is None or not stack.shares_buffers else ClosedForm(stack, hidden)


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


class Formulas:
    r"""f(y) = V phi(A y + a) + v + Q y of B networks, and its loss, with samples as the fast axis of every array.

    With E = 2 (f - g) / n the gradients are dV = E S^T, dA = U' Y^T and so on, where S = phi(A Y + a) and U' is the
    pullback of V^T E through phi. Softmax over a few units is twenty times as fast in this layout as over a short last
    axis.

    Args:
        hidden: phi of the networks.
        like: for device and type.
    """

    def __init__(self, hidden: HiddenUnits, like: Tensor) -> None:
        self.hidden = hidden
        self.arrays = Arrays(like)

    def loss(self, form: Form, y: Tensor, g: Tensor, unit: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        """mean ||f(y) - g||^2 / unit^2 at points (B, n, m) and targets (B, n, d), (B), and gradients in the form."""
        parts, parameters = form
        y = self.arrays("x", *y.mT.shape).copy_(y.mT)
        value, hidden = self.evaluate(form, y)
        error = value.sub_(g.mT)
        if unit != 1.0:
            error.div_(unit)
        loss = torch.mul(error, error, out=self.arrays("square", *error.shape)).sum(dim=(1, 2)) / y.shape[2]
        error.mul_(2 / (y.shape[2] * unit))
        back = torch.bmm(parts.outer.mT, error, out=self.arrays("back", *hidden.shape))
        inner, slopes = self.hidden.pullback(back, parameters, self.arrays)
        gradients = [
            inner @ y.mT,  # of A, (B, units, m)
            inner.sum(dim=2),  # of a, (B, units)
            error @ hidden.mT,  # of V, (B, d, units)
            error.sum(dim=2),  # of v, (B, d)
        ]
        if parts.linear is not None:
            gradients.append(error @ y.mT)  # of Q, (B, d, m)
        return loss, gradients + slopes

    def evaluate(self, form: Form, y: Tensor) -> tuple[Tensor, Tensor]:
        """f and S at points (B, m, n)."""
        parts, parameters = form
        u = self.arrays("u", *parts.shift.shape, y.shape[2])
        torch.baddbmm(parts.shift.unsqueeze(2), parts.inner, y, out=u)
        hidden = self.hidden.evaluate(u, parameters, self.arrays)
        value = self.arrays("value", *parts.constant.shape, y.shape[2])
        torch.baddbmm(parts.constant.unsqueeze(2), parts.outer, hidden, out=value)
        return value if parts.linear is None else value.baddbmm_(parts.linear, y), hidden


class ClosedForm(StackLoss):
    """By :class:`Formulas`: autograd is left with the few numbers that A, a, V, v, Q and phi's parameters are made of.

    Args:
        stack: the networks, whose buffers are the same.
        hidden: their phi.
    """

    def __init__(self, stack: Stack, hidden: HiddenUnits) -> None:
        super().__init__(stack)
        self.formulas = Formulas(hidden, stack.theta)
        self.reading = _Reading(cast(HasUnitForm, stack.skeleton), hidden)

    def with_gradient(self, theta: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        form = self._read(theta)
        with torch.no_grad():
            loss, gradients = self.formulas.loss(form, self.stack.unit_points(x), g)
        outputs, cotangents = _differentiable(form, gradients)
        (gradient,) = torch.autograd.grad(outputs, theta, cotangents)
        return loss, gradient

    @torch.no_grad()
    def values(self, theta: Tensor, x: Tensor) -> Tensor:
        y = self.stack.unit_points(x)
        points = y.mT.contiguous().expand(len(theta), *y.mT.shape[-2:])
        form = self.formulas.hidden.read(cast(HasUnitForm, self.stack.present(theta)))
        return self.formulas.evaluate(form, points)[0].mT

    def _read(self, theta: Tensor) -> Form:
        return cast(Form, self.stack.call(self.reading, theta))


class OwnGradient:
    """The loss of one network, and its gradient by :class:`Formulas`.

    Args:
        net: the network.
        hidden: its phi.
        unit: the loss is mean ||f(x) - g||^2 / unit^2.
    """

    def __init__(self, net: nn.Module, hidden: HiddenUnits, unit: float) -> None:
        self.net = net
        self.unit = unit
        self.hidden = hidden
        self.formulas = Formulas(hidden, next(net.parameters()))

    def backward(self, x: Tensor, g: Tensor) -> Tensor:
        """The loss at samples (n, d), a scalar; its gradient is added to those of the parameters."""
        parts, parameters = self.hidden.read(cast(HasUnitForm, self.net))
        whole = AffineParts(
            inner=parts.inner.unsqueeze(0),
            shift=parts.shift.unsqueeze(0),
            outer=parts.outer.unsqueeze(0),
            constant=parts.constant.unsqueeze(0),
            linear=None if parts.linear is None else parts.linear.unsqueeze(0),
        )
        form = whole, tuple(part.unsqueeze(0) for part in parameters)
        with torch.no_grad():
            y = unit_points(self.net, x)
            loss, gradients = self.formulas.loss(form, y.unsqueeze(0), g.unsqueeze(0), self.unit)
        outputs, cotangents = _differentiable(form, gradients)
        torch.autograd.backward(outputs, cotangents)
        return loss.squeeze(0)


def own_gradient(net: nn.Module, unit: float) -> OwnGradient | None:
    """The gradient by hand of one network whose units are known, if nothing else listens to how it is evaluated."""
    hidden = hidden_units(net)
    parameters = list(net.parameters())
    plain = all(parameter.dtype in (torch.float32, torch.float64) for parameter in parameters)
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    autocast = torch.is_autocast_enabled(parameters[0].device.type) if parameters else False
    if hidden is None or not plain or hooked or autocast:
        return None
    return OwnGradient(net, hidden, unit)


def _differentiable(form: Form, gradients: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The arrays of a form that have derivatives, and their gradients; frozen parameters give arrays without."""
    parts, parameters = form
    inputs = [*(part for part in parts if part is not None), *parameters]
    outputs: list[Tensor] = []
    cotangents: list[Tensor] = []
    for part, part_gradient in zip(inputs, gradients, strict=True):
        if part.requires_grad:
            outputs.append(part)
            cotangents.append(part_gradient)
    return outputs, cotangents


class _Reading(nn.Module):
    """A network as the form that :class:`ClosedForm` needs."""

    def __init__(self, net: HasUnitForm, hidden: HiddenUnits) -> None:
        super().__init__()
        self.net, self.hidden = net, hidden

    def forward(self) -> Form:
        return self.hidden.read(self.net)
