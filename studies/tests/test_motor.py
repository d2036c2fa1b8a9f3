"""The motor study: reading flux maps, what is measured, and a short run with an assertion about its results."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from nablanets.errors import DataFileError, ExportError, InvalidInputError
from nablanets.maps import GradNetC, GradNetM
from nablanets_studies.catalog import find_experiment
from nablanets_studies.fields import motor_timing
from nablanets_studies.fields.motor import in_units
from nablanets_studies.fields.motor_arms import METHODS, Candidate, Method, MotorConfig, Trained, learn
from nablanets_studies.fields.motor_measures import MotorMetrics, find, measure, sides
from nablanets_studies.fields.motor_timing import nanoseconds_in_c
from nablanets_studies.machinery.metrics import Measured, measured
from nablanets_studies.machinery.runner import run_experiment
from nablanets_studies.problems.motor import Bases, FluxMap, load_flux_map, model_machine, torque

# One worker runs this module, so that its run is made once.
pytestmark = pytest.mark.xdist_group("motor")

BASES = Bases(10.0, 0.5)


def test_flux_maps_are_read_from_arrays_and_tables(tmp_path):
    machine = model_machine()
    complex_parts = [torch.complex(*part.unbind(dim=1)).reshape(21, 27) for part in (machine.currents, machine.fluxes)]
    complex_parts[0][3, 4] = complex(np.nan, 0.0)
    np.savez(tmp_path / "map.npz", i_s_dq=complex_parts[0].numpy(), psi_s_dq=complex_parts[1].numpy())
    read = load_flux_map(tmp_path / "map.npz")
    kept = [row for row in range(567) if row != 3 * 27 + 4]
    assert torch.equal(read.currents, machine.currents[kept])
    assert torch.equal(read.fluxes, machine.fluxes[kept])
    rows = torch.cat([machine.fluxes, machine.currents], dim=1).tolist()
    text = "\n".join(",".join(repr(number) for number in row) for row in rows)
    (tmp_path / "map.csv").write_text(f"psi_d,psi_q,id,iq\n{text}\n")
    from_table = load_flux_map(tmp_path / "map.csv")
    assert torch.equal(from_table.currents, machine.currents)
    assert torch.equal(from_table.fluxes, machine.fluxes)


def test_other_files_are_refused_with_what_is_missing(tmp_path):
    np.savez(tmp_path / "map.npz", i_s_dq=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK but not a zip")
    (tmp_path / "map.csv").write_text("id,iq,psi_d\n1,2,3\n")
    for name, words in (
        ("map.npz", "psi_s_dq"),
        ("broken.npz", "cannot be read"),
        ("map.csv", "psi_q"),
        ("no.npz", "no such"),
    ):
        with pytest.raises(DataFileError, match=words):
            load_flux_map(tmp_path / name)
    with pytest.raises(InvalidInputError, match="stride"):
        model_machine().split(300)


def test_the_model_machine_is_a_monotone_gradient():
    """Its Jacobian by differences over the grid is symmetric and positive definite."""
    machine = model_machine()
    currents = machine.currents.reshape(21, 27, 2)
    d_step = machine.fluxes.reshape(21, 27, 2)[1, 0, 0] - machine.fluxes.reshape(21, 27, 2)[0, 0, 0]
    q_step = machine.fluxes.reshape(21, 27, 2)[0, 1, 1] - machine.fluxes.reshape(21, 27, 2)[0, 0, 1]
    by_d = (currents[2:, 1:-1] - currents[:-2, 1:-1]) / (2 * d_step)
    by_q = (currents[1:-1, 2:] - currents[1:-1, :-2]) / (2 * q_step)
    jacobian = torch.stack([by_d, by_q], dim=-1)
    assert float((jacobian - jacobian.mT).abs().max()) < 2e-2 * float(jacobian.abs().max())
    assert float(torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2).min()) > 10


def test_the_numbers_are_those_of_their_definition():
    """A map that is off by a known amount, in units: flux linkages 0.01 p.u. too large in d."""
    machine, _ = model_machine().split(20)
    x, g, base = sides(machine, BASES, "flux")
    torch.testing.assert_close(x * 10.0, machine.currents)
    assert base == 0.5
    off = torch.tensor([0.01, 0.0], dtype=torch.float64)
    # Around each point the map is a rotation, whose Jacobian is antisymmetric: J - J' is twice J.
    metrics = measure(lambda points: _lookup(x, g, points) + off, None, machine, BASES, "flux", 3)
    assert metrics.rmse == pytest.approx(0.01 / 2**0.5)
    assert metrics.rmse_in_units == pytest.approx(0.005 / 2**0.5)
    assert metrics.largest == pytest.approx(0.01)
    expected = torque(machine.currents, torch.tensor([[0.005, 0.0]]), 3).square().mean().sqrt()
    assert metrics.torque_rmse == pytest.approx(float(expected))
    assert metrics.certified_least is None
    assert metrics.asymmetry == pytest.approx(2.0)


def _lookup(x, g, points):
    """The value of the nearest known point, and a rotation around it."""
    nearest = torch.cdist(points, x).argmin(dim=1)
    away = points - x[nearest]
    return g[nearest] + torch.stack([-away[:, 1], away[:, 0]], dim=1)


def test_a_map_in_units_is_the_same_map():
    torch.manual_seed(0)
    net = GradNetM(2, 4, 2, monotone=True).double()
    machine = model_machine()
    for direction, given, base in (("flux", machine.currents, 0.5), ("current", machine.fluxes, 10.0)):
        x, _, _ = sides(machine, BASES, direction)
        model = in_units(net, BASES, direction)
        torch.testing.assert_close(model(given), base * net(x))
        assert model.monotone


def test_cross_validation_chooses_by_rows_that_were_not_learned_from():
    """A candidate that knows its training rows by heart and nothing else loses to a constant."""
    x, g = torch.rand(20, 2, dtype=torch.float64), torch.ones(20, 2, dtype=torch.float64)

    def by_heart(config, points, values, seed):
        def predict(where):
            distance = torch.cdist(where, points)
            return torch.where((distance.amin(dim=1) == 0).unsqueeze(1), values[distance.argmin(dim=1)], 5.0)

        return Trained(predict, None, 0)

    def constant(config, points, values, seed):
        return Trained(lambda where: torch.full_like(where, 1.1), None, 0)

    method = Method("two", [Candidate("by heart", by_heart), Candidate("constant", constant)])
    chosen = learn(method, MotorConfig(), x, g, 0)
    assert chosen.name == "constant"
    assert chosen.validation_rmse == pytest.approx(0.1)


@pytest.fixture(scope="module")
def motor_run(tmp_path_factory):
    experiment = find_experiment("motor-map")
    config = replace(experiment.preset("quick"), iterations=30, starts=2, halving=15, budget=1.0, calls_in_c=0)
    arms = [
        f"{direction}-{name}"
        for direction in ("flux", "current")
        for name in ("gradnet-m", "linear-table", "cubic-rbf")
    ]
    arms = ["flux-autofit", "flux-inverse-m", *arms]
    folder = tmp_path_factory.mktemp("run")
    return experiment, config, run_experiment(experiment, config, preset="quick", seeds=1, out=folder, arms=arms)


def test_gradient_networks_learn_the_machine_and_its_inverse(motor_run):
    experiment, config, run = motor_run
    by_arm = {result.arm: result.metrics for result in measured(run.rows(), MotorMetrics)}
    for direction in ("flux", "current"):
        ours = by_arm[f"{direction}-gradnet-m"]
        assert ours.rmse < 0.5 * by_arm[f"{direction}-linear-table"].rmse
        assert ours.inverse_error < 1e-10
        assert ours.asymmetry < 1e-6 < by_arm[f"{direction}-cubic-rbf"].asymmetry
        assert ours.c_nanoseconds is None
        assert 0 < ours.certified_least <= ours.least_slope <= ours.largest_slope <= ours.certified_largest
    # How good it is, and which kind of map, depends on the speed of the machine; that the map increases does not.
    assert by_arm["flux-autofit"].least_slope > 0
    assert by_arm["flux-autofit"].asymmetry < 1e-6
    inverse = by_arm["flux-inverse-m"]
    assert inverse.rmse < 0.5 * by_arm["flux-linear-table"].rmse
    assert inverse.inverse_error < 1e-10
    found = experiment.findings(config, run)
    assert [each.name for each in found] == ["flux", "current"]
    assert found[0].peer.method == "cubic-rbf"
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "not a measurement" in page
    assert page.count("data:image/png;base64,") == 3
    assert sorted(path.stem for path in (run.path / "models").iterdir()) == [
        "current-gradnet-m-0",
        "flux-autofit-0",
        "flux-gradnet-m-0",
        "flux-inverse-m-0",
    ]
    model = run.load_model("flux-gradnet-m", 0)
    machine = load_flux_map()
    with torch.no_grad():
        error = (model(machine.currents) - machine.fluxes).square().mean().sqrt()
    assert float(error) < 0.02


def test_the_sentences_turn_with_the_numbers():
    experiment = find_experiment("motor-map")

    def sentences(ours: float, theirs: float) -> str:
        numbers = {"gradnet-m": ours, "mlp": theirs, "mirrored-m": 1e-6}
        results = []
        for name, rmse in numbers.items():
            metrics = MotorMetrics(
                rmse=rmse,
                rmse_in_units=rmse,
                largest=rmse,
                torque_rmse=rmse,
                asymmetry=0.0,
                least_slope=1.0,
                largest_slope=2.0,
            )
            results.append(Measured(f"flux-{name}", 0, metrics))
        found = find(results)
        assert found[0].ours.method == "gradnet-m"
        return " ".join(experiment.prose.paragraphs("conclusions", found=found, config=None, experiment=experiment))

    assert "ahead, by a factor of 2.00" in sentences(0.001, 0.002)
    assert "behind, by a factor of 4.00" in sentences(0.004, 0.001)


def test_small_networks_have_at_most_a_hundred_parameters():
    x, g, _ = sides(model_machine().split(10)[0], BASES, "flux")
    config = MotorConfig(iterations=1, starts=1, mlp_steps=1)
    small = [
        method
        for method in METHODS.values()
        if (method.gradient and method.name != "autofit") or method.name == "small-mlp"
    ]
    assert len(small) == 5
    for method in small:
        for candidate in method.candidates:
            assert candidate.train(config, x, g, 0).parameters <= 100, candidate.name


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")
def test_the_time_of_a_call_in_c_is_measured(monkeypatch):
    net = GradNetC(2, 2, 1, monotone=True).double()
    x = model_machine().fluxes
    assert 1 < nanoseconds_in_c(net, x, 1000) < 1e6

    def refuse(*args):
        raise ExportError("no word for it")

    monkeypatch.setattr(motor_timing, "export", refuse)
    assert nanoseconds_in_c(net, x, 1000) is None


def test_points_are_split_without_overlap():
    machine = model_machine()
    known, held_out = machine.split(10)
    assert (len(known), len(held_out)) == (57, 510)
    assert isinstance(known, FluxMap)
    assert torch.equal(known.fluxes, machine.fluxes[::10])
    assert not set(map(tuple, known.fluxes.tolist())) & set(map(tuple, held_out.fluxes.tolist()))
