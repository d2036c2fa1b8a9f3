"""Picture files of strangers: each is read right, number for number, or refused with a reason."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from tests.commands import call

from nablanets.errors import DataFileError
from nablanets.serialization import save
from nablanets_studies.images.files import Picture, read_picture, rgb_bytes, write_picture
from nablanets_studies.images.masks import turned
from nablanets_studies.images.models import EDSR
from nablanets_studies.images.profiles import space_of, srgb_profile
from nablanets_studies.images.upscale import upscale
from picture_files import PNG_CHANNELS, chunk, cmyk_profile, exif, png

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
FILES = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
REMEDY = "Save it with 8 or 16 unsigned bits"


def drawn(data, shape, largest):
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    samples = np.random.default_rng(seed).integers(0, largest + 1, shape)
    samples.ravel()[:2] = (0, largest)
    return samples


def planes(array):
    """(H, W, channels) as a tensor (channels, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(array).astype(np.int64)).permute(2, 0, 1)


def check(picture, colors, alpha, orientation):
    """A picture holds these numbers (H, W, channels), turned."""
    assert torch.equal(picture.colors.long(), turned(planes(colors), orientation))
    assert picture.orientation == orientation
    assert picture.peak == (255 if picture.colors.dtype == torch.uint8 else 65535)
    if alpha is None or bool((alpha == picture.peak).all()):
        assert picture.alpha is None
    else:
        assert picture.alpha.dtype == picture.colors.dtype
        assert torch.equal(picture.alpha.long(), turned(planes(alpha), orientation))


@pytest.mark.parametrize(("color_type", "depth"), [(c, depth) for c, depths in DEPTHS.items() for depth in depths])
@settings(FILES, max_examples=12)
@given(st.data())
def test_png_of_every_kind_is_read_to_the_last_bit(tmp_path, color_type, depth, data):
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(2, 9)), label="size")
    samples = drawn(data, (*shape, PNG_CHANNELS[color_type]), 2**depth - 1)
    scale = 1 if depth == 16 else 255 // (2**depth - 1)
    colors, alpha = samples * scale, None
    before = []
    if color_type == 3:
        palette = np.random.default_rng(0).integers(0, 256, (2**depth, 3))
        before.append((b"PLTE", palette.astype(np.uint8).tobytes()))
        colors = palette[samples[..., 0]]
        if data.draw(st.booleans(), label="transparency"):
            opacity = np.arange(2**depth) * 37 % 256
            before.append((b"tRNS", opacity.astype(np.uint8).tobytes()))
            alpha = opacity[samples]
    elif color_type in (4, 6):
        colors, alpha = colors[..., :-1], colors[..., -1:]
    elif data.draw(st.booleans(), label="one colour is transparent"):
        key = samples[-1, -1]
        before.append((b"tRNS", key.astype(">u2").tobytes()))
        alpha = np.where((samples == key).all(axis=-1, keepdims=True), 0, 65535 if depth == 16 else 255)
    orientation = data.draw(st.integers(1, 8), label="orientation")
    late = data.draw(st.booleans(), label="orientation after the pixels")
    block = [(b"eXIf", exif(orientation))]
    content = png(
        samples,
        depth,
        color_type,
        before=before + ([] if late else block),
        after=block if late else [],
        interlaced=data.draw(st.booleans(), label="interlaced"),
    )
    (tmp_path / "a.png").write_bytes(content)
    picture = read_picture(tmp_path / "a.png")
    check(picture, colors, alpha, orientation)
    write_picture(picture, tmp_path / "b.png")
    again = read_picture(tmp_path / "b.png")
    assert torch.equal(again.colors, picture.colors)
    assert (again.alpha is None) == (picture.alpha is None)
    assert again.alpha is None or torch.equal(again.alpha, picture.alpha)
    assert rgb_bytes(tmp_path / "a.png").shape == (3, *picture.colors.shape[1:])


