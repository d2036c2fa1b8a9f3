"""Conditional maps: one gradient map for every context, contexts per sample, and derivatives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from nablanets import ConditionalGradNet, GradNetC, Quadratic, Symmetrized, constrain, load, odd, verify
from nablanets.errors import IllegalActivationError, InvalidInputError, ShapeError
from nablanets.maps import GivenContext

DTYPE = torch.float64


def network(**options: object) -> ConditionalGradNet:
    """A network whose conditioner acts strongly."""
    torch.manual_seed(0)
    net = ConditionalGradNet(3, 2, 6, **options).double()
    with torch.no_grad():
        for p in net.conditioner.parameters():
            p.mul_(3)
    return net


@pytest.mark.parametrize("monotone", [False, True])
def test_it_equals_the_formula(monotone):
    net = network(monotone=monotone, num_layers=1, activation="tanh", linear=False)
    x, c = torch.randn(3, dtype=DTYPE), torch.randn(2, dtype=DTYPE)
    out = net.conditioner.layers(c)
    scale = torch.log(1 + torch.exp(out[:6]) * (torch.e - 1)) if monotone else 1 + out[:6]
    units = scale * net.ridge(net.weight @ x + out[6:12])
    assert_close(net(x, c), net.weight.T @ units + out[12:])


def test_contexts_per_sample_are_as_many_maps():
    net = network()
    x, c = torch.randn(2, 5, 3, dtype=DTYPE), torch.randn(2, 5, 2, dtype=DTYPE)
    f = net.given(c)
    for i, j in ((0, 0), (1, 3)):
        one = net.given(c[i, j])
        assert_close(f(x)[i, j], one(x[i, j]))
        assert_close(f.potential(x)[i, j], one.potential(x[i, j]))
        assert_close(f.jacobian(x).dense()[i, j], one.jacobian(x[i, j]).dense())
    assert float((net.given(c[0, 0])(x) - f(x)).abs().max()) > 0.1  # the context matters
    assert_close(net.given(c[:, :1])(x), net(x, c[:, :1].expand(2, 5, 2)))
    assert_close(net.given(c[1])(x)[0], net(x[0], c[1]))


@pytest.mark.parametrize("monotone", [False, True])
def test_it_is_a_gradient_in_x_for_every_context(monotone):
    net = network(monotone=monotone)
    x = torch.randn(12, 3, dtype=DTYPE)
    for _ in range(5):
        f = net.given(3 * torch.randn(2, dtype=DTYPE))
        assert f.monotone == monotone
        assert verify.certificate(f, x).passed
    several = net.given(3 * torch.randn(12, 2, dtype=DTYPE))
    verify.assert_potential(several, x)
    assert float(several.potential(torch.zeros_like(x)).abs().max()) == 0
    p, t = torch.randn_like(x), torch.rand(12, dtype=DTYPE)
    assert_close(several.along(x, p)(t), (several(x + t[:, None] * p) * p).sum(-1))


def test_curvature_bounds_hold_for_all_contexts():
    net = network(activation="tanh")
    c = torch.randn(300, 2, dtype=DTYPE)
    several = net.given(c)
    eigenvalues = several.jacobian(2 * torch.randn(300, 3, dtype=DTYPE)).eigvalsh()
    lower, upper = several.curvature_bounds()
    assert lower <= eigenvalues.min()
    assert eigenvalues.max() <= upper
    assert net.given(c[0]).curvature_bounds()[1] <= upper
    held = constrain(several, lower=0.0, upper=1.0)
    eigenvalues = held.jacobian(torch.randn(300, 3, dtype=DTYPE)).eigvalsh()
    assert float(eigenvalues.min()) >= -1e-9
    assert float(eigenvalues.max()) <= 1 + 1e-9


def test_one_context_has_an_inverse_with_exact_derivatives():
    net = network(monotone=True)
    c = torch.randn(2, dtype=DTYPE, requires_grad=True)
    x = 2 * torch.randn(2, 4, 3, dtype=DTYPE)
    f = net.given(c)
    with torch.no_grad():
        assert_close(f.inverse(f(x)), x, rtol=1e-9, atol=1e-9)
        assert_close(f.prox(x + 0.5 * f(x), 0.5), x, rtol=1e-9, atol=1e-9)
    y = f(x[0]).detach()
    assert torch.autograd.gradcheck(lambda c: net.given(c).inverse(y), (c,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda c: net.given(c).inverse(y), (c,), fast_mode=True)
    assert torch.autograd.gradcheck(lambda c: net.given(c).jacobian(y).logdet(), (c,), fast_mode=True)


@pytest.mark.parametrize("batch", [(7,), (2, 4)])
def test_contexts_per_sample_have_an_inverse(batch):
    net = network(monotone=True)
    x, c = 2 * torch.randn(*batch, 3, dtype=DTYPE), torch.randn(*batch, 2, dtype=DTYPE)
    one = net.given(c[(0,) * len(batch)].expand(*[1] * len(batch), 2))
    for f in (net.given(c), one, net.given(c) + Quadratic(3, monotone=True).double(), odd(net.given(c))):
        with torch.no_grad():
            assert_close(f.inverse(f(x)), x, rtol=1e-9, atol=1e-9)
            assert_close(f.prox(x + 0.5 * f(x), 0.5), x, rtol=1e-9, atol=1e-9)


def test_rows_belong_to_the_samples():
    net = network()
    plain = GradNetC(3, 4).double()
    x, c = torch.randn(2, 5, 3, dtype=DTYPE), torch.randn(2, 5, 2, dtype=DTYPE)
    index = torch.tensor([7, 0, 3])
    f = net.given(c)
    maps = [f, f + plain, plain - 2 * f, odd(f), f.pullback(torch.eye(3, dtype=DTYPE)), constrain(f, lower=-9, upper=9)]
    for g in maps:
        assert_close(g.rows(index)(x.flatten(0, 1)[index]), g(x).flatten(0, 1)[index])
        assert g.rows(index) is not g
        assert [id(p) for p in g.rows(index).parameters()] == [id(p) for p in g.parameters()]
        assert_close(g(x), copy.deepcopy(g)(x))  # rows left the map alone
    assert_close(net.given(c[:1, :1]).rows(index)(x.flatten(0, 1)[index]), net(x, c[0, 0]).flatten(0, 1)[index])
    for g in (plain, plain + plain, net.given(c[0, 0]), odd(net.given(c[0, 0]))):
        assert g.rows(index) is g


@pytest.mark.parametrize("batch", [(), (5,)])
def test_files(tmp_path, batch):
    net = network(activation=("spline", {"knots": 5}), monotone=True)
    x, c = torch.randn(5, 3, dtype=DTYPE), torch.randn(*batch, 2, dtype=DTYPE)
    net.save(tmp_path / "net.safetensors")
    assert torch.equal(load(tmp_path / "net.safetensors")(x, c), net(x, c))
    f = Symmetrized(net.given(c), [[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    f.save(tmp_path / "map.safetensors")
    assert torch.equal(load(tmp_path / "map.safetensors")(x), f(x))


def test_it_learns_how_a_field_depends_on_its_context():
    """Wells of different depth and place, against the best linear map, which knows no context."""
    torch.manual_seed(0)
    x, c = 2 * torch.rand(2000, 2) - 1, 2 * torch.rand(2000, 2) - 1
    g = torch.tanh(2 * (x - c[:, :1])) * (1.5 + c[:, 1:])
    net = ConditionalGradNet(2, 2, 24, 1, monotone=True)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        loss = (net(x, c) - g).square().sum(-1).mean()
        loss.backward()
        optimizer.step()
    blind = g - x @ torch.linalg.lstsq(x, g).solution
    assert float(loss.detach()) < 0.02 * float(blind.square().sum(-1).mean())


def test_it_compiles_as_one_graph():
    net = network()
    x, c = torch.randn(5, 3, dtype=DTYPE), torch.randn(5, 2, dtype=DTYPE)
    assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x, c), net(x, c))


def test_what_does_not_fit_is_refused():
    net = network()
    x = torch.zeros(5, 3, dtype=DTYPE)
    with pytest.raises(ShapeError, match=r"expected c of shape \(\*, 2\)"):
        net.given(torch.zeros(3, dtype=DTYPE))
    with pytest.raises(ShapeError, match=r"broadcast to the batch \(5,\) of x.*x.expand"):
        net(x, torch.zeros(4, 2, dtype=DTYPE))
    with pytest.raises(ShapeError, match="repeat it"):
        net.given(torch.zeros(5, 2, dtype=DTYPE)).potential(x[0])
    several = network(monotone=True).given(torch.zeros(5, 1, 2, dtype=DTYPE))
    with pytest.raises(ShapeError, match=r"5 contexts for 10 samples.*expand"):
        several.inverse(torch.zeros(5, 2, 3, dtype=DTYPE))
    with pytest.raises(InvalidInputError, match="conditioner_depth to be an integer >= 1"):
        ConditionalGradNet(3, 2, 6, conditioner_depth=0)
    with pytest.raises(IllegalActivationError, match="elementwise"):
        ConditionalGradNet(3, 2, 6, activation="softmax")
    assert isinstance(net.given(torch.zeros(2, dtype=DTYPE)), GivenContext)
