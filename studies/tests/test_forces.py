"""Planets and ethanol: the data, and short versions of both experiments with assertions about their results."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev
from torch.testing import assert_close

from nablanets.errors import DataFileError, InvalidInputError, UnknownNameError
from nablanets.maps import Quadratic
from nablanets_studies.catalog import find_experiment
from nablanets_studies.dynamics.molecule_arms import MoleculeConfig
from nablanets_studies.dynamics.molecule_measures import molecular_dynamics, scan_work
from nablanets_studies.dynamics.solar_arms import SolarConfig, load
from nablanets_studies.machinery.report import write_report
from nablanets_studies.machinery.runner import run_experiment
from nablanets_studies.problems import ephemeris
from nablanets_studies.problems.ephemeris import BODIES, INVERSE_MASSES, KILOMETRES, SUN_GM, load_ephemeris
from nablanets_studies.problems.molecules import BOLTZMANN, MASS_UNIT, load_ethanol, turned

# One worker runs this module, so that its runs are made once.
pytestmark = pytest.mark.xdist_group("forces")


def test_the_planets_obey_newton_and_keep_their_angular_momentum():
    planets, masses = load_ephemeris(), 1 / np.array(INVERSE_MASSES)
    delta = planets.positions[:, :, None] - planets.positions[:, None]
    cubes = (np.linalg.norm(delta, axis=-1) + np.eye(len(BODIES))) ** -3 * (1 - np.eye(len(BODIES)))
    newton = -SUN_GM * np.einsum("tijx,tij,j->tix", delta, cubes, masses)
    size = np.linalg.norm(planets.accelerations, axis=-1)
    error = np.linalg.norm(newton - planets.accelerations, axis=-1) / size
    assert error[:, 1:].max() < 3e-7
    momentum = np.einsum("b,tbx->tx", masses, np.cross(planets.positions, planets.velocities))
    assert np.abs(momentum - momentum[0]).max() < 1e-7 * np.abs(momentum).max()


def test_the_evaluation_of_chebyshev_series_and_its_derivatives():
    def cubic(days):
        return 1e6 + 300 * days - 2 * days**2 + 0.01 * days**3

    coefficients = np.empty((3, 2, 4))
    for interval in range(2):
        nodes = chebyshev.chebpts1(8)
        days = 10 * interval + 5 * (nodes + 1)
        coefficients[:, interval] = chebyshev.chebfit(nodes, cubic(days), 3)
    times = np.array([100.0, 103.0, 110.0, 119.5])
    days = times - 100
    position, velocity, acceleration = ephemeris._evaluate((100.0, 10.0, coefficients), times)
    assert np.allclose(position[:, 0] * KILOMETRES, cubic(days), rtol=1e-12)
    assert np.allclose(velocity[:, 1] * KILOMETRES, 300 - 4 * days + 0.03 * days**2)
    assert np.allclose(acceleration[:, 2] * KILOMETRES, -4 + 0.06 * days)
    with pytest.raises(DataFileError, match=r"from 100.0 to 120.0"):
        ephemeris._evaluate((100.0, 10.0, coefficients), np.array([121.0]))


def test_errors_about_ephemerides_teach(tmp_path):
    with pytest.raises(DataFileError, match="not a readable SPK file"):
        ephemeris.read_spk(tmp_path / "missing.bsp", np.array([2451545.0]))
    with pytest.raises(InvalidInputError, match="sample or de421"):
        load(SolarConfig(source="de430"))


def test_ethanol_is_what_it_says():
    ethanol = load_ethanol()
    forces = ethanol.test.forces.unflatten(-1, (9, 3))
    assert float(forces.sum(dim=1).abs().max()) < 1e-4
    moments = torch.linalg.cross(ethanol.test.positions.unflatten(-1, (9, 3)), forces).sum(dim=1)
    assert float(moments.abs().max()) < 1e-2
    overlap = torch.cdist(ethanol.training.positions[:200], ethanol.test.positions[:200])
    assert float(overlap.min()) > 0.1
    for scan in ethanol.scans.values():
        assert float((scan.energies[-1] - scan.energies[0]).abs()) < 1e-5
        assert 0.05 < float(scan.energies.max() - scan.energies.min()) < 0.2


def test_turning_a_group_keeps_its_shape_and_comes_back():
    x = load_ethanol().test.positions[0].double()
    path = turned(x, "hydroxyl", torch.tensor([0.0, 1.0, 2 * torch.pi]))
    assert_close(path[0], x)
    assert_close(path[2], x, rtol=0, atol=1e-6)
    bond = (path.unflatten(-1, (9, 3))[:, 3] - path.unflatten(-1, (9, 3))[:, 2]).norm(dim=-1)
    assert_close(bond, bond[:1].expand(3))
    assert float((path[1] - x).norm()) > 0.3


def test_work_along_a_scan_is_a_difference_of_potentials():
    net = Quadratic(27).double()
    path = load_ethanol().scans["methyl"].positions
    with torch.no_grad():
        assert_close(scan_work(net, path), net.potential(path) - net.potential(path[0]))


def test_molecular_dynamics_of_springs_has_the_temperature_it_starts_with():
    """Units: hydrogens and carbons at 500 K move with sqrt(kT/m), so kinetic energies are 3/2 kT per atom."""
    data = load_ethanol()
    config = MoleculeConfig(trajectories=200, picoseconds=0.001)
    _, _, kinetic = molecular_dynamics(config, torch.nn.Linear(27, 27).double(), data, 0)
    assert abs(float(kinetic[0]) / 1000 / (13.5 * BOLTZMANN * 500) - 1) < 0.05
    assert 103.6 < MASS_UNIT < 103.7


@pytest.fixture(scope="module")
def molecule_run(tmp_path_factory):
    experiment = find_experiment("molecule")
    config = experiment.preset("quick")
    return (
        experiment,
        config,
        run_experiment(experiment, config, preset="quick", seeds=1, out=tmp_path_factory.mktemp("m")),
    )


def test_molecule_forces_are_learned_and_conservative(molecule_run):
    _, _, run = molecule_run
    metrics = {row.arm.removesuffix("-100"): row.metrics for row in run.rows()}
    assert max(m["force_mae"] for m in metrics.values()) < 250
    assert metrics["gradnet-c"]["force_mae"] < 140
    assert metrics["gradnet-c"]["energy_mae"] < 60
    for arm, values in metrics.items():
        assert values["rotation"] < 1e-10
        assert (values["turn_work"] > 5) == (arm == "direct-pairs")
        assert (values["loop"] > 1e-6) == (arm == "direct-pairs")
        assert ("energy_mae" in values) == ("drift" in values) == (arm != "direct-pairs")


def test_conclusions_about_the_molecule_follow_from_the_numbers(molecule_run):
    experiment, config, run = molecule_run
    first, *_ = experiment.conclusions(config, run)
    _edit(run, "mlp-potential-100", "force_mae", 0.5)
    changed, *_ = experiment.conclusions(config, run)
    assert "mlp-potential-100 has 0.5" in changed
    assert "times less" in changed
    assert changed != first
    _edit(run, "gradnet-c-100", "turn_work", 7.0)
    assert "gradnet-c-100 (7 meV)" in experiment.conclusions(config, run)[1]


@pytest.fixture(scope="module")
def solar_run(tmp_path_factory):
    experiment = find_experiment("solar-system")
    config = experiment.preset("quick")
    return (
        experiment,
        config,
        run_experiment(experiment, config, preset="quick", seeds=1, out=tmp_path_factory.mktemp("s")),
    )


def test_gm_is_recovered_without_the_law(solar_run):
    _, _, run = solar_run
    metrics = {row.arm: row.metrics for row in run.rows()}
    assert metrics["radial"]["gm_error"] < 1e-4
    assert abs(metrics["radial"]["exponent"] + 2) < 1e-4
    assert metrics["mlp-3d"]["gm_error"] > 1e-4
    assert metrics["newton"]["gm_error"] < 1e-6
    assert abs(metrics["newton"]["mass_jupiter"]) < 1e-5
    assert abs(metrics["newton"]["mass_earth"]) < 1e-3
    assert metrics["newton"]["position"] < metrics["radial"]["position"] < 100
    assert metrics["mlp-3d"].get("position", float("inf")) > 1000  # no position: a planet left


def test_conclusions_about_the_planets_follow_from_the_numbers(solar_run):
    experiment, config, run = solar_run
    first = experiment.conclusions(config, run)
    assert first[0].endswith("radial; not: mlp-3d.")
    _edit(run, "radial", "gm_error", 1e-3)
    assert experiment.conclusions(config, run)[0].endswith("none; not: radial, mlp-3d.")
    page = write_report(experiment, config, run).read_text(encoding="utf-8")
    assert "Masses of the planets" in page
    assert page.count("data:image/png;base64,") == 3


def test_unknown_methods_get_the_nearest():
    for name, method in (("molecule", "gradnet-x"), ("solar-system", "nbody")):
        experiment = find_experiment(name)
        with pytest.raises(UnknownNameError, match="n-body" if method == "nbody" else "gradnet-c"):
            experiment.arms(replace(experiment.preset("quick"), methods=(method,)))


def _edit(run, arm, metric, value):
    path = run.path / "results.json"
    content = json.loads(path.read_text())
    for row in content["rows"]:
        if row["arm"] == arm:
            row["metrics"][metric] = value
    path.write_text(json.dumps(content))
