"""Hidden units of many networks at once, with their derivatives by hand: see :mod:`~nablanets.fitting.closed_form`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from nablanets.activations import ElementwiseActivation
from nablanets.activations.elementwise import Sigmoid, Tanh
from nablanets.maps.protocols import (
    AffineParts,
    CascadeForm,
    ElementwiseForm,
    HasUnitForm,
    SoftmaxForm,
    supports,
)


def hidden_units(net: nn.Module) -> HiddenUnits | None:
    """The hand-written units for a network that has the methods of HasUnitForm, if they are known by name."""
    if not supports(net, HasUnitForm):
        return None
    form = cast(HasUnitForm, net).unit_form()
    if isinstance(form, CascadeForm):
        return Cascade(form.activation, form.num_layers)
    if isinstance(form, SoftmaxForm):
        return GroupedSoftmax(form.groups)
    return Elementwise(form.activation) if isinstance(form, ElementwiseForm) else None


class Arrays:
    """Arrays by name and shape that are written again at every step.

    Fresh memory costs more than the arithmetic on it: without this a step takes twice as long.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like.detach()
        self._kept: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        if (name, shape) not in self._kept:
            self._kept[name, shape] = self._like.new_empty(shape)
        return self._kept[name, shape]


class HiddenUnits(ABC):
    """phi of :class:`ClosedForm` for B networks at once, (B, units, n) to (B, units, n)."""

    @abstractmethod
    def read(self, net: HasUnitForm) -> tuple[AffineParts, tuple[Tensor, ...]]:
        """What surrounds phi in a network (or in many, if its parameters have a leading dimension), and phi's own."""

    @abstractmethod
    def evaluate(self, u: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> Tensor:
        """phi(u), which may overwrite u."""

    @abstractmethod
    def pullback(self, gradient: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> tuple[Tensor, list[Tensor]]:
        """From dL/ds, which is overwritten, to dL/du at the last u, and the gradients in the parameters."""


class Elementwise(HiddenUnits):
    """An activation without parameters, unit by unit."""

    def __init__(self, activation: ElementwiseActivation) -> None:
        self.layer = _Layer(activation)

    def read(self, net: HasUnitForm) -> tuple[AffineParts, tuple[Tensor, ...]]:
        parts = net.affine_parts()
        if self.layer.is_tanh:
            parts = _without_tanh(parts)._replace(inner=2 * parts.inner, shift=2 * parts.shift)
        return parts, ()

    def evaluate(self, u: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> Tensor:
        return self.layer.evaluate(u)

    def pullback(self, gradient: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> tuple[Tensor, list[Tensor]]:
        return self.layer.pullback_(gradient), []


class GroupedSoftmax(HiddenUnits):
    """Softmax over the units of each group."""

    def __init__(self, num_modules: int) -> None:
        self.num_modules = num_modules
        self.last: Tensor

    def read(self, net: HasUnitForm) -> tuple[AffineParts, tuple[Tensor, ...]]:
        return net.affine_parts(), ()

    def evaluate(self, u: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> Tensor:
        groups = u.unflatten(1, (self.num_modules, -1))
        self.last = torch.softmax(groups, dim=2, out=arrays("p", *groups.shape))
        return self.last.flatten(1, 2)

    def pullback(self, gradient: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> tuple[Tensor, list[Tensor]]:
        weighted = gradient.unflatten(1, (self.num_modules, -1)).mul_(self.last)
        return weighted.addcmul_(self.last, weighted.sum(dim=2, keepdim=True), value=-1).flatten(1, 2), []


class Cascade(HiddenUnits):
    r"""A cascade without its last alpha, z_l = beta_l (u + b_l) + alpha_{l-1} s(z_{l-1}).

    Back from dz_l: d alpha_{l-1} = dz_l . s_{l-1}, d beta_l = dz_l . (u + b_l), d b_l = beta_l dz_l . 1 and
    ds_{l-1} = alpha_{l-1} dz_l, with sums over the samples.
    """

    def __init__(self, activation: ElementwiseActivation, num_layers: int) -> None:
        self.layers = [_Layer(activation) for _ in range(num_layers)]
        self.u: Tensor

    def read(self, net: HasUnitForm) -> tuple[AffineParts, tuple[Tensor, ...]]:
        parts = net.affine_parts()
        alpha, beta, bias = net.unit_parameters()  # (..., L, units)
        alpha = alpha[..., :-1, :]  # the last belongs to parts.outer
        shift = beta * bias
        if not self.layers[0].is_tanh:
            return parts, (alpha, beta, shift)
        before = nn.functional.pad(alpha, (0, 0, 1, 0))
        return _without_tanh(parts), (4 * alpha, 2 * beta, 2 * (shift - before))

    def evaluate(self, u: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> Tensor:
        alpha, beta, shift = (part.unsqueeze(-1) for part in parameters)
        self.u = u
        for k, layer in enumerate(self.layers):
            z = torch.mul(beta[:, k], u, out=arrays(f"z{k}", *u.shape)).add_(shift[:, k])
            if k:
                z.addcmul_(alpha[:, k - 1], self.layers[k - 1].value)
            layer.evaluate(z)
        return self.layers[-1].value

    def pullback(self, gradient: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> tuple[Tensor, list[Tensor]]:
        alpha, beta, _ = (part.unsqueeze(-1) for part in parameters)
        d_alpha, d_beta, d_shift = (torch.empty_like(part) for part in parameters)
        d_u = arrays("d_u", *self.u.shape).zero_()
        product = arrays("product", *self.u.shape)
        for k in reversed(range(len(self.layers))):
            dz = self.layers[k].pullback_(gradient)
            d_u.addcmul_(beta[:, k], dz)
            d_shift[:, k] = dz.sum(dim=2)
            d_beta[:, k] = torch.mul(dz, self.u, out=product).sum(dim=2)
            if k:
                d_alpha[:, k - 1] = torch.mul(dz, self.layers[k - 1].value, out=product).sum(dim=2)
                dz.mul_(alpha[:, k - 1])
        return d_u, [d_alpha, d_beta, d_shift]


class _Layer:
    """s(z) of an activation without parameters; in place of tanh z, sigmoid z."""

    def __init__(self, activation: ElementwiseActivation) -> None:
        self.activation = activation
        self.is_tanh = type(activation) is Tanh
        self.is_sigmoid = self.is_tanh or type(activation) is Sigmoid
        self.value: Tensor
        self.slope: Tensor

    def evaluate(self, z: Tensor) -> Tensor:
        """s(z), written over z if it is the sigmoid."""
        if self.is_sigmoid:
            self.value = z.sigmoid_()
        else:
            self.value, self.slope = self.activation.value_and_derivative(z)
        return self.value

    def pullback_(self, gradient: Tensor) -> Tensor:
        """The gradient times s'(z) at the last z, in place."""
        if not self.is_sigmoid:
            return gradient.mul_(self.slope)
        torch.ops.aten.sigmoid_backward.grad_input(gradient, self.value, grad_input=gradient)
        return gradient


def _without_tanh(parts: AffineParts) -> AffineParts:
    """With tanh z = 2 sigmoid(2 z) - 1, exact to rounding of 1, which takes a fifth of the time of tanh."""
    return parts._replace(outer=2 * parts.outer, constant=parts.constant - parts.outer.sum(dim=-1))
