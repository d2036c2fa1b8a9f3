"""Solving f(x) = y: any size, any type, any transformation of functions, and one bad sample beside good ones."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.testing import assert_close

from nablanets import ConditionalGradNet, Conjugate, GradNetC, GradNetM, Quadratic
from nablanets.errors import ConvergenceError, SingularJacobianError
from nablanets.newton import solve_monotone
from nablanets.operators import SumOperator
from tests.cases import CASES, D
from tests.peers import icnn_gradient

DTYPE = torch.float64


def _is_invertible(case):
    torch.manual_seed(0)
    net = case.build()
    return net.monotone and bool(net.curvature_bounds()[0] > 0)


INVERTIBLE = [case for case in CASES if _is_invertible(case)]
#: One of each kind, for what does not depend on the activation.
KINDS = [
    case
    for case in INVERTIBLE
    if case.name
    in {
        "C-tanh-monotone-linear",
        "M-radial-monotone-linear",
        "C-spline-monotone-linear",
        "sum",
        "mixture",
        "given-context-monotone",
        "quadratic-monotone",
        "symmetrized-monotone",
        "C-diagonal",
        "pullback",
    }
]


def test_there_are_maps_to_invert():
    assert len(INVERTIBLE) > 15
    assert len(KINDS) == 10


@pytest.mark.parametrize("case", INVERTIBLE, ids=lambda case: case.name)
@pytest.mark.parametrize("exponents", [(-25, 10, 19, 25, 37)], ids=["sizes"])
def test_nothing_is_called_converged_that_is_not(case, exponents):
    """Squares of these numbers overflow in float32. What has an answer gets it; what has none says so."""
    torch.manual_seed(1)
    net = case.build()
    for exponent in exponents:
        y = torch.randn(5, D) * 10.0**exponent
        with torch.no_grad():
            solution = net.solve(y, throw=False)
            exact = case_residual(net, solution.value, y)
        assert bool(torch.isfinite(solution.residual)[solution.converged].all())
        size = 1 + y.double().norm(dim=-1)
        assert bool((exact / size < 1e-3)[solution.converged].all())
        if exponent < 30:
            assert bool((solution.converged | cannot_be_solved(case, net, solution, y)).all())


def cannot_be_solved(case, net, solution, y):
    """Which samples have no solution in float32, or none that Newton's steps in it can find, each for its reason."""
    if case.name == "C-polynomial-monotone-linear":
        # A cascade of cubes, whose slopes are further apart than the digits of float32 are.
        slopes = copy.deepcopy(net).double().jacobian(solution.value.double()).eigvalsh()
        apart = slopes[:, -1] > slopes[:, 0] / torch.finfo(torch.float32).eps
        return apart & solution.singular
    if case.name == "mixture":
        # The potentials overflow; or f jumps at an edge between two experts, from a number to its neighbours.
        wide = copy.deepcopy(net).double()
        size = wide.potential(wide.solve(y.double(), max_steps=5, throw=False).value).abs()
        overflows = size > torch.finfo(torch.float32).max / 100  # the solver goes a bit further out on its way
        neighbours = solution.value.unsqueeze(0) * (1 + 4 * torch.finfo(y.dtype).eps * torch.randn(100, 1, 5, D).sign())
        jump = (net(neighbours.squeeze(1)) - net(solution.value)).norm(dim=-1).amax(dim=0)
        return overflows | (jump > 0.3 * solution.residual)
    return torch.zeros_like(solution.converged)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steep_and_flat_directions_do_not_keep_a_solve_from_its_end(seed, dtype):
    """Slopes from 1e-4 to 1: x is 1e4 times as long as y, and f(x) is known to the rounding of x only."""
    for activation in ("leaky_relu", "squareplus"):
        torch.manual_seed(seed + 15)
        net = GradNetC(D, 5, 3, activation=activation, monotone=True, linear=activation == "squareplus").to(dtype)
        for exponent in (-25, 0, 10, 19, 25):
            y = torch.randn(20, D, dtype=dtype) * 10.0**exponent
            with torch.no_grad():
                solution = net.solve(y, throw=False)
                exact = case_residual(net, solution.value, y)
            assert bool(solution.converged.all())
            assert bool((exact <= torch.finfo(dtype).eps ** 0.5 * (1 + y.double().norm(dim=-1)) * 1.1).all())


