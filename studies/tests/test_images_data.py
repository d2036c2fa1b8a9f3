"""Masks, slices and composites: what they return, and what they say of bad files."""

from __future__ import annotations

import io

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps
from torch import nn

from nablanets.errors import DataFileError, InvalidInputError
from nablanets_studies.images.augment import mirror, shift, shifted_and_mirrored
from nablanets_studies.images.brain import brain_slices, read_volume, slabs
from nablanets_studies.images.class_folders import read_class_folders
from nablanets_studies.images.composites import Composites, CutOut, photographs, read_cutouts
from nablanets_studies.images.judge import accuracy, mean_iou
from nablanets_studies.images.masks import IGNORED, MaskedPictures, Pair, folder_pairs, read_mask, read_pair, voc_pairs
from nablanets_studies.images.training import Ticket
from picture_files import chunk, png


def picture(path, size=(20, 30), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8), mode="L").convert("P")
    image.putdata(np.asarray(values).ravel().tolist())
    image.save(path)


@pytest.fixture
def voc(tmp_path):
    values = np.zeros((20, 30), dtype=int)
    values[5:9, 5:20], values[0], values[10:, :3] = 3, IGNORED, 20
    for k, name in enumerate(("2007_01", "2007_02")):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg", seed=k)
        mask(tmp_path / "SegmentationClass" / f"{name}.png", values)
    listing = tmp_path / "ImageSets" / "Segmentation" / "train.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("2007_01\n2007_02\n")
    return tmp_path, torch.as_tensor(values)


def test_voc(voc):
    folder, values = voc
    pairs = voc_pairs(folder, "train")
    colors, classes = read_pair(pairs[0], 21)
    assert colors.shape == (3, 20, 30)
    assert torch.equal(classes, values)
    source = MaskedPictures(pairs, 21, size=24)
    x, y = source.batch(Ticket(0, 0, 2, 0, 2))
    assert x.shape == (2, 3, 24, 24)
    assert y.shape == (2, 24, 24)
    assert bool((y[:, 20:] == IGNORED).all()), "what was filled up does not count"
    assert bool((x[:, :, 20:] == 0).all())
    fixed, targets = source.fixed()
    assert fixed.dtype == torch.uint8
    assert torch.equal(targets[0, :20], values[:, 3:27])
    assert torch.equal(fixed[0, :, :20], colors[:, :, 3:27])


def test_bad_masks_are_named(voc):
    folder, values = voc
    (first, second) = voc_pairs(folder, "train")
    with pytest.raises(DataFileError, match=r"2007_01\.png: expected classes from 0 to 9, .* got 20"):
        read_pair(first, 10)
    mask(second.mask, values[:-1])
    with pytest.raises(DataFileError, match=r"2007_02\.png: expected the size of .*2007_02\.jpg"):
        read_pair(second, 21)
    second.mask.write_bytes(second.mask.read_bytes()[:40])
    with pytest.raises(DataFileError, match=r"2007_02\.png cannot be read"):
        read_pair(second, 21)
    Image.new("RGB", (30, 20)).save(second.mask)
    with pytest.raises(DataFileError, match="got mode RGB"):
        read_pair(second, 21)
    first.picture.write_bytes(first.picture.read_bytes()[:100])
    with pytest.raises(DataFileError, match=r"2007_01\.jpg cannot be read"):
        read_pair(first, 21)
    second.mask.unlink()
    with pytest.raises(DataFileError, match=r"1 files are missing: .*2007_02\.png"):
        voc_pairs(folder, "train")
    with pytest.raises(DataFileError, match="split 'test'"):
        voc_pairs(folder, "test")


def test_two_folders(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / "x" / f"{name}.jpg")
        mask(tmp_path / "y" / f"{name}.png", np.zeros((20, 30)))
    pairs = folder_pairs(tmp_path / "x", tmp_path / "y")
    assert pairs[1] == Pair(tmp_path / "x" / "b.jpg", tmp_path / "y" / "b.png")
    (tmp_path / "y" / "a.png").unlink()
    with pytest.raises(DataFileError, match=r"1 files have no partner, among them .*a\.jpg"):
        folder_pairs(tmp_path / "x", tmp_path / "y")
    with pytest.raises(DataFileError, match="no folder"):
        folder_pairs(tmp_path / "x", tmp_path / "absent")


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / folder / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "x" / "a.jpg")
    with pytest.raises(DataFileError, match=r"x/a\.jpg and a\.png have one name"):
        folder_pairs(tmp_path / "x", tmp_path / "y")
    (tmp_path / "x" / "a.jpg").rename(tmp_path / "y" / "a.bmp")
    with pytest.raises(DataFileError, match=r"y/a\.bmp and a\.png have one name"):
        folder_pairs(tmp_path / "x", tmp_path / "y")


