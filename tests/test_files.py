"""Model files and tables: round trips, safety, and what is said about bad files."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from nablanets import GradNetC, GradNetM, from_potential, load
from nablanets.errors import DataFileError, ModelFileError
from nablanets.serialization import atomic_path, read_notes, save
from nablanets.tables import read_table, select_columns, write_table


def test_notes_and_dtype_survive(tmp_path):
    net = GradNetM(2, 4).double()
    save(net, tmp_path / "m.safetensors", notes={"licence": "MIT"})
    assert read_notes(tmp_path / "m.safetensors")["licence"] == "MIT"
    assert load(tmp_path / "m.safetensors").weight.dtype == torch.float64


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_model_files_are_explained(tmp_path, keep):
    path = tmp_path / "m.safetensors"
    GradNetC(2, 4).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match="truncated"):
        load(path)


def test_files_that_are_no_models_are_explained(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ModelFileError, match="no model file"):
        load(path)
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(ModelFileError, match="not a readable safetensors"):
        load(path)
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(ModelFileError, match="no nablanets architecture"):
        load(path)


@pytest.mark.parametrize(
    "architecture",
    [
        {"type": "os.system", "arguments": {}},
        {"type": "GradNetC", "arguments": {"features": 2}},
        {"type": "GradNetC", "arguments": {"features": 2, "hidden_features": 5}},
        {"type": "GradNetC", "arguments": {"features": -2, "hidden_features": 5}},
        {"type": "Pullback", "arguments": {"inner": {"module": {"type": "eval", "arguments": {}}}}},
        {},
    ],
)
def test_only_known_architectures_that_fit_their_weights_are_built(tmp_path, architecture):
    path = tmp_path / "m.safetensors"
    tensors = {k: v.clone() for k, v in GradNetC(2, 4).state_dict().items()}
    header = {"nablanets": json.dumps({"format": "1", "architecture": architecture})}
    safetensors.torch.save_file(tensors, path, metadata=header)
    with pytest.raises(ModelFileError, match="does not describe a model"):
        load(path)


def test_weights_can_be_saved_by_other_tools(tmp_path):
    """Parameters are contiguous, so safetensors takes the state_dict as it is."""
    for net in (GradNetC(2, 4), GradNetM(2, 4)):
        safetensors.torch.save_file(net.state_dict(), tmp_path / "w.safetensors")
        assert net.weight.shape[-1] == 2


def test_what_cannot_be_rebuilt_is_not_saved(tmp_path):
    path = tmp_path / "m.safetensors"
    GradNetC(2, 4).save(path)
    before = path.read_bytes()
    with pytest.raises(ModelFileError, match="Sequential"):
        from_potential(torch.nn.Sequential(torch.nn.Linear(2, 1)), 2).save(path)
    assert path.read_bytes() == before
    with pytest.raises(ModelFileError, match="cannot write"):
        GradNetC(2, 4).save(path / "below-a-file.safetensors")


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["data.txt"]


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_tables_round_trip(tmp_path, suffix):
    table = pd.DataFrame({"x1": [1.5, 2.5], "x2": [3.0, 4.0], "g1": [0.1, 0.2], "g2": [1.0, 2.0]})
    path = tmp_path / f"t{suffix}"
    write_table(table, path)
    again = read_table(path)
    assert select_columns(again, None, "x", path).tolist() == [[1.5, 3.0], [2.5, 4.0]]
    assert select_columns(again, "g2, g1", "g", path).tolist() == [[1.0, 0.1], [2.0, 0.2]]


def test_npz_arrays_become_numbered_columns(tmp_path):
    path = tmp_path / "t.npz"
    np.savez(path, x=np.arange(24.0).reshape(2, 12), g=np.ones((2, 12)))
    x = select_columns(read_table(path), None, "x", path)
    assert x[0].tolist() == list(range(12))  # x10 comes after x9, not after x1
    np.savez(path, x=np.zeros((2, 2, 2)))
    with pytest.raises(DataFileError, match="one or two dimensions"):
        read_table(path)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(DataFileError, match="cannot be read"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "cannot be read"),
        ("a.csv", "x1,g1\n", "no rows"),
        ("a.txt", "x1\n1\n", "ends in .csv, .npz, .parquet"),
        ("a.npz", "x1,g1\n1,2\n", "cannot be read"),
        ("a.parquet", "x1,g1\n1,2\n", "cannot be read"),
    ],
)
def test_bad_tables_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataFileError, match=message):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("table", "names", "message"),
    [
        ({"a": [1.0]}, None, "missing x1.*The file has: a"),
        ({"x1": [1.0], "x3": [1.0]}, None, "missing x2"),
        ({"x1": [1.0]}, "x1,height", "missing height"),
        ({"x1": ["one"]}, None, "must hold numbers"),
        ({"x1": [1.0, None]}, None, "1 rows have empty, NaN or infinite.*data row 2"),
    ],
)
def test_bad_columns_are_explained(table, names, message):
    with pytest.raises(DataFileError, match=message):
        select_columns(pd.DataFrame(table), names, "x", "t.csv")
