"""The error functions measure what they say, on fields whose errors are known."""

from __future__ import annotations

import math

import pytest
import torch

from nablanets import GradNetC, GradNetM, Quadratic, verify
from nablanets.errors import InvalidInputError, ShapeError, VerificationError
from tests.peers import PeerMLP

X = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _rotation(x):
    return torch.stack([-x[..., 1], x[..., 0]], dim=-1)


def test_circulation_of_a_rotation_is_twice_the_area():
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    perimeter = 2 + math.sqrt(2)
    assert verify.loop_error(_rotation, triangle) == pytest.approx(2 * 0.5 / perimeter)


def test_assertions_tell_rotations_and_decreasing_maps():
    with pytest.raises(VerificationError, match="symmetry"):
        verify.assert_symmetric(_rotation, X)
    with pytest.raises(VerificationError, match="loop integral is"):
        verify.assert_conservative(_rotation, X)
    with pytest.raises(VerificationError, match="decrease"):
        verify.assert_monotone(lambda x: -x, X)
    verify.assert_symmetric(lambda x: 2 * x, X)
    verify.assert_conservative(lambda x: 2 * x, X)
    verify.assert_monotone(_rotation, X)  # a rotation is monotone, though no gradient


def test_numbers_of_a_known_quadratic():
    net = Quadratic(2, 0).double()
    with torch.no_grad():
        net.diagonal_raw.copy_(torch.tensor([4.0, -1.0]))
    assert verify.smallest_eigenvalue(net, X) == pytest.approx(-0.25)
    assert verify.monotonicity_gap(net, X) < -0.5
    assert verify.potential_path_error(net, X) < 1e-12


@pytest.mark.parametrize("build", [GradNetC, GradNetM])
def test_certificate(build):
    certificate = verify.certificate(build(3, 8, monotone=True), points=20)
    assert certificate.passed
    assert certificate.points == 20
    text = str(certificate)
    assert "passed" in text
    assert "smallest eigenvalue" in text
    assert "within certified" in text


def test_certificate_fails_for_a_map_that_is_not_what_it_says():
    net = GradNetC(3, 8).double()
    net.monotone = True
    certificate = verify.certificate(net)
    assert not certificate.passed
    assert "FAIL" in str(certificate)


def test_a_wrong_curvature_bound_is_found():
    net = GradNetC(3, 8, monotone=True).double()
    net.curvature_envelope = lambda: (0 * torch.eye(3, dtype=torch.float64), 1e-3 * torch.eye(3, dtype=torch.float64))
    assert verify.curvature_violation(net, torch.randn(9, 3, dtype=torch.float64)) > 0.1
    assert not verify.certificate(net).passed


def test_certificate_refuses_bad_input():
    net = GradNetC(2, 4)
    with pytest.raises(InvalidInputError, match="GradientMap"):
        verify.certificate(PeerMLP(2, 4))
    with pytest.raises(ShapeError):
        verify.certificate(net, torch.zeros(5, 3))
    with pytest.raises(InvalidInputError, match="three points"):
        verify.certificate(net, torch.zeros(2, 2))
    with pytest.raises(InvalidInputError, match="first in row 1"):
        verify.certificate(net, torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [1.0, 1.0]]))
