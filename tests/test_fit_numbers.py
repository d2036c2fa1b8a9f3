"""Numbers in fits: units, offsets, grids, and fits that come to nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

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
    code, _, err = call(capsys, "fit", path, "--out", model, "--steps", 5, "--monotone")
    assert code != 0
    assert "the gradients decrease" in err
    assert "Leave --monotone out" in err
    assert not model.exists()
    path = table(tmp_path / "mixed.csv", x, np.stack([x[:, 0], -x[:, 1] / 2], axis=1))
    code, out, _ = call(capsys, "fit", path, "--out", model, "--steps", 5, "--monotone", "--force")
    assert code == 0
    assert "--monotone:" in out
    noisy = x + np.random.default_rng(1).normal(0, 0.1, x.shape)
    path = table(tmp_path / "noisy.csv", x, noisy)
    _, out, err = call(capsys, "fit", path, "--out", model, "--steps", 5, "--monotone", "--force")
    assert "of the pairs" not in out + err
