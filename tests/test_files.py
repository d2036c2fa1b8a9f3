"""Model files and tables: round trips, safety, and what is said about bad files."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from nablanets import (
    ConditionalGradNet,
    GradNetC,
    GradNetM,
    Quadratic,
    add_gradient_residuals,
    from_potential,
    load,
    remove_gradient_residuals,
    savable,
)
from nablanets.dynamics.kinetic import Kinetic
from nablanets.dynamics.port import PortHamiltonian
from nablanets.dynamics.second_order import SecondOrder
from nablanets.dynamics.sympnet import SympNet
from nablanets.dynamics.systems import (
    ConditionalHamiltonian,
    FieldSystem,
    HamiltonianSystem,
    SeparableHamiltonian,
)
from nablanets.errors import DataFileError, ModelFileError
from nablanets.parameters import count_parameters
from nablanets.serialization import atomic_path, read_notes, save
from nablanets.serialization.registry import _HOMES
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


def test_standard_output_is_written_to_and_not_replaced(tmp_path):
    code = "from nablanets import GradNetC; GradNetC(2, 4).save('/dev/stdout')"
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    (tmp_path / "piped.safetensors").write_bytes(piped.stdout)
    assert load(tmp_path / "piped.safetensors").features == 2


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["data.txt"]


def test_shared_parts_stay_shared(tmp_path):
    c = GradNetC(4, 8)
    net = c + c.pullback(torch.randn(4, 4))
    save(net, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    x = torch.randn(5, 4)
    assert torch.equal(again(x), net(x))
    assert again.parts[0] is again.parts[1].inner
    assert count_parameters(again) == count_parameters(net)
    single = tmp_path / "c.safetensors"
    save(c, single)
    assert (tmp_path / "m.safetensors").stat().st_size < 2 * single.stat().st_size


def test_shared_parameters_stay_shared(tmp_path):
    a, b = GradNetC(4, 8), GradNetC(4, 8)
    b.bias = a.bias
    save(a + b, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.parts[0].bias is again.parts[1].bias
    assert again.parts[0].projection is not again.parts[1].projection
    assert torch.equal(again(torch.ones(4)), (a + b)(torch.ones(4)))


def _of_many_kinds() -> list[torch.nn.Module]:
    c = GradNetC(2, 4)
    mixed = GradNetM(2, 3) + Quadratic(2).double()
    return [c, GradNetM(3, 4, monotone=True).double(), c.bfloat16() + c, mixed, SecondOrder(GradNetC(2, 3, 1), 2)]


@pytest.mark.parametrize("number", range(5))
def test_flipped_bits_are_noticed(tmp_path, number):
    """Wherever they are in a tensor or in the architecture, and not in a file that was written again."""
    module, path, again = _of_many_kinds()[number], tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save(module, path, notes={"by": "me"})
    content = path.read_bytes()
    save(load(path), again, notes={"by": "me"})
    assert _parts(again) == _parts(path)
    safetensors.torch.save_file(safetensors.torch.load_file(path), again, metadata={**read_notes(path), "by": "you"})
    load(again)
    length = int.from_bytes(content[:8], "little")
    tensors_begin = 8 + length
    bits = random.Random(number).sample(range(8 * tensors_begin, 8 * len(content)), 40)
    for bit in [8 * tensors_begin, 8 * len(content) - 1, *bits]:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        again.write_bytes(changed)
        with pytest.raises(ModelFileError, match=r"b.safetensors is damaged: .* by their checksum"):
            load(again)
    text = content[8:tensors_begin].decode()
    for old, new in (
        ('features\\": 2', 'features\\": 3'),
        ('features\\": 3', 'features\\": 2'),
        ("softmax", "softmix"),
    ):
        again.write_bytes(content[:8] + text.replace(old, new).encode() + content[tensors_begin:])
        if old in text:
            with pytest.raises(ModelFileError, match="checksum"):
                load(again)
    description = json.loads(read_notes(path)["nablanets"])
    assert description.pop("checksum").startswith("crc32:")
    older = {"nablanets": json.dumps(description)}
    safetensors.torch.save_file(safetensors.torch.load_file(path), again, metadata=older)
    loaded = load(again).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in module.state_dict().items())


def _parts(path):
    """The header of a model file, whose entries come in any order, and the bytes of its tensors."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_views_of_one_memory_are_written_each(tmp_path):
    net = GradNetC(4, 8) + GradNetC(4, 8)
    memory = torch.randn(8)
    net.parts[0].bias = torch.nn.Parameter(memory[:4])
    net.parts[1].bias = torch.nn.Parameter(memory[4:])
    save(net, tmp_path / "m.safetensors")
    assert torch.equal(load(tmp_path / "m.safetensors")(torch.ones(4)), net(torch.ones(4)))


