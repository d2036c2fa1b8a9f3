"""Damaged files in numbers: seeded mutations, and a program that reads them and tells what came of it.

``python -m tests.fuzzing SEED COUNT`` reads COUNT mutated files of each kind and prints a JSON line for each:
what it is, what came of it ("read", "refused", or "wrong: ..." with a reason), processor seconds, and the largest
memory of the process so far. A line is printed before each file is read, so that a crash shows where it happened.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import safetensors.torch
import torch

import nablanets
from nablanets import ConditionalGradNet, GradNetC, GradNetM, Quadratic, odd
from nablanets.dynamics.second_order import SecondOrder
from nablanets.dynamics.sympnet import SympNet
from nablanets.dynamics.systems import ConditionalHamiltonian, HamiltonianSystem
from nablanets.errors import NablaError
from nablanets.fitting.checkpoint import read_checkpoint, write_checkpoint
from nablanets.serialization import save
from nablanets.tables import read_table_file

FINGERPRINT = {"settings": {"steps": 10}, "data": [3, 2]}
#: Values that stand in nobody's file, or for something else there.
STRANGE: list[Any] = [
    -1, 0, 1, 2, 3, 10**4, 10**6, 4 * 10**8, 10**12, 2**63, 10**30, 0.5, 1e9, 1e300, -1e300, float("nan"), float("inf"),
    None, True, False, "", "x", "tanh", "GradNetC", "__init__", "a" * 10_000, [], [1], [[]], [0] * 1000, {}, {"shared": 0},
    {"shared": 7}, {"module": {"type": "GradNetC", "arguments": {"features": 2, "hidden_features": 10**6}}},
    {"tensor": [10**10], "dtype": "float32"}, {"tensor": [2], "dtype": "int64"}, {"dict": {"a": 1}}, {"dict": 3},
]  # fmt: skip


# Changes to bytes and to text


def damaged(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """Bytes with a few bits flipped, a part gone, doubled, zeroed, or replaced by a part of another file."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        kind = draw.choice(["flip", "flip", "flip", "cut", "drop", "double", "zero", "random", "splice"])
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + draw.choice([1, 2, 8, 64, 1000]))
        if kind == "flip" and data:
            for _ in range(draw.choice([1, 1, 3, 20])):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del data[start:]
        elif kind == "drop":
            del data[start:stop]
        elif kind == "double":
            data[start:start] = data[start:stop] * draw.choice([1, 10])
        elif kind == "zero":
            data[start:stop] = bytes(stop - start)
        elif kind == "random":
            data[start:stop] = draw.randbytes(stop - start)
        else:
            place = draw.randrange(len(other))
            data[start:stop] = other[place : place + stop - start]
    return bytes(data)


def edited_text(text: str, draw: random.Random) -> str:
    """A text table with other separators, numbers, quotes, names or lines."""
    lines = text.split("\n")
    for _ in range(draw.choice([1, 1, 2, 4])):
        row = draw.randrange(len(lines)) if draw.random() < 0.6 else 0
        kind = draw.randrange(8)
        if kind == 0:
            lines[row] = lines[row].replace(draw.choice(",;"), draw.choice(",;\t| "), draw.choice([1, -1]))
        elif kind == 1:
            lines[row] = re.sub(
                r"\d+", lambda _: draw.choice(["9" * 30, "1e999", "-0", "007", "1_0"]), lines[row], count=1
            )
        elif kind == 2:
            place = draw.randrange(len(lines[row]) + 1)
            inserted = draw.choice(['"', "'", ",", ";", "#", " ", "\r", "\0", "\ufeff", "é", "\u2028", "-", ".", "e"])
            lines[row] = lines[row][:place] + inserted + lines[row][place:]
        elif kind == 3:
            lines.insert(row, draw.choice(lines))
        elif kind == 4:
            del lines[row : row + draw.choice([1, 3])]
            lines = lines or [""]
        elif kind == 5:
            lines[row] = lines[row].replace("x2", draw.choice(["x1", "X2", "x02", " x2", "x3", "", "g1"]))
        elif kind == 6:
            lines[row] += draw.choice([",", ";", ",,,", "," * 3000, " # note", ",7"])
        else:
            lines.insert(row, draw.choice(["", "# note", "m,m,m,m", "a" * 5000, ",,,", "nan,inf,NA,"]))
    return "\n".join(lines)


