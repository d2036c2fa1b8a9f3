"""Commands about models of vector fields: fit, apply, verify, export."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from nablanets import verify as verification
from nablanets.cli.app import console
from nablanets.errors import InvalidInputError, ShapeError
from nablanets.fitting import decibels, error
from nablanets.fitting import fit as fit_network
from nablanets.fitting.settings import FitSettings
from nablanets.interop import export as export_map
from nablanets.maps import GradientMap, GradNetC, GradNetM
from nablanets.parameters import count_parameters
from nablanets.serialization import load, save
from nablanets.starts import standardised
from nablanets.tables import read_table, select_columns, write_table

_MAPS = {"gradnet-c": GradNetC, "gradnet-m": GradNetM}

XColumns = Annotated[str | None, typer.Option(help="Comma-separated point columns; x1..xd if not given.")]
GColumns = Annotated[str | None, typer.Option(help="Comma-separated gradient columns; g1..gd if not given.")]


def fit(
    file: Annotated[Path, typer.Argument(help="CSV, NPZ or Parquet with points x1..xd and gradients g1..gd.")],
    out: Annotated[Path, typer.Option(help="Model file to write (.safetensors).")],
    network: Annotated[str, typer.Option(help="gradnet-c or gradnet-m.")] = "gradnet-c",
    hidden: Annotated[int, typer.Option(help="Hidden units (per module).")] = 64,
    depth: Annotated[int, typer.Option(help="Layers of gradnet-c, modules of gradnet-m.")] = 4,
    activation: Annotated[str | None, typer.Option(help="Activation; the network's own default if not given.")] = None,
    monotone: Annotated[bool, typer.Option("--monotone", help="Fit the gradient of a convex potential.")] = False,
    steps: Annotated[int, typer.Option(help="Optimisation steps.")] = 5000,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-3,
    batch_size: Annotated[int, typer.Option(help="Samples per step.")] = 1000,
    validation: Annotated[float, typer.Option(help="Fraction of the samples held out.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of weights, split and batches.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="State file; an interrupted fit goes on from it.")] = None,
    x_columns: XColumns = None,
    g_columns: GColumns = None,
) -> None:
    """Fit a gradient network to samples of a field in a file."""
    table = read_table(file)
    x = select_columns(table, x_columns, "x", file)
    g = select_columns(table, g_columns, "g", file)
    if x.shape != g.shape:
        raise ShapeError(f"{file}: {x.shape[1]} point columns but {g.shape[1]} gradient columns; expected as many.")
    torch.manual_seed(seed)
    net = standardised(_build(network, x.shape[1], hidden, depth, activation, monotone), x, g)
    settings = FitSettings(steps=steps, learning_rate=lr, batch_size=batch_size, seed=seed)
    result = fit_network(net, x, g, validation=validation, settings=settings, checkpoint=checkpoint)
    save(net, out)
    best = decibels(result.best_validation_error / float(g.square().sum(dim=1).mean()))
    console.print(
        f"{network}, {count_parameters(net)} parameters: validation error {best:.2f} dB of the mean square gradient "
        f"({result.best_validation_error:.3e}) at step {result.best_step}; stopped by {result.stop_reason} after "
        f"{result.seconds:.1f} s.\nModel: {out}",
        soft_wrap=True,
    )


def _build(network: str, features: int, hidden: int, depth: int, activation: str | None, monotone: bool) -> GradientMap:
    if network not in _MAPS:
        near = get_close_matches(network, _MAPS, n=1)
        raise InvalidInputError(
            f"--network: there is no {network!r}; choose {near[0] if near else ' or '.join(_MAPS)}."
        )
    options: dict[str, Any] = {"monotone": monotone} | ({} if activation is None else {"activation": activation})
    return _MAPS[network](features, hidden, depth, **options)


def apply_model(
    model: Path,
    file: Annotated[Path, typer.Argument(help="CSV, NPZ or Parquet with points x1..xd.")],
    out: Annotated[Path | None, typer.Option(help="File to write; FILE with -applied before its ending.")] = None,
    x_columns: XColumns = None,
    g_columns: GColumns = None,
) -> None:
    """Evaluate a model: write f1..fd and the potential beside the columns of a file, and the error if it has g."""
    net = _load_map(model)
    table = read_table(file)
    x = select_columns(table, x_columns, "x", file).to(next(net.parameters()).dtype)
    if x.shape[1] != net.features:
        raise ShapeError(f"{model} takes {net.features} features, and {file} has {x.shape[1]} point columns.")
    with torch.no_grad():
        values, potential = net(x), net.potential(x)
    result = {f"f{i + 1}": values[:, i].numpy() for i in range(net.features)} | {"potential": potential.numpy()}
    target = out or file.with_name(f"{file.stem}-applied{file.suffix}")
    write_table(pd.concat([table.drop(columns=list(result), errors="ignore"), pd.DataFrame(result)], axis=1), target)
    console.print(f"{len(table)} rows: {target}", soft_wrap=True)
    if g_columns is not None or "g1" in table.columns:
        g = select_columns(table, g_columns, "g", file).to(x.dtype)
        relative = error(net, x, g) / float(g.square().sum(dim=1).mean())
        console.print(f"error against the gradients in the file: {decibels(relative):.2f} dB of their mean square")


def verify(
    model: Path,
    file: Annotated[
        Path | None, typer.Argument(help="Points x1..xd to check at; standard normal if not given.")
    ] = None,
    points: Annotated[int, typer.Option(min=3, help="How many points to use.")] = 64,
    x_columns: XColumns = None,
) -> None:
    """Check that a model is a gradient (and monotone, if it says so) and print the certificate."""
    net = _load_map(model).double()
    x = None if file is None else select_columns(read_table(file), x_columns, "x", file)
    certificate = verification.certificate(net, x, points=points)
    console.print(certificate.table())
    if not certificate.passed:
        raise typer.Exit(1)


def export(
    model: Path,
    format: Annotated[str, typer.Option(help="numpy (.py and .weights.npz), onnx (.onnx), or torch (two .pt2).")],
    out: Annotated[Path, typer.Option(help="File to write, with the ending of the format.")],
) -> None:
    """Write a model and its potential for programs that do not know this package."""
    result = export_map(_load_map(model), out, format)
    console.print(f"{', '.join(map(str, result.files))}: {result.check}", soft_wrap=True, highlight=False)


def _load_map(path: Path) -> GradientMap:
    net = load(path)
    if not isinstance(net, GradientMap):
        raise InvalidInputError(f"{path} holds a {type(net).__name__}, which is no gradient map.")
    return net
