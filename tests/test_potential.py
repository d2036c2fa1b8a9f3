"""Potentials of cascades: derivatives are those of an integral, values are right however steep the units are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nablanets import GradNetC, verify
from nablanets.interop import export
from nablanets.maps import panels

DTYPE = torch.float64


def steep(activation: str = "tanh", *, factor: float = 3.0, layers: int = 3) -> GradNetC:
    torch.manual_seed(0)
    net = GradNetC(2, 4, layers, activation=activation).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(factor * torch.randn_like(parameter))
    return net


X = torch.randn(9, 2, generator=torch.Generator().manual_seed(1), dtype=DTYPE)


@pytest.mark.parametrize("activation", ["wtanh", "spline", "softplus"])
def test_derivatives_in_parameters(activation):
    """Fits of potentials train through F: its derivatives in every parameter, and mixed ones with x."""
    net = steep(activation, factor=0.5, layers=2)
    names = [name for name, _ in net.named_parameters()]
    start = [p.detach().clone().requires_grad_() for p in net.parameters()]
    x = X[:3].clone().requires_grad_()

    class Potential(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net.potential(x)

    module = Potential()

    def f(x, *parameters):
        named = {f"net.{name}": p for name, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(module, named, (x,))

    assert torch.autograd.gradcheck(f, (x, *start), fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (x, *start), fast_mode=True)


def test_every_way_to_differentiate_gives_f():
    net = steep()
    expected = net(X).detach()
    scale = float(expected.abs().max())
    close = {"rtol": 1e-13, "atol": 1e-13 * scale}
    (reverse,) = torch.autograd.grad(net.potential(x := X.clone().requires_grad_()).sum(), x)
    assert_close(reverse, expected, **close)
    assert_close(torch.func.vmap(torch.func.grad(net.potential))(X).detach(), expected, **close)
    assert_close(torch.func.vmap(torch.func.jacfwd(net.potential))(X).detach(), expected, **close)
    hessian = torch.func.vmap(torch.func.hessian(net.potential))(X).detach()
    assert_close(hessian, net.jacobian(X).dense().detach(), rtol=1e-10, atol=1e-10 * float(hessian.abs().max()))
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        tangent = torch.autograd.forward_ad.unpack_dual(net.potential(dual)).tangent
    assert_close(tangent, expected.sum(-1), **close)


def test_one_evaluation_for_many_networks():
    """vmap over parameters: each member has panels of its own."""
    nets = [steep(), steep(factor=1.0)]
    parameters, buffers = torch.func.stack_module_state(nets)

    class Potential(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net.potential(x)

    stacked = {f"net.{name}": value for name, value in parameters.items()}
    module = Potential(nets[0])
    values = torch.func.vmap(lambda p: torch.func.functional_call(module, (p, buffers), (X,)))(stacked)
    for value, net in zip(values, nets, strict=True):
        assert_close(value, net.potential(X), rtol=1e-10, atol=1e-10)


def test_far_and_broken_samples_leave_others_alone():
    net = steep()
    alone = net.potential(X)
    far = torch.tensor([[1e9, -1e9], [1e100, 0.0], [torch.inf, 0.0], [torch.nan, 1.0]], dtype=DTYPE)
    together = net.potential(torch.cat([X, far]))
    assert_close(together[: len(X)], alone, rtol=1e-10, atol=1e-10 * float(alone.detach().abs().max()))
    assert bool(torch.isfinite(together[len(X) : len(X) + 2]).all())
    assert bool(torch.isnan(together[-1]))


def test_compiled_potential_has_the_same_values_and_gradient():
    net = steep("gaussian", layers=2)
    compiled = torch.compile(net.potential, fullgraph=True, backend="aot_eager")
    x = X.clone().requires_grad_()
    value = compiled(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    size = float(value.detach().abs().max())
    assert_close(value, net.potential(X), rtol=1e-6, atol=1e-6 * size)  # the number of panels is fixed
    assert_close(gradient, net(X), rtol=1e-12, atol=1e-12 * float(gradient.abs().max()))


def test_exported_rule_resolves_steep_units(tmp_path):
    export(steep(), tmp_path / "f.pt2", "torch")  # compares values


def test_panels_are_refined_where_units_are_steep():
    gentle, sharp = (panels._edges(net.ridge, [X @ net.weight.mT]) for net in (steep(factor=0.0), steep()))
    assert len(gentle) < len(sharp) < panels.MOST_PANELS


def test_certificate_fails_for_a_slightly_wrong_potential():
    net = steep()
    assert verify.certificate(net, X).passed
    potential = net._potential
    net._potential = lambda x: (1 + 1e-6) * potential(x)
    assert not verify.certificate(net, X).passed


@pytest.mark.parametrize("activation", ["spline", "sine", "gaussian"])
def test_panels_chosen_for_all_arguments_are_as_good(activation):
    net = steep(activation, factor=1.0)
    expected = net.potential(X).detach()
    net.ridge.fix_panels()
    assert_close(net.potential(X).detach(), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
