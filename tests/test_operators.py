"""Structured operators against dense linear algebra, for every shape of factor and batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from nablanets import GradNetC, GradNetM
from nablanets.errors import ShapeError, SingularJacobianError
from nablanets.operators import GramTerm, StructuredOperator

DTYPE = torch.float64


def _operator(batch, d, ranks, *, batched, shift, psd, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=DTYPE, generator=generator)

    terms = []
    for k in ranks:
        factor = draw(*(batch if batched else ()), k, d)
        weights = draw(*batch, k)
        terms.append(GramTerm(factor, weights.abs() + 0.1 if psd else weights))
    diagonal = draw(*batch, d).abs() + 0.1 if shift else None
    dense = sum(t.factor.mT @ torch.diag_embed(t.weights) @ t.factor for t in terms)
    dense = dense if diagonal is None else dense + torch.diag_embed(diagonal)
    return StructuredOperator(d, tuple(terms), diagonal, positive_semidefinite=psd), dense


@given(
    batch=st.sampled_from([(), (1,), (5,), (2, 3), (40,)]),
    d=st.integers(1, 9),
    ranks=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    batched=st.booleans(),
    shift=st.booleans(),
    psd=st.booleans(),
)
def test_every_operation_equals_its_dense_form(batch, d, ranks, batched, shift, psd):
    J, dense = _operator(batch, d, ranks, batched=batched, shift=shift, psd=psd)
    v = torch.randn(*batch, d, dtype=DTYPE)
    assert J.shape == dense.shape
    assert_close(J.dense(), dense)
    assert_close(J @ v, (dense @ v.unsqueeze(-1)).squeeze(-1))
    assert_close(J.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1))
    assert_close(J.diagonal(), dense.diagonal(dim1=-2, dim2=-1))
    assert_close((2 * J).dense(), 2 * dense)
    assert_close((J + J).dense(), 2 * dense)
    a = torch.randn(d, 4, dtype=DTYPE)
    assert_close(J.congruence(a).dense(), a.mT @ dense @ a)
    scales = torch.randn(d, dtype=DTYPE)
    assert_close(J.congruence(scales).dense(), torch.diag(scales) @ dense @ torch.diag(scales))
    if shift or sum(ranks) >= d:
        condition = float(torch.linalg.cond(dense).max())
        if condition < 1e8:
            assert_close(J.logdet(), torch.linalg.slogdet(dense).logabsdet, rtol=1e-7, atol=1e-7)
            assert_close(J @ J.solve(v), v, rtol=1e-6, atol=1e-6)
    else:
        with pytest.raises(SingularJacobianError, match="rank at most"):
            J.logdet()
        with pytest.raises(SingularJacobianError, match="linear=True"):
            J.solve(v)


@pytest.mark.parametrize("ranks", [(2,), (2, 1), (9,)], ids=["woodbury", "woodbury-two-terms", "cholesky"])
def test_operations_are_differentiable_in_factor_weights_and_shift(ranks):
    J, _ = _operator((3,), 4, ranks, batched=False, shift=True, psd=True)
    v = torch.randn(3, 4, dtype=DTYPE)
    leaves = [t.factor for t in J.terms] + [t.weights for t in J.terms] + [J.shift]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]

    def operator(*values):
        count = len(J.terms)
        terms = tuple(map(GramTerm, values[:count], values[count : 2 * count]))
        return StructuredOperator(4, terms, values[-1], positive_semidefinite=True)

    for operation in (
        lambda *a: operator(*a).logdet(),
        lambda *a: operator(*a).solve(v),
        lambda *a: operator(*a).trace(),
        lambda *a: operator(*a).diagonal(),
        lambda *a: operator(*a) @ v,
        lambda *a: operator(*a).eigvalsh(),
    ):
        assert torch.autograd.gradcheck(operation, leaves, fast_mode=True)


def test_trace_does_no_work_in_the_dimension():
    """Counted, not timed: beyond the shared row norms, the trace of N Jacobians takes N h operations."""
    h, d, n = 16, 64, 200
    J, _ = _operator((n,), d, (h,), batched=False, shift=False, psd=True)
    counter = FlopCounterMode(display=False)
    with counter:
        J.trace()
    assert counter.get_total_flops() == 0  # no matrix product at all
    with counter:
        J @ torch.randn(n, d, dtype=DTYPE)
    assert counter.get_total_flops() == 2 * 2 * n * h * d


@pytest.mark.parametrize(("build", "products"), [(GradNetC, 2), (GradNetM, 2)])
def test_forward_computes_w_x_once(build, products):
    """2 h d multiply-adds per sample, for any number of layers; all modules in two products."""
    d, n = 8, 50
    net = build(d, 12, 5, linear=False)
    rows = 12 if build is GradNetC else 60
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(torch.randn(n, d))
    assert counter.get_total_flops() == products * 2 * n * rows * d


def test_wrong_shapes_are_explained():
    J, _ = _operator((3,), 4, (2,), batched=False, shift=True, psd=True)
    with pytest.raises(ShapeError, match=r"expected v of shape \(\*, 4\), got \(3, 5\)"):
        J @ torch.randn(3, 5)


def test_numerically_singular_is_an_error_not_minus_infinity():
    w = torch.ones(3, 3, dtype=DTYPE)
    J = StructuredOperator(3, (GramTerm(w, torch.ones(2, 3, dtype=DTYPE)),))
    with pytest.raises(SingularJacobianError, match="numerically singular"):
        (J * 1.0).logdet()
