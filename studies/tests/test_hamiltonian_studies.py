"""The experiments on Hamiltonian systems: short runs, what they must show, and what their pages say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nablanets.dynamics import FieldSystem, HamiltonianSystem, SeparableHamiltonian, SympNet, rotate_back
from nablanets.dynamics.verify import symplecticity_error
from nablanets.errors import InvalidInputError, UnknownNameError
from nablanets.maps import GradNetC, Quadratic
from nablanets_studies.catalog import find_experiment
from nablanets_studies.dynamics.arms import TWO_BODY, ZOO, as_system, build, draw_orbits, targets
from nablanets_studies.dynamics.findings import compare_group
from nablanets_studies.dynamics.metrics import LongRun, OrbitMetrics, distance_curve, follow, gradient_db, long_run
from nablanets_studies.machinery.metrics import Measured, measured
from nablanets_studies.machinery.runner import run_experiment
from nablanets_studies.problems.gravity import TwoBody
from nablanets_studies.problems.mechanics import MassSpring

# One worker runs this module, so that its runs are made once.
pytestmark = pytest.mark.xdist_group("hamiltonian")

_TWO_BODY = find_experiment("two-body").preset("quick")


@pytest.fixture(scope="module")
def two_body(tmp_path_factory):
    out = tmp_path_factory.mktemp("two-body")
    return run_experiment(find_experiment("two-body"), _TWO_BODY, preset="quick", seeds=1, out=out)


def test_structure_pays_by_orders_of_magnitude(two_body):
    found = {each.arm: each.metrics for each in measured(two_body.rows(), OrbitMetrics)}
    radial = found["radial-gradnet-c"]
    assert radial.gradient_db < found["hnn"].gradient_db - 20
    assert radial.gradient_db < -30
    assert radial.trajectory < 0.2 * min(found[arm].trajectory for arm in ("hnn", "mlp", "sympnet"))
    assert radial.long.angular_band < 1e-10
    assert radial.long.lost == 0
    assert len(radial.long.windows) == 10
    assert len(radial.distances) == _TWO_BODY.points
    assert found["pair-gradnet-t"].gradient_db < -10
    assert found["sympnet"].gradient_db is None


def test_the_page_of_two_body_says_what_the_numbers_say(two_body):
    page = (two_body.path / "report.html").read_text(encoding="utf-8")
    best = next(r for r in two_body.rows() if r.arm == "radial-gradnet-c").metrics["gradient_db"]
    assert f"gradient error {best:.1f} dB (radial-gradnet-c)" in page
    assert page.count("data:image/png;base64,") == 3
    (sheet,) = find_experiment("two-body").sheets(_TWO_BODY, two_body)
    band = {row[0]: float(row[2]) for row in sheet.rows}
    assert band["rk4"] > 5 * band["gauss4"]


def test_the_quick_zoo_learns(tmp_path):
    experiment = find_experiment("hamiltonian-zoo")
    run = run_experiment(experiment, experiment.preset("quick"), preset="quick", seeds=1, out=tmp_path)
    errors = {row.arm: row.metrics.get("gradient_db", 0.0) for row in run.rows()}
    for arm in ("pendulum-gradnet-c", "pendulum-gradnet-t", "pendulum-separable-gradnet-t", "henon-heiles-gradnet-c"):
        assert errors[arm] < -30, errors


def test_the_zoo_runs_and_its_networks_learn(tmp_path):
    config = replace(
        find_experiment("hamiltonian-zoo").preset("quick"),
        problems=("mass-spring",),
        orbits=40,
        steps=40,
        lm_steps=30,
        periods=2,
    )
    experiment = find_experiment("hamiltonian-zoo")
    assert experiment.arms(config) == [f"mass-spring-{name}" for name in ZOO]
    arms = [f"mass-spring-{name}" for name in ("gradnet-c", "gradnet-t", "icnn", "separable-gradnet-c")]
    run = run_experiment(experiment, config, preset="quick", seeds=1, out=tmp_path, arms=arms)
    metrics = {row.arm.removeprefix("mass-spring-"): row.metrics for row in run.rows()}
    for arm in ("gradnet-c", "gradnet-t", "separable-gradnet-c"):
        assert metrics[arm]["gradient_db"] < -40  # its linear term is the answer
        assert metrics[arm]["trajectory"] < 0.05
    assert "mass-spring, plain: gradient error" in (run.path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(UnknownNameError, match="'pendulum'"):
        find_experiment("hamiltonian-zoo").arms(replace(config, problems=("pendlum",)))


@pytest.mark.parametrize("name", TWO_BODY)
def test_every_arm_is_what_its_name_says(name):
    arm, config = TWO_BODY[name], find_experiment("two-body").preset("paper")
    net = build(arm, config, 8)
    system = as_system(arm, net)
    kinds = {"derivative": FieldSystem, "flow": SympNet, "gradient": HamiltonianSystem}
    assert isinstance(system, kinds[arm.learns])
    assert isinstance(system, SeparableHamiltonian) == (arm.structure.name in ("pair", "radial"))
    size = sum(p.numel() for p in net.parameters())
    budget = {
        "plain": config.parameters,
        "pair": config.structured_parameters + 4,
        "radial": config.radial_parameters + 4,
    }
    assert 0.85 * budget[arm.structure.name] < size <= budget[arm.structure.name]
    x = TwoBody().sample(6, torch.Generator().manual_seed(0))
    if arm.structure.name != "plain":
        assert float(system(x)[:, 4:].unflatten(1, (2, 2)).sum(dim=1).abs().max()) < 1e-12  # momentum is conserved
    if arm.structure.name == "radial":
        force, r = system(x)[:, 4:6], x[:, :2] - x[:, 2:4]
        assert float((force[:, 0] * r[:, 1] - force[:, 1] * r[:, 0]).abs().max()) < 1e-12


def test_orbits_are_split_whole_and_targets_fit_them():
    problem, config = TwoBody(), replace(_TWO_BODY, orbits=50)
    orbits = draw_orbits(problem, config, 0)
    assert [part.shape[1] for part in orbits[:3]] == [36, 4, 10]
    x, v = targets(TWO_BODY["mlp"], problem, orbits.train)
    gradient = targets(TWO_BODY["hnn"], problem, orbits.train)[1]
    torch.testing.assert_close(rotate_back(v), gradient)
    now, then = targets(TWO_BODY["sympnet"], problem, orbits.train)
    torch.testing.assert_close(problem.trajectory(now[:3], [0.0, orbits.times[1]])[1], then[:3], rtol=0, atol=1e-8)
    assert len(x) == 36 * config.points
    assert not torch.equal(draw_orbits(problem, config, 1).test, orbits.test)


def test_metrics_on_systems_that_are_known():
    exact = HamiltonianSystem(Quadratic.from_diagonal(torch.ones(2), torch.zeros(2)).double())
    wrong = HamiltonianSystem(Quadratic.from_diagonal(torch.full((2,), 1.1), torch.zeros(2)).double())
    x = MassSpring().sample(20, torch.Generator().manual_seed(0))
    assert gradient_db(exact, MassSpring(), x) < -250
    expected = 10 * np.log10(float((0.1 * x).square().sum(-1).mean()))
    assert gradient_db(wrong, MassSpring(), x) == pytest.approx(expected, abs=1e-5)
    times = torch.linspace(0, 6, 13).tolist()
    truth = MassSpring().trajectory(x, times)
    assert float(distance_curve(follow(exact, x, times, step=0.05), truth).max()) < 1e-5
    late = distance_curve(follow(wrong, x, times, step=0.05), truth)
    assert float(late[-1]) > 0.1 > float(late[0]) == 0
    assert float(distance_curve(torch.full_like(truth, torch.nan), truth).mean()) == 3
    run = long_run(exact, MassSpring(), x[:2], 2 * np.pi, 5, 0.1)
    assert run.energy_band < 1e-6
    assert run.lost == 0
    decaying = FieldSystem(torch.nn.Linear(2, 2, bias=False), 2).double()
    with torch.no_grad():
        decaying.field.weight.copy_(torch.tensor([[-0.01, 1.0], [-1.0, -0.01]]))
    drifting = long_run(decaying, MassSpring(), x[:2], 2 * np.pi, 5, 0.1)
    assert drifting.trend > 0.7
    assert drifting.energy_band == pytest.approx(1 - np.exp(-0.02 * 10 * np.pi), rel=0.01)


def test_conclusions_follow_the_rows():
    def results(ours, theirs, ratio):
        found = []
        for seed in range(3):
            for arm, db, way in (("a", ours, 0.01), ("b", theirs, 0.01 * ratio), ("c", theirs + 1, ratio)):
                long = LongRun(lost=0.0)
                metrics = OrbitMetrics(processor=1.0, gradient_db=db + 0.1 * seed, trajectory=way, long=long)
                found.append(Measured(arm, seed, metrics))
        return found

    def sentence(group):
        experiment = find_experiment("two-body")
        (text,) = experiment.prose.paragraphs("conclusions", experiment=experiment, config=_TWO_BODY, found=[group])
        return text

    good = sentence(compare_group("Test", results(-50, -30, 8), ["a"], ["b", "c"]))
    assert "-49.9 ± 0.1 dB (a) against -29.9 ± 0.1 dB (b): ahead by 20.0 dB" in good
    assert "8 times smaller. The aim of 11 dB and 5 times is reached." in good
    bad = sentence(compare_group("Test", results(-30, -31, 0.5), ["a"], ["b"]))
    assert "behind by 1.0 dB" in bad
    assert "2 times larger. The aim of 11 dB and 5 times is not reached." in bad
    assert compare_group("Test", results(-50, -30, 8), ["a"], ["x"]) is None


def test_symplectic_maps_of_shears():
    net = SympNet([GradNetC(2, 5, 1) for _ in range(3)]).double()
    x = torch.randn(4, 4).double()
    assert symplecticity_error(net, x) < 1e-12
    assert net.iterate(x, 3).shape == (4, 4, 4)
    torch.testing.assert_close(net.iterate(x, 2)[2], net(net(x)))
    with pytest.raises(InvalidInputError, match="one number of features"):
        SympNet([GradNetC(2, 5, 1), GradNetC(3, 5, 1)])
