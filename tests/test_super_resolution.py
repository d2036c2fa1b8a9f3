"""The super-resolution study: a short run on embedded photographs, its page, and sentences that follow the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nablanets.experiments import find_experiment
from nablanets.experiments.runner import run_experiment

# One worker runs this module, so that its run is made once.
pytestmark = pytest.mark.xdist_group("super-resolution")

_EXPERIMENT = find_experiment("super-resolution")
_TINY = replace(
    _EXPERIMENT.preset("quick"), data="embedded", methods=("standard", "gradient", "gradient-full"), blocks=2, width=8,
    epochs=0.05, seconds=2.0, patch=16, validate_every=50, validation_side=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_experiment(_EXPERIMENT, _TINY, preset="quick", seeds=1, out=tmp_path_factory.mktemp("sr"))


def test_every_arm_beats_bicubic_on_pictures_it_never_saw(run):
    rows = {row.arm: row for row in run.rows()}
    assert len(rows) == 7
    for arm, row in rows.items():
        if arm == "bicubic":
            assert row.metrics["psnr"] == pytest.approx(33.18, abs=0.05)
        else:
            assert row.metrics["gain"] > 0.4, arm
            assert row.metrics["psnr"] - rows["bicubic"].metrics["psnr"] == pytest.approx(row.metrics["gain"])
    assert {rows[f"{m}-epochs"].metrics["steps"] for m in _TINY.methods} == {100}
    for method in _TINY.methods:
        assert rows[f"{method}-time"].seconds == pytest.approx(2.0, abs=0.7)
