"""Arms of an experiment trained in several processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import torch

from nablanets.fitting.settings import HistoryRow
from nablanets_studies.machinery.base import Experiment, PartResult
from nablanets_studies.machinery.store import Row, RunFolder


class TrainedArm(NamedTuple):
    """What a process hands back: rows for results.json, and the learning curves; models are in the run folder."""

    arm: str
    rows: list[Row]
    curves: list[tuple[int, HistoryRow]]


def row_of(arm: str, seed: int, result: PartResult) -> Row:
    """The line of results.json for a part."""
    return Row(arm, seed, result.parameters, result.seconds, result.metrics)


def train_arms(
    experiment: Experiment[Any], config: Any, missing: Mapping[str, Sequence[int]], run: RunFolder, jobs: int
) -> Iterator[TrainedArm]:
    """Train the missing seeds of each arm, as many arms at a time as there are jobs; each process has one thread.

    Arms come in their order. Only models are written by the processes, so that a part is still either whole or absent.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=begin_process) as pool:
        futures = [pool.submit(_train, experiment, config, arm, seeds, run) for arm, seeds in missing.items()]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def begin_process() -> None:
    """One thread for arithmetic; and an end with the parent process, also where that is killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():
        wait([parent.sentinel])
        os._exit(1)


def _train(experiment: Experiment[Any], config: Any, arm: str, seeds: Sequence[int], run: RunFolder) -> TrainedArm:
    trained = TrainedArm(arm, [], [])
    for seed, result in experiment.run_arm(config, arm, seeds, lambda seed, row: trained.curves.append((seed, row))):
        if result.model is not None:
            run.save_model(result.model, arm, seed)
        trained.rows.append(row_of(arm, seed, result))
    return trained
