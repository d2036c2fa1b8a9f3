"""The table of gradient maps that the conformance suite runs over: a new map joins with one line."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from nablanets import (
    ConditionalGradNet,
    CoordinatePullback,
    GradientMap,
    GradNetC,
    GradNetM,
    GradNetMixture,
    GradNetTransformed,
    Pullback,
    Quadratic,
    Symmetrized,
    constrain,
    from_potential,
    odd,
    pair_forces,
)
from nablanets.activations import ACTIVATIONS, GroupActivation
from nablanets.dynamics import Kinetic
from nablanets.maps import Constant, PairLaw, distances_from, generated_group
from tests.peers import PeerMLP, icnn_gradient, mlp_potential


class Case(NamedTuple):
    name: str
    build: Callable[[], GradientMap]


D = 3


def _networks() -> list[Case]:
    cases = []
    for (name, cls), monotone, linear in itertools.product(ACTIVATIONS.items(), (False, True), (False, True)):
        if monotone and not cls((1,), monotone=True).increasing:
            continue
        flags = f"{name}{'-monotone' if monotone else ''}{'-linear' if linear else ''}"
        options = {"activation": name, "monotone": monotone, "linear": linear}
        if not issubclass(cls, GroupActivation):
            cases.append(Case(f"C-{flags}", lambda o=options: GradNetC(D, 5, 3, **o)))
        cases.append(Case(f"M-{flags}", lambda o=options: GradNetM(D, 5, 2, **o)))
    return cases


def _transformed(activation: str, *, monotone: bool = False, linear: bool = False) -> Case:
    options = {"activation": activation, "monotone": monotone, "linear": linear}
    name = f"T-{activation}{'-monotone' if monotone else ''}{'-linear' if linear else ''}"
    return Case(name, lambda: GradNetTransformed(D, 5, 2, 3, **options))


def _monotone_c() -> GradNetC:
    return GradNetC(D, 5, activation="tanh", monotone=True)


def rotations(order: int) -> torch.Tensor:
    """Rotations of the first two of three coordinates by multiples of a turn over ``order``."""
    angle = torch.tensor(2 * torch.pi / order, dtype=torch.float64)
    turn = torch.eye(D, dtype=torch.float64)
    turn[0, 0] = turn[1, 1] = angle.cos()
    turn[1, 0] = angle.sin()
    turn[0, 1] = -angle.sin()
    return generated_group(turn.unsqueeze(0))


def _given(**options: object) -> GradientMap:
    return ConditionalGradNet(D, 2, 5, **options).given(torch.randn(2))


def _symmetric_in_centres(net: GradientMap) -> GradientMap:
    cyclic = torch.eye(3).roll(1, dims=0)
    inner = Symmetrized(net, generated_group(cyclic.unsqueeze(0)))
    return CoordinatePullback(inner, distances_from(4 * torch.eye(3), kind="log"))


def _convex_ridge() -> GradNetC:
    """One layer of monotone splines, as convex-ridge regularisers have it."""
    spline = ("spline", {"knots": 9, "radius": 1.0})
    return GradNetC(D, 5, num_layers=1, activation=spline, monotone=True, linear=False)


def _softmax_m() -> GradNetM:
    return GradNetM(D, 5, activation="softmax", monotone=True)


CASES = [
    *_networks(),
    Case("C-one-layer", lambda: GradNetC(D, 5, 1)),
    Case("C-rank-one", lambda: GradNetC(D, 2, 2, linear=1, monotone=True)),
    Case("C-diagonal", lambda: GradNetC(D, 2, 2, linear="diagonal", monotone=True)),
    Case("M-one-module", lambda: GradNetM(D, 5, 1)),
    Case("M-pnorm-3", lambda: GradNetM(D, 5, 2, activation=("pnorm", {"p": 3}))),
    Case("quadratic", lambda: Quadratic(D)),
    Case("quadratic-monotone", lambda: Quadratic(D, 2, monotone=True)),
    Case("quadratic-diagonal", lambda: Quadratic(D, 0)),
    Case("plus-constant", lambda: _softmax_m() + Constant(torch.randn(D))),
    Case("masses-plus-network", lambda: Kinetic([1.0, 2.0, 4.0]) + GradNetC(D, 5, 2)),
    Case("mass-matrix-plus-network", lambda: Kinetic((torch.eye(D) + 0.5).tolist()) + _softmax_m()),
    Case("constrained", lambda: constrain(GradNetC(D, 5, 2, activation="tanh"), lower=-0.1, upper=0.2)),
    Case("constrained-monotone", lambda: constrain(GradNetM(D, 5, 2), lower=0.1, upper=2.0)),
    Case("mixture", lambda: GradNetMixture([Quadratic(D, monotone=True), _monotone_c(), _softmax_m()], sharpness=2.0)),
    Case("mixture-of-anything", lambda: GradNetMixture([GradNetC(D, 4, 2), mlp_potential(D, 4)])),
    Case("given-context", lambda: _given(linear=False)),
    Case("given-context-relu", lambda: _given(activation="relu", num_layers=3)),
    Case("given-context-monotone", lambda: _given(monotone=True, conditioner_depth=1)),
    _transformed("relu"),
    _transformed("spline", linear=True),
    _transformed("softplus", monotone=True),
    _transformed("polynomial", monotone=True, linear=True),
    _transformed("radial"),
    _transformed("wsoftmax", monotone=True, linear=True),
    Case("odd", lambda: odd(GradNetC(D, 5, 2))),
    Case("odd-monotone", lambda: odd(_monotone_c())),
    Case("odd-of-potential", lambda: odd(GradNetM(D, 5, 2) + mlp_potential(D, 5))),
    Case("symmetrized", lambda: Symmetrized(GradNetM(D, 4, 2), rotations(4))),
    Case("symmetrized-monotone", lambda: Symmetrized(_softmax_m(), rotations(3))),
    Case("symmetrized-potential", lambda: Symmetrized(icnn_gradient(D, 5), rotations(3))),
    Case("sum", lambda: _monotone_c() + _softmax_m()),
    Case("difference", lambda: _monotone_c() - _softmax_m()),
    Case("scale", lambda: 2.5 * _softmax_m()),
    Case("pullback", lambda: GradNetM(4, 5, monotone=True).pullback(torch.randn(4, D), torch.randn(4))),
    Case("pullback-diagonal", lambda: _monotone_c().pullback(torch.tensor([0.5, 2.0, -1.0]))),
    Case(
        "pullback-trained",
        lambda: Pullback(_softmax_m(), torch.eye(D) + 0.3 * torch.randn(D, D), torch.randn(D), trainable=True),
    ),
    Case("quadratic-from-matrix", lambda: Quadratic.from_matrix(torch.eye(D) + 0.5, torch.ones(D), monotone=True)),
    Case("pullback-of-potential", lambda: 2 * icnn_gradient(2, 5).pullback(torch.randn(2, D))),
    Case("from-potential", lambda: from_potential(PeerMLP(D, 5, outputs=1), D)),
    Case("structured-plus-potential", lambda: GradNetC(D, 5) + mlp_potential(D, 5)),
    Case("icnn", lambda: icnn_gradient(D, 5)),
    Case("from-centres", lambda: CoordinatePullback(GradNetC(4, 5), distances_from(3 * torch.eye(4, D) - 1))),
    Case("from-centres-log", lambda: _symmetric_in_centres(GradNetM(3, 5, 2))),
    Case("pairs-on-a-line", lambda: pair_forces(GradNetM(3, 5, 2), 3, 1, kind="distance", alike=[(0, 1, 2)])),
    Case("pair-law", lambda: PairLaw(GradNetC(1, 5, 2), torch.tensor([1.0, 0.5, 2.0]))),
    Case("C-convex-ridge", _convex_ridge),
]


def points(net: nn.Module, count: int = 7) -> torch.Tensor:
    """Points in the dtype of the net, the same for every call."""
    generator = torch.Generator().manual_seed(7)
    dtype = next(net.parameters()).dtype
    return torch.randn(count, D, generator=generator, dtype=torch.float64).to(dtype)
