"""What the conformance table does not say: sizes, argument checks, algebra."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nablanets import GradNetC, GradNetM, Quadratic, from_potential, verify
from nablanets.errors import InvalidInputError, ShapeError
from nablanets.parameters import count_parameters


def test_published_sizes():
    """The authors' nets have 100 and 94 parameters, and widths of their high-dimensional nets fit 1024 d."""
    assert count_parameters(GradNetC(2, 7, 4, activation="tanh", linear=False)) == 100
    assert count_parameters(GradNetM(2, 7, 4, activation="softmax", linear=False)) == 94
    for d, c_width, m_width in ((32, 629, 247), (256, 948, 254), (1024, 1003, 255)):
        assert count_parameters(GradNetC(d, c_width, 4, monotone=True, linear=False)) <= 1024 * d
        assert count_parameters(GradNetM(d, m_width, 4, monotone=True, linear=False)) <= 1024 * d


def test_cascade_equals_the_formula_of_the_paper():
    net = GradNetC(3, 5, 3, activation="tanh", linear=False).double()
    x = torch.randn(3, dtype=torch.float64)
    alpha, beta, b, W = net.ridge.alpha_raw, net.ridge.beta_raw, net.ridge.bias, net.weight
    z = beta[0] * (W @ x + b[0])
    for layer in (1, 2):
        z = beta[layer] * (W @ x + b[layer]) + alpha[layer - 1] * torch.tanh(z)
    assert_close(net(x), W.T @ (alpha[2] * torch.tanh(z)) + net.bias)


def test_modules_equal_the_formula_of_the_paper():
    net = GradNetM(3, 5, 2, activation="softmax", linear=False).double()
    x = torch.randn(3, dtype=torch.float64)
    a, t = net.scale_raw, nn.functional.softplus(net.sharpness_raw)
    expected = sum(
        a[m] * net.weight[m].T @ torch.softmax(t[m] * (net.weight[m] @ x + net.hidden_bias[m]), 0) for m in range(2)
    )
    assert_close(net(x), expected + net.bias)


def test_potential_of_a_piecewise_linear_cascade_is_exact():
    """For ReLU the integral of the cascade is split at its bends, so no quadrature error remains."""
    for monotone in (False, True):
        net = GradNetC(2, 6, 4, activation="relu", monotone=monotone).double()
        x = 20 * torch.randn(50, 2, dtype=torch.float64)
        assert verify.potential_gradient_error(net, x) < 1e-12


@pytest.mark.parametrize("cls", [GradNetC, GradNetM])
def test_inputs_are_checked(cls):
    net = cls(3, 4)
    with pytest.raises(ShapeError, match=r"expected x of shape \(\*, 3\), got \(5, 2\)"):
        net(torch.zeros(5, 2))
    with pytest.raises(ShapeError, match="unsqueeze"):
        net.potential(torch.tensor(1.0))
    with pytest.raises(InvalidInputError, match=r"floating-point dtype, got torch.int64.*float"):
        net(torch.zeros(5, 3, dtype=torch.long))
    with pytest.raises(InvalidInputError, match="as_tensor"):
        net([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "bad", [{"hidden_features": 0}, {"features": -1}, {"linear": -1}, {"linear": "low"}, {"hidden_features": 2.5}]
)
def test_constructor_arguments_are_checked(bad):
    for cls in (GradNetC, GradNetM):
        with pytest.raises(InvalidInputError, match="expected"):
            cls(**({"features": 2, "hidden_features": 4} | bad))


def test_algebra_refuses_what_is_no_gradient():
    net = GradNetC(2, 4)
    with pytest.raises(InvalidInputError, match="number only"):
        net * GradNetC(2, 4)
    with pytest.raises(ShapeError, match="one number of features"):
        net + GradNetC(3, 4)
    with pytest.raises(ShapeError, match="Pullback"):
        net.pullback(torch.eye(3))
    with pytest.raises(ShapeError, match="one number per sample"):
        from_potential(nn.Linear(2, 2), 2)(torch.zeros(4, 2))
    with pytest.raises(TypeError):
        net + 3


def test_algebra_equals_arithmetic():
    f, g = Quadratic(3).double(), GradNetM(3, 4).double()
    x, A, b = (
        torch.randn(5, 2, dtype=torch.float64),
        torch.randn(3, 2, dtype=torch.float64),
        torch.randn(3, dtype=torch.float64),
    )
    y = x @ A.T + b
    assert_close((2 * f - g).pullback(A, b)(x), (2 * f(y) - g(y)) @ A)
    assert_close((-f + g).potential(y), g.potential(y) - f.potential(y))
