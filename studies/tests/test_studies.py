"""The studies of activations and of efficiency: quick runs with assertions about results that do not depend on time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nablanets.activations import ACTIVATIONS, GroupActivation
from nablanets_studies.catalog import find_experiment
from nablanets_studies.fields.activation_arms import GRADIENT_ARMS, TARGETS, gradient_arms
from nablanets_studies.fields.activation_findings import ActivationFindings
from nablanets_studies.fields.activation_results import ActivationResults
from nablanets_studies.fields.efficiency_arms import FEATURES, MODES
from nablanets_studies.fields.efficiency_metrics import EfficiencyMetrics
from nablanets_studies.fields.efficiency_results import EfficiencyResults
from nablanets_studies.machinery import costs
from nablanets_studies.machinery.costs import growth_exponent, interleaved_times, peak_bytes
from nablanets_studies.machinery.runner import run_experiment
from nablanets_studies.machinery.store import Row

pytestmark = pytest.mark.xdist_group("studies")


def _quick(name, tmp_path_factory):
    experiment = find_experiment(name)
    config = experiment.preset("quick")
    run = run_experiment(experiment, config, preset="quick", seeds=1, out=tmp_path_factory.mktemp("run"))
    return experiment, config, run, {row.arm: row.metrics for row in run.rows()}


@pytest.fixture(scope="module")
def activations(tmp_path_factory):
    return _quick("activations", tmp_path_factory)


@pytest.fixture(scope="module")
def efficiency(tmp_path_factory):
    return _quick("efficiency", tmp_path_factory)


def test_every_activation_is_in_the_study():
    arms = find_experiment("activations").arms(find_experiment("activations").preset("paper"))
    groups = {name for name, cls in ACTIVATIONS.items() if issubclass(cls, GroupActivation)}
    assert {f"m-{name}" for name in ACTIVATIONS} | {f"c-{name}" for name in ACTIVATIONS.keys() - groups} <= set(arms)
    assert {"affine", "mlp-tanh", "mlp-relu", "mlp-potential"} <= set(arms)
    assert set(find_experiment("activations").preset("paper").targets) == set(TARGETS)


def test_every_smooth_monotone_activation_beats_the_affine_map(activations):
    _, config, run, metrics = activations
    affine = metrics["affine"]["convex_db"]
    for arm in gradient_arms(config.activations):
        if GRADIENT_ARMS[arm].can_be_monotone and GRADIENT_ARMS[arm].kind not in ("piecewise linear", "linear"):
            assert metrics[arm]["convex_db"] < affine - 1, arm
            assert metrics[arm]["convex_failures"] == 0, arm
    for arm in ("c-identity", "m-identity"):
        assert metrics[arm]["convex_db"] == pytest.approx(affine, abs=0.2)
    assert all(
        350 <= row.parameters <= config.parameters for row in run.rows() if row.arm not in ("affine", "identified")
    )


def test_gradient_maps_are_symmetric_to_rounding_and_mlps_are_not(activations):
    _, config, _, metrics = activations
    for arm in (*gradient_arms(config.activations), "mlp-potential"):
        assert metrics[arm]["asymmetry32"] < 2e-6, arm
        assert metrics[arm]["asymmetry64"] < 1e-14, arm
    for arm in ("mlp-tanh", "mlp-relu"):
        assert min(metrics[arm]["asymmetry32"], metrics[arm]["asymmetry64"]) > 1e-2


def test_subgradients_are_learned_and_networks_stay_bounded(activations):
    _, config, _, metrics = activations
    ours = {arm: metrics[arm] for arm in gradient_arms(config.activations)}
    legal = [m for arm, m in ours.items() if GRADIENT_ARMS[arm].can_be_monotone]
    assert min(m["max-affine_db"] for m in legal) < metrics["affine"]["max-affine_db"] - 4
    assert min(m["max-affine_away_db"] for m in legal) < metrics["affine"]["max-affine_away_db"] - 6
    assert metrics["identified"]["max-affine_away_db"] < -12
    assert max(m["max-affine_overshoot"] for m in ours.values()) < 3
    assert all(m["convex_potential"] < 0.05 for m in ours.values() if m["convex_db"] < -15)


def test_the_page_says_what_the_numbers_say(activations):
    experiment, config, run, metrics = activations
    page = (run.path / "report.html").read_text(encoding="utf-8")
    ours = {arm: metrics[arm]["convex_db"] for arm in gradient_arms(config.activations)}
    best = min(ours, key=ours.get)
    assert f"convex: the best gradient network is {best} ({ours[best]:.1f} dB)" in page
    for title in ("Conclusions", "By kind of activation", "Non-differentiable targets", "Stability over seeds"):
        assert title in page
    assert len(experiment.conclusions(config, run)) == page.count("<li>")


def _row(arm: str, seed: int, error: float, asymmetry: float = 1e-16) -> Row:
    metrics = {"convex_db": error, "failures": 0.25 * (error > 0), "asymmetry32": asymmetry, "asymmetry64": asymmetry}
    return Row(arm, seed, 100, 1.0, metrics)


def test_conclusions_turn_with_the_numbers():
    def said(ours: tuple[float, float], theirs: tuple[float, float], asymmetry: float) -> str:
        rows = [_row("c-tanh", seed, e, asymmetry) for seed, e in enumerate(ours)]
        rows += [_row("mlp-tanh", seed, e, 0.1) for seed, e in enumerate(theirs)]
        rows += [_row("affine", seed, -5.0) for seed in range(2)]
        found = ActivationFindings.of(ActivationResults(["convex"], rows))
        return " ".join(find_experiment("activations").prose.paragraphs("conclusions", found=found))

    good = said((-30.0, -31.0), (-20.0, -21.0), 1e-16)
    assert "ahead by 10.0 dB, more than the spread" in good
    assert "not better than the affine map (-5.0 ± 0.0 dB): none" in good
    assert "above the tolerance of rounding, 1e-08, are: none" in good
    assert "seeds and rates: none" in good
    bad = said((1.0, 3.0), (-20.0, -21.0), 1e-2)
    assert "behind by 22.5 dB" in bad
    assert "(-5.0 ± 0.0 dB): c-tanh" in bad
    assert "above the tolerance of rounding, 1e-08, are: c-tanh" in bad
    assert "c-tanh 25%" in bad
    assert "within the spread" in said((-30.0, -20.0), (-26.0, -25.0), 1e-16)


def test_all_networks_learn_the_equal_task_within_their_budget(efficiency):
    experiment, config, _, metrics = efficiency
    assert list(metrics) == experiment.arms(config)
    for arm, values in metrics.items():
        for budget in config.budgets:
            assert 0.75 * budget <= values[f"parameters_{budget}"] <= budget
            assert values[f"db_{budget}"] < -12, arm
    assert metrics["autograd-potential"]["db"] == pytest.approx(metrics["mlp-potential"]["db"], abs=3)


def test_memory_grows_as_it_must(efficiency):
    """Memory does not depend on the machine: linear in the batch; autograd holds more than a closed form."""
    _, _, _, metrics = efficiency
    for values in metrics.values():
        assert 0.9 < values["memory_forward_b_exponent"] <= 1.001
        assert 0.85 < values["memory_step_b_exponent"] <= 1.001
        assert 0.4 < values["memory_step_d_exponent"] < 1.1
        assert values["memory_forward_task"] < values["memory_step_task"]
    assert metrics["autograd-potential"]["memory_step_task"] > metrics["mlp-potential"]["memory_step_task"]
    assert metrics["mlp"]["memory_step_task"] == min(v["memory_step_task"] for v in metrics.values())


def test_the_page_of_costs_follows_from_its_numbers(efficiency):
    experiment, config, run, metrics = efficiency
    page = (run.path / "report.html").read_text(encoding="utf-8")
    order = sorted(metrics, key=lambda arm: metrics[arm]["db"])
    steps = next(
        line for line in experiment.conclusions(config, run) if line.startswith("At equal parameters and steps")
    )
    assert steps.startswith(
        f"At equal parameters and steps the order is {order[0]} {metrics[order[0]]['db']:.1f}, {order[1]}"
    )
    for title in ("Growth with d; exponents over 128 to 512", "Growth with batch", "Accuracy by parameters"):
        assert title in page
    found = EfficiencyResults(config, run)
    sizes = config.growth(FEATURES)
    assert [size.value for size in sizes] == list(config.features)
    assert all(found.seconds(arm, mode, size) > 0 for arm in metrics for mode in MODES for size in sizes)
    full, quarter = found.equal_time(), found.equal_time(0.25)
    assert all(full[arm].mean <= quarter[arm].mean for arm in quarter)


def test_costs_are_read_as_they_were_written(efficiency):
    _, config, run, metrics = efficiency
    for row in run.rows():
        read = EfficiencyMetrics.from_metrics(config, row.metrics)
        assert read.to_metrics(config) == row.metrics
    values = metrics["mlp"]
    assert values["step_d16_ratio"] == values["step_d16"] / values["step_d16_reference"]


def test_calls_take_turns_and_short_ones_are_repeated():
    now, order = [0.0], []

    def call(name: str, seconds: float):
        def run() -> None:
            now[0] += seconds
            order.append(name)

        return run

    runs = [call("a", 1.0), call("b", 3.0)]
    assert interleaved_times(runs, 3, warm_up=1, clock=lambda: now[0]) == [1.0, 3.0]
    assert "".join(order) == "ab" + "aabb" + "bbaa" + "aabb"
    order.clear()
    assert interleaved_times(runs, 2, warm_up=0, at_least=3.0, clock=lambda: now[0]) == [1.0, 3.0]
    assert "".join(order) == "ab" + "aaab" + "baaa"


def test_peak_memory_counts_what_is_held():
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x) == 0
    assert peak_bytes(lambda: x.view(10, 100)) == 0
    assert peak_bytes(lambda: (x + 1) + (x + 2)) == 12_000
    assert peak_bytes(lambda: [x + k for k in range(5)]) == 20_000

    def one_after_the_other() -> None:
        for k in range(5):
            x.add(k)

    assert peak_bytes(one_after_the_other) == 4000
    layers = nn.Sequential(*(nn.Tanh() for _ in range(4)))
    leaf = torch.zeros(1000, requires_grad=True)
    saved = peak_bytes(lambda: layers(leaf).sum().backward())
    assert 4 * 4000 <= saved <= 7 * 4000
    with torch.no_grad():
        assert peak_bytes(lambda: layers(leaf)) <= 2 * 4000


def test_exponents_are_those_of_power_laws():
    sizes = np.array([2, 16, 128])
    assert growth_exponent(sizes, 3.0 * sizes**1.5) == pytest.approx(1.5)
    assert growth_exponent(sizes, [7.0, 7.0, 7.0]) == pytest.approx(0.0)


def test_steps_of_the_timing_train():
    net = nn.Linear(2, 2)
    x = torch.rand(50, 2)
    before = net.weight.detach().clone()
    costs.training_step(net, x)()
    assert not torch.equal(net.weight, before)
    costs.forward_pass(net, x)()
    assert torch.is_grad_enabled()