def grey_mask(path, values, depth, **options):
    """A grey PNG of some bits per pixel."""
    path.write_bytes(png(np.asarray(values)[..., None], depth, 0, **options))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["grey", "palette"])
def test_numbers_of_masks_of_every_depth(tmp_path, depth, kind):
    if (depth, kind) == (16, "palette"):
        return
    values = np.arange(20 * 13).reshape(20, 13) % min(2**depth, 200)
    if kind == "grey":
        grey_mask(tmp_path / "a.png", values, depth)
    else:
        palette = np.random.default_rng(0).integers(0, 256, 3 * 2**depth).astype(np.uint8).tobytes()
        (tmp_path / "a.png").write_bytes(png(values[..., None], depth, 3, before=[(b"PLTE", palette)]))
    assert read_mask(tmp_path / "a.png").tolist() == values.tolist()


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_masks_of_one_bit_are_zero_and_one(tmp_path, photometric):
    white = np.random.default_rng(0).integers(0, 2, (9, 21)).astype(bool)
    picture(tmp_path / "p.png", white.shape)
    stored = white if photometric == "minisblack" else ~white
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, metadata=None)
    Image.fromarray(white).save(tmp_path / "b.png")
    for name in ("a.tif", "b.png"):
        _, classes = read_pair(Pair(tmp_path / "p.png", tmp_path / name), 2)
        assert classes.tolist() == white.astype(int).tolist(), name


def test_masks_of_0_and_255_ask_what_255_means(tmp_path):
    picture(tmp_path / "p.png", (4, 6))
    pair = Pair(tmp_path / "p.png", tmp_path / "m.png")
    values = np.zeros((4, 6), dtype=np.uint8)
    values[1:3] = 255
    for content in (values, np.full_like(values, 255)):
        Image.fromarray(content).save(pair.mask)
        with pytest.raises(DataFileError, match=r"m\.png has no numbers but 0 and 255.*class_of_255=1 "):
            read_pair(pair, 2)
        with pytest.raises(DataFileError, match="0 and 255"):
            MaskedPictures([pair], 2, size=4).fixed()
        assert torch.equal(read_pair(pair, 2, class_of_255=1)[1], torch.from_numpy(content).long() // 255)
        assert torch.equal(read_pair(pair, 2, class_of_255=IGNORED)[1], torch.from_numpy(content).long())
    _, classes = MaskedPictures([pair], 2, size=6, class_of_255=1).fixed()
    assert classes[0, 0].tolist() == [1] * 6
    assert classes[0, 4:].unique().tolist() == [IGNORED], "what was filled up does not count"
    values[0] = 1
    Image.fromarray(values).save(pair.mask)
    assert read_pair(pair, 2)[1].unique().tolist() == [0, 1, IGNORED]
    Image.new("L", (6, 4)).save(pair.mask)
    assert read_pair(pair, 2)[1].unique().tolist() == [0]
    for classes, class_of_255 in ((2, 2), (2, -1), (256, None), (0, None)):
        with pytest.raises(InvalidInputError, match=r"class_of_255|255 classes"):
            MaskedPictures([pair], classes, size=4, class_of_255=class_of_255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_masks_turn_with_their_pictures(tmp_path, orientation, ending):
    """As the camera stored both; as a program stored the mask upright; and as a mask has an orientation of its own."""
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:8, :16] = 255
    classes = torch.from_numpy((stored[..., 0] > 0).astype(int))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"p.{ending}", exif=exif)
    pair = Pair(tmp_path / f"p.{ending}", tmp_path / "m.png")
    mask = Image.fromarray(classes.numpy().astype(np.uint8))
    mask.save(pair.mask)
    colors, found = read_pair(pair, 2)
    assert torch.equal(found, (colors[0] > 128).long())
    assert torch.equal(found, torch.from_numpy(np.array(ImageOps.exif_transpose(_with(mask, exif)))).long())
    mask.save(pair.mask, exif=exif)
    assert torch.equal(read_mask(pair.mask), found)
    assert torch.equal(read_pair(pair, 2)[1], found)
    if orientation >= 5:
        Image.fromarray(found.numpy().astype(np.uint8)).save(pair.mask)
        assert torch.equal(read_pair(pair, 2)[1], found)


