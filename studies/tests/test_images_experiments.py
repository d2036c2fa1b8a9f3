"""The studies of classification and segmentation in short, and what their pages say of the numbers."""

from __future__ import annotations

import pytest

from nablanets.errors import DataFileError, UnknownNameError
from nablanets_studies.catalog import find_experiment
from nablanets_studies.machinery.base import override
from nablanets_studies.machinery.metrics import Measured
from nablanets_studies.machinery.runner import run_experiment
from nablanets_studies.pictures.classification import load
from nablanets_studies.pictures.picture_findings import PictureMetrics, Score, against_standard, alpha_sheet, find


def short(name, tmp_path, *changes):
    experiment = find_experiment(name)
    config = override(experiment.preset("quick"), ["methods=standard,gradient", *changes])
    run = run_experiment(experiment, config, preset="quick", seeds=1, out=tmp_path / "run")
    return {row.arm: row.metrics for row in run.rows()}, run


def check_page(found, run):
    assert set(found) == {"standard", "gradient", "gradient-timed"}
    timed = found["gradient-timed"]
    assert timed["epochs"] * timed["cost"] == pytest.approx(found["standard"]["epochs"])
    assert timed["cost"] == found["gradient"]["cost"]
    blocks = [key for key in found["gradient"] if key.startswith("alpha ")]
    assert blocks
    assert all(found["gradient"][key] != -3.0 for key in blocks), "alpha is trained"
    page = (run.path / "report.html").read_text()
    for text in ("gradient-timed", "of each block after training", "data:image/png", "too few seeds to tell"):
        assert text in page


def test_digits_are_classified(tmp_path):
    found, run = short("classification", tmp_path, "epochs=4")
    check_page(found, run)
    for metrics in found.values():
        assert metrics["accuracy"] > 88
    assert found["gradient"]["accuracy"] > 94
    assert len(run.history("gradient", 0)) > 3


def test_digits_on_photographs_are_segmented(tmp_path):
    found, run = short("segmentation", tmp_path, "epochs=3", "test_samples=50")
    check_page(found, run)
    assert found["standard"]["iou"] > 65
    assert found["gradient"]["iou"] > 65


def test_parts_of_the_data_are_disjoint():
    config = find_experiment("classification").preset("quick")
    parts = load(config)
    rows = [{tuple(p.flatten().tolist()) for p in part.pictures} for part in parts]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 1797


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("classification", ["data=digtis"], UnknownNameError, "'digits'"),
        ("classification", ["data=cifar", "folder=nowhere"], DataFileError, "no such folder"),
        ("classification", ["stem=cifra"], UnknownNameError, "'cifar'"),
        ("segmentation", ["data=voc", "folder=nowhere"], DataFileError, "no such folder"),
        ("segmentation", ["network=unte"], UnknownNameError, "'unet'"),
        ("segmentation", ["methods=gradeint"], UnknownNameError, "'gradient'"),
    ],
)
def test_messages(name, changes, error, message, tmp_path):
    experiment = find_experiment(name)
    with pytest.raises(error, match=message):
        config = override(experiment.preset("quick"), changes)
        run_experiment(experiment, config, preset="quick", seeds=1, out=tmp_path / "run", arms=None)


def test_data_by_name_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("NABLANETS_DATA", str(tmp_path))
    config = override(find_experiment("classification").preset("fashion"), [])
    with pytest.raises(DataFileError, match="nablanets data get fashion-mnist"):
        load(config)


def results(errors, cost=1.4):
    found = []
    for arm, values in errors.items():
        for seed, error in enumerate(values):
            score = Score(test_error=error)
            metrics = PictureMetrics(score=score, rate=0.01, epochs=1.0, cost=cost, alphas={"layer1.0": -1.0})
            found.append(Measured(arm, seed, metrics))
    return found


def verdicts(errors):
    experiment = find_experiment("classification")
    config = experiment.preset("quick")
    return experiment.prose.paragraphs("conclusions", experiment=experiment, config=config, found=find(results(errors)))


STANDARD = [0.100, 0.104, 0.102, 0.101]


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ([0.080, 0.085, 0.081, 0.082], ("lower by 0.0198", "beyond the noise")),
        ([0.120, 0.125, 0.121, 0.122], ("higher by 0.0202", "beyond the noise")),
        ([0.101, 0.103, 0.100, 0.104], ("higher by 0.0003", "within the noise")),
    ],
)
def test_verdicts_follow_the_numbers(ours, words):
    (text,) = verdicts({"standard": STANDARD, "gradient": ours})
    assert all(word in text for word in (*words, "gradient, at equal epochs, 1.40 times the time"))
    (text,) = verdicts({"standard": STANDARD, "gradient-timed": ours})
    assert "gradient-timed, at equal training time" in text


def test_what_cannot_be_compared():
    assert "too few seeds" in verdicts({"standard": [0.1], "gradient": [0.2]})[0]
    assert "no standard skip" in verdicts({"gradient": [0.2]})[0]
    assert against_standard(results({"standard": STANDARD, "gradient": [0.1]})) == {}


def test_gates_by_layer():
    sheet = alpha_sheet(results({"gradient": [0.1, 0.2]}))
    assert list(sheet.columns) == ["block", "gradient"]
    assert sheet.rows == [["layer1.0", "0.269"]]
