"""High-dimensional fields with known potentials."""

from __future__ import annotations

import pytest
import torch
from tests.peers import LargestOfThree
from torch.testing import assert_close

from nablanets.errors import InvalidInputError
from nablanets_studies.problems.piecewise import HIGH_DIMENSIONAL, PiecewiseQuadratic, piecewise_matrices


@pytest.mark.parametrize("name", HIGH_DIMENSIONAL)
def test_high_dimensional_fields_are_gradients_of_length_one(name):
    field = HIGH_DIMENSIONAL[name](12, torch.float64)
    x, g = field.sample(4000, torch.Generator().manual_seed(1))
    assert x.dtype == g.dtype == torch.float64
    assert float(g.norm(dim=1).mean()) == pytest.approx(1.0, abs=0.03)
    assert_close(torch.func.grad(lambda p: field.potential(p).sum())(x), g)
    assert_close(field.gradient(x.reshape(40, 100, 12)), g.reshape(40, 100, 12))
    assert field.potential(x[0]).shape == ()
    hessian = torch.func.vmap(torch.func.jacrev(field.gradient))(x[:50])
    assert bool((torch.linalg.eigvalsh(hessian) > 0).all()) == field.convex


@pytest.mark.parametrize(("features", "scale"), [(32, 2.98), (256, 5.46)])
def test_the_piecewise_quadratic_field_has_the_papers_scale(features, scale):
    field = PiecewiseQuadratic(features)
    assert field.scale == pytest.approx(scale, abs=0.03)
    x, g = field.sample(3000, torch.Generator().manual_seed(2))
    forms = torch.einsum("nd,kde,ne->nk", x - 0.5, field.matrices, x - 0.5)
    assert float((forms.argmax(dim=1) == field.pieces(x)).double().mean()) > 0.999
    assert_close(field.potential(x), forms.amax(dim=1) / field.scale)
    assert field.pieces(x).bincount().min() > 500
    assert float((g * (x - 0.5)).sum(dim=1).min()) > 0


def test_the_matrices_are_those_of_the_formula():
    s, p, q = piecewise_matrices(5)
    a, den = (1 + 3 - 2) / 8, torch.log(torch.tensor(5.0, dtype=torch.float64)) * 3
    assert_close(torch.stack([s[0, 2], p[0, 2], q[0, 2]]), torch.stack([2 / den, (1 + 2 * a) / den, (3 - 2 * a) / den]))
    assert_close(s[0, 1], (2 + torch.sin(torch.tensor(torch.pi / 2, dtype=torch.float64))) / (den / 3 * 2))
    with pytest.raises(InvalidInputError, match="at least 2"):
        PiecewiseQuadratic(1)


def test_the_tests_of_the_library_use_the_same_field():
    field = PiecewiseQuadratic(32)
    x, g = field.sample(500, torch.Generator().manual_seed(1))
    assert_close(LargestOfThree(32).gradient(x), g, rtol=1e-3, atol=1e-5)
