"""Certified bounds are as tight as stated: none may be several times larger than what is attained.

That bounds hold is tested elsewhere (test_activations, test_calculus, test_properties); a bound may hold and still be
useless. Here each is compared with the extremes that a search finds. A test at the end makes every bound four times as
loose and sees its check fail.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from nablanets import GradNetC, GradNetM
from nablanets.activations import ACTIVATIONS, ElementwiseActivation, GradientActivation, GroupActivation
from nablanets.maps import modular
from nablanets.maps.transformation import Transformation

UNITS = 4
DTYPE = torch.float64
#: Slopes that are approached at infinity only are this near at the farthest arguments.
_NEARLY = 1e-3
#: By how much an end of an interval of slopes may exceed what is attained; 1.02 for all others.
SLOPE_LOOSENESS = {
    "pnorm": 2.3,  # for p = 4: the bound p - 1 leaves out that the norm is larger than one where slopes are large
    "radial": 1.8,  # the largest slope is 0.575
    "wsoftmax": 2.0,  # |a| + |b| over two is attained by two units; more units let each half act on its own
}
#: The same for bounds of values.
VALUE_LOOSENESS = {
    "wsoftmax": 1.5,  # |a| + |b| against the root of a^2 + b^2, for probabilities on different units
}
#: Slopes without bounds: a polynomial's, which are at most bounded below.
UNBOUNDED = {"polynomial"}
#: Values without bounds: of activations that grow.
GROWING = {
    *("identity", "wtanh", "softplus", "squareplus", "relu", "leaky_relu", "abs", "polynomial", "spline"),
}
SPECS = [
    (name, monotone)
    for name, cls in ACTIVATIONS.items()
    for monotone in (False, True)
    if not monotone or cls((1,), monotone=True).increasing
]


def _activation(name: str, monotone: bool) -> GradientActivation:
    torch.manual_seed(3)
    activation = ACTIVATIONS[name]((UNITS,), monotone=monotone).double()
    with torch.no_grad():
        for parameter in activation.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return activation


def _arguments(activation: GradientActivation) -> Tensor:
    """Points at which the extremes of slopes and values are attained or nearly so, (n, UNITS)."""
    if isinstance(activation, ElementwiseActivation):
        line = torch.linspace(-40, 40, 32_001, dtype=DTYPE)
        return line.unsqueeze(1).expand(-1, UNITS)
    levels = torch.tensor([-30.0, -1.0, -0.5, 0.0, 0.5, 1.0, 30.0], dtype=DTYPE)
    return torch.cartesian_prod(*[levels] * UNITS)


def _attained_slopes(activation: GradientActivation) -> tuple[Tensor, Tensor]:
    """The least and the largest eigenvalue found: of each unit if elementwise, of the Jacobian if a group."""
    z = _arguments(activation)
    derivative = activation.derivative(z)
    if isinstance(activation, GroupActivation):
        low_rank = derivative.factors.mT @ (derivative.weights.unsqueeze(-1) * derivative.factors)
        eigenvalues = torch.linalg.eigvalsh(torch.diag_embed(derivative.diagonal) + low_rank)
        return eigenvalues.min(), eigenvalues.max()
    return derivative.amin(dim=0), derivative.amax(dim=0)


def _attained_values(activation: GradientActivation) -> Tensor:
    """The largest |s|: of each unit if elementwise, the Euclidean norm if a group."""
    values = activation(_arguments(activation))
    return values.norm(dim=-1).max() if isinstance(activation, GroupActivation) else values.abs().amax(dim=0)


def _assert_upper(bound: Tensor, attained: Tensor, looseness: float) -> None:
    """``bound`` is above what is attained, and by no more than the factor (away from zero or towards it)."""
    bound = bound.detach().double()
    attained = attained.detach()
    farthest = torch.where(attained > 0, attained * looseness, attained / looseness)
    assert bool((bound >= attained - 1e-9).all()), f"the bound {bound} is below {attained}"
    assert bool((bound <= farthest + _NEARLY).all()), f"the bound {bound} is more than {looseness} times {attained}"


def check_slopes(name: str, monotone: bool) -> None:
    activation = _activation(name, monotone)
    lower, upper = activation.slope_interval()
    least, largest = _attained_slopes(activation)
    looseness = SLOPE_LOOSENESS.get(name, 1.02)
    if name in UNBOUNDED:
        assert bool(torch.isinf(upper).all())
        assert float(lower) == (0.0 if monotone else -torch.inf)
        return
    _assert_upper(upper, largest, looseness)
    _assert_upper(-lower, -least, looseness)


def check_values(name: str, monotone: bool) -> None:
    activation = _activation(name, monotone)
    bound = activation.value_bound()
    if name in GROWING:
        assert bool(torch.isinf(bound).all())
        return
    _assert_upper(bound, _attained_values(activation), VALUE_LOOSENESS.get(name, 1.02))


def check_covariance() -> None:
    """The bound of twice the covariance of rows w_i: it holds for all probabilities, and its norm is attained."""
    weight = torch.randn(5, UNITS, 3, dtype=DTYPE)
    bound = modular._covariance_bound(weight)
    pairs = [torch.eye(UNITS, dtype=DTYPE)[list(pair)].sum(dim=0) / 2 for pair in itertools.combinations(range(4), 2)]
    probabilities = torch.cat([torch.stack(pairs), torch.rand(50, UNITS, dtype=DTYPE).softmax(dim=-1)])
    mean = torch.einsum("pk,mkd->mpd", probabilities, weight)
    second = torch.einsum("pk,mki,mkj->mpij", probabilities, weight, weight)
    twice = 2 * (second - mean.unsqueeze(-1) * mean.unsqueeze(-2))  # (M, p, d, d)
    gap = torch.linalg.eigvalsh(bound.unsqueeze(1) - twice)
    assert float(gap.min()) > -1e-9
    attained = torch.linalg.eigvalsh(twice).amax(dim=(1, 2))
    _assert_upper(torch.linalg.eigvalsh(bound).amax(dim=-1), attained, 1.02)


def check_modular_curvature(name: str, monotone: bool) -> None:
    """GradNet-M of one module whose rows are orthonormal: its curvature is that of the activation, times the gain."""
    torch.manual_seed(4)
    net = GradNetM(UNITS + 1, UNITS, 1, activation=name, monotone=monotone, linear=False).double()
    net.units = _activation_of_module(name, monotone)
    rows = torch.linalg.qr(torch.randn(UNITS + 1, UNITS, dtype=DTYPE)).Q.mT  # (UNITS, d)
    with torch.no_grad():
        net.projection.copy_(rows.mT.unsqueeze(1))
    gain = float((net._scale() * net._sharpness()).detach())
    least, largest = _attained_slopes(_activation(name, monotone))
    lower, upper = net.curvature_bounds()
    if name in UNBOUNDED:
        assert bool(torch.isinf(upper))
        return
    # In d > h dimensions one direction has no curvature at all.
    looseness = SLOPE_LOOSENESS.get(name, 1.02)
    _assert_upper(upper, (gain * largest).max().clamp(min=0), looseness)
    _assert_upper(-lower, (-gain * least).max().clamp(min=0), looseness)


def _activation_of_module(name: str, monotone: bool) -> GradientActivation:
    """The activation with its parameters in the shape (modules, units), for one module."""
    flat = _activation(name, monotone)
    activation = ACTIVATIONS[name]((1, UNITS), monotone=monotone).double()
    parameters = dict(flat.named_parameters())
    with torch.no_grad():
        for key, parameter in activation.named_parameters():
            parameter.copy_(parameters[key].reshape(parameter.shape))
    return activation


def check_cascaded_curvature() -> None:
    """GradNet-C without biases: at zero every tanh has its largest slope, so the bound is attained there."""
    for num_layers in (1, 2, 3):
        net = GradNetC(3, 5, num_layers, activation="tanh", monotone=True).double()
        with torch.no_grad():
            for parameter_name, parameter in net.named_parameters():
                if parameter_name.endswith("bias"):
                    parameter.zero_()
        attained = net.jacobian(torch.zeros(3, dtype=DTYPE)).eigvalsh()[-1]
        _assert_upper(net.curvature_bounds()[1], attained, 1.02)


def check_transformation() -> None:
    """The derivatives of a transformation with one sigmoid, on a line."""
    for monotone in (False, True):
        transformation = Transformation(6, 1, monotone=monotone).double()
        line = torch.linspace(-200, 200, 40_001, dtype=DTYPE).unsqueeze(1).expand(-1, 6)
        attained = transformation.derivatives(line)
        for values, (lower, upper) in zip(attained, transformation.derivative_intervals(), strict=True):
            _assert_upper(upper, values.amax(dim=0), 1.02)
            _assert_upper(-lower, -values.amin(dim=0), 1.02)


@pytest.mark.parametrize(("name", "monotone"), SPECS)
def test_slope_intervals_are_nearly_attained(name, monotone):
    check_slopes(name, monotone)


@pytest.mark.parametrize(("name", "monotone"), SPECS)
def test_value_bounds_are_nearly_attained(name, monotone):
    check_values(name, monotone)


@pytest.mark.parametrize(("name", "monotone"), SPECS)
def test_curvature_bounds_of_one_module_are_nearly_attained(name, monotone):
    check_modular_curvature(name, monotone)


def test_the_covariance_bound_is_attained():
    torch.manual_seed(0)
    check_covariance()


def test_curvature_bounds_of_the_cascade_are_attained():
    torch.manual_seed(0)
    check_cascaded_curvature()


def test_bounds_of_transformations_are_attained():
    torch.manual_seed(0)
    check_transformation()


def _loosened(end: Tensor, *, upper: bool) -> Tensor:
    """An end of an interval four times as far out; a bound of zero becomes one half."""
    outwards = (end > 0) == upper
    scaled = torch.where(outwards, 4 * end, end / 4)
    half = 0.5 if upper else -0.5
    return torch.where(end == 0, half, scaled)


@pytest.mark.parametrize("side", ["lower", "upper"])
@pytest.mark.parametrize(("name", "monotone"), [spec for spec in SPECS if spec[0] not in UNBOUNDED])
def test_a_slope_interval_four_times_too_wide_is_caught(name, monotone, side, monkeypatch):
    cls = ACTIVATIONS[name]
    original = cls.slope_interval

    def mutant(self):
        lower, upper = original(self)
        if side == "lower":
            return _loosened(lower, upper=False), upper
        return lower, _loosened(upper, upper=True)

    monkeypatch.setattr(cls, "slope_interval", mutant)
    with pytest.raises(AssertionError):
        check_slopes(name, monotone)
    if side == "upper":
        with pytest.raises(AssertionError):
            check_modular_curvature(name, monotone)


@pytest.mark.parametrize(("name", "monotone"), [spec for spec in SPECS if spec[0] not in GROWING])
def test_a_value_bound_four_times_too_large_is_caught(name, monotone, monkeypatch):
    cls = ACTIVATIONS[name]
    original = cls.value_bound
    monkeypatch.setattr(cls, "value_bound", lambda self: 4 * original(self))
    with pytest.raises(AssertionError):
        check_values(name, monotone)


def test_a_covariance_bound_four_times_too_loose_is_caught(monkeypatch):
    original = modular._covariance_bound
    monkeypatch.setattr(modular, "_covariance_bound", lambda weight: 4 * original(weight))
    with pytest.raises(AssertionError):
        check_covariance()
    for name in ("softmax", "wsoftmax"):
        with pytest.raises(AssertionError):
            check_modular_curvature(name, monotone=True)


@pytest.mark.parametrize(
    ("cls", "method", "check"),
    [
        (GradNetC, "curvature_envelope", check_cascaded_curvature),
        (Transformation, "derivative_intervals", check_transformation),
    ],
)
def test_other_bounds_four_times_too_loose_are_caught(cls, method, check, monkeypatch):
    original = getattr(cls, method)

    def four_times(bounds):
        return 4 * bounds if isinstance(bounds, Tensor) else tuple(four_times(part) for part in bounds)

    monkeypatch.setattr(cls, method, lambda self: four_times(original(self)))
    with pytest.raises(AssertionError):
        check()
