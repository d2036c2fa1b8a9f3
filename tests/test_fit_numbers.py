"""Numbers in fits: units, offsets, grids, and fits that come to nothing."""

from __future__ import annotations

import copy
import functools
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from nablanets import GradNetC, GradNetM, Pullback, Quadratic, fit, from_potential, load
from nablanets.errors import DataWarning, InvalidInputError
from nablanets.fitting import decibels
from nablanets.starts import standardised
from nablanets.verify import certificate
from tests.commands import call


def table(path, x, g):
    """A CSV file with points and gradients in all digits."""
    columns = {f"x{i + 1}": x[:, i] for i in range(x.shape[1])}
    columns |= {f"g{i + 1}": g[:, i] for i in range(g.shape[1])}
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def waves(count=400, features=2, seed=0):
    """Samples of the gradient of the sum of all cos(x_i) + x_i^2 / 4, a field that is no affine map."""
    x = np.random.default_rng(seed).uniform(-2, 2, (count, features))
    return x, x / 2 - np.sin(x)


# Fits that come to nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--lr", 1e30, "--steps", 20], "diverged"), (["--lr", 1e-9, "--steps", 3], "worse than the best affine map")],
)
def test_a_fit_of_no_use_says_so_and_writes_nothing_unless_forced(capsys, tmp_path, options, message):
    path = table(tmp_path / "t.csv", *waves())
    model = tmp_path / "m.safetensors"
    arguments = ["fit", path, "--out", model, "--hidden", 8, *options]
    code, out, err = call(capsys, *arguments)
    assert code != 0
    assert message in err
    assert "Model" not in out
    assert not model.exists()
    code, out, err = call(capsys, *arguments, "--force")
    assert code == 0
    assert message in out
    assert model.exists()


def test_gradients_that_are_all_zero_are_refused_and_constant_ones_fitted(capsys, tmp_path):
    x, g = waves()
    model = tmp_path / "m.safetensors"
    code, _, err = call(capsys, "fit", table(tmp_path / "zero.csv", x, 0 * g), "--out", model, "--steps", 5)
    assert code != 0
    assert "all gradients are zero" in err
    assert not model.exists()
    constant = 0 * g + np.array([3.0, -2.0])
    arguments = ["fit", table(tmp_path / "constant.csv", x, constant), "--out", model, "--steps", 200, "--hidden", 4]
    assert call(capsys, *arguments)[0] == 0


def test_monotone_fits_of_data_that_decrease_say_so(capsys, tmp_path):
    x, _ = waves()
    model = tmp_path / "m.safetensors"
    path = table(tmp_path / "t.csv", x, -x)
    code, _, err = call(capsys, "fit", path, "--out", model, "--steps", 5, "--monotone", "increasing")
    assert code != 0
    assert "the gradients decrease" in err
    assert "Leave --monotone out" in err
    assert not model.exists()
    path = table(tmp_path / "mixed.csv", x, np.stack([x[:, 0], -x[:, 1] / 2], axis=1))
    code, out, _ = call(capsys, "fit", path, "--out", model, "--steps", 5, "--monotone", "increasing", "--force")
    assert code == 0
    assert "--monotone:" in out
    noisy = x + np.random.default_rng(1).normal(0, 0.1, x.shape)
    path = table(tmp_path / "noisy.csv", x, noisy)
    _, out, err = call(capsys, "fit", path, "--out", model, "--steps", 5, "--monotone", "increasing", "--force")
    assert "of the pairs" not in out + err


# Units and offsets

#: Small nets, and steps enough for them.
NETS = {
    "C": lambda: GradNetC(2, 6, 2),
    "M": lambda: GradNetM(2, 4, 2),
    "Quadratic": lambda: Quadratic(2),
    "FromPotential": lambda: from_potential(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), 2),
}
STEPS = {"adam": 20, "lbfgs": 6, "levenberg": 5}
QUICK = ["--steps", 100, "--hidden", 6, "--depth", 2, "--lr", 0.02]
powers = st.floats(-12, 12)


def fitted_db(name, optimizer, dtype, x, g):
    """The validation error of a fit in standard units, in dB of the mean square gradient."""
    torch.manual_seed(0)
    net = standardised(NETS[name]().to(dtype), x, g)
    held_out = (x[::5], g[::5])
    options = {"steps": STEPS[optimizer], "optimizer": optimizer, "learning_rate": 0.02, "progress": False}
    result = fit(net, x, g, validation=held_out, **options)
    return decibels(result.best_validation_error / float(g[::5].square().sum(dim=1).mean()))


@functools.cache
def unscaled_db(name, optimizer, dtype):
    x, g = (torch.from_numpy(part) for part in waves(60))
    return fitted_db(name, optimizer, dtype, x, g)


@pytest.mark.parametrize("optimizer", STEPS)
@pytest.mark.parametrize("name", NETS)
@settings(max_examples=2, deadline=None)
@given(
    scale_x=powers, scale_g=powers, offset=st.floats(-1e6, 1e6), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_units_and_offsets_do_not_matter(name, optimizer, scale_x, scale_g, offset, dtype):
    x, g = (torch.from_numpy(part) for part in waves(60))
    found = fitted_db(name, optimizer, dtype, 10**scale_x * (x + offset), 10**scale_g * g)
    assert found == pytest.approx(unscaled_db(name, optimizer, dtype), abs=0.5)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1e20])
