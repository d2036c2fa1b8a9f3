"""Every gradient map of the table passes every check, in float64 and float32."""

import itertools

import pytest
import torch

from tests import checks
from tests.cases import CASES

#: Maps of which a check finds nothing to check, by name, and why.
EXEMPT = {
    ("pullback-of-potential", "inverse_operations"): "two features pulled back to three: singular everywhere",
    ("pairs-on-a-line", "inverse_operations"): "forces of pairs do not feel a common shift: singular everywhere",
}


#: The linear term is the same part in all networks, so in CI two of them have it; the others have checks of their potential only.
WITH_LINEAR_TERM = ("C-tanh-monotone-linear", "M-softmax-linear")


def _is_repeated(case):
    return case.name.endswith("-linear") and case.name not in WITH_LINEAR_TERM


def _fast_cases():
    for case, check, dtype in itertools.product(CASES, checks.FAST, (torch.float64, torch.float32)):
        is_slow = _is_repeated(case) and not check.__name__.startswith("potential")
        name = f"{case.name}-{check.__name__}-{'f64' if dtype == torch.float64 else 'f32'}"
        yield pytest.param(case, check, dtype, id=name, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize(("case", "check", "dtype"), _fast_cases())
def test_map(case, check, dtype):
    net = case.build().to(dtype)
    if (case.name, check.__name__) in EXEMPT:
        with pytest.raises(checks.TooFewSamplesError):
            check(net)
        return
    check(net)


def _graph_case(case):
    """Compiling takes seconds."""
    return pytest.param(case, marks=pytest.mark.slow) if _is_repeated(case) else case


@pytest.mark.parametrize("check", checks.GRAPH, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", [_graph_case(case) for case in CASES], ids=lambda case: case.name)
def test_graph_of_map(case, check):
    check(case.build())
