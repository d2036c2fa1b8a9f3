"""Diagnostics of models: known statistics of a known layer, and that looking changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nablanets import GradientResidual, add_gradient_residuals
from nablanets.errors import InvalidInputError
from nablanets.residual import ResidualHistory, residual_statistics
from tests.residual_models import EDSR, ResNet, Transformer, plain_mlp


def test_statistics_of_a_known_layer():
    """F(x) = W2 (W1 x + b): g = W1^T W2^T 1 everywhere, so neighbours agree and |g| / |x| is known."""
    block = nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 4))
    layer, x = GradientResidual(block.requires_grad_(False), alpha=1.0), torch.randn(50, 4)
    (found,) = residual_statistics(layer, x)
    g = block[0].weight.T @ block[2].weight.T @ torch.ones(4)
    assert found.gate == pytest.approx(1 / (1 + math.exp(-1)))
    assert found.ratio == pytest.approx(float((g.norm() / x.norm(dim=1)).mean()), rel=1e-5)
    assert found.neighbours == pytest.approx(1)
    assert found.alignment == pytest.approx(float(nn.functional.cosine_similarity(x, g[None]).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("build", "shape", "count", "settings"),
    [
        (EDSR, (2, 3, 8, 8), 2, {}),
        (ResNet, (2, 3, 8, 8), 4, {"norm": "constant"}),
        (Transformer, (2, 5, 8), 2, {}),
        (plain_mlp, (5, 3), 1, {}),
    ],
)
def test_statistics_of_converted_models(build, shape, count, settings):
    model, x = add_gradient_residuals(build(), **settings).model, torch.randn(shape)
    state = [t.clone() for t in model.state_dict().values()]
    history = ResidualHistory(model)
    for step in range(2):
        history.record(step, x)
    assert len(history.rows) == 2 * count and {row["step"] for row in history.rows} == {0, 1}
    assert all(math.isfinite(row["ratio"]) and row["ratio"] > 0 and row["gate"] == 0.5 for row in history.rows)
    assert all(-1.01 <= row["neighbours"] <= 1.01 for row in history.rows)
    assert "cos(g, x)" in str(history)
    assert model.training and all(torch.equal(a, b) for a, b in zip(state, model.state_dict().values(), strict=True))
    assert not any(m._forward_hooks for m in model.modules())


def test_statistics_need_gradient_residuals():
    with pytest.raises(InvalidInputError, match="add_gradient_residuals"):
        residual_statistics(nn.Linear(2, 2), torch.zeros(1, 2))
