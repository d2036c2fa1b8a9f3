"""Segmentation by a U-Net or a dilated ResNet, with every skip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from nablanets.errors import unknown_name
from nablanets_studies import datasets
from nablanets_studies.images.brain import TISSUES, brain_slices, slabs
from nablanets_studies.images.composites import Composites, CutOut, digit_cutouts, photographs, read_cutouts
from nablanets_studies.images.judge import mean_iou
from nablanets_studies.images.masks import IGNORED, VOC_CLASSES, MaskedPictures, voc_pairs
from nablanets_studies.images.models import Segmenter, UNet
from nablanets_studies.images.training import Source, Stored
from nablanets_studies.machinery.base import Column
from nablanets_studies.pictures.picture_findings import Score
from nablanets_studies.pictures.pictures import PictureConfig, PictureExperiment, Task
from nablanets_studies.residual.arms import Arm

CUTOUT_CLASSES = ("animals", "food", "plants", "vehicles")
#: Seeds by which the composites for the end and for choices are drawn.
_TEST_SEED = 11
_VALIDATION_SEED = 12
#: Photographs under the cut-outs have at most so many pixels on the longer side.
_LONGEST = 640


@dataclass(frozen=True)
class SegmentationConfig(PictureConfig):
    """Settings of a run.

    Attributes:
        data: "digits" (handwritten digits on photographs, all inside packages), "brain-tissue" or "cut-outs"
            (``nablanets data get``), or "voc" (in ``folder``).
        folder: of Pascal VOC, the one with JPEGImages in it.
        size: of the pictures of "digits", "cut-outs" and "voc".
        samples: pictures of an epoch of "digits" and "cut-outs".
        test_samples: for choices, and again for the end, of "digits" and "cut-outs".
        millimetres: of a pixel of "brain-tissue".
        network: "unet", "fcn" or "deeplab".
        levels: of the U-Net.
        blocks, stem: of the ResNet of "fcn" and "deeplab".
    """

    data: str = "digits"
    folder: str = ""
    size: int = 48
    samples: int = 400
    test_samples: int = 100
    millimetres: int = 2
    network: str = "unet"
    levels: int = 3
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    stem: str = "imagenet"


class Pixels(NamedTuple):
    """Pictures for training, and bytes with the class of each pixel for choices and for the end."""

    source: Source
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    channels: int = 3


class SegmentationExperiment(PictureExperiment[SegmentationConfig]):
    """Find the class of each pixel."""

    name = "segmentation"
    summary = "Segment pictures by U-Net, FCN or DeepLab: gradient residuals and controls, at equal epochs and time."
    template = "segmentation.md.j2"
    error_title = "1 - mean IoU"
    columns = (
        Column("iou", "test mean IoU [%]"),
        Column("epochs", "epochs"),
        Column("cost", "cost of a step"),
        Column("rate", "rate", ".0e"),
        Column("alpha", "alpha at start", ".0f"),
    )
    presets = {  # noqa: RUF012
        "quick": SegmentationConfig(
            width=8, levels=2, epochs=4, batch_size=16, rates=(1e-2,), alphas=(-3.0,), size=32
        ),
        "brain": SegmentationConfig(
            data="brain-tissue", width=8, epochs=10, batch_size=4, alphas=(-3.0,), trial_epochs=2
        ),
        "cut-outs": SegmentationConfig(
            data="cut-outs", width=12, levels=4, size=64, samples=1600, test_samples=400, epochs=4, batch_size=16,
            trial_epochs=1,
        ),
        "paper": SegmentationConfig(
            data="voc", network="deeplab", width=64, size=512, epochs=50, batch_size=16, rates=(1e-3, 3e-3),
            precision="bf16-mixed", trial_epochs=5, warmup=0.05,
        ),
    }  # fmt: skip
    seeds = {"quick": 3, "brain": 3, "cut-outs": 3, "paper": 3}  # noqa: RUF012

    def task(self, config: SegmentationConfig) -> Task:
        pixels = load(config)

        def build(skip: Arm) -> nn.Module:
            return network(config, pixels.classes, pixels.channels, skip)

        def score(net: nn.Module, part: tuple[Tensor, Tensor]) -> float:
            return mean_iou(net, *part, pixels.classes, ignored=IGNORED)

        def validate(net: nn.Module) -> float:
            return 1 - score(net, pixels.validation)

        def judge(net: nn.Module) -> Score:
            found = score(net, pixels.test)
            return Score(iou=100 * found, test_error=1 - found)

        return Task(build, pixels.source, _loss, validate, judge)


def network(config: SegmentationConfig, classes: int, channels: int, skip: Arm) -> nn.Module:
    """The network of a configuration.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if config.network == "unet":
        return UNet(classes, channels=channels, width=config.width, levels=config.levels, skip=skip)
    if config.network not in ("fcn", "deeplab"):
        raise unknown_name("network", config.network, ("unet", "fcn", "deeplab"))
    shape = {"blocks": config.blocks, "width": config.width, "channels": channels, "stem": config.stem}
    return Segmenter(classes, head=config.network, skip=skip, **shape)  # type: ignore[arg-type]


