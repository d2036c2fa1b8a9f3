"""GradNet-M, the modular gradient network, and what modular networks share."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nablanets.activations import (
    ActivationSpec,
    ElementwiseActivation,
    GroupActivation,
    GroupDerivative,
    make_activation,
)
from nablanets.activations.base import ParameterColumns
from nablanets.activations.group import Softmax, WSoftmax
from nablanets.intervals import Interval, interval_product
from nablanets.keywords import explain_keywords
from nablanets.maps.network import GradientNetwork, Parts
from nablanets.maps.protocols import (
    AffineParts,
    ElementwiseForm,
    FactoredTerm,
    OuterTerm,
    ParameterJacobian,
    SoftmaxForm,
    UnitForm,
)
from nablanets.maps.quadratic import LinearSpec
from nablanets.operators import GramTerm
from nablanets.parameters import constrained, inverse_softplus, softplus, through_constraint, units_last
from nablanets.serialization import savable

# Root mean square over the units of the standard deviation of t W x over the data: of units whose bends are spread...
_SPREAD = 1.35
# ... and of placed units, times (units / features)^(1/4), so that what softmax adds to the affine map is as small at
# any width.
_PLACED_SPREAD = 0.25


class UnitDerivatives(NamedTuple):
    """What the units of a modular network do at n points, for vectors B W^T.

    Attributes:
        response: r(z), (*, M, h, n).
        back: B W^T dr/dz, (*, M, h, k, n).
        found: B W^T times the derivatives of r in parameters, (*parameter.shape, k, n).
    """

    response: Tensor
    back: Tensor
    found: list[ParameterColumns]


class ModularNetwork(GradientNetwork[Parts]):
    r"""f(x) = sum_m W_m^T r_m(z_m) + b + A x with z_m = t_m (W_m x + b_m), t_m > 0, and r_m the gradient of something.

    Abstract: a subclass makes r_m out of the activation s_m = grad psi_m, whose parameters each module has for itself.
    ``sizes`` holds ``hidden_features`` and ``num_modules``, h and M. All modules are evaluated as one stacked product:
    u = W x has M h units.
    """

    def __init__(
        self, features: int, *, sizes: dict[str, int], activation: ActivationSpec, monotone: bool, linear: LinearSpec
    ) -> None:
        super().__init__(features, sizes=sizes, activation=activation, monotone=monotone, linear=linear)
        self.hidden_features = sizes["hidden_features"]
        self.num_modules = sizes["num_modules"]
        shape = (self.num_modules, self.hidden_features)
        units = make_activation(activation, shape, monotone=monotone)
        self.units = cast("ElementwiseActivation | GroupActivation", units)
        bound = features**-0.5
        self.projection = nn.Parameter(units_last(torch.empty(*shape, features).uniform_(-bound, bound)))
        self.hidden_bias = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.sharpness_raw = nn.Parameter(torch.full((self.num_modules,), inverse_softplus(2.0)))

    @property
    def weight(self) -> Tensor:
        """W, (M, h, d): a view of ``projection``."""
        return self.projection.movedim(0, -1)

    def _parts(self, x: Tensor | None = None) -> Parts:
        return Parts(self.projection.flatten(1).mT, self.bias, self.linear)

    def _sharpness(self) -> Tensor:
        """t, (M)."""
        return softplus(self.sharpness_raw)

    def _arguments(self, u: Tensor) -> Tensor:
        """z of all modules, from (*, M h) to (*, M, h)."""
        shifted = u.unflatten(-1, self.hidden_bias.shape) + self.hidden_bias
        return self._sharpness().unsqueeze(-1) * shifted

    def _hidden(self, x: Tensor) -> Tensor:
        """z at x, (*, M, h)."""
        return self._arguments(x @ self._parts().weight.mT)

    def _module_potentials(self, z: Tensor) -> Tensor:
        """psi_m(z_m), (*, M): of the group, or the sum over its units."""
        psi = self.units.potential(z)
        return psi if isinstance(self.units, GroupActivation) else psi.sum(dim=-1)

    def _module_gram_terms(self, derivative: Tensor | GroupDerivative, gain: Tensor) -> tuple[GramTerm, ...]:
        """The operator sum_m g_m W_m^T D_m W_m with D_m the derivative of s_m at z_m, for g of shape (M) or (*, M)."""
        weight = self.weight.flatten(0, 1)  # (M h, d)
        gain = gain.unsqueeze(-1)
        if not isinstance(derivative, GroupDerivative):
            return (GramTerm(weight, (gain * derivative).flatten(-2)),)
        factor = torch.einsum("...mrh,mhd->...mrd", derivative.factors, self.weight).flatten(-3, -2)
        return (
            GramTerm(weight, (gain * derivative.diagonal).flatten(-2)),
            GramTerm(factor, (gain * derivative.weights).flatten(-2)),
        )

    def _slope_grams(self, gains: Interval) -> tuple[Tensor, Tensor]:
        """Bounds of sum_m g_m W_m^T (Jacobian of s_m) W_m for every z and every g in the intervals, (M, 1)."""
        low, high = interval_product(gains, self.units.slope_interval())
        if isinstance(self.units, GroupActivation) and self.units.covariance:
            spread = _covariance_bound(self.weight)
            return (low.unsqueeze(-1) * spread).sum(dim=0), (high.unsqueeze(-1) * spread).sum(dim=0)
        return self._weighted_grams((low, high))

    def _weighted_grams(self, bounds: Interval) -> tuple[Tensor, Tensor]:
        """sum_m W_m^T diag(c_m) W_m for c at both ends; c has one number per unit, or per group for all its units."""
        shape = self.weight.shape[:2]
        lower, upper = (torch.einsum("mhi,mh,mhj->ij", self.weight, c.expand(shape), self.weight) for c in bounds)
        return lower, upper

    def parameter_jacobian(self, x: Tensor, left: Tensor) -> ParameterJacobian | None:
        r"""Of B f(x), with f = sum_m W_m^T r_m(z_m) + b + A x; see :class:`~.protocols.HasParameterJacobian`.

        With u = W x, :math:`z = t (u + b)` and :math:`G = B W^\top\, \partial r / \partial z` the derivatives are
        :math:`t\,G_k x_j + B e_j r_k` in W_kj, :math:`t\,G_k` in b_k, and :math:`\sum_k G_k (u_k + b_k)` over the units
        of a module in its t; those in the parameters of r are :math:`B W^\top \partial r`. The formulas are ours.
        """
        points = x.mT.contiguous()  # (d, n)
        products = self.projection.flatten(-2).mT @ points  # W x, (*, M h, n)
        shifted = products.unflatten(-2, self.hidden_bias.shape[-2:]) + self.hidden_bias.unsqueeze(-1)  # (*, M, h, n)
        vectors = torch.einsum("...dmh,kd->...mhk", self.projection, left)  # B w of all units
        sharpness = self._sharpness()[..., None, None]
        units = self._unit_derivatives((sharpness * shifted).movedim(-1, 0), vectors)
        if units is None:
            return None
        in_bias = sharpness.unsqueeze(-1) * units.back  # (*, M, h, k, n)
        axes = left.mT[:, None, None, :, None]  # B e_j, (d, 1, 1, k, 1)
        in_projection = in_bias.unsqueeze(-5) * points[:, None, None, None, :]  # (*, d, M, h, k, n)
        in_projection = torch.addcmul(in_projection, axes, units.response[..., None, :, :, None, :])
        in_sharpness = (units.back * shifted.unsqueeze(-2)).sum(dim=-3)  # (*, M, k, n)
        in_sharpness = through_constraint(in_sharpness, self.sharpness_raw[..., None, None], nonnegative=True)
        found = [
            *units.found,
            ParameterColumns(self.projection, in_projection),
            ParameterColumns(self.hidden_bias, in_bias),
            ParameterColumns(self.sharpness_raw, in_sharpness),
        ]
        value = vectors.flatten(-3, -2).mT @ units.response.flatten(-3, -2)  # (*, k, n)
        return self._with_affine_columns(value, found, x, left)

    @abstractmethod
    def _unit_derivatives(self, z: Tensor, vectors: Tensor) -> UnitDerivatives | None:
        """What the units do with z, (n, *, M, h) with the samples as the fast axis in memory, and B W^T, (*, M, h, k).

        None if the activation does not know the derivatives in its parameters, or a subclass may be something else.
        """

    def _activation_columns(self, parameter: Tensor, columns: Tensor, vectors: Tensor) -> Tensor:
        """From derivatives of s in a parameter, (n, *parameter.shape) or (n, *, M, h), to those of sum_k V_k s_k.

        The vectors V are (*, M, h, k), the result is (*parameter.shape, k, n).
        """
        by_unit = columns.movedim(0, -1)  # (*, M, h, ..., n)
        if isinstance(self.units, GroupActivation):  # one number for all units of a module
            return (vectors.mT @ by_unit).unsqueeze(-3)  # (*, M, 1, k, n)
        further = parameter.ndim - vectors.ndim + 1
        own = vectors.reshape(*vectors.shape[:-1], *[1] * further, -1, 1)
        return own * by_unit.unsqueeze(-2)

    def unit_groups(self) -> int:
        """The modules."""
        return self.num_modules

    @torch.no_grad()
    def spread_units(self, x: Tensor) -> None:
        """The common sharpness t gives t W x a standard deviation of 1.35 over the points (n, d)."""
        u = x @ self._parts().weight.mT
        deviation = float(u.std(dim=0).square().mean().sqrt())
        if deviation > 0:
            self.sharpness_raw.fill_(inverse_softplus(_SPREAD / deviation))

    @torch.no_grad()
    def place_units(self, weight: Tensor, x: Tensor, *, largest_spread: float | None = None) -> None:
        """Weights W (M h, d) around the mean of the points x, one sharpness t, a mean slope of one in each module."""
        deviation = (x @ weight.mT).std(dim=0)  # (M h)
        if largest_spread is None:
            spread = _PLACED_SPREAD * (len(weight) / self.features) ** 0.25
            sharpness = spread / float(deviation.square().mean().sqrt())
        else:
            sharpness = largest_spread / float(deviation.max())
        self.set_inner(weight, -weight @ x.mean(dim=0), sharpness)
        slopes = self.units.derivative(self._hidden(x))
        diagonal = slopes if isinstance(slopes, Tensor) else slopes.diagonal  # (n, M, h)
        self._set_gain(1 / (sharpness * diagonal.mean(dim=(0, 2))))

    @torch.no_grad()
    def set_inner(self, weight: Tensor, offset: Tensor, sharpness: float) -> None:
        """Let W be ``weight`` (M h, d), b be ``offset`` (M h), and t be ``sharpness`` in all modules."""
        shape = self.hidden_bias.shape  # (M, h)
        self.weight.copy_(weight.unflatten(0, shape))
        self.hidden_bias.copy_(offset.unflatten(0, shape))
        self.sharpness_raw.fill_(inverse_softplus(sharpness))

    @abstractmethod
    def _set_gain(self, gain: Tensor) -> None:
        """Let r_m be about gain_m s_m, for gains (M) > 0."""


@savable
@explain_keywords
class GradNetM(ModularNetwork):
    r"""Modular gradient network (mGradNet-M if ``monotone``).

    .. math::
        f(x) = \sum_{m=1}^{M} a_m W_m^\top s_m\bigl(t_m (W_m x + b_m)\bigr) + b \; (+ A x), \qquad t_m > 0,

    the gradient of sum_m (a_m / t_m) psi_m(t_m (W_m x + b_m)) + b.x (+ x.Ax/2), which is available in closed form.
    All modules are evaluated as one stacked product. With ``monotone`` (a_m >= 0 by softplus, convex psi_m, A
    positive definite) the Jacobian is positive definite for every x.

    Args:
        features: d.
        hidden_features: h, units of each module.
        num_modules: M.
        activation: any activation, elementwise or group (softmax, ...); one set of parameters per module.
        monotone: build the gradient of a convex potential.
        linear: the linear term A: True (full rank), a rank, "diagonal", or False (none, the published net). Without
            it the Jacobian has rank at most M h (M h - M with softmax) and softmax modules have bounded range.

    Shapes:
        x ``(*, d)`` -> f(x) ``(*, d)``, potential ``(*)``, jacobian ``(*, d, d)``.

    Parameters without linear term and with parameter-free s: M h (d + 1) + 2 M + d.

    Raises:
        IllegalActivationError: an activation that is not increasing in a monotone net.

    Reference:
        Chaudhari, Pranav, Moura, "Gradient Networks", IEEE TSP 73 (2025), arXiv 2404.07361. The form is that of the
        authors' code; the linear term and the start of a and t are ours.

    >>> net = GradNetM(2, 7, activation="softmax", linear=False)
    >>> sum(p.numel() for p in net.parameters())
    94
    >>> net.jacobian(torch.zeros(10, 2)).shape
    torch.Size([10, 2, 2])
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        num_modules: int = 4,
        activation: ActivationSpec = "wsoftmax",
        monotone: bool = False,
        linear: LinearSpec = True,
    ) -> None:
        sizes = {"hidden_features": hidden_features, "num_modules": num_modules}
        super().__init__(features, sizes=sizes, activation=activation, monotone=monotone, linear=linear)
        ones = torch.full((num_modules,), inverse_softplus(1.0))
        self.scale_raw = nn.Parameter(ones if monotone else difference_scales(num_modules))

    def _scale(self) -> Tensor:
        """a, (M)."""
        return constrained(self.scale_raw, nonnegative=self.monotone)

    def _responses(self, u: Tensor, parts: Parts) -> Tensor:
        weighted = self._scale().unsqueeze(-1) * self.units(self._arguments(u))  # (*, M, h)
        return weighted.flatten(-2)

    def _units_potential(self, u: Tensor, parts: Parts) -> Tensor:
        psi = self._module_potentials(self._arguments(u))  # (*, M)
        return (self._scale() / self._sharpness() * psi).sum(dim=-1)

    def _gram_terms(self, u: Tensor, parts: Parts) -> tuple[GramTerm, ...]:
        derivative = self.units.derivative(self._arguments(u))
        return self._module_gram_terms(derivative, self._scale() * self._sharpness())

    def _responses_and_gram_terms(self, u: Tensor, parts: Parts) -> tuple[Tensor, tuple[GramTerm, ...]]:
        value, derivative = self.units.value_and_derivative(self._arguments(u))
        scale = self._scale()
        responses = (scale.unsqueeze(-1) * value).flatten(-2)
        return responses, self._module_gram_terms(derivative, scale * self._sharpness())

    def _units_envelope(self, parts: Parts) -> tuple[Tensor, Tensor]:
        gain = (self._scale() * self._sharpness()).unsqueeze(-1)
        return self._slope_grams((gain, gain))

    def hidden(self, x: Tensor) -> Tensor:
        """s_m(t_m (W_m x + b_m)), the hidden units before their modules' coefficients a_m, (*, M, h)."""
        return self.units(self._hidden(x))

    def unit_terms(self) -> list[OuterTerm]:
        """a, (M): each of the h units of its module."""
        term = FactoredTerm.of(
            self.scale_raw,
            lambda x: self.hidden(x).flatten(-2),
            self._parts().weight,
            positive=self.monotone,
            width=self.hidden_features,
        )
        return [term]

    @torch.no_grad()
    def start_as_published(self) -> None:
        """Raw a and t from U(-1/2, 1/2) and a constant from U(-1, 1) / sqrt(d).

        That a and t have the range of the scales of GradNetC is our assumption.
        """
        self.scale_raw.uniform_(-0.5, 0.5)
        self.sharpness_raw.uniform_(-0.5, 0.5)
        self._draw_constant()

    def _set_gain(self, gain: Tensor) -> None:
        self.scale_raw.copy_(inverse_softplus(gain) if self.monotone else gain)

    def _unit_derivatives(self, z: Tensor, vectors: Tensor) -> UnitDerivatives | None:
        """r = a s."""
        known = self.units.all_derivatives(z)
        if known is None or type(self) is not GradNetM:
            return None
        value, derivative, inside = known
        value = value.movedim(0, -1)  # (*, M, h, n)
        scale = self._scale()[..., None, None]
        weighted = scale * vectors
        in_scale = vectors.mT @ value  # (*, M, k, n)
        in_scale = through_constraint(in_scale, self.scale_raw[..., None, None], nonnegative=self.monotone)
        found = [ParameterColumns(self.scale_raw, in_scale)]
        for parameter, own, _ in inside:
            found.append(ParameterColumns(parameter, self._activation_columns(parameter, own, weighted)))
        return UnitDerivatives(scale * value, times_derivative(weighted, derivative), found)

    def unit_form(self) -> UnitForm | None:
        """The activation, if it is known and has no parameters but those of a weighted softmax.

        A subclass says for itself whether it still is that.
        """
        if type(self) is GradNetM and type(self.units) is WSoftmax:
            return SoftmaxForm(self.num_modules, weighted=True)
        if type(self) is not GradNetM or self.units.state_dict():
            return None
        if isinstance(self.units, ElementwiseActivation):
            return ElementwiseForm(self.units)
        return SoftmaxForm(self.num_modules) if type(self.units) is Softmax else None

    def affine_parts(self) -> AffineParts:
        """All but the activation."""
        sharpness = self._sharpness().unsqueeze(-1)  # (M, 1)
        scale = self._scale().unsqueeze(-1)
        outer = (scale.unsqueeze(-3) * self.projection).flatten(-2)  # (d, M h)
        inner = (sharpness.unsqueeze(-3) * self.projection).flatten(-2).mT
        shift = (sharpness * self.hidden_bias).flatten(-2)
        return AffineParts(inner, shift, outer, self.bias, self._linear_matrix())

    def unit_parameters(self) -> tuple[Tensor, ...]:
        """The weights of a weighted softmax, each (M); the other activations known have none."""
        if not isinstance(self.units, WSoftmax):
            return ()
        a, b = self.units.weights()
        return a.squeeze(-1), b.squeeze(-1)


