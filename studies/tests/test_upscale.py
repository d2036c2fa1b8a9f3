"""Enlarging picture files: every kind of file, tiles, memory, damage, and what is left on disk."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from tests.commands import call

from nablanets.errors import DataFileError, InvalidInputError
from nablanets.serialization import save
from nablanets_studies.images.files import Picture, pictures_in, read_picture, rgb_bytes, write_picture
from nablanets_studies.images.metrics import mean_psnr
from nablanets_studies.images.models import EDSR
from nablanets_studies.images.profiles import srgb_profile
from nablanets_studies.images.resize import bicubic
from nablanets_studies.images.upscale import packaged_upscaler, side_within, tiles, times_applied, upscale
from nablanets_studies.residual.arms import ARMS

_PHOTO = skimage.data.astronaut()[100:148, 80:144]


def _network(skip):
    torch.manual_seed(0)
    net = EDSR(2, blocks=2, width=8, skip=skip, tail="direct", onto_bicubic=True)
    torch.nn.init.normal_(net.tail[0].weight, std=0.05)
    return net


@pytest.fixture
def net():
    return _network({"arm": "gradient", "alpha": 1.0})


@pytest.fixture
def model(net, tmp_path):
    save(net, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def _saved(folder, name, array, mode=None, **options):
    path = folder / name
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


@pytest.mark.parametrize("arm", ARMS)
def test_tiles_do_not_change_the_result(arm):
    net = _network(arm)
    picture = Picture(torch.from_numpy(_PHOTO.astype(np.int32) * 257).permute(2, 0, 1).contiguous())
    whole = upscale(net, picture, side=1000)
    for side in (16, 23):
        parts = upscale(net, picture, side=side)
        assert int((whole.colors - parts.colors).abs().max()) <= 1
    with torch.inference_mode():
        direct = net(picture.colors.float().unsqueeze(0) / 65535)[0]
    torch.testing.assert_close(whole.colors / 65535, direct.clamp(0, 1), rtol=0, atol=1e-5)


def test_tiles_cover_a_picture_once():
    count = torch.zeros(37, 50)
    for tile in tiles(37, 50, 16, 5):
        (top, left, bottom, right), kept = tile.seen, tile.kept
        count[kept[0] : kept[2], kept[1] : kept[3]] += 1
        assert top == max(0, kept[0] - 5)
        assert right == min(50, kept[3] + 5)
        assert (left <= kept[1], bottom >= kept[3] or bottom >= kept[2]) == (True, True)
    assert bool((count == 1).all())


def test_memory_sets_the_tiles():
    net = EDSR(2, blocks=2, width=16, tail="direct")
    small, large = side_within(net, 16), side_within(net, 64)
    assert 16 <= small < large < 4 * small
    with pytest.raises(InvalidInputError, match="--memory"):
        side_within(net, 0.1)
    with pytest.raises(InvalidInputError, match="whole pictures"):
        side_within(EDSR(2, blocks=1, width=8, skip={"arm": "gradient", "normalize": "sample"}), 64)


def test_every_kind_of_picture_is_read_and_enlarged(tmp_path, net):
    deep = (np.arange(48 * 64).reshape(48, 64) * 21).astype(np.uint16)
    alpha = np.dstack([_PHOTO, np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))])
    files = {
        "rgb": _saved(tmp_path, "rgb.png", _PHOTO),
        "grey": _saved(tmp_path, "grey.png", _PHOTO, "L"),
        "bits": _saved(tmp_path, "bits.png", _PHOTO, "1"),
        "palette": _saved(tmp_path, "palette.png", _PHOTO, "P"),
        "cmyk": _saved(tmp_path, "cmyk.jpg", _PHOTO, "CMYK", quality=95),
        "deep": _saved(tmp_path, "deep.png", deep),
        "alpha": _saved(tmp_path, "alpha.png", alpha),
        "grey-alpha": _saved(tmp_path, "grey-alpha.png", alpha, "LA"),
        "webp": _saved(tmp_path, "lossless.webp", _PHOTO, lossless=True),
        "tiff": _saved(tmp_path, "photo.tiff", _PHOTO),
    }
    expected = {"grey": 1, "bits": 1, "deep": 1, "grey-alpha": 1}
    for name, file in files.items():
        picture = read_picture(file)
        large = upscale(net, picture, side=30)
        assert large.colors.shape == (expected.get(name, 3), 96, 128), name
        assert (large.alpha is not None) == ("alpha" in name)
        write_picture(large, tmp_path / "out" / f"{name}.png")
        again = read_picture(tmp_path / "out" / f"{name}.png")
        assert torch.equal(again.colors, large.colors), name
        assert (again.alpha is None and large.alpha is None) or torch.equal(again.alpha, large.alpha)
    assert torch.equal(read_picture(files["rgb"]).colors, torch.from_numpy(_PHOTO).permute(2, 0, 1))
    assert torch.equal(read_picture(files["webp"]).colors, read_picture(files["tiff"]).colors)
    assert read_picture(files["deep"]).colors.max() == deep.max()
    off = (read_picture(files["cmyk"]).colors.float() - read_picture(files["rgb"]).colors.float()).abs().mean()
    assert off < 12
    assert rgb_bytes(files["deep"]).shape == (3, 48, 64)


def test_orientation_transparency_in_palettes_and_profiles_are_kept(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _saved(tmp_path, "turned.png", _PHOTO, exif=exif, icc_profile=srgb_profile())
    picture = read_picture(turned)
    assert torch.equal(picture.colors, torch.from_numpy(np.rot90(_PHOTO, -1).copy()).permute(2, 0, 1))
    assert picture.profile == srgb_profile()
    write_picture(picture, tmp_path / "again.png")
    with Image.open(tmp_path / "again.png") as image:
        assert image.info["icc_profile"] == srgb_profile()
        assert image.getexif().get(0x0112) is None
    bright = _PHOTO[..., 0] > np.median(_PHOTO[..., 0])
    image = Image.fromarray(bright.astype(np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "see-through.gif", transparency=0)
    picture = read_picture(tmp_path / "see-through.gif")
    assert torch.equal(picture.alpha[0] > 0, torch.from_numpy(bright))


def test_invisible_colours_do_not_shine_through(net):
    colors = torch.full((3, 20, 20), 200, dtype=torch.uint8)
    colors[:, :, 10:] = 0
    alpha = torch.full((1, 20, 20), 255, dtype=torch.uint8)
    alpha[:, :, 10:] = 0
    plain = EDSR(2, blocks=1, width=8, tail="direct", onto_bicubic=True)
    large = upscale(plain, Picture(colors, alpha))
    visible = large.alpha[0] > 100
    assert int(large.colors[:, visible].min()) > 190
    assert torch.equal(large.alpha, bicubic(alpha, 2))
    parts = upscale(plain, Picture(colors, alpha), side=7)
    assert torch.equal(parts.alpha, large.alpha)
    assert int((parts.colors.int() - large.colors.int()).abs().max()) <= 1
    assert upscale(net, Picture(torch.tensor([[[9]]], dtype=torch.uint8))).colors.shape == (1, 2, 2)


def _png(width, height, chunk=b""):
    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", chunk) + part(b"IEND", b"")


def _damaged(folder):
    buffer = io.BytesIO()
    Image.fromarray(_PHOTO).save(buffer, "JPEG")
    contents = {
        "truncated.jpg": buffer.getvalue()[: len(buffer.getvalue()) // 2],
        "text.png": b"no picture",
        "empty.png": b"",
        "bomb.png": _png(60_000, 60_000, zlib.compress(bytes(1000))),
        "large.png": _png(15_000, 14_000),
        "broken.png": _png(10, 10, b"garbage"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


def test_damaged_files_are_named_and_the_good_ones_still_enlarged(capsys, tmp_path, model):
    folder = tmp_path / "pictures"
    folder.mkdir()
    damaged = _damaged(folder)
    _saved(folder, "good.png", _PHOTO)
    _saved(folder, "fine.jpg", _PHOTO)
    code, out, _ = call(capsys, "upscale", folder, "--model", model, "--out", tmp_path / "large")
    assert code == 1
    assert "2 of 8 pictures enlarged" in out
    for name in damaged:
        assert f"left out: {folder / name}" in out
    assert "more than the limit of 200 megapixels" in out
    assert sorted(p.name for p in (tmp_path / "large").iterdir()) == ["fine.png", "good.png"]
    for name in damaged:
        with pytest.raises(DataFileError, match=name):
            read_picture(folder / name)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, capsys, model):
    source = _saved(tmp_path, "photo.png", _PHOTO)

    def full(self, file, *_, **__):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = call(capsys, "upscale", source, "--model", model)
    assert code == 2
    assert "photo-x2.png: [Errno 28] No space left" in err
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_enlarges_one_picture(capsys, tmp_path, model):
    source = _saved(tmp_path, "photo.png", _PHOTO)
    code, out, _ = call(capsys, "upscale", source, "--model", model, "--scale", 4, "--precision", "float32")
    assert code == 0
    assert "photo-x4.png" in out
    assert read_picture(tmp_path / "photo-x4.png").colors.shape == (3, 192, 256)
    for arguments, message in (
        (["--scale", 3], "power of the network's scale 2"),
        (["--out", source], "the picture itself"),
        (["--out", tmp_path / "a.xyz"], "ends in"),
        (["--precision", "bf17"], "'bf16'"),
        (["--memory", 0.01], "not enough"),
    ):
        code, _, err = call(capsys, "upscale", source, "--model", model, *arguments)
        assert (code, message in err) == (2, True), (arguments, err)
    code, _, err = call(capsys, "upscale", tmp_path / "absent.png", "--model", model)
    assert (code, "there is no picture" in err) == (2, True)
    alpha = _saved(tmp_path, "alpha.png", np.dstack([_PHOTO, _PHOTO[..., 0]]))
    code, _, err = call(capsys, "upscale", alpha, "--model", model, "--out", tmp_path / "alpha.jpg")
    assert (code, "no transparency" in err) == (2, True)
    (tmp_path / "none").mkdir()
    code, _, err = call(capsys, "upscale", tmp_path / "none", "--model", model)
    assert (code, "holds no pictures" in err) == (2, True)
    assert pictures_in(tmp_path)


def test_a_network_is_applied_as_often_as_the_scale_needs():
    assert [times_applied(2, s) for s in (2, 4, 8)] == [1, 2, 3]
    assert times_applied(3, 9) == 2
    for scale in (1, 3, 6):
        with pytest.raises(InvalidInputError, match="power"):
            times_applied(2, scale)


def test_the_packaged_network_is_small_and_better_than_bicubic_on_pictures_it_never_saw():
    net = packaged_upscaler()
    pictures = [torch.from_numpy(p).permute(2, 0, 1) for p in (skimage.data.chelsea(), skimage.data.coffee())]
    ours, theirs = mean_psnr(net, pictures, 2), mean_psnr(lambda x: bicubic(x, 2), pictures, 2)
    assert theirs == pytest.approx(32.92, abs=0.02)
    assert ours - theirs > 2.0
    picture = Picture(pictures[0][:, :80, :80].contiguous())
    exact, fast = (upscale(net, picture, bf16=b).colors.float() for b in (False, True))
    assert float((exact - fast).abs().mean()) < 0.5


def test_a_large_picture_needs_bounded_memory(tmp_path, model):
    """2.4 megapixels, 34 MiB in all: as one tile it took 540 MiB."""
    side = (1200, 2000)
    Image.fromarray(np.tile(_PHOTO, (25, 32, 1))[: side[0], : side[1]]).save(tmp_path / "large.png")
    code = (
        "import resource, sys; from nablanets.cli import main\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "from nablanets_studies.images.files import Picture, write_picture; import torch\n"
        f"call = lambda name: main(['upscale', name, '--model', {str(model)!r}, '--memory', '32'])\n"
        f"small = {str(tmp_path / 'small.png')!r}\n"
        "write_picture(Picture(torch.zeros(3, 300, 300, dtype=torch.uint8)), small)\n"
        "try: call(small)\n"
        "except SystemExit: pass\n"
        "before = peak()\n"
        f"try: call({str(tmp_path / 'large.png')!r})\n"
        "except SystemExit: pass\n"
        "print('peak', peak() - before)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    with Image.open(tmp_path / "large-x2.png") as image:
        assert image.size == (4000, 2400)
    pictures = 3 * side[0] * side[1] * 5 / 2**20
    assert float(done.stdout.split()[-1]) < 3 * pictures + 64
