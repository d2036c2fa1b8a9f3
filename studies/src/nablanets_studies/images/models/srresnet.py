"""SRResNet with any skip."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nablanets.errors import check_positive_int
from nablanets.serialization import savable
from nablanets_studies.images.models.edsr import body_reach, check_pictures, check_scale
from nablanets_studies.residual.arms import Arm, residual


@savable
class SRResNet(nn.Module):
    r"""SRResNet: residual blocks conv-norm-PReLU-conv-norm between wide convolutions, then sub-pixel convolutions.

    Pictures (B, 3, H, W) with values in [0, 1] to (B, 3, scale H, scale W). After Ledig et al., "Photo-Realistic Single
    Image Super-Resolution Using a Generative Adversarial Network" (2017). Blocks end in a batch normalisation, which
    makes the sum of their outputs constant, so gradients are taken before it (``norm="before"``), which is our choice.

    Args:
        scale: 2, 3 or 4.
        blocks, width: of the body.
        skip: the arm of every block: a name of ``residual.arms.ARMS`` or settings of :class:`GradientResidual`.
        batch_norm: with normalisations, as published; without them is the usual choice since EDSR.

    Raises:
        InvalidInputError: a setting is out of range.

    >>> SRResNet(2, blocks=1, width=8, skip="gradient")(torch.rand(2, 3, 10, 12)).shape
    torch.Size([2, 3, 20, 24])
    """

    def __init__(
        self, scale: int = 4, *, blocks: int = 16, width: int = 64, skip: Arm = "standard", batch_norm: bool = True
    ) -> None:
        super().__init__()
        check_scale(scale, owner="SRResNet")
        check_positive_int(blocks, owner="SRResNet", name="blocks")
        self._arguments = {"scale": scale, "blocks": blocks, "width": width, "skip": skip, "batch_norm": batch_norm}
        self.scale = scale
        self.head = nn.Sequential(nn.Conv2d(3, width, 9, padding=4), nn.PReLU())
        norm = "before" if batch_norm else "exact"
        self.body = nn.Sequential(*(residual(_block(width, batch_norm), skip, norm=norm) for _ in range(blocks)))
        self.merge = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=not batch_norm), *_norm(width, batch_norm)
        )
        steps = [_step(width, factor) for factor in ([3] if scale == 3 else [2] * (scale // 2))]
        self.tail = nn.Sequential(*steps, nn.Conv2d(width, 3, 9, padding=4))

    @property
    def reach(self) -> int | None:
        """How many pixels away an input pixel can change an output, in pixels of the input; None for whole pictures."""
        return body_reach(self.body, 4 + 1 + 2 + 4)

    def config(self) -> dict[str, Any]:
        return self._arguments

    def forward(self, x: Tensor) -> Tensor:
        check_pictures(x, owner="SRResNet")
        h = self.head(x)
        y: Tensor = self.tail(h + self.merge(self.body(h)))
        return y


def _norm(width: int, batch_norm: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(width)] if batch_norm else []


def _block(width: int, batch_norm: bool) -> nn.Sequential:
    def conv() -> list[nn.Module]:
        return [nn.Conv2d(width, width, 3, padding=1, bias=not batch_norm), *_norm(width, batch_norm)]

    return nn.Sequential(*conv(), nn.PReLU(), *conv())


def _step(width: int, factor: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, factor * factor * width, 3, padding=1), nn.PixelShuffle(factor), nn.PReLU())
