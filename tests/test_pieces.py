"""Identification of the pieces of piecewise affine gradients."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from nablanets import Quadratic, load, verify
from nablanets.errors import InvalidInputError, ShapeError
from nablanets.fitting import decibels, error
from nablanets.pieces import fit_pieces, identify_pieces
from nablanets.pieces.gating import count_stored, fit_gate
from tests.peers import AffineField, LargestOfThree


def _samples(count, features=32, noise=0.0, seed=0):
    field, generator = LargestOfThree(features), torch.Generator().manual_seed(seed)
    x, g = field.sample(count, generator)
    noisy = g + noise * g.square().mean().sqrt() * torch.randn(g.shape, generator=generator)
    return field, x, noisy


def _test_error(field, net):
    x, g = field.sample(5000, torch.Generator().manual_seed(99))
    return decibels(error(net, x, g))


@pytest.mark.parametrize("seed", range(5))
def test_the_papers_field_is_identified_to_rounding(seed):
    """From 400 samples in 32 dimensions, where the best affine map of any number of samples has -12.5 dB."""
    field, x, g = _samples(400, seed=seed)
    net, found, gate = fit_pieces(x, g, 3, parameters=1024 * 32)
    assert len(found) == 3
    assert found.unexplained < 1e-12
    assert gate.error < 1e-12
    assert _test_error(field, net) < -100
    assert count_stored(net) < 3400
    assert net.monotone
    truth = field.matrices.double() * 2 / field.scale
    distance = (found.matrices.unsqueeze(1) - truth).flatten(2).norm(dim=2)
    assert float(distance.min(dim=0).values.max()) < 1e-4
    assert bool((found.labels == distance.argmin(dim=0)[field.pieces(x)]).all())


@pytest.mark.parametrize("pieces", [4, 6])
def test_pieces_that_are_not_there_are_removed(pieces):
    for noise, level in ((0.0, -100), (0.01, -25)):
        field, x, g = _samples(1200, noise=noise)
        net, found, _ = fit_pieces(x, g, pieces)
        assert len(found) == 3
        assert _test_error(field, net) < level


def test_too_few_pieces_show_in_what_is_left_unexplained():
    field, x, g = _samples(1000)
    net, found, _ = fit_pieces(x, g, 2)
    assert len(found) == 2
    assert found.unexplained > 5e-3
    affine = AffineField(32)
    affine.fit(x, g)
    assert _test_error(field, net) < _test_error(field, affine) - 2


def test_noise_is_averaged_out():
    """With 1 % noise (-40 dB) the pieces are found without a mistake; what is left are samples beside the edges."""
    errors = []
    for count in (1000, 30_000):
        field, x, g = _samples(count, noise=0.01)
        net, found, _ = fit_pieces(x, g)
        assert found.unexplained == pytest.approx(1e-4, rel=0.1)
        truth = field.pieces(x)
        assert len(torch.stack([found.labels, truth]).unique(dim=1).mT) == 3
        errors.append(_test_error(field, net))
    assert errors[0] < -28
    assert errors[1] < errors[0] - 3


def _random_pieces(features, pieces, seed):
    """Samples of the maximum of random quadratics."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(pieces, features, features, generator=generator, dtype=torch.float64)
    matrices = root @ root.mT / features
    slopes = torch.randn(pieces, features, generator=generator, dtype=torch.float64) / 2
    levels = torch.randn(pieces, generator=generator, dtype=torch.float64) / 3

    def sample(count):
        x = 2 * torch.rand(count, features, generator=generator, dtype=torch.float64) - 1
        product = x @ matrices
        largest = (((product / 2 + slopes.unsqueeze(1)) * x).sum(dim=2) + levels.unsqueeze(1)).argmax(dim=0)
        return x, (product + slopes.unsqueeze(1))[largest, torch.arange(count)]

    return sample


