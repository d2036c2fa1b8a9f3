"""The command `nablanets fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple, cast, get_args

import torch
import typer
from torch import Tensor

from nablanets import verify as verification
from nablanets.automatic import AutofitResult, autofit
from nablanets.automatic.assessment import check_worth_fitting, falling_share
from nablanets.automatic.report import write_history, write_report
from nablanets.automatic.result import ComponentError, component_errors
from nablanets.cli.app import console, say
from nablanets.cli.columns import (
    GColumns,
    Separator,
    XColumns,
    check_out,
    components,
    error_table,
    gradients,
    points,
    read,
)
from nablanets.cli.fitting_as_told import USUAL, Orders, fit_as_told, relative_db
from nablanets.errors import DataFileError, InvalidInputError
from nablanets.maps import GradientMap
from nablanets.parameters import count_parameters
from nablanets.serialization import save
from nablanets.tables import ColumnNames, TableFile
from nablanets.tables.names import NOTE

#: Random generators of torch take seeds of 64 bits.
_LARGEST_SEED = 2**63 - 1
_Monotone = Literal["increasing", "decreasing", "auto"]
# Of pairs of samples, so many may fall by noise where --monotone auto calls a field increasing.
_INCREASING = 0.01


def fit(
    file: Annotated[Path, typer.Argument(help="CSV, NPZ or Parquet with points x1..xd and gradients g1..gd.")],
    out: Annotated[Path, typer.Option(help="Model file to write (.safetensors).")],
    seconds: Annotated[float, typer.Option(help="For the search of the best map, about.")] = 30.0,
    monotone: Annotated[
        str | None, typer.Option(help="increasing, decreasing (the potential is convex or concave), or auto.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="File with samples to test the map on, of the same columns.")
    ] = None,
    group_column: Annotated[str | None, typer.Option(help="Samples of one group are held out together.")] = None,
    report: Annotated[Path | None, typer.Option(help="Page to write (.html); beside the model if not given.")] = None,
    history: Annotated[Path | None, typer.Option(help="Learning curve to write (.csv).")] = None,
    network: Annotated[str | None, typer.Option(help="gradnet-c or gradnet-m: no search, this network.")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, max=2**20, help="Its hidden units (per module): 64.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, max=1000, help="Its layers, or modules of gradnet-m: 4.")] = None,
    activation: Annotated[str | None, typer.Option(help="Its activation; the network's own default.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="auto, adam, adamw, muon, lbfgs or levenberg.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=2**40, help="Optimisation steps: 5000.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate: 0.005.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=2**40, help="Samples per step: 1000.")] = None,
    validation: Annotated[float | None, typer.Option(help="Fraction of the samples held out: 0.1.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="State file; an interrupted fit goes on from it.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="Seed of weights, split and batches.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write the model even if the fit is of no use.")] = False,
    x_columns: XColumns = None,
    g_columns: GColumns = None,
    separator: Separator = None,
) -> None:
    """Find the best gradient map for samples of a field in a file; the model remembers the names of the columns.

    Many networks, closed forms and the affine map are tried for --seconds, and judged by samples that they have not
    seen (whole lines of grids, whole groups). With --network, or settings of one, that network is trained instead.
    """
    check_out(out, file)
    if checkpoint is not None:
        check_out(checkpoint, file, out, option="--checkpoint")
    page = out.with_suffix(".html") if report is None else report
    check_out(page, file, out, option="--report")
    if history is not None:
        check_out(history, file, out, page, option="--history")
    data = _read_data(file, x_columns, g_columns, separator, group_column)
    check_worth_fitting(data.g)
    tests = None if test is None else _read_test(test, data, separator)
    orders = Orders(
        network, hidden, depth, activation, optimizer, steps, lr, batch_size, validation, checkpoint
    )  # fmt: skip
    names = ColumnNames.of(data.x_names, data.g_names, data.table.units)
    notes = {NOTE: names.note()}
    direction = _checked_direction(monotone)
    if orders.given():
        if network is None:
            say(f"{', '.join(orders.given())}: trains one {USUAL}. Without, the best map of many is searched for.")
        net = _as_told(data, orders, direction, seed, out, force)
        save(net, out, notes=notes)
        _say_errors(net, tests, names)
        say(f"Model: {out}")
        return
    component_names, units = components(names)
    result = autofit(
        data.x,
        data.g,
        monotone=direction,
        budget=seconds,
        groups=data.groups,
        names=component_names,
        units=units,
        seed=seed,
    )
    save(result.net, out, notes=notes)
    _say_result(result)
    errors = _say_errors(result.net, tests, names)
    certificate = verification.certificate(result.net, data.x[:64])
    write_report(page, result, certificate, title=f"{file.name}: {result.chosen}", x=data.x, tests=errors)
    if history is not None:
        write_history(history, result)
    verdict = "passed" if certificate.passed else "FAILED"
    say(f"Certificate: {verdict} (nablanets verify {out}).\nModel: {out}\nReport: {page}")


class _Data(NamedTuple):
    """What a table holds for a fit: names, points and gradients (n, d) in float64, and groups if any."""

    table: TableFile
    x_names: list[str]
    g_names: list[str]
    x: Tensor
    g: Tensor
    groups: list[str] | None


def _read_data(
    file: Path, x_columns: str | None, g_columns: str | None, separator: str | None, group_column: str | None
) -> _Data:
    table = read(file, separator)
    x_names, x = points(table, x_columns, None, file)
    g_names, g = gradients(table, g_columns, None, file, len(x_names))
    both = [name for name in x_names if name in g_names]
    if both:
        raise InvalidInputError(f"{file}: {', '.join(both)} cannot be a point and a gradient column. Choose one.")
    groups = None
    if group_column is not None:
        if group_column not in table.frame.columns:
            present = ", ".join(str(name) for name in table.frame.columns)
            raise DataFileError(f"--group-column: {file} has no column {group_column!r}; it has {present}.")
        groups = [str(label) for label in table.frame[group_column]]
    return _Data(table, x_names, g_names, x.double(), g.double(), groups)


def _read_test(test: Path, data: _Data, separator: str | None) -> tuple[Tensor, Tensor]:
    """Points and gradients of the same columns from another file."""
    table = read(test, separator)
    _, x = points(table, ",".join(data.x_names), None, test)
    _, g = gradients(table, ",".join(data.g_names), None, test, len(data.x_names))
    return x.double(), g.double()


def _checked_direction(monotone: str | None) -> _Monotone | None:
    if monotone is not None and monotone not in get_args(_Monotone):
        raise InvalidInputError(f"--monotone: expected increasing, decreasing or auto, got {monotone!r}.")
    return cast("_Monotone | None", monotone)


def _as_told(
    data: _Data, orders: Orders, direction: _Monotone | None, seed: int, out: Path, force: bool
) -> GradientMap:
    """Train the network that was asked for."""
    if data.groups is not None:
        raise InvalidInputError("--group-column: works with the search only. Leave the settings of a network out.")
    if direction == "auto":
        increases = falling_share(data.x, data.g) <= _INCREASING
        decreases = falling_share(data.x, -data.g) <= _INCREASING
        direction = "increasing" if increases else "decreasing" if decreases else None
        say(f"--monotone auto: {direction or 'the samples neither increase nor decrease'}.")
    net, result, held_out = fit_as_told(data.x, data.g, orders, direction, seed, out, force)
    say(
        f"{orders.network or USUAL}, {count_parameters(net)} parameters: validation error "
        f"{relative_db(result, held_out):.2f} dB of the mean square gradient ({result.best_validation_error:.3e}) at "
        f"step {result.best_step}; stopped by {result.stop_reason} after {result.seconds:.1f} s."
    )
    return net


def _say_result(result: AutofitResult) -> None:
    console.print(str(result), highlight=False, markup=False, end="")
    say(f"{result.chosen}: {count_parameters(result.net)} parameters.")


@torch.no_grad()
def _say_errors(
    net: GradientMap, tests: tuple[Tensor, Tensor] | None, names: ColumnNames
) -> tuple[ComponentError, ...]:
    """The errors of each component on the samples of --test, if there are any."""
    if tests is None:
        return ()
    x, g = tests
    predicted = net(net.as_points(x)).double()
    errors = component_errors(g, predicted, *components(names))
    console.print(error_table(errors, "errors on the test file"))
    return errors
