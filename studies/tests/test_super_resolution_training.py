"""Training super-resolution through the shared loop: exact resume, shared batches, and the protocol of evaluation."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import skimage.data
import torch
from PIL import Image
from tests.commands import call
from torch import nn

from nablanets_studies.images.metrics import mean_psnr, quality
from nablanets_studies.images.models import EDSR
from nablanets_studies.images.patches import PatchPairs
from nablanets_studies.images.resize import bicubic
from nablanets_studies.images.super_resolution import Evaluations, average_quality, train_super_resolution
from nablanets_studies.images.training import Stored, Ticket, TrainSettings, train

_PICTURE = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1).contiguous()
_TEST = [torch.from_numpy(skimage.data.chelsea()).permute(2, 0, 1)[:, 100:180, 150:250].contiguous()]
_SETTINGS = TrainSettings(
    epochs=1, batch_size=4, learning_rate=2e-3, optimizer="adam", ema=0.9, channels_last=True, validate_every=5,
    checkpoint_every=5,
)  # fmt: skip


def _net(skip="gradient-full"):
    torch.manual_seed(0)
    return EDSR(2, blocks=1, width=8, skip=skip, tail="direct", onto_bicubic=True)


class _Killed(Exception):
    pass


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path):
    source, file = PatchPairs([_PICTURE], 2, 12, epoch=80), tmp_path / "state.safetensors"
    whole = _net()
    expected = train_super_resolution(whole, source, _TEST, _SETTINGS)

    def kill(row):
        if row.step == 15:
            raise _Killed

    with pytest.raises(_Killed):
        train_super_resolution(_net(), source, _TEST, _SETTINGS, checkpoint=file, report=kill)
    resumed = _net()
    found = train_super_resolution(resumed, source, _TEST, _SETTINGS, checkpoint=file)
    assert found.record.steps == expected.record.steps == 20
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    errors = [[row.validation_error for row in t.record.history] for t in (expected, found)]
    assert errors[0] == errors[1]
    assert errors[0][-1] != errors[0][0]
    other = train_super_resolution(_net(), source, _TEST, replace(_SETTINGS, seed=1))
    assert other.record.history[-1].training_error != expected.record.history[-1].training_error


def test_processes_share_the_batch_of_one():
    source = PatchPairs([_PICTURE], 2, 12, epoch=80)
    whole = source.batch(Ticket(seed=3, step=7, size=6, first=0, last=6))
    parts = [source.batch(Ticket(seed=3, step=7, size=6, first=k, last=k + 2)) for k in (0, 2, 4)]
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([part[i] for part in parts]))
    assert not torch.equal(whole[0], source.batch(Ticket(seed=3, step=8, size=6, first=0, last=6))[0])
    assert len(source) == 80


def test_seeds_and_steps_draw_different_numbers():
    """torch's generator for CPUs looks at the lower half of a seed only."""
    draws = {float(Ticket(seed, step, 4, 0, 4).uniform(1)[0]) for seed in range(20) for step in range(50)}
    assert len(draws) == 1000
    orders = {tuple(Ticket(seed, step, 8, 0, 8).indices(8).tolist()) for seed in range(10) for step in range(10)}
    assert len(orders) > 95


@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (4, [3]), (5, [4]), (8, [6, 7]), (50, list(range(38, 50)))])
def test_the_networks_of_the_last_quarter_are_kept(count, kept):
    evaluations = Evaluations([_TEST[0][:, :16, :16]], 2)
    for index in range(count):
        net = nn.Upsample(scale_factor=2)
        net.index = index
        evaluations(net)
    assert [net.index for net in evaluations.last()] == kept


def test_quality_is_averaged_over_pictures_and_networks():
    nets = [nn.Upsample(scale_factor=2, mode=mode) for mode in ("nearest", "bicubic")]
    pictures = [_TEST[0], _PICTURE[:, :60, :80]]
    singles = [q for net in nets for q in quality(net, pictures, 2)]
    mean = average_quality(nets, pictures, 2)
    assert mean.psnr == pytest.approx(sum(q.psnr for q in singles) / 4)
    assert mean.ssim == pytest.approx(sum(q.ssim for q in singles) / 4)
    assert Evaluations(pictures, 2)(nets[0]) == pytest.approx(10 ** (-mean_psnr(nets[0], pictures, 2) / 10))
    assert mean_psnr(nets[0], pictures, 2) < mean_psnr(lambda x: bicubic(x, 2), pictures, 2)


def test_the_command_trains_on_a_folder_and_upscale_uses_what_it_wrote(capsys, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(skimage.data.coffee()[100 * k : 100 * k + 120, :160]).save(folder / f"{k}.png")
    model = tmp_path / "model.safetensors"
    command = [
        "train",
        "super-resolution",
        "--data",
        folder,
        "--out",
        model,
        "--blocks",
        1,
        "--width",
        8,
        "--seconds",
        1,
    ]
    code, out, _ = call(capsys, *command, "--skip", "gradient", "--patch", 12, "--precision", "32-true", "--lr", 0.003)
    assert code == 0
    assert "2 pictures, 1 for validation" in out
    assert float(re.search(r"([+-]\d+\.\d+) dB over bicubic", out)[1]) > 0
    code, _, _ = call(capsys, "upscale", folder / "0.png", "--model", model, "--out", tmp_path / "large.png")
    assert code == 0
    assert Image.open(tmp_path / "large.png").size == (320, 240)
    code, _, err = call(capsys, *command, "--validation", tmp_path / "none")
    assert (code, "there is no folder" in err) == (2, True)


def test_an_average_of_weights_soon_forgets_the_start():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    net, settings = nn.Linear(3, 1), TrainSettings(epochs=25, batch_size=16, learning_rate=0.1, ema=0.999)
    before = (net(x) - 5 * x[:, :1]).square().mean().item()
    train(net, Stored(x, 5 * x[:, :1]), nn.functional.mse_loss, settings=settings)
    assert (net(x) - 5 * x[:, :1]).square().mean().item() < 0.1 * before