def load(config: SegmentationConfig) -> Pixels:
    """The pictures of a configuration.

    Raises:
        UnknownNameError: no data of that name.
        DataFileError: they are not there, or damaged.

    >>> pixels = load(SegmentationConfig(samples=10, test_samples=5))
    >>> pixels.test[0].shape, len(pixels.source)
    (torch.Size([5, 3, 48, 48]), 10)
    """
    if config.data not in _READERS:
        raise unknown_name("data", config.data, _READERS)
    return _READERS[config.data](config)


def _loss(scores: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(scores, target, ignore_index=IGNORED)


def _digits(config: SegmentationConfig) -> Pixels:
    cutouts = digit_cutouts()
    return _composites(config, [cutouts[:1000], cutouts[1000:1400], cutouts[1400:]], classes=2)


def _cutouts(config: SegmentationConfig) -> Pixels:
    """Of each class every fourth cut-out is for choices, and every fourth for the end."""
    found = read_cutouts(datasets.path("cut-outs"), CUTOUT_CLASSES)
    parts = [[c for k, c in enumerate(found) if k % 4 in chosen] for chosen in ((0, 1), (2,), (3,))]
    return _composites(config, parts, classes=1 + len(CUTOUT_CLASSES))


def _composites(config: SegmentationConfig, cutouts: list[list[CutOut]], classes: int) -> Pixels:
    """Each part has cut-outs and photographs of its own."""
    learn = datasets.path("scikit-learn-pictures")
    image = datasets.path("scikit-image-pictures")
    grounds: tuple[list[Path], ...] = (
        [learn / "china.jpg", learn / "flower.jpg", image / "rocket.jpg", image / "motorcycle_left.png"],
        [image / "coffee.png"],
        [image / "astronaut.png", image / "chelsea.png"],
    )
    counts = config.samples, config.test_samples, config.test_samples
    train, validation, test = (
        Composites(part, photographs(ground, _LONGEST), size=config.size, samples=count)
        for part, ground, count in zip(cutouts, grounds, counts, strict=True)
    )
    return Pixels(train, validation.fixed(_VALIDATION_SEED), test.fixed(_TEST_SEED), classes)


def _brain(config: SegmentationConfig) -> Pixels:
    x, y = brain_slices(datasets.path("brain-tissue"), millimetres=config.millimetres, multiple=2**config.levels)
    train, validation, test = slabs(len(x), size=8, gap=5)
    return Pixels(
        Stored(x[train], y[train]), (x[validation], y[validation]), (x[test], y[test]), len(TISSUES), channels=1
    )


def _voc(config: SegmentationConfig) -> Pixels:
    """Of the training pictures every tenth is for choices; the official validation pictures are the test."""
    pairs = voc_pairs(config.folder, "train")
    parts = [p for k, p in enumerate(pairs) if k % 10], pairs[::10], voc_pairs(config.folder, "val")
    train, validation, test = (
        MaskedPictures(part, VOC_CLASSES, size=config.size, class_of_255=IGNORED) for part in parts
    )
    return Pixels(train, validation.fixed(), test.fixed(), VOC_CLASSES)


_READERS: dict[str, Callable[[SegmentationConfig], Pixels]] = {
    "digits": _digits,
    "brain-tissue": _brain,
    "cut-outs": _cutouts,
    "voc": _voc,
}
