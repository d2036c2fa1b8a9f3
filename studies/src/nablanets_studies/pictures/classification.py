"""Classification of pictures by residual networks, with every skip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from nablanets.errors import unknown_name
from nablanets_studies import datasets
from nablanets_studies.datasets import Labelled
from nablanets_studies.images.augment import shifted_and_mirrored
from nablanets_studies.images.class_folders import read_class_folders
from nablanets_studies.images.extras import needed
from nablanets_studies.images.judge import accuracy
from nablanets_studies.images.models import ResNet
from nablanets_studies.images.training import Stored
from nablanets_studies.machinery.base import Column
from nablanets_studies.pictures.picture_findings import Score
from nablanets_studies.pictures.pictures import PictureConfig, PictureExperiment, Task
from nablanets_studies.residual.arms import Arm

_SPLIT_SEED = 20_260_101


@dataclass(frozen=True)
class ClassificationConfig(PictureConfig):
    """Settings of a run.

    Attributes:
        data: "digits" (inside scikit-learn), "fashion-mnist" or "mnist" (``nablanets data get``), "idx", "cifar" or
            "folders" (in ``folder``).
        folder: for "idx", "cifar" and "folders" (which has train/CLASS and test/CLASS with pictures).
        first_label: what the labels of "idx" count from; if -1, from 0, and labels of which none is 0 are refused.
        validation_samples: training pictures that are held out for choices.
        augment: shift and mirror training pictures.
        blocks: per stage of the network.
        stem: see :class:`ResNet`.
    """

    data: str = "digits"
    folder: str = ""
    first_label: int = -1
    validation_samples: int = 200
    augment: bool = False
    blocks: tuple[int, ...] = (1, 1, 1)
    stem: str = "half"


class Split(NamedTuple):
    """Pictures for training, for choices, and for the end."""

    train: Labelled
    validation: Labelled
    test: Labelled


class ClassificationExperiment(PictureExperiment[ClassificationConfig]):
    """Classify pictures by a ResNet."""

    name = "classification"
    summary = "Classify pictures by a ResNet: gradient residuals and controls, at equal epochs and at equal time."
    template = "classification.md.j2"
    error_title = "test error"
    columns = (
        Column("accuracy", "test accuracy [%]"),
        Column("epochs", "epochs"),
        Column("cost", "cost of a step"),
        Column("rate", "rate", ".0e"),
        Column("alpha", "alpha at start", ".0f"),
    )
    presets = {  # noqa: RUF012
        "quick": ClassificationConfig(
            blocks=(1, 1), stem="cifar", epochs=8, batch_size=64, rates=(1e-2,), alphas=(-3.0,), validation_samples=200
        ),
        "fashion": ClassificationConfig(
            data="fashion-mnist",
            precision="bf16-mixed",
            channels_last=False,
            epochs=3,
            batch_size=64,
            validation_samples=2000,
            alphas=(-3.0,),
            trial_epochs=0.25,
        ),
        "paper": ClassificationConfig(
            data="cifar", width=64, blocks=(2, 2, 2, 2), stem="cifar", epochs=100, augment=True, precision="bf16-mixed",
            validation_samples=5000, rates=(1e-3, 3e-3), alphas=(-3.0, 0.0), trial_epochs=10, warmup=0.05,
        ),
    }  # fmt: skip
    seeds = {"quick": 3, "fashion": 3, "paper": 3}  # noqa: RUF012

    def task(self, config: ClassificationConfig) -> Task:
        train, validation, test = load(config)

        def build(skip: Arm) -> nn.Module:
            channels = train.pictures.shape[1]
            return ResNet(
                train.classes,
                blocks=config.blocks,
                width=config.width,
                channels=channels,
                stem=config.stem,  # type: ignore[arg-type]
                skip=skip,
            )

        def judge(net: nn.Module) -> Score:
            found = accuracy(net, test.pictures, test.labels, test.classes)
            return Score(accuracy=100 * found, test_error=1 - found)

        def validate(net: nn.Module) -> float:
            return 1 - accuracy(net, validation.pictures, validation.labels, validation.classes)

        augment = (shifted_and_mirrored, 3) if config.augment else (None, 0)
        return Task(build, Stored(train.pictures, train.labels, *augment), F.cross_entropy, validate, judge)


def load(config: ClassificationConfig) -> Split:
    """The pictures of a configuration, the validation samples drawn with a seed of their own.

    Raises:
        UnknownNameError: no data of that name.
        DataFileError: they are not there, or damaged.

    >>> [len(part.pictures) for part in load(ClassificationConfig(validation_samples=100))]
    [1247, 100, 450]
    """
    if config.data not in _READERS:
        raise unknown_name("data", config.data, _READERS)
    train, test = _READERS[config.data](config)
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    held = order[: config.validation_samples]
    kept = order[config.validation_samples :]
    parts = [Labelled(train.pictures[index], train.labels[index], train.classes) for index in (kept, held)]
    return Split(parts[0], parts[1], test)


def _digits(_: ClassificationConfig) -> tuple[Labelled, Labelled]:
    """Three quarters for training, by a split with a seed of its own."""
    found = needed("sklearn.datasets").load_digits()
    pictures = (torch.from_numpy(found.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(found.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    cut = len(labels) * 3 // 4
    train, test = (Labelled(pictures[index], labels[index], 10) for index in (order[:cut], order[cut:]))
    return train, test


def _both(
    read: Callable[..., Labelled], folder: Callable[[ClassificationConfig], object] = lambda config: config.folder
) -> Callable[[ClassificationConfig], tuple[Labelled, Labelled]]:
    return lambda config: (read(folder(config), train=True), read(folder(config), train=False))


def _named(name: str) -> Callable[[ClassificationConfig], object]:
    return lambda _: datasets.path(name)


def _idx(config: ClassificationConfig) -> tuple[Labelled, Labelled]:
    first_label = None if config.first_label < 0 else config.first_label
    read = partial(datasets.read_idx_folder, config.folder, first_label=first_label)
    return read(train=True), read(train=False)


_READERS: dict[str, Callable[[ClassificationConfig], tuple[Labelled, Labelled]]] = {
    "digits": _digits,
    "fashion-mnist": _both(datasets.read_idx_folder, _named("fashion-mnist")),
    "mnist": _both(datasets.read_mnist_json, _named("mnist")),
    "idx": _idx,
    "cifar": _both(datasets.read_cifar),
    "folders": _both(read_class_folders),
}
