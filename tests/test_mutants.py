"""Each check of the conformance suite has a mutant that fails it: a check that cannot fail checks nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nablanets import GradientMap, GradNetC, GradNetM, verify
from nablanets.operators import GramTerm, StructuredOperator
from nablanets.quadrature import gauss_legendre
from nablanets.serialization import savable
from tests import checks
from tests.cases import D


@savable
class Mutant(GradientMap):
    """A sound map; each mutant below spoils one thing."""

    def __init__(self) -> None:
        super().__init__(D, monotone=True)
        torch.manual_seed(0)
        self.inner = GradNetC(D, 5, 2, activation="tanh", monotone=True)

    def config(self):
        return {}

    def _forward(self, x):
        return self.inner(x)

    def _potential(self, x):
        return self.inner.potential(x)

    def _jacobian(self, x):
        return self.inner.jacobian(x)


class PotentialOfWrongShape(Mutant):
    def _potential(self, x):
        value = self.inner.potential(x)
        return value + value.unsqueeze(-1) if x.ndim == 2 else value  # (B, B): gradients B times too large


class CoupledSamples(Mutant):
    def _forward(self, x):
        return self.inner(x) - self.inner(x).mean()


class ScaledPotential(Mutant):
    def _potential(self, x):
        return 2 * self.inner.potential(x)


class PotentialWithExactGradientOnly(Mutant):
    """Its gradient is f, its values are not: a custom autograd trick would look like this."""

    def _potential(self, x):
        value = self.inner.potential(x)
        return value - (value / 2).detach()


class SlightlyWrongPotential(Mutant):
    def _potential(self, x):
        return (1 + 1e-6) * self.inner.potential(x)


class SlightlyWrongValues(Mutant):
    """Its gradient is f; its values are off by a millionth."""

    def _potential(self, x):
        value = self.inner.potential(x)
        return value + (1e-6 * value).detach()


class FixedNodes(Mutant):
    """The potential by 32 fixed nodes, which do not see steep units."""

    def _potential(self, x):
        nodes, weights = gauss_legendre(32, x)
        along = (self.inner(nodes.unsqueeze(-1) * x.unsqueeze(-2)) * x.unsqueeze(-2)).sum(-1)
        return along @ weights


class WrongJacobian(Mutant):
    def _jacobian(self, x):
        return 1.01 * self.inner.jacobian(x)


class GroupInCascade(Mutant):
    """A softmax between per-unit scalings: the asymmetry of the public code."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, D))
        self.scale = nn.Parameter(torch.rand(5))

    def _forward(self, x):
        return (self.scale * torch.softmax(x @ self.weight.mT, -1)) @ self.weight


class Rotation(Mutant):
    def _forward(self, x):
        return self.inner(x) + 0.01 * torch.cross(torch.ones_like(x), x, dim=-1)


class WrongTrace(Mutant):
    def _jacobian(self, x):
        operator = copy.copy(self.inner.jacobian(x))
        operator.trace = lambda: operator.diagonal().sum(-1) + 1e-3
        return operator


class UnrefusedSingular(Mutant):
    def _jacobian(self, x):
        operator = StructuredOperator(D, (GramTerm(x[..., :1, :] * 0 + 1, x[..., :1] * 0 + 1),))
        operator.logdet = lambda: torch.full(x.shape[:-1], -torch.inf)
        return operator


class SingularAtMostPoints(Mutant):
    """Invertible where all coordinates are positive: one point in eight."""

    def _jacobian(self, x):
        positive = (x > 0).to(x)
        return StructuredOperator(D, (GramTerm(torch.eye(D).to(x), positive),))


class WrongLogdetBesideSingular(SingularAtMostPoints):
    def _jacobian(self, x):
        operator = super()._jacobian(x)
        operator.logdet = lambda: torch.full(x.shape[:-1], 0.01).to(x)
        return operator


class WrongSolveBesideSingular(SingularAtMostPoints):
    def _jacobian(self, x):
        operator = super()._jacobian(x)
        operator.solve = lambda b: 1.01 * b
        return operator


class NotMonotone(Mutant):
    def _forward(self, x):
        return -self.inner(x)

    def _jacobian(self, x):
        return -self.inner.jacobian(x)


