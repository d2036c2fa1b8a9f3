"""`nablanets fit` without choices: a model, a page and errors in the units of the data."""

import csv
import re

import numpy as np
import pytest
import torch

from nablanets import load
from tests.commands import call

COLUMNS = ["--x-columns", "id [A],iq [A]", "--g-columns", "psi_d [Vs],psi_q [Vs]"]


def flux(currents):
    """A machine that saturates, symmetric in iq: the gradient of a convex co-energy."""
    size = np.sqrt(1 + (currents**2).sum(axis=1, keepdims=True) / 100)
    return 0.01 * currents / size + np.array([0.3, 0.0])


@pytest.fixture
def machine(tmp_path):
    """Files with rows on a grid, rows between, and falling rows with a column of groups."""
    axis = np.linspace(-20, 20, 9)
    nodes = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    between = np.random.default_rng(0).uniform(-18, 18, (50, 2))
    header = "id [A],iq [A],psi_d [Vs],psi_q [Vs]"
    for name, points, sign in (("map", nodes, 1), ("rest", between, 1), ("falling", between, -1)):
        rows = np.hstack([points, sign * flux(points)])
        np.savetxt(tmp_path / f"{name}.csv", rows, delimiter=",", header=header, comments="")
    lines = (tmp_path / "falling.csv").read_text().splitlines()
    grouped = [lines[0] + ",run"] + [f"{line},{k % 5}" for k, line in enumerate(lines[1:])]
    (tmp_path / "grouped.csv").write_text("\n".join(grouped))
    return tmp_path


def test_a_table_becomes_a_verified_model_and_a_page(capsys, machine):
    model, page, history = machine / "m.safetensors", machine / "m.html", machine / "h.csv"
    arguments = ["--out", model, "--seconds", 4, "--test", machine / "rest.csv", "--history", history]
    code, out, _ = call(capsys, "fit", machine / "map.csv", *arguments, *COLUMNS)
    assert code == 0
    assert "lines of a grid" in out
    assert "Certificate: passed" in out
    rmse = [float(value) for value in re.findall(r"psi_[dq] +│ +(\S+) Vs", out)]
    assert len(rmse) == 4  # held out, and on the test file
    assert max(rmse[2:]) < 1e-3
    rest = np.loadtxt(machine / "rest.csv", delimiter=",", skiprows=1)
    net = load(model).double()
    with torch.no_grad():
        predicted = net(torch.from_numpy(rest[:, :2])).numpy()
    own = np.sqrt(((predicted - rest[:, 2:]) ** 2).mean(axis=0))
    assert rmse[2:] == pytest.approx(own.tolist(), rel=1e-2)
    text = page.read_text()
    for part in ("psi_d", "Errors on the test file", "What was tried", "data:image/png;base64,", "affine"):
        assert part in text
    with history.open() as file:
        assert next(csv.reader(file)) == ["step", "seconds", "training_error", "validation_error"]
    code, out, _ = call(capsys, "apply", model, machine / "rest.csv")
    assert code == 0
    assert re.search(r"psi_d +│ +\S+ Vs", out)


def test_falling_samples_and_groups(capsys, machine):
    model = machine / "m.safetensors"
    arguments = ["--out", model, "--seconds", 1, "--monotone", "auto", "--group-column", "run"]
    code, out, _ = call(capsys, "fit", machine / "grouped.csv", *arguments, *COLUMNS)
    assert code == 0
    assert "The samples decrease" in out
    assert "1 of 5 groups" in out
    x = torch.rand(20, 2, dtype=torch.double)
    assert bool((load(model).double().jacobian(x).eigvalsh() < 0).all())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--monotone", "rising"], "--monotone: expected increasing, decreasing or auto"),
        (["--group-column", "runs"], "no column 'runs'"),
        (["--seconds", "0"], "budget"),
        (["--seconds", "nan"], "budget"),
        (["--report", "map.csv"], "--report: map.csv is the file"),
        (["--history", "m"], "--history"),
        (["--test", "none.csv"], "no file none.csv"),
        (["--hidden", "8", "--group-column", "id [A]"], "--group-column: works with the search only"),
        (["--optimizer", "lbgfs"], "lbfgs"),
    ],
)
def test_bad_options_write_nothing(capsys, machine, monkeypatch, arguments, message):
    monkeypatch.chdir(machine)
    before = sorted(machine.iterdir())
    code, _, err = call(capsys, "fit", "map.csv", "--out", "m", *COLUMNS, *arguments)
    assert code == 2
    assert message in err
    assert sorted(machine.iterdir()) == before


def test_settings_of_a_network_train_that_network(capsys, machine):
    model = machine / "m.safetensors"
    arguments = ["--out", model, "--hidden", 4, "--depth", 1, "--steps", 30, "--monotone", "increasing"]
    code, out, _ = call(capsys, "fit", machine / "map.csv", *arguments, *COLUMNS)
    assert code == 0
    assert "trains one gradnet-m" in out
    assert not (machine / "m.html").exists()
    assert load(model).monotone
