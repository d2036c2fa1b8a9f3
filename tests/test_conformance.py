"""Every gradient map of the table passes every check, in float64 and float32."""

import pytest
import torch

from tests import checks
from tests.cases import CASES


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("check", checks.FAST, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_map(case, check, dtype):
    check(case.build().to(dtype))


@pytest.mark.parametrize("check", checks.GRAPH, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_graph_of_map(case, check):
    check(case.build())