def _with(image, exif):
    """A picture that has passed through a file with this orientation."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    return Image.open(buffer)


def test_files_that_are_no_masks_are_refused(tmp_path):
    values = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
    image = Image.fromarray(values)
    image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "b.gif", save_all=True, append_images=[Image.fromarray(values[::-1])])
    tifffile.imwrite(tmp_path / "c.tif", values, photometric="miniswhite", metadata=None)
    tifffile.imwrite(tmp_path / "d.tif", values.astype(np.int16), photometric="minisblack", metadata=None)
    grey_mask(tmp_path / "e.png", np.zeros((1, 1), dtype=int), 8)
    content = (tmp_path / "e.png").read_bytes()
    header = content[12:16] + (15_000).to_bytes(4, "big") * 2 + content[24:29]
    (tmp_path / "e.png").write_bytes(content[:8] + chunk(header[:4], header[4:]) + content[33:])
    for name, message in (
        ("a.jpg", "changes numbers"),
        ("b.gif", "2 frames"),
        ("c.tif", "zero is white"),
        ("d.tif", "signed numbers"),
        ("e.png", "more than the limit of 200 megapixels"),
    ):
        with pytest.raises(DataFileError, match=rf"{name}.*{message}"):
            read_mask(tmp_path / name)


def test_cut_outs_of_sixteen_bits_count_too(tmp_path):
    (tmp_path / "animals").mkdir()
    samples = np.zeros((6, 8, 4), dtype=int)
    samples[1:4, 2:7] = (65535, 0, 32768, 65535)
    (tmp_path / "animals" / "a.png").write_bytes(png(samples, 16, 6))
    (cutout,) = read_cutouts(tmp_path, ["animals"])
    assert cutout.alpha.shape == (1, 3, 5)
    assert cutout.colors[:, 0, 0].tolist() == pytest.approx([1, 0, 0.5], abs=1e-4)


def test_class_folders(tmp_path):
    for part, name, k in (("train", "cat", 0), ("train", "dog", 1), ("train", "dog", 2), ("test", "dog", 3)):
        pixels = picture(tmp_path / part / name / f"{k}.png", seed=k)
    train, test = (read_class_folders(tmp_path, train=t, size=20) for t in (True, False))
    assert train.labels.tolist() == [0, 1, 1]
    assert (test.labels.tolist(), test.classes) == ([1], 2)
    assert torch.equal(test.pictures[0], torch.from_numpy(pixels[:, 5:25]).movedim(-1, 0))
    assert read_class_folders(tmp_path, train=True, size=8).pictures.shape == (3, 3, 8, 8)
    picture(tmp_path / "test" / "cow" / "0.png")
    with pytest.raises(DataFileError, match=r"cow: expected the classes of .*: cat, dog"):
        read_class_folders(tmp_path, train=False)
    damaged = tmp_path / "train" / "dog" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:90])
    with pytest.raises(DataFileError, match=r"1\.png cannot be read"):
        read_class_folders(tmp_path, train=True)
    damaged.unlink()
    (tmp_path / "train" / "dog" / "2.png").unlink()
    with pytest.raises(DataFileError, match="holds no pictures"):
        read_class_folders(tmp_path, train=True)
    with pytest.raises(DataFileError, match="one folder of pictures for each class"):
        read_class_folders(tmp_path / "absent", train=True)


def volume(folder, kind, array):
    image = nibabel.Nifti1Image(array.astype(np.uint8), np.eye(4))
    nibabel.save(image, folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")


def test_brain_slices(tmp_path):
    t1 = np.random.default_rng(0).integers(0, 256, (21, 18, 6))
    grey, white = np.zeros_like(t1), np.zeros_like(t1)
    grey[:9, :, 1:], white[9:13, :, 1:] = 200, 140
    grey[9:13, :, 1:] = 60
    for kind, array in (("t1", t1), ("gm", grey), ("wm", white)):
        volume(tmp_path, kind, array)
    x, y = brain_slices(tmp_path, multiple=4)
    assert x.shape == (5, 1, 20, 16), "the slice without tissue is left out"
    assert torch.equal(x[0, 0], torch.from_numpy(t1[:20, :16, 1]).to(torch.uint8))
    assert y[:, :, 0].unique(dim=0).tolist() == [[1] * 9 + [2] * 4 + [0] * 7]
    half, _ = brain_slices(tmp_path, multiple=4, millimetres=2)
    assert torch.equal(half, x[..., :16:2, ::2])
    volume(tmp_path, "gm", grey[:-1])
    with pytest.raises(DataFileError, match="volumes of one shape"):
        brain_slices(tmp_path)
    (tmp_path / "bad.nii.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(DataFileError, match=r"bad\.nii\.gz cannot be read as NIfTI"):
        read_volume(tmp_path / "bad.nii.gz")
    with pytest.raises(DataFileError, match="the t1 volume"):
        brain_slices(tmp_path / "absent")


def test_slabs_do_not_touch():
    parts = [set(part.tolist()) for part in slabs(150, size=8, gap=5)]
    for k, part in enumerate(parts):
        others = set().union(*(p for i, p in enumerate(parts) if i != k))
        assert min(abs(a - b) for a in part for b in others) > 5
    assert len(parts[0]) > len(parts[1]) + len(parts[2])
    with pytest.raises(InvalidInputError, match="at least five slabs"):
        slabs(20, size=8, gap=5)


def test_cutouts_from_files_and_their_masks(tmp_path):
    rgba = np.zeros((30, 40, 4), dtype=np.uint8)
    rgba[5:15, 8:28] = (255, 0, 0, 255)
    for folder in ("animals/x", "animals/cartoon"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(rgba).save(tmp_path / folder / "a.png")
    (cutout,) = read_cutouts(tmp_path, ["animals"])
    assert cutout.alpha.shape == (1, 10, 20), "cropped to what is visible"
    black = [torch.zeros(3, 70, 80, dtype=torch.uint8)]
    x, y = Composites([cutout._replace(label=2)], black, size=64, samples=6).fixed(3)
    assert torch.equal((x[:, 0] > 128).long() * 2, y)
    assert not bool(x[:, 1:].any())
    widths = (y > 0).any(dim=1).sum(dim=1)
    assert 0.38 * 64 <= int(widths.min()) < int(widths.max()) <= 0.92 * 64
    with pytest.raises(DataFileError, match="PNG files with transparency"):
        read_cutouts(tmp_path, ["plants"])


def test_composites_refuse_what_does_not_fit():
    cutout = CutOut(torch.zeros(3, 4, 4), torch.ones(1, 4, 4), 1)
    with pytest.raises(InvalidInputError, match="photographs of at least 64 x 64"):
        Composites([cutout], [torch.zeros(3, 50, 80, dtype=torch.uint8)], size=64, samples=1)
    with pytest.raises(InvalidInputError, match="expected cut-outs"):
        Composites([], [torch.zeros(3, 80, 80, dtype=torch.uint8)], size=64, samples=1)


def test_photographs_are_reduced(tmp_path):
    picture(tmp_path / "a.png", (40, 80))
    assert photographs([tmp_path / "a.png"], 20)[0].shape == (3, 10, 20)
    assert photographs([tmp_path / "a.png"], 200)[0].shape == (3, 40, 80)


class Told(nn.Module):
    """Scores that say the class that the first channel holds."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.weight = classes, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        assert not self.training
        scores = nn.functional.one_hot((x[:, 0] * 255).round().long(), self.classes).float()
        return scores.movedim(-1, 1) if x.ndim == 4 and x.shape[-1] > 1 else scores.flatten(1)


