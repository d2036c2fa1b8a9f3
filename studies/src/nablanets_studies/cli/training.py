"""Commands that train networks on pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nablanets.cli.app import console
from nablanets.errors import InvalidInputError
from nablanets.fitting.settings import HistoryRow, decibels
from nablanets.parameters import count_parameters
from nablanets.serialization import save
from nablanets_studies.images.metrics import mean_psnr
from nablanets_studies.images.models import EDSR, Bicubic
from nablanets_studies.images.patches import PatchPairs, middle
from nablanets_studies.images.photographs import Photographs, licences, packaged_photographs, photographs_of
from nablanets_studies.images.super_resolution import train_super_resolution
from nablanets_studies.images.training import TrainSettings

train = typer.Typer(help="Train networks on pictures.", no_args_is_help=True, rich_markup_mode=None)
_VALIDATION_SIDE = 512


@train.command("super-resolution")
def super_resolution(
    data: Annotated[str, typer.Option(help="Folder of pictures; 'packaged' for those inside packages.")],
    out: Annotated[Path, typer.Option(help="Model file to write (.safetensors); nablanets upscale --model reads it.")],
    validation: Annotated[Path | None, typer.Option(help="Folder; every tenth picture of DATA if not given.")] = None,
    scale: Annotated[int, typer.Option(help="2, 3 or 4.")] = 2,
    blocks: Annotated[int, typer.Option(help="Residual blocks of EDSR.")] = 8,
    width: Annotated[int, typer.Option(help="Channels.")] = 32,
    skip: Annotated[str, typer.Option(help="What skips carry: standard, gradient, gradient-full, ...")] = "standard",
    seconds: Annotated[float, typer.Option(help="Training time; processor time on a CPU.")] = 600,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(help="Patches per step, over all processes.")] = 16,
    patch: Annotated[int, typer.Option(help="Pixels of a patch of the small picture.")] = 32,
    precision: Annotated[str, typer.Option(help="32-true or bf16-mixed.")] = "bf16-mixed",
    devices: Annotated[int, typer.Option(help="Processes or devices; torchrun decides for itself.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of weights and batches.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="State file; an interrupted run goes on from it.")] = None,
) -> None:
    """Train a super-resolution network; the defaults are the recipe of the packaged one."""
    pictures, held_out = _pictures(data, validation)
    torch.manual_seed(seed)
    net = EDSR(scale, blocks=blocks, width=width, skip=skip, tail="direct", onto_bicubic=True)
    settings = TrainSettings(
        epochs=None, seconds=seconds, batch_size=batch_size, learning_rate=lr, optimizer="adam", warmup=0.01, ema=0.999,
        label=f"{data} {scale} {blocks} {width} {skip} {patch}", precision=precision, channels_last=True,
        devices=devices, validate_every=500, checkpoint_every=250, seed=seed,
    )  # fmt: skip
    source = PatchPairs(pictures.pictures, scale, patch)
    tests = [middle(picture, _VALIDATION_SIDE) for picture in held_out.pictures]
    base = mean_psnr(Bicubic(scale), tests, scale)
    console.print(f"{len(pictures.pictures)} pictures, {len(tests)} for validation, where bicubic has {base:.2f} dB.")
    with Progress(BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"), console=console) as progress:
        task = progress.add_task("", total=seconds)

        def report(row: HistoryRow) -> None:
            description = f"step {row.step}  {-decibels(row.validation_error):.2f} dB"
            progress.update(task, completed=row.seconds, description=description)

        record = train_super_resolution(net, source, tests, settings, checkpoint=checkpoint, report=report).record
    licence = "; ".join(f"{name}: {text}" for name, text in licences().items()) if data == "packaged" else ""
    save(net, out, notes={"trained-on": f"{data}, {record.steps} steps", "licences-of-photographs": licence})
    best = -decibels(record.history[-1].validation_error)
    console.print(
        f"EDSR x{scale}, {count_parameters(net):,} parameters: {best:.2f} dB on the validation pictures, "
        f"{best - base:+.2f} dB over bicubic, after {record.steps:,} steps and {record.seconds:.0f} s.\nModel: {out}",
        soft_wrap=True,
    )


def _pictures(data: str, validation: Path | None) -> tuple[Photographs, Photographs]:
    """Photographs to train on and to validate with."""
    if data == "packaged":
        held_out = packaged_photographs("validation") if validation is None else photographs_of(validation)
        return packaged_photographs("train"), held_out
    every = photographs_of(data)
    if validation is not None:
        return every, photographs_of(validation)
    if len(every.pictures) < 2:
        raise InvalidInputError(
            f"--data {data}: one picture is not enough to train and to validate. Give --validation."
        )
    held = set(range(0, len(every.pictures), 10))
    return _chosen(every, [i for i in range(len(every.pictures)) if i not in held]), _chosen(every, sorted(held))


def _chosen(photographs: Photographs, index: list[int]) -> Photographs:
    return Photographs(tuple(photographs.names[i] for i in index), tuple(photographs.pictures[i] for i in index))
