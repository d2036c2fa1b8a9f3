"""Gradient residual layers: settings, arms, refusals, and everything that torch can do with a module."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from nablanets import GradientResidual, add_gradient_residuals
from nablanets.errors import InvalidInputError, NablaError, ShapeError, UnknownNameError
from nablanets.residual import ConstantSumError, ResidualSettings, SkipKind, kinds, register_skip
from nablanets.residual.branch import Branch
from nablanets.residual.mixing import unit
from tests.residual_models import UnreadableNorm, plain_mlp


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))


def conv():
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 4, 3, padding=1))


def norm_conv():
    first, second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(inplace=True), second, nn.BatchNorm2d(4))


def test_skips_are_what_they_say():
    torch.manual_seed(0)
    block, x, s = mlp(), torch.randn(5, 4), torch.sigmoid(torch.tensor(0.7))
    y, g = block(x), GradientResidual(block).gradient(x)
    expected = {"gradient": (1 - s) * x + s * g, "pure": g, "added": s * g}
    for skip, carried in expected.items():
        assert_close(GradientResidual(block, 0.7, skip=skip, normalize="none")(x), y + carried)


class Doubled(SkipKind):
    """2 x, or s m (x + g) with a trained m, in one kind of a test's own."""

    def prepare(self, layer):
        layer.multiple = nn.Parameter(torch.full((), 3.0))

    def carried(self, layer, x, g):
        return layer.gate_for(x) * layer.multiple * (x + layer.normalized(g))


@pytest.fixture
def doubled(monkeypatch):
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    register_skip("doubled", Doubled())


def test_a_kind_of_ones_own_joins_layers_and_models(doubled):
    block, x = mlp(), torch.randn(5, 4)
    layer = GradientResidual(block, 0.7, skip="doubled", gain=2.0)
    g = layer.gradient(x)
    expected = block(x) + torch.sigmoid(torch.tensor(0.7)) * 3 * (x + 2 * g / g.norm(dim=-1, keepdim=True))
    assert_close(layer(x), expected)
    assert set(dict(layer.named_parameters(recurse=False))) == {"multiple", "alpha"}
    assert_close(pickle.loads(pickle.dumps(layer))(x), expected)
    report = add_gradient_residuals(plain_mlp(), skip="doubled")
    assert "4.gradient_residual.multiple" in report.model.state_dict()


def test_names_of_kinds_are_not_taken_twice(doubled):
    register_skip("doubled", Doubled())  # a module that is imported again
    with pytest.raises(InvalidInputError, match="taken by GatedGradient"):
        register_skip("gradient", Doubled())
    with pytest.raises(InvalidInputError, match="object of a subclass"):
        register_skip("other", Doubled)


def test_a_kind_without_gradient_that_asks_for_it_is_explained(monkeypatch):
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    register_skip("mistaken", type("Mistaken", (kinds.PureGradient,), {"needs_gradient": False})())
    with pytest.raises(InvalidInputError, match="needs_gradient = True"):
        GradientResidual(mlp(), skip="mistaken")(torch.randn(5, 4))


@pytest.mark.parametrize(
    ("normalize", "shape", "dims"),
    [
        ("position", (2, 4, 5, 6), (1,)), ("sample", (2, 4, 5, 6), (1, 2, 3)), ("channel", (2, 4, 5, 6), (2, 3)),
        ("sample", (4, 5, 6), (0, 1, 2)), ("position", (2, 3, 4), (2,)), ("sample", (2, 3, 4), (1, 2)),
        ("channel", (2, 3, 4), (1,)), ("sample", (2, 4), (1,)), ("sample", (4,), (0,)),
    ],
)  # fmt: skip
def test_axes_of_the_norm(normalize, shape, dims):
    block = conv() if shape[-1] == 6 else mlp()
    layer = GradientResidual(block, skip="pure", normalize=normalize)
    x = torch.randn(shape)
    direction = layer(x) - block(x)
    g = layer.gradient(x)
    assert_close(direction, g / g.square().sum(dim=dims, keepdim=True).sqrt(), rtol=1e-4, atol=1e-5)


