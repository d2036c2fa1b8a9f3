"""fit: what it reaches, how it stops, how it resumes, what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from nablanets import GradNetC, GradNetM, Quadratic, fit
from nablanets.errors import InvalidInputError, ModelFileError, ShapeError, UnknownNameError
from nablanets.fitting import decibels, error
from nablanets.starts import initialise_affine, standardised
from tests.peers import AffineField, PeerMLP


def _data(n=400, d=2, seed=0):
    x = torch.rand(n, d, generator=torch.Generator().manual_seed(seed))
    return x, 2 * x + x.flip(-1)


def test_a_linear_field_is_learned_to_float_precision():
    x, g = _data()
    result = fit(Quadratic(2, monotone=True), x, g, steps=1500, learning_rate=5e-2, progress=False)
    assert result.best_validation_db < -80
    assert result.stop_reason == "steps"
    assert result.history[-1].step == 1500


def test_the_best_weights_are_kept_and_reported():
    x, g = _data()
    net = GradNetC(2, 8)
    result = fit(
        net,
        x,
        g,
        validation=(x[:50], g[:50]),
        steps=120,
        learning_rate=0.2,
        schedule="constant",
        validate_every=10,
        progress=False,
    )
    assert error(net, x[:50], g[:50]) == pytest.approx(result.best_validation_error, rel=1e-5)
    assert result.best_validation_error == min(row.validation_error for row in result.history)


def test_same_seed_same_result():
    x, g = _data()
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(GradNetM(2, 5))
        fit(nets[-1], x, g, steps=40, batch_size=64, seed=5, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


@pytest.mark.parametrize(
    ("optimizer", "interrupt_at"),
    [("adam", 1), ("adam", 3), ("adam", 5), ("adam", 6), ("muon", 3), ("lbfgs", 3), ("levenberg", 3)],
)
def test_an_interrupted_fit_ends_exactly_as_if_nothing_had_happened(tmp_path, optimizer, interrupt_at):
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    x, g = _data()
    torch.manual_seed(0)
    start = GradNetC(2, 6)
    options = {"steps": 60, "batch_size": 64, "validate_every": 10, "progress": False, "optimizer": optimizer}
    whole = copy.deepcopy(start)
    expected = fit(whole, x, g, **options)

    class Interrupted(KeyboardInterrupt):
        pass

    def stop(row):
        if row.step == 10 * interrupt_at:
            raise Interrupted

    path = tmp_path / "state.safetensors"
    part = copy.deepcopy(start)
    with pytest.raises(Interrupted):
        fit(part, x, g, checkpoint=path, report=stop, **options)
    resumed = copy.deepcopy(start)
    result = fit(resumed, x, g, checkpoint=path, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [row[2:] for row in result.history] == [row[2:] for row in expected.history]
    with pytest.raises(ModelFileError, match="other settings"):
        fit(copy.deepcopy(start), x, g, checkpoint=path, **{**options, "steps": 61})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelFileError, match="cannot be read"):
        fit(copy.deepcopy(start), x, g, checkpoint=path, **options)


def test_patience_time_and_divergence_stop():
    x, g = _data()
    common = {"progress": False, "validate_every": 1, "schedule": "constant"}
    assert fit(GradNetC(2, 4), x, g, learning_rate=1e-12, steps=10_000, patience=3, **common).stop_reason == "patience"
    timed = fit(GradNetC(2, 4), x, g, steps=10**9, max_seconds=0.2, **common)
    assert timed.stop_reason == "max_seconds"
    assert 0.2 <= timed.seconds < 5
    net = GradNetM(2, 4, activation="polynomial")
    result = fit(net, x, g, learning_rate=1e6, steps=1000, **common)
    assert result.stop_reason == "diverged"
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda x, g: (x[:, :1], g), ShapeError, r"expected x of shape \(\*, 2\), got \(400, 1\)"),
        (lambda x, g: (x, g[:-1]), ShapeError, "400 points and 399 gradients"),
        (lambda x, g: (x.long(), g), InvalidInputError, "floating-point"),
        (
            lambda x, g: (x, torch.where(g > 2.5, torch.nan, g)),
            InvalidInputError,
            "NaN or infinite values, the first in row",
        ),
        (lambda x, g: (x[:0], g[:0]), ShapeError, "n >= 1"),
        (lambda x, g: (x[:1], g[:1]), InvalidInputError, "too few"),
        (lambda x, g: (x[0], g[0]), ShapeError, r"\(n, 2\)"),
    ],
)
def test_bad_samples_are_explained(change, kind, message):
    net = GradNetC(2, 4)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(kind, match=message):
        fit(net, *change(*_data()), progress=False)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"learning_rat": 1.0}, UnknownNameError, "'learning_rate'"),
        ({"learning_rate": -1.0}, InvalidInputError, "positive"),
        ({"steps": 0}, InvalidInputError, "steps >= 1"),
        ({"schedule": "cosin"}, UnknownNameError, "'cosine'"),
        ({"validation": 1.5}, InvalidInputError, "fraction"),
        ({"optimizer": "levenberg", "weight_decay": 0.1}, InvalidInputError, "no weight decay"),
        ({"warmup": 200}, InvalidInputError, "fraction of the run"),
        ({"clip_norm": 0.0}, InvalidInputError, "clip_norm to be positive"),
        ({"optimizer": "lbfg"}, UnknownNameError, "'lbfgs'"),
    ],
)
def test_bad_settings_are_explained(settings, kind, message):
    with pytest.raises(kind, match=message):
        fit(GradNetC(2, 4), *_data(), progress=False, **settings)


def test_decibels():
    assert decibels(0.01) == pytest.approx(-20)
    assert decibels(0.0) == float("-inf")


def test_standardising_is_a_pullback_that_makes_awkward_units_learnable():
    x, _ = _data(1000)
    x = x * torch.tensor([1e3, 1e-2]) + torch.tensor([5e4, 3.0])
    H = torch.tensor([[2e-6, 1e-2], [1e-2, 4e4]])
    g = x @ H
    net = standardised(Quadratic(2), x, g)
    fit(net, x, g, steps=1500, learning_rate=1e-2, progress=False)
    scale = x.std(0)
    relative = ((net(x) - g) * scale).square().sum() / ((g - g.mean(0)) * scale).square().sum()
    assert 10 * torch.log10(relative) < -40
    J = net.double().jacobian(x[:4].double()).dense()
    assert_close(J, J.mT)


def test_baselines_are_fitted_by_the_same_call():
    x, g = _data()
    assert fit(PeerMLP(2, 16), x, g, steps=400, learning_rate=1e-2, progress=False).best_validation_db < -20


def _fresh(count, generator):
    x = torch.rand(count, 2, generator=generator)
    return x, 2 * x + x.flip(-1)


def test_fresh_samples_are_drawn_for_every_batch_and_resumed(tmp_path):
    torch.manual_seed(0)
    start, test = GradNetC(2, 6), _data(100, seed=1)
    options = {"validation": test, "steps": 40, "batch_size": 16, "validate_every": 10, "progress": False}
    seen = []

    def recorded(count, generator):
        seen.append(_fresh(count, generator)[0])
        return seen[-1], 2 * seen[-1] + seen[-1].flip(-1)

    whole = copy.deepcopy(start)
    result = fit(whole, recorded, **options)
    assert len(torch.cat(seen).unique(dim=0)) == 40 * 16
    assert result.best_validation_error < error(start, *test)

    class Interrupted(KeyboardInterrupt):
        pass

    def stop(row):
        if row.step == 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(copy.deepcopy(start), _fresh, checkpoint=tmp_path / "state.safetensors", report=stop, **options)
    resumed = copy.deepcopy(start)
    fit(resumed, _fresh, checkpoint=tmp_path / "state.safetensors", **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    for bad in ({"validation": 0.1}, {"g": test[1]}):
        with pytest.raises(InvalidInputError, match="draws fresh samples"):
            fit(copy.deepcopy(start), _fresh, **{**options, **bad})
    with pytest.raises(InvalidInputError, match="expected points and gradients"):
        fit(copy.deepcopy(start), test[0], **options)


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("kind", [GradNetC, GradNetM])
def test_networks_start_as_the_best_affine_map(kind, monotone):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(500, 5, generator=generator)
    g = x @ (torch.ones(5, 5) + torch.eye(5)) + 0.3 * torch.sin(5 * x)
    affine = AffineField(5)
    affine.fit(x, g)
    net = kind(5, 8, monotone=monotone)
    initialise_affine(net, x, g)
    assert error(net, x, g) < error(affine, x, g) + 0.02
    assert fit(net, x, g, validation=(x, g), steps=300, progress=False).best_validation_error < error(affine, x, g)
    if monotone:
        net = kind(5, 30, monotone=True, linear=False)
        initialise_affine(net, x, g)
        assert error(net, x, g) < 1.3 * error(affine, x, g)
    else:
        with pytest.raises(InvalidInputError, match="linear=True"):
            initialise_affine(kind(5, 8, linear=False), x, g)