def test_steps_are_relative_to_the_size_of_the_targets(optimizer, scale):
    """A net whose own output has the size of the targets takes the same steps, wrapped or not."""
    x, g = (torch.from_numpy(part).float() for part in waves(60))
    histories = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        net = factor * GradNetC(2, 6, 2)
        options = {"steps": 20, "learning_rate": 0.02, "validate_every": 5, "progress": False, "optimizer": optimizer}
        histories.append(fit(net, x, (factor * g.double()).float(), **options).history)
    for one, other in zip(*histories, strict=True):
        assert other.training_error == pytest.approx(one.training_error * scale**2, rel=0.05)
        assert other.validation_error == pytest.approx(one.validation_error * scale**2, rel=0.05)


@pytest.mark.parametrize(("scale_x", "scale_g"), [(1, 1e-5), (1, 1e20), (1e-10, 1)])
def test_the_command_fits_any_units(capsys, tmp_path, scale_x, scale_g):
    x, g = waves()
    errors = []
    for name, points, gradients in (("one", x, g), ("scaled", scale_x * x, scale_g * g)):
        path, model = table(tmp_path / f"{name}.csv", points, gradients), tmp_path / f"{name}.safetensors"
        code, out, _ = call(capsys, "fit", path, "--out", model, *QUICK)
        assert code == 0
        errors.append(float(re.search(r"validation error (-?[\d.]+) dB", out).group(1)))
    assert errors[1] == pytest.approx(errors[0], abs=0.5)
    assert errors[1] < -5


def test_points_far_from_zero_keep_their_digits(capsys, tmp_path):
    """Seconds since 1970: float32 has three numbers in the whole table."""
    x, g = waves()
    path, model = table(tmp_path / "t.csv", 1.7e9 + 15 * x, g), tmp_path / "m.safetensors"
    code, out, _ = call(capsys, "fit", path, "--out", model, *QUICK)
    assert code == 0
    assert float(re.search(r"validation error (-?[\d.]+) dB", out).group(1)) < -5
    code, out, _ = call(capsys, "apply", model, path)
    assert code == 0
    assert float(re.search(r"in the file: (-?[\d.]+) dB", out).group(1)) < -5
    net = load(model)
    points = torch.from_numpy(1.7e9 + 15 * x)
    assert_close(net(points).double(), net.double()(points), rtol=1e-4, atol=1e-4)
    assert certificate(net, points).passed


def test_a_centre_stays_in_float64_and_is_part_of_the_map():
    x = torch.tensor([[1.7e9 + 0.25, 1.0]], dtype=torch.double)
    inner = GradNetC(2, 4)
    centre = torch.tensor([1.7e9, 1.0], dtype=torch.double)
    net = Pullback(inner, torch.tensor([2.0, 3.0]), centre=centre)
    for converted in (net, net.double().float(), copy.deepcopy(net).half().float(), load_again(net)):
        assert converted.centre.dtype == torch.float64
        assert torch.equal(converted.image(x), torch.tensor([[0.5, 0.0]]))
    assert net.double().float()(x).dtype == torch.float32
    wide = net.double()
    direction = torch.tensor([[1.0, 2.0]], dtype=torch.double)
    zero = torch.zeros(1, dtype=torch.double)
    assert_close(wide.along(x, direction)(zero), (wide(x) * direction).sum(dim=-1))
    assert_close(wide.profiles(x @ wide.directions().mT), wide.inner.profiles(wide.image(x) @ inner.weight.mT))


def load_again(net):
    with tempfile.TemporaryDirectory() as folder:
        net.save(Path(folder) / "m.safetensors")
        return load(Path(folder) / "m.safetensors")


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_column_that_varies_by_rounding_counts_as_constant(scale):
    x, g = (torch.from_numpy(part) for part in waves(60))
    x = x.clone()
    x[:, 1] = 0.3
    x[::3, 1] = 0.1 + 0.2
    g[:, 1] = x[:, 0]
    with pytest.warns(DataWarning, match=r"feature 2 \(at"):
        net = standardised(GradNetC(2, 6, 2), scale * x, g)
    result = fit(net, scale * x, g, steps=200, learning_rate=0.02, progress=False)
    assert result.best_validation_error < float(g.square().sum(dim=1).mean())
    slow = torch.stack([x[:, 0], 0.3 + 1e-9 * x[:, 0]], dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        standardised(GradNetC(2, 6, 2), scale * slow, g)


def test_fit_says_that_a_net_does_not_know_the_units():
    x, g = (torch.from_numpy(part).float() for part in waves(50))
    for points, gradients in ((1e-10 * x, g), (x, 1e5 * g), (x + 1e6, g)):
        with pytest.warns(DataWarning, match=r"starts\.standardised"):
            fit(GradNetC(2, 4), points, gradients, steps=1, progress=False)
    with pytest.raises(InvalidInputError, match="cannot hold"):
        fit(GradNetC(2, 4), x, 1e39 * g.double(), steps=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        fit(GradNetC(2, 4), x, g, steps=1, progress=False)
