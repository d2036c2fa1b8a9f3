"""Classifiers and segmenters: every skip, torchvision's names and numbers, conversion that changes nothing at s = 0."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nablanets import add_gradient_residuals, load
from nablanets.errors import InvalidInputError, ModelFileError, UnknownNameError
from nablanets.residual import ConstantSumError
from nablanets.serialization import save
from nablanets_studies.images.models import ResNet, Segmenter, UNet, load_weights
from nablanets_studies.residual.arms import ARMS

MODELS = {
    "resnet": lambda skip: ResNet(5, blocks=(1, 2), width=8, stem="cifar", skip=skip),
    "resnet-group": lambda skip: ResNet(5, blocks=(1, 1), width=8, stem="half", skip=skip, normalization="group"),
    "unet": lambda skip: UNet(5, width=8, levels=2, skip=skip),
    "fcn": lambda skip: Segmenter(5, head="fcn", blocks=(1, 1, 1), width=8, stem="cifar", skip=skip),
    "deeplab": lambda skip: Segmenter(5, blocks=(1, 1), width=8, stem="cifar", skip=skip, rates=(2, 4)),
}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", MODELS)
def test_every_arm_trains_and_is_saved(name, arm, tmp_path):
    torch.manual_seed(0)
    skip = {"arm": arm, "alpha": -2.0}
    net, x = MODELS[name](skip), torch.rand(3, 3, 16, 16)
    y = net(x)
    assert y.shape == ((3, 5) if "resnet" in name else (3, 5, 16, 16))
    y.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters() if p.requires_grad)
    save(net, tmp_path / "net.safetensors")
    net.eval()
    assert torch.equal(load(tmp_path / "net.safetensors").eval()(x), net(x))


@pytest.mark.parametrize("name", MODELS)
def test_arms_differ_and_s_0_is_the_standard_skip(name):
    x = torch.rand(3, 3, 16, 16, dtype=torch.double)
    outputs = {}
    for arm, alpha in (("standard", 0.0), ("gradient", -math.inf), ("gradient", 0.0), ("damped", 0.0)):
        torch.manual_seed(0)
        net = MODELS[name]({"arm": arm, "alpha": alpha} if arm != "standard" else arm).double()
        torch.manual_seed(1)
        outputs[arm, alpha] = net(x)
    standard = outputs.pop(("standard", 0.0))
    assert torch.allclose(outputs.pop(("gradient", -math.inf)), standard, atol=1e-12)
    assert not torch.allclose(*outputs.values(), atol=1e-3)


@pytest.mark.parametrize("norm", ["before", "constant"])
def test_where_the_gradient_is_taken_can_be_chosen(norm):
    torch.manual_seed(0)
    net = ResNet(5, blocks=(1,), width=8, stem="cifar", skip={"arm": "gradient", "norm": norm})
    assert net.layer1[0].gradient_residual.branch.norm == norm
    with pytest.raises(ConstantSumError, match="norm='before'"):
        ResNet(5, blocks=(1,), width=8, skip={"arm": "gradient", "norm": "exact"})


@pytest.mark.parametrize(("blocks", "count"), [((2, 2, 2, 2), 11_689_512), ((3, 4, 6, 3), 21_797_672)])
def test_sizes_are_the_published_ones(blocks, count):
    with torch.device("meta"):
        net = ResNet(1000, blocks=blocks)
    assert sum(p.numel() for p in net.parameters()) == count


def torchvision_weights(blocks: tuple[int, ...], width: int, classes: int) -> dict[str, torch.Tensor]:
    """Random weights with the names and shapes of torchvision's ResNets of basic blocks."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def conv(name: str, *shape: int) -> None:
        weights[f"{name}.weight"] = torch.randn(*shape, generator=generator) / math.prod(shape[1:]) ** 0.5

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean"):
            weights[f"{name}.{part}"] = torch.randn(channels, generator=generator)
        weights[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", width, 3, 7, 7)
    norm("bn1", width)
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width << stage
        for k in range(count):
            name = f"layer{stage + 1}.{k}"
            conv(f"{name}.conv1", outputs, inputs, 3, 3)
            norm(f"{name}.bn1", outputs)
            conv(f"{name}.conv2", outputs, outputs, 3, 3)
            norm(f"{name}.bn2", outputs)
            if inputs != outputs:
                conv(f"{name}.downsample.0", outputs, inputs, 1, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    weights["fc.weight"] = torch.randn(classes, inputs, generator=generator)
    weights["fc.bias"] = torch.randn(classes, generator=generator)
    return weights


def torchvision_forward(w: dict[str, torch.Tensor], blocks: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    """What torchvision's ResNet computes in evaluation, written with functions."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, weight, bias = (w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)

    x = F.max_pool2d(F.relu(norm("bn1", F.conv2d(x, w["conv1.weight"], stride=2, padding=3))), 3, 2, 1)
    for stage, count in enumerate(blocks):
        for k in range(count):
            name, stride = f"layer{stage + 1}.{k}", 2 if stage and not k else 1
            y = F.relu(norm(f"{name}.bn1", F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1)))
            y = norm(f"{name}.bn2", F.conv2d(y, w[f"{name}.conv2.weight"], padding=1))
            if f"{name}.downsample.0.weight" in w:
                x = norm(f"{name}.downsample.1", F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride))
            x = F.relu(x + y)
    return F.linear(x.mean(dim=(2, 3)), w["fc.weight"], w["fc.bias"])


BLOCKS = (2, 2, 2, 2)


@pytest.fixture
def theirs():
    weights = torchvision_weights(BLOCKS, 8, 5)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return weights, x, torchvision_forward(weights, BLOCKS, x)


@pytest.mark.parametrize("skip", ["standard", {"arm": "gradient", "alpha": -math.inf}])
def test_torchvision_weights_compute_what_torchvision_does(theirs, skip):
    weights, x, expected = theirs
    net = ResNet(5, blocks=BLOCKS, width=8, skip=skip)
    report = load_weights(net, weights)
    assert report.left_out == []
    assert torch.allclose(net.eval()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["before", "constant"])
def test_conversion_changes_nothing_at_s_0(theirs, norm):
    weights, x, expected = theirs
    net = ResNet(5, blocks=BLOCKS, width=8).eval()
    assert set(net.state_dict()) == set(weights)
    load_weights(net, weights)
    report = add_gradient_residuals(net, alpha=-math.inf, norm=norm)
    assert len(report.converted) == sum(BLOCKS)
    assert torch.allclose(net(x), expected, rtol=1e-4, atol=1e-4)
    net.load_state_dict({**net.state_dict(), **weights})
    for module in net.modules():
        if hasattr(module, "gradient_residual"):
            with torch.no_grad():
                module.gradient_residual.alpha.fill_(0.0)
    assert not torch.allclose(net(x), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_conversion_of_the_libraries_own_models(library):
    module = pytest.importorskip(library, exc_type=ImportError)
    net = (module.models.resnet18() if library == "torchvision" else module.create_model("resnet18")).eval()
    x = torch.rand(1, 3, 64, 64)
    expected = net(x)
    add_gradient_residuals(net, alpha=-math.inf, norm="before")
    assert torch.allclose(net(x), expected, rtol=1e-4, atol=1e-5)


def test_partial_and_foreign_weights(theirs, tmp_path):
    weights, *_ = theirs
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "w.pth")
    net = Segmenter(4, blocks=BLOCKS, width=8)
    report = load_weights(net, tmp_path / "w.pth")
    assert report.left_out == ["module.fc.bias", "module.fc.weight"]
    assert torch.equal(net.backbone.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])
    assert all(name.startswith("classifier.") for name in report.kept)
    assert "left out module.fc.bias" in str(report)
    with pytest.raises(InvalidInputError, match="no weight fits this UNet"):
        load_weights(UNet(3), weights)
    (tmp_path / "w.pth").write_bytes(b"not weights")
    with pytest.raises(ModelFileError, match="cannot be read as weights"):
        load_weights(net, tmp_path / "w.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelFileError, match="holds no weights"):
        load_weights(net, tmp_path / "list.pth")
    with pytest.raises(ModelFileError, match="no file"):
        load_weights(net, tmp_path / "absent.pth")


def test_files_that_would_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("x",))

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelFileError):
        load_weights(ResNet(3, blocks=(1,), width=8), tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_dilation_keeps_the_size_and_the_weights():
    plain, dilated = (ResNet(5, blocks=(1, 1, 2), width=8, stem="cifar", dilated=d).eval() for d in (0, 2))
    dilated.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert [f.shape[-1] for f in plain.features(x)] == [32, 16, 8]
    assert [f.shape[-1] for f in dilated.features(x)] == [32, 32, 32]
    assert [m.dilation[0] for m in dilated.layer3.modules() if isinstance(m, nn.Conv2d)] == [2, 2, 1, 4, 4]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ResNet(0), InvalidInputError, "classes"),
        (lambda: ResNet(3, blocks=()), InvalidInputError, "at least one stage"),
        (lambda: ResNet(3, stem="imagnet"), UnknownNameError, "'imagenet'"),
        (lambda: ResNet(3, skip="gradeint"), UnknownNameError, "'gradient'"),
        (lambda: UNet(3, normalization="bacth"), UnknownNameError, "'batch'"),
        (lambda: Segmenter(3, head="deeplap"), UnknownNameError, "'deeplab'"),
        (lambda: UNet(3, levels=3)(torch.rand(1, 3, 10, 16)), InvalidInputError, "multiples of 4"),
        (lambda: ResNet(3)(torch.rand(1, 1, 64, 64)), InvalidInputError, r"\(B, 3, H, W\)"),
        (lambda: UNet(3)(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)), InvalidInputError, "Divide bytes by 255"),
    ],
)
def test_messages(make, error, message):
    with pytest.raises(error, match=message):
        make()
