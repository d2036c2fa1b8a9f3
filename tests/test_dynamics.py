"""Systems, and the integrators on learned maps: orders, symplecticity, reversibility, conservation, derivatives."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch

from nablanets import ConditionalGradNet, GradNetC, GradNetM, Quadratic, fit, load
from nablanets.dynamics import (
    ORDERS,
    FieldSystem,
    HamiltonianSystem,
    Kinetic,
    PortHamiltonian,
    SecondOrder,
    SeparableHamiltonian,
    integrate,
    rotate,
    rotate_back,
)
from nablanets.dynamics.integrate import GAUSS
from nablanets.dynamics.splitting import SPLITTINGS
from nablanets.dynamics.verify import (
    assert_hamiltonian,
    energy_rate_error,
    hamiltonian_error,
    symplectic_form,
    symplecticity_error,
)
from nablanets.errors import ConvergenceError, InvalidInputError, ShapeError, UnknownNameError, VerificationError
from nablanets.verify import autodiff_jacobian
from tests.peers import PeerMLP, mlp_potential

SYMPLECTIC = [*SPLITTINGS, *GAUSS]
SYMMETRIC = [name for name in SYMPLECTIC if name != "symplectic-euler"]


@pytest.fixture(scope="module")
def learned():
    """A separable and a general system, fitted to x' of coupled pendulums, in float64."""
    torch.manual_seed(0)
    q, p = 2 * torch.rand(400, 2).double() - 1, 2 * torch.rand(400, 2).double() - 1
    x = torch.cat([q, p], dim=-1)
    gradient = torch.cat([torch.sin(q) + 0.5 * q.flip(-1), p + 0.2 * p.flip(-1)], dim=-1)
    general = HamiltonianSystem(GradNetC(4, 12, 2).double())
    kinetic = Quadratic(2, monotone=True, bias=False)
    separable = SeparableHamiltonian(kinetic.double(), GradNetM(2, 8, 2).double())
    for system in (separable, general):
        result = fit(system.hamiltonian, x, gradient, steps=300, batch_size=100, learning_rate=2e-2, progress=False)
        assert result.best_validation_db < -25
        system.requires_grad_(False)
    return {"separable": separable, "general": general}


def system_for(method, learned):
    return learned["separable" if method in SPLITTINGS else "general"]


def states(count=5, d=4):
    return torch.randn(count, d, dtype=torch.double, generator=torch.Generator().manual_seed(3)) * 0.7


@pytest.fixture(scope="module")
def ends(learned):
    """States at time 1, by a method of order 8 of another library, of both systems."""
    options = {"method": "dop853", "rtol": 1e-13, "atol": 1e-15}
    return {name: integrate(system, states(), [0.0, 1.0], **options)[-1] for name, system in learned.items()}


@pytest.mark.parametrize("method", ORDERS)
def test_observed_order(method, learned, ends):
    name = "separable" if method in SPLITTINGS else "general"
    counts = {
        1: [40, 80, 160],
        2: [16, 32, 64],
        4: [6, 12, 24],
        6: [6, 8, 10, 12] if method == "gauss6" else [8, 12, 18],
    }
    counts = counts[ORDERS[method]]
    errors = [
        float((integrate(learned[name], states(), [0.0, 1.0], method=method, step=1 / n)[-1] - ends[name]).norm())
        for n in counts
    ]
    assert min(errors) > 1e-12
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(ORDERS[method], abs=0.2)


@pytest.mark.parametrize("method", SYMPLECTIC)
def test_flow_maps_of_learned_systems_are_symplectic(method, learned):
    flow = lambda x: integrate(system_for(method, learned), x, [0.0, 2.0], method=method, step=0.2)[-1]  # noqa: E731
    assert symplecticity_error(flow, states()) < 1e-10


def test_a_method_that_is_not_symplectic_is_found_out(learned):
    flow = lambda x: integrate(learned["general"], x, [0.0, 2.0], method="rk4", step=0.2)[-1]  # noqa: E731
    assert symplecticity_error(flow, states()) > 1e-7


