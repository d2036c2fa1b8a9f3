"""The provable form of Lemma 3.5 and Theorem 3.8 and its regimes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from nablanets.errors import InvalidInputError
from nablanets.residual import neighbour_cosines
from nablanets_studies.residual.theory import BandLimited, opposite_gradients


def points(features, n=500):
    return torch.rand(n, features, dtype=torch.float64) * 4 - 2


@given(
    features=st.integers(1, 4),
    frequency=st.floats(0.5, 50),
    relative_radius=st.floats(0, 2),
    low=st.floats(0, 3),
    seed=st.integers(0, 1000),
)
def test_bounds_hold_for_every_band_limited_function(features, frequency, relative_radius, low, seed):
    """Also where they say nothing: the theorem has no hidden condition."""
    f = BandLimited.draw(features, frequency, relative_radius * frequency, low, seed=seed)
    x = points(features)
    found = opposite_gradients(f, x)
    assert bool((f.high.gradient(x).norm(dim=-1) <= f.high.slope() * (1 + 1e-9)).all())
    assert bool((f.low.gradient(x).norm(dim=-1) <= f.low.slope() * (1 + 1e-9)).all())
    assert bool((found.sum_norm <= found.bound + 1e-9 * f.high.slope()).all())
    assert bool((found.cosine <= found.cosine_bound + 1e-7).all())


def test_gradient_is_that_of_the_value():
    f, x = BandLimited.draw(3, 7.0, 2.0, 0.5), points(3, 20)
    assert_close(f.gradient(x), torch.func.grad(lambda t: f.value(t).sum())(x))
    distance = (f.high.frequencies.unsqueeze(1) - torch.stack([f.centre, -f.centre])).norm(dim=-1).amin(dim=1)
    assert bool((distance <= f.radius).all()) and float(f.centre.norm()) == pytest.approx(7)


def test_narrow_bands_turn_gradients_round():
    """r = |w0| / 1000 and hardly any low part: the condition holds nearly everywhere, with cosines below -0.9."""
    f = BandLimited.draw(2, 30.0, 0.03, 1e-3)
    found = opposite_gradients(f, points(2))
    assert found.applies.double().mean() > 0.9
    assert bool((found.cosine[found.applies] < 0).all())
    assert found.cosine.median() < -0.999 and found.cosine_bound.median() < -0.99


@pytest.mark.parametrize(("relative_radius", "low"), [(1.0, 0.0), (0.001, 2.0)], ids=["broad band", "steep low part"])
def test_where_the_conditions_fail_gradients_need_not_be_opposite(relative_radius, low):
    f = BandLimited.draw(2, 30.0, 30 * relative_radius, low)
    found = opposite_gradients(f, points(2))
    assert not found.applies.any() and bool((found.cosine_bound == 1).all())
    assert (found.cosine > 0).double().mean() > 0.2


def test_near_stationary_points_the_condition_fails():
    f, x = BandLimited.draw(2, 30.0, 0.3, 0.01), points(2, 5000)
    size, applies = f.gradient(x).norm(dim=-1), opposite_gradients(f, x).applies
    assert not applies[size < f.bound()].any() and applies[size > f.bound()].all()
    assert 0 < applies.double().mean() < 1


def test_other_steps_do_not_turn_gradients_round():
    """A whole period along w0, or any small step across it, leaves them as they were."""
    f, x = BandLimited.draw(2, 30.0, 0.03), points(2)
    across = torch.stack([-f.step[1], f.step[0]])
    for offset in (2 * f.step, across):
        assert neighbour_cosines(f.gradient, x, offset.expand_as(x)).median() > 0.99
    assert neighbour_cosines(f.gradient, x, f.step.expand_as(x)).median() < -0.99


def test_wrong_draws_are_explained():
    with pytest.raises(InvalidInputError, match="frequency > 0"):
        BandLimited.draw(2, 0.0, 1.0)
