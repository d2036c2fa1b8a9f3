"""Run an experiment: every part that is not finished yet, then the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nablanets.errors import InvalidInputError, unknown_name
from nablanets.fitting.settings import HistoryRow, decibels
from nablanets_studies.machinery.base import Experiment
from nablanets_studies.machinery.jobs import row_of, train_arms
from nablanets_studies.machinery.report import results_table, write_report
from nablanets_studies.machinery.store import RunFolder

Show = Callable[..., None]


def run_experiment(
    experiment: Experiment[Any],
    config: Any,
    *,
    preset: str,
    seeds: int,
    out: str | Path,
    arms: Sequence[str] | None = None,
    resume: bool = False,
    jobs: int = 1,
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
        jobs: how many arms are trained at a time, each in a process of its own; times are then less certain.
        console: where to show progress and the table; None is silent.

    Raises:
        RunFolderError: see :meth:`RunFolder.begin`.
        UnknownNameError: the experiment has no such arm.
    """
    if min(seeds, jobs) < 1:
        raise InvalidInputError(f"run: expected at least one seed and one job, got {seeds} and {jobs}.")
    chosen = _chosen(experiment.arms(config), arms)
    description = {"experiment": experiment.name, "preset": preset, "seeds": seeds, "config": asdict(config)}
    run = RunFolder.begin(out, description, resume=resume)
    finished = run.finished()
    wanted = {arm: [seed for seed in range(seeds) if (arm, seed) not in finished] for arm in chosen}
    missing = {arm: each for arm, each in wanted.items() if each}
    total = len(chosen) * seeds
    left = sum(len(each) for each in missing.values())
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=console is None) as progress:
        task = progress.add_task(experiment.name, total=total, completed=total - left)
        show = partial(progress.update, task)
        if jobs == 1:
            _train_here(experiment, config, missing, run, show)
        else:
            _train_in_processes(experiment, config, missing, run, show, jobs)
        show(description="writing the report")
        page = write_report(experiment, config, run)
    if console is not None:
        console.print(results_table(experiment, run))
        console.print(f"Report: {page.resolve()}", soft_wrap=True)
    return run


def _train_here(
    experiment: Experiment[Any], config: Any, missing: Mapping[str, Sequence[int]], run: RunFolder, show: Show
) -> None:
    for arm, seeds in missing.items():

        def report(seed: int, row: HistoryRow, arm: str = arm) -> None:
            run.log(arm, seed, row)
            show(description=f"{arm} seed {seed}  step {row.step}  {decibels(row.validation_error):.1f} dB")

        show(description=arm)
        for seed, result in experiment.run_arm(config, arm, seeds, report):
            run.add(row_of(arm, seed, result), result.model)
            show(advance=1)


def _train_in_processes(
    experiment: Experiment[Any],
    config: Any,
    missing: Mapping[str, Sequence[int]],
    run: RunFolder,
    show: Show,
    jobs: int,
) -> None:
    show(description=f"{jobs} arms at a time")
    for trained in train_arms(experiment, config, missing, run, jobs):
        for curve in trained.curves:
            run.log(trained.arm, *curve)
        for row in trained.rows:
            run.add(row, None)
            show(advance=1, description=f"{trained.arm} done")


def _chosen(known: Sequence[str], wanted: Sequence[str] | None) -> Sequence[str]:
    for arm in wanted or ():
        if arm not in known:
            raise unknown_name("arm", arm, known)
    return known if wanted is None else [arm for arm in known if arm in wanted]
