"""The sinusoid study: its networks, their training as one program, the tests it makes, and its page."""

from __future__ import annotations

import html
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from nablanets import GradientResidual
from nablanets.errors import InvalidInputError, UnknownNameError
from nablanets.fitting import FitSettings, fit, fit_many
from nablanets.parameters import count_parameters
from nablanets_studies.catalog import find_experiment
from nablanets_studies.machinery.comparison import compare, holm
from nablanets_studies.machinery.runner import run_experiment
from nablanets_studies.machinery.store import RunFolder
from nablanets_studies.problems.sinusoid import Sinusoid
from nablanets_studies.residual.arms import ARMS
from nablanets_studies.sinusoid.ablation import CHANGES, AblationFindings, effects
from nablanets_studies.sinusoid.arms import METHODS, Arm, SinusoidConfig, choose, train
from nablanets_studies.sinusoid.experiment_findings import AtFrequency, SinusoidFindings, against_standard, claim
from nablanets_studies.sinusoid.nets import VARIANTS, SinusoidNet
from nablanets_studies.sinusoid.search import AtFrequency as SearchedAt
from nablanets_studies.sinusoid.search import SearchFindings, verdict

# One worker runs this module, so that its run is made once.
pytestmark = pytest.mark.xdist_group("sinusoid")

