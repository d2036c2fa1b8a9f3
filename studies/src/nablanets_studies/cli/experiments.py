"""Commands about experiments: list, show, run, report."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from nablanets.cli.app import console
from nablanets_studies.catalog import EXPERIMENTS, find_experiment
from nablanets_studies.machinery.base import override
from nablanets_studies.machinery.report import results_table, write_report
from nablanets_studies.machinery.runner import run_experiment
from nablanets_studies.machinery.store import RunFolder


def list_experiments() -> None:
    """List the experiments."""
    table = Table()
    for title in ("experiment", "what it does"):
        table.add_column(title)
    for name, experiment in EXPERIMENTS.items():
        table.add_row(name, experiment.summary)
    console.print(table)


def show(name: str) -> None:
    """Show an experiment: protocol, arms, presets and settings."""
    experiment = find_experiment(name)
    console.print(f"{experiment.name}: {experiment.summary}\n", highlight=False)
    for note in experiment.notes(experiment.preset("paper")):
        console.print(note + "\n", highlight=False)
    console.print("arms: " + ", ".join(experiment.arms(experiment.preset("paper"))), highlight=False)
    table = Table(title="settings (change them with --set key=value)")
    for title in ("setting", *experiment.presets):
        table.add_column(title)
    configs = experiment.presets.values()
    for field in fields(next(iter(configs))):
        table.add_row(field.name, *(str(getattr(config, field.name)) for config in configs))
    table.add_row("seeds (--seeds)", *(str(experiment.seeds[preset]) for preset in experiment.presets))
    console.print(table)


def run(
    name: str,
    preset: Annotated[
        str, typer.Option(help="quick, paper, or another one that `nablanets show NAME` lists.")
    ] = "quick",
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME-PRESET if not given.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds; the preset's if not given.")] = None,
    arms: Annotated[str | None, typer.Option(help="Only these arms, a,b,c; others can join later by --resume.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Arms trained at a time, each in its own process.")] = 1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value; can be repeated.")] = None,
) -> None:
    """Run an experiment with its baselines, and write a report."""
    torch.set_num_threads(1)
    experiment = find_experiment(name)
    config = override(experiment.preset(preset), set_ or [])
    folder = out or Path("runs") / f"{experiment.name}-{preset}"
    count = experiment.seeds[preset] if seeds is None else seeds
    wanted = None if arms is None else arms.split(",")
    try:
        run_experiment(
            experiment,
            config,
            preset=preset,
            seeds=count,
            out=folder,
            arms=wanted,
            resume=resume,
            jobs=jobs,
            console=console,
        )
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. Finished parts are in {folder}; give the same command with --resume to go on.")
        raise typer.Exit(130) from None


def report(folders: Annotated[list[Path], typer.Argument(metavar="DIR...")]) -> None:
    """Write the reports of run folders again, and print their tables."""
    for folder in folders:
        run_folder = RunFolder.open(folder)
        description = run_folder.description()
        experiment = find_experiment(description["experiment"])
        config = type(experiment.preset("paper"))(**_as_tuples(description["config"]))
        page = write_report(experiment, config, run_folder)
        console.print(results_table(experiment, run_folder))
        console.print(f"Report: {page.resolve()}", soft_wrap=True)


def _as_tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
