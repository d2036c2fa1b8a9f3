"""A U-Net of residual blocks, with any skip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nablanets.errors import check_positive_int
from nablanets.serialization import savable
from nablanets_studies.images.models.blocks import Normalization, check_pictures, initialise_convolutions, normalization
from nablanets_studies.residual.arms import Arm, arm_settings, residual


@savable
class UNet(nn.Module):
    r"""Pictures (B, C, H, W) to class scores of each pixel (B, classes, H, W).

    Going down, each level has a residual block and halves the size; going up, the pictures are enlarged, joined with
    those of the same size, and pass a residual block. Blocks are norm-ReLU-conv-norm-ReLU-conv, so that the sum of
    their outputs depends on their input. After Ronneberger et al., "U-Net" (2015), with the pre-activation blocks of
    He et al. (2016).

    Args:
        classes: number of scores.
        channels: of the pictures.
        width: of the first level; each further level doubles it.
        levels: how many; sides must be multiples of 2^(levels - 1).
        skip: the arm of every block: a name of ``residual.arms.ARMS`` or settings of :class:`GradientResidual`.
        normalization: "group", whose results do not depend on who else is in the batch, or "batch".

    >>> UNet(3, channels=1, width=4, levels=2, skip="gradient-full")(torch.rand(2, 1, 8, 12)).shape
    torch.Size([2, 3, 8, 12])
    """

    def __init__(
        self,
        classes: int,
        *,
        channels: int = 3,
        width: int = 32,
        levels: int = 4,
        skip: Arm = "standard",
        normalization: Normalization = "group",
    ) -> None:
        super().__init__()
        for name, value in (("classes", classes), ("channels", channels), ("width", width), ("levels", levels)):
            check_positive_int(value, owner="UNet", name=name)
        self._arguments = {
            "classes": classes, "channels": channels, "width": width, "levels": levels, "skip": skip,
            "normalization": normalization,
        }  # fmt: skip
        self.channels = channels
        self.levels = levels
        widths = [width << k for k in range(levels)]
        down = zip([width, *widths], widths, strict=False)
        up = [(widths[k] + widths[k + 1], widths[k]) for k in range(levels - 1)]
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(_block(i, o, normalization, skip) for i, o in down)
        self.up = nn.ModuleList(_block(i, o, normalization, skip) for i, o in up)
        self.pool = nn.AvgPool2d(2)
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
        self.tail = nn.Conv2d(width, classes, 1)
        initialise_convolutions(self)

    def config(self) -> dict[str, Any]:
        return self._arguments

    def forward(self, x: Tensor) -> Tensor:
        check_pictures(x, self.channels, 2 ** (self.levels - 1), owner="UNet")
        x = self.head(x)
        kept = []
        for k, block in enumerate(self.down):
            x = block(x if k == 0 else self.pool(x))
            kept.append(x)
        for k in reversed(range(self.levels - 1)):
            x = self.up[k](torch.cat([kept[k], self.enlarge(x)], dim=1))
        y: Tensor = self.tail(x)
        return y


def _block(inputs: int, outputs: int, norm: str, skip: Arm) -> nn.Module:
    def layer(channels: int) -> list[nn.Module]:
        return [normalization(norm, channels), nn.ReLU(), nn.Conv2d(channels, outputs, 3, padding=1)]

    unused = inputs == outputs or arm_settings(skip).get("skip") == "none"
    projection = None if unused else nn.Conv2d(inputs, outputs, 1, bias=False)
    return residual(nn.Sequential(*layer(inputs), *layer(outputs)), skip, projection=projection)
