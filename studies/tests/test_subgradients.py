"""Identification of fields that jump, and of fields that are no maximum of anything."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from nablanets import verify
from nablanets.fitting import decibels, error
from nablanets.pieces import fit_pieces, identify_pieces
from nablanets.pieces.clusters import cluster
from nablanets.pieces.gating import Gate
from nablanets_studies.baselines import AffineField
from nablanets_studies.problems.fields import ConvexField, NonconvexField, unit_grid
from nablanets_studies.problems.nonsmooth import L1Norm, MaxAffine, Staircase

PIECES = {MaxAffine(): 6, L1Norm(): 4, Staircase(): 5}
each_field = pytest.mark.parametrize("field", list(PIECES), ids=lambda field: field.name)


def _noisy(field, count, seed, noise=0.0):
    generator = torch.Generator().manual_seed(seed)
    x, g = field.sample(count, generator)
    return x, g + noise * torch.randn(g.shape, generator=generator)


def _errors(field, net):
    """On a grid, in dB: everywhere, and farther than 0.05 from the kinks."""
    x = unit_grid(48).flatten(0, 1)
    away = field.kink_distance(x) > 0.05
    return [decibels(error(net, x[rows], field.gradient(x[rows]))) for rows in (slice(None), away)]


@each_field
@pytest.mark.parametrize("seed", range(5))
def test_subgradients_are_identified_by_a_monotone_map(field, seed):
    net, found, gate = fit_pieces(*_noisy(field, 3000, seed), pieces=6, seed=seed)
    assert net.monotone
    assert len(found) == PIECES[field]
    assert found.unexplained < 1e-12
    assert gate.unexplained < 1e-12
    overall, away = _errors(field, net)
    assert away < -100
    assert overall < -15
    x = unit_grid(6).flatten(0, 1).double()
    assert verify.symmetry_error(net.double(), x) < 1e-9


@each_field
def test_too_many_pieces_and_noise_do_no_harm(field):
    for pieces, seed in ((6, 0), (10, 1)):
        net, found, gate = fit_pieces(*_noisy(field, 4000, seed, noise=0.05), pieces=pieces, seed=seed)
        assert len(found) == PIECES[field]
        assert gate.unexplained < 2 * found.unexplained
        overall, away = _errors(field, net)
        assert away < -40
        assert overall < -14


@each_field
def test_too_few_pieces_end_at_the_affine_map_at_worst(field):
    x, g = _noisy(field, 2000, 0)
    affine = AffineField(2)
    affine.fit(x, g)
    for pieces in (2, 3):
        net, _, gate = fit_pieces(x, g, pieces)
        assert gate.unexplained > 1e-2
        assert error(net, x, g) < 1.001 * error(affine, x, g)


@pytest.mark.parametrize("field", [ConvexField(), NonconvexField()], ids=lambda field: field.name)
def test_smooth_fields_fail_gracefully(field):
    """No six affine pieces make these: the result says so, and is bounded by the affine map's error and by the data."""
    x, g = field.sample(2000, torch.Generator().manual_seed(1))
    affine = AffineField(2)
    affine.fit(x, g)
    net, found, gate = fit_pieces(x, g, 6, monotone=field.convex)
    assert gate.unexplained > max(1e-2, found.unexplained / 2)
    points = unit_grid(30).flatten(0, 1)
    truth = field.gradient(points)
    assert error(net, points, truth) < 1.1 * error(affine, points, truth)  # which need not be symmetric
    assert float(net(points).detach().norm(dim=1).max()) < 1.2 * float(truth.norm(dim=1).max())


def test_a_minimum_of_planes_is_no_maximum():
    """A concave field: its pieces are found, and no monotone map can arrange them."""
    x, g = L1Norm().sample(1000, torch.Generator().manual_seed(2))
    assert identify_pieces(x, -g, 4).unexplained < 1e-12
    net, _, gate = fit_pieces(x, -g, 4)
    assert gate.unexplained > 0.9
    assert bool(torch.isfinite(net(x)).all())


def test_pieces_in_higher_dimension():
    field = MaxAffine(5, pieces=4)
    x, g = _noisy(field, 3000, 0, noise=0.02)
    net, found, _ = fit_pieces(x, g, 6)
    assert len(found) == 4
    points, _ = field.sample(2000, torch.Generator().manual_seed(9))
    points = points[field.kink_distance(points) > 0.05]
    assert decibels(error(net, points, field.gradient(points))) < -40


def test_clusters_are_values_where_there_are_few():
    points = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 0.0], [5.0, 5.0]], dtype=torch.float64)
    labels, spread = cluster(points, 4, torch.Generator().manual_seed(0))
    assert spread < 1e-20
    assert len(labels.unique()) == 3
    assert labels[0] == labels[1]
    assert cluster(points[:1], 2, torch.Generator())[0].tolist() == [0]


def test_the_gate_says_what_it_leaves():
    x, g = _noisy(MaxAffine(), 500, 0)
    _, _, gate = fit_pieces(x, g, 3)
    variance = float((g - g.mean(dim=0)).square().sum(dim=1).mean())
    assert isinstance(gate, Gate)
    assert_close(gate.unexplained * variance, gate.error, rtol=1e-5, atol=0.0)
