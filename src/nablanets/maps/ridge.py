"""The scalar cascade inside GradNet-C: phi, its derivative and its antiderivative, elementwise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from nablanets.activations import ActivationSpec, ElementwiseActivation, make_activation
from nablanets.activations.base import TwoWeights
from nablanets.errors import IllegalActivationError
from nablanets.intervals import interval_product
from nablanets.parameters import constrained, inverse_softplus
from nablanets.quadrature import gauss_legendre

# Standard deviation of beta (u + b), summed over the layers, of units that are placed: a weighted tanh is linear there.
_PLACED_SPREAD = 1.5


class RidgeCascade(nn.Module):
    r"""h functions of one variable, phi(u) = alpha_{L-1} s_{L-1}(z_{L-1}) with the cascade

    .. math:: z_0 = \beta_0 (u + b_0), \qquad z_l = \beta_l (u + b_l) + \alpha_{l-1} s_{l-1}(z_{l-1}).

    Increasing if ``monotone`` (alpha, beta >= 0 by softplus and increasing s). All methods act on (*, h).
    """

    #: Nodes of the Gauss-Legendre rule for the antiderivative of smooth cascades with more than one layer.
    quadrature_nodes = 32

    def __init__(
        self, units: int, num_layers: int, activation: ActivationSpec, *, monotone: bool, spread: float
    ) -> None:
        super().__init__()
        self.num_layers, self.monotone = num_layers, monotone
        layers = [_elementwise(activation, units, monotone) for _ in range(num_layers)]
        self.activations = nn.ModuleList(layers)
        self._kinks = layers[0].kinks
        self.bias = nn.Parameter(torch.empty(num_layers, units).uniform_(-spread, spread))
        low = 0.01 if monotone else -0.5
        self.alpha_raw = nn.Parameter(_uniform(num_layers, units, low, 0.5, nonnegative=monotone))
        self.beta_raw = nn.Parameter(_uniform(num_layers, units, 1.0, 3.0, nonnegative=monotone))

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, beta and b, each (L, h)."""
        return *self._scales(), self.bias

    def _scales(self) -> tuple[Tensor, Tensor]:
        nonnegative = self.monotone
        return constrained(self.alpha_raw, nonnegative=nonnegative), constrained(self.beta_raw, nonnegative=nonnegative)

    def forward(self, u: Tensor) -> Tensor:
        """phi(u)."""
        return self._layers(u, self.num_layers)[1]

    def hidden(self, u: Tensor) -> Tensor:
        """s_{L-1}(z_{L-1}), which alpha_{L-1} scales."""
        return self.activations[-1](self._layers(u, self.num_layers)[0])

    def _layers(self, u: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """z and alpha s(z) of layer number ``count`` (counted from one)."""
        alpha, beta = self._scales()
        z = beta[0] * (u + self.bias[0])
        value = alpha[0] * self.activations[0](z)
        for layer in range(1, count):
            z = torch.addcmul(value, beta[layer], u + self.bias[layer])
            value = alpha[layer] * self.activations[layer](z)
        return z, value

    def derivative(self, u: Tensor) -> Tensor:
        """phi'(u)."""
        return self.value_and_derivative(u)[1]

    def value_and_derivative(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """phi(u) and phi'(u) by the recursion dz_l = beta_l + alpha_{l-1} s'(z_{l-1}) dz_{l-1}, in O(L h)."""
        alpha, beta = self._scales()
        value = torch.zeros_like(u)
        slope = torch.zeros_like(u)
        for layer, s in enumerate(cast(Iterable[ElementwiseActivation], self.activations)):
            z = torch.addcmul(value, beta[layer], u + self.bias[layer])
            activated, derivative = s.value_and_derivative(z)
            value = alpha[layer] * activated
            slope = alpha[layer] * derivative * (beta[layer] + slope)
        return value, slope

    def derivative_interval(self) -> tuple[Tensor, Tensor]:
        """Bounds of phi'(u) per unit, for every u, by interval arithmetic on the recursion."""
        alpha, beta = self._scales()
        low = high = torch.zeros_like(beta[0])
        for layer, s in enumerate(cast(Iterable[ElementwiseActivation], self.activations)):
            slopes = interval_product((alpha[layer], alpha[layer]), s.slope_interval())
            low, high = interval_product((beta[layer] + low, beta[layer] + high), slopes)
        return low, high

    def outer_raw(self) -> Tensor:
        """The parameters behind alpha_{L-1}, (h), which phi is linear in."""
        return self.alpha_raw[-1]

    @torch.no_grad()
    def draw_published_scales(self) -> None:
        """Raw alpha and beta from U(-1/2, 1/2), the authors' range."""
        self.alpha_raw.uniform_(-0.5, 0.5)
        self.beta_raw.uniform_(-0.5, 0.5)

    @torch.no_grad()
    def spread(self, u: Tensor) -> None:
        """Let each unit's offset in each layer make u + b zero at a random one of the points u, (n, h)."""
        rows = torch.randint(len(u), self.bias.shape, device=u.device)  # (L, h)
        self.bias.copy_(-u.gather(0, rows))

    @torch.no_grad()
    def place(self, u: Tensor, gain: Tensor | None = None) -> None:
        """Bends where the points u (n, h) are, equal weights in the activations, and a mean slope of one over them.

        With weighted tanh the units are then linear, since tanh and its weighted rest cancel. ``gain`` (n, h) or (h)
        multiplies phi outside.
        """
        raw = inverse_softplus if self.monotone else torch.as_tensor
        for units in self.activations:
            for part in units.modules():
                if isinstance(part, TwoWeights):
                    part.b_raw.copy_(part.a_raw)
        self.spread(u)
        deviation = u.std(dim=0).clamp(min=1e-12)  # (h)
        beta = _PLACED_SPREAD / self.num_layers / deviation
        self.beta_raw.copy_(raw(beta.expand_as(self.beta_raw)))
        self.alpha_raw.copy_(raw(torch.ones_like(self.alpha_raw)))
        slope = self.derivative(u)
        mean_slope = (slope if gain is None else gain * slope).mean(dim=0)
        self.alpha_raw[-1] = raw(1 / mean_slope)

    def antiderivative(self, u: Tensor, start: Tensor | None = None) -> Tensor:
        """The integral of phi from ``start`` (0 if None) to u: exact if s is piecewise linear, else by quadrature."""
        if self._kinks:
            return self._piecewise_linear_integral(torch.zeros_like(u) if start is None else start.expand_as(u), u)
        return self._quadrature(u, start, self.quadrature_nodes)

    def quadrature_gap(self, u: Tensor, start: Tensor | None = None) -> Tensor:
        """Change of the integral when half as many nodes are used: an estimate of its quadrature error.

        For smooth s it is far above the error. Where slopes bend (splines) it can miss a bend between nodes.
        """
        if self._kinks:
            return torch.zeros_like(u)
        return self.antiderivative(u, start) - self._quadrature(u, start, self.quadrature_nodes // 2)

    def _quadrature(self, u: Tensor, start: Tensor | None, count: int) -> Tensor:
        nodes, weights = gauss_legendre(count, u)
        width = u if start is None else u - start
        points = width.unsqueeze(-2) * nodes.unsqueeze(-1)
        if start is not None:
            points = points + start.unsqueeze(-2)
        return width * torch.einsum("...nh,n->...h", self(points), weights)

    def _piecewise_linear_integral(self, start: Tensor, u: Tensor) -> Tensor:
        """The integral of phi over [start, u], split wherever some z_l passes a kink; midpoints are then exact.

        Layer by layer: between known splits z_l is linear, so its crossing follows from the values at both ends.
        """
        splits = torch.stack([start, u])
        for layer in range(1, self.num_layers + 1):
            for kink in self._kinks:
                distance = self._layers(splits, layer)[0] - kink
                left, right = distance[:-1], distance[1:]
                crosses = left * right < 0
                fraction = torch.where(crosses, left / torch.where(crosses, left - right, torch.ones_like(u)), 1.0)
                crossing = splits[:-1] + fraction * splits.diff(dim=0)
                splits = torch.cat([torch.stack([splits[:-1], crossing], dim=1).flatten(0, 1), splits[-1:]])
        middle = (splits[1:] + splits[:-1]) / 2
        return (self(middle) * splits.diff(dim=0)).sum(dim=0)


def _elementwise(spec: ActivationSpec, units: int, monotone: bool) -> ElementwiseActivation:
    activation = make_activation(spec, (units,), monotone=monotone)
    if not isinstance(activation, ElementwiseActivation):
        raise IllegalActivationError(
            f"a cascade takes elementwise activations only, got the group activation {spec!r}: alpha and beta scale "
            "each unit by itself, so a group activation inside the cascade would make the Jacobian asymmetric. Use "
            "GradNetM for group activations."
        )
    return activation


def _uniform(num_layers: int, units: int, low: float, high: float, *, nonnegative: bool) -> Tensor:
    """Raw parameters whose effective values are uniform in [low, high].

    Our choice: alpha in [-1/2, 1/2] is the authors' range; starting beta at 1 to 3 instead of there gains 5 dB and
    more on the 2-D fields (docs/log.md).
    """
    values = torch.empty(num_layers, units).uniform_(low, high)
    return inverse_softplus(values) if nonnegative else values
