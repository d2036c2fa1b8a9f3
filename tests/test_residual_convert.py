"""Conversion of existing models: what changes, what stays, what is refused, and that it can be undone."""

from __future__ import annotations

import copy
import math
import pickle
import socket

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from nablanets import GradientResidual, add_gradient_residuals, remove_gradient_residuals
from nablanets.errors import InvalidInputError
from nablanets.residual import ConstantSumError
from nablanets.residual.mixing import unit
from tests.residual_models import (
    EDSR,
    BasicBlock,
    Bottleneck,
    DecoderLayer,
    PreActivation,
    ResNet,
    Transformer,
    plain_mlp,
)

IMAGE, TOKENS = (2, 3, 8, 8), (2, 5, 8)


def encoder(**settings):
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **settings)


MODELS = {
    "basic": (lambda: ResNet(BasicBlock), IMAGE, {"norm": "constant"}, ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]),
    "bottleneck": (lambda: ResNet(Bottleneck), IMAGE, {"norm": "before"}, ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]),
    "pre-activation": (lambda: ResNet(PreActivation), IMAGE, {}, ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]),
    "edsr": (EDSR, IMAGE, {}, ["body.0", "body.1"]),
    "decoder": (Transformer, TOKENS, {}, ["layers.0.mlp", "layers.1.mlp"]),
    "encoder": (lambda: nn.TransformerEncoder(encoder(), 2), TOKENS, {}, ["layers.0", "layers.1"]),
    "encoder, norm first": (lambda: encoder(norm_first=True, activation=F.gelu), TOKENS, {}, [""]),
    "mlp": (plain_mlp, (4, 3), {}, ["4"]),
}  # fmt: skip


def seeded(net, x):
    torch.manual_seed(0)
    return net(x)


@pytest.fixture(params=MODELS)
def case(request):
    build, shape, settings, names = MODELS[request.param]
    torch.manual_seed(1)
    return build(), torch.randn(shape), settings, names


@pytest.mark.parametrize("training", [True, False])
def test_without_gradient_it_computes_what_the_original_did(case, training):
    model, x, settings, names = case
    model.train(training)
    report = add_gradient_residuals(model, inplace=False, alpha=-math.inf, **settings)
    assert [block.name for block in report.converted] == names
    assert report.model is not model and all(name in str(report) for name in names)
    assert_close(seeded(report.model, x), seeded(model, x), rtol=1e-6, atol=1e-6)


def test_names_weights_and_the_way_back(case):
    model, x, settings, names = case
    model.eval()
    original = copy.deepcopy(model)
    converted = add_gradient_residuals(model, **settings).model
    assert converted is model and not torch.allclose(model(x), original(x), rtol=1e-3)
    place = "gradient_residual.alpha"
    new = {f"{name}.{place}".removeprefix(".") for name in names}
    assert set(model.state_dict()) - set(original.state_dict()) == new
    assert set(original.state_dict()) <= set(model.state_dict())

    fresh = copy.deepcopy(original)
    with torch.no_grad():
        for p in fresh.parameters():
            p.normal_()
    model.load_state_dict(fresh.state_dict())
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in fresh.named_parameters())
    again = add_gradient_residuals(copy.deepcopy(original), alpha=5.0, **settings).model
    again.load_state_dict(model.state_dict())
    assert_close(again(x), model(x))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(other(x), model(x))
        with torch.no_grad():
            next(other.parameters()).mul_(1.5)
        assert not torch.allclose(other(x), model(x), rtol=1e-4)  # a copy, not a view of the first

    assert remove_gradient_residuals(model) == len(names)
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert list(model.state_dict()) == list(original.state_dict())
    assert_close(model(x), fresh(x))
    assert remove_gradient_residuals(model) == 0


def test_gradient_is_that_of_the_branch(case):
    model, x, settings, names = case
    model.eval()
    seen = []
    converted = add_gradient_residuals(model, **settings).model
    for name in names:
        skip = converted.get_submodule(name).gradient_residual
        skip.register_forward_hook(lambda *call: seen.append(call), with_kwargs=True)
    converted(x)
    assert len(seen) == len(names)
    for skip, (root, z), settings, output in seen:
        point = z.detach().requires_grad_()
        value = skip.branch.run(root, point)
        g = torch.autograd.grad(value.sum(), point)[0]
        identity = 0 if skip.skip == "added" else (1 - skip.gate()) * z
        carried = identity + skip.gate() * unit(g, [skip.channel_dim])
        projection = settings.get("projection")
        assert_close(output, value + (carried if projection is None else projection(carried)), rtol=1e-4, atol=1e-5)


