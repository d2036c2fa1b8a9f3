"""GradNet-C: the cascaded gradient network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from nablanets.activations import ActivationSpec, ElementwiseActivation
from nablanets.activations.base import ParameterColumns
from nablanets.activations.elementwise import Tanh, WTanh
from nablanets.intervals import interval_product
from nablanets.keywords import explain_keywords
from nablanets.maps.network import GradientNetwork, Parts, UnitsMap
from nablanets.maps.protocols import AffineParts, CascadeForm, FactoredTerm, OuterTerm, ParameterJacobian
from nablanets.maps.quadratic import LinearSpec
from nablanets.maps.ridge import RidgeCascade
from nablanets.operators import GramTerm
from nablanets.parameters import units_last
from nablanets.serialization import savable


@dataclass
class CascadeParts(Parts):
    """The letters of f(x) = W^T [a * phi(W x + delta)] + b + A x at present.

    Attributes:
        ridge: phi.
        scale, shift: a and delta, (h) or (*, h); None for 1 and 0.
    """

    ridge: RidgeCascade
    scale: Tensor | None = None
    shift: Tensor | None = None

    def arguments(self, u: Tensor) -> Tensor:
        """u + delta."""
        return u if self.shift is None else u + self.shift

    def scaled(self, value: Tensor) -> Tensor:
        """The value times a."""
        return value if self.scale is None else self.scale * value


def cascade_responses(u: Tensor, parts: CascadeParts) -> Tensor:
    """a * phi(u + delta), (*, h)."""
    return parts.scaled(parts.ridge(parts.arguments(u)))


class CascadedMap(UnitsMap[CascadeParts]):
    r"""f(x) = W^T [a * phi(W x + delta)] + b + A x with an elementwise cascade phi, and products * by unit.

    What GradNetC (a = 1, delta = 0) and a :class:`~nablanets.ConditionalGradNet` at a context share. The potential of
    the units is zero at x = 0. Abstract: a subclass has the parts.
    """

    def _responses(self, u: Tensor, parts: CascadeParts) -> Tensor:
        return cascade_responses(u, parts)

    def _units_potential(self, u: Tensor, parts: CascadeParts) -> Tensor:
        return parts.scaled(parts.ridge.antiderivative(parts.arguments(u), parts.shift)).sum(dim=-1)

    def _gram_terms(self, u: Tensor, parts: CascadeParts) -> tuple[GramTerm, ...]:
        return self._responses_and_gram_terms(u, parts)[1]

    def _responses_and_gram_terms(self, u: Tensor, parts: CascadeParts) -> tuple[Tensor, tuple[GramTerm, ...]]:
        value, slope = parts.ridge.value_and_derivative(parts.arguments(u))
        return parts.scaled(value), (GramTerm(parts.weight, parts.scaled(slope)),)

    def _units_envelope(self, parts: CascadeParts) -> tuple[Tensor, Tensor]:
        """W^T diag(bounds of a phi') W, the bounds taken over all contexts."""
        low, high = parts.ridge.derivative_interval()
        if parts.scale is not None:
            scale = parts.scale.reshape(-1, len(parts.weight))  # (contexts, h)
            low, high = interval_product((scale, scale), (low, high))
            low = low.amin(dim=0)
            high = high.amax(dim=0)
        lower = parts.weight.mT @ (low.unsqueeze(-1) * parts.weight)
        upper = parts.weight.mT @ (high.unsqueeze(-1) * parts.weight)
        return lower, upper

    def hidden(self, x: Tensor) -> Tensor:
        """a s_{L-1}(z_{L-1}): the last hidden units before their coefficients alpha_{L-1}, (*, h)."""
        parts = self._parts(x)
        u = parts.arguments(x @ parts.weight.mT)
        return parts.scaled(parts.ridge.hidden(u))

    def unit_terms(self) -> list[OuterTerm]:
        """alpha_{L-1}, (h)."""
        parts = self._parts()
        return [FactoredTerm.of(parts.ridge.outer_raw(), self.hidden, parts.weight, positive=self.monotone)]

    def unit_groups(self) -> int:
        """Each unit stands for itself."""
        return 1

    @torch.no_grad()
    def spread_units(self, x: Tensor) -> None:
        """Each unit's offset in each layer makes W x + b zero at a random one of the points (n, d)."""
        parts = self._parts()
        parts.ridge.spread(parts.arguments(x @ parts.weight.mT))

    @torch.no_grad()
    def place_units(self, weight: Tensor, x: Tensor, *, largest_spread: float | None = None) -> None:
        """Weights W (h, d), bends where the points x are, a mean slope of one; each unit has a spread of its own."""
        parts = self._parts()
        parts.weight.copy_(weight)
        gain = None if parts.scale is None else parts.scale.expand(*x.shape[:-1], -1)
        parts.ridge.place(parts.arguments(x @ parts.weight.mT), gain)

    def profiles(self, u: Tensor) -> Tensor:
        """a phi(u + delta), (nodes, h), at the mean of the contexts."""
        parts = self._parts()
        units = len(parts.weight)
        shifted = u if parts.shift is None else u + parts.shift.reshape(-1, units).mean(dim=0)
        value = parts.ridge(shifted)
        return value if parts.scale is None else parts.scale.reshape(-1, units).mean(dim=0) * value

    def profile_parameters(self) -> Iterable[nn.Parameter]:
        """All parameters of phi."""
        return self._parts().ridge.parameters()


def random_projection(units: int, features: int) -> nn.Parameter:
    """W with entries uniform in [-1, 1] / sqrt(d), stored as (features, units)."""
    bound = features**-0.5
    return nn.Parameter(units_last(torch.empty(units, features).uniform_(-bound, bound)))


@savable
@explain_keywords
class GradNetC(CascadedMap, GradientNetwork[CascadeParts]):
    r"""Cascaded gradient network (mGradNet-C if ``monotone``).

    With one shared W of shape (h, d), u = W x computed once, and elementwise products,

    .. math::
        z_0 = \beta_0 (u + b_0), \quad z_l = \beta_l (u + b_l) + \alpha_{l-1} s_{l-1}(z_{l-1}), \quad
        f(x) = W^\top [\alpha_{L-1} s_{L-1}(z_{L-1})] + b_L \; (+ A x).

    So f(x) = W^T phi(W x) + b_L + A x with phi elementwise, at any depth: the Jacobian W^T diag(phi') W + A is
    symmetric, and with ``monotone`` (alpha, beta >= 0 by softplus, increasing s, A positive definite) it is positive
    definite for every x. The potential is a sum of 1-D integrals, one per unit: split at the kinks of a piecewise
    linear s, otherwise on panels that are refined until their error is rounding (:mod:`nablanets.maps.panels`).

    Args:
        features: d.
        hidden_features: h.
        num_layers: L.
        activation: an elementwise activation. Each layer has its own parameters if it is learnable. A group
            activation is refused: with alpha, beta per unit the Jacobian would not be symmetric.
        monotone: build the gradient of a convex potential.
        linear: the linear term A: True (full rank), a rank, "diagonal", or False (none, the published net). Without
            it the Jacobian has rank at most h.

    Shapes:
        x ``(*, d)`` -> f(x) ``(*, d)``, potential ``(*)``, jacobian ``(*, d, d)``.

    Parameters without linear term and with parameter-free s: h(d + 3L) + d.

    Raises:
        IllegalActivationError: a group activation, or one that is not increasing in a monotone net.

    Reference:
        Chaudhari, Pranav, Moura, "Gradient Networks", IEEE TSP 73 (2025), arXiv 2404.07361. The form is that of the
        authors' code; the linear term, and the start of alpha and beta in the monotone net, are ours.

    >>> net = GradNetC(2, 7, activation="tanh", monotone=True, linear=False)
    >>> sum(p.numel() for p in net.parameters())
    100
    >>> net(torch.zeros(5, 3, 2)).shape, net.potential(torch.zeros(2)).shape
    (torch.Size([5, 3, 2]), torch.Size([]))
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        num_layers: int = 4,
        activation: ActivationSpec = "wtanh",
        monotone: bool = False,
        linear: LinearSpec = True,
    ) -> None:
        sizes = {"hidden_features": hidden_features, "num_layers": num_layers}
        super().__init__(features, sizes=sizes, activation=activation, monotone=monotone, linear=linear)
        self.projection = random_projection(hidden_features, features)
        spread = features**-0.5
        self.ridge = RidgeCascade(hidden_features, num_layers, activation, monotone=monotone, spread=spread)

    @property
    def weight(self) -> Tensor:
        """W, (h, d): a view of ``projection``."""
        return self.projection.mT

    def _parts(self, x: Tensor | None = None) -> CascadeParts:
        return CascadeParts(self.projection.mT, self.bias, self.linear, self.ridge)

    @torch.no_grad()
    def start_as_published(self) -> None:
        """Free scales alpha and beta from U(-1/2, 1/2) and a constant from U(-1, 1) / sqrt(d), as the authors' code."""
        self.ridge.draw_published_scales()
        self._draw_constant()

    @torch.no_grad()
    def draw_features(self, scale: float) -> None:
        """Random features: W from N(0, scale^2) and the offsets of the first layer from N(0, 1)."""
        self.projection.normal_(std=scale)
        self.ridge.bias[0].normal_()

    def parameter_jacobian(self, x: Tensor, left: Tensor) -> ParameterJacobian | None:
        r"""Of B f(x), with f = sum_k w_k phi_k(w_k . x) + b + A x; see :class:`~.protocols.HasParameterJacobian`.

        In w_kj: :math:`B (e_j \phi_k + w_k \phi_k' x_j)`; in a parameter q of phi_k:
        :math:`B w_k\, \partial\phi_k / \partial q`. The formulas are ours. None for subclasses, which may be something
        else.
        """
        points = x.mT.contiguous()  # (d, n)
        ridge = self.ridge.derivatives(self.projection.mT @ points)
        if ridge is None or type(self) is not GradNetC:
            return None
        vectors = self.projection.mT @ left.mT  # B w, (*, h, k)
        back = ridge.slope.unsqueeze(-2) * vectors.unsqueeze(-1)  # (*, h, k, n)
        in_projection = back.unsqueeze(-4) * points[:, None, None, :]  # (*, d, h, k, n)
        axes = left.mT[:, None, :, None]  # B e_j, (d, 1, k, 1)
        in_projection = torch.addcmul(in_projection, axes, ridge.value[..., None, :, None, :])
        found = [ParameterColumns(self.projection, in_projection)]
        for parameter, place in ridge.places:
            own = vectors if isinstance(place, int) else vectors.unsqueeze(-3).expand(*parameter.shape, -1)
            found.append(ParameterColumns(parameter, ridge.rows[..., place, :, :], own))
        for parameter, columns, _ in ridge.further:  # (*, h, ..., n)
            own = vectors.reshape(*vectors.shape[:-1], *[1] * (columns.ndim - vectors.ndim), -1, 1)
            found.append(ParameterColumns(parameter, columns.unsqueeze(-2) * own))
        value = vectors.mT @ ridge.value  # (*, k, n)
        return self._with_affine_columns(value, found, x, left)

    def unit_form(self) -> CascadeForm | None:
        """The cascade, if its activation has no parameters or is a weighted tanh.

        A subclass says for itself whether it still is that.
        """
        activation = cast(ElementwiseActivation, self.ridge.activations[0])
        if type(self) is not GradNetC:
            return None
        if type(activation) is WTanh:
            return CascadeForm(Tanh(), self.ridge.num_layers, weighted=True)
        return None if activation.state_dict() else CascadeForm(activation, self.ridge.num_layers)

    def affine_parts(self) -> AffineParts:
        """All but the cascade without its last alpha."""
        alpha, _, _ = self.ridge.coefficients()
        outer = self.projection * alpha[..., -1:, :]  # (d, h)
        shift = torch.zeros_like(outer[..., 0, :])
        return AffineParts(self.weight, shift, outer, self.bias, self._linear_matrix())

    def unit_parameters(self) -> tuple[Tensor, ...]:
        """alpha, beta and b of the cascade, and the weights of its activations if they are weighted."""
        return *self.ridge.coefficients(), *self.ridge.activation_weights()
