"""Forces in coordinates: the symmetries that they promise, one law for all pairs, and ridge regression through it all."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nablanets import CoordinatePullback, GradientMap, GradNetC, GradNetM, load, odd, pair_forces
from nablanets.errors import InvalidInputError, ShapeError
from nablanets.fitting import error, fit
from nablanets.maps import PairAcceleration, PairLaw, Quadratic, distances_from, pair_distances, pair_permutations
from nablanets.serialization import save
from nablanets.starts import solve_outer, solve_ridge, standardised_inside
from nablanets.verify import circulations, symmetry_error
from tests.peers import PeerMLP, mlp_potential

PARTICLES, ALIKE = 4, [(1, 2, 3)]


@pytest.fixture
def x():
    return torch.randn(6, PARTICLES * 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _molecule(kind="inverse", alike=ALIKE) -> CoordinatePullback:
    torch.manual_seed(0)
    return pair_forces(GradNetM(6, 5, 2), PARTICLES, kind=kind, alike=alike).double()


def _rotation() -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    return q


def _moved(x, matrix=None, shift=None, order=None):
    y = x.unflatten(-1, (PARTICLES, 3))
    y = y if order is None else y[:, order]
    y = y if matrix is None else y @ matrix.mT
    return (y if shift is None else y + shift).flatten(-2)


@pytest.mark.parametrize("kind", ["distance", "inverse", "log"])
def test_forces_follow_translations_rotations_and_exchanges(x, kind):
    net, turn, order = _molecule(kind), _rotation(), [0, 3, 1, 2]
    assert_close(net(_moved(x, shift=torch.tensor([1.0, 2.0, 3.0]))), net(x))
    assert_close(net(_moved(x, matrix=turn)), _moved(net(x), matrix=turn))
    assert_close(net(_moved(x, order=order)), _moved(net(x), order=order))
    assert_close(net.potential(_moved(x, turn, torch.ones(3), order)), net.potential(x))


def test_symmetry_under_exchanges_comes_from_alike_only(x):
    net, order = _molecule(alike=[(1, 2)]), [0, 3, 1, 2]
    assert not torch.allclose(net.potential(_moved(x, order=order)), net.potential(x))
    assert_close(net.potential(_moved(x, order=[0, 2, 1, 3])), net.potential(x))


def test_forces_and_their_moments_add_to_zero(x):
    position, force = (value.unflatten(-1, (PARTICLES, 3)) for value in (x, _molecule()(x).detach()))
    assert float(force.sum(dim=-2).abs().max()) < 1e-12 * float(force.abs().max())
    assert float(torch.linalg.cross(position, force).sum(dim=-2).abs().max()) < 1e-12 * float(force.abs().max())


def test_exchanges_are_those_of_the_group():
    group = pair_permutations(5, [(0, 1), (2, 3, 4)])
    assert len(group) == 2 * 6
    phi, x = pair_distances(5), torch.randn(3, 5, 3)
    exchanged = [phi(x[:, [*a, *b]].flatten(1)) for a in [(0, 1), (1, 0)] for b in itertools.permutations((2, 3, 4))]
    orbit = torch.einsum("nij,bj->nbi", group, phi(x.flatten(1)))
    for value in exchanged:
        assert min(float((value - image).abs().max()) for image in orbit) < 1e-6


def test_distances_against_autograd_and_their_definition(x):
    for phi in (
        pair_distances(PARTICLES, kind="log").double(),
        pair_distances(6, 2).double(),
        pair_distances(PARTICLES, kind="distance").double(),
    ):
        c = torch.randn(6, phi.outputs, dtype=torch.float64)
        value, pull = phi.linearise(x)
        (expected,) = torch.autograd.grad((phi(y := x.clone().requires_grad_()) * c).sum(), y)
        assert_close(pull(c), expected)
        assert_close(value, phi(x))
    assert_close(phi(x), torch.stack([torch.pdist(frame) for frame in x.unflatten(-1, (PARTICLES, 3))]))


def test_a_force_towards_a_centre_is_radial():
    centre = torch.tensor([[1.0, -1.0, 2.0]])
    net = CoordinatePullback(GradNetC(1, 6), distances_from(centre))
    x = torch.randn(5, 3)
    delta = x - centre
    cosine = torch.nn.functional.cosine_similarity(net(x), delta).abs()
    assert_close(cosine, torch.ones(5))


class PairField(nn.Module):
    """A plain network of the distances, pulled back: the symmetries of the maps without their potential."""

    def __init__(self, inner, coordinates):
        super().__init__()
        self.inner, self.coordinates = inner, coordinates

    def forward(self, x):
        distances, pull = self.coordinates.linearise(x)
        return pull(self.inner(distances))


def test_a_field_of_pairs_without_potential_circulates(x):
    """The baseline has all symmetries but is no gradient: what tells it from the maps is the check for loops."""
    torch.manual_seed(0)
    free = PairField(PeerMLP(6, 8), pair_distances(PARTICLES)).double()
    turn = _rotation()
    assert_close(free(_moved(x, matrix=turn)), _moved(free(x), matrix=turn))
    assert symmetry_error(free, x) > 1e-2
    assert symmetry_error(_molecule(), x) < 1e-12
    square = torch.eye(12, dtype=torch.float64)[:4] + 3 * torch.randn(1, 12, dtype=torch.float64)
    assert float(circulations(free, square, panels=64).detach().abs().max()) > 1e-6
    assert float(circulations(_molecule(), square, panels=64).detach().abs().max()) < 1e-12


@pytest.mark.parametrize(
    "build",
    [
        lambda: GradNetC(6, 20, 1, activation="sine"),
        lambda: GradNetM(6, 5, 3),
        lambda: odd(GradNetC(6, 10, 2, linear=False)),
        lambda: 2 * GradNetC(5, 10, 1).pullback(torch.randn(5, 6)),
    ],
)
def test_ridge_finds_coefficients_of_a_net_of_the_same_kind(build, x):
    torch.manual_seed(3)
    truth = pair_forces(build(), PARTICLES, alike=ALIKE).double()
    net = pair_forces(build(), PARTICLES, alike=ALIKE).double()
    net.load_state_dict(truth.state_dict())
    core = net
    while isinstance(getattr(core, "inner", None), GradientMap):
        core = core.inner
    with torch.no_grad():
        raw = core.scale_raw if isinstance(core, GradNetM) else core.ridge.alpha_raw[-1]
        raw.normal_()
    points = 3 * torch.randn(80, 12, dtype=torch.float64)
    target = truth(points).detach()
    assert error(net, points, target) > 1e-3 * float(target.square().mean())
    found = solve_ridge(net, points, target, validation=(points, target), ridges=(1e-13, 1e-3))
    assert found.ridge == 1e-13
    assert error(net, points, target) < 1e-12 * float(target.square().mean())


def test_ridge_agrees_with_the_outer_solve(x):
    torch.manual_seed(0)
    net, points = GradNetC(3, 6, 2, activation="tanh").double(), torch.randn(200, 3, dtype=torch.float64)
    target = points.sin()
    solve_outer(net, points, target)
    expected = net(points).detach()
    solve_ridge(net, points, target, validation=(points, target), ridges=(1e-14,))
    assert_close(net(points).detach(), expected, rtol=1e-5, atol=1e-6)


def test_ridge_refuses_what_it_cannot_solve():
    refused = {"lacks outer_terms": mlp_potential(3, 4), "may have any sign": GradNetC(3, 4, monotone=True)}
    for reason, net in refused.items():
        with pytest.raises(InvalidInputError, match=f"solve_ridge: expected .*{reason}"):
            solve_ridge(net, torch.randn(5, 3), torch.randn(5, 3), validation=(torch.randn(5, 3), torch.randn(5, 3)))


def test_fit_learns_forces_through_coordinates():
    torch.manual_seed(0)
    phi, x = pair_distances(3, kind="distance"), 2 * torch.randn(400, 9)
    truth = CoordinatePullback(Quadratic(3), phi)
    g = truth(x).detach()
    net = CoordinatePullback(standardised_inside(GradNetC(3, 8), phi, x, g), phi)
    for optimizer in ("adam", "lbfgs", "levenberg"):
        before = error(net, x, g)
        fit(net, x, g, optimizer=optimizer, steps=60, progress=False, learning_rate=1e-2)
        assert error(net, x, g) < 0.5 * before


def test_masses_and_law_are_learned_together():
    """Springs between particles of unknown masses: the masses come out, since the first is known."""
    masses = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    truth = PairAcceleration(Quadratic(1, 0), masses, kind="distance").double()
    torch.manual_seed(0)
    x = torch.randn(300, 9, dtype=torch.float64)
    net = PairAcceleration(GradNetC(1, 2, 1), torch.ones(3), kind="distance").double()
    fit(net, x, truth(x).detach(), optimizer="levenberg", steps=200, progress=False)
    assert_close(net.pairs.masses().detach(), masses, rtol=1e-5, atol=0)


def test_accelerations_conserve_momentum_and_survive_saving(x, tmp_path):
    masses = torch.tensor([1.0, 0.1, 3.0, 2.0], dtype=torch.float64)
    net = PairAcceleration(GradNetC(1, 4), masses).double()
    acceleration = net(x).unflatten(-1, (PARTICLES, 3))
    assert float((masses.unsqueeze(-1) * acceleration).sum(dim=-2).abs().max()) < 1e-12
    for module in (net, _molecule()):
        save(module, tmp_path / "m.safetensors")
        assert_close(load(tmp_path / "m.safetensors")(x), module(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CoordinatePullback(GradNetC(3, 4), pair_distances(4)), "6 outputs"),
        (lambda: pair_distances(4, kind="invers"), "inverse"),
        (lambda: pair_distances(1), "at least two"),
        (lambda: pair_permutations(3, [(0, 3)]), "indices of 3"),
        (lambda: PairLaw(GradNetC(2, 4), torch.ones(3)), "one feature"),
        (lambda: PairLaw(GradNetC(1, 4), -torch.ones(3)), "positive masses"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises((InvalidInputError, ShapeError), match=message):
        call()
