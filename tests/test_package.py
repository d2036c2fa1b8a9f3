"""The library as a whole: what importing it does, what it needs, and that imports go one way."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from torch import nn

import nablanets
from nablanets import serialization
from nablanets.errors import MissingPackageError
from nablanets.extras import needed
from nablanets.serialization import registry
from tests.layers import imports_against_the_order, rooms_of

SOURCE = Path(nablanets.__file__).parent
#: From the bottom up; a module may import from rooms before its own.
ROOMS = [
    "errors", "interrupt", "keywords", "arrays", "extras", "printing", "parameters", "tensors", "intervals", "quadrature",
    "serialization", "activations", "operators",
    "residual", "newton", "maps", "verify", "tables", "fitting", "pieces", "starts", "automatic", "dynamics", "interop",
    "estimators", "cli",
]  # fmt: skip
#: What an installation of the library alone brings.
NEEDED = {"torch", "numpy", "scipy", "safetensors", "jaxtyping", "typer", "rich", "pandas"}


def test_importing_touches_nothing_and_loads_no_more_than_it_needs():
    code = (
        "import torch, sys; state = torch.get_rng_state(); threads = torch.get_num_threads(); import nablanets; "
        "assert torch.equal(state, torch.get_rng_state()); assert torch.get_default_dtype() == torch.float32; "
        "assert torch.get_num_threads() == threads; "
        "heavy = {'matplotlib', 'pandas', 'jinja2', 'sklearn', 'scipy.optimize', 'rich', 'nablanets_studies'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_library_needs_eight_packages():
    names = [re.match(r"[\w-]+", line).group() for line in requires("nablanets") if "extra ==" not in line]
    assert set(names) == NEEDED


def test_imports_go_one_way():
    assert imports_against_the_order(SOURCE, "nablanets", ROOMS) == []


def test_the_library_does_not_know_the_studies():
    """Their names may stand in messages and tables, never in an import."""
    wrong = [
        path
        for path in SOURCE.rglob("*.py")
        if re.search(r"^\s*(from|import) nablanets_studies", path.read_text(encoding="utf-8"), re.M)
    ]
    assert wrong == []


def test_every_room_is_in_the_table():
    assert rooms_of(SOURCE) == set(ROOMS)


def test_public_names_are_there():
    assert all(hasattr(nablanets, name) for name in nablanets.__all__)


def test_every_architecture_is_found_by_its_name_in_a_fresh_process():
    """`load` must not depend on what a program happened to import before."""
    for module in pkgutil.walk_packages([str(SOURCE)], "nablanets."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = sorted(name for name, cls in registry._registry.items() if cls.__module__.startswith("nablanets."))
    assert len(ours) > 20
    code = (
        "import sys, nablanets; from nablanets.serialization import registry; "
        "missing = [name for name in sys.argv[1:] if registry.find(name).__name__ != name]; assert not missing"
    )
    subprocess.run([sys.executable, "-c", code, *ours], check=True)


def test_an_architecture_that_nobody_registered_is_refused(tmp_path):
    with pytest.raises(nablanets.NablaError, match=r"unknown architecture 'Sequential'.*nablanets\[studies\]"):
        serialization.decode({"type": nn.Sequential.__name__, "arguments": {}})


def test_packages_that_are_missing_are_named_with_their_extra():
    with pytest.raises(MissingPackageError, match=r"charts need nowhere, .*pip install 'nablanets\[plots\]'"):
        needed("nowhere.to.be.found", extra="plots", purpose="charts")
