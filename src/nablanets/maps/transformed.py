"""Transformed sums of ridge functions: modules whose potentials pass through learnable functions."""

from __future__ import annotations

import torch
from torch import Tensor

from nablanets.activations import ActivationSpec, GroupActivation
from nablanets.intervals import interval_product
from nablanets.maps.modules import ModularNetwork
from nablanets.maps.quadratic import LinearSpec
from nablanets.maps.transformation import Transformation
from nablanets.operators import GramTerm, StructuredOperator
from nablanets.serialization import savable


@savable
class GradNetTransformed(ModularNetwork):
    r"""The gradient of transformed sums of ridge functions, with a learnable transformation per module.

    With z_m = t_m (W_m x + b_m), t_m > 0, and v_m = (psi_m(z_m) - psi_m(0)) / n,

    .. math::
        F(x) = \sum_{m=1}^M \frac{n}{t_m} \rho_m(v_m) + b \cdot x \; (+ x \cdot A x / 2), \qquad
        f(x) = \sum_m \rho_m'(v_m) W_m^\top \nabla\psi_m(z_m) + b \; (+ A x),

    where psi_m sums over the n = h units of an elementwise activation, or couples them (a group activation, n = 1).
    The Jacobian is sum_m t_m rho_m' W_m^T (grad^2 psi_m) W_m + (t_m / n) rho_m'' g_m g_m^T (+ A), g_m = W_m^T grad
    psi_m. With ``monotone`` psi_m is convex and rho_m convex and nondecreasing, so it is positive semidefinite. With
    rho_m(v) = a_m v it is GradNetM.

    Args:
        features: d.
        hidden_features: h, units of each module.
        num_modules: M.
        num_sigmoids: K; rho_m' is a constant plus K sigmoids, see :class:`~.transformation.Transformation`.
        activation: any activation, elementwise or group; one set of parameters per module.
        monotone: build the gradient of a convex potential.
        linear: the linear term A: True (full rank), a rank, "diagonal", or False (none).

    Shapes:
        x ``(*, d)`` -> f(x) ``(*, d)``, potential ``(*)``, jacobian ``(*, d, d)``.

    Curvature bounds are finite for activations with bounded values and slopes.

    Raises:
        IllegalActivationError: an activation that is not increasing in a monotone net.

    Reference:
        Chaudhari, Pranav, Moura, "Gradient Networks", IEEE TSP 73 (2025), arXiv 2404.07361: the form sum_m
        rho_m(psi_m(W_m x + b_m)) and when it is convex. The family of rho_m, the normalisation by t_m, n and psi_m(0)
        (which keeps v_m near the sigmoids at any width), the linear term and the start are ours.

    >>> net = GradNetTransformed(3, 8, monotone=True)
    >>> x = torch.randn(100, 3)
    >>> net(x).shape, bool((net.jacobian(x).eigvalsh() > 0).all())
    (torch.Size([100, 3]), True)
    """

    def __init__(
        self,
        features: int,
        hidden_features: int,
        num_modules: int = 4,
        num_sigmoids: int = 4,
        activation: ActivationSpec = "wsoftmax",
        monotone: bool = False,
        linear: LinearSpec = True,
    ) -> None:
        sizes = {"hidden_features": hidden_features, "num_modules": num_modules, "num_sigmoids": num_sigmoids}
        super().__init__(features, sizes=sizes, activation=activation, monotone=monotone, linear=linear)
        self.transformation = Transformation(num_modules, num_sigmoids, monotone=monotone)
        self._norm = 1 if isinstance(self.units, GroupActivation) else hidden_features

    def _arguments(self, z: Tensor) -> Tensor:
        """v_m, (*, M)."""
        start = self._module_potentials(torch.zeros_like(self.hidden_bias))
        return (self._module_potentials(z) - start) / self._norm

    def _responses(self, z: Tensor) -> Tensor:
        return self.transformation.derivative(self._arguments(z)).unsqueeze(-1) * self.units(z)

    def _core_potential(self, x: Tensor) -> Tensor:
        rho = self.transformation(self._arguments(self._hidden(x)))
        return (self._norm / self._sharpness() * rho).sum(dim=-1)

    def _core_jacobian(self, x: Tensor) -> StructuredOperator:
        return self._core_value_and_jacobian(x)[1]

    def _core_value_and_jacobian(self, x: Tensor) -> tuple[Tensor, StructuredOperator]:
        z, sharpness = self._hidden(x), self._sharpness()
        first, second = self.transformation.derivatives(self._arguments(z))
        value, derivative = self.units.value_and_derivative(z)
        gradients = torch.einsum("...mh,mhd->...md", value, self.weight)
        coupling = GramTerm(gradients, sharpness / self._norm * second)
        terms = (*self._gram_terms(derivative, sharpness * first), coupling)
        operator = StructuredOperator(self.features, terms, positive_semidefinite=self.monotone)
        return torch.einsum("...m,...md->...d", first, gradients), operator

    def _core_envelope(self) -> tuple[Tensor, Tensor]:
        """Bounds from the slopes, and W^T diag(c) W for the coupling, with c from the bounds S of |s|.

        For elementwise s, s s^T <= (sum_j S_j) diag(S) by Cauchy and Schwarz; for a group, s s^T <= S^2 I.
        """
        sharpness = self._sharpness()
        first, second = (
            ((sharpness * low).unsqueeze(-1), (sharpness * high).unsqueeze(-1))
            for low, high in self.transformation.derivative_intervals()
        )
        bound = self.units.value_bound().to(sharpness)
        square = bound * (bound.mean(dim=-1, keepdim=True) if bound.ndim else bound)
        own = self._slope_grams(first)
        coupling = self._weighted_grams(interval_product(second, (torch.zeros_like(square), square)))
        return own[0] + coupling[0], own[1] + coupling[1]
