"""GradNet-M: the modular gradient network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nablanets.activations import ActivationSpec, GroupDerivative
from nablanets.maps.modules import ModularNetwork, difference_scales
from nablanets.maps.network import AffineParts
from nablanets.maps.quadratic import LinearSpec
from nablanets.operators import StructuredOperator
from nablanets.parameters import constrained, inverse_softplus
from nablanets.serialization import savable


@savable
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
        return constrained(self.scale_raw, nonnegative=self.monotone)

    def hidden(self, x: Tensor) -> Tensor:
        """s_m(t_m (W_m x + b_m)), the hidden units before their modules' coefficients a_m, (*, M, h)."""
        return self.units(self._hidden(x))

    def affine_parts(self) -> AffineParts:
        """All but the hidden units, phi = the activation."""
        sharpness, scale = self._sharpness().unsqueeze(-1), self._scale().unsqueeze(-1)
        outer = (scale.unsqueeze(-3) * self.projection).flatten(-2)
        inner = (sharpness.unsqueeze(-3) * self.projection).flatten(-2).mT
        shift = (sharpness * self.hidden_bias).flatten(-2)
        return AffineParts(inner, shift, outer, self.bias, self._linear_matrix())

    def _responses(self, z: Tensor) -> Tensor:
        return self._scale().unsqueeze(-1) * self.units(z)

    def _core_potential(self, x: Tensor) -> Tensor:
        psi = self._module_potentials(self._hidden(x))
        return (self._scale() / self._sharpness() * psi).sum(dim=-1)

    def _core_jacobian(self, x: Tensor) -> StructuredOperator:
        return self._operator(self.units.derivative(self._hidden(x)))

    def _core_value_and_jacobian(self, x: Tensor) -> tuple[Tensor, StructuredOperator]:
        value, derivative = self.units.value_and_derivative(self._hidden(x))
        return self._combine(self._scale().unsqueeze(-1) * value), self._operator(derivative)

    def _operator(self, derivative: Tensor | GroupDerivative) -> StructuredOperator:
        terms = self._gram_terms(derivative, self._scale() * self._sharpness())
        return StructuredOperator(self.features, terms, positive_semidefinite=self.monotone)

    def _core_envelope(self) -> tuple[Tensor, Tensor]:
        gain = (self._scale() * self._sharpness()).unsqueeze(-1)
        return self._slope_grams((gain, gain))
