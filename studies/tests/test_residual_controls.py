"""Control arms: each is what it says, needs no gradient that it does not use, and is found by its name."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nablanets import GradientResidual, add_gradient_residuals
from nablanets.errors import UnknownNameError
from nablanets.residual import ConstantSumError
from nablanets_studies.residual.arms import ARMS, residual
from nablanets_studies.residual.controls import CONTROLS


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4))


def test_controls_are_what_they_say():
    torch.manual_seed(0)
    block, x, s = mlp(), torch.randn(5, 4), torch.sigmoid(torch.tensor(0.7))
    layers = {skip: GradientResidual(block, 0.7, skip=skip, normalize="none") for skip in CONTROLS}
    y, g, r = block(x), GradientResidual(block).gradient(x), layers["random"].vector
    size = g.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True)
    expected = {
        "none": 0 * x, "identity": x, "scalar": x, "damped": (1 - s) * x, "random": (1 - s) * x + s * r,
        "magnitude": (1 - s) * x + s * size * x,
    }  # fmt: skip
    assert set(expected) == set(CONTROLS)
    for skip, layer in layers.items():
        assert_close(layer(x), y + expected[skip])
    with torch.no_grad():
        layers["scalar"].scale.fill_(3.0)
    assert_close(layers["scalar"](x), y + 3 * x)
    assert_close(GradientResidual(block, 0.7, skip="magnitude", gain=2.0)(x), y + (1 - s) * x + 2 * s * size * x)


def test_random_vector_is_fixed_and_normalised_like_g():
    layer, x = GradientResidual(mlp(), math.inf, skip="random"), torch.randn(5, 4)
    carried = layer(x) - layer.block(x)
    assert_close(carried, carried[:1].expand(5, 4))
    assert_close(carried.norm(dim=-1), torch.ones(5))
    assert "vector" in layer.state_dict()


@pytest.mark.parametrize("skip", CONTROLS)
def test_parameters_have_the_names_that_saved_models_use(skip):
    own = {"scalar": {"scale"}, "random": {"vector", "alpha"}, "damped": {"alpha"}, "magnitude": {"alpha"}}
    layer = GradientResidual(mlp(), skip=skip)
    assert {name for name in layer.state_dict() if not name.startswith("block.")} == own.get(skip, set())


@pytest.mark.parametrize("skip", CONTROLS)
def test_projections_copies_and_blocks_that_end_in_a_norm(skip):
    wide = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 6))
    layer, x = GradientResidual(wide, skip=skip, projection=nn.Linear(4, 6, bias=False)), torch.randn(5, 4)
    carried = layer(x) - wide(x)
    reference = GradientResidual(mlp(), skip=skip)
    if skip == "none":
        assert not carried.any()
    elif skip in {"identity", "damped"}:
        assert_close(carried, layer.projection(reference(x) - reference.block(x)))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(other(x), layer(x))
    normed = nn.Sequential(*mlp(), nn.LayerNorm(4))
    if skip == "magnitude":
        with pytest.raises(ConstantSumError):
            GradientResidual(normed, skip=skip)
    else:
        GradientResidual(normed, skip=skip)(x)


@pytest.mark.parametrize("skip", CONTROLS)
def test_controls_compile(skip):
    torch._dynamo.reset()
    layer, x = GradientResidual(mlp(), skip=skip), torch.randn(5, 4)
    assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_models_are_converted_to_controls():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    x = torch.randn(3, 2)
    assert_close(add_gradient_residuals(model, inplace=False, skip="none").model(x), model(x))


def test_arms_name_skips_that_exist():
    for arm, settings in ARMS.items():
        assert residual(mlp(), arm).skip == settings["skip"]
    with pytest.raises(UnknownNameError, match="'damped'"):
        residual(mlp(), {"skip": "dampd"})


def test_the_library_alone_knows_no_controls():
    code = "from nablanets.residual.kinds import registered_skips; print(*registered_skips())"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() == ["gradient", "pure", "added"]