def test_norm_over_positions_needs_positions():
    with pytest.raises(InvalidInputError, match="Use 'position'"):
        GradientResidual(mlp(), normalize="channel")(torch.randn(3, 4))


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("normalize", ["position", "sample", "none"])
def test_zero_gradient_is_safe(stop_gradient, normalize):
    block = mlp()
    for p in block.parameters():
        nn.init.zeros_(p)
    layer = GradientResidual(block, stop_gradient=stop_gradient, normalize=normalize)
    x = torch.randn(3, 4, requires_grad=True)
    y = layer(x)
    assert_close(y, x / 2)
    y.sum().backward()
    assert all(bool(torch.isfinite(t.grad).all()) for t in (x, *layer.parameters()))
    assert_close(x.grad, torch.full_like(x, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_unit_norm_of_tiny_and_large_gradients(dtype):
    g = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-12, 4e-12], [3e15, 4e15]], dtype=dtype)
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8], [0.6, 0.8]], dtype=dtype)
    for wanted in (False, True):
        assert_close(unit(g.clone().requires_grad_(wanted), [1]).detach(), expected)


@pytest.mark.parametrize("normalize", ["position", "none"])
def test_gain_multiplies_the_gradient_and_nothing_else(normalize):
    torch.manual_seed(0)
    block, x = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 4)), torch.randn(7, 4)
    layer = GradientResidual(block, 1.0, normalize=normalize, gain=5.0)
    g = layer.gradient(x)
    g = g if normalize == "none" else g / g.norm(dim=-1, keepdim=True)
    s = torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(layer(x), block(x) + (1 - s) * x + 5 * s * g)
    pure = GradientResidual(block, normalize=normalize, gain=5.0, skip="pure")
    torch.testing.assert_close(pure(x), block(x) + 5 * g)


def test_alpha_per_block_per_channel_shared_and_fixed():
    x = torch.randn(2, 4, 5, 5)
    assert GradientResidual(conv()).alpha.shape == ()
    layer = GradientResidual(conv(), -1.0, per_channel=True)
    assert layer.alpha.shape == (4,)
    layer(x).sum().backward()
    assert bool((layer.alpha.grad != 0).all())
    with torch.no_grad():
        layer.alpha[1:] = -math.inf
    assert_close((layer(x) - layer.block(x))[:, 1:], x[:, 1:])
    assert GradientResidual(mlp(), torch.tensor([1.0, 2.0, 3.0, 4.0])).alpha.tolist() == [1, 2, 3, 4]

    shared = nn.Parameter(torch.tensor(-1.0))
    stack = nn.Sequential(GradientResidual(mlp(), shared), GradientResidual(mlp(), shared))
    assert sum(p is shared for p in stack.parameters()) == 1
    stack(torch.randn(3, 4)).sum().backward()
    assert shared.grad != 0

    class Schedule(nn.Module):
        value = -2.0

        def forward(self):
            return torch.tensor(self.value)

    scheduled = GradientResidual(mlp(), Schedule())
    assert_close(scheduled.gate(), torch.sigmoid(torch.tensor(-2.0)))
    fixed = GradientResidual(mlp(), 3.0, learn_alpha=False)
    assert "alpha" in fixed.state_dict() and not any(name == "alpha" for name, _ in fixed.named_parameters())


def test_without_gradient_is_the_plain_residual_block():
    for block, x in ((mlp(), torch.randn(3, 4)), (conv(), torch.randn(2, 4, 5, 5))):
        assert torch.equal(GradientResidual(block, -math.inf)(x), block(x) + x)


def test_projection_and_wrong_shapes():
    block, x = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1)), torch.randn(2, 4, 8, 8)
    with pytest.raises(ShapeError, match="Give a projection"):
        GradientResidual(block)(x)
    layer = GradientResidual(block, projection=nn.Conv2d(4, 6, 1, 2))
    s, g = layer.gate(), unit(layer.gradient(x), [1])
    assert_close(layer(x), block(x) + layer.projection((1 - s) * x + s * g))


@pytest.mark.parametrize(
    "tail",
    [
        nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Softmax(dim=-1), nn.InstanceNorm1d(4),
        nn.Sequential(nn.LayerNorm(4), nn.Dropout(0.1), nn.Identity()),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_constant_output_sums_are_refused_with_remedies(tail):
    block = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), tail)
    for probe in ("ones", "learned"):
        with pytest.raises(ConstantSumError, match=r"norm='before'.*norm='constant'"):
            GradientResidual(block, probe=probe)
    x = torch.randn(6, 4)
    for norm in ("before", "constant"):
        layer = GradientResidual(block, norm=norm, stop_gradient=False)
        g = layer.gradient(x) if not isinstance(tail, nn.InstanceNorm1d) else layer.gradient(torch.randn(2, 4, 4))
        assert g.abs().max() > 1e-3


