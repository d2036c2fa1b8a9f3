"""Run an experiment: every part that is not finished yet, then the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nablanets.errors import InvalidInputError, unknown_name
from nablanets.experiments.base import Experiment
from nablanets.experiments.report import results_table, write_report
from nablanets.experiments.store import Row, RunFolder
from nablanets.training.settings import HistoryRow, decibels


def run_experiment(
    experiment: Experiment[Any],
    config: Any,
    *,
    preset: str,
    seeds: int,
    out: str | Path,
    arms: Sequence[str] | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> RunFolder:
    """Run all arms of an experiment with seeds 0 .. seeds - 1 and write the report.

    Args:
        experiment: what to run.
        config: its complete configuration.
        preset: the name of the preset that the configuration started from, for the record.
        seeds: how many.
        out: the run folder.
        arms: which arms; all if None. Others can join the folder later, with ``resume``.
        resume: continue an interrupted run; finished parts are not computed again.
        console: where to show progress and the table; None is silent.

    Raises:
        RunFolderError: see :meth:`RunFolder.begin`.
        UnknownNameError: the experiment has no such arm.
    """
    if seeds < 1:
        raise InvalidInputError(f"run: expected at least one seed, got {seeds}.")
    chosen = _chosen(experiment.arms(config), arms)
    description = {"experiment": experiment.name, "preset": preset, "seeds": seeds, "config": asdict(config)}
    run = RunFolder.begin(out, description, resume=resume)
    finished = run.finished()
    missing = {arm: [seed for seed in range(seeds) if (arm, seed) not in finished] for arm in chosen}
    total, left = len(chosen) * seeds, sum(map(len, missing.values()))
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task(experiment.name, total=total, completed=total - left)
        for arm in (arm for arm in chosen if missing[arm]):

            def report(seed: int, row: HistoryRow, arm: str = arm) -> None:
                run.log(arm, seed, row)
                status = f"{arm} seed {seed}  step {row.step}  {decibels(row.validation_error):.1f} dB"
                progress.update(task, description=status)

            progress.update(task, description=arm)
            for seed, result in experiment.run_arm(config, arm, missing[arm], report):
                run.add(Row(arm, seed, result.parameters, result.seconds, result.metrics), result.model)
                progress.advance(task)
        progress.update(task, description="writing the report")
        page = write_report(experiment, config, run)
    if console is not None:
        console.print(results_table(experiment, run))
        console.print(f"Report: {page.resolve()}", soft_wrap=True)
    return run


def _chosen(known: Sequence[str], wanted: Sequence[str] | None) -> Sequence[str]:
    for arm in wanted or ():
        if arm not in known:
            raise unknown_name("arm", arm, known)
    return known if wanted is None else [arm for arm in known if arm in wanted]
