"""Fitting systems: exact reductions to gradient fits, and what noise and missing momenta leave."""

from __future__ import annotations

import copy

import pytest
import torch

from nablanets import ConditionalGradNet, GradNetC, Quadratic, fit
from nablanets.dynamics import (
    ConditionalHamiltonian,
    FieldSystem,
    HamiltonianSystem,
    PortHamiltonian,
    SeparableHamiltonian,
    fit_derivatives,
    fit_positions,
    fit_trajectories,
    integrate,
    rotate,
    rotate_back,
    windows,
)
from nablanets.dynamics.targets import DerivativeTargets, PositionTargets, TrajectoryTargets
from nablanets.errors import InvalidInputError, ShapeError
from tests.peers import PeerMLP, Pendulum

QUIET = {"progress": False, "batch_size": 200}


def pendulum(count=40, points=41, span=8.0):
    x0 = Pendulum().sample(count, torch.Generator().manual_seed(2))
    times = torch.linspace(0, span, points).tolist()
    return Pendulum().trajectory(x0, times), span / (points - 1)


def force_error(potential):
    q = torch.linspace(-2, 2, 50).double().unsqueeze(1)
    return float((potential(q) - q.sin()).detach().square().mean().sqrt())


def test_derivatives_of_hamiltonian_systems_are_gradients():
    x = torch.randn(300, 2).double()
    v = Pendulum().field(x)
    system = HamiltonianSystem(GradNetC(2, 8).double())
    net = copy.deepcopy(system.hamiltonian)
    ours = fit_derivatives(system, x, v, steps=40, validation=(x, v), **QUIET)
    plain = fit(net, x, Pendulum().gradient(x), steps=40, validation=(x, Pendulum().gradient(x)), **QUIET)
    assert torch.equal(system.hamiltonian(x), net(x))
    assert ours.best_validation_error == pytest.approx(plain.best_validation_error)
    assert ours.best_validation_error == pytest.approx(float((system(x) - v).detach().square().sum(-1).mean()))


def test_with_fixed_masses_only_the_potential_is_fitted():
    x = torch.randn(300, 2).double()
    system = SeparableHamiltonian([1.0], GradNetC(1, 8).double())
    result = fit_derivatives(system, x, Pendulum().field(x), optimizer="levenberg", steps=100, **QUIET)
    assert result.best_validation_db < -60
    assert torch.equal(system.velocity(x[:, 1:]), x[:, 1:])


def test_energies_help_and_are_fitted():
    x = 2 * torch.rand(400, 2).double() - 1
    system = HamiltonianSystem(GradNetC(2, 8).double())
    fit_derivatives(
        system, x, Pendulum().field(x), energies=Pendulum().energy(x), steps=400, learning_rate=2e-2, **QUIET
    )
    offset = (system.energy(x) - Pendulum().energy(x)).detach()
    assert float(offset.std()) < 0.01


def test_a_port_hamiltonian_system_finds_friction_and_the_port():
    x, u = torch.randn(500, 2).double(), torch.randn(500, 1).double()
    push = torch.tensor([[0.0, 0.7]]).double()
    v = torch.stack([x[:, 1], -x[:, 0] - 0.3 * x[:, 1]], dim=1) + u @ push
    system = PortHamiltonian(Quadratic(2), inputs=1).double()
    result = fit_derivatives(system, x, v, inputs=u, steps=1500, learning_rate=2e-2, **QUIET)
    assert result.best_validation_db < -60
    assert float(system.damping.detach().square()) == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(system.port.detach(), push.mT, rtol=0, atol=0.01)


def test_a_family_of_systems_is_fitted_over_its_parameters():
    """A spring whose stiffness is the context."""
    x, c = torch.randn(800, 2).double(), torch.rand(800, 1).double()
    v = torch.stack([x[:, 1], -(0.5 + c[:, 0]) * x[:, 0]], dim=1)
    family = ConditionalHamiltonian(ConditionalGradNet(2, 1, 16).double())
    result = fit_derivatives(family, x, v, inputs=c, steps=600, learning_rate=1e-2, **QUIET)
    assert result.best_validation_db < -25
    soft, stiff = (family.given(torch.tensor([k]).double()).linearisation(x[0])[1, 0] for k in (0.1, 0.9))
    assert float(soft - stiff) == pytest.approx(0.8, abs=0.2)


def test_coarse_noisy_trajectories_through_the_integrator_beat_differences():
    """At 0.67 between states differences are off by several percent, which no amount of data mends."""
    x, interval = pendulum(40, 13)
    noisy = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    rough = SeparableHamiltonian([1.0], GradNetC(1, 8, 2).double())
    smooth = copy.deepcopy(rough)
    slopes = (noisy[2:] - noisy[:-2]).flatten(0, 1) / (2 * interval)
    options = {"optimizer": "lbfgs", "batch_size": 10_000, "progress": False}
    fit_derivatives(rough, noisy[1:-1].flatten(0, 1), slopes, steps=60, **options)
    fit_trajectories(smooth, noisy, interval, horizon=2, method="yoshida4", step=0.26, steps=40, **options)
    assert force_error(smooth.potential) < 0.025 < 0.05 < force_error(rough.potential)