@pytest.mark.parametrize("method", SYMMETRIC)
def test_backward_undoes_forward(method, learned):
    system, x0 = system_for(method, learned), states()
    there = integrate(system, x0, [0.0, 5.0], method=method, step=0.1)[-1]
    back = integrate(system, there, [5.0, 0.0], method=method, step=0.1)[-1]
    assert float((there - x0).abs().max()) > 0.1
    assert float((back - x0).abs().max()) < 1e-10
    euler = integrate(learned["separable"], x0, [0.0, 1.0, 0.0][:2], method="symplectic-euler", step=0.1)[-1]
    euler = integrate(learned["separable"], euler, [1.0, 0.0], method="symplectic-euler", step=0.1)[-1]
    assert float((euler - x0).abs().max()) > 1e-3


def test_energy_error_has_no_trend_over_long_times(learned):
    times, x0 = torch.linspace(0, 300, 601), states(3)
    for method in ("verlet", "midpoint"):
        system = system_for(method, learned)
        energy = system.energy(integrate(system, x0, times, method=method))
        drift = (energy - energy[0]).abs()
        late, early = drift[-100:].amax(dim=0), drift[:100].amax(dim=0)
        assert bool((late < 2.5 * early + 1e-9).all())
    energy = learned["general"].energy(integrate(learned["general"], x0, times, method="rk4"))
    assert float((energy[-1] - energy[0]).abs().max()) > 1e-4


@pytest.mark.parametrize("method", [*SPLITTINGS, "midpoint", "gauss6", "rk4"])
def test_samples_do_not_depend_on_their_batch(method, learned):
    system, x0 = system_for(method, learned), states(6)
    times = [0.0, 0.3, 0.7]
    whole = integrate(system, x0, times, method=method, step=0.1)
    alone = integrate(system, x0[2], times, method=method, step=0.1)
    grid = integrate(system, x0.reshape(2, 3, 4), times, method=method, step=0.1)
    assert whole.shape == (3, 6, 4)
    torch.testing.assert_close(whole[:, 2], alone, rtol=0, atol=1e-13)
    torch.testing.assert_close(grid.flatten(1, 2), whole, rtol=0, atol=1e-13)
    assert torch.equal(whole[0], x0)


@pytest.mark.parametrize("method", ["yoshida4", "gauss4", "rk4"])
def test_derivatives_through_the_integrator_are_exact(method, learned):
    system = copy.deepcopy(system_for(method, learned)).requires_grad_(True)
    x0 = states(2).requires_grad_()
    flow = partial(integrate, system, times=[0.0, 0.4], method=method, step=0.2)
    assert torch.autograd.gradcheck(lambda x: flow(x)[-1], (x0,))
    assert torch.autograd.gradgradcheck(lambda x: flow(x)[-1], (x0,))
    name, parameter = next((n, p) for n, p in system.named_parameters() if p.ndim == 2)
    loss = flow(x0.detach())[-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, parameter)
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(system)
        with torch.no_grad():
            dict(moved.named_parameters())[name].view(-1)[0] += sign * 1e-6
            values.append(integrate(moved, x0, [0.0, 0.4], method=method, step=0.2)[-1].square().sum())
    assert float((values[0] - values[1]) / 2e-6) == pytest.approx(float(gradient.reshape(-1)[0]), rel=1e-5, abs=1e-9)


def test_references_agree(learned):
    times = torch.linspace(0, 3, 4)
    ours = integrate(learned["general"], states(), times, method="gauss6", step=0.05)
    torch.testing.assert_close(integrate(learned["general"], states(), times, method="dop853"), ours, rtol=0, atol=1e-7)
    pytest.importorskip("torchdiffeq")
    other = integrate(learned["general"], states(), times, method="torchdiffeq")
    torch.testing.assert_close(other, ours, rtol=0, atol=1e-7)


def test_implicit_steps_that_fail_say_what_to_do():
    stiff = HamiltonianSystem(GradNetC(2, 8, 2, activation="sine").double())
    with torch.no_grad():
        for parameter in stiff.parameters():
            parameter.mul_(4)
    x0 = states(4, 2)
    with pytest.raises(ConvergenceError, match="Take smaller steps"):
        integrate(stiff, x0, [0.0, 500.0], method="midpoint", step=5.0)
    assert torch.isfinite(integrate(stiff, x0, [0.0, 1e-4], method="midpoint", step=1e-5)).all()


