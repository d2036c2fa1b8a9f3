"""GradNet-M: the modular gradient network."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from nablanets.activations import (
    ActivationSpec,
    ElementwiseActivation,
    GroupActivation,
    GroupDerivative,
    make_activation,
)
from nablanets.maps.network import GradientNetwork
from nablanets.maps.quadratic import LinearSpec
from nablanets.operators import GramTerm, StructuredOperator
from nablanets.parameters import constrained, inverse_softplus, softplus, units_last
from nablanets.serialization import savable


@savable
class GradNetM(GradientNetwork):
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
        self.hidden_features, self.num_modules = hidden_features, num_modules
        units = make_activation(activation, (num_modules, hidden_features), monotone=monotone)
        self.units = cast("ElementwiseActivation | GroupActivation", units)
        bound = features**-0.5
        weight = torch.empty(num_modules, hidden_features, features).uniform_(-bound, bound)
        self.projection = nn.Parameter(units_last(weight))
        self.hidden_bias = nn.Parameter(torch.empty(num_modules, hidden_features).uniform_(-bound, bound))
        self.scale_raw = nn.Parameter(_initial_scale(num_modules, monotone))
        self.sharpness_raw = nn.Parameter(torch.full((num_modules,), inverse_softplus(2.0)))

    @property
    def weight(self) -> Tensor:
        """W, (M, h, d): a view of ``projection``."""
        return self.projection.movedim(0, -1)

    def _scale(self) -> Tensor:
        return constrained(self.scale_raw, nonnegative=self.monotone)

    def _sharpness(self) -> Tensor:
        return softplus(self.sharpness_raw)

    def _hidden(self, x: Tensor) -> Tensor:
        """t_m (W_m x + b_m) of all modules, (*, M, h), as one product."""
        u = (x @ self.weight.flatten(0, 1).mT).unflatten(-1, (self.num_modules, self.hidden_features))
        return self._sharpness().unsqueeze(-1) * (u + self.hidden_bias)

    def _core(self, x: Tensor) -> Tensor:
        s = self._scale().unsqueeze(-1) * self.units(self._hidden(x))
        return s.flatten(-2) @ self.weight.flatten(0, 1)

    def _core_potential(self, x: Tensor) -> Tensor:
        psi = self.units.potential(self._hidden(x))
        if not isinstance(self.units, GroupActivation):
            psi = psi.sum(dim=-1)
        return (self._scale() / self._sharpness() * psi).sum(dim=-1)

    def _core_jacobian(self, x: Tensor) -> StructuredOperator:
        return self._operator(self.units.derivative(self._hidden(x)))

    def _core_value_and_jacobian(self, x: Tensor) -> tuple[Tensor, StructuredOperator]:
        value, derivative = self.units.value_and_derivative(self._hidden(x))
        s = self._scale().unsqueeze(-1) * value
        return s.flatten(-2) @ self.weight.flatten(0, 1), self._operator(derivative)

    def _operator(self, derivative: Tensor | GroupDerivative) -> StructuredOperator:
        gain = (self._scale() * self._sharpness()).unsqueeze(-1)
        weight = self.weight.flatten(0, 1)
        terms: tuple[GramTerm, ...]
        if isinstance(derivative, GroupDerivative):
            factor = torch.einsum("...mrh,mhd->...mrd", derivative.factors, self.weight).flatten(-3, -2)
            terms = (
                GramTerm(weight, (gain * derivative.diagonal).flatten(-2)),
                GramTerm(factor, (gain * derivative.weights).flatten(-2)),
            )
        else:
            terms = (GramTerm(weight, (gain * derivative).flatten(-2)),)
        return StructuredOperator(self.features, terms, positive_semidefinite=self.monotone)

    def _core_envelope(self) -> tuple[Tensor, Tensor]:
        """Per module W^T diag(a t bounds) W, with the slope bounds of each unit, or of the group for all its units."""
        gain = (self._scale() * self._sharpness()).unsqueeze(-1)
        bounds = torch.stack([gain * b.to(gain) for b in self.units.slope_interval()])
        low, high = torch.nan_to_num(bounds, nan=0.0, posinf=torch.inf, neginf=-torch.inf).sort(dim=0).values
        if isinstance(self.units, GroupActivation) and self.units.covariance:
            spread = _covariance_bound(self.weight)
            return (low.unsqueeze(-1) * spread).sum(dim=0), (high.unsqueeze(-1) * spread).sum(dim=0)
        shape = self.weight.shape[:2]
        lower, upper = (torch.einsum("mhi,mh,mhj->ij", self.weight, b.expand(shape), self.weight) for b in (low, high))
        return lower, upper


def _covariance_bound(weight: Tensor) -> Tensor:
    """Per module a matrix above twice the covariance of the rows w_i under any probabilities, (M, d, d).

    Two hold: the Gram matrix of the centred rows, since diag(p) - p p^T <= 1/2, and diam^2 / 2, since the variance of
    numbers in an interval is at most a quarter of its squared length. The one of smaller norm is taken.
    """
    centred = weight - weight.mean(dim=1, keepdim=True)
    gram = centred.mT @ centred
    distances = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
    radius = distances.amax(dim=(1, 2)).square() / 2
    ball = radius[:, None, None] * torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    norm = torch.linalg.matrix_norm(centred.float() if weight.dtype.itemsize < 4 else centred, ord=2).square()
    return torch.where((norm < radius)[:, None, None], gram, ball)


def _initial_scale(num_modules: int, monotone: bool) -> Tensor:
    """Start of a: one if constrained, else alternating signs, so that the net starts as a difference (our choice)."""
    if monotone:
        return torch.full((num_modules,), inverse_softplus(1.0))
    return torch.tensor([1.0, -1.0] * num_modules)[:num_modules]
