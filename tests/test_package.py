"""The package as a whole: what importing it does, and that imports go one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import nablanets

SOURCE = Path(nablanets.__file__).parent
#: From the bottom up; a module may import from rooms before its own.
ROOMS = [
    "errors", "extras", "printing", "parameters", "intervals", "quadrature", "serialization", "activations", "operators", "residual", "newton",
    "maps", "baselines", "verify", "datasets", "problems", "tables", "training", "dynamics", "images", "interop", "experiments", "cli",
]  # fmt: skip


def test_importing_touches_nothing():
    code = (
        "import torch, sys; state = torch.get_rng_state(); threads = torch.get_num_threads(); import nablanets; "
        "assert torch.equal(state, torch.get_rng_state()); assert torch.get_default_dtype() == torch.float32; "
        "assert torch.get_num_threads() == threads; "
        "assert not {'matplotlib', 'pandas', 'jinja2', 'sklearn', 'rich', 'scipy', 'typer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_imports_go_one_way():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room not in ROOMS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nablanets"):
                names = [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]
                wrong += [f"{path.name}: {n}" for n in names if ROOMS.index(n) > ROOMS.index(room)]
    assert not wrong


def test_every_room_is_in_the_table():
    rooms = {p.name.removesuffix(".py") for p in SOURCE.iterdir() if not p.name.startswith(("__", "py."))}
    assert rooms == set(ROOMS)


def test_public_names_are_there():
    assert all(hasattr(nablanets, name) for name in nablanets.__all__)
