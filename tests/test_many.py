"""Many networks as one program: the loss and its gradient by hand, batches, and the optimiser."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from nablanets import GradNetC, GradNetM
from nablanets.fitting.batches import Batches, StackedBatches
from nablanets.fitting.closed_form import ByAutograd, ClosedForm, make_loss, num_slots
from nablanets.fitting.stack import Stack
from tests.peers import PeerMLP

CLOSED = {
    "c-tanh": lambda: GradNetC(3, 5, 3, activation="tanh", monotone=True, linear=False),
    "c-tanh-linear": lambda: GradNetC(3, 5, 3, activation="tanh"),
    "c-one-layer": lambda: GradNetC(3, 5, 1, activation="sigmoid", linear="diagonal", monotone=True),
    "c-relu": lambda: GradNetC(2, 4, 4, activation="relu", linear=2),
    "c-identity": lambda: GradNetC(2, 4, 2, activation="identity"),
    "m-softmax": lambda: GradNetM(3, 5, 2, activation="softmax", monotone=True, linear=False),
    "m-softmax-linear": lambda: GradNetM(2, 7, 4, activation="softmax"),
    "m-tanh": lambda: GradNetM(3, 5, 2, activation="tanh", monotone=True),
    "m-sine": lambda: GradNetM(3, 1, 1, activation="sine"),
}


def _stack(build, count=3):
    torch.manual_seed(0)
    stack = Stack([build().double() for _ in range(count)])
    stack.theta = stack.theta + 0.3 * torch.randn_like(stack.theta)
    return stack


@pytest.mark.parametrize("name", list(CLOSED))
def test_the_gradient_by_hand_is_that_of_autograd(name):
    stack = _stack(CLOSED[name])
    by_hand, reference = make_loss(stack), ByAutograd(stack)
    assert isinstance(by_hand, ClosedForm)
    for count in (11, 4, 11):
        x, g = (torch.randn(3, count, stack.skeleton.features, dtype=torch.float64) for _ in range(2))
        before = (stack.theta.clone(), x.clone(), g.clone())
        assert_close(by_hand.with_gradient(stack.theta, x, g), reference.with_gradient(stack.theta, x, g))
        for points in (x, x[0]):
            assert_close(by_hand.values(stack.theta, points), reference.values(stack.theta, points))
        assert all(torch.equal(a, b) for a, b in zip(before, (stack.theta, x, g), strict=True))


def test_frozen_parameters_stay_out_of_the_gradient_by_hand():
    def build():
        net = GradNetC(2, 4, 3, activation="tanh")
        net.projection.requires_grad_(False)
        return net

    stack = _stack(build)
    x, g = torch.randn(3, 9, 2, dtype=torch.float64), torch.randn(3, 9, 2, dtype=torch.float64)
    loss = make_loss(stack)
    assert isinstance(loss, ClosedForm)
    assert_close(loss.with_gradient(stack.theta, x, g), ByAutograd(stack).with_gradient(stack.theta, x, g))


@pytest.mark.parametrize(
    "build",
    [
        lambda: GradNetC(2, 4, activation="spline"),
        lambda: GradNetM(2, 4, activation="radial"),
        lambda: GradNetC(2, 4) + GradNetM(2, 4),
        lambda: PeerMLP(2, 4),
    ],
)
def test_other_networks_go_through_autograd(build):
    assert isinstance(make_loss(_stack(build)), ByAutograd)


def test_slots_are_fewer_where_arrays_are_large():
    published, wide = CLOSED["m-softmax-linear"](), GradNetM(2, 64, 4, activation="softmax")
    assert [num_slots(published, n) for n in (100, 1000, 10_000)] == [32, 32, 8]
    assert [num_slots(wide, n) for n in (100, 1000)] == [32, 8]
    assert [num_slots(PeerMLP(2, 4), n) for n in (100, 1000)] == [32, 8]


@pytest.mark.parametrize("own", [1, 3])
def test_stacked_batches_are_the_batches_of_each(own):
    samples = [(torch.randn(23, 3), torch.randn(23, 3)) for _ in range(3)][:own]
    generators = lambda: [torch.Generator().manual_seed(k) for k in range(3)]  # noqa: E731
    stacked = StackedBatches(samples, 5, generators())
    pairs = zip(samples if own > 1 else samples * 3, generators(), strict=True)
    single = [Batches(*each, 5, generator) for each, generator in pairs]
    for _ in range(11):
        parts = zip(*(batches.next() for batches in single), strict=True)
        for part, expected in zip(stacked.next(), parts, strict=True):
            assert torch.equal(part, torch.stack(expected))
