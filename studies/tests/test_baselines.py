"""Baselines: they are what they say, and matched in size."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from nablanets import verify
from nablanets.errors import ShapeError
from nablanets.parameters import count_parameters
from nablanets_studies.baselines import (
    ICNN,
    MLP,
    AffineField,
    convex_ridge,
    icnn_gradient,
    match_parameters,
    mlp_potential,
)
from nablanets_studies.problems.fields import ConvexField, NonconvexField, unit_grid


@pytest.mark.parametrize(
    "build",
    [lambda: mlp_potential(3, 7, 3, "sine", 4.0), lambda: icnn_gradient(3, 7, 3), lambda: icnn_gradient(3, 7, 1)],
)
def test_closed_form_gradients_equal_autodiff(build):
    net = build().double()
    x = torch.randn(6, 3, dtype=torch.float64)
    assert_close(net(x), torch.func.grad(lambda z: net.module(z).sum())(x))


def test_icnn_is_convex_and_an_mlp_field_is_no_gradient():
    x = torch.randn(40, 3, dtype=torch.float64)
    assert verify.smallest_eigenvalue(icnn_gradient(3, 9).double(), x) >= -1e-12
    assert verify.smallest_eigenvalue(convex_ridge(3, 9).double(), x) >= -1e-12
    mlp = MLP(3, 9).double()
    assert verify.symmetry_error(mlp, x) > 0.01
    assert verify.loop_error(mlp, x) > 1e-3
    assert isinstance(ICNN(2, 3)(torch.zeros(5, 2)), torch.Tensor)


@pytest.mark.parametrize(
    "build",
    [lambda h: MLP(2, h), lambda h: mlp_potential(2, h), lambda h: icnn_gradient(2, h), lambda h: convex_ridge(2, h)],
)
@pytest.mark.parametrize("budget", [100, 3000])
def test_matched_networks_are_the_widest_within_the_budget(build, budget):
    net = match_parameters(build, budget)
    assert count_parameters(net) <= budget
    width = next(h for h in range(1, 4000) if count_parameters(build(h)) == count_parameters(net))
    assert count_parameters(build(width + 1)) > budget
    with pytest.raises(ShapeError, match="width 1 already has"):
        match_parameters(build, 3)


@pytest.mark.parametrize(("field", "decibels"), [(ConvexField(), -6.58), (NonconvexField(), -1.49)])
def test_affine_least_squares_gives_the_known_error(field, decibels):
    """The reference values of papers.md A.4."""
    affine = AffineField(2)
    affine.fit(*field.sample(100_000, torch.Generator().manual_seed(0)))
    x = unit_grid(100)
    value = 10 * torch.log10((affine(x) - field.gradient(x)).square().sum(-1).mean())
    assert float(value) == pytest.approx(decibels, abs=0.01)