def systems():
    cond = ConditionalGradNet(4, 2, 8)
    return [
        HamiltonianSystem(GradNetM(4, 6, 2)),
        HamiltonianSystem(mlp_potential(4, 6)),
        HamiltonianSystem(cond.given(torch.tensor([0.3, -0.2]))),
        SeparableHamiltonian(torch.tensor([1.0, 2.0]), GradNetC(2, 6)),
        SeparableHamiltonian(torch.tensor([[2.0, 0.5], [0.5, 1.0]]), GradNetC(2, 6)),
        SeparableHamiltonian(Quadratic(2, 0, monotone=True, bias=False), GradNetC(2, 6)),
    ]


@pytest.mark.parametrize("system", systems(), ids=lambda s: type(s.hamiltonian).__name__)
def test_hamiltonian_systems_are_hamiltonian(system, tmp_path):
    system, x = system.double(), states()
    assert_hamiltonian(system, x)
    torch.testing.assert_close(system.linearisation(x), autodiff_jacobian(system, x))
    assert torch.equal(system.divergence(x), torch.zeros(5, dtype=torch.double))
    assert float(autodiff_jacobian(system, x).diagonal(dim1=-2, dim2=-1).sum(-1).abs().max()) < 1e-12
    torch.testing.assert_close(rotate_back(system(x)), system.hamiltonian(x))
    system.save(tmp_path / "system.safetensors")
    again = load(tmp_path / "system.safetensors")
    assert torch.equal(again(x), system(x))
    assert type(again) is type(system)


def test_what_is_not_hamiltonian_is_found_out():
    x = states()
    mlp = FieldSystem(PeerMLP(4, 8), 4).double()
    assert hamiltonian_error(mlp, x) > 0.1
    torch.testing.assert_close(mlp.linearisation(x), autodiff_jacobian(mlp, x))
    torch.testing.assert_close(mlp.divergence(x), mlp.linearisation(x).diagonal(dim1=-2, dim2=-1).sum(-1))
    broken = HamiltonianSystem(GradNetC(4, 8).double())
    broken.vector_field = lambda x: rotate(broken.hamiltonian(x)) - 0.1 * x
    assert energy_rate_error(broken, x) > 1e-3
    with pytest.raises(VerificationError, match="asymmetry"):
        assert_hamiltonian(broken, x)
    omega = symplectic_form(4).double()
    torch.testing.assert_close(x @ omega.mT, rotate(x))


@pytest.mark.parametrize("momenta_only", [True, False])
def test_port_hamiltonian_systems_obey_the_power_balance(momenta_only, tmp_path):
    system = PortHamiltonian(GradNetM(4, 6, 2), inputs=2, momenta_only=momenta_only).double()
    x, u = states(), states(5, 2)
    gradient = system.hamiltonian(x)
    torch.testing.assert_close((gradient * system(x, u)).sum(-1), system.energy_rate(x, u))
    assert bool((system.energy_rate(x) < 0).all())
    torch.testing.assert_close(system.linearisation(x), autodiff_jacobian(system, x))
    if momenta_only:
        torch.testing.assert_close(system(x)[:, :2], gradient[:, 2:])
    energy = system.energy(integrate(system, x, torch.linspace(0, 5, 26), method="gauss4").detach())
    assert bool((energy.diff(dim=0) <= 1e-9).all())
    assert float((energy[0] - energy[-1]).min().detach()) > 1e-3
    system.save(tmp_path / "port.safetensors")
    assert torch.equal(load(tmp_path / "port.safetensors")(x, u), system(x, u))


