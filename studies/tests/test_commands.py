"""The commands of the studies as a user meets them: results, messages, exit codes, and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.commands import call, flags_of

from nablanets_studies.catalog import find_experiment
from nablanets_studies.cli import COMMANDS
from nablanets_studies.machinery.base import override

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "field2d-convx"], "'field2d-convex'"),
        (["run", "terrain", "--preset", "papre"], "'paper'"),
        (["run", "terrain", "--set", "second=3"], "'seconds'"),
        (["run", "terrain", "--set", "seconds=fast"], "expected a float"),
        (["run", "terrain", "--set", "seconds=1e999"], "finite"),
        (["run", "sinusoid", "--set", "other_frequencies=eight"], "expected a int like 0"),
        (["upscale", "samples.csv", "--memory", "nan"], "--memory: expected a positive finite"),
        (["upscale", "samples.csv", "--memory", "inf"], "--memory: expected a positive finite"),
        (["upscale", "samples.csv", "--memory", "-1"], "--memory: expected a positive finite"),
        (["upscale", "samples.csv", "--megapixels", "nan"], "--megapixels: expected a positive"),
        (["train", "super-resolution", "--data", ".", "--out", "m", "--seed", "9" * 20], "--seed"),
        (["show", "terain"], "'terrain'"),
        (["report", "nowhere"], "not a run folder"),
        (["run", "field2d-convex", "--out", "samples.csv/run"], "cannot write"),
        (["data", "get", "fashion-mnits"], "'fashion-mnist'"),
    ],
)
def test_errors_teach_and_leave_nothing_behind(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples.csv").write_text("x1,g1\n1,1\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


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
    assert flags_of(COMMANDS) == FLAGS


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


def test_a_setting_that_is_an_empty_tuple_can_be_set():
    config = override(find_experiment("sinusoid").preset("quick"), ["other_frequencies=8, 16"])
    assert config.other_frequencies == (8, 16)
    assert override(config, ["other_frequencies="]).other_frequencies == ()