_SMALL = replace(
    find_experiment("sinusoid").preset("quick"),
    frequencies=(1,), rates=(3e-3,), width=16, steps=200, batch_size=30, trial_steps=60, trial_seeds=1, validation_samples=100,
    first_scale=1.0, slots=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("sinusoid")
    return run_experiment(find_experiment("sinusoid"), _SMALL, preset="quick", seeds=4, out=out)


def test_the_clear_cases_come_out(run):
    """Zero has a test MSE of 0.5; SIREN would need a lower rate, and Fourier features of high frequency fewer steps."""
    errors = {m: [r.metrics["test_mse"] for r in run.rows() if r.arm == f"{m}-1"] for m in METHODS}
    assert all(len(values) == 4 and len(set(values)) == 4 for values in errors.values())
    mean = {method: np.mean(values) for method, values in errors.items()}
    assert max(mean[method] for method in (*ARMS, "wider")) < 0.1
    assert mean["standard"] < 0.03
    assert mean["standard"] < 0.5 * mean["standard-torch"]
    for row in (r for r in run.rows() if r.arm not in ("siren-1", "fourier-1")):
        assert row.metrics["validation_mse"] == pytest.approx(row.metrics["test_mse"] + 0.01, abs=0.05)


def test_the_page_states_what_the_numbers_say(run):
    page = html.unescape((run.path / "report.html").read_text(encoding="utf-8"))
    standard = np.mean([r.metrics["test_mse"] for r in run.rows() if r.arm == "standard-1"])
    assert f"the standard skip has a test MSE of {standard:.4f}" in page
    assert page.count("data:image/png;base64,") == 2
    sheet, budgets = find_experiment("sinusoid").sheets(_SMALL, run)
    assert [f"{row[0]}-1" for row in budgets.rows] == [row[0] for row in sheet.rows]
    curves = {m: [run.history(f"{m}-1", seed)[:50] for seed in range(4)] for m in ("pure", "standard")}
    half = {m: [min(row.validation_error for row in rows) for rows in each] for m, each in curves.items()}
    pure = next(row for row in budgets.rows if row[0] == "pure")
    assert pure[3].startswith(f"{np.mean(half['pure']) / np.mean(half['standard']):.2f} (")
    assert "d = 1: not converged, in that" in page
    assert "the paper's claim, gradient residual better than standard skip with p < 0.01, holds" in page
    assert [row[0] for row in sheet.rows] == [f"{m}-1" for m in METHODS if m != "standard"]
    fourier = np.mean([r.metrics["test_mse"] for r in run.rows() if r.arm == "fourier-1"])
    assert {row[0]: row[1] for row in sheet.rows}["fourier-1"] == f"{fourier / standard:.3f}"
    assert len(run.histories()) == 4 * len(METHODS)


def test_a_kept_network_has_the_error_of_its_row(run):
    x, y = Sinusoid(1).grid(_SMALL.test_points)
    for method in ("gradient-full", "fourier", "random"):
        row = next(r for r in run.rows() if (r.arm, r.seed) == (f"{method}-1", 0))
        with torch.no_grad():
            error = float((run.load_model(f"{method}-1", 0)(x) - y).square().mean())
        assert error == pytest.approx(row.metrics["test_mse"], rel=1e-4)
    assert len(list((run.path / "models").iterdir())) == len(METHODS)


def test_a_resumed_arm_trains_only_the_missing_seeds_and_to_the_same_numbers(tmp_path):
    experiment = find_experiment("sinusoid")
    config = replace(_SMALL, methods=("gradient",), steps=20, rates=(3e-3,))
    whole = run_experiment(experiment, config, preset="quick", seeds=3, out=tmp_path / "whole")
    parts = RunFolder.begin(tmp_path / "parts", whole.description(), resume=False)
    first = whole.rows()[0]
    parts.add(first, whole.load_model("gradient-1", 0))
    trained = []
    original = experiment.run_arm
    experiment.run_arm = lambda c, arm, seeds, report: trained.append(seeds) or original(c, arm, seeds, report)
    try:
        resumed = run_experiment(experiment, config, preset="quick", seeds=3, out=parts.path, resume=True)
    finally:
        del experiment.run_arm
    assert trained == [[1, 2]]
    assert [r.metrics for r in resumed.rows()] == [r.metrics for r in whole.rows()]


def test_two_jobs_give_the_numbers_of_one(tmp_path):
    config = replace(_SMALL, methods=("standard", "gradient"), steps=20)
    runs = [
        run_experiment(
            find_experiment("sinusoid"), config, preset="quick", seeds=2, out=tmp_path / str(jobs), jobs=jobs
        )
        for jobs in (1, 2)
    ]
    one, two = ([(r.arm, r.seed, r.metrics) for r in each.rows()] for each in runs)
    assert one == two
    curves = [{part: [row.validation_error for row in rows] for part, rows in r.histories().items()} for r in runs]
    assert curves[0] == curves[1]
    x = torch.linspace(-1, 1, 9).unsqueeze(1)
    assert torch.equal(runs[0].load_model("gradient-1", 0)(x), runs[1].load_model("gradient-1", 0)(x))
    with pytest.raises(InvalidInputError, match="one job"):
        run_experiment(find_experiment("sinusoid"), config, preset="quick", seeds=2, out=tmp_path / "0", jobs=0)


@pytest.mark.parametrize("method", ["gradient", "gradient-full", "gradient-probe", "magnitude", "random"])
def test_the_batched_program_trains_each_seed_as_a_loop_would(method):
    x, y = (t.double() for t in Sinusoid(4).sample(200, torch.Generator().manual_seed(0)))
    settings = FitSettings(steps=30, batch_size=20, seed=5)

    def build():
        return SinusoidNet(method, 8, 2, alpha=1.0).double()

    members = fit_many(build, x, y, seeds=[2, 5], validation=(x, y), settings=settings)
    torch.manual_seed(5)
    net = build()
    before = net(x).detach()
    result = fit(net, x, y, validation=(x, y), settings=settings, progress=False)
    torch.testing.assert_close(members[1].net(x), net(x), rtol=1e-8, atol=1e-9)
    assert members[1].result.best_validation_error == pytest.approx(result.best_validation_error, rel=1e-8)
    assert not torch.allclose(net(x), before, atol=1e-3)
    assert not torch.allclose(members[0].net(x), net(x), atol=1e-3)


def test_arms_have_the_parameters_they_should():
    count = {method: count_parameters(SinusoidNet(method)) for method in METHODS}
    plain = 6 * (64 * 64 + 64) + 2 * 64 + 65
    extra = {"scalar": 3, "gradient-probe": 3 * 64, "fourier": -128}
    assert {m: n - plain for m, n in count.items() if m != "wider"} == {
        m: extra.get(m, 0) for m in METHODS if m != "wider"
    }
    products = 6 * 78 * 78 / (6 * 64 * 64)
    assert products == pytest.approx(1.5, rel=0.02)
    assert count["wider"] == 6 * (78 * 78 + 78) + 2 * 78 + 79
    with pytest.raises(UnknownNameError, match="'gradient'"):
        SinusoidNet("gradiant")


def test_every_arm_carries_what_its_name_says():
    x = torch.randn(7, 16)
    s = torch.sigmoid(torch.tensor(1.0))

    def skip(method):
        torch.manual_seed(0)
        layer = SinusoidNet(method, 16, 1, alpha=1.0).layers[1]
        assert isinstance(layer, GradientResidual)
        return layer(x) - layer.block(x), layer

    def unit(g):
        return g / g.norm(dim=-1, keepdim=True)

    g = skip("gradient")[1].gradient(x)
    expected = {
        "standard": x,
        "no-skip": 0 * x,
        "scalar": x,
        "damped": (1 - s) * x,
        "pure": unit(g),
        "gradient": (1 - s) * x + s * unit(g),
        "gradient-probe": (1 - s) * x + s * unit(g),
        "gradient-full": (1 - s) * x + s * g,
    }
    for method, value in expected.items():
        torch.testing.assert_close(skip(method)[0], value, rtol=1e-4, atol=1e-5)
    vector = (skip("random")[0] - (1 - s) * x) / s
    torch.testing.assert_close(vector.norm(dim=-1), torch.ones(7), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vector, vector[:1].expand(7, 16), rtol=1e-4, atol=1e-5)


def test_rates_and_alphas_are_chosen_by_validation_error():
    config = replace(_SMALL, rates=(1e-7, 3e-3), alphas=(-3.0, 3.0))
    assert choose(config, Arm("fourier", 1)) == (0.0, 3e-3)
    chosen = choose(config, Arm("gradient", 1))
    errors = {
        (alpha, m.settings.learning_rate): m.result.best_validation_error
        for alpha in config.alphas
        for m in train(config, Arm("gradient", 1), alpha, config.rates, [1000], steps=config.trial_steps, slots=2)
    }
    assert chosen == min(errors, key=errors.__getitem__)
    assert choose(config, Arm("alpha-low", 1)).alpha == 0.0  # has an alpha of its own
    assert float(SinusoidNet("alpha-low").layers[1].alpha) == -3


def test_each_seed_has_its_own_noise_and_all_arms_of_a_seed_the_same():
    def first_errors(method, seeds):
        members = train(_SMALL, Arm(method, 1), 0.0, [1e-9], seeds, steps=1, slots=4)
        return [m.result.history[0].validation_error for m in members]

    same = {m: first_errors(m, [0, 1]) for m in ("standard", "damped")}
    assert same["standard"][0] != same["standard"][1]
    assert first_errors("standard", [1])[0] == same["standard"][1]


@pytest.mark.parametrize("method", list(VARIANTS))
def test_every_variant_trains_and_back_propagates_as_its_cost_says(method):
    torch.manual_seed(0)
    net, x = SinusoidNet(method, 8, 2), torch.rand(20, 1)
    y = net(x)
    grads = torch.autograd.grad(y.square().sum(), list(net.parameters()))
    assert y.shape == (20, 1) and all(g.isfinite().all() for g in grads)
    variant = VARIANTS[method]
    count = len(
        [p for p in net.layers if isinstance(p, GradientResidual) and p.skip in ("gradient", "pure", "magnitude")]
    )
    assert variant.carries == (count > 0 or method == "probe-several")
    full = any(isinstance(p, GradientResidual) and p.skip == "gradient" and not p.stop_gradient for p in net.layers)
    assert full == ("full" in method)


def test_several_probes_add_up():
    torch.manual_seed(0)
    layer = SinusoidNet("probe-several", 8, 1).layers[1]
    x = torch.randn(5, 8)
    g = 0
    for v, m in zip(layer.probes, layer.mixture, strict=True):
        each = GradientResidual(layer.block, probe=v[0].detach()).gradient(x)
        g = g + m * each / each.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(layer(x), layer.block(x) + (x + g) / 2)


def test_equal_compute_gives_cheaper_arms_more_steps():
    config = replace(_SMALL, equal_compute=True)
    steps = {
        m: train(config, Arm(m, 1), 0.0, [1e-3], [0], steps=60, slots=1)[0].result.steps
        for m in ("standard", "gradient", "gradient-full")
    }
    assert steps == {"standard": 90, "gradient": round(60 * 1.5 * 6 / 7), "gradient-full": 60}


def test_paired_tests_find_a_shift_and_not_a_difference_of_seeds():
    rng = np.random.default_rng(0)
    seeds = rng.normal(1, 0.3, 30)
    arms = {"shifted": seeds - 0.05 + rng.normal(0, 0.05, 30), "same": seeds + rng.normal(0, 0.05, 30), "equal": seeds}
    found = compare(seeds, arms)
    assert max(found["shifted"].p_t, found["shifted"].p_wilcoxon) < 0.01 < 0.05 < found["same"].p_t
    assert stats.ttest_ind(arms["shifted"], seeds).pvalue > 0.1
    assert found["shifted"].interval[0] < -0.05 < found["shifted"].interval[1] < 0
    assert found["shifted"].median_ratio == pytest.approx(np.median(arms["shifted"]) / np.median(seeds))
    assert found["shifted"].effect == pytest.approx(-1, abs=0.4)
    assert found["equal"] == (1.0, 1.0, 0.0, (0.0, 0.0), 0.0, 1.0, 1.0)
    alone = compare(seeds, {"shifted": arms["shifted"]})["shifted"]
    assert alone.p_t == pytest.approx(stats.ttest_rel(arms["shifted"], seeds).pvalue)
    assert found["shifted"].p_t == pytest.approx(3 * alone.p_t)
    assert holm({"a": 0.03, "b": 0.02}) == {"a": 0.04, "b": 0.04}
    with pytest.raises(InvalidInputError, match="at least three pairs"):
        compare([1.0, 2.0], {"a": [1.0, 2.0]})


def _said(name, found):
    """The conclusions of an experiment in words."""
    return find_experiment(name).prose.paragraphs("conclusions", found=found)


def _conclusions(d, errors):
    return _said("sinusoid", SinusoidFindings([AtFrequency(d, against_standard(errors), [], None)]))


def test_conclusions_follow_the_errors():
    rng = np.random.default_rng(0)
    standard = [value for value in rng.uniform(0.2, 0.3, 5) for _ in range(2)]

    def times(factor):
        return [factor * value * (1 + 0.01 * (-1) ** k) for k, value in enumerate(standard)]

    good = _conclusions(16, {"standard": standard, "damped": times(1.5), "gradient": times(0.4), "scalar": times(1.0)})
    assert (
        "better than it: gradient (0.40); worse than it: damped (1.50); not distinguishable from it: scalar" in good[0]
    )
    assert (
        "gradient, has 0.40 times the mean test MSE (0.40 times the median) of the best control of its size, s"
        in good[1]
    )
    assert good[1].count("at most half") == 1
    bad = _conclusions(16, {"standard": standard, "damped": times(0.5), "gradient": times(0.7)})
    assert (
        "gradient, has 1.40 times the mean test MSE (1.40 times the median) of the best control of its size, damped"
        in bad[1]
    )
    assert "more than half" in bad[1]
    lucky = [0.1 * standard[0], *(0.9 * standard[k] + 0.3 * (k % 2) for k in range(1, 10))]
    assert "the difference is significant" in good[1]
    assert "the difference is not significant" in _conclusions(16, {"standard": standard, "gradient": lucky})[1]
    assert "too few seeds" in _conclusions(16, {"standard": standard[:2], "gradient": standard[:2]})[0]


def _times(values, factor):
    return [factor * value * (1 + 0.01 * (-1) ** k) for k, value in enumerate(values)]


def test_the_claim_is_stated_by_budget():
    rng = np.random.default_rng(0)
    standard = list(rng.uniform(0.2, 0.3, 10))
    better, worse, same = (
        compare(standard, {"gradient": values})["gradient"]
        for values in (_times(standard, 0.8), _times(standard, 1.2), _times(standard, 1.0))
    )

    def said(by_epochs):
        (text,) = _said("sinusoid", SinusoidFindings([AtFrequency(1, None, [claim("here", by_epochs, [])], None)]))[1:]
        return text

    text = said({50: better, 200: worse, 100: same})
    assert "holds after 50 epochs; the standard skip is better after 200." in text
    assert "0.80 after 50" in text
    assert "holds at no budget; the standard skip" in said({50: same, 200: worse})


def test_ablations_say_what_helps():
    rng = np.random.default_rng(0)
    base = list(rng.uniform(0.2, 0.3, 10))
    errors = {"gradient": base, "alpha-low": _times(base, 0.5), "alpha-high": _times(base, 1.5)}
    errors |= {"alpha-learned": _times(base, 1.0)}
    (text,) = _said("sinusoid-ablation", AblationFindings([effects(16, errors)]))
    assert "helps: initial alpha -3 (0.50); hurts: initial alpha 3 (1.50); makes no" in text
    assert {name for c in CHANGES for name in (c.before, c.after)} <= set(VARIANTS)


def test_the_search_judges_by_test_error_what_validation_chose():
    rng = np.random.default_rng(0)
    base = list(rng.uniform(0.2, 0.3, 10))
    choosing = {"standard": base, "damped": _times(base, 1.1), "gradient": _times(base, 0.9), "gradient-full": base}
    judging = {
        "standard": _times(base, 2),
        "damped": base,
        "gradient": _times(base, 0.8),
        "gradient-full": _times(base, 0.4),
    }

    def said():
        return _said("sinusoid-search", SearchFindings([SearchedAt(16, verdict(choosing, judging), None)]))

    texts = said()
    assert "the variant of choice is gradient and the control standard" in texts[0]
    assert "0.40 times, at most half" in texts[0]
    assert "0.80 times, more than half" in texts[1]
    assert texts[2] == "d = 16: at most half of the best control: gradient-full."
    judging["gradient-full"] = _times(base, 0.6)
    assert "none of the 2 variants tried" in said()[2]


@pytest.mark.parametrize("name", ["sinusoid-ablation", "sinusoid-search"])
def test_the_other_studies_run_and_write_their_pages(name, tmp_path):
    experiment = find_experiment(name)
    methods = ("standard", "gradient", "alpha-high") if name == "sinusoid-ablation" else ("standard", "gradient-full")
    config = replace(experiment.preset("quick"), methods=methods, width=8, steps=30, rates=(3e-3,))
    run = run_experiment(experiment, config, preset="quick", seeds=3, out=tmp_path)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    for text in experiment.conclusions(config, run):
        assert text.split(":")[0] in page
    sheet, *more = experiment.sheets(config, run)
    errors = {m: np.mean([r.metrics["test_mse"] for r in run.rows() if r.arm == f"{m}-4"]) for m in methods}
    if name == "sinusoid-ablation":
        row = next(r for r in sheet.rows if r[3] == "alpha-high")
        assert row[4] == f"{errors['alpha-high'] / errors['gradient']:.3f}"
    else:
        assert sheet.rows[0][1] == f"{errors['gradient-full'] / errors['standard']:.3f}"
        assert "gradient-full" in experiment.conclusions(config, run)[0]
        (over_training,) = more
        held = np.mean([r.metrics["validation_mse"] for r in run.rows() if r.arm == "standard-4"])
        assert over_training.rows[0] == ["standard", *over_training.rows[0][1:-1], f"{held - 0.01:.4f}"]


def test_the_sinusoid_and_its_noise():
    problem = Sinusoid(16, noise=0.1)
    x, y = problem.sample(20_000, torch.Generator().manual_seed(0))
    assert x.shape == y.shape == (20_000, 1)
    assert -1 <= x.min() < -0.99 < 0.99 < x.max() <= 1
    assert float((y - torch.sin(16 * torch.pi * x)).std()) == pytest.approx(0.1, rel=0.03)
    points, values = problem.grid(2000)
    assert torch.equal(values, torch.sin(16 * torch.pi * points))
    assert int((values[1:] * values[:-1] < 0).sum()) == 31
    assert float(values.square().mean()) == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(InvalidInputError, match="frequency > 0"):
        Sinusoid(0)


def test_unknown_methods_are_refused():
    with pytest.raises(UnknownNameError, match="'damped'"):
        find_experiment("sinusoid").arms(SinusoidConfig(methods=("dampd",)))
