"""Derivatives in everything that a map, a system or an integrator is given as a tensor, against finite differences."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from nablanets import CoordinatePullback, GradientMap, GradNetC, GradNetM, Pullback, Quadratic, export, fit, load
from nablanets.dynamics import (
    FieldSystem,
    HamiltonianSystem,
    Kinetic,
    PortHamiltonian,
    SecondOrder,
    SeparableHamiltonian,
    System,
    integrate,
)
from nablanets.dynamics.integrate import GAUSS
from nablanets.dynamics.splitting import SPLITTINGS
from nablanets.errors import InvalidInputError
from nablanets.maps import Constant, PairAcceleration, PairLaw, distances_from
from nablanets.parameters import fixed_copy
from nablanets.serialization import save
from nablanets.verify import sought_curvature
from tests.peers import PeerMLP

DTYPE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


@functools.cache
def net(features: int, *, monotone: bool = False) -> GradientMap:
    """Built once: modules cannot be converted inside transformations of functions."""
    torch.manual_seed(1)
    return GradNetM(features, 3, 2, monotone=monotone).double().requires_grad_(False)


def pair_acceleration(masses: Tensor) -> PairAcceleration:
    made = PairAcceleration(net(1), masses, 2)
    made.force.coordinates.double()
    return made


@pytest.fixture(autouse=True)
def _fresh_networks():
    net.cache_clear()


class Given(NamedTuple):
    """Something that is made of tensors."""

    name: str
    values: tuple[Tensor, ...]
    build: Callable[..., nn.Module]
    features: int


#: One line for each tensor that something fixed is made of.
MADE = [
    Given("pullback", (draw(3, 2), draw(3)), lambda a, b: net(3).pullback(a, b), 2),
    Given("pullback-diagonal", (draw(3), draw(3)), lambda a, b: net(3).pullback(a, b), 3),
    Given("pullback-centre", (draw(3, 2), draw(2)), lambda a, c: Pullback(net(3), a, centre=c), 2),
    Given("constant", (draw(3),), Constant, 3),
    Given("centres", (draw(4, 2),), lambda c: CoordinatePullback(net(4), distances_from(c)), 2),
    Given("kinetic", (draw(3).exp(),), Kinetic, 3),
    Given("mass-matrix", (draw(2, 2),), lambda r: Kinetic(r @ r.mT + torch.eye(2, dtype=DTYPE)), 2),
    Given("pair-law", (draw(3).exp(),), lambda m: PairLaw(net(1), m), 3),
    Given("pair-acceleration", (draw(3).exp(),), pair_acceleration, 6),
    Given("second-order", (draw(2).exp(),), lambda m: SecondOrder(net(2), 2, m), 4),
    Given("separable", (draw(2).exp(),), lambda m: SeparableHamiltonian(m, net(2)), 4),
]


@pytest.mark.parametrize("case", MADE, ids=lambda case: case.name)
def test_what_is_made_of_tensors_passes_their_derivatives(case: Given) -> None:
    x = draw(2, case.features, seed=5)
    values = tuple(value.clone().requires_grad_() for value in case.values)

    def at(*given: Tensor) -> Tensor:
        return case.build(*given)(x)

    assert gradcheck(at, values)
    assert gradgradcheck(at, values)
    expected = torch.autograd.functional.jacobian(at, values)
    fixed = tuple(value.detach() for value in values)
    for transformation in (torch.func.jacrev, torch.func.jacfwd):
        assert_close(transformation(at, argnums=tuple(range(len(fixed))))(*fixed), expected)
    doubled = tuple(torch.stack([value, 2 * value]) for value in fixed)
    each = torch.stack([at(*fixed), at(*(2 * value for value in fixed))])
    assert_close(torch.vmap(at)(*doubled), each)
    # The derivative of a vmap, in which no tensor says that it is to be differentiated.
    (gradient,) = torch.func.grad(lambda v: torch.vmap(at)(*v).sum(), argnums=(0,))(doubled)
    assert all(bool((part != 0).any()) for part in gradient)


@pytest.mark.parametrize("case", MADE, ids=lambda case: case.name)
def test_what_carries_derivatives_is_saved_copied_and_trained_as_values(case: Given, tmp_path) -> None:
    leaves = [(0.5 * value).requires_grad_() for value in case.values]
    made = case.build(*(2 * leaf for leaf in leaves))  # computed, which modules are not made for
    plain = case.build(*case.values)
    x = draw(20, case.features, seed=6)
    assert_close(made(x), plain(x))
    assert type(made).__name__ in repr(made)
    save(made, tmp_path / "made.safetensors")
    copies = (load(tmp_path / "made.safetensors"), fixed_copy(made))
    for again in copies:
        assert_close(again(x).detach(), made(x).detach(), rtol=1e-12, atol=1e-14)
        assert not any(buffer.requires_grad for buffer in again.buffers())
    if isinstance(made, Pullback):
        export(made, tmp_path / "made.py", "numpy")
    if isinstance(made, GradientMap):
        assert sought_curvature(made, x, steps=2) == pytest.approx(sought_curvature(plain, x, steps=2))
    if any(parameter.requires_grad for parameter in made.requires_grad_().parameters()):
        for optimizer in ("adam", "levenberg"):
            fit(made, x, x, steps=2, optimizer=optimizer, validation=(x, x), progress=False)
    made(x).sum().backward()  # the way back has not been walked yet
    assert all(leaf.grad is not None and bool((leaf.grad != 0).any()) for leaf in leaves)


def systems() -> dict[str, System]:
    torch.manual_seed(2)
    parts: dict[str, System] = {
        "separable": SeparableHamiltonian(torch.tensor([1.0, 2.0]), GradNetC(2, 3, 2)),
        "hamiltonian": HamiltonianSystem(GradNetM(4, 3, 2)),
        "field": FieldSystem(PeerMLP(4, 3), 4),
        "driven": PortHamiltonian(GradNetM(4, 3, 2), inputs=1),
    }
    return {name: system.double().requires_grad_(False) for name, system in parts.items()}


SYSTEMS = systems()


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *((method, "separable") for method in SPLITTINGS),
        ("midpoint", "field"),
        ("gauss4", "driven"),
        ("gauss6", "hamiltonian"),
        ("rk4", "driven"),
        ("torchdiffeq", "driven"),
    ],
)
def test_trajectories_have_derivatives_in_the_times(method: str, name: str) -> None:
    """All parameters and states are fixed, so that nothing else asks for derivatives."""
    system = SYSTEMS[name]
    adaptive = method == "torchdiffeq"
    if adaptive:
        pytest.importorskip("torchdiffeq")
    options: dict[str, Any] = {"method": method, "step": None if adaptive else 0.21}  # two steps, and one back
    if name == "driven":
        options["inputs"] = lambda t: torch.as_tensor(t, dtype=DTYPE).cos().reshape(1)
    x0, direction, h = draw(4, seed=3), draw(3, seed=4), 1e-6
    weights = draw(2, 4, seed=5)

    def value(times: Tensor) -> Tensor:
        return (weights * integrate(system, x0, times, **options)[1:]).sum()

    def slope(times: Tensor) -> Tensor:
        return torch.func.grad(value)(times)

    for moments in ([0.3, 0.25, 0.1], [0.3, 0.6, 0.7])[method in GAUSS :]:
        times = torch.tensor(moments, dtype=DTYPE)
        expected = (value(times + h * direction) - value(times - h * direction)) / (2 * h)
        leaf = times.clone().requires_grad_()
        result = value(leaf)
        assert_close(result.detach(), value(times))
        (gradient,) = torch.autograd.grad(result, leaf)
        assert_close(gradient @ direction, expected, rtol=1e-6, atol=1e-3 if adaptive else 1e-8)
        if adaptive:
            continue
        assert_close(torch.func.jvp(value, (times,), (direction,))[1], gradient @ direction)
        if method == "gauss6":
            continue  # second derivatives are the same code, and slow
        change = (slope(times + h * direction) - slope(times - h * direction)) / (2 * h)
        assert_close(torch.func.jvp(slope, (times,), (direction,))[1], change, rtol=1e-5, atol=1e-8)


@settings(max_examples=8, deadline=None)
@given(
    method=st.sampled_from(["leapfrog", "midpoint", "rk4"]),
    backwards=st.booleans(),
    count=st.integers(2, 3),
    length=st.floats(0.01, 1.0),
    shift=st.floats(-5, 5),
    seed=st.integers(0, 1000),
)
def test_times_may_be_given_in_any_way(method, backwards, count, length, shift, seed) -> None:
    """As a tensor, as a list of tensors and numbers, computed, in any type and to a state of any type."""
    system = SYSTEMS["separable"]
    x0 = draw(2, 4, seed=seed)
    size = (-length if backwards else length) * torch.ones((), dtype=DTYPE)
    size.requires_grad_()
    listed = [shift, *(shift + size * k for k in range(1, count))]
    expected: Tensor | None = None
    for times in (
        shift + size * torch.arange(count),
        listed,
        tuple(listed),
        torch.stack([size * 0 + shift, *listed[1:]]),
    ):
        end = integrate(system, x0, times, method=method)[-1]
        (gradient,) = torch.autograd.grad(end.sum(), size, retain_graph=True)
        expected = gradient if expected is None else expected
        assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
        assert end.dtype == DTYPE
    # One step of each interval: the velocity at the end times how far the end moves, but for the error of the method.
    h = 1e-6
    change = [
        integrate(system, x0, [shift + float(size.detach()) * (1 + s * h) * k for k in range(count)], method=method)[
            -1
        ].sum()
        for s in (1, -1)
    ]
    difference = (change[0] - change[1]) / (2 * h * size.detach())
    assert_close(expected, difference, rtol=1e-4, atol=1e-5)
    single = fixed_copy(system).float()
    end = integrate(single, x0.float(), shift + size * torch.arange(count), method=method)[-1]
    assert end.dtype == torch.float32
    (gradient,) = torch.autograd.grad(end.sum(), size, retain_graph=True)
    assert_close(gradient, expected, rtol=1e-2, atol=1e-2)


def test_a_step_that_carries_derivatives_is_refused() -> None:
    step = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(InvalidInputError, match=r"times = h \* torch.arange"):
        integrate(SYSTEMS["field"], draw(4), [0.0, 1.0], step=step)
    plain = integrate(SYSTEMS["field"], draw(4), [0.0, 1.0], step=0.1)
    assert torch.equal(integrate(SYSTEMS["field"], draw(4), [0.0, 1.0], step=torch.tensor(0.1)), plain)


@pytest.mark.parametrize("monotone", [False, True])
def test_proximal_points_have_derivatives_in_the_step(monotone: bool) -> None:
    f = net(3, monotone=monotone) if monotone else Quadratic.from_diagonal(draw(3), draw(3)).requires_grad_(False)
    y = draw(2, 3, seed=8)
    step = torch.tensor(0.3, dtype=DTYPE, requires_grad=True)
    assert gradcheck(lambda s: f.prox(y, s), step)
    assert gradgradcheck(lambda s: f.prox(y, s), step)
    assert_close(f.prox(y, step).detach(), f.prox(y, 0.3))
    first = torch.autograd.functional.jacobian(lambda s: f.prox(y, s), step)
    assert_close(torch.func.jacfwd(lambda s: f.prox(y, s))(step.detach()), first)
    with pytest.raises(InvalidInputError, match="a number step > 0"):
        f.prox(y, torch.ones(2))