@pytest.mark.parametrize("features", [2, 3])
def test_many_small_pieces_are_found_in_low_dimension(features):
    """From random labels alone, four to six of the eight fields are."""
    found = [identify_pieces(*_random_pieces(features, 6, seed)(3000), 6, seed=seed) for seed in range(8)]
    assert sum(pieces.unexplained < 1e-12 for pieces in found) >= 7


def test_pieces_that_do_not_meet_are_gated_as_the_samples_are():
    sample = _random_pieces(10, 5, 1)
    x, g = sample(4000)
    net, found, gate = fit_pieces(x, g, 5)
    assert len(found) == 5
    assert found.unexplained < 1e-20
    assert gate.error < 1e-20
    x, g = sample(4000)
    assert error(net, x, g) < 3e-3 * float(g.var(dim=0).sum())


def test_below_the_budget_of_full_matrices_the_pieces_share_a_factor(tmp_path):
    field, x, g = _samples(1000)
    for parameters, level in ((3300, -18), (1100, -15)):
        net, _, _ = fit_pieces(x, g, 3, parameters=parameters)
        assert count_stored(net) <= parameters
        assert _test_error(field, net) < level
    assert all(p.requires_grad for p in net.parameters())
    net.save(tmp_path / "net.safetensors")
    assert_close(load(tmp_path / "net.safetensors")(x), net(x))
    assert verify.symmetry_error(net.double(), x[:50].double()) < 1e-9
    with pytest.raises(InvalidInputError, match="too few for 3 pieces"):
        fit_pieces(x, g, 3, parameters=30)


def test_sharpness_follows_smooth_edges():
    """Samples of a smooth maximum get its sharpness, not the largest."""
    _, x, g = _samples(3000)
    net, found, gate = fit_pieces(x, g)
    net.inner.sharpness_raw.data.fill_(30.0)
    smooth = fit_gate(found, x, net(x).detach())
    assert 15 < smooth.sharpness < 60
    assert gate.sharpness > 1e6


def test_identification_is_reproducible_and_refuses_bad_samples():
    _, x, g = _samples(500)
    first, second = (identify_pieces(x, g, 4, seed=3) for _ in range(2))
    assert torch.equal(first.matrices, second.matrices)
    before = x.clone()
    identify_pieces(x, g, 3)
    assert torch.equal(x, before)
    with pytest.raises(ShapeError, match="one shape"):
        identify_pieces(x, g[:-1])
    with pytest.raises(InvalidInputError, match="NaN"):
        identify_pieces(x, torch.where(g > 0.3, torch.nan, g))
    with pytest.raises(InvalidInputError, match="too few for 3"):
        identify_pieces(x[:5], g[:5], 3)
    with pytest.raises(InvalidInputError, match="pieces"):
        identify_pieces(x, g, 0)


def test_one_piece_and_less_samples_than_features():
    x = torch.randn(50, 4, dtype=torch.float64)
    net, found, _ = fit_pieces(x, 3 * x + 1, 3)
    assert len(found) == 1
    assert_close(net(x), 3 * x + 1)
    _, x, g = _samples(40)
    assert bool(torch.isfinite(fit_pieces(x, g, 2)[0](x)).all())


@pytest.mark.parametrize("monotone", [False, True])
def test_a_quadratic_is_made_from_its_matrix(monotone):
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix = root @ root.mT - (0 if monotone else 2) * torch.eye(6, dtype=torch.float64)
    x = torch.randn(9, 6, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64)
    assert_close(Quadratic.from_matrix(matrix, bias, monotone=monotone)(x), x @ matrix + bias)
    low = Quadratic.from_matrix(matrix, rank=2, monotone=monotone)
    values = torch.linalg.eigvalsh(matrix)
    kept = values.abs().argsort(descending=True)[:2]
    assert_close(low.jacobian(x[0]).eigvalsh()[[0, -1]].abs().max(), values[kept].abs().max())
    assert low.factor.shape == (2, 6)
    with pytest.raises(ShapeError, match=r"\(d, d\)"):
        Quadratic.from_matrix(matrix[:3])
    with pytest.raises(ShapeError, match="bias"):
        Quadratic.from_matrix(matrix, bias[:3])