@pytest.mark.parametrize("kind", ["minisblack", "miniswhite", "rgb", "rgba", "rgbx"])
@pytest.mark.parametrize("deep", [False, True])
@settings(FILES, max_examples=12)
@given(st.data())
def test_tiff_of_every_kind_is_read_to_the_last_bit(tmp_path, kind, deep, data):
    peak = 65535 if deep else 255
    shape = data.draw(st.tuples(st.integers(2, 40), st.integers(2, 40)), label="size")
    channels = {"rgb": 3, "rgba": 4, "rgbx": 4}.get(kind, 1)
    samples = drawn(data, (*shape, channels), peak).astype(np.uint16 if deep else np.uint8)
    orientation = data.draw(st.integers(1, 8), label="orientation")
    compression = data.draw(st.sampled_from([None, "zlib"]), label="compression")
    options = {
        "byteorder": data.draw(st.sampled_from("<>"), label="byte order"),
        "bigtiff": data.draw(st.booleans(), label="BigTIFF"),
        "compression": compression,
        "predictor": compression is not None and data.draw(st.booleans(), label="predictor"),
        "tile": data.draw(st.sampled_from([None, (16, 16)]), label="tiles"),
    }
    separate = channels > 1 and not deep and data.draw(st.booleans(), label="planes apart")
    if channels > 1:
        options["planarconfig"] = "separate" if separate else "contig"
    if channels == 4:
        options["extrasamples"] = [2 if kind == "rgba" else 0]
    array = samples[..., 0] if channels == 1 else np.moveaxis(samples, -1, 0) if separate else samples
    photometric = kind if channels == 1 else "rgb"
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric, extratags=tags, metadata=None, **options)
    try:
        picture = read_picture(tmp_path / "a.tif")
    except DataFileError as error:
        assert "If other programs show it, save it there as PNG" in str(error)
        is_inverted_motorola = kind == "miniswhite" and deep
        is_motorola = options["byteorder"] == ">" and (is_inverted_motorola or options["bigtiff"])
        assert is_motorola or (kind == "rgbx" and separate), "only what Pillow does not know"
        return
    colors = samples[..., :3].astype(np.int64)
    check(
        picture,
        peak - colors if kind == "miniswhite" else colors,
        samples[..., 3:] if kind == "rgba" else None,
        orientation,
    )
    write_picture(picture, tmp_path / "b.tif")
    again = read_picture(tmp_path / "b.tif")
    assert torch.equal(again.colors, picture.colors)
    assert again.alpha is None or torch.equal(again.alpha, picture.alpha)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_one_bit(tmp_path, photometric, compression):
    bits = np.random.default_rng(0).integers(0, 2, (9, 21)).astype(bool)
    tifffile.imwrite(tmp_path / "a.tif", bits, photometric=photometric, compression=compression, metadata=None)
    white = bits if photometric == "minisblack" else ~bits
    assert torch.equal(read_picture(tmp_path / "a.tif").colors[0] == 255, torch.from_numpy(white))


def test_opacity_that_colours_were_multiplied_with_is_divided_out(tmp_path):
    samples = np.array([[[65535, 30000, 0, 65535], [1000, 500, 7, 2000], [0, 0, 0, 0]]], dtype=np.uint16)
    options = {"photometric": "rgb", "extrasamples": [1], "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", samples, **options)
    picture = read_picture(tmp_path / "a.tif")
    assert picture.colors[:, 0, 1].tolist() == [32768, 16384, 229]
    assert picture.alpha[0, 0].tolist() == [65535, 2000, 0]


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u4", "f2", "f4", "f8", "i8", "u8"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_numbers_whose_black_and_white_are_not_known_are_refused(tmp_path, dtype, channels, byteorder):
    values = np.arange(60).reshape(4, 5, 3)[..., :channels].astype(dtype)
    options = {"photometric": "rgb", "planarconfig": "contig"} if channels == 3 else {"photometric": "minisblack"}
    array = values if channels == 3 else values[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", array, byteorder=byteorder, metadata=None, **options)
    with pytest.raises(DataFileError, match=rf"a\.tif .*({REMEDY}|save it there as PNG)"):
        read_picture(tmp_path / "a.tif")
    if (channels, dtype) in ((1, "i1"), (1, "i2"), (1, "i4")):
        with pytest.raises(DataFileError, match="signed numbers"):
            read_picture(tmp_path / "a.tif")


def test_deep_colours_in_planes_of_their_own_are_refused(tmp_path):
    deep = np.zeros((3, 4, 5), dtype=np.uint16)
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", planarconfig="separate", compression=compression)
        with pytest.raises(DataFileError, match="side by side"):
            read_picture(tmp_path / "a.tif")


def test_grey_of_twelve_bits_reaches_white(tmp_path):
    packed = bytes([0xFF, 0xF0, 0x00, 0x80, 0x0F, 0xFF])  # 4095, 0, 2048, 4095
    entries = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 6)]
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    content += b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries) + b"\0\0\0\0"
    content = content.ljust(122, b"\0")
    (tmp_path / "a.tif").write_bytes(content + packed)
    assert read_picture(tmp_path / "a.tif").colors[0, 0].tolist() == [65535, 0, 32776, 65535]