def test_inputs_drive_a_port_hamiltonian_system():
    """x'' = -x + cos t from rest at zero is x = t sin(t) / 2."""
    system = PortHamiltonian(Quadratic.from_diagonal(torch.ones(2), torch.zeros(2)), dissipation=0, inputs=1).double()
    with torch.no_grad():
        system.port.copy_(torch.tensor([[0.0], [1.0]]))
    times = torch.linspace(0, 6, 7, dtype=torch.double)
    for method in ("rk4", "gauss6", "dop853"):
        step = None if method == "dop853" else 0.02
        x0 = torch.zeros(2, dtype=torch.double)
        x = integrate(system, x0, times, method=method, step=step, inputs=lambda t: torch.tensor([np.cos(t)]))
        torch.testing.assert_close(x[:, 0].detach(), times * times.sin() / 2, rtol=0, atol=1e-6)


def test_conditional_systems_pass_derivatives_to_the_context():
    net, c = ConditionalGradNet(4, 2, 8).double(), torch.tensor([0.3, -0.2], dtype=torch.double, requires_grad=True)
    end = integrate(HamiltonianSystem(net.given(c)), states(), [0.0, 0.2], method="rk4")[-1]
    (gradient,) = torch.autograd.grad(end.sum(), c)
    assert float(gradient.abs().min()) > 0


def test_masses():
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.double)
    p = states(5, 2)
    torch.testing.assert_close(Kinetic(matrix)(p), torch.linalg.solve(matrix, p.mT).mT)
    torch.testing.assert_close(Kinetic(matrix).curvature_envelope()[0], matrix.inverse())
    with pytest.raises(InvalidInputError, match="positive masses"):
        Kinetic([1.0, -1.0])
    with pytest.raises(InvalidInputError, match="positive definite"):
        Kinetic([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ShapeError, match="masses"):
        Kinetic(torch.ones(2, 3))


def test_refusals_say_what_to_do():
    x, general = states(), HamiltonianSystem(GradNetC(4, 4).double())
    with pytest.raises(InvalidInputError, match="Build a SeparableHamiltonian, or take one of midpoint"):
        integrate(general, x, [0.0, 1.0], method="verlet")
    with pytest.raises(UnknownNameError, match="'gauss4'"):
        integrate(general, x, [0.0, 1.0], method="gauss5")
    with pytest.raises(UnknownNameError, match="rtol"):
        integrate(general, x, [0.0, 1.0], rtol=1e-3)
    for times in ([0.0, 0.0], [0.0, 1.0, 0.5], [0.0, float("nan")]):
        with pytest.raises(InvalidInputError, match="increase"):
            integrate(general, x, times)
    with pytest.raises(ShapeError, match="times"):
        integrate(general, x, torch.zeros(2, 2))
    with pytest.raises(InvalidInputError, match="step > 0"):
        integrate(general, x, [0.0, 1.0], step=-0.1)
    with pytest.raises(InvalidInputError, match="PortHamiltonian"):
        integrate(general, x, [0.0, 1.0], inputs=lambda t: x)
    with pytest.raises(ShapeError, match="even number"):
        HamiltonianSystem(GradNetC(3, 4))
    with pytest.raises(InvalidInputError, match=r"net\.given"):
        HamiltonianSystem(ConditionalGradNet(4, 2, 8))
    with pytest.raises(InvalidInputError, match="one number of features"):
        SeparableHamiltonian([1.0, 1.0, 1.0], GradNetC(2, 4))
    with pytest.raises(InvalidInputError, match="dissipation"):
        PortHamiltonian(GradNetC(2, 4), dissipation=-1)


def test_second_order_systems_conserve_their_energy_and_say_when_there_is_none():
    torch.manual_seed(0)
    force = -1.0 * Quadratic(3, monotone=True)
    system = SecondOrder(force, 3, [1.0, 2.0, 3.0]).double()
    states = integrate(system, torch.randn(4, 6).double(), torch.linspace(0, 20, 21), method="yoshida4", step=0.05)
    energy = system.energy(states)
    assert float((energy - energy[0]).abs().max()) < 1e-4 * float(energy.abs().max())
    with pytest.raises(InvalidInputError, match="has no potential"):
        SecondOrder(torch.nn.Linear(3, 3), 3).energy(torch.randn(6))
    with pytest.raises(InvalidInputError, match="3 positive masses"):
        SecondOrder(force, 3, [1.0, 0.0, 1.0])
