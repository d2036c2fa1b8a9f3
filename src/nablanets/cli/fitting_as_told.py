"""`nablanets fit` with a network that the user chose."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from nablanets.automatic.assessment import affine_error, complaint, monotone_remark
from nablanets.cli.app import say
from nablanets.errors import DataWarning, FitError, InvalidInputError
from nablanets.fitting import FitResult, decibels
from nablanets.fitting import fit as fit_network
from nablanets.fitting.batches import Samples, split
from nablanets.fitting.settings import FitSettings
from nablanets.maps import GradientMap, GradNetC, GradNetM, Scale
from nablanets.starts import standardised

MAPS: dict[str, type[GradNetC] | type[GradNetM]] = {"gradnet-c": GradNetC, "gradnet-m": GradNetM}
#: The one that is taken where only its settings are given.
USUAL = "gradnet-m"


@dataclass(frozen=True)
class Orders:
    """What the user said about the network and its training; None where nothing was said.

    Attributes:
        network: a name in ``MAPS``.
        others: settings of :class:`~nablanets.fitting.FitSettings`, and hidden, depth, activation and validation.
    """

    network: str | None
    hidden: int | None = None
    depth: int | None = None
    activation: str | None = None
    optimizer: str | None = None
    steps: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    validation: float | None = None
    checkpoint: Path | None = None

    def given(self) -> list[str]:
        """The options that were given, as on the command line."""
        options = []
        for name, value in vars(self).items():
            if value is not None:
                options.append("--" + name.replace("_", "-"))
        return options

    def settings(self, seed: int) -> FitSettings:
        """Of the training."""
        usual = "auto" if self.lr is None else "adam"  # which follows a learning rate
        given = {
            "optimizer": cast("Any", self.optimizer or usual),
            "steps": self.steps,
            "learning_rate": self.lr,
            "batch_size": self.batch_size,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        return FitSettings(seed=seed).update(**changes)


def fit_as_told(
    x: Tensor,
    g: Tensor,
    orders: Orders,
    monotone: Literal["increasing", "decreasing"] | None,
    seed: int,
    out: Path,
    force: bool,
) -> tuple[GradientMap, FitResult, Samples]:
    """The network that was asked for, the record, and the samples that were held out.

    Raises:
        FitError: the fit is of no use, and is not wanted by force.
    """
    sign = -1 if monotone == "decreasing" else 1
    targets = sign * g
    if monotone is not None:
        _say_if_falling(x, targets, force)
    validation = 0.1 if orders.validation is None else orders.validation
    train, held_out = split(x, targets, validation, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always", DataWarning)
        net = standardised(_build(orders, x.shape[1], monotone is not None), *train)
    for remark in remarks:
        say(str(remark.message))
    settings = orders.settings(seed)
    result = fit_network(net, *train, validation=held_out, settings=settings, checkpoint=orders.checkpoint)
    _check_use(result, train, held_out, out, force)
    return (net if sign > 0 else Scale(net, -1)), result, (held_out[0], sign * held_out[1])


def _say_if_falling(x: Tensor, g: Tensor, force: bool) -> None:
    """Say if samples for a monotone fit decrease; refuse it where most do, unless it is forced."""
    try:
        remark = monotone_remark(x, g)
    except FitError as error:
        if not force:
            raise
        remark = str(error)
    if remark:
        say(f"--monotone: {remark}")


def _check_use(result: FitResult, train: Samples, held_out: Samples, out: Path, force: bool) -> None:
    """Refuse to write a model that is of no use, or only say so if the model is wanted by force."""
    reason = complaint(result, mean_square(held_out), affine_error(train, held_out))
    if reason and not force:
        raise FitError(f"{reason}; or write the model with --force. {out} is not written.")
    if reason:
        say(f"{reason}. The model is written by --force.")


def mean_square(samples: Samples) -> float:
    """Of the gradients, in float64."""
    return float(samples[1].double().square().sum(dim=1).mean())


def relative_db(result: FitResult, held_out: Samples) -> float:
    """The best validation error in decibels of the mean square gradient."""
    return decibels(result.best_validation_error / mean_square(held_out))


def _build(orders: Orders, features: int, monotone: bool) -> GradientMap:
    network = orders.network or USUAL
    if network not in MAPS:
        near = get_close_matches(network, MAPS, n=1)
        raise InvalidInputError(
            f"--network: there is no {network!r}; choose {near[0] if near else ' or '.join(MAPS)}, or leave it out."
        )
    options: dict[str, Any] = {"monotone": monotone}
    if orders.activation is not None:
        options["activation"] = orders.activation
    hidden = 64 if orders.hidden is None else orders.hidden
    depth = 4 if orders.depth is None else orders.depth
    return MAPS[network](features, hidden, depth, **options)
