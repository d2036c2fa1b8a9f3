"""EDSR, and a simplified form of it for small budgets, with any skip."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError, check_positive_int, unknown_name
from nablanets.residual.layer import GradientResidual
from nablanets.serialization import savable
from nablanets_studies.images.edges import edges
from nablanets_studies.images.resize import bicubic
from nablanets_studies.residual.arms import Arm, residual

Tail = Literal["stages", "direct"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


@savable
class EDSR(nn.Module):
    r"""Enhanced deep super-resolution: residual blocks conv-ReLU-conv on the small picture, then sub-pixel convolution.

    x -> tail(h + conv(blocks(h))), h = conv(x - mean), pictures (B, 3, H, W) with values in [0, 1] to
    (B, 3, scale H, scale W). Defaults are the published baseline (16 blocks of width 64; the large one has
    ``blocks=32, width=256, residual_scale=0.1``). After Lim et al., "Enhanced Deep Residual Networks for Single Image
    Super-Resolution" (2017).

    Args:
        scale: 2, 3 or 4.
        blocks, width: of the body.
        skip: the arm of every block: a name of ``residual.arms.ARMS`` or settings of :class:`GradientResidual`.
        activation: "relu", as published, "gelu" or "silu".
        residual_scale: what F is multiplied by.
        tail: "stages", as published (a convolution at full size after the sub-pixel steps), or "direct" (one sub-pixel
            convolution to the colours).
        onto_bicubic: add the bicubic enlargement to the output, which is all there is at the start.
        guided: give the head the edges of the picture (Sobel maps) beside its colours.
        value_range: what pictures are multiplied by inside, 255 for published weights.

    Raises:
        InvalidInputError: a setting is out of range.

    >>> EDSR(2, blocks=1, width=8, skip="gradient")(torch.rand(1, 3, 10, 12)).shape
    torch.Size([1, 3, 20, 24])
    """

    mean: Tensor

    def __init__(
        self,
        scale: int = 2,
        *,
        blocks: int = 16,
        width: int = 64,
        skip: Arm = "standard",
        activation: str = "relu",
        residual_scale: float = 1.0,
        tail: Tail = "stages",
        onto_bicubic: bool = False,
        guided: bool = False,
        value_range: float = 1.0,
    ) -> None:
        super().__init__()
        check_scale(scale, owner="EDSR")
        check_positive_int(blocks, owner="EDSR", name="blocks")
        if tail not in get_args(Tail):
            raise unknown_name("tail", tail, get_args(Tail))
        self._arguments = {
            "scale": scale, "blocks": blocks, "width": width, "skip": skip, "activation": activation,
            "residual_scale": residual_scale, "tail": tail, "onto_bicubic": onto_bicubic, "guided": guided,
            "value_range": value_range,
        }  # fmt: skip
        self.scale = scale
        self.value_range = value_range
        self.onto_bicubic = onto_bicubic
        self.guided = guided
        self.register_buffer("mean", torch.tensor(_DIV2K_MEAN).reshape(3, 1, 1), persistent=False)
        self.head = _conv(9 if guided else 3, width)
        self.body = nn.Sequential(*(residual(Block(width, activation, residual_scale), skip) for _ in range(blocks)))
        self.merge = _conv(width, width)
        self.tail = _stages(scale, width) if tail == "stages" else _direct(scale, width)
        if onto_bicubic:
            _zero(self.tail[1] if tail == "stages" else self.tail[0])

    @property
    def reach(self) -> int | None:
        """How many pixels away an input pixel can change an output, in pixels of the input; None for whole pictures."""
        return body_reach(self.body, 2 + (3 if self._arguments["tail"] == "stages" else 1) + int(self.guided))

    def config(self) -> dict[str, Any]:
        return self._arguments

    def forward(self, x: Tensor) -> Tensor:
        check_pictures(x, owner="EDSR")
        h = (x - self.mean) * self.value_range
        h = self.head(torch.cat([h, edges(x) * self.value_range], dim=1) if self.guided else h)
        y = self.tail(h + self.merge(self.body(h))) / self.value_range
        return y + (bicubic(x, self.scale) if self.onto_bicubic else self.mean)


class Block(nn.Module):
    """F of EDSR: conv, activation, conv, times a number."""

    def __init__(self, width: int, activation: str = "relu", scale: float = 1.0) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise unknown_name("activation", activation, _ACTIVATIONS)
        self.body = nn.Sequential(_conv(width, width), _ACTIVATIONS[activation](), _conv(width, width))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y if self.scale == 1 else y * self.scale


def body_reach(body: nn.Module, others: int) -> int | None:
    """The reach of blocks of two convolutions 3 x 3 and of ``others``; a gradient reaches as far as its block."""
    layers = [layer for layer in body.modules() if isinstance(layer, GradientResidual)]
    return None if any(map(_sees_all, layers)) else others + 2 * len(layers)


def _sees_all(layer: GradientResidual) -> bool:
    if layer.skip in ("identity", "scalar", "damped", "none"):
        return False
    return layer.normalize in ("sample", "channel") or (layer.skip == "magnitude" and layer.normalize == "none")


def check_scale(scale: int, *, owner: str) -> None:
    """Raise unless a scale is 2, 3 or 4."""
    if scale not in (2, 3, 4):
        raise InvalidInputError(f"{owner}: expected scale 2, 3 or 4, got {scale!r}.")


def check_pictures(x: Tensor, *, owner: str) -> None:
    """Raise unless x is a batch of colour pictures."""
    if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
        raise InvalidInputError(
            f"{owner}: expected pictures of shape (B, 3, H, W) in [0, 1], got {x.dtype} of {tuple(x.shape)}. Divide "
            "bytes by 255, and repeat grey pictures three times along the second dimension."
        )


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _stages(scale: int, width: int) -> nn.Sequential:
    factors = [2] * (scale // 2) if scale != 3 else [3]
    steps = [part for f in factors for part in (_conv(width, f * f * width), nn.PixelShuffle(f))]
    return nn.Sequential(nn.Sequential(*steps), _conv(width, 3))


def _direct(scale: int, width: int) -> nn.Sequential:
    return nn.Sequential(_conv(width, 3 * scale * scale), nn.PixelShuffle(scale))
