"""The scalar cascade inside GradNet-C: phi, its derivative and its antiderivative, elementwise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nablanets.activations import ActivationSpec, ElementwiseActivation, make_activation
from nablanets.activations.base import ParameterColumns, TwoWeights
from nablanets.activations.elementwise import WTanh
from nablanets.errors import IllegalActivationError
from nablanets.intervals import interval_product
from nablanets.maps.panels import integral, panels_for_all
from nablanets.parameters import constrained, inverse_softplus

# Standard deviation of beta (u + b), summed over the layers, of units that are placed: a weighted tanh is linear there.
_PLACED_SPREAD = 1.5


class CascadeDerivatives(NamedTuple):
    """phi(u) and its derivatives, unit by unit.

    Attributes:
        value, slope: phi(u) and phi'(u), (*, h, n).
        rows: the derivatives in all parameters of shape (L, h) or (h), (*, rows, h, n).
        places: these parameters, and where their rows are.
        further: those in parameters of the activations of shape (h, ...), (*, h, ..., n).
    """

    value: Tensor
    slope: Tensor
    rows: Tensor
    places: list[tuple[Tensor, slice | int]]
    further: list[ParameterColumns]


class RidgeCascade(nn.Module):
    r"""h functions of one variable, phi(u) = alpha_{L-1} s_{L-1}(z_{L-1}) with the cascade

    .. math:: z_0 = \beta_0 (u + b_0), \qquad z_l = \beta_l (u + b_l) + \alpha_{l-1} s_{l-1}(z_{l-1}).

    Increasing if ``monotone`` (alpha, beta >= 0 by softplus and increasing s). All methods act on (*, h).
    """

    _edges: Tensor | None

    def __init__(
        self, units: int, num_layers: int, activation: ActivationSpec, *, monotone: bool, spread: float
    ) -> None:
        super().__init__()
        self.num_layers, self.monotone = num_layers, monotone
        layers = [_elementwise(activation, units, monotone) for _ in range(num_layers)]
        self.activations = nn.ModuleList(layers)
        self._kinks = layers[0].kinks
        self.register_buffer("_edges", None, persistent=False)
        self.bias = nn.Parameter(torch.empty(num_layers, units).uniform_(-spread, spread))
        low = 0.01 if monotone else -0.5
        self.alpha_raw = nn.Parameter(_uniform(num_layers, units, low, 0.5, nonnegative=monotone))
        self.beta_raw = nn.Parameter(_uniform(num_layers, units, 1.0, 3.0, nonnegative=monotone))

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, beta and b, each (L, h)."""
        return *self._scales(), self.bias

    def activation_weights(self) -> tuple[Tensor, ...]:
        """The two weights of weighted tanh, each (L, h); nothing for activations without parameters."""
        weighted = [s.weights() for s in self.activations if isinstance(s, WTanh)]
        if not weighted:
            return ()
        of_tanh = torch.stack([a for a, _ in weighted], dim=-2)
        of_rest = torch.stack([b for _, b in weighted], dim=-2)
        return of_tanh, of_rest

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

    def derivatives(self, u: Tensor) -> CascadeDerivatives | None:
        r"""The derivatives of phi(u) in everything, by one sweep forth and one back; see :class:`CascadeDerivatives`.

        With :math:`c_l` the derivative of phi in :math:`\alpha_l s_l`, which is 1 in the last layer, and
        :math:`e_l = c_l \alpha_l s_l'(z_l)` that in z_l, so that :math:`c_{l-1} = e_l`, the derivatives are
        :math:`c_l s_l` in alpha_l, :math:`e_l (u + b_l)` in beta_l, :math:`e_l \beta_l` in b_l, and
        :math:`c_l \alpha_l\, \partial s_l` in the parameters of s_l; and :math:`\phi' = \sum_l e_l \beta_l`.

        Args:
            u: (*, h, n), where * are leading dimensions that the parameters have, too.

        Returns None if an activation does not know its own.
        """
        alpha, beta = self._scales()
        u = u.movedim(-1, 0)  # (n, *, h), as activations take it, with the samples as the fast axis in memory
        layers: list[tuple[Tensor, Tensor, list[ParameterColumns]]] = []
        shifted: list[Tensor] = []
        value = torch.zeros_like(u)
        for layer, s in enumerate(cast(Iterable[ElementwiseActivation], self.activations)):
            shifted.append(u + self.bias[..., layer, :])
            z = torch.addcmul(value, beta[..., layer, :], shifted[layer])
            known = s.all_derivatives(z)
            if known is None:
                return None
            layers.append(known)
            value = alpha[..., layer, :] * known[0]
        in_alpha, in_beta, in_bias = [], [], []
        inside: list[ParameterColumns] = []
        back = torch.ones_like(alpha[..., -1, :])  # c
        for layer in reversed(range(self.num_layers)):
            activated, slope, own = layers[layer]
            scaled = back * alpha[..., layer, :]
            weighted = []
            for parameter, columns, _ in own:
                further = columns.ndim - u.ndim
                weighted.append(ParameterColumns(parameter, _times(scaled, columns, further)))
            inside = weighted + inside
            in_alpha.append(back * activated)
            back = scaled * slope  # e
            in_beta.append(back * shifted[layer])
            in_bias.append(back * beta[..., layer, :])
        in_layers = [columns[::-1] for columns in (in_bias, in_alpha, in_beta)]
        return self._collected(value, in_layers, inside)

    def _collected(
        self, value: Tensor, in_layers: list[list[Tensor]], inside: list[ParameterColumns]
    ) -> CascadeDerivatives:
        """All arrays (n, *, h), layer by layer of b, alpha and beta and then of the activations, as one.

        One array is multiplied by the vectors of a network in one operation, where each operation costs more than the
        arithmetic in it.
        """
        like_units = [own for own in inside if own.columns.ndim == value.ndim]
        others = [own for own in inside if own.columns.ndim != value.ndim]
        rows = [row for columns in in_layers for row in columns]
        rows += [own.columns for own in like_units]
        stacked = torch.stack([row.movedim(0, -1) for row in rows], dim=-3)  # (*, q, h, n)
        count = self.num_layers
        if self.monotone:
            slopes = torch.sigmoid(torch.cat([self.alpha_raw, self.beta_raw], dim=-2))
            stacked[..., count : 3 * count, :, :].mul_(slopes.unsqueeze(-1))
        places: list[tuple[Tensor, slice | int]] = []
        for k, parameter in enumerate((self.bias, self.alpha_raw, self.beta_raw)):
            places.append((parameter, slice(k * count, (k + 1) * count)))
        for k, own in enumerate(like_units, start=3 * count):
            places.append((own.parameter, k))
        slope = stacked[..., :count, :, :].sum(dim=-3)
        further = [ParameterColumns(parameter, columns.movedim(0, -1)) for parameter, columns, _ in others]
        return CascadeDerivatives(value.movedim(0, -1), slope, stacked, places, further)

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
    def set_unit_scales(self) -> None:
        """alpha = beta = 1."""
        raw = inverse_softplus if self.monotone else torch.as_tensor
        self.alpha_raw.copy_(raw(torch.ones_like(self.alpha_raw)))
        self.beta_raw.copy_(raw(torch.ones_like(self.beta_raw)))

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
        """The integral of phi from ``start`` (0 if None) to u, to rounding; its derivatives in u and start are phi.

        Split at all kinks where s is piecewise linear, else on panels that resolve phi: see
        :mod:`nablanets.maps.panels`.
        """
        if self._kinks:
            return self._piecewise_linear_integral(torch.zeros_like(u) if start is None else start.expand_as(u), u)
        return integral(self, u, start, edges=self._edges)

    def fix_panels(self) -> None:
        """Choose the panels of the antiderivative now; see :func:`fix_panels`."""
        if not self._kinks:
            self._edges = panels_for_all(self)

    def bends(self, u: Tensor) -> list[Tensor]:
        """z_l minus each argument at which s bends, layer by layer; for :mod:`nablanets.maps.panels`."""
        alpha, beta = self._scales()
        distances = []
        value = torch.zeros_like(u)
        for layer, s in enumerate(cast(Iterable[ElementwiseActivation], self.activations)):
            z = torch.addcmul(value, beta[layer], u + self.bias[layer])
            value = alpha[layer] * s(z)
            distances += [z - bend for bend in s.bends()]
        return distances

    def scale(self) -> Tensor:
        """One more than the largest offset of each unit, (h)."""
        return 1 + self.bias.abs().amax(dim=0)

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


def _times(weight: Tensor, columns: Tensor, further: int) -> Tensor:
    """Weights of units, (n, *, h) or (*, h), times derivatives in parameters of further dimensions, (n, *, h, ...)."""
    return weight.reshape(*weight.shape, *[1] * further) * columns


def fix_panels(net: nn.Module) -> None:
    """Choose the panels of all cascades in a network from their parameters, for all arguments.

    Exporters ask for it, since a graph must be static. From then on the parameters must stay as they are.
    """
    for part in net.modules():
        if isinstance(part, RidgeCascade):
            part.fix_panels()


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
