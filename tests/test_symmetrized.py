"""Averages over finite groups: equivariance, structure, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from nablanets import GradNetC, GradNetM, Symmetrized, load, odd
from nablanets.errors import InvalidInputError, ShapeError
from nablanets.maps import Constant, generated_group
from nablanets.operators import StructuredOperator
from tests.peers import mlp_potential

DTYPE = torch.float64


def rotation(angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=DTYPE)


FLIP = torch.diag(torch.tensor([1.0, -1.0], dtype=DTYPE))
CYCLE = torch.eye(3, dtype=DTYPE).roll(1, 0)
TURN = torch.block_diag(rotation(math.pi / 2), torch.eye(1, dtype=DTYPE)).round()
GROUPS = {
    "square": (generated_group(torch.stack([rotation(math.pi / 2).round(), FLIP])), 8),
    "pentagon": (generated_group(torch.stack([rotation(2 * math.pi / 5), FLIP])), 10),
    "cube": (generated_group(torch.stack([CYCLE, TURN, -torch.eye(3, dtype=DTYPE)])), 48),
    "signs": (torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=DTYPE), 4),
}


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("name", GROUPS)
def test_it_is_equivariant_to_rounding(name, monotone):
    matrices, order = GROUPS[name]
    assert len(matrices) == order
    d = matrices.shape[-1]
    for inner in (GradNetC(d, 6, 2, monotone=monotone), GradNetM(d, 4, 2, monotone=monotone)):
        net = Symmetrized(inner.double(), matrices)
        x = torch.randn(9, d, dtype=DTYPE)
        rough = False
        for r in torch.diag_embed(matrices) if matrices.ndim == 2 else matrices:
            assert_close(net(x @ r.mT), net(x) @ r.mT, rtol=1e-12, atol=1e-12)
            assert_close(net.potential(x @ r.mT), net.potential(x), rtol=1e-12, atol=1e-12)
            assert_close(net.jacobian(x @ r.mT).dense(), r @ net.jacobian(x).dense() @ r.mT, rtol=1e-12, atol=1e-12)
            rough |= bool((inner(x @ r.mT) - inner(x) @ r.mT).abs().max() > 1e-2)
        assert rough  # the inner map is not equivariant by itself
        assert net.monotone == monotone
        assert_close(Symmetrized(net, matrices)(x), net(x))  # a projection


def test_odd_is_odd_to_the_last_bit_and_cheap_in_structure():
    for inner in (GradNetC(6, 2, 2, monotone=True), GradNetM(6, 2, 1, monotone=True, linear="diagonal")):
        net = odd(inner.double())
        x = torch.randn(5, 6, dtype=DTYPE)
        assert torch.equal(net(-x), -net(x))
        assert torch.equal(net.potential(-x), net.potential(x))
        assert_close(net(x), (inner(x) - inner(-x)) / 2)
        operator = net.jacobian(x)
        assert isinstance(operator, StructuredOperator)
        assert operator.shift is not None
        assert operator.shift.shape == (6,)  # a diagonal stays one
        assert operator.positive_semidefinite
        assert_close(operator.logdet(), torch.logdet(operator.dense()))
        assert_close(operator.solve(operator @ x), x)


def test_all_turned_points_are_one_evaluation(monkeypatch):
    calls = []
    forward = GradNetC.forward
    monkeypatch.setattr(GradNetC, "forward", lambda net, x: calls.append(x.shape) or forward(net, x))
    Symmetrized(GradNetC(3, 4), GROUPS["cube"][0])(torch.randn(5, 3))
    assert calls == [(48, 5, 3)]


@pytest.mark.parametrize("name", GROUPS)
def test_inverse_round_trips(name):
    matrices, _ = GROUPS[name]
    d = matrices.shape[-1]
    net = Symmetrized(GradNetC(d, 6, monotone=True).double(), matrices)
    x = torch.randn(6, d, dtype=DTYPE)
    with torch.no_grad():
        assert_close(net.inverse(net(x)), x, rtol=1e-9, atol=1e-9)
        p = torch.randn_like(x)
        t = torch.rand(6, dtype=DTYPE)
        assert_close(net.along(x, p)(t), (net(x + t[:, None] * p) * p).sum(-1))


def test_unstructured_maps_and_maps_without_parameters():
    matrices, _ = GROUPS["square"]
    x = torch.randn(4, 2, dtype=DTYPE)
    net = Symmetrized(mlp_potential(2, 6).double() + GradNetM(2, 3).double(), matrices)
    J = net.jacobian(x)
    assert_close(J.dense(), torch.func.vmap(torch.func.jacrev(net))(x))
    assert_close(J @ x, (J.dense() @ x.unsqueeze(-1)).squeeze(-1))
    assert_close(Symmetrized(Constant(x[0]), matrices)(x), torch.zeros_like(x))


def test_curvature_bounds_hold_and_are_no_looser():
    matrices, _ = GROUPS["pentagon"]
    inner = GradNetC(2, 8, 2).double()
    net = Symmetrized(inner, matrices)
    eigenvalues = net.jacobian(3 * torch.randn(500, 2, dtype=DTYPE)).eigvalsh()
    lower, upper = net.curvature_bounds()
    assert inner.curvature_bounds()[0] <= lower <= eigenvalues.min()
    assert eigenvalues.max() <= upper <= inner.curvature_bounds()[1]


def test_matrices_are_saved_exactly(tmp_path):
    net = Symmetrized(GradNetC(2, 4).double(), GROUPS["pentagon"][0])
    net.save(tmp_path / "m.safetensors")
    assert torch.equal(load(tmp_path / "m.safetensors").matrices, net.matrices)


def test_what_is_no_group_is_refused():
    net = GradNetC(2, 4)
    quarter = rotation(math.pi / 2)
    with pytest.raises(InvalidInputError, match=r"product of matrices 1 and 1 is not.*generated_group"):
        Symmetrized(net, torch.stack([torch.eye(2, dtype=DTYPE), quarter]))
    with pytest.raises(InvalidInputError, match=r"orthogonal matrices.*for matrix 1"):
        Symmetrized(net, torch.stack([torch.eye(2), 2 * torch.eye(2)]))
    with pytest.raises(InvalidInputError, match="orthogonal"):
        Symmetrized(net, torch.full((1, 2, 2), torch.nan))
    with pytest.raises(InvalidInputError, match="twice"):
        Symmetrized(net, torch.ones(2, 2))
    with pytest.raises(ShapeError, match=r"matrices of shape \(n, d, d\)"):
        Symmetrized(net, torch.zeros(0, 2, 2))
    with pytest.raises(ShapeError, match="for 2 features"):
        Symmetrized(net, torch.ones(1, 3))
    with pytest.raises(InvalidInputError, match="more than 50 products"):
        generated_group(rotation(1.0).unsqueeze(0), limit=50)
    with pytest.raises(InvalidInputError, match="generated_group: expected orthogonal"):
        generated_group(2 * torch.eye(2).unsqueeze(0))
