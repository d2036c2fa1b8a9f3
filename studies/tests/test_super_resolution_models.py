"""Networks for super-resolution: their published form, their arms, foreign weights, and how far they look."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nablanets import load
from nablanets.errors import InvalidInputError, UnknownNameError
from nablanets.parameters import count_parameters
from nablanets.serialization import save
from nablanets_studies.images.edges import edges
from nablanets_studies.images.models import EDSR, SRResNet, edsr_from, load_edsr
from nablanets_studies.images.models.pretrained import edsr_names
from nablanets_studies.images.resize import bicubic
from nablanets_studies.residual.arms import ARMS


def _published(weights, x, scale, blocks):
    """EDSR-PyTorch's forward, written down from its description: values 0 to 255, mean shifts outside."""
    mean = 255 * torch.tensor([0.4488, 0.4371, 0.4040]).to(x).reshape(3, 1, 1)

    def conv(name, v):
        return F.conv2d(v, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    h = y = conv("head.0", 255 * x - mean)
    for i in range(blocks):
        y = y + conv(f"body.{i}.body.2", F.relu(conv(f"body.{i}.body.0", y)))
    y = conv(f"body.{blocks}", y) + h
    for k, factor in enumerate([3] if scale == 3 else [2] * (scale // 2)):
        y = F.pixel_shuffle(conv(f"tail.0.{2 * k}", y), factor)
    return (conv("tail.1", y) + mean) / 255


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_foreign_weights_give_the_published_forward(scale):
    torch.manual_seed(0)
    weights = {k: v.double() for k, v in edsr_names(EDSR(scale, blocks=3, width=8)).items()}
    shift = {f"{k}_mean.{p}": torch.zeros(3) for k in ("sub", "add") for p in ("weight", "bias")}
    x = torch.rand(2, 3, 9, 7, dtype=torch.float64)
    net = edsr_from({**weights, **shift}).double()
    torch.testing.assert_close(net(x), _published(weights, x, scale, 3), rtol=0, atol=1e-12)
    assert "body.3.weight" in weights


def test_the_baseline_has_its_published_size_and_a_closed_gate_changes_nothing():
    assert count_parameters(EDSR(2)) == 1_369_859
    weights = {k: v.double() for k, v in edsr_names(EDSR(2, blocks=2, width=8)).items()}
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    net = edsr_from(weights, skip="gradient").double()
    for layer in net.body:
        nn.init.constant_(layer.alpha, -60.0)
    torch.testing.assert_close(net(x), edsr_from(weights).double()(x), rtol=0, atol=1e-12)


def test_foreign_weights_that_do_not_fit_are_refused():
    weights = edsr_names(EDSR(2, blocks=2, width=8))
    net = EDSR(2, blocks=3, width=8)
    before = net.head.weight.clone()
    with pytest.raises(InvalidInputError, match=r"missing: body\.2\.block"):
        load_edsr(net, weights)
    assert torch.equal(net.head.weight, before)
    with pytest.raises(InvalidInputError, match="of another shape"):
        load_edsr(EDSR(2, blocks=2, width=9), weights)
    with pytest.raises(InvalidInputError, match="names of EDSR-PyTorch"):
        edsr_from({"conv1.weight": torch.zeros(3)})


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("build", [EDSR, SRResNet])
def test_every_arm_trains_saves_and_loads(build, arm, tmp_path):
    torch.manual_seed(0)
    net = build(2, blocks=2, width=8, skip={"arm": arm, "alpha": 0.5} if arm != "standard" else arm)
    x = torch.rand(2, 3, 8, 9)
    y = net(x)
    assert y.shape == (2, 3, 16, 18)
    y.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    save(net, tmp_path / "net.safetensors")
    torch.testing.assert_close(load(tmp_path / "net.safetensors").eval()(x), net.eval()(x))


def test_arms_differ_and_pure_of_a_linear_block_is_known():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 8, 8)
    outputs = []
    for arm in ARMS:
        torch.manual_seed(1)
        outputs.append(EDSR(2, blocks=2, width=8, skip=arm)(x))
    same = [(i, j) for i in range(len(ARMS)) for j in range(i) if torch.allclose(outputs[i], outputs[j], atol=1e-6)]
    names = list(ARMS)
    assert {frozenset((names[i], names[j])) for i, j in same} == {
        frozenset(("standard", "scalar")), frozenset(("gradient", "gradient-probe"))
    }  # fmt: skip


@pytest.mark.parametrize(
    "net",
    [
        EDSR(2, blocks=2, width=4, guided=True, onto_bicubic=True),
        EDSR(4, blocks=1, width=4, skip={"arm": "gradient-full", "alpha": 2.0}, tail="direct"),
        EDSR(3, blocks=1, width=4, skip={"arm": "gradient", "alpha": 2.0}),
        SRResNet(2, blocks=1, width=4, skip="gradient"),
    ],
)
def test_no_pixel_beyond_the_reach_matters_and_some_near_it_do(net):
    net = net.double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    side = 2 * net.reach + 7
    x = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    middle = net.scale * (side // 2)
    net(x)[..., middle : middle + net.scale, middle : middle + net.scale].sum().backward()
    rows = x.grad.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
    furthest = int((rows - side // 2).abs().max())
    assert net.reach - 3 <= furthest <= net.reach
    assert EDSR(2, blocks=1, width=4, skip={"arm": "gradient", "normalize": "sample"}).reach is None


def test_options_do_what_they_say():
    x = torch.rand(1, 3, 6, 7)
    net = EDSR(2, blocks=1, width=8, tail="direct", onto_bicubic=True)
    torch.testing.assert_close(net(x), bicubic(x, 2))
    torch.testing.assert_close(EDSR(4, blocks=1, width=8, onto_bicubic=True)(x), bicubic(x, 4))
    assert EDSR(2, blocks=1, width=8, guided=True).head.in_channels == 3 + edges(x).shape[1]
    with pytest.raises(InvalidInputError, match="scale 2, 3 or 4"):
        EDSR(5)
    with pytest.raises(UnknownNameError, match="'gradient-full'"):
        EDSR(2, blocks=1, skip="gradient-fulll")
    with pytest.raises(UnknownNameError, match="'direct'"):
        EDSR(2, blocks=1, tail="direkt")
    with pytest.raises(InvalidInputError, match="Divide bytes by 255"):
        net(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(InvalidInputError, match="repeat grey"):
        net(torch.zeros(1, 1, 4, 4))
