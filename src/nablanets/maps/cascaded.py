"""GradNet-C: the cascaded gradient network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nablanets.activations import ActivationSpec
from nablanets.maps.network import AffineParts, GradientNetwork
from nablanets.maps.quadratic import LinearSpec
from nablanets.maps.ridge import RidgeCascade
from nablanets.operators import GramTerm, StructuredOperator
from nablanets.parameters import units_last
from nablanets.serialization import savable


@savable
class GradNetC(GradientNetwork):
    r"""Cascaded gradient network (mGradNet-C if ``monotone``).

    With one shared W of shape (h, d), u = W x computed once, and elementwise products,

    .. math::
        z_0 = \beta_0 (u + b_0), \quad z_l = \beta_l (u + b_l) + \alpha_{l-1} s_{l-1}(z_{l-1}), \quad
        f(x) = W^\top [\alpha_{L-1} s_{L-1}(z_{L-1})] + b_L \; (+ A x).

    So f(x) = W^T phi(W x) + b_L + A x with phi elementwise, at any depth: the Jacobian W^T diag(phi') W + A is
    symmetric, and with ``monotone`` (alpha, beta >= 0 by softplus, increasing s, A positive definite) it is positive
    definite for every x. The potential is a sum of 1-D integrals, one per unit: exact for piecewise linear s, by
    32-point Gauss-Legendre quadrature otherwise (error at rounding level for smooth s and moderate |W x|).

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
        bound = features**-0.5
        self.projection = nn.Parameter(units_last(torch.empty(hidden_features, features).uniform_(-bound, bound)))
        self.ridge = RidgeCascade(hidden_features, num_layers, activation, monotone=monotone, spread=bound)

    @property
    def weight(self) -> Tensor:
        """W, (h, d): a view of ``projection``."""
        return self.projection.mT

    def hidden(self, x: Tensor) -> Tensor:
        """The last hidden units before their coefficients alpha_{L-1}, (*, h)."""
        return self.ridge.hidden(x @ self.weight.mT)

    def affine_parts(self) -> AffineParts:
        """All but the hidden units, phi = :meth:`RidgeCascade.hidden`."""
        outer = self.projection * self.ridge.coefficients()[0][..., -1:, :]
        return AffineParts(self.weight, torch.zeros_like(outer[..., 0, :]), outer, self.bias, self._linear_matrix())

    def _core(self, x: Tensor) -> Tensor:
        return self.ridge(x @ self.weight.mT) @ self.weight

    def _core_potential(self, x: Tensor) -> Tensor:
        return self.ridge.antiderivative(x @ self.weight.mT).sum(dim=-1)

    def _core_jacobian(self, x: Tensor) -> StructuredOperator:
        return self._operator(self.ridge.derivative(x @ self.weight.mT))

    def _core_value_and_jacobian(self, x: Tensor) -> tuple[Tensor, StructuredOperator]:
        value, slope = self.ridge.value_and_derivative(x @ self.weight.mT)
        return value @ self.weight, self._operator(slope)

    def _operator(self, slope: Tensor) -> StructuredOperator:
        return StructuredOperator(self.features, (GramTerm(self.weight, slope),), positive_semidefinite=self.monotone)

    def _core_envelope(self) -> tuple[Tensor, Tensor]:
        """W^T diag(bounds of phi') W."""
        lower, upper = (self.weight.mT @ (b.unsqueeze(-1) * self.weight) for b in self.ridge.derivative_interval())
        return lower, upper

    def quadrature_gap(self, x: Tensor) -> Tensor:
        return self.ridge.quadrature_gap(x @ self.weight.mT).sum(dim=-1)

    def _core_along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        u, v = x @ self.weight.mT, p @ self.weight.mT
        return lambda t: (self.ridge(u + t.unsqueeze(-1) * v) * v).sum(dim=-1)
