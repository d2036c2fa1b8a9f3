"""How a run is spread over processes, devices and parts of a batch, by Lightning Fabric."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nablanets.errors import InvalidInputError
from nablanets_studies.images.extras import needed
from nablanets_studies.images.training.settings import TrainSettings

#: Mean loss of outputs and targets.
Loss = Callable[[Tensor, Tensor], Tensor]


def make_fabric(settings: TrainSettings) -> Any:
    """Fabric with as many processes as torchrun started, else as the settings ask for."""
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", settings.devices))
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", settings.nodes))
    return needed("lightning_fabric").Fabric(
        accelerator=settings.accelerator, devices=devices, num_nodes=nodes, precision=settings.precision
    )


class Objective(nn.Module):
    """A network with its loss, in one forward: Fabric rounds what forwards return to float32."""

    def __init__(self, net: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.net = net
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor, weight: float) -> Tensor:
        output = self.net(x)
        if output.dtype in (torch.bfloat16, torch.float16):
            output = output.float()
        return weight * self.loss(output, y)


def parts_of_batch(settings: TrainSettings, processes: int, rank: int) -> list[tuple[int, int]]:
    """Rows of the batch that a process computes, one part after the other.

    >>> parts_of_batch(TrainSettings(batch_size=12, accumulate=2), processes=2, rank=1)
    [(6, 9), (9, 12)]
    """
    count = processes * settings.accumulate
    if settings.batch_size % count:
        raise InvalidInputError(
            f"train: expected batch_size to be a multiple of {count} ({processes} processes times accumulate = "
            f"{settings.accumulate}), got {settings.batch_size}."
        )
    size = settings.batch_size // count
    first = rank * settings.accumulate
    return [(k * size, (k + 1) * size) for k in range(first, first + settings.accumulate)]
