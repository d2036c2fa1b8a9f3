"""The optimiser of a run, and its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nablanets_studies.images.training.settings import TrainSettings


def make_optimizer(net: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, Adam or AdamW; only tensors of two and more dimensions decay."""
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.learning_rate, momentum=0.9, nesterov=True)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, settings.learning_rate)


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """State of each parameter in the parameter's own memory layout, on which the last bit may depend."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        p = parameters[index]
        like_p = {k: isinstance(v, Tensor) and k != "step" for k, v in values.items()}
        optimizer.state[p] = {k: torch.empty_like(p).copy_(v) if like_p[k] else v for k, v in values.items()}
