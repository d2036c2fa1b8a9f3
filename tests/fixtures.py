"""Settings of all tests and doctests, of the library and of the studies: one thread, fixed seeds."""

import os

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)
settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace):
    doctest_namespace["torch"] = torch
    doctest_namespace["nn"] = torch.nn