def test_files_without_shared_parts_are_as_before(tmp_path):
    """Versions before shared parts read them."""
    save(GradNetC(2, 4) + GradNetC(2, 4), tmp_path / "m.safetensors")
    description = json.loads(read_notes(tmp_path / "m.safetensors")["nablanets"])
    assert description["format"] == "1"
    assert set(description) == {"format", "architecture", "checksum"}


def test_saving_leaves_the_random_stream_alone(tmp_path):
    net = GradNetC(2, 4) + GradNetM(2, 4)
    before = torch.get_rng_state()
    save(net, tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_mixed_types_survive(tmp_path):
    net = GradNetC(2, 4) + GradNetC(2, 4).double()
    save(net, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert [part.bias.dtype for part in again.parts] == [torch.float32, torch.float64]


@savable
class Block(torch.nn.Module):
    """A residual block that is savable, and was changed after it was built."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
        self.features = 3

    def config(self):
        return {}

    def forward(self, x):
        return x + self.body(x)


def test_what_was_changed_after_building_is_not_saved_in_part(tmp_path):
    path = tmp_path / "m.safetensors"
    block = Block()
    report = add_gradient_residuals(block)
    assert report.converted
    for model in (block, FieldSystem(block, 3), torch.nn.Sequential(block)):
        with pytest.raises(ModelFileError, match="remove_gradient_residuals"):
            save(model, path)
    # The way that the message tells works.
    weights = tmp_path / "w.safetensors"
    safetensors.torch.save_model(block, str(weights))
    other = add_gradient_residuals(Block()).model
    safetensors.torch.load_model(other, str(weights))
    x = torch.randn(2, 3)
    assert torch.equal(other(x), block(x))
    remove_gradient_residuals(block)
    save(block, path)
    assert torch.equal(load(path)(x), block(x))
    path.unlink()
    block.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ModelFileError, match=r"other tensors.*extra"):
        save(block, path)
    assert not path.exists()


LOAD_EACH = """
import os, sys
import nablanets

for name in sorted(os.listdir(sys.argv[1])):
    # In a process of its own, since loading one file imports the module of others.
    sys.stdout.flush()
    if os.fork() == 0:
        print(type(nablanets.load(f"{sys.argv[1]}/{name}")).__name__, flush=True)
        os._exit(0)
    os.wait()
"""


def test_models_load_in_a_process_that_never_saw_their_module(tmp_path):
    net = GradNetC(2, 4)
    models = [
        HamiltonianSystem(GradNetC(4, 4)),
        SeparableHamiltonian(Kinetic([1.0, 2.0]), net),
        ConditionalHamiltonian(ConditionalGradNet(4, 2, 8)),
        FieldSystem(net, 2),
        SecondOrder(net, 2),
        SympNet([net, GradNetC(2, 4)]),
        PortHamiltonian(GradNetC(4, 4)),
        Kinetic([1.0, 2.0]),
    ]
    names = sorted(type(model).__name__ for model in models)
    for model in models:
        save(model, tmp_path / f"{type(model).__name__}.safetensors")
    done = subprocess.run([sys.executable, "-c", LOAD_EACH, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == names
    assert set(_HOMES) <= set(names)


def described(path, description, tensors=None) -> None:
    """A model file that says what it likes."""
    content = description if isinstance(description, str) else json.dumps(description)
    tensors = {k: v.clone() for k, v in GradNetC(2, 4).state_dict().items()} if tensors is None else tensors
    safetensors.torch.save_file(tensors, path, metadata={"nablanets": content})


C = {"type": "GradNetC", "arguments": {"features": 2, "hidden_features": 4}}
LARGE = [400_000_000, 10**6, 10**12, 10**30, 1e9, -(10**9)]


def nested(levels: int, inner: str) -> str:
    sum_of = '{"type": "Sum", "arguments": {"parts": [{"module": '
    return sum_of * levels + inner + "}]}}" * levels


def doubled(levels: int) -> dict:
    """Sums of a sum with itself: 2^levels ways to one network."""
    description = C
    for level in range(levels):
        description = {"type": "Sum", "arguments": {"parts": [{"module": description}, {"shared": level}]}}
    return description


HOSTILE = {
    **{f"hidden {n}": {"type": "GradNetC", "arguments": {"features": 2, "hidden_features": n}} for n in LARGE},
    **{f"features {n}": {"type": "GradNetM", "arguments": {"features": n, "hidden_features": 4}} for n in LARGE},
    **{f"layers {n}": {"type": "GradNetC", "arguments": {**C["arguments"], "num_layers": n}} for n in (10**5, *LARGE)},
    "square": {"type": "GradNetC", "arguments": {"features": 10**5, "hidden_features": 10**5}},
    "tensor": {"type": "Constant", "arguments": {"value": {"tensor": [10**10], "dtype": "float32"}}},
    "negative tensor": {"type": "Constant", "arguments": {"value": {"tensor": [-1], "dtype": "float32"}}},
    "no type": {"type": "Constant", "arguments": {"value": {"tensor": [2], "dtype": "load"}}},
    "no such argument": {"type": "GradNetC", "arguments": {**C["arguments"], "__class__": "x"}},
    "type is a list": {"type": ["GradNetC"], "arguments": {}},
    "arguments are a list": {"type": "GradNetC", "arguments": []},
    "shared nothing": {"type": "Sum", "arguments": {"parts": [{"shared": 0}, {"module": C}]}},
    "shared ahead": {"type": "Sum", "arguments": {"parts": [{"module": C}, {"shared": 1}]}},
    "shared negative": {"type": "Sum", "arguments": {"parts": [{"module": C}, {"shared": -1}]}},
    "shared text": {"type": "Sum", "arguments": {"parts": [{"module": C}, {"shared": "0"}]}},
    "doubled": doubled(60),
    "strange value": {"type": "GradNetC", "arguments": {"features": {"file": "/etc/passwd"}, "hidden_features": 4}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_claim_more_than_they_hold_are_refused_at_once(tmp_path, name):
    path = tmp_path / "m.safetensors"
    described(path, {"format": "2", "architecture": HOSTILE[name], "ties": {}})
    # Without limits these take minutes, and all memory.
    with pytest.raises(ModelFileError, match="does not describe a model"):
        load(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format": "3", "architecture": {}}',
        '{"format": 1, "architecture": {}}',
        "[" * 200_000,
        json.dumps({"format": "1", "architecture": "GradNetC"}),
        json.dumps({"format": "1", "architecture": C, "ties": []}),
        json.dumps({"format": "2", "architecture": C, "ties": {"bias": 3}}),
        json.dumps({"format": "2", "architecture": C, "ties": {"bias": "nowhere"}}),
        json.dumps({"format": "2", "architecture": C, "ties": {"ridge.bias": "bias"}}),
        '{"format": "1", "architecture": ' + nested(5000, json.dumps(C)) + "}",
        '{"format": "1", "architecture": ' + nested(300, json.dumps(C)) + "}",
    ],
)
def test_damaged_headers_are_refused(tmp_path, text):
    path = tmp_path / "m.safetensors"
    described(path, text)
    with pytest.raises(ModelFileError, match="does not describe a model"):
        load(path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
def test_weights_of_other_kinds_are_refused(tmp_path, dtype):
    path = tmp_path / "m.safetensors"
    tensors = {k: torch.ones_like(v, dtype=dtype) for k, v in GradNetC(2, 4).state_dict().items()}
    described(path, {"format": "1", "architecture": C}, tensors)
    with pytest.raises(ModelFileError, match="floating-point"):
        load(path)


def test_a_seed_may_be_large(tmp_path):
    save(Seeded(2**40), tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").seed == 2**40


@savable
class Seeded(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.weight = torch.nn.Parameter(torch.ones(2))

    def config(self):
        return {"seed": self.seed}


@savable
class Listing(torch.nn.Module):
    """Memory that no limit on tensors sees."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.items = [0.0] * count

    def config(self):
        return {"count": len(self.items)}


def test_integers_are_bounded_too(tmp_path):
    path = tmp_path / "m.safetensors"
    save(Listing(1000), path)
    assert len(load(path).items) == 1000
    described(path, {"format": "1", "architecture": {"type": "Listing", "arguments": {"count": 2**24}}}, {})
    with pytest.raises(ModelFileError, match="more than a file of this size can hold"):
        load(path)


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


def test_two_classes_cannot_share_a_name_in_files():
    """One of them would be loaded as the other."""
    original = GradNetC
    other = type("GradNetC", (torch.nn.Module,), {})

    with pytest.raises(ModelFileError, match=r"taken by nablanets\.maps\.cascaded\.GradNetC"):
        savable(other)
    assert savable(original) is original
