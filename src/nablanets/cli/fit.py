"""The command `nablanets fit`."""

from __future__ import annotations

import warnings
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from nablanets.automatic.assessment import affine_error, check_worth_fitting, complaint, monotone_remark
from nablanets.cli.app import console
from nablanets.cli.columns import GColumns, Separator, XColumns, check_out, gradients, points, read
from nablanets.errors import DataWarning, FitError, InvalidInputError
from nablanets.fitting import FitResult, decibels
from nablanets.fitting import fit as fit_network
from nablanets.fitting.batches import Samples, split
from nablanets.fitting.settings import FitSettings
from nablanets.maps import GradientMap, GradNetC, GradNetM
from nablanets.parameters import count_parameters
from nablanets.serialization import save
from nablanets.starts import standardised
from nablanets.tables import ColumnNames
from nablanets.tables.names import NOTE

_MAPS: dict[str, type[GradNetC] | type[GradNetM]] = {"gradnet-c": GradNetC, "gradnet-m": GradNetM}
#: Random generators of torch take seeds of 64 bits.
_LARGEST_SEED = 2**63 - 1


def fit(
    file: Annotated[Path, typer.Argument(help="CSV, NPZ or Parquet with points x1..xd and gradients g1..gd.")],
    out: Annotated[Path, typer.Option(help="Model file to write (.safetensors).")],
    network: Annotated[str, typer.Option(help="gradnet-c or gradnet-m.")] = "gradnet-c",
    hidden: Annotated[int, typer.Option(min=1, max=2**20, help="Hidden units (per module).")] = 64,
    depth: Annotated[int, typer.Option(min=1, max=1000, help="Layers of gradnet-c, modules of gradnet-m.")] = 4,
    activation: Annotated[str | None, typer.Option(help="Activation; the network's own default if not given.")] = None,
    monotone: Annotated[bool, typer.Option("--monotone", help="Fit the gradient of a convex potential.")] = False,
    steps: Annotated[int, typer.Option(min=1, max=2**40, help="Optimisation steps.")] = 5000,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-3,
    batch_size: Annotated[int, typer.Option(min=1, max=2**40, help="Samples per step.")] = 1000,
    validation: Annotated[float, typer.Option(help="Fraction of the samples held out.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="Seed of weights, split and batches.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="State file; an interrupted fit goes on from it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write the model even if the fit is of no use.")] = False,
    x_columns: XColumns = None,
    g_columns: GColumns = None,
    separator: Separator = None,
) -> None:
    """Fit a gradient network to samples of a field in a file; the model remembers the names of the columns.

    A fit that diverged, or is worse than the best affine map on the samples held out, is not written.
    """
    check_out(out, file)
    if checkpoint is not None:
        check_out(checkpoint, file, out, option="--checkpoint")
    table = read(file, separator)
    x_names, x = points(table, x_columns, None, file)
    g_names, g = gradients(table, g_columns, None, file, len(x_names))
    both = [name for name in x_names if name in g_names]
    if both:
        raise InvalidInputError(f"{file}: {', '.join(both)} cannot be a point and a gradient column. Choose one.")
    check_worth_fitting(g)
    if monotone:
        _say_if_falling(x, g, force)
    train, held_out = split(x, g, validation, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always", DataWarning)
        net = standardised(_build(network, x.shape[1], hidden, depth, activation, monotone), *train)
    for remark in remarks:
        _say(str(remark.message))
    settings = FitSettings(steps=steps, learning_rate=lr, batch_size=batch_size, seed=seed)
    result = fit_network(net, *train, validation=held_out, settings=settings, checkpoint=checkpoint)
    _check_use(result, train, held_out, out, force)
    save(net, out, notes={NOTE: ColumnNames.of(x_names, g_names, table.units).note()})
    best = decibels(result.best_validation_error / _mean_square(held_out))
    console.print(
        f"{network}, {count_parameters(net)} parameters: validation error {best:.2f} dB of the mean square gradient "
        f"({result.best_validation_error:.3e}) at step {result.best_step}; stopped by {result.stop_reason} after "
        f"{result.seconds:.1f} s.\nModel: {out}",
        soft_wrap=True,
    )


def _say_if_falling(x: Tensor, g: Tensor, force: bool) -> None:
    """Say if samples for a monotone fit decrease; refuse it where most do, unless it is forced."""
    try:
        remark = monotone_remark(x, g)
    except FitError as error:
        if not force:
            raise
        remark = str(error)
    if remark:
        _say(f"--monotone: {remark}")


def _check_use(result: FitResult, train: Samples, held_out: Samples, out: Path, force: bool) -> None:
    """Refuse to write a model that is of no use, or only say so if the model is wanted by force."""
    reason = complaint(result, _mean_square(held_out), affine_error(train, held_out))
    if reason and not force:
        raise FitError(f"{reason}; or write the model with --force. {out} is not written.")
    if reason:
        _say(f"{reason}. The model is written by --force.")


def _mean_square(samples: Samples) -> float:
    """Of the gradients, in float64."""
    return float(samples[1].double().square().sum(dim=1).mean())


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _build(network: str, features: int, hidden: int, depth: int, activation: str | None, monotone: bool) -> GradientMap:
    if network not in _MAPS:
        near = get_close_matches(network, _MAPS, n=1)
        raise InvalidInputError(
            f"--network: there is no {network!r}; choose {near[0] if near else ' or '.join(_MAPS)}."
        )
    options: dict[str, Any] = {"monotone": monotone} | ({} if activation is None else {"activation": activation})
    return _MAPS[network](features, hidden, depth, **options)