def test_sixteen_bits_survive_enlarging_with_their_opacity(tmp_path):
    net = EDSR(2, blocks=1, width=4, tail="direct", onto_bicubic=True)
    torch.nn.init.zeros_(net.tail[0].weight)
    ramp = torch.arange(0, 65536, 257, dtype=torch.int32).reshape(1, 16, 16) + 3
    ramp = ramp.clamp_max(65535)
    opacity = torch.full_like(ramp, 40_003)
    large = upscale(net, Picture(ramp.expand(3, -1, -1).contiguous(), opacity))
    assert large.alpha.unique().tolist() == [40_003]
    assert len(large.colors.unique()) > 300
    assert write_picture(large, tmp_path / "a.png") == ()
    assert write_picture(large, tmp_path / "a.webp") == ("WEBP has 8 of the 16 bits",)
    grey = Picture(ramp, opacity)
    with pytest.raises(DataFileError, match=r"a\.tif: grey of 16 bits with transparency .* \.png"):
        write_picture(grey, tmp_path / "a.tif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.webp"]


def test_cmyk_becomes_srgb_and_says_so_in_the_file(tmp_path):
    inks = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    inks.paste((0, 0, 0, 128), (0, 0, 4, 8))
    inks.save(tmp_path / "with.tif", icc_profile=cmyk_profile())
    inks.save(tmp_path / "without.tif")
    inks.save(tmp_path / "broken.tif", icc_profile=cmyk_profile()[:150])
    inks.save(tmp_path / "with.jpg", icc_profile=cmyk_profile(), quality=100, subsampling=0)
    for name in ("with.tif", "with.jpg"):
        found = read_picture(tmp_path / name)
        assert found.colors[:, 0, 7].tolist() == [255, 255, 255], "this press has water for cyan"
        assert found.colors[:, 0, 0].unique().numel() == 1
        assert 100 < int(found.colors[0, 0, 0]) < 140
    for name, remark in (("without.tif", "CMYK without a profile"), ("broken.tif", "cannot be used")):
        found = read_picture(tmp_path / name)
        assert found.colors[:, 0, 7].tolist() == [0, 255, 255]
        assert remark in found.remarks[0]
    for name in ("with.tif", "without.tif", "broken.tif", "with.jpg"):
        found = read_picture(tmp_path / name)
        for ending in ("png", "jpg", "tif", "webp"):
            write_picture(found, tmp_path / f"out.{ending}")
            with Image.open(tmp_path / f"out.{ending}") as image:
                assert image.mode == "RGB"
                assert space_of(image.info["icc_profile"]) == "RGB"


def test_lab_becomes_srgb(tmp_path):
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    colors = np.array([[[255, 255, 255], [0, 0, 0], [200, 30, 40], [60, 120, 90], [128, 128, 128]]], dtype=np.uint8)
    there = ImageCms.profileToProfile(Image.fromarray(colors), srgb, lab, outputMode="LAB")
    there.save(tmp_path / "lab.tif", icc_profile=cmyk_profile())
    found = read_picture(tmp_path / "lab.tif")
    assert int((found.colors.int() - planes(colors)).abs().max()) <= 4
    assert space_of(found.profile) == "RGB"


