"""The command line as a user meets it: results, messages, exit codes, and no traceback."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import nablanets
from nablanets import GradNetC, GradNetM, load
from nablanets.cli import commands
from nablanets.cli.commands import LIBRARY
from nablanets.serialization import save
from tests.commands import call, flags_of
from tests.peers import PeerMLP


@pytest.fixture
def samples(tmp_path):
    x = np.random.default_rng(0).uniform(10, 30, (300, 2))
    g = x @ np.array([[2.0, 0.5], [0.5, 1.0]])
    path = tmp_path / "samples.csv"
    pd.DataFrame({"x1": x[:, 0], "x2": x[:, 1], "g1": g[:, 0], "g2": g[:, 1]}).to_csv(path, index=False)
    return path


def test_fit_apply_verify(capsys, tmp_path, samples):
    model, applied = tmp_path / "m.safetensors", tmp_path / "out.parquet"
    code, out, _ = call(
        capsys, "fit", samples, "--out", model, "--steps", 400, "--hidden", 16, "--monotone", "increasing"
    )
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
    assert (
        call(capsys, "fit", renamed, "--out", model, "--steps", 20, "--network", "gradnet-m", "--force", *names)[0] == 0
    )
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
        (["verify", "missing.safetensors"], "no model file"),
        (["fit", "missing.csv", "--out", "m.safetensors"], "no file missing.csv"),
        (["verify", "m" * 300], "no model file m"),
        (["fit", "m" * 300 + ".csv", "--out", "m"], "no file m"),
        (["apply", "broken.safetensors", "samples.csv"], "truncated"),
        (["fit", "samples.csv", "--out", "m.safetensors", "--network", "gradnet-d"], "choose gradnet-"),
        (["fit", "samples.csv", "--out", "m.safetensors", "--activation", "tan"], "'tanh'"),
        (["fit", "samples.csv", "--out", "m.safetensors", "--seed", "9" * 20], "--seed"),
        (["fit", "samples.csv", "--out", "m.safetensors", "--hidden", "9" * 20], "--hidden"),
        (["fit", "samples.csv", "--out", "m.safetensors", "--depth", "9" * 20], "--depth"),
        (["fit", "samples.csv", "--out", "m.safetensors", "--batch-size", "9" * 20], "--batch-size"),
        (["verify", "three.safetensors", "--points", "9" * 20], "--points"),
        (["fit", "samples.csv", "--out", "m.safetensors", "--g-columns", "g1"], "2 point columns but 1"),
        (["fit", "samples.csv", "--out", "samples.csv/m.safetensors", "--steps", "1", "--force"], "cannot write"),
        # The table is missing too: what cannot be written is noticed before anything is read, let alone trained.
        (["fit", "missing.csv", "--out", "."], "--out: cannot write .: . is a folder"),
        (["fit", "missing.csv", "--out", "samples.csv/new/m.safetensors"], "Not a directory"),
        (["fit", "missing.csv", "--out", "/proc/none/m.safetensors"], "--out: cannot write /proc/none/m.safetensors"),
        (["fit", "missing.csv", "--out", "m" * 300], "File name too long"),
        (["fit", "missing.csv", "--out", "new/m.safetensors"], "no file missing.csv"),
        (["fit", "missing.csv", "--out", "m", "--checkpoint", "samples.csv/c"], "--checkpoint: cannot write"),
        (["fit", "missing.csv", "--out", "m", "--checkpoint", "m"], "--checkpoint: m is the file"),
        (["export", "three.safetensors", "--format", "numpy", "--out", "/proc/f.py"], "--out: cannot write"),
        (["apply", "three.safetensors", "samples.csv"], "takes 3 features"),
        (["verify", "mlp.safetensors"], "no gradient map"),
        (["export", "three.safetensors", "--format", "nunpy", "--out", "f.py"], "'numpy'"),
        (["export", "three.safetensors", "--format", "numpy", "--out", "f.onnx"], "ends in .py"),
    ],
)
def test_errors_teach_and_leave_nothing_behind(capsys, samples, monkeypatch, arguments, message):
    folder = samples.parent
    monkeypatch.chdir(folder)
    (folder / "broken.safetensors").write_bytes(b"\0" * 20)
    GradNetM(3, 4).save(folder / "three.safetensors")
    save(PeerMLP(2, 3), folder / "mlp.safetensors")
    before = sorted(p.name for p in folder.iterdir())
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err
    assert sorted(p.name for p in folder.iterdir()) == before


FLAGS = {
    "fit": {
        "--out", "--network", "--hidden", "--depth", "--activation", "--monotone", "--steps", "--lr", "--batch-size",
        "--seconds", "--test", "--group-column", "--report", "--history", "--optimizer",
        "--validation", "--seed", "--checkpoint", "--force", "--x-columns", "--g-columns", "--separator",
    },
    "apply": {"--out", "--x-columns", "--g-columns", "--f-columns", "--potential-column", "--separator"},
    "verify": {"--points", "--x-columns", "--separator"},
    "export": {"--format", "--out", "--precision"},
}  # fmt: skip


def test_commands_and_flags_are_frozen():
    """People and scripts rely on these names: a change here is a decision, not an accident."""
    assert flags_of(LIBRARY) == FLAGS


def test_unknown_commands_and_options_get_the_nearest(capsys):
    code, _, err = call(capsys, "fti", "samples.csv")
    assert code == 2
    assert "'fit'" in err
    code, _, err = call(capsys, "fit", "samples.csv", "--hiden", "3")
    assert code == 2
    assert "--hidden" in err


def test_help_lists_commands_and_the_version_is_printed(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name in FLAGS:
        assert f" {name} " in out
    code, out, _ = call(capsys, "--version")
    assert code == 0
    assert out == f"nablanets {nablanets.__version__}"


def test_commands_of_the_studies_are_explained_where_they_are_missing(capsys, monkeypatch):
    monkeypatch.setattr(commands, "entry_points", lambda group: [])
    code, _, err = call(capsys, "run", "terrain")
    assert code == 2
    assert "pip install 'nablanets[studies]'" in err


def test_commands_that_cannot_be_imported_do_not_take_the_others_with_them(capsys, monkeypatch):
    broken = EntryPoint("broken", "nowhere.to.be.found:COMMANDS", commands.GROUP)
    monkeypatch.setattr(commands, "entry_points", lambda group: [broken])
    code, out, err = call(capsys, "--help")
    assert code == 0
    assert " fit " in out
    assert "nowhere.to.be.found:COMMANDS cannot be imported" in err


#: Makes the import of torch end as Ctrl-C at that moment would end it.
INTERRUPTED_AT_TORCH = """
import sys


class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise KeyboardInterrupt


sys.meta_path.insert(0, Interrupting())
"""
SCRIPT = "import sys\nfrom nablanets.cli import main\nsys.exit(main())\n"


@pytest.mark.parametrize("start", [["-m", "nablanets"], ["nablanets"]])
def test_ctrl_c_while_starting_is_quiet(tmp_path, start):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED_AT_TORCH)
    (tmp_path / "nablanets").write_text(SCRIPT)
    path = os.pathsep.join([str(tmp_path), str(Path(nablanets.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    arguments = start if start[0] == "-m" else [str(tmp_path / "nablanets")]
    done = subprocess.run(
        [sys.executable, *arguments, "--version"], check=False, capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_programs_that_use_the_library_keep_their_traceback(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED_AT_TORCH)
    path = os.pathsep.join([str(tmp_path), str(Path(nablanets.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", "import nablanets"], check=False, capture_output=True, text=True, env=environment
    )
    assert "KeyboardInterrupt" in done.stderr
