"""How classifiers and segmenters are judged: accuracy and the mean intersection over union, by torchmetrics."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nablanets_studies.images.extras import needed
from nablanets_studies.images.training.sources import as_floats


def accuracy(net: nn.Module, x: Tensor, y: Tensor, classes: int, *, batch: int = 500) -> float:
    """The fraction of pictures whose largest score is that of their class."""
    metric = needed("torchmetrics.classification").MulticlassAccuracy(classes, average="micro")
    return _judged(metric, net, x, y, batch)


def mean_iou(
    net: nn.Module, x: Tensor, y: Tensor, classes: int, *, batch: int = 16, ignored: int | None = None
) -> float:
    """Intersection over union of each class over all pixels, averaged over classes; pixels ``ignored`` do not count."""
    metric = needed("torchmetrics.classification").MulticlassJaccardIndex(
        classes, average="macro", ignore_index=ignored
    )
    return _judged(metric, net, x, y, batch)


def _judged(metric: nn.Module, net: nn.Module, x: Tensor, y: Tensor, batch: int) -> float:
    device = next(net.parameters()).device
    metric = metric.to(device)
    for outputs, targets in _outputs(net, x, y, batch, device):
        metric.update(outputs, targets)  # type: ignore[operator]
    return float(metric.compute())  # type: ignore[operator]


@torch.no_grad()
def _outputs(net: nn.Module, x: Tensor, y: Tensor, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Classes of each batch as a network in evaluation sees them, with the targets."""
    training = net.training
    net.eval()
    for part, targets in zip(x.split(batch), y.split(batch), strict=True):
        yield net(as_floats(part).to(device)).argmax(dim=1), targets.to(device)
    net.train(training)
