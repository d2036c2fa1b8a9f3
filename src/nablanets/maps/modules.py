"""What the modular networks share: stacked modules of hidden units, evaluated as one product."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
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
from nablanets.intervals import Interval, interval_product
from nablanets.maps.network import GradientNetwork
from nablanets.maps.quadratic import LinearSpec
from nablanets.operators import GramTerm
from nablanets.parameters import inverse_softplus, softplus, units_last


class ModularNetwork(GradientNetwork):
    r"""f(x) = sum_m W_m^T r_m(z_m) + b + A x with z_m = t_m (W_m x + b_m), t_m > 0, and r_m the gradient of something.

    Abstract: a subclass makes r_m out of the activation s_m = grad psi_m, whose parameters each module has for itself.
    ``sizes`` holds ``hidden_features`` and ``num_modules``, h and M.
    """

    def __init__(
        self, features: int, *, sizes: dict[str, int], activation: ActivationSpec, monotone: bool, linear: LinearSpec
    ) -> None:
        super().__init__(features, sizes=sizes, activation=activation, monotone=monotone, linear=linear)
        self.hidden_features, self.num_modules = sizes["hidden_features"], sizes["num_modules"]
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

    def _sharpness(self) -> Tensor:
        return softplus(self.sharpness_raw)

    def _project(self, x: Tensor) -> Tensor:
        """W_m x of all modules, (*, M, h), as one product."""
        return (x @ self.weight.flatten(0, 1).mT).unflatten(-1, (self.num_modules, self.hidden_features))

    def _hidden(self, x: Tensor) -> Tensor:
        """t_m (W_m x + b_m) of all modules, (*, M, h)."""
        return self._sharpness().unsqueeze(-1) * (self._project(x) + self.hidden_bias)

    @abstractmethod
    def _responses(self, z: Tensor) -> Tensor:
        """r_m(z_m), (*, M, h)."""

    def _combine(self, responses: Tensor) -> Tensor:
        """sum_m W_m^T r_m."""
        return responses.flatten(-2) @ self.weight.flatten(0, 1)

    def _core(self, x: Tensor) -> Tensor:
        return self._combine(self._responses(self._hidden(x)))

    def _core_along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        z, v = self._hidden(x), self._project(p)
        step = self._sharpness().unsqueeze(-1) * v
        return lambda t: (self._responses(z + t[..., None, None] * step) * v).sum(dim=(-2, -1))

    def _module_potentials(self, z: Tensor) -> Tensor:
        """psi_m(z_m), (*, M): of the group, or the sum over its units."""
        psi = self.units.potential(z)
        return psi if isinstance(self.units, GroupActivation) else psi.sum(dim=-1)

    def _gram_terms(self, derivative: Tensor | GroupDerivative, gain: Tensor) -> tuple[GramTerm, ...]:
        """The operator sum_m g_m W_m^T D_m W_m with D_m the derivative of s_m at z_m, for g of shape (M) or (*, M)."""
        weight, gain = self.weight.flatten(0, 1), gain.unsqueeze(-1)
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
