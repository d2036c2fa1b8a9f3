"""Closed forms of gradient residuals against automatic differentiation, over families of blocks."""

from __future__ import annotations

import copy
import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from nablanets import ElementwiseActivation, GradientResidual
from nablanets.activations import ACTIVATIONS, make_activation
from nablanets.residual.elementwise import SLOPES
from tests.residual_models import GatedMLP

DTYPE = torch.float64
PAIRS = [
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Mish, nn.Softplus, nn.Hardtanh,
    nn.ReLU6, nn.Hardswish, nn.Tanh, nn.Sigmoid, nn.PReLU, lambda: nn.ReLU(inplace=True), lambda: nn.SiLU(inplace=True),
    lambda: make_activation("tanh"), lambda: make_activation("sine"),
]  # fmt: skip


class Fit(nn.Module):
    """A projection onto any shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return x.flatten(1).sum(dim=1).reshape(-1, *[1] * (len(self.shape) - 1)).expand(self.shape)


def by_autograd(layer, x):
    """What the layer should return, with g by torch.autograd.grad."""
    y = layer.block(x)
    v = torch.ones(()) if layer.probe is None else layer.probe
    v = v if v.ndim == 0 else v.reshape(-1, *[1] * (-1 - layer.channel_dim))
    g = torch.autograd.grad((v * y).sum(), x, create_graph=True)[0]
    if layer.stop_gradient and not layer.learns_probe:
        g = g.detach()
    if layer.normalize == "position":
        square = (g * g).sum(dim=layer.channel_dim, keepdim=True)
        g = g * (square > 0) / torch.where(square > 0, square, 1).sqrt()
    skip = (1 - layer.gate()) * x + layer.gate() * g
    return y + (skip if layer.projection is None else layer.projection(skip))


def check(block, x, *, stop_gradient, closed=True, normalize="position", **settings):
    """Values and gradients in x and all parameters equal those by autograd to 1e-10."""
    block = block.to(x)
    shape = copy.deepcopy(block)(x).shape
    projection = None if shape == x.shape else Fit(shape)
    settings |= {"stop_gradient": stop_gradient, "normalize": normalize, "projection": projection}
    layer = GradientResidual(block, alpha=0.3, **settings).to(x)
    assert layer.closed_form == closed
    twin = copy.deepcopy(layer)
    results = []
    for net, call in ((layer, layer), (twin, lambda t: by_autograd(twin, t))):
        point = x.clone().requires_grad_()
        torch.manual_seed(1)
        y = call(point)
        (y * torch.linspace(-1, 1, y.numel(), dtype=x.dtype).view(y.shape)).sum().backward()
        results.append([y, point.grad, *(p.grad for p in net.parameters()), *net.buffers()])
    for ours, reference in zip(*results, strict=True):
        if reference is None:
            assert ours is None or not ours.any()
        else:
            assert_close(torch.zeros_like(reference) if ours is None else ours, reference, rtol=1e-10, atol=1e-10)


@given(
    widths=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    activation=st.sampled_from(PAIRS),
    bias=st.booleans(),
    norm=st.sampled_from([None, "layer", "batch", "frozen", "group", "dropout"]),
    batch=st.sampled_from([(3,), (2, 3)]),
    stop_gradient=st.booleans(),
    normalize=st.sampled_from(["position", "none"]),
)
def test_linear_chains(widths, activation, bias, norm, batch, stop_gradient, normalize):
    sizes = [4, *widths, 4]
    batched = norm in {"batch", "frozen", "group"}
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, bias), activation()]
    if len(layers) > 2:
        layers.pop()
        extra = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d, "frozen": nn.BatchNorm1d, "dropout": nn.Dropout}
        if norm == "group":
            layers.insert(1, nn.GroupNorm(1, sizes[1]))
        elif norm is not None:
            layers.insert(1, extra[norm](0.3 if norm == "dropout" else sizes[1]))
    block = nn.Sequential(*layers)
    if norm == "frozen":
        block.eval()
    for module in block.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.GroupNorm):
            nn.init.normal_(module.weight)
    x = torch.randn(*((5,) if batched else batch), 4, dtype=DTYPE)
    check(block, x, stop_gradient=stop_gradient, normalize=normalize)


@given(
    n=st.integers(1, 2),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    mode=st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
    activation=st.sampled_from(PAIRS),
    frozen=st.booleans(),
    stop_gradient=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions(n, kernel, stride, dilation, groups, padding, mode, activation, frozen, stop_gradient):
    conv, batch_norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[n - 1]
    stride = 1 if padding == "same" else stride
    settings = {"dilation": dilation, "groups": groups, "padding_mode": mode, "padding": padding}
    first, second = conv(4, 6, kernel, stride, **settings), conv(6, 4, kernel, 1, **settings)
    block = nn.Sequential(first, activation(), second)
    if frozen:
        block = nn.Sequential(first, batch_norm(6), activation(), second, batch_norm(4)).eval()
        for norm in (block[1], block[4]):
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.normal_(norm.weight)
    x = torch.randn(2, 4, *(19, 18)[:n], dtype=DTYPE)
    check(block, x, stop_gradient=stop_gradient)


class Scaled(nn.Module):
    """Residual scaling, layer scale, and arithmetic between branches."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.gamma = nn.Parameter(torch.randn(4))

    def forward(self, x):
        h = self.body(x).mul(0.1) * self.gamma
        return (1 - torch.sin(h)) * torch.tanh(x) / 2 - h + 3.0


