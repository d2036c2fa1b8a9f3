"""A network class of one's own, with parameters under names of its own, takes part in every start and in fit_many.

So do transformed networks, networks at a context, and maps around networks.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nablanets import (
    ConditionalGradNet,
    GradientMap,
    GradNetC,
    GradNetM,
    GradNetMixture,
    GradNetTransformed,
    Quadratic,
    from_potential,
    odd,
)
from nablanets.activations import make_activation
from nablanets.errors import InvalidInputError
from nablanets.fitting import fit_many
from nablanets.fitting.closed_form import ByAutograd, ClosedForm, make_loss
from nablanets.fitting.objective import error
from nablanets.fitting.stack import Stack
from nablanets.maps import Constant
from nablanets.maps.protocols import AffineParts, ElementwiseForm, FactoredTerm, OuterTerm
from nablanets.operators import GramTerm, StructuredOperator
from nablanets.pieces.regression import symmetric_regression
from nablanets.starts import (
    initialise_affine,
    initialise_from_data,
    initialise_ridges,
    solve_outer,
    solve_ridge,
    standardised,
)

D = 4


class Cosh(GradientMap):
    r"""f(x) = R^T [e^s * tanh(q * (R x + c))] + S x + m: the gradient of sums of log cosh and a quadratic.

    Convex if ``monotone``. Nothing in it is named as in the networks of the library: the coefficients of the units are
    exponentials, and S = L^T L (or L + L^T) has a factor of its own.
    """

    def __init__(self, features: int, count: int, *, monotone: bool, stiff: bool) -> None:
        super().__init__(features, monotone=monotone)
        self.rows_of_units = nn.Parameter(torch.randn(count, features) / features**0.5)
        self.kinks = nn.Parameter(torch.randn(count))
        self.heights = nn.Parameter(torch.randn(count))
        self.steepness = nn.Parameter(torch.ones(count))
        self.level = nn.Parameter(torch.zeros(features))
        self.stiffness = nn.Parameter(0.1 * torch.eye(features)) if stiff else None

    def config(self):
        count, features = self.rows_of_units.shape
        return {
            "features": features,
            "count": count,
            "monotone": self.monotone,
            "stiff": self.stiffness is not None,
        }

    def _heights(self):
        return self.heights.exp() if self.monotone else self.heights

    def _matrix(self):
        if self.monotone:
            return self.stiffness.mT @ self.stiffness
        return self.stiffness + self.stiffness.mT

    def _bent(self, x):
        return self.steepness * (x @ self.rows_of_units.mT + self.kinks)

    def _forward(self, x):
        y = (self._heights() * torch.tanh(self._bent(x))) @ self.rows_of_units + self.level
        return y if self.stiffness is None else y + x @ self._matrix()

    def _potential(self, x):
        u = self._bent(x)
        value = (self._heights() / self.steepness * torch.logaddexp(u, -u)).sum(dim=-1) + x @ self.level
        return value if self.stiffness is None else value + (x @ self._matrix() * x).sum(dim=-1) / 2

    def _jacobian(self, x):
        slope = self._heights() * self.steepness * (1 - torch.tanh(self._bent(x)).square())
        operator = StructuredOperator(self.features, (GramTerm(self.rows_of_units, slope),))
        return operator if self.stiffness is None else operator + Quadratic.from_matrix(self._matrix()).jacobian(x)

    # What the starts ask for.

    def _write_heights(self, theta):
        self.heights.copy_(theta.log() if self.monotone else theta)

    def unit_terms(self) -> list[OuterTerm]:
        def hidden(x):
            return torch.tanh(self._bent(x))

        values = self._heights().detach()
        return [FactoredTerm(values, self._write_heights, hidden, self.rows_of_units, positive=self.monotone)]

    def outer_terms(self) -> list[OuterTerm]:
        identity = torch.eye(self.features).to(self.level)
        return [*self.unit_terms(), FactoredTerm.of(self.level, torch.ones_like, identity)]

    def outer_rest(self, x):
        return torch.zeros_like(x) if self.stiffness is None else x @ self._matrix()

    def has_linear_term(self) -> bool:
        return self.stiffness is not None

    def set_linear_term(self, matrix) -> None:
        with torch.no_grad():
            self.stiffness.copy_(torch.linalg.cholesky(matrix).mT if self.monotone else matrix / 2)

    def add_constant(self, vector) -> None:
        with torch.no_grad():
            self.level.add_(vector)

    def directions(self):
        return self.rows_of_units

    def unit_groups(self) -> int:
        return 1

    def spread_units(self, x) -> None:
        with torch.no_grad():
            self.kinks.copy_(-(x[torch.randint(len(x), self.kinks.shape)] * self.rows_of_units).sum(dim=-1))

    def place_units(self, weight, x, *, largest_spread=None) -> None:
        """Flat and high, so that tanh is nearly linear."""
        flat = 0.05
        with torch.no_grad():
            self.rows_of_units.copy_(weight)
            self.kinks.copy_(-(x @ weight.mT).mean(dim=0))
            self.steepness.fill_(flat)
        self._write_heights(torch.full_like(self.kinks, 1 / flat))

    def profiles(self, u):
        """phi of f = W^T phi(W x), W the rows of the units."""
        return self._heights() * torch.tanh(self.steepness * (u + self.kinks))

    def profile_parameters(self):
        return [self.heights, self.kinks, self.steepness]


class CompiledCosh(Cosh):
    """With a form that the gradients by hand know."""

    def unit_form(self):
        return ElementwiseForm(make_activation("tanh", (), monotone=True))

    def affine_parts(self):
        outer = (self._heights().unsqueeze(-1) * self.rows_of_units).mT
        matrix = None if self.stiffness is None else self._matrix()
        inner = self.steepness.unsqueeze(-1) * self.rows_of_units
        return AffineParts(inner, self.steepness * self.kinks, outer, self.level, matrix)

    def unit_parameters(self):
        return ()


def _samples(count=800):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, D, generator=generator, dtype=torch.float64)
    direction = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    g = 2 * x + torch.tanh(x @ direction).unsqueeze(-1) * direction + 0.2 * torch.sin(2 * x) + 1.0
    return x, g


def _affine_error(x, g):
    matrix, _ = symmetric_regression(x, g)
    rest = g - x @ matrix
    return float((rest - rest.mean(dim=0)).square().sum(dim=-1).mean())


def _given(monotone, linear, each=False):
    net = ConditionalGradNet(D, 2, 16, monotone=monotone, linear=linear)
    return net.given(0.3 * torch.randn(800, 2) if each else torch.randn(2))


def _matrix():
    return torch.eye(D) + 0.3 * torch.randn(D, D)


#: Maps by name: monotone, with a linear term -> a fresh map.
MAPS = {
    "own": lambda monotone, linear: Cosh(D, 16, monotone=monotone, stiff=linear),
    "C": lambda monotone, linear: GradNetC(D, 16, 2, monotone=monotone, linear=linear),
    "M": lambda monotone, linear: GradNetM(D, 8, 2, monotone=monotone, linear=linear),
    "transformed": lambda monotone, linear: GradNetTransformed(D, 8, 2, monotone=monotone, linear=linear),
    "given": _given,
    "pullback of own": lambda monotone, linear: Cosh(D, 16, monotone=monotone, stiff=linear).pullback(
        _matrix(), torch.randn(D)
    ),
    "three times M": lambda monotone, linear: 3 * GradNetM(D, 8, 2, monotone=monotone, linear=linear),
    "own plus constant": lambda monotone, linear: (
        Cosh(D, 16, monotone=monotone, stiff=linear) + Constant(torch.randn(D))
    ),
    "standardised C": lambda monotone, linear: standardised(
        GradNetC(D, 16, 2, monotone=monotone, linear=linear), *(part.float() for part in _samples())
    ),
}
SUMS = {
    "own plus M": lambda: Cosh(D, 16, monotone=True, stiff=True) + GradNetM(D, 8, 2, monotone=True),
    "own minus quadratic": lambda: Cosh(D, 16, monotone=False, stiff=True) - Quadratic(D),
    "own plus C without": lambda: (
        Cosh(D, 16, monotone=True, stiff=True) + GradNetC(D, 16, 2, monotone=True, linear=False)
    ),
    "quadratic": lambda: Quadratic(D, monotone=True),
}


def _build(name, *flags):
    torch.manual_seed(1)
    return {**MAPS, **SUMS}[name](*flags).double()


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_with_a_linear_term_the_start_is_the_best_affine_map(name, monotone):
    x, g = _samples()
    net = _build(name, monotone, True)
    initialise_affine(net, x, g)
    assert_close(error(net, x, g), _affine_error(x, g), rtol=0.02, atol=0)
    assert_close((net(x) - g).mean(dim=0).detach(), torch.zeros(D, dtype=torch.float64))


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_shares_the_affine_map_among_its_parts(name):
    x, g = _samples()
    net = _build(name)
    initialise_affine(net, x, g)
    assert_close(error(net, x, g), _affine_error(x, g), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", MAPS)
def test_units_of_a_monotone_map_can_be_the_affine_map(name):
    x, g = _samples()
    net = _build(name, True, False)
    initialise_affine(net, x, g)
    assert error(net, x, g) < 1.15 * _affine_error(x, g)
    assert float(net.jacobian(x).eigvalsh().detach().min()) > -1e-9


def test_contexts_of_each_sample_change_little_in_an_affine_start():
    torch.manual_seed(1)
    x, g = _samples()
    net = _given(True, True, each=True).double()
    before = error(net, x, g)
    initialise_affine(net, x, g)
    assert error(net, x, g) < min(0.5 * before, 1.5 * _affine_error(x, g))
    reached = error(net, x, g)
    solve_outer(net, x, g, least=1e-6)
    assert error(net, x, g) < reached


@pytest.mark.parametrize("name", MAPS)
def test_a_start_with_ridges_is_better_than_the_affine_map(name):
    x, g = _samples()
    net = _build(name, True, True)
    torch.manual_seed(2)
    initialise_ridges(net, x, g, directions=2)
    if "own" in name:
        gain = 0.99  # a steepness of 0.05 has a long way to go
    elif "M" in name or name == "transformed":
        gain = 1.02  # softmax modules cannot saturate as this field does
    else:
        gain = 0.5
    assert error(net, x, g) < gain * _affine_error(x, g)


@pytest.mark.parametrize("name", ["own", "C", "given", "pullback of own", "own plus constant"])
def test_a_free_network_that_starts_with_ridges_is_no_worse_than_the_affine_map(name):
    x, g = _samples()
    net = _build(name, False, True)
    torch.manual_seed(2)
    initialise_ridges(net, x, g, directions=2)
    assert error(net, x, g) < 1.02 * _affine_error(x, g)


def test_bends_go_where_the_data_are():
    """Far away from the data a fresh network is affine on them; spread units are not. Maps around it pass this on."""
    x = torch.randn(200, D, dtype=torch.float64) + 100
    for name in ("own", "C", "given", "pullback of own", "own plus constant"):
        net = _build(name, False, False)
        torch.manual_seed(2)
        before = net.jacobian(x).dense().std(dim=0).max()
        initialise_from_data(net, x)
        assert net.jacobian(x).dense().std(dim=0).max() > 10 * before
    mixture = GradNetMixture([_build("own", True, False), Quadratic(D, monotone=True).double()])
    before = mixture.experts[0](x)
    initialise_from_data(mixture, x)
    assert not torch.equal(mixture.experts[0](x), before)
    modular = _build("transformed", False, False)
    initialise_from_data(modular, 50 * x)
    units = (50 * x) @ modular.directions().mT * nn.functional.softplus(modular.sharpness_raw[0])
    assert_close(float(units.std(dim=0).square().mean().sqrt().detach()), 1.35)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("name", [*MAPS, "odd"])
def test_the_outer_solve_is_a_minimum(name, monotone, linear):
    """No step along any coefficient lowers the error, unless it crosses a bound."""
    x, g = _samples()
    if name == "odd":
        net = odd(_build("own", monotone, linear) + _build("M", monotone, linear))
    else:
        net = _build(name, monotone, linear)
    before = error(net, x, g)
    solve_outer(net, x, g, least=1e-3)
    reached = error(net, x, g)
    assert reached < before
    terms = net.outer_terms()
    assert all(bool((term.values > 0.999e-3).all()) for term in terms if term.positive)
    with torch.no_grad():
        for term in terms:
            for step in (1e-3, -1e-3):
                moved = term.values + step * torch.ones_like(term.values)
                term.write(moved.clamp(min=1e-3) if term.positive else moved)
                assert error(net, x, g) > reached * (1 - 1e-9)
                term.write(term.values)
    assert_close(error(net, x, g), reached)


@pytest.mark.parametrize("name", [*MAPS, "odd"])
def test_terms_and_rest_add_up_to_the_map(name):
    x = _samples(20)[0]
    for monotone in (False, True):
        net = odd(_build("own", monotone, True)) if name == "odd" else _build(name, monotone, True)
        total = net.outer_rest(x)
        for term in net.outer_terms():
            assert_close(term.columns(x) @ term.values, term.value(x, term.values))
            total = total + term.value(x, term.values)
        assert_close(total, net(x))


@pytest.mark.parametrize("name", MAPS)
def test_ridge_regression_agrees_with_the_outer_solve(name):
    x, g = _samples()
    net = _build(name, False, True)
    solve_outer(net, x, g)
    expected = error(net, x, g)
    solve_ridge(net, x, g, validation=(x, g), ridges=(1e-13,))
    assert_close(error(net, x, g), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", [Cosh, CompiledCosh])
@pytest.mark.parametrize("monotone", [False, True])
def test_many_are_fitted_at_once(kind, monotone):
    x, g = _samples()

    def build():
        return kind(D, 16, monotone=monotone, stiff=True).double()

    stack = Stack([build() for _ in range(3)])
    loss = make_loss(stack)
    assert isinstance(loss, ClosedForm if kind is CompiledCosh else ByAutograd)
    points, values = x.expand(3, *x.shape), g.expand(3, *g.shape)
    expected = ByAutograd(stack).with_gradient(stack.theta, points, values)
    assert_close(loss.with_gradient(stack.theta, points, values), expected)
    members = fit_many(build, x, g, seeds=2, steps=50, learning_rate=0.02)
    torch.manual_seed(0)
    assert all(member.result.best_validation_error < 0.7 * error(build(), x, g) for member in members)


def test_standard_units_take_part():
    x, g = _samples()
    net = standardised(_build("own", True, True), 100 * x + 1000, g / 100)
    initialise_affine(net, 100 * x + 1000, g / 100)
    assert_close(error(net, 100 * x + 1000, g / 100), _affine_error(x, g) / 1e4, rtol=0.02, atol=0)


def test_what_cannot_start_says_what_it_lacks():
    x, g = _samples()
    other = from_potential(nn.Linear(D, 1), D).double()
    starts = {
        "outer_terms": lambda net: solve_outer(net, x, g),
        "outer_rest": lambda net: solve_ridge(net, x, g, validation=(x, g)),
        "set_linear_term": lambda net: initialise_affine(net, x, g),
        "add_constant": lambda net: initialise_ridges(net, x, g),
    }
    for method, start in starts.items():
        for net in (other, 2 * other, other.pullback(torch.eye(D).double()), other + other):
            with pytest.raises(InvalidInputError, match=f"FromPotential lacks .*{method}"):
                start(net)
    before = other(x)
    initialise_from_data(other, x)
    assert torch.equal(other(x), before)


def test_changes_that_cannot_be_undone_are_refused():
    x, g = _samples()
    own = _build("own", True, True)
    with pytest.raises(InvalidInputError, match="can be undone"):
        initialise_affine(Cosh(2, 16, monotone=True, stiff=True).double().pullback(torch.randn(2, D).double()), x, g)
    with pytest.raises(InvalidInputError, match="parts that are affine"):
        initialise_affine(own + from_potential(nn.Linear(D, 1), D).double(), x, g)
    with pytest.raises(InvalidInputError, match="coefficients may have any sign"):
        solve_ridge(2 * own, x, g, validation=(x, g))
    with pytest.raises(InvalidInputError, match="one part"):
        initialise_affine(_build("own", True, False) + _build("M", True, False), x, g)


def test_a_class_derived_from_a_network_says_for_itself_what_it_is():
    class Doubled(GradNetC):
        def _responses(self, u, parts):
            return 2 * super()._responses(u, parts)

    def stack(kind):
        return Stack([kind(D, 5, 2, activation="tanh") for _ in range(2)])

    assert isinstance(make_loss(stack(GradNetC)), ClosedForm)
    assert isinstance(make_loss(stack(Doubled)), ByAutograd)