def case_residual(net, x, y):
    """|f(x) - y| by float32 values of f, with the norm in float64."""
    return (net(x).double() - y.double()).norm(dim=-1)


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e38])
@pytest.mark.parametrize("differentiable", [False, True])
def test_one_bad_sample_fails_alone(case, bad, differentiable):
    torch.manual_seed(2)
    net = case.build()
    y = net(torch.randn(4, D)).detach()
    alone = net.solve(y[[0, 2, 3]])
    y[1] = bad
    y.requires_grad_(differentiable)
    with torch.set_grad_enabled(differentiable):
        solution = net.solve(y, throw=False)
        prox = net.prox(y.detach()[[0, 2, 3]], 0.5)
    others = torch.tensor([0, 2, 3])
    assert solution.converged.tolist()[:1] + solution.converged.tolist()[2:] == [True, True, True]
    assert not bool(solution.converged[1])
    assert_close(solution.value[others], alone.value, rtol=1e-3, atol=1e-3)
    assert bool(torch.isfinite(prox).all())
    if bad != 3e38:
        assert bool(solution.value[1].isnan().all())
    if differentiable:
        gradients = torch.autograd.grad(solution.value[others].sum(), [y, *net.parameters()], allow_unused=True)
        assert all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)
    with pytest.raises(ConvergenceError, match="1 of 4"):
        net.solve(y)


