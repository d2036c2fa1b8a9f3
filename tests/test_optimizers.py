"""Optimisers behind fit: what they reach, and the identities that they rest on."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nablanets import GradNetC, GradNetM, GradNetMixture, Quadratic, SobolevTargets, fit, from_potential
from nablanets.errors import InvalidInputError, ShapeError, UnknownNameError
from nablanets.fitting import FitSettings, decibels, error, fit_best_start, fit_many
from nablanets.fitting.levenberg import Levenberg
from nablanets.fitting.optimizers import resolve
from nablanets.fitting.stack import Stack
from nablanets.starts import initialise_from_data, solve_outer
from tests.peers import ConvexField, NonconvexField, PeerMLP


def _samples(field, count=2000, seed=0):
    x, g = field.sample(count, torch.Generator().manual_seed(seed))
    return x, g


def _published(which, monotone):
    if which == "c":
        return GradNetC(2, 7, 4, activation="tanh", monotone=monotone, linear=False)
    return GradNetM(2, 7, 4, activation="softmax", monotone=monotone, linear=False)


def _nets():
    torch.manual_seed(0)
    experts = lambda: [Quadratic(2, monotone=True) for _ in range(3)]  # noqa: E731
    return {
        "c": lambda: GradNetC(2, 5, 3),
        "m": lambda: GradNetM(2, 5, 3, monotone=True),
        "mixture": lambda: GradNetMixture(experts()),
        "pullback": lambda: GradNetC(2, 4).pullback(torch.tensor([2.0, 0.5]), torch.ones(2)),
        "mlp": lambda: PeerMLP(2, 6),
    }


@pytest.mark.parametrize("name", list(_nets()))
def test_a_stack_is_its_networks(name):
    """Values, and derivatives in every parameter by central differences; writing back restores the network."""
    nets = [_nets()[name]().double() for _ in range(3)]
    stack, x = Stack(nets), torch.rand(6, 2, dtype=torch.float64)
    assert_close(stack.values(stack.theta, x), torch.stack([net(x) for net in nets]))
    jacobian, value = stack.jacobians(stack.theta, x)
    assert_close(value.mT, torch.stack([net(x) for net in nets]))
    step = 1e-6 * torch.eye(stack.theta.shape[1], dtype=torch.float64)
    for j, e in enumerate(step):
        change = stack.values(stack.theta + e, x) - stack.values(stack.theta - e, x)
        assert_close(jacobian[:, j].mT, change / 2e-6, rtol=1e-5, atol=1e-7)
    stack.keep(torch.tensor([2]))
    copied = _nets()[name]().double()
    stack.write(0, copied)
    assert_close(copied(x), nets[2](x))


def test_a_stack_refuses_different_architectures():
    with pytest.raises(InvalidInputError, match="one architecture"):
        Stack([GradNetC(2, 3), GradNetC(2, 4)])
    with pytest.raises(InvalidInputError, match="trained parameters"):
        Stack([nn.Linear(2, 2).requires_grad_(False)])


def test_frozen_parameters_and_buffers_stay_and_differ_by_member():
    nets = [nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2)]
    for net in nets:
        net[0].requires_grad_(False)
    stack, x = Stack(nets), torch.rand(5, 2)
    assert stack.theta.shape == (2, 10)
    assert_close(stack.values(stack.theta, x), torch.stack([net(x) for net in nets]))


@pytest.mark.parametrize(
    ("field", "which", "level"),
    [(ConvexField(), "c", -55), (ConvexField(), "m", -60), (NonconvexField(), "c", -42), (NonconvexField(), "m", -50)],
)
def test_levenberg_goes_far_beyond_the_published_accuracy(field, which, level):
    """The published means are -49 and -42 dB after 20,000 steps of Adam."""
    x, g = _samples(field, 3000)
    torch.manual_seed(0)

    def build():
        net = _published(which, field.convex)
        initialise_from_data(net, x)
        return net

    settings = FitSettings(optimizer="levenberg", steps=200, batch_size=128, validate_every=10)
    net, result = fit_best_start(build, x, g, starts=8, start_steps=40, settings=settings, progress=False)
    test = _samples(field, 5000, seed=1)
    assert decibels(error(net, *test)) < level
    assert error(net, *_samples(field, 10, seed=2)) == pytest.approx(error(net, *_samples(field, 10, seed=2)))
    assert result.best_validation_error == min(row.validation_error for row in result.history)


def test_levenberg_never_raises_its_error_and_solves_a_linear_problem_exactly():
    x = torch.rand(300, 2)
    g = 2 * x + x.flip(-1) + 1
    history = fit(Quadratic(2), x, g, optimizer="levenberg", steps=60, validate_every=1, progress=False).history
    errors = [row.training_error for row in history]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(errors))
    assert decibels(history[-1].validation_error) < -110


def test_a_start_does_not_depend_on_the_others():
    x, g = _samples(NonconvexField(), 500)
    torch.manual_seed(0)
    nets = [_published("c", False) for _ in range(5)]
    options = {"rows": 200, "halve_every": None}

    def run(chosen):
        lm = Levenberg([copy.deepcopy(nets[k]) for k in chosen], (x, g), (x, g), **options)
        for _ in range(15):
            lm.advance(0.0)
        return lm.theta

    assert_close(run([0, 1, 2, 3, 4])[3], run([3])[0], rtol=1e-6, atol=1e-8)


def test_halving_keeps_the_best_and_doubles_the_samples():
    x, g = _samples(ConvexField(), 1000)
    torch.manual_seed(0)
    nets = [_published("m", True) for _ in range(5)]
    lm = Levenberg(nets, (x, g), (x, g), rows=64, halve_every=10)
    for _ in range(10):
        ranking = lm.validation_errors()
        lm.advance(0.0)
    assert len(lm.alive) == 3
    assert lm.rows == 128
    assert int(ranking.argmin()) in lm.alive.tolist()
    for _ in range(90):
        lm.advance(0.0)
    assert len(lm.alive) == 1


def test_levenberg_says_when_it_has_converged():
    x = torch.rand(100, 2)
    result = fit(Quadratic(2), x, x.flip(-1), optimizer="levenberg", steps=5000, batch_size=16, progress=False)
    assert result.stop_reason == "converged"
    assert result.steps < 500


def test_lbfgs_beats_adam_on_a_small_net():
    x, g = _samples(ConvexField(), 1000)
    torch.manual_seed(0)
    start = _published("c", True)
    initialise_from_data(start, x)
    final = {}
    for optimizer in ("adam", "lbfgs"):
        net = copy.deepcopy(start)
        final[optimizer] = fit(net, x, g, optimizer=optimizer, steps=300, progress=False).best_validation_db
    assert final["lbfgs"] < final["adam"] - 3
    net = Quadratic(2)
    assert fit(net, x, 2 * x, optimizer="lbfgs", steps=5000, progress=False).stop_reason == "converged"


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_learns():
    x, g = _samples(ConvexField())
    result = fit(GradNetC(2, 16), x, g, optimizer="muon", steps=400, learning_rate=3e-2, progress=False)
    assert result.best_validation_db < -28


def test_a_torch_without_muon_is_explained(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    x, g = _samples(ConvexField(), 50)
    with pytest.raises(InvalidInputError, match=r"torch >= 2\.9.*adamw"):
        fit(GradNetC(2, 3), x, g, optimizer="muon", progress=False)


def test_auto_takes_levenberg_for_small_nets_only():
    auto = FitSettings(optimizer="auto")
    x, g = _samples(ConvexField(), 300)
    assert resolve(auto, GradNetC(2, 7), x, g).optimizer == "levenberg"
    assert resolve(auto, GradNetC(2, 100), x, g).optimizer == "adam"
    assert resolve(auto, GradNetC(20, 7), torch.rand(5, 20), torch.rand(5, 20)).optimizer == "adam"
    assert resolve(auto, GradNetC(2, 7), x, SobolevTargets(gradient=g)).optimizer == "adam"
    sampler = ConvexField().sample
    assert resolve(auto, GradNetC(2, 7), sampler, None).optimizer == "adam"
    with pytest.raises(InvalidInputError, match="fixed samples"):
        fit(GradNetC(2, 3), sampler, validation=(x, g), optimizer="levenberg", progress=False)
    assert resolve(auto.update(weight_decay=0.1), GradNetC(2, 7), x, g).optimizer == "adam"
    net = GradNetC(2, 4)
    same = copy.deepcopy(net)
    results = [fit(n, x, g, optimizer=o, steps=40, progress=False) for n, o in ((net, "auto"), (same, "levenberg"))]
    assert results[0].best_validation_error == results[1].best_validation_error


_OUTER = {
    "c": lambda monotone: GradNetC(2, 12, 3, monotone=monotone),
    "m": lambda monotone: GradNetM(2, 5, 6, monotone=monotone),
    "published c": lambda monotone: _published("c", monotone),
    "published m": lambda monotone: _published("m", monotone),
    "diagonal": lambda monotone: GradNetC(2, 12, 1, activation="tanh", monotone=monotone, linear="diagonal"),
}


def _outer_gradients(net, x, g):
    """Gradients of the error in the effective values of the coefficients that solve_outer sets."""
    raw = [net.ridge.alpha_raw if isinstance(net, GradNetC) else net.scale_raw, net.bias]
    raw += [] if net.linear is None else [net.linear.diagonal_raw]
    raw += [] if net.linear is None or net.linear.weights is None else [net.linear.weights]
    gradients = torch.autograd.grad((net(x) - g).square().sum(-1).mean(), raw)
    raw = [p.detach() for p in raw]
    slopes = [torch.sigmoid(p) if net.monotone and k != 1 else torch.ones_like(p) for k, p in enumerate(raw)]
    values = [nn.functional.softplus(p) if net.monotone and k != 1 else p for k, p in enumerate(raw)]
    last = [t[-1] if t.ndim == 2 else t for t in (gradients[0] / slopes[0], values[0])]
    effective = [last[0], *(a / b for a, b in zip(gradients[1:], slopes[1:], strict=True))]
    return effective, [last[1], *values[1:]]


@pytest.mark.parametrize("name", list(_OUTER))
def test_the_outer_solution_is_the_exact_minimiser(name):
    torch.manual_seed(0)
    net = _OUTER[name](False).double()
    x, g = (part.double() for part in _samples(NonconvexField(), 500))
    before = error(net, x, g)
    solve_outer(net, x, g)
    assert error(net, x, g) < before
    gradients, _ = _outer_gradients(net, x, g)
    assert max(float(p.abs().max()) for p in gradients) < 1e-6


@pytest.mark.parametrize("name", list(_OUTER))
def test_the_bounded_outer_solution_is_monotone_and_optimal(name):
    """Karush-Kuhn-Tucker: no slope where a coefficient is free, none that points inwards where it is at its bound."""
    torch.manual_seed(0)
    net = _OUTER[name](True).double()
    x, g = (part.double() for part in _samples(ConvexField(), 500))
    solve_outer(net, x, g, least=0.01)
    gradients, values = _outer_gradients(net, x, g)
    bias_gradient = gradients.pop(1)
    values.pop(1)
    assert float(bias_gradient.abs().max()) < 1e-6
    for gradient, value in zip(gradients, values, strict=True):
        bound = value < 0.01 + 1e-9
        assert bool((value >= 0.01 - 1e-9).all())
        assert float(gradient[~bound].abs().max() if bool((~bound).any()) else 0.0) < 1e-6
        assert float(gradient[bound].min() if bool(bound.any()) else 0.0) > -1e-6
    assert float(net.jacobian(x).eigvalsh().detach().min()) > -1e-12


def test_the_outer_solution_of_wide_nets_is_a_fit_by_itself():
    torch.manual_seed(0)
    x, g = _samples(NonconvexField(), 3000)
    net = GradNetC(2, 100, 1, activation="tanh").double()
    initialise_from_data(net, x)
    solve_outer(net, x, g)
    assert decibels(error(net, *(part.double() for part in _samples(NonconvexField(), 2000, seed=1)))) < -45


def test_solve_outer_refuses_other_maps():
    with pytest.raises(InvalidInputError, match="FromPotential lacks outer_terms"):
        solve_outer(from_potential(nn.Linear(2, 1), 2), torch.rand(5, 2), torch.rand(5, 2))
    with pytest.raises(InvalidInputError, match="least > 0"):
        solve_outer(GradNetC(2, 3), torch.rand(5, 2), torch.rand(5, 2), least=0.0)


_MANY = {
    "c": lambda: _published("c", True),
    "m": lambda: _published("m", True),
    "wsoftmax": lambda: GradNetM(2, 5, 3),
    "softplus": lambda: GradNetC(2, 9, 2, activation="softplus"),
}


@pytest.mark.parametrize("batch_size", [1000, 37])
@pytest.mark.parametrize("name", list(_MANY))
def test_a_member_is_the_same_to_the_last_bit_whoever_runs_beside_it(name, batch_size):
    x, g = _samples(ConvexField(), 1500)
    options = {"steps": 12, "batch_size": batch_size}
    thirty = fit_many(_MANY[name], x, g, seeds=30, **options)
    for seeds in ([17], [2, 17, 29], [29, 17, 9]):
        for member in fit_many(_MANY[name], x, g, seeds=seeds, **options):
            twin = thirty[member.seed]
            assert all(torch.equal(a, b) for a, b in zip(member.net.parameters(), twin.net.parameters(), strict=True))
            assert [row[2:] for row in member.result.history] == [row[2:] for row in twin.result.history]
    assert len({m.result.best_validation_error for m in thirty}) == 30


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_member_takes_the_steps_that_fit_would(optimizer):
    x, g = _samples(ConvexField(), 400)
    settings = FitSettings(steps=30, batch_size=64, learning_rate=1e-2, weight_decay=1e-2, optimizer=optimizer, seed=4)
    (member,) = fit_many(lambda: _published("c", True), x, g, seeds=[4], settings=settings, validation=(x[:50], g[:50]))
    torch.manual_seed(4)
    net = _published("c", True)
    result = fit(net, x, g, validation=(x[:50], g[:50]), settings=settings, progress=False)
    assert_close(list(member.net.parameters()), list(net.parameters()), rtol=1e-3, atol=1e-5)
    assert [r.step for r in member.result.history] == [r.step for r in result.history]
    assert member.result.best_validation_error == pytest.approx(result.best_validation_error, rel=1e-3)


def test_members_differ_by_seed_and_by_grid_and_keep_their_best_weights():
    x, g = _samples(ConvexField(), 500)
    state = torch.get_rng_state()
    grid = {"learning_rate": [1e-4, 2e-2], "schedule": ["constant", "cosine"]}
    members = fit_many(lambda: _published("m", True), x, g, seeds=[3, 8], grid=grid, steps=100, batch_size=50,
                       validation=(x[:100], g[:100]))  # fmt: skip
    assert torch.equal(state, torch.get_rng_state())
    assert [(m.seed, m.settings.learning_rate, m.settings.schedule) for m in members[:3]] == [
        (3, 1e-4, "constant"), (8, 1e-4, "constant"), (3, 1e-4, "cosine"),
    ]  # fmt: skip
    for member in members:
        assert error(member.net, x[:100], g[:100]) == pytest.approx(member.result.best_validation_error, rel=1e-4)
    slow, fast = members[0].result.best_validation_error, members[4].result.best_validation_error
    assert fast < slow / 2


def test_seeds_can_have_samples_of_their_own():
    samples = [_samples(ConvexField(), 300, seed) for seed in (3, 8)]
    held_out = [_samples(ConvexField(), 50, seed) for seed in (13, 18)]
    (x, g), validation = (
        tuple(torch.stack(part) for part in zip(*pairs, strict=True)) for pairs in (samples, held_out)
    )
    options = {"steps": 40, "batch_size": 32, "learning_rate": 1e-2}
    for k, member in enumerate(fit_many(_MANY["m"], x, g, seeds=[3, 8], validation=validation, **options)):
        (alone,) = fit_many(_MANY["m"], *samples[k], seeds=[member.seed], validation=held_out[k], **options)
        assert error(member.net, *held_out[k]) == pytest.approx(member.result.best_validation_error, rel=1e-4)
        assert_close(list(member.net.parameters()), list(alone.net.parameters()), rtol=1e-3, atol=1e-5)
    with pytest.raises(ShapeError, match="samples of 3 seeds"):
        fit_many(_MANY["m"], x, g, seeds=3)


def test_a_seed_keeps_its_slot_within_a_grid():
    x, g = _samples(ConvexField(), 300)
    options = {"grid": {"learning_rate": [1e-3, 1e-2]}, "slots": 4, "steps": 10, "batch_size": 32}
    both = fit_many(_MANY["m"], x, g, seeds=[0, 1], **options)
    alone = fit_many(_MANY["m"], x, g, seeds=[1], **options)
    for member, twin in zip(alone, both[1::2], strict=True):
        assert member.settings == twin.settings
        assert all(torch.equal(a, b) for a, b in zip(member.net.parameters(), twin.net.parameters(), strict=True))


def test_fit_many_explains_what_it_cannot_do():
    x = torch.rand(50, 2)
    for change, message in (
        ({"max_seconds": 1.0}, "no max_seconds"), ({"optimizer": "lbfgs"}, "'adamw'"), ({"patience": 3}, "no patience"),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            fit_many(lambda: GradNetC(2, 3), x, x, seeds=2, **change)
    with pytest.raises(UnknownNameError, match="learning_rate"):
        fit_many(lambda: GradNetC(2, 3), x, x, grid={"lr": [1.0]})
