"""Choosing a learning rate on validation data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from nablanets.training import FitResult, FitSettings, fit
from nablanets.training.batches import Samples


class Selected(NamedTuple):
    """The network of the best rate, the record of its fit, and the records of the fits with all rates."""

    net: nn.Module
    result: FitResult
    tried: list[FitResult]


def fit_best_rate(
    build: Callable[[], nn.Module],
    train: Samples,
    validation: Samples,
    *,
    rates: Sequence[float],
    seed: int,
    settings: FitSettings,
) -> Selected:
    """Train with each learning rate from the same start, and keep the network of the least validation error.

    >>> from nablanets import GradNetM
    >>> x = torch.rand(100, 2)
    >>> settings = FitSettings(steps=20)
    >>> selected = fit_best_rate(lambda: GradNetM(2, 4), (x, x), (x, x), rates=(1e-3, 1e-2), seed=0, settings=settings)
    >>> len(selected.tried)
    2
    """
    fits: list[tuple[nn.Module, FitResult]] = []
    for rate in rates:
        torch.manual_seed(seed)
        net = build()
        changed = settings.update(learning_rate=rate, seed=seed)
        fits.append((net, fit(net, *train, validation=validation, progress=False, settings=changed)))
    net, result = min(fits, key=lambda pair: pair[1].best_validation_error)
    return Selected(net, result, [record for _, record in fits])
