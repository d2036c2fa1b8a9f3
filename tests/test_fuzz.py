"""Files from strangers: models, checkpoints and tables with seeded damage are read right or refused by a NablaError."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

KINDS = ("model", "checkpoint", "csv", "npz", "parquet")
#: What one damaged file may take (of a table or model of a few kilobytes).
MOST_SECONDS = 2.0
MOST_MEMORY = 2**30


def results(seed: int, count: int) -> list[dict[str, Any]]:
    """What came of so many mutated files of each kind, read in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzzing", str(seed), str(count)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{done.stderr[-2000:]}\nThe last file: {lines[-1:]}"
    return [line for line in lines if "outcome" in line]


def assert_read_or_refused(found: list[dict[str, Any]], count: int) -> None:
    wrong = [line for line in found if line["outcome"] not in ("read", "refused")]
    assert wrong == []
    assert Counter(line["kind"] for line in found) == dict.fromkeys(KINDS, count)
    # Damage that always shows, or never, would test nothing.
    outcomes = Counter((line["kind"], line["outcome"]) for line in found)
    assert len(outcomes) == 2 * len(KINDS), outcomes
    assert found[-1]["memory"] - found[0]["memory"] < MOST_MEMORY


def test_damaged_files_are_read_or_refused():
    assert_read_or_refused(results(0, 60), 60)


@pytest.mark.slow
def test_five_thousand_damaged_files_are_read_or_refused_within_limits():
    found = results(1, 1000)
    assert_read_or_refused(found, 1000)
    assert max(line["seconds"] for line in found) < MOST_SECONDS