def test_remedies_are_what_they_say():
    block, x = norm_conv().double(), torch.randn(3, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        for norm in (block[1], block[4]):
            norm.weight.uniform_(0.5, 2)
    g = GradientResidual(copy.deepcopy(block), norm="before").double().gradient(x)
    assert_close(g, torch.func.grad(lambda t: copy.deepcopy(block)[:4](t).sum())(x.clone().requires_grad_()))

    g = GradientResidual(copy.deepcopy(block), norm="constant").double().gradient(x)
    frozen, t = copy.deepcopy(block), x
    with torch.no_grad():
        for i, layer in enumerate(frozen):
            if i in (1, 4):
                variance, mean = torch.var_mean(t, dim=(0, 2, 3), correction=0)
                layer.eval().running_mean.copy_(mean), layer.running_var.copy_(variance)
            t = layer(t)
    assert_close(g, torch.func.grad(lambda t: frozen(t.clone()).sum())(x))


def test_batch_norm_is_refused_only_where_it_uses_the_batch():
    layer = GradientResidual(norm_conv().eval())
    x = torch.randn(3, 4, 6, 6)
    layer.eval()
    layer(x)
    with pytest.raises(ConstantSumError, match="BatchNorm2d"):
        layer.train()(x)


def test_one_branch_serves_several_roots():
    """Their last layers differ: what ends one block says nothing about another, whichever is seen first."""
    ends = {"norm": nn.LayerNorm(4), "none": nn.Identity(), "linear": nn.Linear(4, 4)}
    roots = {name: nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4), end) for name, end in ends.items()}
    x = torch.randn(5, 4)
    for first, start in roots.items():
        exact, before = (Branch.of(start, norm) for norm in ("exact", "before"))
        for name in (first, *roots):
            if name == "norm":
                with pytest.raises(ConstantSumError):
                    exact.refuse_constant_sum(roots[name], uniform=True, owner="test")
            else:
                exact.refuse_constant_sum(roots[name], uniform=True, owner="test")
            part = roots[name][:3] if name == "norm" else roots[name]
            expected = torch.func.vmap(torch.func.jacrev(part))(x).sum(dim=1)
            assert_close(before.linearise(roots[name], x, detach=False)[1](torch.ones(())), expected)


def test_a_norm_that_is_put_at_the_end_later_is_seen():
    layer, x = GradientResidual(mlp()), torch.randn(3, 4)
    layer(x)
    layer.block[2] = nn.LayerNorm(8)
    with pytest.raises(ConstantSumError, match="LayerNorm"):
        layer(x)


def test_random_probe_makes_layer_norm_legal_but_not_batch_norm():
    linear = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    layer = GradientResidual(nn.Sequential(linear, nn.LayerNorm(4)), probe=torch.tensor([1.0, -1.0, 1.0, 1.0]))
    assert layer.gradient(torch.randn(3, 4)).abs().max() > 1e-3
    with pytest.raises(ConstantSumError):
        GradientResidual(nn.Sequential(linear, nn.BatchNorm1d(4)), probe="random")


