"""The studies as a whole: imports go one way, and what they register is found."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from tests.layers import imports_against_the_order, rooms_of

import nablanets_studies
from nablanets import serialization
from nablanets.serialization import registry

SOURCE = Path(nablanets_studies.__file__).parent
#: From the bottom up; a module may import from rooms before its own.
ROOMS = [
    "baselines", "problems", "datasets", "residual", "images", "machinery", "fields", "sinusoid", "dynamics", "pictures",
    "catalog", "cli",
]  # fmt: skip


def test_imports_go_one_way():
    assert imports_against_the_order(SOURCE, "nablanets_studies", ROOMS) == []


def test_every_room_is_in_the_table():
    assert rooms_of(SOURCE) == set(ROOMS)


def test_the_command_line_is_asked_for_nothing_heavy():
    """`nablanets --help` imports the list of commands of the studies, and nothing behind it."""
    code = (
        "import sys; from nablanets.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'matplotlib', 'pandas', 'jinja2', 'sklearn', 'skimage', 'scipy.optimize', 'nablanets_studies.catalog'}\n"
        "assert 'nablanets_studies.cli' in sys.modules\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_architecture_is_found_by_its_name_in_a_fresh_process():
    for module in pkgutil.walk_packages([str(SOURCE)], "nablanets_studies."):
        importlib.import_module(module.name)
    ours = {name for name, cls in registry._registry.items() if cls.__module__.startswith("nablanets_studies.")}
    assert ours == {entry.name for entry in entry_points(group=serialization.ENTRY_POINTS)}
    code = (
        "import sys; from nablanets.serialization import registry; "
        "missing = [name for name in sys.argv[1:] if registry.find(name).__name__ != name]; assert not missing"
    )
    subprocess.run([sys.executable, "-c", code, *sorted(ours)], check=True)


def test_the_packaged_upscaler_loads_in_a_fresh_process():
    code = "from nablanets_studies.images.upscale import packaged_upscaler; assert packaged_upscaler().scale == 2"
    subprocess.run([sys.executable, "-c", code], check=True)