def test_energy_weight_flattens_the_learned_energy():
    x, interval = pendulum(20, 21)
    spread = []
    for weight in (0.0, 30.0):
        torch.manual_seed(0)
        system = HamiltonianSystem(GradNetC(2, 8, 2).double())
        options = {"horizon": 4, "method": "rk4", "steps": 60, "energy_weight": weight, **QUIET}
        fit_trajectories(system, x, interval, **options)
        spread.append(float(system.energy(x).detach().std(dim=0).mean()))
    assert spread[1] < 0.8 * spread[0]


@pytest.mark.parametrize(("horizon", "order", "bound"), [(1, 2, 0.02), (1, 6, 0.004), (4, 2, 0.02)])
def test_positions_alone_give_the_force(horizon, order, bound):
    x, interval = pendulum(40, 81)
    system = SeparableHamiltonian([1.0], GradNetC(1, 8, 2).double())
    options = {"steps": 300, "learning_rate": 2e-2, **QUIET} if horizon > 1 else {"steps": 40, "optimizer": "levenberg"}
    options |= {"progress": False}
    fit_positions(system, x[..., :1], interval, horizon=horizon, order=order, **options)
    assert force_error(system.potential) < bound


def test_masses_turn_second_differences_into_forces():
    """Two springs with masses 1 and 4: q'' = -q / m."""
    t = torch.linspace(0, 6, 61).double().reshape(-1, 1, 1)
    phase = torch.linspace(0, 6, 20).double().reshape(1, -1, 1)
    q = torch.cat([torch.cos(t + phase), torch.cos(t / 2 + phase)], dim=-1)
    system = SeparableHamiltonian([1.0, 4.0], Quadratic(2).double())
    result = fit_positions(system, q, 0.1, order=6, optimizer="lbfgs", steps=50, progress=False, batch_size=10_000)
    assert result.best_validation_db < -80
    torch.testing.assert_close(system.force(q[0]).detach(), -q[0], rtol=0, atol=1e-4)


def test_the_objectives_are_what_they_say():
    x = torch.randn(3, 2).double()
    system = SeparableHamiltonian([1.0], Quadratic.from_diagonal(torch.ones(1), torch.zeros(1)).double())
    path = integrate(system, x, [0.0, 0.1, 0.2], method="verlet").detach()
    states = path[1:].transpose(0, 1) + 1
    targets = TrajectoryTargets(states, 0.1, "verlet", energy_weight=2.0)
    value = targets(system, x, targets.pack(x))
    energy = system.energy(torch.cat([x.unsqueeze(1), states], dim=1)).var(dim=1, correction=0).mean()
    torch.testing.assert_close(value, 2 + 2 * energy)
    pairs = torch.cat([path[0, :, :1], path[1, :, :1]], dim=1)
    steps = PositionTargets(path[2:, :, :1].transpose(0, 1), 0.1)
    assert float(steps(system, pairs, steps.pack(pairs))) < 1e-25
    assert torch.equal(rotate(rotate_back(x)), x)


def test_refusals_say_what_is_expected():
    x, interval = pendulum(4, 5)
    learned_mass = SeparableHamiltonian(Quadratic(1, 0, monotone=True), GradNetC(1, 4).double())
    with pytest.raises(InvalidInputError, match="fixed masses"):
        fit_positions(learned_mass, x[..., :1], interval)
    fixed = SeparableHamiltonian([1.0], GradNetC(1, 4).double())
    with pytest.raises(InvalidInputError, match="order 2, 4 or 6"):
        fit_positions(fixed, x[..., :1], interval, order=3)
    with pytest.raises(ShapeError, match="Shorten the horizon"):
        fit_trajectories(fixed, x, interval, horizon=9)
    with pytest.raises(InvalidInputError, match="m >= 2"):
        fit_trajectories(fixed, x[:, :1], interval)
    with pytest.raises(ShapeError, match="derivative"):
        DerivativeTargets(torch.zeros(3, 1), torch.zeros(3, 1)).pack(torch.zeros(3, 2))
    with pytest.raises(InvalidInputError, match="NaN"):
        TrajectoryTargets(x.transpose(0, 1) * float("nan"), interval).pack(x[0])
    plain = FieldSystem(PeerMLP(2, 4), 2).double()
    with pytest.raises(InvalidInputError, match="energy_weight"):
        fit_trajectories(plain, x, interval, method="rk4", energy_weight=1.0, steps=1, progress=False)
    with pytest.raises(InvalidInputError, match=r"dynamics\.System"):
        fit(PeerMLP(2, 4).double(), x[0], TrajectoryTargets(x[1:].transpose(0, 1), interval), steps=1, progress=False)
    assert windows(x, 3, 1).shape == (12, 3, 2)
