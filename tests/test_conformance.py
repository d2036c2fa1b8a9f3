"""Every gradient map of the table passes every check, in float64 and float32."""

import pytest
import torch

from tests import checks
from tests.cases import CASES

#: Maps of which a check finds nothing to check, by name, and why.
EXEMPT = {
    ("pullback-of-potential", "inverse_operations"): "two features pulled back to three: singular everywhere",
    ("pairs-on-a-line", "inverse_operations"): "forces of pairs do not feel a common shift: singular everywhere",
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("check", checks.FAST, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_map(case, check, dtype):
    net = case.build().to(dtype)
    if (case.name, check.__name__) in EXEMPT:
        with pytest.raises(checks.TooFewSamplesError):
            check(net)
        return
    check(net)


def _graph_case(case):
    """Compiling takes seconds. The linear term is the same part in all networks, so two of them have it in CI."""
    is_repeated = case.name.endswith("-linear") and case.name not in ("C-tanh-monotone-linear", "M-softmax-linear")
    return pytest.param(case, marks=pytest.mark.slow) if is_repeated else case


@pytest.mark.parametrize("check", checks.GRAPH, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", [_graph_case(case) for case in CASES], ids=lambda case: case.name)
def test_graph_of_map(case, check):
    check(case.build())
