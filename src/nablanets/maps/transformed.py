"""Transformed sums of ridge functions: modules whose potentials pass through learnable functions."""

from __future__ import annotations

import torch
from torch import Tensor

from nablanets.activations import ActivationSpec, GroupActivation
from nablanets.activations.base import ParameterColumns
from nablanets.intervals import Interval, interval_product
from nablanets.keywords import explain_keywords
from nablanets.maps.modular import ModularNetwork, UnitDerivatives, times_derivative
from nablanets.maps.network import Parts
from nablanets.maps.protocols import FactoredTerm, OuterTerm
from nablanets.maps.quadratic import LinearSpec
from nablanets.maps.transformation import Transformation
from nablanets.operators import GramTerm
from nablanets.serialization import savable

# Steps of rho' beside its level where units are placed to be affine.
_PLACED_STEPS = 0.01


@savable
@explain_keywords
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

    def _potentials(self, z: Tensor) -> Tensor:
        """v_m, (*, M)."""
        start = self._module_potentials(torch.zeros_like(self.hidden_bias))
        return (self._module_potentials(z) - start) / self._norm

    def _responses(self, u: Tensor, parts: Parts) -> Tensor:
        z = self._arguments(u)  # (*, M, h)
        slope = self.transformation.derivative(self._potentials(z))  # (*, M)
        return (slope.unsqueeze(-1) * self.units(z)).flatten(-2)

    def _units_potential(self, u: Tensor, parts: Parts) -> Tensor:
        rho = self.transformation(self._potentials(self._arguments(u)))
        return (self._norm / self._sharpness() * rho).sum(dim=-1)

    def _gram_terms(self, u: Tensor, parts: Parts) -> tuple[GramTerm, ...]:
        return self._responses_and_gram_terms(u, parts)[1]

    def _responses_and_gram_terms(self, u: Tensor, parts: Parts) -> tuple[Tensor, tuple[GramTerm, ...]]:
        z = self._arguments(u)
        sharpness = self._sharpness()
        first, second = self.transformation.derivatives(self._potentials(z))  # (*, M)
        value, derivative = self.units.value_and_derivative(z)
        gradients = torch.einsum("...mh,mhd->...md", value, self.weight)
        coupling = GramTerm(gradients, sharpness / self._norm * second)
        responses = (first.unsqueeze(-1) * value).flatten(-2)
        return responses, (*self._module_gram_terms(derivative, sharpness * first), coupling)

    def _unit_derivatives(self, z: Tensor, vectors: Tensor) -> UnitDerivatives | None:
        """r = rho'(v) s with v = (psi(z) - psi(0)) / n, so dr = rho' ds + s (rho'' dv + d rho') and dv/dz = s / n."""
        inside = self._activation_derivatives(z)
        if inside is None or type(self) is not GradNetTransformed:
            return None
        value, derivative = self.units.value_and_derivative(z)
        value = value.movedim(0, -1)  # (*, M, h, n)
        v = self._potentials(z)  # (n, *, M)
        first, second = (part.movedim(0, -1) for part in self.transformation.derivatives(v))  # (*, M, n)
        gradients = vectors.mT @ value  # B W^T s of each module, (*, M, k, n)
        bend = (second / self._norm).unsqueeze(-2) * gradients  # (*, M, k, n)
        back = first[..., None, None, :] * times_derivative(vectors, derivative)
        back = torch.addcmul(back, bend.unsqueeze(-3), value.unsqueeze(-2))
        modules = first.shape[:-1]
        found = []
        for parameter, of_value, of_potential in inside:
            columns = self._activation_columns(parameter, of_value, vectors)  # (*parameter.shape, k, n)
            further = [1] * (parameter.ndim - len(modules))
            slope = first.reshape(*modules, *further, 1, -1)
            through = bend.reshape(*modules, *further, *bend.shape[-2:])
            change = of_potential.movedim(0, -1).unsqueeze(-2)
            found.append(ParameterColumns(parameter, slope * columns + through * change))
        for parameter, of_slope, _ in self.transformation.parameter_columns(v):
            columns = of_slope.movedim(0, -1).unsqueeze(-2)  # (*, M, 1, n) or (*, M, K, 1, n)
            further = [1] * (parameter.ndim - len(modules))
            own = gradients.reshape(*modules, *further, *gradients.shape[-2:])
            found.append(ParameterColumns(parameter, own * columns))
        return UnitDerivatives(first.unsqueeze(-2) * value, back, found)

    def _activation_derivatives(self, z: Tensor) -> list[tuple[Tensor, Tensor, Tensor]] | None:
        """For each parameter of the activation, the derivatives of s(z) and of psi(z) - psi(0).

        The latter are (n, *parameter.shape). None if one is not known.
        """
        of_value = self.units.parameter_columns(z)
        of_potential = self.units.potential_columns(z)
        at_zero = self.units.potential_columns(torch.zeros_like(self.hidden_bias))
        if of_value is None or of_potential is None or at_zero is None:
            return None
        triples = []
        for own, potential, start in zip(of_value, of_potential, at_zero, strict=True):
            change = (potential.columns - start.columns).reshape(len(z), *own.parameter.shape)
            triples.append((own.parameter, own.columns, change))
        return triples

    def unit_terms(self) -> list[OuterTerm]:
        """a_0, (M), and a_k, (M K): the coefficients of rho_m'."""
        rows = self._parts().weight  # (M h, d)
        width = self.hidden_features
        level = FactoredTerm.of(
            self.transformation.level_raw,
            lambda x: self.units(self._hidden(x)).flatten(-2),
            rows,
            positive=self.monotone,
            width=width,
        )
        count = self.transformation.step_raw.shape[1]  # K
        repeated = self.weight.unsqueeze(1).expand(-1, count, -1, -1)  # (M, K, h, d)
        steps = FactoredTerm.of(
            self.transformation.step_raw, self._stepped, repeated.flatten(0, 2), positive=self.monotone, width=width
        )
        return [level, steps]

    def _stepped(self, x: Tensor) -> Tensor:
        """sigma(q_k v_m + c_k) s_m, from (*, d) to (*, M K h)."""
        z = self._hidden(x)
        sigmoids = self.transformation.sigmoids(self._potentials(z))  # (*, M, K)
        return (sigmoids.unsqueeze(-1) * self.units(z).unsqueeze(-2)).flatten(-3)

    def _set_gain(self, gain: Tensor) -> None:
        """rho' nearly constant: the steps are small beside the level, so that they can learn."""
        level = gain
        steps = (_PLACED_STEPS * gain).unsqueeze(-1).expand_as(self.transformation.step_raw)
        self.transformation.set_coefficients(level, steps)

    def _units_envelope(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Bounds from the slopes, and W^T diag(c) W for the coupling, with c from the bounds S of |s|.

        For elementwise s, s s^T <= (sum_j S_j) diag(S) by Cauchy and Schwarz; for a group, s s^T <= S^2 I.
        """
        sharpness = self._sharpness()
        first_bounds, second_bounds = self.transformation.derivative_intervals()  # each a pair of (M)
        first = _times(sharpness, first_bounds)
        second = _times(sharpness, second_bounds)
        bound = self.units.value_bound().to(sharpness)
        square = bound * (bound.mean(dim=-1, keepdim=True) if bound.ndim else bound)
        own = self._slope_grams(first)
        coupling = self._weighted_grams(interval_product(second, (torch.zeros_like(square), square)))
        return own[0] + coupling[0], own[1] + coupling[1]


def _times(factor: Tensor, bounds: Interval) -> Interval:
    """Bounds (M) times factors (M) > 0, as (M, 1)."""
    low, high = bounds
    return (factor * low).unsqueeze(-1), (factor * high).unsqueeze(-1)
