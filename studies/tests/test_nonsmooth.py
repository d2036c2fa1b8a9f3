"""Fields that jump: subgradients, potentials, and the distance to the kinks."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from nablanets.errors import InvalidInputError
from nablanets_studies.problems.nonsmooth import L1Norm, MaxAffine, Staircase

FIELDS = [cls(d, dtype=torch.float64) for cls in (MaxAffine, L1Norm, Staircase) for d in (1, 2, 5)]
each_field = pytest.mark.parametrize("field", FIELDS, ids=lambda f: f"{f.name}-{f.features}")


@each_field
def test_subgradients_satisfy_their_inequality_and_are_gradients_off_the_kinks(field):
    x, g = field.sample(200, torch.Generator().manual_seed(1))
    assert x.dtype == g.dtype == torch.float64
    value = field.potential(x)
    # F(y) >= F(x) + g(x).(y - x) for all pairs
    planes = value[:, None] + (g[:, None] * (x[None] - x[:, None])).sum(dim=-1)
    assert bool((planes <= value[None] + 1e-12).all())
    assert_close(torch.func.grad(lambda p: field.potential(p).sum())(x), g)
    assert field.potential(x[0]).shape == ()
    assert_close(field.gradient(x.reshape(20, 10, -1)), g.reshape(20, 10, -1))
    assert len(g.unique(dim=0)) > 1


@each_field
def test_the_field_is_constant_within_the_distance_to_the_kinks_and_jumps_beyond(field):
    generator = torch.Generator().manual_seed(2)
    x, g = field.sample(300, generator)
    distance = field.kink_distance(x)
    assert distance.shape == (300,)
    direction = torch.randn(64, 300, field.features, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    inside = field.gradient(x + 0.999 * distance.unsqueeze(-1) * direction)
    assert_close(inside, g.expand_as(inside))
    if field.features <= 2:
        outside = field.gradient(x + 1.3 * distance.unsqueeze(-1) * direction)
        assert bool(((outside - g).norm(dim=-1) > 0).any(dim=0).all())


def test_single_pieces_have_no_kinks():
    assert float(MaxAffine(2, pieces=1).kink_distance(torch.rand(3, 2)).min()) == float("inf")


@pytest.mark.parametrize("cls", [MaxAffine, L1Norm, Staircase])
def test_sizes_are_checked(cls):
    with pytest.raises(InvalidInputError, match="features"):
        cls(0)
