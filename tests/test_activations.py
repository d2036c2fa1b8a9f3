"""Activations: potentials, derivatives, slope intervals, stability; refusals."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from nablanets import ElementwiseActivation, GradNetC, GradNetM, load, register_activation, verify
from nablanets.activations import ACTIVATIONS, GroupActivation, make_activation
from nablanets.activations.elementwise import Softplus
from nablanets.errors import IllegalActivationError, ModelFileError, UnknownNameError

SPECS = [
    (name, monotone)
    for name in ACTIVATIONS
    for monotone in (False, True)
    if not monotone or ACTIVATIONS[name]((1,), monotone=True).increasing
]
UNITS = 6


def _randomised(name: str, monotone: bool):
    activation = make_activation(name, (UNITS,), monotone=monotone).double()
    with torch.no_grad():
        for parameter in activation.parameters():
            parameter.add_(torch.randn_like(parameter))
    return activation


@pytest.mark.parametrize(("name", "monotone"), SPECS)
def test_s_is_the_gradient_of_psi_and_the_jacobian_is_its_derivative(name, monotone):
    s = _randomised(name, monotone)
    z = torch.linspace(-7, 7, 20 * UNITS, dtype=torch.float64).reshape(UNITS, 20).T
    assert_close(torch.func.grad(lambda z: s.potential(z).sum())(z), s(z), rtol=1e-9, atol=1e-9)
    jacobian = torch.func.vmap(torch.func.jacrev(s))(z)
    derivative = s.derivative(z)
    if isinstance(s, GroupActivation):
        dense = torch.diag_embed(derivative.diagonal) + torch.einsum(
            "nri,nr,nrj->nij", derivative.factors, derivative.weights, derivative.factors
        )
    else:
        dense = torch.diag_embed(derivative)
        assert_close(s.value_and_derivative(z), (s(z), derivative))
    assert_close(dense, jacobian, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "monotone"), SPECS)
def test_slope_interval_holds(name, monotone):
    s = _randomised(name, monotone)
    z = 4 * torch.randn(400, UNITS, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(torch.func.vmap(torch.func.jacrev(s))(z))
    lower, upper = s.slope_interval()
    assert bool((lower <= upper).all())
    if lower.numel() == UNITS:  # one interval per unit
        slopes = s.derivative(z)
        assert bool((slopes >= lower - 1e-12).all())
        assert bool((slopes <= upper + 1e-12).all())
    assert float(eigenvalues.min()) >= float(lower.min()) - 1e-9
    assert float(eigenvalues.max()) <= float(upper.max()) + 1e-9
    if monotone:
        assert float(lower.min()) >= 0


def test_slope_intervals_are_tight():
    for name in ("tanh", "sigmoid", "softplus", "squareplus", "relu", "sine", "gaussian"):
        s = make_activation(name)
        slopes = s.derivative(torch.linspace(-40, 40, 80_001, dtype=torch.float64))
        lower, upper = s.slope_interval()
        assert_close(slopes.min(), lower.double(), rtol=0, atol=2e-3)
        assert_close(slopes.max(), upper.double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize(("name", "monotone"), SPECS)
@pytest.mark.parametrize("size", [0.0, 1e-8, 1e2, 1e4])
def test_stable_for_large_and_small_arguments_in_float32(name, monotone, size):
    s = make_activation(name, (UNITS,), monotone=monotone)
    z = (size * torch.tensor([[1.0, -1.0, 0.5, -0.3, 0.0, 1.0]])).requires_grad_()
    values = s(z), s.potential(z)
    exact = s.double()
    wide = exact(z.double()), exact.potential(z.double())
    for value, reference in zip(values, wide, strict=True):
        assert bool(torch.isfinite(value).all())
        assert_close(value.double(), reference, rtol=1e-4, atol=1e-5)
    gradient = torch.autograd.grad(s.float()(z).sum() + s.potential(z).sum(), z)[0]
    assert bool(torch.isfinite(gradient).all())


@given(st.floats(-50, 50))
def test_softplus_potential_is_the_dilogarithm(z):
    exact = -mpmath.polylog(2, -mpmath.exp(z))
    value = float(Softplus().potential(torch.tensor(z, dtype=torch.float64)))
    assert value == pytest.approx(float(exact.real), rel=1e-13, abs=1e-15)


def test_non_increasing_activations_are_refused_in_monotone_maps():
    for name in ("sine", "gaussian"):
        for cls in (GradNetC, GradNetM):
            with pytest.raises(
                IllegalActivationError, match=r"monotone map needs an increasing activation.*Choose one of"
            ):
                cls(2, 4, activation=name, monotone=True)


@pytest.mark.parametrize("name", [n for n, c in ACTIVATIONS.items() if issubclass(c, GroupActivation)])
def test_group_activations_are_refused_in_the_cascade(name):
    with pytest.raises(IllegalActivationError, match=r"elementwise activations only.*Use GradNetM"):
        GradNetC(2, 4, activation=name)


def test_unknown_activation_gets_the_nearest_names():
    with pytest.raises(UnknownNameError, match="'softplus'"):
        GradNetC(2, 4, activation="sofplus")
    with pytest.raises(IllegalActivationError, match="name, a pair"):
        GradNetC(2, 4, activation=3)
    with pytest.raises(IllegalActivationError, match="options"):
        GradNetC(2, 4, activation=("tanh", {"slope": 2}))


class Arctan(ElementwiseActivation):
    slopes = (0.0, 1.0)

    def forward(self, z):
        return torch.atan(z)

    def potential(self, z):
        return z * torch.atan(z) - torch.log1p(z.square()) / 2

    def derivative(self, z):
        return 1 / (1 + z.square())


def test_an_activation_of_the_users_own(tmp_path):
    for net in (GradNetC(3, 6, activation=Arctan, monotone=True), GradNetM(3, 6, activation=Arctan, monotone=True)):
        assert verify.certificate(net.double()).passed
        with pytest.raises(ModelFileError, match="register_activation"):
            net.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
    register_activation("arctan-of-the-test", Arctan)
    try:
        net = GradNetC(3, 6, activation=Arctan, monotone=True)
        net.save(tmp_path / "m.safetensors")
        assert torch.equal(load(tmp_path / "m.safetensors")(torch.ones(3)), net(torch.ones(3)))
    finally:
        del ACTIVATIONS["arctan-of-the-test"]


@given(st.floats(-20, 20), st.integers(2, 12), st.floats(0.5, 5), st.booleans())
def test_spline_slopes_and_potential_at_any_argument(z, knots, radius, monotone):
    torch.manual_seed(1)
    s = make_activation(("spline", {"knots": knots, "radius": radius}), (1,), monotone=monotone).double()
    with torch.no_grad():
        s.raw.add_(torch.randn_like(s.raw))
    point = torch.tensor([z], dtype=torch.float64)
    assert_close(torch.func.grad(lambda p: s.potential(p).sum())(point), s(point), rtol=1e-10, atol=1e-10)
    assert_close(torch.func.grad(lambda p: s(p).sum())(point), s.derivative(point), rtol=1e-10, atol=1e-10)
    lower, upper = s.slope_interval()
    assert float(lower) - 1e-9 <= float(s.derivative(point)) <= float(upper) + 1e-9
    assert not math.isnan(float(s(point)))
