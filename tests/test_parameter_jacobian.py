"""Derivatives in the parameters in closed form are those of torch.func.jacrev, and Levenberg-Marquardt takes them.

Networks, parameters and points are random; frozen, shared and different buffers are among them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nablanets import GradientMap, GradNetC, GradNetM, GradNetMixture, GradNetTransformed, Pullback, Quadratic, odd
from nablanets.activations import ACTIVATIONS, ElementwiseActivation, make_activation
from nablanets.errors import IllegalActivationError
from nablanets.fitting.derivatives import Workspace
from nablanets.fitting.normal_equations import solve_positive, times_residual, write_gram, write_own_products
from nablanets.fitting.stack import Stack
from nablanets.maps import Constant, CoordinatePullback, pair_distances
from nablanets.starts import standardised

D = 3
MEMBERS = 3
# Of derivatives, relative to the largest one.
ROUNDING = 1e-12


class Steep(ElementwiseActivation):
    """An activation with a parameter whose derivatives nobody wrote down."""

    def __init__(self, units=(), *, monotone=False):
        super().__init__(units, monotone=monotone)
        self.steepness = nn.Parameter(torch.ones(self.units))

    def forward(self, z):
        return torch.tanh(self.steepness * z)

    def potential(self, z):
        return torch.cosh(self.steepness * z).log() / self.steepness

    def derivative(self, z):
        return self.steepness * (1 - self(z).square())


def moved(net: GradientMap) -> GradientMap:
    """In float64, with parameters that nothing was chosen about."""
    net = net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    return net


def check(
    build: Callable[[], GradientMap], x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, *, known: bool = True
) -> None:
    """One network and several at once, against jacrev."""
    stack = Stack([moved(build()) for _ in range(MEMBERS)])
    assert stack._knows_derivatives is known
    everyone = slice(None)
    expected, values = stack._jacobians_by_autograd(stack.theta, x, everyone)
    for members, least_saved in ((everyone, 0), (everyone, 100), (torch.tensor([2, 0]), 0), (torch.tensor([1]), 0)):
        monkeypatch.setattr("nablanets.fitting.derivatives._LEAST_SAVED", least_saved)
        jacobian, value = stack.jacobians(stack.theta[members], x, members)
        own = expected[members]
        assert value.shape == values[members].shape and jacobian.shape == own.shape
        assert_close(value, values[members], rtol=ROUNDING, atol=ROUNDING * float(values.abs().max()))
        assert_close(jacobian, own, rtol=ROUNDING, atol=ROUNDING * float(own.abs().max()))
        assert_close(stack.values(stack.theta[members], x, members).mT, value, rtol=1e-11, atol=1e-11)
        rows = stack.derivatives(stack.theta[members], x, members)
        flat = own.flatten(2)
        products = flat @ flat.mT
        written = torch.empty_like(products)
        write_gram(written, rows, 2.0, Workspace(value))
        rounding = ROUNDING * float(products.abs().max())
        assert_close(written.triu(), 2 * products.triu(), rtol=1e-11, atol=rounding)
        residual = torch.randn_like(value)
        sums = (flat @ residual.flatten(1).unsqueeze(-1)).squeeze(-1)
        assert_close(times_residual(rows, residual), sums, rtol=1e-11, atol=1e-11 * float(sums.abs().max()))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("monotone", [False, True], ids=["free", "monotone"])
def test_networks(activation, monotone, monkeypatch):
    torch.manual_seed(sum(map(ord, activation)))
    x = 2 * torch.randn(5, D, dtype=torch.double)
    linear = [True, 1, "diagonal", False][torch.randint(4, ())]
    try:
        make_activation(activation, (2,), monotone=monotone)
    except IllegalActivationError:
        return
    known = activation != "spline"  # whose integrals nobody differentiates
    for depth, build in enumerate((GradNetC, GradNetM, GradNetTransformed)):
        group = isinstance(make_activation(activation, (2,)), ElementwiseActivation)
        if depth or group:
            check(
                lambda build=build, depth=depth: build(
                    D, 4, 3 - depth, activation=activation, monotone=monotone, linear=linear
                ),
                x,
                monkeypatch,
                known=known or build is not GradNetTransformed,
            )


def _standardised(offset: float) -> GradientMap:
    x = torch.randn(40, D, dtype=torch.double) + offset
    return standardised(GradNetM(D, 4, 2), x, x.square() + 3)


def _shared() -> GradientMap:
    net = GradNetC(D, 3, 2)
    return net - 0.5 * net.pullback(torch.randn(D, D)) + Quadratic(D) + Constant(torch.ones(D))


def _frozen() -> GradientMap:
    net = GradNetC(D, 3, 2, activation="spline")
    net.bias.requires_grad_(False)
    net.ridge.beta_raw.requires_grad_(False)
    return net


AROUND = {
    "standardised": lambda: _standardised(2.0),
    "standardised around a centre": lambda: _standardised(1e9),
    "shared parts": _shared,
    "frozen parameters": _frozen,
    "symmetrised": lambda: odd(GradNetM(D, 4, 2, activation="softmax")),
    "coordinates": lambda: CoordinatePullback(GradNetC(1, 4, 2), pair_distances(2)),
    "more features": lambda: GradNetTransformed(2, 4, 2).pullback(torch.randn(2, D)),
    "quadratic": lambda: Quadratic(D, 2, monotone=True),
}
UNKNOWN = {
    "trained pullback": lambda: Pullback(GradNetC(D, 3), torch.eye(D), trainable=True),
    "own activation": lambda: GradNetM(D, 3, activation=Steep),
    "own activation in a sum": lambda: GradNetM(D, 3) + GradNetC(D, 3, activation=Steep),
    "mixture": lambda: GradNetMixture([Quadratic(D), Quadratic(D)]),
}


@pytest.mark.parametrize("name", [*AROUND, *UNKNOWN])
def test_maps_around_networks(name, monkeypatch):
    torch.manual_seed(len(name))
    build = {**AROUND, **UNKNOWN}[name]
    features = build().features
    offset = 1e9 if "centre" in name else 0.0
    check(build, torch.randn(5, features, dtype=torch.double) + offset, monkeypatch, known=name in AROUND)


def test_a_subclass_may_be_something_else():
    class Shifted(GradNetM):
        def _responses(self, u, parts):
            return super()._responses(u + 1, parts)

    assert not Stack([Shifted(D, 3)])._knows_derivatives


def test_symmetric_products_and_systems():
    factors = torch.randn(3, 6, 9, dtype=torch.double)
    expected = factors @ factors.mT
    written = torch.empty_like(expected)
    write_own_products(written, factors, 0.5)
    assert_close(written.triu(), 0.5 * expected.triu())
    matrices = torch.stack([expected[0], -expected[1], expected[2]])
    right = torch.randn(3, 6, dtype=torch.double)
    solution, positive = solve_positive(matrices.clone(), right)
    assert positive.tolist() == [True, False, True]
    for k in (0, 2):
        assert_close(matrices[k] @ solution[k], right[k], rtol=1e-9, atol=1e-9)
