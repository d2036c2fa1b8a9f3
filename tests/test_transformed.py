"""Transformed sums of ridge functions: the formula, the transformation, and when curvature bounds are finite."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from nablanets import GradNetM, GradNetTransformed, constrain
from nablanets.activations import ACTIVATIONS, GroupActivation, make_activation
from nablanets.maps.transformation import Transformation

DTYPE = torch.float64


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("activation", ["softplus", "softmax", "pnorm"])
def test_it_equals_the_formula(activation, monotone):
    net = GradNetTransformed(3, 5, 2, 3, activation=activation, monotone=monotone, linear=False).double()
    sharpness = torch.nn.functional.softplus(net.sharpness_raw)
    x = torch.randn(3, dtype=DTYPE)

    def potential(x):
        total = net.bias @ x
        for m in range(2):
            psi = lambda z: net.units.potential(z).sum()  # noqa: E731
            z = sharpness[m] * (net.weight[m] @ x + net.hidden_bias[m])
            size = 1 if isinstance(net.units, GroupActivation) else 5
            v = torch.zeros(2, dtype=DTYPE)
            v[m] = 1.0
            rho = net.transformation(v * (psi(z) - psi(torch.zeros_like(z))) / size)[m]
            total = total + size / sharpness[m] * rho
        return total

    assert_close(net.potential(x), potential(x))
    assert_close(net(x), torch.func.grad(potential)(x))


def test_constant_transformations_give_the_modular_net():
    modular = GradNetM(3, 5, 2, activation="softplus").double()
    net = GradNetTransformed(3, 5, 2, activation="softplus").double()
    state = modular.state_dict()
    scale = state.pop("scale_raw")
    net.load_state_dict(state, strict=False)
    with torch.no_grad():
        net.transformation.level_raw.copy_(scale)
        net.transformation.step_raw.zero_()
    x = torch.randn(10, 3, dtype=DTYPE)
    assert_close(net(x), modular(x))
    assert_close(net.jacobian(x).dense(), modular.jacobian(x).dense())
    assert_close(torch.stack(net.curvature_bounds())[0], torch.stack(modular.curvature_bounds())[0])


@pytest.mark.parametrize("monotone", [False, True])
def test_derivatives_of_the_transformation(monotone):
    rho = Transformation(3, 4, monotone=monotone).double()
    with torch.no_grad():
        for p in rho.parameters():
            p.mul_(2).add_(torch.randn_like(p))
    v = torch.linspace(-30, 30, 601, dtype=DTYPE).unsqueeze(1).expand(-1, 3)
    first, second = rho.derivatives(v)
    assert_close(first, rho.derivative(v))
    derivative = lambda f: torch.func.grad(lambda z: f(z).sum())(v)  # noqa: E731
    assert_close(derivative(rho), first)
    assert_close(derivative(rho.derivative), second)
    for value, (low, high) in zip((first, second), rho.derivative_intervals(), strict=True):
        assert bool((value >= low - 1e-12).all())
        assert bool((value <= high + 1e-12).all())
    if monotone:
        assert bool((first > 0).all())
        assert bool((second >= 0).all())
    else:
        assert bool((second < 0).any())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_bounds_hold(name):
    activation = make_activation(name, (4, 5)).double()
    with torch.no_grad():
        for p in activation.parameters():
            p.add_(torch.randn_like(p))
    bound = activation.value_bound().to(DTYPE)
    if not bool(torch.isfinite(bound).all()):
        return
    largest = torch.zeros(4, 5, dtype=DTYPE)
    for spread in (0.1, 1.0, 10.0, 1000.0):
        s = activation(spread * torch.randn(500, 4, 5, dtype=DTYPE))
        size = s.norm(dim=-1, keepdim=True) if isinstance(activation, GroupActivation) else s.abs()
        assert bool((size <= bound + 1e-12).all())
        largest = torch.maximum(largest, size.amax(0).expand(4, 5))
    if name in ("tanh", "sigmoid", "sine", "softmax", "radial"):
        assert bool((largest > 0.9 * bound).all())  # and are attained


@pytest.mark.parametrize("monotone", [False, True])
def test_curvature_bounds_are_finite_where_values_and_slopes_are(monotone):
    for activation in ("tanh", "softmax", "wsoftmax", "radial", "pnorm"):
        net = GradNetTransformed(3, 6, 3, activation=activation, monotone=monotone).double()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.5).add_(0.3 * torch.randn_like(p))
            lower, upper = net.curvature_bounds()
            eigenvalues = net.jacobian(2 * torch.randn(2000, 3, dtype=DTYPE)).eigvalsh()
        assert float(lower) <= float(eigenvalues.min())
        assert float(eigenvalues.max()) <= float(upper) < float("inf")
    assert torch.isinf(GradNetTransformed(3, 6, activation="softplus").curvature_bounds()[1])
    held = constrain(GradNetTransformed(3, 6), lower=0.0, upper=1.0)
    eigenvalues = held.jacobian(torch.randn(200, 3)).eigvalsh()
    assert float(eigenvalues.min()) >= -1e-6
    assert float(eigenvalues.max()) <= 1 + 1e-6


def test_a_transformation_learns_a_radial_profile_from_quadratic_modules():
    """With psi = |z|^2 / 2 a modular net is linear; its transformation makes any profile of the radius."""
    torch.manual_seed(0)
    x = 2 * torch.rand(500, 2) - 1
    g = x * torch.sigmoid(5 * (x.square().sum(-1, keepdim=True) - 0.5))
    errors = []
    for cls in (GradNetM, GradNetTransformed):
        net = cls(2, 4, 1, activation="identity", monotone=True)
        optimizer = torch.optim.Adam(net.parameters(), 3e-2)
        for _ in range(800):
            optimizer.zero_grad()
            loss = (net(x) - g).square().sum(-1).mean()
            loss.backward()
            optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[1] < 0.01 * errors[0]


@pytest.mark.parametrize("activation", ["wsoftmax", "softplus"])
def test_inverse_round_trips(activation):
    net = GradNetTransformed(4, 6, 2, activation=activation, monotone=True).double()
    x = 2 * torch.randn(20, 4, dtype=DTYPE)
    with torch.no_grad():
        assert_close(net.inverse(net(x)), x, rtol=1e-9, atol=1e-9)