def edited_json(value: Any, draw: random.Random) -> Any:
    """A JSON value with one of its parts replaced by something strange, gone, or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        changed = dict(value)
        if draw.random() < 0.1:
            del changed[key]
        elif draw.random() < 0.1:
            changed[draw.choice(["type", "arguments", "module", "shared", "__class__", "features"])] = changed.pop(key)
        else:
            changed[key] = edited_json(value[key], draw)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.85:
        changed_list = list(value)
        place = draw.randrange(len(value))
        if draw.random() < 0.15:
            changed_list *= draw.choice([0, 2, 50])
        else:
            changed_list[place] = edited_json(value[place], draw)
        return changed_list
    if isinstance(value, int) and not isinstance(value, bool) and draw.random() < 0.5:
        return value * draw.choice([-1, 10, 10**4, 10**8]) + draw.choice([0, 1])
    return draw.choice(STRANGE)


def with_edited_header(content: bytes, draw: random.Random, note: str) -> bytes:
    """A safetensors file whose header is well-formed and says something else."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if draw.random() < 0.7:
        description = json.loads(header["__metadata__"][note])
        if draw.random() < 0.9:
            description.pop("checksum", None)  # as in files of older versions, else nothing behind it would be reached
        part = draw.choice(list(description))
        description[part] = edited_json(description[part], draw)
        header["__metadata__"][note] = json.dumps(description)
    else:
        header = edited_json(header, draw)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def edited_array(content: bytes, draw: random.Random) -> bytes:
    """An .npy file with another shape or type in its header, or with damage."""
    if draw.random() < 0.5:
        number = str(draw.choice([0, -1, 1, 2, 7, 10**6, 10**12, 10**30])).encode()
        return re.sub(rb"\d+(?=,?\)|, )", lambda _: number, content, count=1)
    if draw.random() < 0.5:
        types = [b"<f4", b"|O8", b"<c8", b"<U2", b"<M8", b"|b1", b">f8", b"<q9"]
        return content.replace(b"<f8", draw.choice(types))
    return damaged(content, draw, content) if draw.random() < 0.3 else content


def edited_npz(content: bytes, draw: random.Random) -> bytes:
    """An NPZ file in order, with checksums that are right, whose arrays are not."""
    result = io.BytesIO()
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(result, "w", draw.choice(methods)) as target:
        for original, content_of_entry in entries.items():
            name = draw.choice([original, original, original, "x1.npy", "x1", "a/b.npy", ".npy"])
            target.writestr(name, edited_array(content_of_entry, draw))
    return result.getvalue()


# What came of it


def check_model(path: Path) -> None:
    net = nablanets.load(path)
    stored = safetensors.torch.load_file(path)
    state = net.state_dict()
    for name, tensor in stored.items():
        expect(torch.equal(state[name].nan_to_num(), tensor.nan_to_num()), f"{name} is not what the file has")


def check_checkpoint(path: Path, original: dict[str, Any]) -> None:
    state = read_checkpoint(path, FINGERPRINT)
    expect(state.keys() == original.keys(), "entries of the state")
    expect(torch.equal(state["weights"], original["weights"]), "weights of the state")
    expect(state["step"] == original["step"], "step of the state")


def check_text(path: Path) -> None:
    table = read_table_file(path)
    layout = table.layout
    expect(layout is not None, "a text file has a layout")
    content = path.read_bytes()
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            text = content.decode(encoding, errors="strict" if encoding == "utf-8-sig" else "replace")
            break
        except UnicodeDecodeError:
            continue
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if not line.lstrip(" \t").startswith("#")]
    if layout.separator == " ":
        records = [line.split() for line in lines]
    else:
        records = list(csv.reader(lines, delimiter=layout.separator, skipinitialspace=True))
    records = [record for record in records if len(record) > 1 or any(field.strip(" \t") for field in record)]
    while not any(records[0]):
        del records[0]  # empty fields above the names
    if any("comment" in remark for remark in table.remarks):
        names, rows = list(table.frame.columns), len(records)
    else:
        names, rows = [name.strip() for name in records[0]], len(records) - 1 - layout.has_units
    while names and not names[-1]:
        names.pop()
    expect(list(table.frame.columns) == names, f"columns {list(table.frame.columns)} in place of {names}")
    expect(len(table.frame) == rows, f"{len(table.frame)} rows in place of {rows}")


def check_npz(path: Path) -> None:
    table = read_table_file(path).frame
    with np.load(path, allow_pickle=False) as arrays:
        columns = sum(1 if arrays[name].ndim == 1 else arrays[name].shape[1] for name in arrays.files)
        rows = {len(arrays[name]) for name in arrays.files}
    expect((rows, columns) == ({len(table)}, len(table.columns)), "rows and columns of the arrays")


