"""What the networks share: normalisations, initial weights, and skips in blocks that are written without them."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor, nn

from nablanets.errors import InvalidInputError, unknown_name
from nablanets.residual import add_gradient_residuals
from nablanets_studies.residual.arms import ARMS, Arm, arm_settings

Normalization = Literal["batch", "group"]


def normalization(kind: str, channels: int) -> nn.Module:
    """Batch norm, or group norm with groups of eight channels (fewer where eight does not divide them).

    >>> normalization("group", 12).num_groups
    3
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(channels // math.gcd(8, channels), channels)
    raise unknown_name("normalization", kind, get_args(Normalization))


def with_skips(net: nn.Module, skip: Arm) -> None:
    """Give the blocks x + F(x) of a network the skips of an arm, keeping the names of its weights.

    Where blocks end in a normalisation, gradients are taken before it unless the arm says otherwise.
    """
    settings = arm_settings(skip, norm="before")
    if settings != {**ARMS["standard"], "norm": "before"}:
        add_gradient_residuals(net, **settings)


def initialise_convolutions(net: nn.Module) -> None:
    """He's normal weights for convolutions by their outputs, as in ResNet.

    Convolutions of one pixel with a bias, which end segmenters, keep torch's: by their few outputs they would be large.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and not (module.kernel_size == (1, 1) and module.bias is not None):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_pictures(x: Tensor, channels: int, multiple: int, *, owner: str) -> None:
    """Raise unless x is a batch of pictures with so many channels and sides that are multiples of a number."""
    if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
        raise InvalidInputError(
            f"{owner}: expected pictures of shape (B, {channels}, H, W) with floating-point values, got {x.dtype} of "
            f"{tuple(x.shape)}. Divide bytes by 255; one picture needs a batch dimension, x.unsqueeze(0)."
        )
    if x.shape[-2] % multiple or x.shape[-1] % multiple:
        raise InvalidInputError(
            f"{owner}: expected height and width to be multiples of {multiple}, got {tuple(x.shape[-2:])}. Pad or crop "
            "the pictures."
        )
