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
        return WeightedCascade(form.num_layers) if form.weighted else Cascade(form.activation, form.num_layers)
    if isinstance(form, SoftmaxForm):
        return GroupedWeightedSoftmax(form.groups) if form.weighted else GroupedSoftmax(form.groups)
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


class GroupedWeightedSoftmax(HiddenUnits):
    r"""a p - b q with p = softmax(u) and q = softmax(-u) over the units of each group.

    Back from dL/ds = y: dL/du = a p * (y - <p, y>) + b q * (y - <q, y>), dL/da = <p, y>, dL/db = -<q, y>, with inner
    products over the units of a group and, for a and b, over the samples.
    """

    def __init__(self, num_modules: int) -> None:
        self.num_modules = num_modules
        self.p: Tensor
        self.q: Tensor

    def read(self, net: HasUnitForm) -> tuple[AffineParts, tuple[Tensor, ...]]:
        return net.affine_parts(), net.unit_parameters()

    def evaluate(self, u: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> Tensor:
        a, b = (part[..., None, None] for part in parameters)  # (B, M, 1, 1)
        groups = u.unflatten(1, (self.num_modules, -1))
        self.p = torch.softmax(groups, dim=2, out=arrays("p", *groups.shape))
        self.q = torch.softmax(groups.neg_(), dim=2, out=arrays("q", *groups.shape))
        value = torch.mul(self.p, a, out=arrays("s", *groups.shape))
        return value.addcmul_(self.q, b, value=-1).flatten(1, 2)

    def pullback(self, gradient: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> tuple[Tensor, list[Tensor]]:
        a, b = (part[..., None, None] for part in parameters)
        y = gradient.unflatten(1, (self.num_modules, -1))
        weighted = torch.mul(y, self.p, out=arrays("weighted", *y.shape))
        by_p = weighted.sum(dim=2, keepdim=True)  # (B, M, 1, n)
        back = weighted.addcmul_(self.p, by_p, value=-1).mul_(a)
        y.mul_(self.q)
        by_q = y.sum(dim=2, keepdim=True)
        y.addcmul_(self.q, by_q, value=-1)
        return back.addcmul_(y, b).flatten(1, 2), [by_p.sum(dim=(2, 3)), -by_q.sum(dim=(2, 3))]


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


class WeightedCascade(HiddenUnits):
    r"""A cascade of weighted tanh without its last alpha: z_l = beta_l (u + b_l) + alpha_{l-1} s_{l-1}(z_{l-1}).

    With s(z) = c tanh z + e (z - tanh z) and tanh z = 2 sigmoid(2 z) - 1, which takes a fifth of the time of tanh, the
    numbers y = 2 z obey

    .. math:: y_l = B_l u + S_l + P_{l-1} \sigma(y_{l-1}) + R_{l-1} y_{l-1},

    with B = 2 beta, P = 4 alpha (c - e), R = alpha e and S_l = 2 beta_l b_l - P_{l-1} / 2. The last layer gives
    phi = (P \sigma(y) + R y) / 2 - P / 4 with alpha = 1; V takes the half, and v the constant.

    Back from dL/dy_l: dL/dB_l = <dy_l, u>, dL/dS_l = <dy_l, 1>, dL/dP_{l-1} = <dy_l, sigma_{l-1}>, dL/dR_{l-1} =
    <dy_l, y_{l-1}> and dy_{l-1} = dy_l (P sigma' + R), with sums over the samples.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.u: Tensor
        self.y: list[Tensor]
        self.sigma: list[Tensor]

    def read(self, net: HasUnitForm) -> tuple[AffineParts, tuple[Tensor, ...]]:
        parts = net.affine_parts()
        alpha, beta, bias, of_tanh, of_rest = net.unit_parameters()  # (..., L, units)
        inner_alpha = nn.functional.pad(alpha[..., :-1, :], (0, 0, 0, 1), value=1.0)
        slope = 4 * inner_alpha * (of_tanh - of_rest)  # P
        before = nn.functional.pad(slope[..., :-1, :], (0, 0, 1, 0)) / 2
        shift = 2 * beta * bias - before
        outer = parts.outer / 2
        constant = parts.constant - (outer @ slope[..., -1, :, None]).squeeze(-1) / 2
        return parts._replace(outer=outer, constant=constant), (slope, inner_alpha * of_rest, 2 * beta, shift)

    def evaluate(self, u: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> Tensor:
        slope, rest, beta, shift = (part.unsqueeze(-1) for part in parameters)  # (B, L, units, 1)
        self.u = u
        self.y = []
        self.sigma = []
        value = shift[:, 0]
        for k in range(self.num_layers):
            y = torch.addcmul(value, beta[:, k], u, out=arrays(f"y{k}", *u.shape))
            sigma = torch.sigmoid(y, out=arrays(f"sigma{k}", *u.shape))
            self.y.append(y)
            self.sigma.append(sigma)
            if k + 1 < self.num_layers:
                value = torch.addcmul(shift[:, k + 1], slope[:, k], sigma, out=arrays("response", *u.shape))
            else:
                value = torch.mul(slope[:, k], sigma, out=arrays("response", *u.shape))
            value.addcmul_(rest[:, k], y)
        return value

    def pullback(self, gradient: Tensor, parameters: tuple[Tensor, ...], arrays: Arrays) -> tuple[Tensor, list[Tensor]]:
        slope, rest, beta, _ = (part.unsqueeze(-1) for part in parameters)
        d_slope, d_rest, d_beta, d_shift = (torch.empty_like(part) for part in parameters)
        d_u = arrays("d_u", *self.u.shape).zero_()
        product = arrays("product", *self.u.shape)
        for k in reversed(range(self.num_layers)):
            d_slope[:, k] = torch.mul(gradient, self.sigma[k], out=product).sum(dim=2)
            d_rest[:, k] = torch.mul(gradient, self.y[k], out=product).sum(dim=2)
            bent = torch.mul(gradient, slope[:, k], out=product)
            torch.ops.aten.sigmoid_backward.grad_input(bent, self.sigma[k], grad_input=bent)
            dy = gradient.mul_(rest[:, k]).add_(bent)
            d_u.addcmul_(beta[:, k], dy)
            d_shift[:, k] = dy.sum(dim=2)
            d_beta[:, k] = torch.mul(dy, self.u, out=product).sum(dim=2)
        return d_u, [d_slope, d_rest, d_beta, d_shift]


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