def check_parquet(path: Path) -> None:
    table = read_table_file(path).frame
    content = pyarrow.parquet.ParquetFile(path)
    # Index levels are columns in the file, except ranges, which are only described.
    columns = len(table.columns) + (0 if isinstance(table.index, pd.RangeIndex) else table.index.nlevels)
    expect(len(table) == content.metadata.num_rows, "rows of the file")
    expect(columns == len(content.schema_arrow.names), f"columns {table.columns} of {content.schema_arrow.names}")


class WrongError(Exception):
    """A file was read as something that it is not."""


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise WrongError(what)


# Files to begin with


def models(folder: Path) -> list[bytes]:
    c = GradNetC(2, 4)
    nets: list[torch.nn.Module] = [
        c,
        GradNetM(3, 4, monotone=True),
        Quadratic(3, rank=2),
        c + 2 * c.pullback(torch.ones(2, 2)),
        odd(GradNetM(2, 4)),
        HamiltonianSystem(GradNetC(4, 4)),
        SympNet([c, GradNetC(2, 4)]),
        SecondOrder(c, 2),
        ConditionalHamiltonian(ConditionalGradNet(4, 2, 8)),
    ]
    contents = []
    for net in nets:
        save(net, folder / "m.safetensors")
        contents.append((folder / "m.safetensors").read_bytes())
    return contents


def tables(folder: Path) -> dict[str, list[bytes]]:
    numbers = np.random.default_rng(0).standard_normal((30, 4)).round(3)
    frame = pd.DataFrame(numbers, columns=["x1", "x2", "g1", "g2"])
    frame.to_parquet(folder / "t.parquet", index=False)
    frame.assign(note="é").sample(frac=1, random_state=0).to_parquet(folder / "u.parquet", compression="gzip")
    np.savez(folder / "t.npz", x=numbers[:, :2], g=numbers[:, 2:])
    np.savez_compressed(folder / "u.npz", **{name: frame[name].to_numpy() for name in frame.columns})
    decimal_commas = frame.to_csv(index=False, sep=";", decimal=",")
    texts = [frame.to_csv(index=False), decimal_commas, frame.head(3).assign(note="a b").to_csv(index=False)]
    return {
        ".csv": [text.encode() for text in texts],
        ".npz": [(folder / name).read_bytes() for name in ("t.npz", "u.npz")],
        ".parquet": [(folder / name).read_bytes() for name in ("t.parquet", "u.parquet")],
    }


def kinds(folder: Path) -> dict[str, tuple[str, list[bytes], Callable[..., bytes], Callable[[Path], None]]]:
    """Of each kind: ending, files to begin with, a change that knows the format, and the check."""
    state = {"weights": torch.arange(12.0), "step": 3, "best": (1.5, None), "history": [{"step": 1}]}
    write_checkpoint(folder / "c.pt", FINGERPRINT, state)
    known = tables(folder)
    return {
        "model": (
            ".safetensors",
            models(folder),
            lambda content, draw: with_edited_header(content, draw, "nablanets"),
            check_model,
        ),
        "checkpoint": (
            ".safetensors",
            [(folder / "c.pt").read_bytes()],
            lambda content, draw: with_edited_header(content, draw, "nablanets-checkpoint"),
            lambda path: check_checkpoint(path, state),
        ),
        "csv": (
            ".csv",
            known[".csv"],
            lambda content, draw: edited_text(content.decode(), draw).encode(),
            check_text,
        ),
        "npz": (".npz", known[".npz"], edited_npz, check_npz),
        "parquet": (".parquet", known[".parquet"], lambda content, draw: content, check_parquet),
    }


def outcome(check: Callable[[Path], None], path: Path) -> str:
    try:
        check(path)
    except NablaError:
        return "refused"
    except WrongError as error:
        return f"wrong: {error}"
    except Exception:
        return f"wrong: {traceback.format_exc(limit=-4)}"
    return "read"


def main(seed: int, count: int, only: str | None = None) -> None:
    folder = Path(tempfile.mkdtemp())
    for kind, (suffix, originals, edit, check) in kinds(folder).items():
        if only is not None and kind != only:
            continue
        for number in range(count):
            draw = random.Random(f"{seed}/{kind}/{number}")
            content = draw.choice(originals)
            if number >= len(originals) and draw.random() < 0.5:
                content = edit(content, draw)
            if number >= len(originals) and (kind == "parquet" or draw.random() < 0.5):
                content = damaged(content, draw, draw.choice(originals))
            path = folder / f"mutated{suffix}"
            path.write_bytes(content)
            print(json.dumps({"kind": kind, "number": number}), flush=True)
            begin = time.process_time()
            result = outcome(check, path)
            seconds = time.process_time() - begin
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            line = {"kind": kind, "number": number, "outcome": result, "seconds": seconds, "memory": memory}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # More than is ever needed, and less than harms the machine.
    resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:4])
