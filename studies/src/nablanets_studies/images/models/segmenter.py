"""Segmentation by a residual network with dilated last stages and a head of FCN or DeepLab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nablanets.errors import unknown_name
from nablanets.serialization import savable
from nablanets_studies.images.models.blocks import initialise_convolutions
from nablanets_studies.images.models.resnet import ResNet, Stem
from nablanets_studies.residual.arms import Arm

Head = Literal["fcn", "deeplab"]


@savable
class Segmenter(nn.Module):
    r"""Pictures (B, C, H, W) to class scores of each pixel (B, classes, H, W).

    A ResNet whose last two stages are dilated instead of smaller, a head on what the last one returns, and bilinear
    enlargement. The names of its weights are those of torchvision's FCN and DeepLabV3. After Long et al., "Fully
    Convolutional Networks for Semantic Segmentation" (2015), and Chen et al., "Rethinking Atrous Convolution for
    Semantic Image Segmentation" (2017).

    Args:
        classes: number of scores.
        head: "fcn", or "deeplab" (parallel dilated convolutions and the mean of the picture).
        blocks, width, channels, stem, skip: see :class:`ResNet`.
        rates: dilations of "deeplab".

    >>> Segmenter(4, head="fcn", blocks=(1, 1, 1), width=8, stem="cifar", skip="damped")(torch.rand(2, 3, 16, 24)).shape
    torch.Size([2, 4, 16, 24])
    """

    def __init__(
        self,
        classes: int,
        *,
        head: Head = "deeplab",
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        channels: int = 3,
        stem: Stem = "imagenet",
        skip: Arm = "standard",
        rates: Sequence[int] = (12, 24, 36),
    ) -> None:
        super().__init__()
        if head not in get_args(Head):
            raise unknown_name("head", head, get_args(Head))
        self._arguments = {
            "classes": classes, "head": head, "blocks": list(blocks), "width": width, "channels": channels,
            "stem": stem, "skip": skip, "rates": list(rates),
        }  # fmt: skip
        dilated = min(2, len(blocks) - 1)
        self.backbone = ResNet(1, blocks=blocks, width=width, channels=channels, stem=stem, skip=skip, dilated=dilated)
        del self.backbone.fc
        inputs = self.backbone.widths[-1]
        self.classifier = _fcn(inputs, classes) if head == "fcn" else _deeplab(inputs, classes, rates)
        initialise_convolutions(self.classifier)

    def config(self) -> dict[str, Any]:
        return self._arguments

    def forward(self, x: Tensor) -> Tensor:
        scores = self.classifier(self.backbone.features(x)[-1])
        return F.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """Parallel convolutions of several dilations and the mean over the picture, joined by a convolution."""

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int]) -> None:
        super().__init__()
        mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_convolution(inputs, outputs, 1))
        branches = [_convolution(inputs, outputs, 1), *(_convolution(inputs, outputs, 3, rate) for rate in rates), mean]
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*_convolution(len(branches) * outputs, outputs, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        *local, mean = (conv(x) for conv in self.convs)
        y: Tensor = self.project(torch.cat([*local, mean.expand(-1, -1, *x.shape[-2:])], dim=1))
        return y


def _convolution(inputs: int, outputs: int, size: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation if size == 3 else 0
    conv = nn.Conv2d(inputs, outputs, size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _fcn(inputs: int, classes: int) -> nn.Sequential:
    inner = max(1, inputs // 4)
    return nn.Sequential(*_convolution(inputs, inner, 3), nn.Dropout(0.1), nn.Conv2d(inner, classes, 1))


def _deeplab(inputs: int, classes: int, rates: Sequence[int]) -> nn.Sequential:
    inner = min(256, inputs)
    return nn.Sequential(
        PyramidPooling(inputs, inner, rates), *_convolution(inner, inner, 3), nn.Conv2d(inner, classes, 1)
    )