def test_training_reaches_every_parameter(case):
    model, x, settings, _ = case
    converted = add_gradient_residuals(model, **settings).model
    converted(x).square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in converted.parameters() if p.ndim == 0)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_converted_models_compile_and_checkpoint(case, stop_gradient):
    model, x, settings, _ = case
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):
            module.p = module.dropout = 0.0
    converted = add_gradient_residuals(model, stop_gradient=stop_gradient, **settings).model
    state = copy.deepcopy(converted.state_dict())
    results = []
    torch._dynamo.reset()
    for net in (
        converted,
        torch.compile(converted, fullgraph=True, backend="aot_eager"),
        lambda t: checkpoint(converted, t.clone().requires_grad_(), use_reentrant=False),
    ):
        converted.load_state_dict(state)
        converted.zero_grad()
        y = net(x)
        y.square().sum().backward()
        results.append([y, *(p.grad.clone() for p in converted.parameters())])
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


def test_converted_models_under_autocast_inference_vmap_and_channels_last(case):
    model, x, settings, _ = case
    converted = add_gradient_residuals(model.eval(), **settings).model
    y = converted(x)
    with torch.inference_mode():
        assert_close(converted(x), y, rtol=1e-5, atol=1e-5)
    assert_close(torch.vmap(converted)(torch.stack([x, x]))[1], y, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(torch.isfinite(converted(x)).all())
    if x.ndim == 4:
        converted = converted.to(memory_format=torch.channels_last)
        assert_close(converted(x.to(memory_format=torch.channels_last)), y, rtol=1e-5, atol=1e-5)


def test_settings_go_to_every_block():
    shared = nn.Parameter(torch.tensor(-2.0))
    model = add_gradient_residuals(EDSR(), alpha=shared, stop_gradient=False, normalize="sample").model
    skips = [model.body[i].gradient_residual for i in (0, 1)]
    assert all(s.alpha is shared and s.normalize == "sample" and not s.stop_gradient for s in skips)
    model = add_gradient_residuals(EDSR().double(), per_channel=True, probe="learned").model
    assert model.body[0].gradient_residual.alpha.shape == (8,)
    assert model.body[0].gradient_residual.probe.dtype == torch.float64


def test_where():
    names = lambda report: [block.name for block in report.converted]  # noqa: E731
    assert names(add_gradient_residuals(ResNet(), "layer2.*", norm="constant")) == ["layer2.0", "layer2.1"]
    chosen = add_gradient_residuals(
        ResNet(), lambda name, m: getattr(m, "downsample", None) is not None, norm="constant"
    )
    assert names(chosen) == ["layer2.0"]
    report = add_gradient_residuals(EDSR(), where="body.1")
    assert names(report) == ["body.1"]
    again = add_gradient_residuals(report.model, where="body.0")
    assert names(again) == ["body.0"] and remove_gradient_residuals(report.model) == 2


def test_padding_masks_of_encoders_work_in_evaluation():
    """torch's fused kernel and nested tensors, which encoders use there, know nothing of the skip."""
    encoder_stack = nn.TransformerEncoder(encoder(dropout=0.0), 2)
    x, mask = torch.randn(TOKENS), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    converted = add_gradient_residuals(encoder_stack, inplace=False).model
    trained = converted.train()(x, src_key_padding_mask=mask)
    with torch.no_grad():
        assert_close(converted.eval()(x, src_key_padding_mask=mask), trained, rtol=1e-5, atol=1e-5)
    nested = encoder_stack.use_nested_tensor
    remove_gradient_residuals(converted)
    assert converted.use_nested_tensor == nested and converted.layers[0].activation_relu_or_gelu == 1


def test_arguments_of_larger_forwards_are_kept():
    model, x = Transformer().eval(), torch.randn(TOKENS)
    mask = torch.full((5, 5), -math.inf).triu(1)
    expected = model(x, attention_mask=mask)
    converted = add_gradient_residuals(model, alpha=-math.inf).model
    assert_close(converted(x, attention_mask=mask), expected)
    assert not torch.allclose(converted(x), expected)


def test_batch_norm_tails_are_refused_and_nothing_changes():
    model = ResNet()
    before = [type(m) for m in model.modules()]
    with pytest.raises(ConstantSumError, match=r"layer1\.0.*bn2.*norm='before'.*norm='constant'"):
        add_gradient_residuals(model)
    assert [type(m) for m in model.modules()] == before


class Gated(nn.Module):
    """Two sums in one forward."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.b = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x):
        x = x + self.a(x)
        return x + self.b(x)


class Dropped(DecoderLayer):
    """Something active between the mlp and the sum, used twice."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, hidden_states, attention_mask=None):
        h = self.self_attn(self.input_layernorm(hidden_states), attention_mask)[0]
        hidden_states = hidden_states + self.dropout(h)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class OutsideUse(nn.Module):
    """The branch's inner value is used elsewhere too."""

    def __init__(self):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        h = self.act(self.up(x))
        return x + self.down(h) + scale * h


class InPlace(nn.Module):
    """relu(x) + F(x), though it reads x + F(x)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))

    def forward(self, x):
        return x + self.body(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "no sum"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), "no sum"),
        (Dropped(), "not known"),
        (OutsideUse(), "not known"),
        (InPlace(), "inplace=False"),
        (nn.LSTM(2, 2), "residual blocks"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "cannot be read"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_converted_is_refused(model, reason):
    before = [type(m) for m in model.modules()]
    with pytest.raises(InvalidInputError, match=reason):
        add_gradient_residuals(model)
    assert [type(m) for m in model.modules()] == before


def test_two_chains_in_one_forward():
    model, x = Gated(), torch.randn(3, 4)
    expected = model(x)
    report = add_gradient_residuals(model, alpha=-math.inf)
    assert [block.name for block in report.converted] == ["a", "b"]
    assert_close(report.model(x), expected)


def test_refusals_stand_in_the_report():
    model = nn.Sequential(GatedPair(), Dropped())
    report = add_gradient_residuals(model)
    assert [block.name for block in report.converted] == ["0"]
    assert "1" in report.refused and "not known" in report.refused["1"] and "left as it was: 1" in str(report)


class GatedPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x):
        return x + self.body(x)


def test_layers_of_ours_are_left_alone():
    model = nn.Sequential(GradientResidual(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))), GatedPair())
    assert [block.name for block in add_gradient_residuals(model).converted] == ["1"]
    for ours in (model, model[:1], add_gradient_residuals(plain_mlp()).model):
        with pytest.raises(InvalidInputError, match="found none"):
            add_gradient_residuals(ours)


class Labelled:
    """A base beside nn.Module, before it."""

    label = "none"

    def labelled(self):
        return f"{type(self).__name__}: {self.label}"


class LabelledBlock(Labelled, GatedPair):
    """A subclass of a block with two bases, as applications write them."""

    def __init__(self):
        super().__init__()
        self.label = "mine"


class Mixed(nn.Module):
    """A chain whose host is a subclass with two bases."""

    class Part(Labelled, nn.Sequential):
        pass

    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), self.Part(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x, scale=1.0):
        return x + self.mlp(self.norm(x))


def contents(model):
    """Everything that a module is: its class and attributes, those of nn.Module included."""
    return [(name, type(m), list(m.__dict__), *map(list, (m._parameters, m._buffers, m._modules))) for name, m in model.named_modules()]  # fmt: skip


@pytest.mark.parametrize("build", [LabelledBlock, Mixed, lambda: nn.Sequential(LabelledBlock(), Mixed(), GatedPair())])
def test_subclasses_with_several_bases_are_converted_and_come_back_exactly(build):
    model, x = build(), torch.randn(3, 8)
    original, expected = contents(model), model(x)
    flags = [{k: v for k, v in m.__dict__.items() if isinstance(v, bool | str)} for m in model.modules()]
    for _ in range(2):  # and a second time from what came back
        converted = add_gradient_residuals(model, alpha=2.0).model
        assert not torch.allclose(converted(x), expected)
        for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
            assert_close(other(x), converted(x))
            assert remove_gradient_residuals(other) > 0
            assert contents(other) == original and torch.equal(other(x), expected)
        assert all(m.labelled().endswith(": mine") for m in converted.modules() if isinstance(m, LabelledBlock))
        assert remove_gradient_residuals(model) > 0
        assert contents(model) == original and torch.equal(model(x), expected)
        assert flags == [{k: v for k, v in m.__dict__.items() if isinstance(v, bool | str)} for m in model.modules()]


def test_encoders_come_back_exactly_after_two_conversions():
    model = nn.TransformerEncoder(encoder(norm_first=True), 2, enable_nested_tensor=False)
    model.use_nested_tensor = True
    before = contents(model), model.use_nested_tensor, model.layers[0].activation_relu_or_gelu
    add_gradient_residuals(model, where="layers.0")
    add_gradient_residuals(model, where="layers.1")
    assert not model.use_nested_tensor and model.layers[0].activation_relu_or_gelu == 0
    assert remove_gradient_residuals(model) == 2
    assert before == (contents(model), model.use_nested_tensor, model.layers[0].activation_relu_or_gelu)


def test_a_class_that_was_changed_after_the_conversion_is_not_taken_away():
    model = add_gradient_residuals(plain_mlp()).model
    nn.utils.parametrizations.weight_norm(model[4])
    with pytest.raises(InvalidInputError, match="Undo that first"):
        remove_gradient_residuals(model)
    nn.utils.parametrize.remove_parametrizations(model[4], "weight")
    assert remove_gradient_residuals(model) == 1 and type(model[4]) is nn.Linear


def test_parametrised_models_are_converted_and_come_back():
    model, x = plain_mlp(), torch.randn(4, 3)
    nn.utils.parametrizations.weight_norm(model[4])
    before, expected = contents(model), model(x)
    report = add_gradient_residuals(model, alpha=-math.inf)
    assert report.converted[0].cls == "ParametrizedLinear"
    assert_close(model(x), expected)
    assert remove_gradient_residuals(model) == 1 and contents(model) == before


class TwoLayers(nn.Module):
    """Layers that share what would compute their branches, which cannot then know whose norm comes before it."""

    def __init__(self, shared):
        super().__init__()
        self.layers = nn.ModuleList([Mixed(), Mixed()])
        if shared == "layer":
            self.layers[1] = self.layers[0]
        elif shared:
            setattr(self.layers[1], shared, getattr(self.layers[0], shared))

    def forward(self, x):
        return self.layers[1](self.layers[0](x))


@pytest.mark.parametrize("shared", ["mlp", "norm"])
def test_children_that_other_layers_use_too_are_left(shared):
    model = TwoLayers(shared)
    before = contents(model)
    with pytest.raises(InvalidInputError, match=f"'{shared}' is used elsewhere"):
        add_gradient_residuals(model)
    assert contents(model) == before


def test_layers_that_are_used_twice_as_a_whole_are_converted():
    model, x = TwoLayers("layer"), torch.randn(3, 8)
    expected = model(x)
    report = add_gradient_residuals(model, alpha=-math.inf)
    assert [block.name for block in report.converted] == ["layers.0.mlp"]
    assert_close(model(x), expected)


def _train(rank, world, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = add_gradient_residuals(EDSR(), stop_gradient=False).model
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3)).chunk(world)[rank]
    for _ in range(3):
        optimizer.zero_grad()
        parallel(x).square().mean().backward()
        optimizer.step()
    if rank == 0:
        queue.put([p.detach().numpy().copy() for p in model.parameters()])
    del parallel, optimizer
    torch.distributed.barrier()  # or one closes the connection while the other still uses it, which aborts at times
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_training_equals_training_in_one_process():
    results = []
    for world in (1, 2):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        context = torch.multiprocessing.get_context("spawn")
        queue = context.SimpleQueue()
        processes = [context.Process(target=_train, args=(rank, world, port, queue)) for rank in range(world)]
        for process in processes:
            process.start()
        results.append([torch.from_numpy(p) for p in queue.get()])
        for process in processes:
            process.join()
            assert process.exitcode == 0
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