class MonotoneAtTheStartOnly(Mutant):
    """The sign of the scale is free, so training can turn it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def _forward(self, x):
        return self.scale * self.inner(x)

    def _jacobian(self, x):
        return self.inner.jacobian(x).scale(self.scale)


class UnusedParameter(Mutant):
    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Parameter(torch.zeros(3))


class ChangesItself(Mutant):
    def _forward(self, x):
        with torch.no_grad():
            self.inner.weight.clamp_(-0.1, 0.1)
        return self.inner(x)


class UsesRandomNumbers(Mutant):
    def _forward(self, x):
        torch.rand(1)
        return self.inner(x)


class AutogradInside(Mutant):
    def _forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.inner.potential(x).sum(), x, create_graph=True)[0]


class LosesArguments(Mutant):
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain

    def _forward(self, x):
        return self.gain * self.inner(x)


class ConstantInFloat32(Mutant):
    def __init__(self) -> None:
        super().__init__()
        self.constant = torch.full((D,), 1 / 3)

    def _forward(self, x):
        return self.inner(x) + self.constant.double()


class DetachedDerivative(Mutant):
    def _forward(self, x):
        return self.inner(x) + x.detach()


class LinearisedTerm(Mutant):
    """Right up to the first derivative; the second one lacks that of the cube."""

    def _forward(self, x):
        fixed = x.detach()
        return self.inner(x) + fixed**3 + 3 * fixed**2 * (x - fixed)


class BranchesOnData(Mutant):
    def _forward(self, x):
        return self.inner(x) if bool(x.sum() > 1e9) else self.inner(x) * 1


savable(LosesArguments)

MUTANTS = [
    (checks.shapes, PotentialOfWrongShape),
    (checks.samples_are_independent, CoupledSamples),
    (checks.potential, ScaledPotential),
    (checks.potential, SlightlyWrongPotential),
    (checks.potential_along_paths, PotentialWithExactGradientOnly),
    (checks.potential_along_paths, SlightlyWrongValues),
    (checks.potential_after_moves, FixedNodes),
    (checks.potential_after_moves, SlightlyWrongPotential),
    (checks.potential_after_moves, SlightlyWrongValues),
    (checks.jacobian, WrongJacobian),
    (checks.symmetry, GroupInCascade),
    (checks.loops, Rotation),
    (checks.operator, WrongTrace),
    (checks.inverse_operations, UnrefusedSingular),
    (checks.inverse_operations, WrongLogdetBesideSingular),
    (checks.inverse_operations, WrongSolveBesideSingular),
    (checks.monotone, NotMonotone),
    (checks.monotone, MonotoneAtTheStartOnly),
    (checks.parameters_are_used, UnusedParameter),
    (checks.nothing_is_changed, ChangesItself),
    (checks.nothing_is_changed, UsesRandomNumbers),
    (checks.transforms, AutogradInside),
    (checks.copies, lambda: LosesArguments(2.0)),
    (checks.dtypes, ConstantInFloat32),
    (checks.second_derivatives, DetachedDerivative),
    (checks.second_derivatives, LinearisedTerm),
    (checks.compiles, BranchesOnData),
    (checks.exports, BranchesOnData),
]


@pytest.mark.parametrize(("check", "mutant"), MUTANTS, ids=lambda value: getattr(value, "__name__", "LosesArguments"))
def test_mutant_fails(check, mutant):
    with pytest.raises(Exception):  # noqa: B017 - how it fails is up to the check
        check(mutant().double())


@pytest.mark.parametrize("mutant", [DetachedDerivative, LinearisedTerm])
def test_mutant_of_second_derivatives_fails_in_float32(mutant):
    with pytest.raises(AssertionError, match=r"in torch\.float32"):
        checks.second_derivatives(mutant().float())


def test_inverse_operations_use_the_samples_that_are_sound():
    checks.inverse_operations(SingularAtMostPoints().double())


def test_inverse_operations_ask_for_samples():
    class Flat(Mutant):
        def _jacobian(self, x):
            return StructuredOperator(D, (GramTerm(torch.eye(D).to(x), 0 * x),))

    with pytest.raises(checks.TooFewSamplesError):
        checks.inverse_operations(Flat().double())


def test_every_check_has_a_mutant():
    assert {check for check, _ in MUTANTS} == {*checks.FAST, *checks.GRAPH}


@pytest.mark.parametrize("check", [*checks.FAST, *checks.GRAPH], ids=lambda check: check.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_sound_map_passes(check, dtype):
    """The base class of the mutants passes every check, so each fails for what it spoils."""
    check(Mutant().to(dtype))


def test_asymmetry_of_a_group_activation_in_the_cascade():
    """What GradNetC refuses would be visibly asymmetric (papers.md A.3.2)."""
    assert verify.symmetry_error(GroupInCascade().double(), torch.randn(8, D, dtype=torch.float64)) > 0.01
    with pytest.raises(Exception, match="GradNetM"):
        GradNetC(D, 5, activation="softmax")
    GradNetM(D, 5, activation="softmax")
