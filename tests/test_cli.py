"""The command line as a user meets it: results, messages, exit codes, and no traceback."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import typer.main

from nablanets import GradNetC, GradNetM, load
from nablanets.cli import app, main
from nablanets.serialization import save
from nablanets_studies.baselines import MLP


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    code = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, " ".join(out.split()), " ".join(err.split())


@pytest.fixture
def samples(tmp_path):
    x = np.random.default_rng(0).uniform(10, 30, (300, 2))
    g = x @ np.array([[2.0, 0.5], [0.5, 1.0]])
    path = tmp_path / "samples.csv"
    pd.DataFrame({"x1": x[:, 0], "x2": x[:, 1], "g1": g[:, 0], "g2": g[:, 1]}).to_csv(path, index=False)
    return path


TINY = [
    "--set",
    "samples=400",
    "--set",
    "validation_samples=100",
    "--set",
    "steps=15",
    "--set",
    "test_side=10",
    "--set",
    "starts=1",
    "--set",
    "lm_iterations=4",
    "--set",
    "lm_starts=2",
]


def test_list_and_show(capsys):
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert "field2d-convex" in out
    assert "terrain" in out
    code, out, _ = call(capsys, "show", "terrain")
    assert code == 0
    for word in ("gradnet", "interpolation", "noise", "settings", "--seeds"):
        assert word in out


def test_run_resume_and_report(capsys, tmp_path):
    folder = tmp_path / "run"
    command = ["run", "field2d-convex", "--seeds", 1, "--out", folder, *TINY]
    code, out, _ = call(capsys, *command)
    assert code == 0
    assert "Report:" in out
    assert (folder / "report.html").exists()
    code, _, err = call(capsys, *command)
    assert code == 2
    assert "--resume" in err
    code, out, _ = call(capsys, *command, "--resume")
    assert code == 0
    code, out, _ = call(capsys, "report", folder)
    assert code == 0
    assert "gradnet-c" in out


def test_arms_can_be_chosen_and_join_later(capsys, tmp_path):
    folder = tmp_path / "run"
    command = ["run", "field2d-convex", "--seeds", 1, "--out", folder, *TINY]
    code, out, _ = call(capsys, *command, "--arms", "gradnet-m,affine")
    assert code == 0
    assert "gradnet-m" in out
    assert "gradnet-c" not in out
    code, out, _ = call(capsys, *command, "--arms", "gradnet-c-lm", "--resume")
    assert code == 0
    assert "gradnet-m" in out
    assert "gradnet-c-lm" in out
    code, _, err = call(capsys, *command, "--arms", "gradnet-x", "--resume")
    assert code == 2
    assert "'gradnet-c'" in err


def test_data_by_name(capsys):
    code, out, _ = call(capsys, "data", "list")
    assert code == 0
    for word in ("fashion-mnist", "MIT", "NABLANETS_DATA", "scikit-learn"):
        assert word in out
    code, out, _ = call(capsys, "data", "get", "digits")
    assert code == 0
    assert "licence: BSD-3" in out
    assert str(Path("sklearn", "datasets", "data")) in out


def test_fit_apply_verify(capsys, tmp_path, samples):
    model, applied = tmp_path / "m.safetensors", tmp_path / "out.parquet"
    code, out, _ = call(capsys, "fit", samples, "--out", model, "--steps", 400, "--hidden", 16, "--monotone")
    assert code == 0
    assert "validation error -" in out
    code, out, _ = call(capsys, "apply", model, samples, "--out", applied)
    assert code == 0
    assert "error against the gradients" in out
    table = pd.read_parquet(applied)
    assert list(table.columns) == ["x1", "x2", "g1", "g2", "f1", "f2", "potential"]
    assert float((table.f1 - table.g1).abs().mean() / table.g1.abs().mean()) < 0.05
    code, out, _ = call(capsys, "verify", model, samples)
    assert code == 0
    assert "passed" in out
    code, out, _ = call(capsys, "verify", model)
    assert code == 0
    assert load(model).monotone


def test_columns_by_name(capsys, tmp_path, samples):
    renamed = tmp_path / "named.npz"
    table = pd.read_csv(samples)
    np.savez(renamed, lon=table.x1, lat=table.x2, slope=table.g1, tilt=table.g2)
    names = ["--x-columns", "lon,lat", "--g-columns", "slope,tilt"]
    model = tmp_path / "m.safetensors"
    assert call(capsys, "fit", renamed, "--out", model, "--steps", 20, "--network", "gradnet-m", *names)[0] == 0
    assert call(capsys, "apply", model, renamed, *names)[0] == 0
    assert "potential" in np.load(tmp_path / "named-applied.npz").files


def test_a_model_that_breaks_its_promise_fails_verification(capsys, tmp_path):
    net = GradNetC(2, 4, monotone=True).double()
    with torch.no_grad():
        net.linear.diagonal_raw.fill_(torch.nan)
    net.save(tmp_path / "m.safetensors")
    assert call(capsys, "verify", tmp_path / "m.safetensors")[0] == 1


def test_export(capsys, tmp_path):
    GradNetM(2, 4).save(tmp_path / "m.safetensors")
    out = tmp_path / "field.py"
    code, printed, _ = call(capsys, "export", tmp_path / "m.safetensors", "--format", "numpy", "--out", out)
    assert code == 0
    assert "field.weights.npz: differs from the map by" in printed
    assert runpy.run_path(str(out))["potential"](np.zeros((5, 2))).shape == (5,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "field2d-convx"], "'field2d-convex'"),
        (["run", "terrain", "--preset", "papre"], "'paper'"),
        (["run", "terrain", "--set", "second=3"], "'seconds'"),
        (["run", "terrain", "--set", "seconds=fast"], "expected a float"),
        (["show", "terain"], "'terrain'"),
        (["report", "nowhere"], "not a run folder"),
        (["verify", "missing.safetensors"], "no model file"),
        (["fit", "missing.csv", "--out", "m.safetensors"], "no file missing.csv"),
        (["apply", "broken.safetensors", "samples.csv"], "truncated"),
        (["fit", "samples.csv", "--out", "m.safetensors", "--network", "gradnet-d"], "choose gradnet-"),
        (["fit", "samples.csv", "--out", "m.safetensors", "--activation", "tan"], "'tanh'"),
        (["fit", "samples.csv", "--out", "m.safetensors", "--g-columns", "g1"], "2 point columns but 1"),
        (["fit", "samples.csv", "--out", "samples.csv/m.safetensors", "--steps", "1"], "cannot write"),
        (["apply", "three.safetensors", "samples.csv"], "takes 3 features"),
        (["verify", "mlp.safetensors"], "no gradient map"),
        (["export", "three.safetensors", "--format", "nunpy", "--out", "f.py"], "'numpy'"),
        (["export", "three.safetensors", "--format", "numpy", "--out", "f.onnx"], "ends in .py"),
        (["run", "field2d-convex", "--out", "samples.csv/run"], "cannot write"),
        (["data", "get", "fashion-mnits"], "'fashion-mnist'"),
    ],
)
def test_errors_teach_and_leave_nothing_behind(capsys, samples, monkeypatch, arguments, message):
    folder = samples.parent
    monkeypatch.chdir(folder)
    (folder / "broken.safetensors").write_bytes(b"\0" * 20)
    GradNetM(3, 4).save(folder / "three.safetensors")
    save(MLP(2, 3), folder / "mlp.safetensors")
    before = sorted(p.name for p in folder.iterdir())
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err
    assert sorted(p.name for p in folder.iterdir()) == before


def test_unknown_commands_and_options_get_the_nearest(capsys):
    code, _, err = call(capsys, "rum", "terrain")
    assert code == 2
    assert "run" in err
    code, _, err = call(capsys, "run", "terrain", "--sed", "3")
    assert code == 2
    assert "--seeds" in err


FLAGS = {
    "list": set(),
    "show": set(),
    "run": {"--arms", "--jobs", "--preset", "--out", "--seeds", "--resume", "--set"},
    "report": set(),
    "fit": {
        "--out", "--network", "--hidden", "--depth", "--activation", "--monotone", "--steps", "--lr", "--batch-size",
        "--validation", "--seed", "--checkpoint", "--x-columns", "--g-columns",
    },
    "apply": {"--out", "--x-columns", "--g-columns"},
    "verify": {"--points", "--x-columns"},
    "export": {"--format", "--out"},
    "data list": set(),
    "data get": set(),
    "upscale": {"--out", "--scale", "--model", "--memory", "--megapixels", "--precision"},
    "train super-resolution": {
        "--data", "--out", "--validation", "--scale", "--blocks", "--width", "--skip", "--seconds", "--lr", "--batch-size",
        "--patch", "--precision", "--devices", "--seed", "--checkpoint",
    },
}  # fmt: skip


def test_commands_and_flags_are_frozen():
    """People and scripts rely on these names: a change here is a decision, not an accident."""
    commands = {}
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        commands |= {name: command} if inner is None else {f"{name} {n}": c for n, c in inner.items()}
    flags = {n: {o for p in c.params for o in p.opts if o.startswith("--")} - {"--help"} for n, c in commands.items()}
    assert flags == FLAGS


def test_ctrl_c_keeps_finished_parts_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "nablanets", "run", "field2d-convex", "--seeds", "1", "--out", str(folder)]
    command += ["--set", "steps=300", "--set", "samples=2000", "--set", "lm_iterations=30"]
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 (jobs in the background ignore it)
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(Path(folder).glob("models/*.safetensors")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume" in output
    assert "Traceback" not in output
    finished = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment, check=True)
    assert "Report:" in finished.stdout
