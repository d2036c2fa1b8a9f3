"""Every map of the library, with random shapes, settings and parameters, is what it says."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from nablanets import (
    ConditionalGradNet,
    GradientMap,
    GradNetC,
    GradNetM,
    GradNetMixture,
    GradNetTransformed,
    Quadratic,
    Symmetrized,
    constrain,
    odd,
    verify,
)
from nablanets.activations import ACTIVATIONS, GroupActivation
from nablanets.maps import Constant, generated_group
from tests.peers import icnn_gradient, mlp_potential

DTYPE = torch.float64
ELEMENTWISE = [name for name, cls in ACTIVATIONS.items() if not issubclass(cls, GroupActivation)]
small = st.integers(1, 4)


def _activation(draw: st.DrawFn, names: list[str], monotone: bool) -> str:
    legal = [name for name in names if not monotone or ACTIVATIONS[name]((1,), monotone=True).increasing]
    return draw(st.sampled_from(legal))


def _cascaded(draw: st.DrawFn, d: int, options: dict) -> GradientMap:
    activation = _activation(draw, ELEMENTWISE, options["monotone"])
    return GradNetC(d, draw(small), draw(small), activation=activation, **options)


def _modular(draw: st.DrawFn, d: int, options: dict) -> GradientMap:
    activation = _activation(draw, list(ACTIVATIONS), options["monotone"])
    return GradNetM(d, draw(small), draw(small), activation=activation, **options)


def _transformed(draw: st.DrawFn, d: int, options: dict) -> GradientMap:
    activation = _activation(draw, list(ACTIVATIONS), options["monotone"])
    return GradNetTransformed(d, draw(small), draw(small), draw(small), activation=activation, **options)


def _conditional(draw: st.DrawFn, d: int, options: dict) -> GradientMap:
    activation = _activation(draw, ELEMENTWISE, options["monotone"])
    k = draw(small)
    net = ConditionalGradNet(d, k, draw(small), draw(small), activation=activation, conditioner_width=4, **options)
    return net.given(torch.randn(k))


def _simple(draw: st.DrawFn, d: int, options: dict) -> GradientMap:
    monotone = options["monotone"]
    kinds = [lambda: Quadratic(d, draw(st.integers(0, 4)), monotone=monotone), lambda: Constant(torch.randn(d))]
    kinds += [lambda: icnn_gradient(d, draw(small))]
    return draw(st.sampled_from(kinds if monotone else [*kinds, lambda: mlp_potential(d, draw(small))]))()


networks = (_cascaded, _modular, _transformed, _conditional, _simple)


def _network(draw: st.DrawFn, d: int, monotone: bool) -> GradientMap:
    options = {"monotone": monotone, "linear": draw(st.sampled_from([True, False, "diagonal", 1]))}
    return draw(st.sampled_from(networks))(draw, d, options)


def _combined(draw: st.DrawFn, d: int, monotone: bool) -> GradientMap:
    part = lambda features=d: _network(draw, features, monotone)  # noqa: E731
    kind = draw(st.sampled_from(["sum", "scale", "pullback", "mixture", "odd", "symmetrized", "constrained"]))
    if kind == "sum":
        return part() + part()
    if kind == "scale":
        return draw(st.sampled_from([2.5, 0.5] if monotone else [-1.5, 0.5])) * part()
    if kind == "pullback":
        features = draw(small)
        return part(features).pullback(torch.randn(features, d), torch.randn(features))
    if kind == "mixture":
        return GradNetMixture([part() for _ in range(draw(st.integers(1, 3)))], sharpness=draw(st.floats(0.1, 3.0)))
    if kind == "odd":
        return odd(part())
    if kind == "symmetrized":
        return Symmetrized(part(), generated_group(torch.eye(d).roll(1, 0).unsqueeze(0)))
    inner = GradNetC(d, draw(small), draw(small), activation="tanh")
    return constrain(inner, lower=0.0 if monotone else -0.5, upper=1.0)


@st.composite
def maps_and_points(draw: st.DrawFn) -> tuple[GradientMap, torch.Tensor]:
    """A map whose parameters are as after a large step, and points in a batch of any shape."""
    d, monotone = draw(small), draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 2**16)))
    net = (_combined if draw(st.booleans()) else _network)(draw, d, monotone).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(draw(st.sampled_from([0.0, 0.3, 1.0])) * torch.randn_like(p))
    batch = draw(st.sampled_from([(), (1,), (5,), (2, 3)]))
    assert net.monotone or not monotone
    return net, draw(st.sampled_from([0.1, 1.0, 3.0])) * torch.randn(*batch, d, dtype=DTYPE)


@settings(max_examples=150)
@given(maps_and_points())
def test_every_map_is_a_gradient_with_the_parts_it_promises(sample):
    net, x = sample
    points = x.reshape(-1, net.features)
    with torch.no_grad():
        values, potential, jacobian = net(x), net.potential(x), net.jacobian(x)
        assert values.shape == x.shape
        assert potential.shape == x.shape[:-1]
        reference = verify.autodiff_jacobian(net, points).reshape(*x.shape, net.features)
        size = float(reference.abs().max())
        slack = 1e-9
        close = {"rtol": slack, "atol": slack * (1 + size)}
        assert_close(reference, reference.mT, **close)
        assert_close(jacobian.dense(), reference, **close)
        verify.assert_potential(net, points)
        together = net.value_and_jacobian(x)
        assert_close(together[0], values, **close)
        assert_close(together[1].dense(), reference, **close)
        for f in (net, net.potential, net.laplacian):
            whole = f(points)
            assert_close(f(points[-1]), whole[-1], rtol=1e-9, atol=1e-9 * (1 + float(whole.abs().max())))
        p, t = torch.randn_like(x), torch.rand(x.shape[:-1], dtype=DTYPE)
        expected = (net(x + t.unsqueeze(-1) * p) * p).sum(-1)
        assert_close(net.along(x, p)(t), expected, rtol=1e-9, atol=1e-9 * (1 + float(expected.abs().max())))
        eigenvalues = torch.linalg.eigvalsh((reference + reference.mT) / 2)
        lower, upper = net.curvature_bounds()
        assert float(eigenvalues.min()) >= float(lower) - slack * (1 + size)
        assert float(eigenvalues.max()) <= float(upper) + slack * (1 + size)