def test_a_singular_jacobian_fails_its_sample_and_is_named():
    """x^3 beside a faint slope in float32: at the start, zero, the Jacobian of some samples is singular."""

    class Plateau(Quadratic):
        def _value_and_jacobian(self, x):
            value, jacobian = super()._value_and_jacobian(x)
            return value, jacobian.congruence(torch.eye(3)) * (self.strength if len(x) == 3 else self.strength[0])

    net = Plateau(3, monotone=True)
    net.strength = torch.tensor([1.0, 0.0, 1.0])
    solution = net.solve(torch.ones(3, 3), throw=False)
    assert solution.converged.tolist() == [True, False, True]
    assert solution.singular.tolist() == [False, True, False]
    with pytest.raises(SingularJacobianError, match="1 of 3 Jacobians are numerically singular"):
        net.solve(torch.ones(3, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
def test_sixteen_bit_maps_are_inverted_in_float32(case, dtype):
    """To the rounding of the type: as if the map with these rounded parameters were inverted in float64."""
    torch.manual_seed(3)
    net = case.build().to(dtype)
    y = torch.randn(6, D).to(dtype).requires_grad_()
    solution = net.solve(y)
    assert solution.value.dtype == solution.residual.dtype == dtype
    with torch.no_grad():
        exact = net.double().inverse(y.double())
    rounding = torch.finfo(dtype).eps
    # Half a rounding by the result, and a little by float32.
    assert float(((solution.value.double() - exact).abs() / (1 + exact.abs())).max()) < 0.6 * rounding
    (gradient,) = torch.autograd.grad(solution.value.sum(), y)
    assert gradient.dtype == dtype
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
def test_vmap_of_inverse_conjugate_and_prox(case):
    torch.manual_seed(4)
    net = case.build().double()
    y = torch.randn(2, 3, D, dtype=DTYPE)

    def inverse_jacobian(z):
        return Conjugate(net).jacobian(z).dense()

    for operation in (net.inverse, net.conjugate, net.prox, inverse_jacobian):
        expected = operation(y)
        assert_close(torch.vmap(operation)(y), expected)
        assert_close(torch.vmap(torch.vmap(operation))(y), expected)
    assert_close(torch.vmap(net.inverse, in_dims=1, out_dims=1)(y), net.inverse(y))


@pytest.mark.parametrize(
    "build",
    [lambda: GradNetC(D, 5, 2, monotone=True), lambda: GradNetM(D, 4, 2, monotone=True), lambda: _icnn(D)],
    ids=["C", "M", "icnn"],
)
def test_derivatives_of_the_inverse_by_every_transformation(build):
    net = build().double()
    y = torch.randn(4, D, dtype=DTYPE)
    expected = torch.linalg.inv(net.jacobian(net.inverse(y)).dense()).detach()
    for frozen in (False, True):
        net.requires_grad_(not frozen)
        assert_close(torch.vmap(torch.func.jacrev(net.inverse))(y).detach(), expected)
        assert_close(torch.vmap(torch.func.jacfwd(net.inverse))(y).detach(), expected)
        direction = torch.randn_like(y)
        along = torch.einsum("nij,nj->ni", expected, direction)
        assert_close(torch.func.jvp(net.inverse, (y,), (direction,))[1].detach(), along)
        if isinstance(net.jacobian(y), SumOperator):
            continue  # torch nests no forward mode in forward mode outside torch.func
        with forward_ad.dual_level():
            dual = net.inverse(forward_ad.make_dual(y, direction))
            assert_close(forward_ad.unpack_dual(dual).tangent.detach(), along)


def _icnn(d):
    return icnn_gradient(d, 8) + 0.5 * Quadratic(d, 0, monotone=True)


def test_vmap_over_parameters_and_over_contexts():
    nets = [GradNetC(2, 4, monotone=True).double() for _ in range(3)]
    stacked, buffers = torch.func.stack_module_state(nets)
    y = torch.randn(5, 2, dtype=DTYPE)

    class Inverse(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nets[0]

        def forward(self, y):
            return self.net.inverse(y)

    module = Inverse()

    def one(parameters):
        return torch.func.functional_call(module, {f"net.{name}": value for name, value in parameters.items()}, (y,))

    assert not buffers
    assert_close(torch.vmap(one)(stacked), torch.stack([net.inverse(y) for net in nets]))
    net = ConditionalGradNet(2, 1, 6, monotone=True).double()
    c = torch.randn(4, 1, dtype=DTYPE)
    y = torch.randn(4, 2, dtype=DTYPE)
    expected = net.given(c).inverse(y)
    assert_close(torch.vmap(lambda a, b: net.given(a).inverse(b))(c, y), expected)
    repeated = torch.stack([y, 2 * y])
    together = torch.stack([expected, net.given(c).inverse(2 * y)])
    assert_close(torch.vmap(net.given(c).inverse)(repeated), together)


def test_what_does_not_converge_says_so_in_vmap_too():
    net = GradNetC(2, 4, monotone=True).double()
    y = torch.randn(4, 2, dtype=DTYPE)
    y[2] = torch.nan
    with pytest.raises(ConvergenceError, match="1 of 4"):
        torch.vmap(net.inverse)(y)
    converged = torch.vmap(lambda z: net.solve(z, throw=False).converged)(y)
    assert converged.tolist() == [True, True, False, True]


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(-30, 30),
    stretch=st.floats(-3, 3),
    d=st.integers(1, 5),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_random_inputs_of_any_size_and_type(scale, stretch, d, seed, dtype):
    """What is called converged has a small residual, whatever the units of y and of the map."""
    torch.manual_seed(seed)
    net = (10.0**stretch * GradNetC(d, 6, 2, monotone=True, activation="softplus")).to(dtype)
    y = (torch.randn(4, d, dtype=DTYPE) * 10.0**scale).to(dtype)
    with torch.no_grad():
        solution = net.solve(y, throw=False)
        wide = net.double()
        residual = (wide(solution.value.double()) - y.double()).norm(dim=-1)
        slope = float(wide.curvature_bounds()[1])
    rounding = torch.finfo(dtype).eps
    value = solution.value.double().norm(dim=-1)
    allowed = 100 * max(rounding, 1e-6) * (1 + y.double().norm(dim=-1) + slope * value)
    assert bool((residual <= allowed)[solution.converged].all())
    assert bool(torch.isfinite(solution.value).all(dim=-1)[solution.converged].all())
    if dtype != torch.bfloat16 and abs(stretch) < 1:
        assert bool(solution.converged.all())


def test_solving_starts_where_it_is_told():
    net = GradNetC(2, 4, monotone=True).double()
    x = torch.randn(4, 2, dtype=DTYPE)
    with torch.no_grad():
        solution = solve_monotone(net, net(x), start=x)
    assert int(solution.iterations.max()) == 0
