"""Projection pursuit finds the ridge functions of a field, and networks start as what it finds."""

from __future__ import annotations

import pytest
import torch

from nablanets import GradNetC, GradNetM
from nablanets.errors import InvalidInputError
from nablanets.fitting import error
from nablanets.starts import initialise_ridges, pursue_ridges
from tests.peers import AffineField

D = 16


def _field(directions, profile=lambda u: 2 * torch.tanh(3 * u)):
    """x plus monotone ridge functions along the directions, on normal samples."""
    x = torch.randn(6000, directions.shape[1])
    return x, x + profile(x @ directions.mT) @ directions


def _directions(count):
    return torch.linalg.qr(torch.randn(D, D))[0][:count]


def _affine_error(x, g):
    affine = AffineField(D)
    affine.fit(x, g)
    return error(affine, x, g)


def test_pursuit_finds_the_directions():
    torch.manual_seed(0)
    directions = _directions(3)
    x, g = _field(directions)
    found = pursue_ridges(x, g, 3, rounds=2)
    frame = torch.linalg.qr(found.weight.mT)[0]
    cosines = torch.linalg.svdvals(directions @ frame)  # of the angles between the true directions and what is spanned
    assert cosines.min() > 0.98  # six random directions have 0.3


@pytest.mark.parametrize(
    ("build", "profile", "gain"),
    [
        (lambda: GradNetC(D, 40, monotone=True, linear=False), lambda u: 2 * torch.tanh(3 * u), 0.7),
        (lambda: GradNetC(D, 40, monotone=False, linear=True), lambda u: 2 * torch.tanh(3 * u), 0.7),
        (lambda: GradNetM(D, 12, 4, monotone=True, linear=False), torch.sinh, 0.9),
    ],
)
def test_a_start_from_ridges_is_better_than_the_affine_map(build, profile, gain):
    torch.manual_seed(0)
    x, g = _field(_directions(3), profile)
    net = build()
    initialise_ridges(net, x, g, directions=4)
    assert error(net, x, g) < gain * _affine_error(x, g)


@pytest.mark.parametrize("units", [5, 12])
def test_a_start_is_never_worse_than_the_affine_map(units):
    """Softmax modules cannot saturate as tanh does, and with five units there is no room for ridges."""
    torch.manual_seed(0)
    x, g = _field(_directions(3))
    net = GradNetM(D, units, 4, monotone=True, linear=False)
    initialise_ridges(net, x, g, directions=8)
    assert error(net, x, g) < 1.05 * _affine_error(x, g)


def test_networks_that_cannot_hold_the_affine_part_are_refused():
    x = torch.randn(100, D)
    with pytest.raises(InvalidInputError, match="monotone"):
        initialise_ridges(GradNetM(D, 8, 2, linear=False), x, x)
    with pytest.raises(InvalidInputError, match="at most as many ridge functions"):
        initialise_ridges(GradNetC(D, 8, monotone=True, linear=False), x, x, directions=9)
