"""Inverse, conjugate, proximal point and certified curvature bounds."""

from __future__ import annotations

import random

import pytest
import torch
from scipy.optimize import minimize
from torch.testing import assert_close

from nablanets import (
    Conjugate,
    GradientMap,
    GradNetC,
    GradNetM,
    GradNetMixture,
    Quadratic,
    constrain,
    export,
    fit,
    potential_between,
    verify,
)
from nablanets.errors import ConvergenceError, ExportError, InvalidInputError, SingularJacobianError
from nablanets.maps import Sum
from nablanets.newton import solve_monotone
from nablanets.parameters import inverse_softplus
from nablanets.starts import initialise_from_data
from tests import checks
from tests.cases import CASES, D
from tests.peers import LargestOfThree, icnn_gradient

DTYPE = torch.float64


DIMENSIONS = (1, 2, 3, 5, 8, 16, 32, 64, 128, 256)
ELEMENTWISE = ("wtanh", "softplus", "spline", "relu", "squareplus", "tanh", "sigmoid")
GROUPS = ("wsoftmax", "softmax", "pnorm", "radial")


def _random_map(seed: int) -> GradientMap:
    """A monotone C, M or mixture of any size, with parameters moved and stretched at random, and trained if odd."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    d, kind = draw.choice(DIMENSIONS), seed % 3
    linear = draw.choice([True, True, "diagonal", 1])
    if kind == 0:
        net: GradientMap = GradNetC(
            d, draw.randint(1, 40), draw.randint(1, 4), draw.choice(ELEMENTWISE), monotone=True, linear=linear
        )
    elif kind == 1:
        activation = draw.choice(GROUPS + ELEMENTWISE)
        net = GradNetM(d, draw.randint(2, 16), draw.randint(1, 4), activation, monotone=True, linear=linear)
    else:
        experts = [
            Quadratic(d, monotone=True),
            GradNetC(d, 4, 2, "tanh", monotone=True, linear=linear),
            GradNetM(d, 4, 2, monotone=True, linear=linear),
        ]
        net = GradNetMixture(experts[: draw.randint(1, 3)], sharpness=draw.uniform(0.2, 4))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(draw.uniform(0.5, 3)).add_(0.3 * torch.randn_like(p))
    return net.double()


def _train(net: GradientMap, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, net.features, dtype=DTYPE, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(15):
        optimizer.zero_grad()
        (net(x) - 3 * torch.sin(x) - x).square().sum(dim=-1).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("first", range(0, 1000, 50))
def test_inverse_round_trips(first):
    """1,000 maps in all, half of them trained, d from 1 to 256."""
    for seed in range(first, first + 50):
        net = _random_map(seed)
        if seed % 2:
            _train(net, seed)
        x = 2 * torch.randn(4, net.features, dtype=DTYPE)
        with torch.no_grad():
            error = float((net.inverse(net(x)) - x).abs().max())
        assert error < 1e-9, f"map {seed}: {error:.1e}"


def test_inverse_where_undamped_newton_diverges():
    """A steep step on a faint slope: the tangent at the plateau points far away, and Newton alone jumps back and forth."""
    net = Quadratic(1, 0, monotone=True) + 5 * GradNetC(1, 1, 1, activation="tanh", monotone=True, linear=False)
    net = net.double()
    with torch.no_grad():
        net.parts[0].diagonal_raw.fill_(-4.0)
        net.parts[1].inner.weight.fill_(10.0)
        net.parts[1].inner.ridge.bias.fill_(5.0)
        for raw in (net.parts[1].inner.ridge.alpha_raw, net.parts[1].inner.ridge.beta_raw):
            raw.fill_(inverse_softplus(1.0))
        y = torch.tensor([[-3.0]], dtype=DTYPE)
        x = torch.zeros_like(y)
        for _ in range(50):
            x = x - net.jacobian(x).solve(net(x) - y)
        assert not float((net(x) - y).abs()) < 1e-3  # undamped Newton is lost
        solution = solve_monotone(net, y)
        assert float((net(solution.value) - y).abs()) < 1e-12
        assert int(solution.iterations) < 60


def test_inverse_and_conjugate_have_exact_derivatives():
    net = GradNetC(2, 4, 2, monotone=True, activation="softplus").double()
    y = torch.randn(2, 2, dtype=DTYPE, requires_grad=True)
    assert torch.autograd.gradcheck(net.inverse, (y,), fast_mode=True)
    assert torch.autograd.gradgradcheck(net.inverse, (y,), fast_mode=True)
    weight = net.projection.detach().clone().requires_grad_()

    class Inverse(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, y):
            return self.net.inverse(y)

    def in_weight(w):
        return torch.func.functional_call(Inverse(), {"net.projection": w}, (y.detach(),))

    assert torch.autograd.gradcheck(in_weight, (weight,), fast_mode=True)
    (gradient,) = torch.autograd.grad(net.conjugate(y).sum(), y)
    assert_close(gradient, net.inverse(y).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_fenchel_young(seed):
    net = _random_map(seed)
    x, other = torch.randn(2, 6, net.features, dtype=DTYPE)
    with torch.no_grad():
        y = net(x)
        equality = net.potential(x) + net.conjugate(y) - (x * y).sum(-1)
        inequality = net.potential(other) + net.conjugate(y) - (other * y).sum(-1)
    size = 1 + (x * y).sum(-1).abs()
    assert float((equality.abs() / size).max()) < 1e-9
    assert bool((inequality >= -1e-9 * size).all())


def test_prox_agrees_with_a_general_solver():
    for net in (GradNetC(3, 8, activation="wtanh", monotone=True).double(), GradNetM(3, 4, linear=False).double()):
        y = torch.randn(3, dtype=DTYPE)
        step = 0.7 if net.monotone else 0.5 / float(-net.curvature_bounds()[0])

        def objective(x, net=net, y=y, step=step):
            x = torch.from_numpy(x)
            return float((net.potential(x) + (x - y).square().sum() / (2 * step)).detach())

        reference = minimize(objective, y.numpy(), method="BFGS", options={"gtol": 1e-9})
        assert_close(net.prox(y, step).detach(), torch.from_numpy(reference.x), rtol=1e-5, atol=1e-5)


def test_prox_is_firmly_nonexpansive_and_refuses_steps_without_a_unique_point():
    net = GradNetM(3, 5, monotone=True, linear=False).double()
    a, b = torch.randn(2, 20, 3, dtype=DTYPE)
    with torch.no_grad():
        p, q = net.prox(a, 2.0), net.prox(b, 2.0)
    assert bool((((p - q) * (a - b)).sum(-1) >= (p - q).square().sum(-1) - 1e-10).all())
    rough = GradNetC(3, 5).double()
    with pytest.raises(InvalidInputError, match="steps below"):
        rough.prox(a, 1e6)
    with pytest.raises(InvalidInputError, match="step > 0"):
        net.prox(a, -1.0)


def test_what_has_no_inverse_says_so():
    y = torch.ones(1, 3, dtype=DTYPE)
    with pytest.raises(InvalidInputError, match=r"not monotone by construction.*monotone=True"):
        GradNetC(3, 5).double().inverse(y)
    with pytest.raises(SingularJacobianError, match="rank at most 2"):
        GradNetC(3, 2, monotone=True, linear=False).double().inverse(y)
    net = GradNetC(3, 5, monotone=True).double()
    with pytest.raises(ConvergenceError, match="did not converge"):
        solve_monotone(net, 100 * y, max_steps=0).require()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_curvature_bounds_hold(case):
    net = case.build().double()
    for spread in (0.3, 3.0, 30.0):
        with torch.no_grad():
            eigenvalues = net.jacobian(spread * torch.randn(200, D, dtype=DTYPE)).eigvalsh()
            lower, upper = net.curvature_bounds()
        size = float(eigenvalues.abs().max())
        assert float(lower) <= float(eigenvalues.min()) + 1e-10 * size
        assert float(upper) >= float(eigenvalues.max()) - 1e-10 * size
        assert not net.monotone or float(lower) >= 0


def test_curvature_bounds_are_attained_where_they_can_be():
    quadratic = Quadratic(4).double()
    eigenvalues = quadratic.jacobian(torch.zeros(4, dtype=DTYPE)).eigvalsh()
    assert_close(torch.stack(quadratic.curvature_bounds()), eigenvalues[[0, -1]])
    one = GradNetC(1, 1, 1, activation="tanh", monotone=True, linear=False).double()
    x = torch.linspace(-50, 50, 20001, dtype=DTYPE).unsqueeze(1)
    assert float(one.laplacian(x).max()) == pytest.approx(float(one.curvature_bounds()[1]), rel=1e-2)
    assert torch.isinf(icnn_gradient(2, 3).curvature_bounds()[1])
    negative = (-1.0 * Sum([quadratic])).curvature_bounds()
    assert_close(torch.stack(negative), -eigenvalues[[-1, 0]])


@pytest.mark.parametrize(
    "build", [lambda: GradNetC(3, 12, 3), lambda: GradNetM(3, 8, 3), lambda: GradNetC(3, 12, 2, activation="sine")]
)
@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (0.5, 3.0), (-0.2, 0.1)])
def test_constrained_maps_keep_their_bounds_through_a_thousand_large_steps(build, lower, upper):
    net = constrain(build(), lower=lower, upper=upper)
    x = torch.randn(64, 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.3)
    for step in range(1000):
        optimizer.zero_grad()
        (net(x) - 10 * torch.sin(3 * x)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        if step % 50 == 49:
            with torch.no_grad():
                eigenvalues = net.jacobian(3 * torch.randn(64, 3)).eigvalsh()
            slack = 1e-4 * max(abs(lower), abs(upper))
            assert lower - slack <= float(eigenvalues.min())
            assert float(eigenvalues.max()) <= upper + slack
    assert net.monotone == (lower >= 0)


def test_dials_do_nothing_where_nothing_is_needed_and_refuse_what_they_cannot_hold():
    net = GradNetC(3, 5, activation="tanh", monotone=True)
    x = torch.randn(5, 3)
    assert_close(constrain(net, lower=-1.0, upper=1e4)(x), net(x))
    with pytest.raises(InvalidInputError, match="lower < upper"):
        constrain(net, lower=1.0, upper=1.0)
    with pytest.raises(InvalidInputError, match="nothing finite is known"):
        constrain(icnn_gradient(3, 4), lower=0.0, upper=1.0)


def test_bounds_hold_throughout_training():
    x = torch.rand(500, 2)
    net = GradNetC(2, 12, 3, activation="tanh", monotone=True)
    fit(net, x, 5 * x**3, steps=200, learning_rate=5e-2, progress=False)
    net = net.double()
    eigenvalues = net.jacobian(4 * torch.randn(500, 2, dtype=DTYPE)).eigvalsh()
    lower, upper = net.curvature_bounds()
    assert 0 < float(lower) <= float(eigenvalues.min())
    assert float(eigenvalues.max()) <= float(upper) < float("inf")


def test_a_failed_solve_is_reported_per_sample():
    net = GradNetC(3, 5, monotone=True).double()
    x = torch.randn(4, 3, dtype=DTYPE)
    y = net(x).detach()
    y[2] = torch.nan
    solution = net.solve(y, throw=False)
    assert solution.converged.tolist() == [True, True, False, True]
    assert_close(solution.value[[0, 1, 3]], x[[0, 1, 3]])
    assert bool((solution.residual[[0, 1, 3]] < 1e-12).all())
    with pytest.raises(ConvergenceError, match="1 of 4 solves"):
        net.solve(y)
    assert not bool(net.solve(net(x), max_steps=0, throw=False).converged.any())


CONJUGATE_CHECKS = (
    checks.shapes, checks.samples_are_independent, checks.potential, checks.potential_along_paths, checks.jacobian,
    checks.symmetry, checks.loops, checks.operator, checks.inverse_operations, checks.monotone, checks.nothing_is_changed, checks.copies, checks.second_derivatives,
)  # fmt: skip


@pytest.mark.parametrize("check", CONJUGATE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "build",
    [lambda: GradNetC(D, 5, 2, monotone=True), lambda: GradNetM(D, 4, 2, monotone=True)],
    ids=["C", "M"],
)
def test_the_conjugate_is_a_gradient_map(build, check):
    torch.manual_seed(0)
    check(Conjugate(build().double()))


def test_the_conjugate_has_a_certificate_and_says_that_it_cannot_be_exported(tmp_path):
    conjugate = Conjugate(GradNetC(D, 5, 2, monotone=True).double())
    assert verify.certificate(conjugate).passed
    with pytest.raises(ExportError, match="cannot trace this Conjugate"):
        export(conjugate, tmp_path / "conjugate.py", "numpy")


def test_conjugate_against_closed_forms():
    quadratic = Quadratic(3, monotone=True).double()
    y = torch.randn(5, 3, dtype=DTYPE)
    matrix = quadratic.jacobian(y).dense()
    conjugate = Conjugate(quadratic)
    assert_close(conjugate(y), torch.linalg.solve(matrix, y.unsqueeze(-1)).squeeze(-1))
    assert_close(conjugate.potential(y), (conjugate(y) * y).sum(-1) / 2)
    assert_close(conjugate.jacobian(y).dense(), torch.linalg.inv(matrix))
    assert_close(Conjugate(conjugate)(y), quadratic(y))
    bounds, inverse_bounds = quadratic.curvature_bounds(), conjugate.curvature_bounds()
    assert_close(torch.stack(inverse_bounds), torch.stack([1 / bounds[1], 1 / bounds[0]]))
    for flat in (GradNetC(3, 2, monotone=True, linear=False), GradNetC(3, 2)):
        with pytest.raises(InvalidInputError, match="strongly monotone"):
            Conjugate(flat)


def test_maps_without_structure_are_solved_by_products_alone():
    """An ICNN potential in 100 dimensions: no dense Jacobian is ever made, and derivatives are implicit."""
    d = 100
    net = (icnn_gradient(d, 8) + 0.5 * Quadratic(d, 0, monotone=True)).double()
    x = torch.randn(3, d, dtype=DTYPE)
    jacobian = net.jacobian(x)
    assert jacobian.matrix_free
    jacobian.dense = lambda: pytest.fail("a dense Jacobian was made")
    v = torch.randn(3, d, dtype=DTYPE)
    with torch.no_grad():
        assert_close(jacobian @ jacobian.solve(v), v, rtol=1e-10, atol=1e-10)
        assert float((net.inverse(net(x)) - x).abs().max()) < 1e-9
        p = net.prox(x, 2.0)
        assert_close(p + 2.0 * net(p), x, rtol=1e-10, atol=1e-10)
    y = net(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad((net.inverse(y) * v).sum(), y)
    assert_close(gradient, torch.linalg.solve(net.jacobian(x).dense(), v), rtol=1e-7, atol=1e-7)


def test_a_direction_without_curvature_is_refused_by_products():
    flat = icnn_gradient(100, 2).double()
    with torch.no_grad():
        for p in flat.parameters():
            p.zero_()
    with pytest.raises(SingularJacobianError, match="numerically singular"):
        flat.jacobian(torch.randn(2, 100, dtype=DTYPE)).solve(torch.ones(2, 100, dtype=DTYPE))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_path_integrals_give_the_potential(case):
    net = case.build().double()
    a, b = torch.randn(2, 5, D, dtype=DTYPE)
    with torch.no_grad():
        rise = net.potential_between(a, b)
        expected = net.potential(b) - net.potential(a)
    assert bool(((rise.value - expected).abs() <= 2 * rise.error + 1e-11 * (1 + expected.abs())).all())


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_path_integrals_see_kinks_near_the_ends(distance):
    rise = potential_between(
        lambda x: torch.relu(x - 1 + distance), torch.zeros(1, dtype=DTYPE), torch.ones(1, dtype=DTYPE)
    )
    assert abs(float(rise.value) - distance**2 / 2) < 1e-14


def test_path_integrals_of_other_peoples_fields():
    rise = potential_between(lambda x: 3 * x**2, torch.zeros(4, 2, dtype=DTYPE), torch.ones(2, dtype=DTYPE))
    assert_close(rise.value, torch.full((4,), 2.0, dtype=DTYPE))
    kink = potential_between(lambda x: (x > 0.3).double(), torch.zeros(1, dtype=DTYPE), torch.ones(1, dtype=DTYPE))
    assert 0 < abs(float(kink.value) - 0.7) <= float(kink.error)  # a jump is not integrated exactly, and says so


@pytest.mark.parametrize("activation", ["softmax", "wsoftmax"])
def test_softmax_modules_use_the_diameter_of_their_directions(activation):
    """Directions with a common part: softmax does not see it, and the bound must not either."""
    net = GradNetM(8, 6, 2, activation, monotone=True, linear=False).double()
    with torch.no_grad():
        net.projection.add_(5 * torch.randn(8, 1, 1, dtype=DTYPE))
    lower, upper = net.curvature_bounds()
    spectral = 2 * 2 * torch.linalg.matrix_norm(net.weight, 2).square().max()
    x = torch.randn(20_000, 8, dtype=DTYPE)
    observed = net.jacobian(x).eigvalsh()
    assert 0 <= float(lower) <= float(observed.min()) + 1e-12
    assert float(observed.max()) <= float(upper) < 0.2 * float(spectral)


def test_curvature_bounds_are_nearly_tight_in_high_dimension():
    """A GradNet-C trained on the 256-dimensional field of the paper, against the largest curvature that ascent finds."""
    field = LargestOfThree(256)
    x, g = field.sample(4000, torch.Generator().manual_seed(1))
    net = GradNetC(256, 500, 4, monotone=True)
    initialise_from_data(net, x)
    fit(net, x, g, steps=300, batch_size=100, learning_rate=2e-3, progress=False)
    with torch.no_grad():
        start = x[net.jacobian(x[:200]).eigvalsh()[:, -1].topk(4).indices]
        upper = float(net.curvature_bounds()[1])
    observed = verify.sought_curvature(net, start)
    assert observed <= upper * (1 + 1e-5)
    assert upper < 1.2 * observed
