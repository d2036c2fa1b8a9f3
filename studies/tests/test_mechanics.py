"""Hamiltonian problems: gradients against autograd, closed forms against an integrator, what is conserved."""

from __future__ import annotations

import pytest
import torch

from nablanets.dynamics.reference import reference_trajectory
from nablanets.errors import ConvergenceError
from nablanets_studies.problems.gravity import MECHANICS, TwoBody, kepler
from nablanets_studies.problems.mechanics import Mechanics, Pendulum


@pytest.fixture(params=MECHANICS.values(), ids=MECHANICS)
def problem(request):
    return request.param


def starts(problem, count=6):
    return problem.sample(count, torch.Generator().manual_seed(1))


def test_gradients_are_those_of_the_energy(problem):
    x = starts(problem) + 0.05 * torch.randn(6, problem.features, dtype=torch.double)
    gradient = torch.func.grad(lambda y: problem.energy(y).sum())(x)
    torch.testing.assert_close(problem.gradient(x), gradient, rtol=1e-12, atol=1e-12)
    gq, gp = gradient.chunk(2, dim=-1)
    torch.testing.assert_close(problem.field(x), torch.cat([gp, -gq], dim=-1))
    assert problem.energy(x.reshape(2, 3, -1)).shape == (2, 3)
    if problem.masses is not None:
        torch.testing.assert_close(gp, x.chunk(2, dim=-1)[1] / torch.tensor(problem.masses).double())


def test_trajectories_solve_the_equations_and_conserve_what_they_should(problem):
    x0, times = starts(problem), torch.linspace(0, min(problem.span, 6), 9).tolist()
    x = problem.trajectory(x0, times)
    assert x.shape == (9, 6, problem.features)
    reference = Mechanics.trajectory(problem, x0, times)
    torch.testing.assert_close(x, reference, rtol=0, atol=1e-8)
    for values in problem.invariants(x).values():
        torch.testing.assert_close(values, values[:1].expand_as(values), rtol=0, atol=1e-9)
    assert float((x[-1] - x0).abs().max()) > 0.1


def test_closed_forms_take_any_state():
    """Pendulums that swing and that turn over, moving centres of mass, orbits that are not bound."""
    times = [0.0, 1.0, 7.0]
    x0 = torch.tensor([[0.4, -1.0], [-2.0, 0.5], [0.0, -1.9]]).double()
    torch.testing.assert_close(
        Pendulum().trajectory(x0, times), Mechanics.trajectory(Pendulum(), x0, times), rtol=0, atol=1e-8
    )
    over = torch.tensor([[0.0, 3.0]]).double()
    assert float(Pendulum().trajectory(over, times)[-1, 0, 0]) > 6
    drifting = starts(TwoBody()) + torch.tensor([0.3, 0.1, 0.3, 0.1, 0.2, -0.1, 0.2, -0.1]).double()
    torch.testing.assert_close(
        TwoBody().trajectory(drifting, times), Mechanics.trajectory(TwoBody(), drifting, times), rtol=0, atol=1e-8
    )
    free = starts(TwoBody()) * torch.tensor([1.0] * 4 + [3.0] * 4).double()
    energy = TwoBody().energy(TwoBody().trajectory(free, times))
    torch.testing.assert_close(energy, energy[:1].expand_as(energy), rtol=0, atol=1e-9)


def test_two_body_is_the_set_up_of_the_literature():
    x = TwoBody().sample(4000, torch.Generator().manual_seed(0))
    q, p = TwoBody().positions(x), TwoBody().momenta(x)
    torch.testing.assert_close(q[:, 0], -q[:, 1])
    torch.testing.assert_close(p[:, 0], -p[:, 1])
    radius, speed = q[:, 0].norm(dim=-1), p[:, 0].norm(dim=-1)
    assert 0.5 <= float(radius.min()) < 0.51
    assert 1.49 < float(radius.max()) <= 1.5
    ratio = speed / (0.5 / radius.sqrt())  # circular: v^2 / r = g / (2 r)^2
    assert float(ratio.mean()) == pytest.approx(1, abs=0.004)
    assert float(ratio.std()) == pytest.approx(0.05, rel=0.05)
    period = TwoBody().period(x[:5])
    for state, time in zip(x[:5], period, strict=True):
        torch.testing.assert_close(TwoBody().trajectory(state, [0.0, float(time)])[1], state, rtol=0, atol=1e-10)


def test_keplers_equation_for_elongated_orbits():
    r, v = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.1, 0.35]]).double()
    t = torch.linspace(0, 30, 40).double().unsqueeze(-1)
    position, velocity = kepler(r, v, t, mu=1.0)
    energy = velocity.square().sum(-1) / 2 - 1 / position.norm(dim=-1)
    torch.testing.assert_close(energy, energy[:1].expand_as(energy), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(position[0], r)
    torch.testing.assert_close(velocity[0], v)


def test_a_collision_is_an_error_that_says_so():
    with pytest.raises(ConvergenceError, match="Do bodies collide"):
        reference_trajectory(lambda t, x: x.square(), torch.ones(1).double(), [0.0, 2.0])