class Functional(nn.Module):
    """Functions in place of modules, one of them with positional arguments, and dropout as a function."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        h = F.leaky_relu(self.up(x), 0.2)
        h = F.dropout(h, p=0.5, training=self.training)
        return self.down(F.relu(h, inplace=True)).sigmoid()


class PreActivated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.squeeze = nn.Sequential(
            nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(inplace=True)
        )
        self.expand = nn.Conv2d(2, 4, 1)

    def forward(self, x):
        return self.expand(self.squeeze(self.conv(F.relu(self.norm(x)))))


class WithLeaves(nn.Module):
    """Layers that have no rule: each goes through torch.func.vjp by itself."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.CELU(), nn.Linear(6, 4))

    def forward(self, x):
        return self.layers(x)


class Unreadable(nn.Module):
    """A forward that cannot be read at all."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))

    def forward(self, x):
        return self.layers(x) if self.training else self.layers(x.clone())


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize(
    ("build", "shape", "closed"),
    [
        (Scaled, (3, 4), True),
        (Functional, (3, 4), True),
        (lambda: GatedMLP(4, 6), (2, 3, 4), True),
        (lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 4)), (2, 3, 4), True),
        (lambda: nn.Sequential(nn.LayerNorm(4), GatedMLP(4, 6)), (2, 3, 4), True),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4)), (3, 4), True),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.SiLU(), nn.Conv2d(6, 4, 1)), (2, 4, 5, 5), True),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Conv2d(6, 4, 1)), (2, 4, 5, 5), True),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)), (3, 4, 5, 5), True),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)), (3, 4, 5, 5), True),
        (lambda: nn.Sequential(nn.Conv3d(4, 6, 2, 2), nn.ReLU(), nn.Conv3d(6, 4, 1)), (2, 4, 4, 4, 5), True),
        (PreActivated, (2, 4, 5, 5), True),
        (WithLeaves, (3, 4), False),
        (Unreadable, (3, 4), False),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.SyncBatchNorm(6), nn.ReLU(), nn.Linear(6, 4)).eval(), (3, 4), False),
    ],
)  # fmt: skip
def test_structures(build, shape, closed, stop_gradient):
    check(build(), torch.randn(shape, dtype=DTYPE), stop_gradient=stop_gradient, closed=closed)


@pytest.mark.parametrize("probe", ["random", "learned", torch.tensor([1.0, -2.0, 0.5, 3.0])])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_probes(probe, stop_gradient):
    if probe == "learned" and stop_gradient:
        return  # its own test below
    for block, shape in (
        (nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)), (3, 4)),
        (nn.Sequential(nn.Conv2d(4, 6, 3, 1, 1), nn.GELU(), nn.Conv2d(6, 4, 3, 1, 1, groups=2)), (2, 4, 6, 5)),
        (Unreadable(), (3, 4)),
    ):
        closed = not isinstance(block, Unreadable)
        settings = {} if closed else {"channels": 4}
        check(
            block, torch.randn(shape, dtype=DTYPE), stop_gradient=stop_gradient, probe=probe, closed=closed, **settings
        )


def test_learned_probe_under_stop_gradient_learns_alone():
    """g = J^T v with J held constant: the probe has its exact gradient, the block none through g."""
    block = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 4)).double()
    layer = GradientResidual(block, probe="learned", skip="pure", normalize="none").double()
    nn.init.normal_(layer.probe)
    x, w = torch.randn(3, 4, dtype=DTYPE), torch.randn(3, 4, dtype=DTYPE)
    (layer(x) * w).sum().backward()
    jacobian = torch.func.vmap(torch.func.jacrev(block))(x)
    assert_close(layer.probe.grad, torch.einsum("noi,ni->o", jacobian, w))
    without = torch.autograd.grad((block(x) * w).sum(), block.parameters())
    assert_close([p.grad for p in block.parameters()], list(without))


@pytest.mark.parametrize("activation", [a for a in PAIRS if a is not nn.Mish])
def test_second_derivatives_through_full_back_propagation(activation):
    block = nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 3)).double()
    layer = GradientResidual(block, stop_gradient=False).double()
    x = torch.randn(2, 3, dtype=DTYPE, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS)))
def test_our_activations(name):
    activation = make_activation(name, (6,))
    closed = isinstance(activation, ElementwiseActivation)  # those that act on groups go through torch.func.vjp
    block = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 4))
    check(block, torch.randn(3, 4, dtype=DTYPE), stop_gradient=False, closed=closed)


@pytest.mark.parametrize(("stop_gradient", "products"), [(True, 7), (False, 9)])
def test_number_of_matrix_products(stop_gradient, products):
    """One transposed product forward; back-propagation through g adds two (papers.md B.3.1), where plain has six."""
    d, n = 32, 64
    block = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))
    layer = GradientResidual(block, stop_gradient=stop_gradient)
    x = torch.randn(n, d, requires_grad=True)
    counter = FlopCounterMode(display=False)
    with counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() / (2 * n * d * d) == pytest.approx(products, abs=2 / n)


def test_constant_part_of_a_convolution_is_not_computed_per_sample_or_channel():
    """c = K2^T 1 costs no convolution: the forward has the plain two and one transposed."""
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    layer, x = GradientResidual(block), torch.randn(4, 8, 16, 16)
    plain, ours = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with plain, torch.no_grad():
        block(x)
    with ours, torch.no_grad():
        layer(x)
    assert ours.get_total_flops() / plain.get_total_flops() == pytest.approx(1.5, abs=0.06)


def scaled_norms(groups, channels):
    """Norms with a constant scale behind convolutions, once with fewer weights than outputs and once with more."""
    first = nn.Conv2d(4, channels, 3, padding=1, groups=groups)
    second = nn.Conv2d(channels, 4, 3, padding=1, groups=groups)
    block = nn.Sequential(first, nn.BatchNorm2d(channels), nn.Tanh(), second, nn.BatchNorm2d(4)).double()
    for norm in (block[1], block[4]):
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(values, 0.5, 2.0)
    return block


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize(("groups", "size"), [(1, 9), (2, 9), (1, 2), (2, 2)])
def test_scales_of_norms_are_taken_over_by_convolutions(groups, size, stop_gradient):
    x = torch.randn(3, 4, size, size, dtype=DTYPE)
    check(scaled_norms(groups, 6).eval(), x, stop_gradient=stop_gradient)


def test_a_scale_stays_where_others_read_what_it_scales():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.out = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
            nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

        def forward(self, x):
            u = self.conv(x)
            return self.out(torch.tanh(self.norm(u)) + torch.sigmoid(u))

    check(Forked().eval(), torch.randn(2, 4, 9, 9, dtype=DTYPE), stop_gradient=False)


def test_inference_frees_what_no_slope_needs():
    """Beside a layer's own input and output only what the slope reads is kept until the reverse sweep."""
    torch.manual_seed(0)
    seen, most = [], 0

    def watch(module, arguments, output):
        nonlocal most
        seen.append(weakref.ref(output))
        most = max(most, sum(each() is not None for each in seen))

    layers = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)]
    layer = GradientResidual(nn.Sequential(*layers)).eval()
    for module in layers:
        module.register_forward_hook(watch)
    with torch.no_grad():
        layer(torch.randn(2, 4, 5, 5))
    assert most == 3


def test_wrong_rules_would_be_seen(monkeypatch):
    """The checks above fail for a slope that is off by 1e-8."""
    x = torch.randn(3, 4, dtype=DTYPE)

    def block():
        return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))

    with monkeypatch.context() as patch:
        right = SLOPES[F.gelu]
        patch.setitem(SLOPES, F.gelu, lambda *args, **kwargs: (1 + 1e-8) * right(*args, **kwargs))
        with pytest.raises(AssertionError):
            check(block(), x, stop_gradient=False, normalize="none")
    check(block(), x, stop_gradient=True)
