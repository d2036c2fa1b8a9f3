"""Commands about fitted models: apply, verify, export."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from nablanets import verify as verification
from nablanets.automatic.result import component_errors
from nablanets.cli.app import console
from nablanets.cli.columns import (
    GColumns,
    Separator,
    XColumns,
    check_out,
    components,
    error_table,
    gradients,
    has_gradients,
    points,
    read,
)
from nablanets.errors import DataFileError, InvalidInputError
from nablanets.fitting import decibels, error
from nablanets.interop import export as export_map
from nablanets.maps import GradientMap
from nablanets.serialization import load, read_notes
from nablanets.tables import ColumnNames, check_suffix, write_table
from nablanets.tables.columns import split_names

#: Points that are evaluated at a time.
_CHUNK = 16_384


def apply_model(
    model: Path,
    file: Annotated[Path, typer.Argument(help="CSV, NPZ or Parquet with the points.")],
    out: Annotated[Path | None, typer.Option(help="File to write; FILE with -applied before its ending.")] = None,
    x_columns: XColumns = None,
    g_columns: GColumns = None,
    f_columns: Annotated[
        str | None, typer.Option(help="Names of the columns to write; f1..fd, or the gradients' names with (model).")
    ] = None,
    potential_column: Annotated[str | None, typer.Option(help="Name of the potential's column.")] = None,
    separator: Separator = None,
) -> None:
    """Evaluate a model: write f and its potential beside the columns of a file, and the error if it has gradients.

    Row i of f belongs to row i of the file, whatever its index is, and the index is kept.
    """
    target = _beside(file) if out is None else out
    check_suffix(target)
    check_out(target, file, model)
    net = _load_map(model)
    known = ColumnNames.from_notes(read_notes(model), net.features)
    table = read(file, separator)
    _, x = points(table, x_columns, known, file, net.features)
    names = known or ColumnNames.numbered(net.features)
    f_names = names.values if f_columns is None else tuple(split_names(f_columns, "f"))
    if len(f_names) != net.features:
        raise InvalidInputError(f"--f-columns: expected {net.features} names, got {len(f_names)}.")
    potential_name = names.potential if potential_column is None else potential_column
    _check_new([*f_names, potential_name], [str(name) for name in table.frame.columns], file)
    g = None
    if g_columns is not None or has_gradients(table, names):
        _, g = gradients(table, g_columns, known, file, net.features)
    reference = next(chain(net.parameters(), net.buffers()))
    x = net.as_points(x.to(torch.float64))
    values, potential = _evaluate(net, x)
    result = table.frame.copy(deep=False)
    for i, name in enumerate(f_names):
        result[name] = values[:, i].numpy()
    result[potential_name] = potential.numpy()
    units = {**names.value_units, **table.units}
    write_table(result, target, layout=table.layout, units=units)
    written = ", ".join([*f_names, potential_name])
    console.print(f"{len(result)} rows: {target} ({written})", soft_wrap=True, highlight=False, markup=False)
    if g is not None:
        relative = error(net, x, g.to(reference.dtype)) / float(g.square().sum(dim=1).mean())
        console.print(f"error against the gradients in the file: {decibels(relative):.2f} dB of their mean square")
        errors = component_errors(g, values.double(), *components(names))
        console.print(error_table(errors, "errors against the gradients in the file"))


def _beside(file: Path) -> Path:
    suffix = check_suffix(file)
    stem = file.name[: -len(suffix)]
    return file.with_name(f"{stem}-applied{file.name[-len(suffix) :]}")


def _check_new(names: list[str], present: list[str], file: Path) -> None:
    """Refuse to write a column over one that the file has, or over another one."""
    taken = [name for name in names if name in present]
    if taken:
        raise DataFileError(
            f"{file} has columns {', '.join(taken)} already, which would be lost. Give other names with --f-columns "
            "and --potential-column."
        )
    if len(set(names)) != len(names):
        raise DataFileError(f"two columns to write have the same name: {', '.join(names)}. Give --f-columns.")


@torch.no_grad()
def _evaluate(net: GradientMap, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and the potential, some points at a time."""
    values: list[Tensor] = []
    potentials: list[Tensor] = []
    for chunk in x.split(_CHUNK):
        values.append(net(chunk))
        potentials.append(net.potential(chunk))
    return torch.cat(values), torch.cat(potentials)


def verify(
    model: Path,
    file: Annotated[Path | None, typer.Argument(help="Points to check at; standard normal if not given.")] = None,
    points_: Annotated[int, typer.Option("--points", min=3, max=10**6, help="How many points to use.")] = 64,
    x_columns: XColumns = None,
    separator: Separator = None,
) -> None:
    """Check that a model is a gradient (and monotone, if it says so) and print the certificate."""
    net = _load_map(model).double()
    x = None
    if file is not None:
        known = ColumnNames.from_notes(read_notes(model), net.features)
        _, x = points(read(file, separator), x_columns, known, file, net.features)
    certificate = verification.certificate(net, x, points=points_)
    console.print(certificate.table())
    if not certificate.passed:
        raise typer.Exit(1)


def export(
    model: Path,
    format: Annotated[
        str, typer.Option(help="numpy (.py and .weights.npz), c (.c and .h), onnx (.onnx), or torch (two .pt2).")
    ],
    out: Annotated[Path, typer.Option(help="File to write, with the ending of the format.")],
    precision: Annotated[
        str | None, typer.Option(help="double or float: what the files compute in; as the model does if not given.")
    ] = None,
) -> None:
    """Write a model and its potential for programs that do not know this package."""
    check_out(out, model)
    net = _load_map(model)
    columns = ColumnNames.from_notes(read_notes(model), net.features)
    result = export_map(net, out, format, precision=precision, columns=columns)
    console.print(f"{', '.join(map(str, result.files))}: {result.check}", soft_wrap=True, highlight=False)


def _load_map(path: Path) -> GradientMap:
    net = load(path)
    if not isinstance(net, GradientMap):
        raise InvalidInputError(f"{path} holds a {type(net).__name__}, which is no gradient map.")
    return net
