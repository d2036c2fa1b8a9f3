"""Commands for photographs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nablanets.cli.app import console
from nablanets.errors import DataFileError, InvalidInputError, unknown_name
from nablanets.serialization import load
from nablanets_studies.images import upscale as upscaling
from nablanets_studies.images.files import Picture, by_stem, format_of, pictures_in, read_picture, write_picture

_PRECISIONS = ("auto", "float32", "bf16")


def upscale(
    source: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures.")],
    out: Annotated[Path | None, typer.Option(help="File or folder to write; beside SOURCE if not given.")] = None,
    scale: Annotated[int, typer.Option(help="2, 4, ... with the packaged network.")] = 2,
    model: Annotated[Path | None, typer.Option(help="Network to use; the packaged one if not given.")] = None,
    memory: Annotated[float, typer.Option(help="MiB for the network, beside the pictures.")] = 512,
    megapixels: Annotated[float, typer.Option(help="Larger pictures are refused.")] = 200,
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16.")] = "auto",
) -> None:
    """Enlarge photographs with a super-resolution network."""
    if not megapixels > 0:
        raise InvalidInputError(f"--megapixels: expected a positive number, got {megapixels}.")
    if precision not in _PRECISIONS:
        raise unknown_name("precision", precision, _PRECISIONS)
    net = upscaling.packaged_upscaler() if model is None else _network(model)
    upscaling.times_applied(net.scale, scale)
    side = upscaling.side_within(net, memory)
    fast = precision == "bf16" or (precision == "auto" and upscaling.has_fast_bf16())
    jobs = _jobs(source, out, scale)
    work = partial(upscaling.upscale, net.to(_device()), scale=scale, side=side, bf16=fast)
    failures = _run(jobs, partial(_one, work, megapixels))
    if failures and not source.is_dir():
        raise failures[0]
    for failure in failures:
        console.print(f"left out: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
    if source.is_dir():
        console.print(f"{len(jobs) - len(failures)} of {len(jobs)} pictures enlarged.")
    if failures:
        raise typer.Exit(1)


def _run(jobs: list[tuple[Path, Path]], one: Callable[..., None]) -> list[DataFileError]:
    """Do all jobs, with a progress bar that counts tiles; what failed."""
    failures = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(jobs))
        for index, (source, target) in enumerate(jobs):
            progress.update(task, description=source.name)

            def report(done: int, total: int, index: int = index) -> None:
                progress.update(task, completed=index + done / total)

            try:
                one(source, target, report)
            except DataFileError as error:
                failures.append(error)
            progress.update(task, completed=index + 1)
    return failures


def _one(work: Callable[..., Any], megapixels: float, source: Path, target: Path, report: Any) -> None:
    picture = read_picture(source, megapixels=megapixels)
    enlarged = work(picture, report=report)
    lost = write_picture(enlarged, target)
    remarks = "".join(f" ({remark})" for remark in (*picture.remarks, *lost))
    line = f"{source}, {_size(picture)}: {target}, {_size(enlarged)}{remarks}"
    console.print(line, soft_wrap=True, highlight=False, markup=False)


def _size(picture: Picture) -> str:
    height, width = picture.colors.shape[-2:]
    return f"{width} x {height} pixels"


def _jobs(source: Path, out: Path | None, scale: int) -> list[tuple[Path, Path]]:
    """Pairs of files to read and to write."""
    if not source.is_dir():
        target = source.with_name(f"{source.stem}-x{scale}.png") if out is None else out
        target = target / f"{source.stem}-x{scale}.png" if target.is_dir() else target
        format_of(target)
        if target.resolve() == source.resolve():
            raise InvalidInputError(f"--out: {target} is the picture itself. Choose another name.")
        return [(source, target)]
    folder = source / f"x{scale}" if out is None else out
    if folder.is_file():
        raise InvalidInputError(f"--out: {folder} is a file, and a folder of pictures needs a folder.")
    if folder.resolve() == source.resolve():
        raise InvalidInputError(f"--out: {folder} is the folder of the pictures itself. Choose another one.")
    return [(path, folder / f"{stem}.png") for stem, path in by_stem(pictures_in(source)).items()]


def _network(path: Path) -> Any:
    net = load(path)
    upscaling.reach_of(net)
    return net


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
