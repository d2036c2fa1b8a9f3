"""How networks of a study start, and how their learning rates are chosen: by validation data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nablanets.fitting import FitResult, FitSettings, fit
from nablanets.fitting.batches import Samples
from nablanets.maps.protocols import Composition, HasUnits, supports
from nablanets.starts import initialise_from_data


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


@torch.no_grad()
def start_from_data(net: nn.Module, x: Tensor, g: Tensor) -> None:
    """Put the bends of a fresh gradient network where the data are, and make f vary as much as the data g.

    The second is by its outer coefficients; both are our choice. It is for networks with one kind of coefficients, as
    they come: others (transformed networks, baselines) and maps around networks are left alone, which is how the
    recorded results were made.

    >>> from nablanets import GradNetM
    >>> net, x = GradNetM(2, 5, linear=False, monotone=True), torch.rand(200, 2)
    >>> start_from_data(net, x, 3 * x)
    >>> round(float(net(x).detach().std(dim=0).norm() / (3 * x).std(dim=0).norm()), 4)
    1.0
    """
    if isinstance(net, Composition) or not supports(net, HasUnits):
        return
    terms = cast(HasUnits, net).unit_terms()
    if len(terms) != 1:
        return
    initialise_from_data(net, x)
    factor = float(g.std(dim=0).norm() / net(x).std(dim=0).norm())
    terms[0].write(factor * terms[0].values)