def test_judges_count_as_they_should():
    x = torch.tensor([0, 1, 2, 2, 1], dtype=torch.uint8).reshape(5, 1, 1, 1)
    net = Told(3)
    assert accuracy(net, x, torch.tensor([0, 1, 2, 1, 0]), 3, batch=2) == pytest.approx(0.6)
    assert net.training
    said = torch.tensor([[0, 0, 1, 1], [2, 2, 1, 1]], dtype=torch.uint8).reshape(1, 1, 2, 4)
    truth = torch.tensor([[0, 1, 1, 1], [2, 2, 255, 0]]).reshape(1, 2, 4)
    assert mean_iou(net, said, truth, 3, ignored=255) == pytest.approx((1 / 3 + 2 / 4 + 1) / 3)


def test_augmentation_moves_and_mirrors():
    x = torch.rand(64, 2, 9, 7)
    u = torch.rand(64, 3)
    moved = shift(x, u[:, :2], 2)
    rows, columns = (u[5, :2] * 5).long().tolist()
    padded = nn.functional.pad(x[5], (2, 2, 2, 2))
    assert torch.equal(moved[5], padded[:, rows : rows + 9, columns : columns + 7])
    assert torch.equal(shift(x, torch.full((64, 2), 0.5), 2), x)
    turned = mirror(x, u[:, 2])
    assert 10 < sum(torch.equal(a, b) for a, b in zip(turned, x, strict=True)) < 54
    y = torch.arange(64)
    assert torch.equal(shifted_and_mirrored(x, y, u)[1], y)
