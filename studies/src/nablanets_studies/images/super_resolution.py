"""Training super-resolution networks on photographs, and measuring them by the field's protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from nablanets.fitting.settings import HistoryRow
from nablanets_studies.images.metrics import Quality, mean_psnr, quality
from nablanets_studies.images.patches import PatchPairs
from nablanets_studies.images.training import TrainResult, TrainSettings, train

#: The share of the evaluations, from the end, whose PSNR is averaged.
LAST = 0.25


class Trained(NamedTuple):
    """The record of a training, and the networks of the evaluations in its last quarter, the last one included."""

    record: TrainResult
    last: list[nn.Module]


@dataclass
class Evaluations:
    """Called as ``validate``: the mean square error that belongs to the mean PSNR on pictures, and the last networks.

    Attributes:
        pictures: bytes (3, H, W).
        scale: of the network.
    """

    pictures: Sequence[Tensor]
    scale: int

    def __post_init__(self) -> None:
        self.count = 0
        self.kept = list[tuple[int, nn.Module]]()

    def __call__(self, net: nn.Module) -> float:
        self.kept = [(index, old) for index, old in self.kept if index >= self._first(self.count + 1)]
        self.kept.append((self.count, deepcopy(net)))
        self.count += 1
        return 10 ** (-mean_psnr(net, self.pictures, self.scale) / 10)

    def last(self) -> list[nn.Module]:
        """Networks of the last quarter of the evaluations, at least one."""
        return [net for index, net in self.kept if index >= self._first(self.count)]

    @staticmethod
    def _first(count: int) -> int:
        return min(count - 1, math.ceil((1 - LAST) * count))


def train_super_resolution(
    net: Any,
    source: PatchPairs,
    validation: Sequence[Tensor],
    settings: TrainSettings,
    *,
    checkpoint: str | Path | None = None,
    report: Callable[[HistoryRow], None] = lambda _: None,
) -> Trained:
    """Train a network in place by the mean absolute error of patches, as EDSR does.

    Args:
        net: with a ``scale``.
        source: patches.
        validation: pictures for the PSNR that is reported (as the mean square error that belongs to it).
        settings: of the shared loop.
        checkpoint, report: see :func:`nablanets_studies.images.training.train`.
    """
    evaluations = Evaluations(validation, net.scale)
    record = train(
        net, source, F.l1_loss, settings=settings, validate=evaluations, checkpoint=checkpoint, report=report
    )
    return Trained(record, evaluations.last())


def average_quality(nets: Sequence[nn.Module], pictures: Sequence[Tensor], scale: int) -> Quality:
    """PSNR and SSIM, as means over pictures and over networks."""
    every = [q for net in nets for q in quality(net.eval(), pictures, scale)]
    return Quality(*(sum(values) / len(every) for values in zip(*every, strict=True)))