def test_profiles_stay_only_with_their_own_kind_of_colours(tmp_path):
    for mode, stays in (("RGB", True), ("P", True), ("RGBA", True), ("L", False), ("LA", False), ("1", False)):
        Image.new("RGB", (4, 4), (9, 9, 9)).convert(mode).save(tmp_path / "a.png", icc_profile=srgb_profile())
        found = read_picture(tmp_path / "a.png")
        assert (found.profile == srgb_profile()) == stays, mode
        assert found.remarks == (() if stays else ("without its profile, which is RGB",)), mode
        write_picture(found, tmp_path / "b.png")
    wrong = Picture(torch.zeros(3, 2, 2, dtype=torch.uint8), profile=cmyk_profile())
    with pytest.raises(DataFileError, match="expected a profile for 3 colour channels, got one that is CMYK"):
        write_picture(wrong, tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
    deep = Picture(torch.zeros(3, 2, 2, dtype=torch.int32), profile=srgb_profile())
    for ending in ("png", "tif"):
        write_picture(deep, tmp_path / f"deep.{ending}")
        assert read_picture(tmp_path / f"deep.{ending}").profile == srgb_profile()
    assert write_picture(replace(deep, remarks=()), tmp_path / "d.ppm") == (
        "PPM has 8 of the 16 bits",
        "PPM has no place for its profile",
    )


@pytest.mark.parametrize("depth", [8, 16])
def test_gamma_of_png(tmp_path, depth):
    peak = 2**depth - 1
    light = np.array([[[0], [peak // 10], [peak // 2], [peak]]])
    expected = np.rint((light / peak) ** (1 / 2.2) * peak).astype(int).ravel().tolist()
    cases = {
        "linear": ([(b"gAMA", struct.pack(">I", 100_000))], expected, ("its gamma of 1 was applied",)),
        "usual": ([(b"gAMA", struct.pack(">I", 45_455))], light.ravel().tolist(), ()),
        "srgb": ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100_000))], light.ravel().tolist(), ()),
        "zero": ([(b"gAMA", bytes(4))], light.ravel().tolist(), ()),
    }
    for name, (before, values, remarks) in cases.items():
        (tmp_path / "a.png").write_bytes(png(light, depth, 0, before=before))
        picture = read_picture(tmp_path / "a.png")
        assert picture.colors.ravel().tolist() == values, name
        assert picture.remarks == remarks, name


def test_of_several_frames_the_first_is_read(tmp_path):
    frames = [Image.new("RGB", (6, 4), (value, 0, 0)) for value in (250, 0, 100)]
    for name, options in (("a.tif", {}), ("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        picture = read_picture(tmp_path / name)
        assert picture.colors[0].unique().tolist() == [250], name
        assert picture.remarks == ("only the first of 3 frames",), name


def test_deep_colours_of_ppm_are_told(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 65535\n" + bytes([255, 255, 128, 0, 0, 0]))
    picture = read_picture(tmp_path / "a.ppm")
    assert picture.colors.ravel().tolist() == [255, 128, 0]
    assert picture.remarks == ("16-bit colours read with 8 bits",)
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 1023\n" + bytes([3, 255, 0, 0]))
    assert read_picture(tmp_path / "a.pgm").colors.ravel().tolist() == [65535, 0]


def test_what_is_no_picture_is_refused(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    empty = png(np.zeros((1, 1, 3), dtype=int), 8, 2).replace(struct.pack(">II", 1, 1), struct.pack(">II", 0, 1), 1)
    header = empty[12:29]
    empty = empty.replace(empty[8:33], chunk(b"IHDR", header[4:]))
    for name, content in (("eps.png", eps), ("empty.png", empty), ("zero.png", b""), ("t.tif", b"II*\0\x08\0\0\0")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataFileError, match=rf"{name} (cannot be read|has no pixels)"):
            read_picture(tmp_path / name)
    picture = Picture(torch.zeros(3, 2, 2, dtype=torch.uint8))
    for ending in ("gif", "eps", "pdf", "ico", "xyz"):
        with pytest.raises(DataFileError, match="expected a file that ends in"):
            write_picture(picture, tmp_path / f"a.{ending}")
    with pytest.raises(DataFileError, match="no pixels"):
        write_picture(Picture(torch.zeros(3, 0, 2, dtype=torch.uint8)), tmp_path / "a.png")


def _seeds():
    """Small files of many kinds."""
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
    image = Image.fromarray(color)
    found = {}
    for name, converted, options in (
        ("a.png", image, {}),
        ("b.png", image.convert("P"), {"transparency": 3}),
        ("c.jpg", image, {"exif": exif(6).join([b"Exif\0\0", b""]), "icc_profile": srgb_profile()}),
        ("d.jpg", image.convert("CMYK"), {"icc_profile": cmyk_profile()}),
        ("e.gif", image, {}),
        ("f.bmp", image, {}),
        ("g.ppm", image, {}),
        ("h.webp", image, {"lossless": True}),
        ("i.tif", image, {"compression": "tiff_lzw"}),
        ("j.tif", image.convert("1"), {"compression": "group4"}),
        ("k.tif", image, {}),
    ):
        buffer = io.BytesIO()
        converted.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(name[2:], name[2:]), **options)
        found[name] = buffer.getvalue()
    found["l.png"] = png(rng.integers(0, 65536, (12, 10, 4)), 16, 6, before=[(b"eXIf", exif(5))], interlaced=True)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, rng.integers(0, 65536, (12, 10, 3)).astype(np.uint16), photometric="rgb", compression="zlib"
    )
    found["m.tif"] = buffer.getvalue()
    return found


SEEDS = _seeds()


@settings(FILES, max_examples=300)
@given(st.data())
def test_damaged_files_are_read_or_refused(tmp_path, data):
    name = data.draw(st.sampled_from(sorted(SEEDS)))
    content = bytearray(SEEDS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    (tmp_path / name).write_bytes(content)
    try:
        picture = read_picture(tmp_path / name, megapixels=1)
    except DataFileError as error:
        assert name in str(error)
    else:
        assert picture.colors.dtype in (torch.uint8, torch.int32)
        assert 0 not in picture.colors.shape


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_truncated_files_are_whole_or_refused(tmp_path, name):
    (tmp_path / name).write_bytes(SEEDS[name])
    whole = read_picture(tmp_path / name)
    content = SEEDS[name]
    for length in range(0, len(content) - 1, max(1, len(content) // 60)):
        (tmp_path / name).write_bytes(content[:length])
        try:
            picture = read_picture(tmp_path / name)
        except DataFileError:
            continue
        assert torch.equal(picture.colors, whole.colors), (length, len(content))


@pytest.fixture
def model(tmp_path):
    save(EDSR(2, blocks=1, width=4, tail="direct", onto_bicubic=True), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_a_folder_is_enlarged_under_the_names_of_its_pictures(capsys, tmp_path, model):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (7, 5)).save(folder / "astro.png")
    Image.new("RGB", (6, 3)).save(folder / "b.c.jpg")
    code, out, _ = call(capsys, "upscale", folder, "--model", model, "--out", tmp_path / "large")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "large").iterdir()) == ["astro.png", "b.c.png"]
    assert f"{folder / 'astro.png'}, 7 x 5 pixels: {tmp_path / 'large' / 'astro.png'}, 14 x 10 pixels" in out
    assert "6 x 3 pixels" in out
    assert "12 x 6 pixels" in out
    Image.new("RGB", (6, 3)).save(folder / "astro.jpg")
    code, _, err = call(capsys, "upscale", folder, "--model", model, "--out", tmp_path / "two")
    assert code == 2
    assert f"{folder / 'astro.jpg'} and astro.png have one name" in err
    assert not (tmp_path / "two").exists()