def times_derivative(vectors: Tensor, derivative: Tensor | GroupDerivative) -> Tensor:
    """Vectors (*, M, h, k) times the Jacobian of an activation at n points, module by module: (*, M, h, k, n)."""
    spread = vectors.unsqueeze(-1)
    if not isinstance(derivative, GroupDerivative):
        return spread * derivative.movedim(0, -1).unsqueeze(-2)
    result = spread * derivative.diagonal.movedim(0, -1).unsqueeze(-2)
    for factor, weight in zip(derivative.factors.unbind(-2), derivative.weights.unbind(-1), strict=True):
        units = factor.movedim(0, -1)  # (*, M, h, n)
        weighted = weight.movedim(0, -1).unsqueeze(-2) * (vectors.mT @ units)  # (*, M, k, n)
        result = torch.addcmul(result, weighted.unsqueeze(-3), units.unsqueeze(-2))
    return result


def difference_scales(num_modules: int) -> Tensor:
    """Alternating signs, so that a free net starts as a difference of convex functions (our choice).

    >>> difference_scales(3).tolist()
    [1.0, -1.0, 1.0]
    """
    return torch.tensor([1.0, -1.0] * num_modules)[:num_modules]


def _covariance_bound(weight: Tensor) -> Tensor:
    """Per module a matrix above twice the covariance of the rows w_i under any probabilities, (M, d, d).

    Two hold: the Gram matrix of the centred rows, since diag(p) - p p^T <= 1/2, and diam^2 / 2, since the variance of
    numbers in an interval is at most a quarter of its squared length. The one of smaller norm is taken.
    """
    dtype = weight.dtype
    weight = weight.to(torch.promote_types(dtype, torch.float32))  # distances and norms have no half precision
    centred = weight - weight.mean(dim=1, keepdim=True)
    gram = centred.mT @ centred
    distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
    radius = distances.amax(dim=(1, 2)).square() / 2
    ball = radius[:, None, None] * torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    norm = torch.linalg.matrix_norm(centred, ord=2).square()
    return torch.where((norm < radius)[:, None, None], gram, ball).to(dtype)