def test_unknown_structures_are_tried_at_the_first_call():
    layer, x = GradientResidual(UnreadableNorm(4)), torch.randn(6, 4)
    state = torch.get_rng_state()
    with pytest.raises(ConstantSumError, match=r"\|J\^T 1\| is .* of \|J\^T r\|"):
        layer(x)
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        layer.block.gain.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    layer(x)
    with pytest.raises(InvalidInputError, match="whose forward can be read"):
        GradientResidual(UnreadableNorm(4), norm="constant")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"skip": "gradent"}, UnknownNameError, "no skip 'gradent'.*'gradient'"),
        ({"normalize": "pixel"}, UnknownNameError, "position"), ({"probe": "one"}, UnknownNameError, "ones"),
        ({"norm": "exat"}, UnknownNameError, "exact"), ({"normalise": "sample"}, UnknownNameError, "'normalize'"),
        ({"normalize": None}, InvalidInputError, "one of 'position'.*got None"),
        ({"alpha": [1.0]}, InvalidInputError, "alpha to be a number.*got"),
        ({"alpha": math.nan}, InvalidInputError, "alpha to be a number"),
        ({"learn_alpha": 1}, InvalidInputError, "learn_alpha=True"),
        ({"per_channel": "yes"}, InvalidInputError, "per_channel=True"),
        ({"stop_gradient": None}, InvalidInputError, "stop_gradient=True"),
        ({"gain": math.inf}, InvalidInputError, "gain to be a finite number"),
        ({"gain": "2"}, InvalidInputError, "gain to be a finite number"),
        ({"channels": 0}, InvalidInputError, "channels to be an integer >= 1"),
        ({"channels": 2.0}, InvalidInputError, "channels to be an integer >= 1"),
        ({"channel_dim": 1}, InvalidInputError, "counted from the end"),
        ({"channel_dim": True}, InvalidInputError, "counted from the end"),
    ],
)  # fmt: skip
def test_wrong_settings_are_explained(settings, error, message):
    for make in (lambda: GradientResidual(mlp(), **settings), lambda: add_gradient_residuals(plain_mlp(), **settings)):
        with pytest.raises(error, match=message):
            make()


