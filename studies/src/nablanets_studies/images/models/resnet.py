"""Residual networks of two-layer blocks for classification, with any skip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError, check_positive_int, unknown_name
from nablanets.serialization import savable
from nablanets_studies.images.models.blocks import (
    Normalization,
    check_pictures,
    initialise_convolutions,
    normalization,
    with_skips,
)
from nablanets_studies.residual.arms import Arm, arm_settings

Stem = Literal["imagenet", "cifar", "half"]


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), with torchvision's names."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1, norm: str = "batch") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.bn1 = normalization(norm, outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.bn2 = normalization(norm, outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, normalization(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu((x if self.downsample is None else self.downsample(x)) + y)
        return result


@savable
class ResNet(nn.Module):
    r"""A residual network of two-layer blocks: pictures (B, C, H, W) to class scores (B, classes).

    The names of its weights are torchvision's, so that its ResNet-18 and 34 load (see ``load_weights``). After He et
    al., "Deep Residual Learning for Image Recognition" (2016). Blocks end in a normalisation, which makes the sum of
    their outputs constant, so gradients are taken before it (``norm="before"``), which is our choice; an arm like
    ``{"arm": "gradient", "norm": "constant"}`` makes another.

    Args:
        classes: number of scores.
        blocks: per stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) ResNet-34. Each stage after the first halves the
            size and doubles the width.
        width: of the first stage.
        channels: of the pictures.
        stem: "imagenet" (7 x 7 with stride 2, then pooling), "cifar" (3 x 3), "half" (3 x 3 with stride 2).
        skip: the arm of every block: a name of ``residual.arms.ARMS`` or settings of :class:`GradientResidual`.
        normalization: "batch", or "group", whose results do not depend on who else is in the batch.
        dilated: in so many of the last stages, dilation takes the place of the stride.

    Raises:
        InvalidInputError: a setting is out of range.

    >>> net = ResNet(10, blocks=(1, 1), width=8, channels=1, stem="cifar", skip={"arm": "gradient", "alpha": -3.0})
    >>> net(torch.rand(2, 1, 28, 28)).shape, "layer1.0.gradient_residual.alpha" in net.state_dict()
    (torch.Size([2, 10]), True)
    """

    #: The constructor converts its blocks, and config() says with which skip: so the network can be saved.
    tells_parts = True

    def __init__(
        self,
        classes: int = 1000,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        channels: int = 3,
        stem: Stem = "imagenet",
        skip: Arm = "standard",
        normalization: Normalization = "batch",
        dilated: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("classes", classes), ("width", width), ("channels", channels)):
            check_positive_int(value, owner="ResNet", name=name)
        if not blocks or not 0 <= dilated < len(blocks):
            raise InvalidInputError(
                f"ResNet: expected at least one stage and dilated below their number, got {blocks=} and {dilated=}."
            )
        self._arguments = {
            "classes": classes, "blocks": list(blocks), "width": width, "channels": channels, "stem": stem,
            "skip": skip, "normalization": normalization, "dilated": dilated,
        }  # fmt: skip
        self.channels = channels
        self.widths = [width << k for k in range(len(blocks))]
        self._add_stem(stem, normalization)
        inputs = width
        dilation = 1
        for k, count in enumerate(blocks):
            inside = k >= len(blocks) - dilated
            stride = 1 if k == 0 or inside else 2
            first = BasicBlock(inputs, self.widths[k], stride, dilation, normalization)
            dilation *= 2 if inside else 1
            rest = [BasicBlock(self.widths[k], self.widths[k], 1, dilation, normalization) for _ in range(count - 1)]
            self.add_module(f"layer{k + 1}", nn.Sequential(first, *rest))
            inputs = self.widths[k]
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialise_convolutions(self)
        with_skips(self, skip)
        if arm_settings(skip).get("skip") == "none":
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(".downsample." not in name)

    def _add_stem(self, stem: str, norm: str) -> None:
        if stem not in get_args(Stem):
            raise unknown_name("stem", stem, get_args(Stem))
        width = self.widths[0]
        large = stem == "imagenet"
        stride = 1 if stem == "cifar" else 2
        self.conv1 = nn.Conv2d(self.channels, width, 7 if large else 3, stride, 3 if large else 1, bias=False)
        self.bn1 = normalization(norm, width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()

    def config(self) -> dict[str, Any]:
        return self._arguments

    def features(self, x: Tensor) -> list[Tensor]:
        """The output of each stage."""
        check_pictures(x, self.channels, 1, owner="ResNet")
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        found = []
        for k in range(len(self.widths)):
            x = self.get_submodule(f"layer{k + 1}")(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(torch.flatten(self.avgpool(self.features(x)[-1]), 1))
        return y
