"""Experiments: short runs with assertions about their results; run folders, resuming, reports."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from nablanets.errors import InvalidInputError, RunFolderError, UnknownNameError
from nablanets.fitting import FitResult, HistoryRow
from nablanets_studies.catalog import EXPERIMENTS, find_experiment
from nablanets_studies.fields.field2d import time_to_level
from nablanets_studies.machinery.base import override
from nablanets_studies.machinery.report import results_table, write_report
from nablanets_studies.machinery.runner import run_experiment
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.fields import ConvexField, NonconvexField
from nablanets_studies.problems.terrain import elevation_error, integrate_slopes, load_terrain

# One worker runs this module, so that its runs are made once.
pytestmark = pytest.mark.xdist_group("experiments")


def _means(run: RunFolder, metric: str) -> dict[str, float]:
    rows = run.rows()
    return {arm: float(np.mean([r.metrics[metric] for r in rows if r.arm == arm])) for arm in {r.arm for r in rows}}


@pytest.fixture(scope="module", params=["field2d-convex", "field2d-nonconvex"])
def field_run(request, tmp_path_factory):
    experiment = find_experiment(request.param)
    config = replace(experiment.preset("quick"), steps=1000, lm_iterations=100, lm_starts=4)
    return experiment, run_experiment(experiment, config, preset="quick", seeds=2, out=tmp_path_factory.mktemp("run"))


def test_gradient_networks_learn_the_fields(field_run):
    _, run = field_run
    error = _means(run, "test_db")
    assert error["gradnet-m"] < -28
    assert error["gradnet-c"] < -18
    others = [value for arm, value in error.items() if not arm.startswith("gradnet") and not arm.endswith("-lm")]
    assert min(error["gradnet-c"], error["gradnet-m"]) < min(others)
    assert max(error["gradnet-c-lm"], error["gradnet-m-lm"]) < min(error["gradnet-c"], error["gradnet-m"])
    asymmetry = _means(run, "asymmetry")
    assert max(v for a, v in asymmetry.items() if a not in ("mlp", "mlp-lm", "affine")) < 1e-5
    assert min(asymmetry["mlp"], asymmetry["mlp-lm"]) > 1e-3
    assert {row.arm: row.parameters for row in run.rows()}["gradnet-c"] == 100
    assert {row.arm: row.parameters for row in run.rows()}["gradnet-m"] == 94


def test_the_time_to_the_published_level_is_that_of_the_first_row_below_it():
    rows = [HistoryRow(k, float(k), 1.0, 10.0**-k, 0.1) for k in (1, 2, 3)]
    result = FitResult(rows, 1e-3, 3, "steps", 3, 3.5)
    assert time_to_level(result, -20.0) == (2.0, True)
    assert time_to_level(result, -40.0) == (3.5, False)


def test_the_run_folder_is_complete_and_the_page_needs_no_other_file(field_run):
    experiment, run = field_run
    results = json.loads((run.path / "results.json").read_text())
    assert set(results) == {"experiment", "preset", "environment", "rows"}
    assert set(results["rows"][0]) == {"arm", "seed", "parameters", "seconds", "metrics"}
    assert len(results["rows"]) == 2 * len(experiment.arms(experiment.preset("quick")))
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(list((run.path / "figures").glob("*.png"))) == 4
    assert 'src="http' not in page
    assert experiment.name in page
    curve = run.history("gradnet-c", 1)
    assert len(curve) > 10
    assert curve[-1].validation_error < curve[0].validation_error
    assert results_table(experiment, run).row_count == len(experiment.arms(experiment.preset("quick")))


@pytest.fixture(scope="module")
def terrain_run(tmp_path_factory):
    experiment = find_experiment("terrain")
    coarse = {"stride": 2, "fraction": 0.4, "directions": 128, "knots": 128, "seconds": 4.0}
    config = replace(experiment.preset("quick"), **coarse, mlp_frequency=70.0, potential_frequency=70.0)
    return run_experiment(experiment, config, preset="quick", seeds=1, out=tmp_path_factory.mktemp("run"))


def test_terrain_is_reconstructed_from_slopes(terrain_run):
    """A coarse version: the elevation varies by 163 m (standard deviation); the field of an MLP is not conservative."""
    by_arm = {row.arm: row.metrics for row in terrain_run.rows()}
    assert by_arm["gradnet"]["slope_db"] < min(by_arm["mlp"]["slope_db"], by_arm["mlp-potential"]["slope_db"], -4.0)
    assert by_arm["gradnet"]["loop"] < 1e-4 < by_arm["mlp"]["loop"]
    assert by_arm["gradnet"]["elevation_rmse"] < 40


def test_pieces_are_identified_and_trained_networks_beat_the_affine_map(tmp_path):
    experiment = find_experiment("piecewise-quadratic")
    config = experiment.preset("quick")
    run = run_experiment(experiment, config, preset="quick", seeds=1, out=tmp_path / "run")
    by_arm = {row.arm.removesuffix("-32"): row for row in run.rows()}
    db = {arm: row.metrics["test_db"] for arm, row in by_arm.items()}
    assert -13 < db["affine"] < -12
    assert db["identified"] < -100
    assert db["identified-6"] < -100
    assert by_arm["identified-6"].metrics["pieces"] == 3
    assert db["identified-noisy"] < -28
    assert db["gradnet-c-ridge-start"] < db["affine"] - 1 and db["gradnet-m-ridge-start"] < db["affine"] - 0.2, db
    assert max(row.parameters for row in run.rows()) <= 1024 * 32
    assert run.load_model("identified-32", 0).monotone


def test_nonconvex_fields_are_learned_better_than_by_an_affine_map(tmp_path):
    experiment = find_experiment("nonconvex-fields")
    config = replace(experiment.preset("quick"), methods=("affine", "gradnet-c-ridge-start"), steps=200)
    run = run_experiment(experiment, config, preset="quick", seeds=1, out=tmp_path / "run")
    db = {row.arm.removesuffix("-32"): row.metrics["test_db"] for row in run.rows()}
    for field in experiment.fields:
        assert db[f"{field}-gradnet-c-ridge-start"] < db[f"{field}-affine"] - 0.3, db
    with pytest.raises(UnknownNameError, match="'affine'"):
        experiment.arms(replace(config, methods=("affin",)))


def test_poisson_integration_recovers_a_surface_from_its_slopes():
    y, x = np.mgrid[0:60, 0:80]
    surface = np.sin(x / 9.0) * np.cos(y / 11.0) * 50 + 0.3 * x
    slopes = np.stack([np.gradient(surface, 2.0, axis=1), np.gradient(surface, 3.0, axis=0)], axis=-1)
    assert elevation_error(integrate_slopes(slopes, (2.0, 3.0)), surface) < 0.2
    exact = integrate_slopes(np.broadcast_to([1.0, -2.0], (5, 7, 2)), (2.0, 3.0))
    assert np.allclose(np.diff(exact, axis=1), 2.0)
    assert np.allclose(np.diff(exact, axis=0), -6.0)


def test_terrain_is_in_metres():
    terrain = load_terrain()
    assert terrain.elevation.shape == (344, 403)
    assert (terrain.elevation.min(), terrain.elevation.max()) == (236.0, 1076.0)
    assert terrain.spacing == pytest.approx((74.4, 92.7), abs=0.1)
    x, g, mask = terrain.sample(0.2, 0.0, 0)
    assert len(x) == int(mask.sum()) == round(0.2 * mask.size)
    assert torch.equal(g, torch.from_numpy(terrain.slopes[mask]).float())
    noisy = terrain.sample(0.2, 0.05, 0)[1]
    ratio = float((noisy - g).square().mean().sqrt()) / float(np.sqrt((terrain.slopes**2).mean()))
    assert ratio == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("field", [ConvexField(), NonconvexField()])
def test_fields_are_gradients_of_their_potentials(field):
    x = torch.rand(50, 2, dtype=torch.float64)
    gradient = torch.func.grad(lambda p: field.potential(p).sum())(x)
    torch.testing.assert_close(gradient, field.gradient(x))
    hessian = torch.func.vmap(torch.func.jacrev(field.gradient))(x)
    assert bool((torch.linalg.eigvalsh(hessian) > 0).all()) == field.convex


def _small(experiment):
    return replace(
        experiment.preset("quick"), samples=500, validation_samples=100, steps=20, starts=2, start_steps=5, test_side=10,
        lm_iterations=6, lm_starts=2, lm_halving=3,
    )  # fmt: skip


def test_an_interrupted_run_is_continued_and_nothing_is_computed_twice(tmp_path, monkeypatch):
    experiment = find_experiment("field2d-convex")
    config, calls = _small(experiment), []
    original = type(experiment).run_part

    def counted(self, config, arm, seed, report):
        if len(calls) == 5 and not any(c == "stopped" for c in calls):
            calls.append("stopped")
            report_rows = (tmp_path / "run" / "metrics.jsonl").read_text()
            (tmp_path / "run" / "metrics.jsonl").write_text(report_rows + '{"arm": "half')
            raise KeyboardInterrupt
        calls.append((arm, seed))
        return original(self, config, arm, seed, report)

    monkeypatch.setattr(type(experiment), "run_part", counted)
    options = {"preset": "quick", "seeds": 1, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, config, **options)
    assert len(RunFolder.open(tmp_path / "run").rows()) == 5
    with pytest.raises(RunFolderError, match=r"already holds a run.*--resume"):
        run_experiment(experiment, config, **options)
    with pytest.raises(RunFolderError, match="another configuration"):
        run_experiment(experiment, replace(config, steps=21), resume=True, **options)
    run = run_experiment(experiment, config, resume=True, **options)
    parts = [c for c in calls if c != "stopped"]
    assert len(parts) == len(set(parts)) == len(experiment.arms(config)) == len(run.rows())
    assert "half" not in (run.path / "metrics.jsonl").read_text()


def test_a_report_can_be_written_again(tmp_path):
    experiment = find_experiment("field2d-nonconvex")
    config = _small(experiment)
    run = run_experiment(experiment, config, preset="quick", seeds=1, out=tmp_path / "run")
    first = (run.path / "report.html").read_bytes()
    (run.path / "report.html").unlink()
    write_report(experiment, config, RunFolder.open(run.path))
    assert len((run.path / "report.html").read_bytes()) == pytest.approx(len(first), rel=0.01)


def test_damaged_and_foreign_folders_are_explained(tmp_path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(RunFolderError, match="damaged"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunFolderError, match="cannot write"):
        RunFolder.begin(tmp_path / "config.json" / "run", {"experiment": "x", "preset": "quick"}, resume=False)


def test_overrides_have_the_type_of_the_field():
    config = find_experiment("field2d-convex").preset("quick")
    changed = override(config, ["steps=7", "learning_rate=1e-2", "baseline_rates=0.1,0.2", "schedule=constant"])
    assert (changed.steps, changed.learning_rate, changed.baseline_rates, changed.schedule) == (
        7,
        0.01,
        (0.1, 0.2),
        "constant",
    )
    with pytest.raises(UnknownNameError, match="'steps'"):
        override(config, ["step=7"])
    with pytest.raises(InvalidInputError, match="key=value"):
        override(config, ["steps"])
    for bad in ("steps=many", "steps=1.5", "steps=true", "learning_rate=fast"):
        with pytest.raises(InvalidInputError, match="--set"):
            override(config, [bad])


def test_names():
    names = {"field2d-convex", "field2d-nonconvex", "terrain", "piecewise-quadratic", "nonconvex-fields", "sinusoid"}
    assert names <= set(EXPERIMENTS)
    with pytest.raises(UnknownNameError, match="'field2d-convex'"):
        find_experiment("field2d-conves")
    for experiment in EXPERIMENTS.values():
        assert set(experiment.presets) == set(experiment.seeds) >= {"quick", "paper"}
        with pytest.raises(UnknownNameError):
            experiment.preset("papre")
