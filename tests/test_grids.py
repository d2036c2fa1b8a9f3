"""What is held out: whole lines of grids, whole groups, repeated points together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nablanets import GradNetC, fit
from nablanets.errors import InvalidInputError
from nablanets.fitting.grids import grid_columns, hold_out, levels
from nablanets.starts import standardised


def generator(seed):
    return torch.Generator().manual_seed(seed)


def nodes(counts, seed, missing=0.0):
    """Nodes of a grid with random lines, in random order; some are missing."""
    draw = generator(seed)
    axes = [torch.rand(count, generator=draw, dtype=torch.double) for count in counts]
    x = torch.cartesian_prod(*axes).reshape(-1, len(counts))
    order = torch.randperm(len(x), generator=draw)
    return x[order[: round(len(x) * (1 - missing))]]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(6, 12), min_size=2, max_size=3),
    missing=st.floats(0, 0.4),
    unit=st.sampled_from([1e-12, 1e-3, 1.0, 1e9]),
    offset=st.sampled_from([0.0, -3.0, 1e3]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_training_never_sees_a_line_that_is_held_out(counts, missing, unit, offset, dtype, seed):
    ideal = nodes(counts, seed, missing)
    x = ((ideal + offset) * unit).to(dtype)
    x = x * (1 + torch.finfo(dtype).eps * torch.randint(-1, 2, x.shape, generator=generator(seed)))  # coordinates round
    held_out = hold_out(x, 0.1, generator(seed))
    rows = torch.cat([held_out.training, held_out.validation])
    assert torch.equal(rows.sort().values, torch.arange(len(x)))
    assert held_out.lines
    assert 0.04 <= len(held_out.validation) / len(x) <= 0.45
    seen = [set(ideal[held_out.training, column].tolist()) for column in range(len(counts))]
    for row in ideal[held_out.validation].tolist():
        assert any(row[column] not in seen[column] for column in held_out.lines)
    for column in held_out.lines:  # the ends stay
        assert {float(ideal[:, column].min()), float(ideal[:, column].max())} <= seen[column]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(20, 400), features=st.integers(1, 4), fraction=st.floats(0.05, 0.9), seed=st.integers(0, 1000))
def test_scattered_points_are_held_out_at_random(n, features, fraction, seed):
    x = torch.rand(n, features, generator=generator(seed), dtype=torch.double)
    held_out = hold_out(x, fraction, generator(seed))
    assert not held_out.lines
    assert len(held_out.validation) == max(1, round(fraction * n))
    assert not set(held_out.training.tolist()) & set(held_out.validation.tolist())


def test_repeated_points_stay_together():
    x = torch.rand(40, 2).repeat(3, 1)
    held_out = hold_out(x, 0.2, generator(0))
    assert not set(map(tuple, x[held_out.training].tolist())) & set(map(tuple, x[held_out.validation].tolist()))
    assert len(held_out.validation) == 24


def test_groups_stay_together():
    groups = torch.randint(0, 7, (100,), generator=generator(0)) * 10
    held_out = hold_out(torch.rand(100, 2), 0.2, generator(0), groups=groups)
    assert not set(groups[held_out.training].tolist()) & set(groups[held_out.validation].tolist())
    assert len(held_out.validation) >= 20
    with pytest.raises(InvalidInputError, match="one group"):
        hold_out(torch.rand(9, 2), 0.2, generator(0), groups=torch.zeros(9))


def test_columns_with_few_or_many_values_are_no_grid():
    scattered = torch.rand(60)
    assert list(grid_columns(torch.stack([scattered, (scattered > 0.5).float(), (9 * scattered).round()], dim=1))) == [
        2
    ]
    assert levels(torch.tensor([0.3, 0.0, 0.1 + 0.2, 0.4], dtype=torch.double)).tolist() == [1, 0, 1, 2]


def test_a_grid_does_not_deceive_the_validation():
    """Nodes that are held out at random have neighbours with the same coordinates: they would say 1e-4 of the truth."""
    torch.manual_seed(0)
    axis = torch.linspace(-1, 1, 12)
    x = torch.cartesian_prod(axis, axis)
    between = 2 * torch.rand(2000, 2) - 1

    def field(points):
        return 9 * torch.cos(9 * points)

    net = standardised(GradNetC(2, 64), x, field(x))
    result = fit(net, x, field(x), steps=600, progress=False)
    truth = float((net(between) - field(between)).detach().square().sum(dim=1).mean())
    assert result.best_validation_error > 0.1 * truth
