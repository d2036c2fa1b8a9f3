"""The gradient by hand of the loss of one network is that of autograd, and fit takes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nablanets import GradNetC, GradNetM, Pullback, fit, odd
from nablanets.fitting.closed_form import ByAutograd, ClosedForm, make_loss, own_gradient
from nablanets.fitting.objective import squared_error
from nablanets.fitting.stack import Stack
from nablanets.maps import Constant
from nablanets.starts import standardised

D = 3
KINDS = {
    "c": lambda monotone: GradNetC(D, 5, 3, monotone=monotone),
    "c, as many units as features": lambda monotone: GradNetC(D, D, 3, monotone=monotone),
    "c, one layer": lambda monotone: GradNetC(D, 5, 1, monotone=monotone),
    "c, tanh": lambda monotone: GradNetC(D, 5, 3, activation="tanh", monotone=monotone),
    "c, softplus": lambda monotone: GradNetC(D, 5, 3, activation="softplus", monotone=monotone, linear=False),
    "m": lambda monotone: GradNetM(D, 5, 2, monotone=monotone),
    "m, as many units as features": lambda monotone: GradNetM(D, D, 1, monotone=monotone),
    "m, softmax": lambda monotone: GradNetM(D, 5, 2, activation="softmax", monotone=monotone),
    "m, tanh": lambda monotone: GradNetM(D, 5, 2, activation="tanh", monotone=monotone, linear=1),
}


def _samples(offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(40, D, dtype=torch.double)
    return x + offset, torch.sin(2 * x) - 3


@pytest.mark.parametrize("monotone", [False, True], ids=["free", "monotone"])
@pytest.mark.parametrize("name", list(KINDS))
def test_it_is_that_of_autograd(name, monotone):
    """Of the network itself, of the standardised one, and of one with a centre in float64; also of many at once."""
    torch.manual_seed(len(name))
    for offset in (0.0, 10.0, 1e9):
        x, g = _samples(offset)
        nets = []
        for _ in range(2):
            net = KINDS[name](monotone).double()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.add_(0.5 * torch.randn_like(parameter))
            nets.append(standardised(net, x, g) if offset else net)
        net = nets[0]
        own = own_gradient(net, 0.25)
        assert own is not None
        for rows in (slice(None), slice(7), slice(None)):  # arrays are kept by shape, and written again
            net.zero_grad()
            loss = own.backward(x[rows], g[rows])
        gradients = [parameter.grad for parameter in net.parameters()]
        expected = squared_error(net, x, g, 0.25)
        assert_close(loss, expected.detach())
        largest = 0.0
        by_autograd = torch.autograd.grad(expected, list(net.parameters()))
        largest = max(float(gradient.abs().max()) for gradient in by_autograd)
        for gradient, other in zip(gradients, by_autograd, strict=True):
            assert_close(gradient, other, rtol=1e-11, atol=1e-12 * largest)
        stack = Stack(nets)
        pair = [part.expand(2, -1, -1) for part in (x, g)]
        losses, rows_of_gradients = make_loss(stack).with_gradient(stack.theta, *pair)
        other_losses, other_rows = ByAutograd(stack).with_gradient(stack.theta, *pair)
        assert isinstance(make_loss(stack), ClosedForm)
        assert_close(losses, other_losses)
        assert_close(rows_of_gradients, other_rows, rtol=1e-11, atol=1e-12 * float(other_rows.abs().max()))
        assert_close(make_loss(stack).values(stack.theta, x), torch.stack([each(x) for each in nets]).detach())


def test_frozen_parameters_have_no_gradient():
    net = GradNetC(D, 4, 2)
    net.projection.requires_grad_(False)
    x, g = (part.float() for part in _samples(0.0))
    own = own_gradient(net, 1.0)
    assert own is not None
    own.backward(x, g)
    assert net.projection.grad is None and net.ridge.bias.grad is not None


def test_autograd_where_it_is_not_known():
    """Other activations, trained coordinates, sums of networks, symmetries, 16 bits, and networks that are listened to."""
    listened = GradNetC(D, 4)
    listened.ridge.register_forward_hook(lambda *_: None)
    unknown = [
        GradNetC(D, 4, activation="spline"),
        Pullback(GradNetC(D, 4), torch.eye(D), trainable=True),
        GradNetC(D, 4) + GradNetM(D, 4),
        Constant(torch.zeros(D)) + Constant(torch.zeros(D)),
        odd(GradNetC(D, 4)),
        GradNetC(D, 4).bfloat16(),
        listened,
        nn.Linear(D, D),
    ]
    assert all(own_gradient(net, 1.0) is None for net in unknown)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "lbfgs"])
def test_a_fit_is_the_same(optimizer, monkeypatch):
    x, g = _samples(10.0)
    histories = []
    for by_hand in (True, False):
        torch.manual_seed(0)
        net = standardised(GradNetM(D, 4).double(), x, g)
        if not by_hand:
            monkeypatch.setattr("nablanets.fitting.optimizers.own_gradient", lambda net, unit: None)
        result = fit(net, x, g, steps=20, batch_size=16, optimizer=optimizer, progress=False)
        histories.append([(row.training_error, row.validation_error) for row in result.history])
    assert_close(torch.tensor(histories[0]), torch.tensor(histories[1]), rtol=1e-6, atol=0.0)
