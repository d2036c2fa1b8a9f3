"""The super-resolution study: a short run on embedded photographs, its page, and sentences that follow the numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nablanets import GradientResidual
from nablanets.errors import DataFileError, UnknownNameError
from nablanets.parameters import count_parameters
from nablanets_studies.catalog import find_experiment
from nablanets_studies.images import photographs
from nablanets_studies.images.photographs import embedded_photographs, licences, packaged_photographs, to_fetch
from nablanets_studies.machinery.metrics import Measured
from nablanets_studies.machinery.runner import run_experiment
from nablanets_studies.pictures.super_resolution_arms import (
    BUDGETS,
    METHODS,
    TIME,
    Choice,
    build,
    choose,
    pictures_of,
    source_of,
    train_arm,
)
from nablanets_studies.pictures.super_resolution_findings import SuperResolutionMetrics, budget_sheet, find, gates

# One worker runs this module, so that its run is made once.
pytestmark = pytest.mark.xdist_group("super-resolution")

_EXPERIMENT = find_experiment("super-resolution")
_TINY = replace(
    _EXPERIMENT.preset("quick"), data="embedded", methods=("standard", "gradient-full"), blocks=2, width=8,
    epochs=0.125, seconds=1.5, patch=16, rates=(3e-3,), validate_every=50, validation_side=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_experiment(_EXPERIMENT, _TINY, preset="quick", seeds=1, out=tmp_path_factory.mktemp("sr"))


def test_every_arm_beats_bicubic_on_pictures_it_never_saw(run):
    rows = {row.arm: row for row in run.rows()}
    assert set(rows) == {"bicubic", *(f"{m}-{b}" for m in _TINY.methods for b in ("epochs", "time"))}
    bicubic = rows.pop("bicubic").metrics
    assert bicubic["psnr"] == pytest.approx(33.187, abs=0.01)
    for arm, row in rows.items():
        assert row.metrics["gain"] > (0.3 if arm.endswith("epochs") else 0.1), arm
        assert row.metrics["psnr"] - bicubic["psnr"] == pytest.approx(row.metrics["gain"])
        assert row.metrics["milliseconds"] * row.metrics["steps"] == pytest.approx(1000 * row.seconds)
    assert {rows[f"{m}-epochs"].metrics["steps"] for m in _TINY.methods} == {250}
    for method in _TINY.methods:
        assert rows[f"{method}-time"].seconds == pytest.approx(1.5, abs=0.7)
    assert 0 < rows["gradient-full-epochs"].metrics["gate_2"] < 1
    assert "gate_1" not in rows["standard-epochs"].metrics


def test_the_page_has_tables_curves_gates_and_crops(run):
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    for text in (
        "At equal epochs, means",
        "At equal training time, means",
        "the target of 0.10 dB",
        "eight to train on",
    ):
        assert text in page
    sheets = _EXPERIMENT.sheets(_TINY, run)
    psnr = {row.arm: row.metrics["psnr"] for row in run.rows()}
    assert {line[0]: line[1] for line in sheets[0].rows} == {m: f"{psnr[f'{m}-epochs']:.3f}" for m in _TINY.methods}


def test_a_kept_network_is_the_one_that_was_measured(run):
    net = run.load_model("gradient-full-epochs", 0)
    row = next(r for r in run.rows() if r.arm == "gradient-full-epochs")
    gate = [layer.gate().item() for layer in net.body]
    assert gate == pytest.approx([row.metrics["gate_1"], row.metrics["gate_2"]], rel=1e-5)
    assert count_parameters(net) == row.parameters


def test_arms_are_what_their_names_say():
    config = replace(_EXPERIMENT.preset("quick"), blocks=4)
    nets = {name: build(config, method, 1.0) for name, method in METHODS.items()}
    plain = count_parameters(nets["standard"])
    extra = {m: count_parameters(net) - plain for m, net in nets.items()}
    assert extra == {
        "standard": 0, "no-skip": 0, "damped": 4, "random": 4, "gradient": 4, "gradient-full": 4,
        "gradient-probe": 4 + 4 * 16, "gradient-full-probe": 4 + 4 * 16, "guided": 6 * 9 * 16,
        "deeper": 2 * 2 * (9 * 16 * 16 + 16),
    }  # fmt: skip
    full = nets["gradient-full-probe"].body[0]
    assert isinstance(full, GradientResidual)
    assert (full.stop_gradient, full.normalize, full.learns_probe) == (False, "none", True)
    assert nets["gradient"].body[0].stop_gradient
    with pytest.raises(UnknownNameError, match="'gradient'"):
        _EXPERIMENT.arms(replace(config, methods=("gradiant",)))
    with pytest.raises(UnknownNameError, match="'time'"):
        _EXPERIMENT.arms(replace(config, budgets=("times",)))


def test_rates_and_alphas_are_chosen_on_validation_pictures():
    config = replace(
        _TINY,
        rates=(1e-9, 3e-3),
        alphas=(0.0, 2.0),
        trial_epochs=0.1,
        blocks=1,
        patch=10,
        methods=("gradient", "damped"),
    )
    chosen = choose(config, "gradient")
    assert chosen.rate == 3e-3
    errors = {}
    for alpha in config.alphas:
        choice = Choice(alpha, 3e-3)
        _, trained = train_arm(config, METHODS["gradient"], choice, seed=1000, epochs=config.trial_epochs)
        errors[alpha] = trained.record.history[-1].validation_error
    assert chosen.alpha == min(errors, key=errors.__getitem__)
    assert choose(config, "damped").alpha == chosen.alpha


def test_photographs_are_three_disjoint_parts_and_absent_ones_are_named(monkeypatch, tmp_path):
    names = [set(embedded_photographs(part).names) for part in ("train", "validation", "test")]
    assert [len(part) for part in names] == [8, 2, 4]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    tables = [photographs._TRAIN, photographs._VALIDATION, photographs._TEST]
    files = [{(d, f) for d, each in table.items() for f in each} for table in tables]
    assert [len(part) for part in files] == [45, 6, 10]
    assert not files[0] & files[1] | files[0] & files[2] | files[1] & files[2]
    assert all(licences().values())
    monkeypatch.setenv("NABLANETS_DATA", str(tmp_path))
    assert "lomiri-wallpapers" in to_fetch()
    with pytest.raises(DataFileError, match="nablanets data get lomiri-wallpapers mate-wallpapers"):
        packaged_photographs("train")
    assert source_of(_EXPERIMENT.preset("quick")) == "embedded"
    assert "are not on this machine" in " ".join(_EXPERIMENT.notes(_EXPERIMENT.preset("quick")))


def test_large_photographs_are_reduced(monkeypatch, tmp_path):
    folder = tmp_path / "mate-wallpapers-1.26.0-1"
    folder.mkdir()
    Image.fromarray(np.zeros((1500, 2400, 3), np.uint8)).save(folder / "LadyBird.jpg")
    monkeypatch.setenv("NABLANETS_DATA", str(tmp_path))
    monkeypatch.setattr(photographs, "_PACKAGED", {"validation": {"mate-wallpapers": ("LadyBird.jpg",)}})
    assert packaged_photographs("validation").pictures[0].shape == (3, 750, 1200)


def test_a_folder_of_ones_own_is_read(tmp_path):
    for name in ("train", "valid", "A", "B"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((80, 90, 3), 100, np.uint8)).save(tmp_path / name / "x.png")
    config = replace(
        _EXPERIMENT.preset("paper"), data=str(tmp_path), train="train", validation="valid", tests=("A", "B")
    )
    assert list(pictures_of(config).tests) == ["A", "B"]
    assert pictures_of(config).validation[0].shape == (3, 80, 90)
    row = _EXPERIMENT.run_part(config, "bicubic", 0, lambda _: None)
    assert set(row.metrics) == {"psnr", "ssim", "psnr_A", "psnr_B", "gain"}


def _results(values, budget="time"):
    """Results with PSNR by method and seed; bicubic has 30 dB."""
    found = []
    for method, psnrs in values.items():
        for seed, psnr in enumerate(psnrs):
            metrics = SuperResolutionMetrics(psnr=psnr, ssim=0.9, gain=psnr - 30, milliseconds=10.0, gates=(0.5,))
            found.append(Measured(f"{method}-{budget}", seed, metrics))
    return found


def conclusions_of(results, budgets):
    found = find(results, [BUDGETS[name] for name in budgets])
    config = _EXPERIMENT.preset("quick")
    return _EXPERIMENT.prose.paragraphs("conclusions", experiment=_EXPERIMENT, config=config, found=found)


def test_conclusions_follow_the_numbers():
    good = _results({"standard": [32.0, 32.1, 31.9], "gradient": [32.2, 32.31, 32.09], "no-skip": [31.0, 31.1, 30.9]})
    texts = " ".join(conclusions_of(good, ["time"]))
    assert "arms are 1.00 dB (no-skip) to 2.20 dB (gradient) above bicubic." in texts
    assert "better: gradient (+0.200 ± 0.006); worse: no-skip (-1.000 ± 0.000); not distinguishable: none" in texts
    assert "gradient, is +0.200 ± 0.006 dB from the standard skip: the target of 0.10 dB is reached." in texts
    assert "The best other control, no-skip, is -1.200 dB from it." in texts
    small = _results({"standard": [32.0, 32.1, 31.9], "gradient": [32.05, 32.15, 31.95]})
    assert "is not reached (too little)" in conclusions_of(small, ["time"])[-1]
    noisy = _results({"standard": [32.0, 32.1, 31.9], "gradient": [32.6, 32.1, 31.9]})
    assert "is not reached (not certain)" in conclusions_of(noisy, ["time"])[-1]
    assert "not distinguishable: gradient" in conclusions_of(noisy, ["time"])[1]
    bad = _results({"standard": [29.0, 29.1, 28.9], "gradient": [28.9, 29.0, 28.8]})
    assert "not above it: standard, gradient" in conclusions_of(bad, ["time"])[0]
    assert "no standard skip" in conclusions_of(good, ["epochs"])[0]
    both = [*good, *_results({"standard": [32.0, 32.1, 31.9], "gradient": [32.3, 32.4, 32.2]}, "epochs")]
    last = conclusions_of(both, ["time", "epochs"])[-1]
    assert last.endswith("equal epochs is kindest to gradients: gradient +0.300 ± 0.000 dB.")
    sheet = budget_sheet(good, TIME)
    assert [line[0] for line in sheet.rows] == ["gradient", "standard", "no-skip"]
    assert sheet.rows[0][3] == "+0.200 ± 0.006"
    assert gates(good)["gradient-time"] == [0.5]