def test_settings_are_frozen_and_each_has_a_check():
    settings = ResidualSettings(alpha=torch.zeros(3), gain=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.gain = 3.0
    for name in (each.name for each in dataclasses.fields(settings)):
        with pytest.raises(InvalidInputError, match=name if name not in {"skip", "probe"} else "one of"):
            dataclasses.replace(settings, **{name: object()})


def test_settings_that_do_not_fit_the_block_are_explained():
    with pytest.raises(InvalidInputError, match="channels="):
        GradientResidual(UnreadableNorm(4), probe="random")
    with pytest.raises(InvalidInputError, match="stop_gradient=False"):
        GradientResidual(nn.Sequential(nn.Linear(4, 4), nn.CELU(), nn.Linear(4, 4)), probe="learned")
    for error in (ConstantSumError, UnknownNameError):
        assert issubclass(error, NablaError)


def test_replaced_submodules_are_found():
    """Adapters replace layers by others of the same name; the closed form must follow."""
    layer, x = GradientResidual(mlp()), torch.randn(3, 4)
    layer.block[0] = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    jacobian = torch.func.vmap(torch.func.jacrev(layer.block))(x)
    assert_close(layer.gradient(x), jacobian.sum(dim=1))


def test_hooks_and_parametrisations_are_honoured():
    block, x, seen = mlp(), torch.randn(3, 4), []
    nn.utils.parametrizations.weight_norm(block[0])
    nn.utils.parametrizations.spectral_norm(block[2])
    layer = GradientResidual(block).eval()
    block[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    jacobian = torch.func.vmap(torch.func.jacrev(block))(x)
    seen.clear()
    assert_close(layer.gradient(x), jacobian.sum(dim=1))
    assert seen == [torch.Size([3, 8])]


CASES = {
    "mlp": (lambda **k: GradientResidual(mlp(), **k), (3, 4)),
    "conv": (lambda **k: GradientResidual(conv(), **k), (2, 4, 6, 6)),
    "norms": (lambda **k: GradientResidual(norm_conv(), norm="constant", **k), (2, 4, 6, 6)),
    "before": (lambda **k: GradientResidual(norm_conv(), norm="before", **k), (2, 4, 6, 6)),
    "learned": (lambda **k: GradientResidual(mlp(), probe="learned", per_channel=True, **k), (3, 4)),
    "leaf": (lambda **k: GradientResidual(nn.Sequential(nn.Linear(4, 8), nn.CELU(), nn.Linear(8, 4)), **k), (3, 4)),
}


def build(case, stop_gradient):
    constructor, shape = CASES[case]
    return constructor(stop_gradient=stop_gradient), torch.randn(shape)


def gradients(net, call, x):
    net.zero_grad()
    y = call(x)
    y.square().sum().backward()
    return y, [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_what_torch_does_with_modules(case, stop_gradient):
    layer, x = build(case, stop_gradient)
    layer(x)
    twin = copy.deepcopy(layer)
    reference = gradients(layer, layer, x)
    assert all(bool((g != 0).any()) for (name, _), g in zip(layer.named_parameters(), reference[1], strict=True)), case
    assert_close(gradients(twin, twin, x), reference)
    state = copy.deepcopy(layer.state_dict())

    for other in (pickle.loads(pickle.dumps(layer)), build(case, stop_gradient)[0]):
        other.load_state_dict(state)
        layer.load_state_dict(state)
        assert_close(gradients(other, other, x), gradients(layer, layer, x))
    layer.load_state_dict(state)
    leaf = case == "leaf"
    rerun = gradients(layer, lambda t: checkpoint(layer, t.requires_grad_(), use_reentrant=leaf), x.clone())
    assert_close(rerun, reference)

    layer.eval()
    y = layer(x)
    before = x.clone(), torch.get_rng_state(), copy.deepcopy(layer.state_dict())
    with torch.inference_mode():
        assert_close(layer(x), y)
    with torch.no_grad():
        assert_close(layer(x), y)
    assert torch.equal(before[0], x) and torch.equal(before[1], torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before[2].values(), layer.state_dict().values(), strict=True))
    assert_close(torch.vmap(layer)(torch.stack([x, 2 * x])), torch.stack([y, layer(2 * x)]))
    by_function = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).square().sum())
    expected = gradients(layer, layer, x)[1]
    assert_close(list(by_function(dict(layer.named_parameters())).values()), expected)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gradients(layer, lambda t: layer(t).float(), x)
    assert_close(mixed[0], y.float(), rtol=0.1, atol=0.1)
    assert all(bool(torch.isfinite(g).all()) for g in mixed[1])
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert_close(layer.double()(x.double()).float(), y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_compiles_in_training_without_graph_breaks(case, stop_gradient):
    torch._dynamo.reset()
    layer, x = build(case, stop_gradient)
    state = copy.deepcopy(layer.state_dict())
    compiled = gradients(layer, torch.compile(layer, fullgraph=True, backend="aot_eager"), x)
    layer.load_state_dict(state)
    assert_close(compiled, gradients(layer, layer, x))


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_exports(stop_gradient):
    layer, x = build("conv", stop_gradient)
    assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_channels_last_is_kept(stop_gradient):
    for case in ("conv", "norms"):
        layer, x = build(case, stop_gradient)
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
        assert layer.gradient(x).is_contiguous(memory_format=torch.channels_last)


def test_blocks_that_cannot_be_read_tell_where_their_channels_are():
    class Hidden(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) if self.training else self.inner(x) * 1

    layer, x = GradientResidual(Hidden(conv()), skip="pure"), torch.randn(2, 4, 6, 6)
    assert not layer.closed_form
    assert_close((layer(x) - layer.block(x)).norm(dim=1), torch.ones(2, 6, 6))
    assert GradientResidual(Hidden(mlp())).channel_dim == -1


def test_samples_are_independent_of_each_other():
    for block, x in ((mlp(), torch.randn(5, 4)), (conv(), torch.randn(3, 4, 6, 6))):
        layer = GradientResidual(block)
        assert_close(layer(x)[1:2], layer(x[1:2]))
        assert_close(torch.vmap(layer)(x), layer(x))


@pytest.mark.parametrize("tail", [nn.Identity(), nn.Dropout(), nn.ReLU(), nn.Flatten(1), nn.Linear(4, 4)])
def test_inference_overwrites_nothing_that_others_hold(tail):
    block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), tail).eval()
    layer, x = GradientResidual(block).eval(), torch.randn(3, 4)
    seen = []
    for module in (block[1], tail):
        module.register_forward_hook(lambda module, arguments, output: seen.append((output, output.clone())))
    before = x.clone()
    with torch.no_grad():
        y = layer(x)
    assert_close(y, layer(x).detach())
    assert torch.equal(x, before) and seen
    assert all(torch.equal(output, copied) for output, copied in seen)
    empty = GradientResidual(nn.Sequential(nn.Identity()), channels=4)
    with torch.no_grad():
        empty(x)
    assert torch.equal(x, before)


def test_inference_does_not_overwrite_what_a_layer_of_unknown_forward_keeps():
    class Remembering(nn.Linear):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    block, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Remembering(4, 4)).eval(), torch.randn(3, 4)
    layer = GradientResidual(block).eval()
    with torch.no_grad():
        layer(x)
        kept = block[2].last.clone()
        expected = block(x)
    assert_close(kept, expected)
