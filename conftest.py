"""Settings of the library's tests and doctests. They run as if the studies were not installed."""

import sys

import pytest
from tests.fixtures import doctest_names, seeded

from nablanets.cli import commands
from nablanets.serialization import registry

__all__ = ["doctest_names", "seeded"]

sys.modules["nablanets_studies"] = None  # an import of it fails as if it were not there


@pytest.fixture(autouse=True)
def without_studies(monkeypatch):
    for module in (commands, registry):
        monkeypatch.setattr(module, "entry_points", lambda **_: ())
