"""Structured operators against dense linear algebra, for every shape of factor and batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from nablanets import GradNetC, GradNetM
from nablanets.errors import IndefiniteJacobianError, InvalidInputError, ShapeError, SingularJacobianError
from nablanets.operators import (
    CongruenceOperator,
    GramTerm,
    HessianOperator,
    InverseOperator,
    StructuredOperator,
    SumOperator,
)
from nablanets.operators.cg import conjugate_gradients

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
            expected = torch.linalg.slogdet(dense)
            assert_close(tuple(J.slogdet()), tuple(expected), rtol=1e-7, atol=1e-7)
            if bool((expected.sign > 0).all()):
                assert_close(J.logdet(), expected.logabsdet, rtol=1e-7, atol=1e-7)
            else:
                with pytest.raises(IndefiniteJacobianError, match=r"negative determinant.*slogdet\(\)"):
                    J.logdet()
            assert_close(J @ J.solve(v), v, rtol=1e-6, atol=1e-6)
    else:
        with pytest.raises(SingularJacobianError, match="rank at most"):
            J.logdet()
        assert bool((J.slogdet().sign == 0).all() and (J.slogdet().logabsdet == -torch.inf).all())
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


def test_a_positive_diagonal_alone_is_solved_and_has_a_determinant():
    diagonal = torch.tensor([1.0, 2.0, 4.0], dtype=DTYPE)
    for shift, batch in ((diagonal, torch.Size([5])), (diagonal.expand(5, 3), torch.Size())):
        J = StructuredOperator(3, (), shift, positive_semidefinite=True, batch_shape=batch)
        v = torch.randn(5, 3, dtype=DTYPE)
        assert_close(J.solve(v), v / diagonal)
        assert_close(J.logdet(), diagonal.log().sum().expand(5))


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


@pytest.mark.parametrize(("d", "batch"), [(1, (300,)), (2, (20, 20)), (5, (300,)), (5, (3,)), (60, (2,))])
def test_logdet_has_the_analytic_derivatives(d, batch):
    """First and second derivatives of log det, by the sweep and by Cholesky, reverse and forward."""
    generator = torch.Generator().manual_seed(d)
    factor = torch.randn(d + 2, d, dtype=DTYPE, generator=generator)
    weights = torch.rand(*batch, d + 2, dtype=DTYPE, generator=generator) + 0.5

    def ours(w, c):
        return StructuredOperator(d, (GramTerm(w, c),), positive_semidefinite=True).logdet()

    def reference(w, c):
        return torch.linalg.slogdet(w.mT @ (c.unsqueeze(-1) * w)).logabsdet

    leaves = factor.requires_grad_(), weights.requires_grad_()
    outer = torch.randn(batch, dtype=DTYPE, generator=generator)
    results = []
    for f in (ours, reference):
        value = f(*leaves)
        first = torch.autograd.grad((outer * value).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        tangent = torch.func.jvp(lambda c, f=f: f(leaves[0].detach(), c), (weights.detach(),), (weights.detach(),))[1]
        results.append((value, *first, *second, tangent))
    for mine, theirs in zip(*results, strict=True):
        assert_close(mine, theirs, rtol=1e-8, atol=1e-8 * float(theirs.abs().max()))
    assert_close(ours(factor.detach(), weights.detach()), results[1][0].detach())


@pytest.mark.parametrize("batch", [2, 300], ids=["cholesky", "sweep"])
def test_logdet_reports_matrices_that_are_not_positive_definite(batch):
    weights = torch.ones(batch, 3, dtype=DTYPE)
    weights[1, 0] = 0
    J = StructuredOperator(
        3, (GramTerm(torch.eye(3, dtype=DTYPE), weights.requires_grad_()),), positive_semidefinite=True
    )
    with pytest.raises(SingularJacobianError, match=f"1 of {batch} Jacobians"):
        J.logdet()


def test_logdet_estimate_is_unbiased_within_its_error_and_differentiable():
    d, n = 60, 3
    net = GradNetM(d, 10, 2, monotone=True, linear="diagonal").double()
    x = torch.randn(n, d, dtype=DTYPE)
    J = net.jacobian(x)
    exact = J.logdet()
    coarse, fine = J.logdet_estimate(probes=8, steps=60), J.logdet_estimate(probes=2000, steps=60)
    for estimate in (coarse, fine):
        assert bool(((estimate.value - exact).abs() < 4 * estimate.standard_error).all())
    assert bool((fine.standard_error < 0.1 * coarse.standard_error).all())
    parameters = [net.projection, net.linear.diagonal_raw]

    def gradient(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value.sum(), parameters, retain_graph=True)])

    truth = gradient(exact)
    few, many = (float((gradient(e.value) - truth).norm() / truth.norm()) for e in (coarse, fine))
    assert many < 0.15  # 2,000 probes against 8: the error falls with the square root, by 16
    assert few / many > 8


def test_logdet_estimate_is_exact_where_the_krylov_space_is_exhausted():
    """Two distinct eigenvalues: two Lanczos steps are exact for every probe, further ones find nothing."""
    weights = torch.tensor([[2.0, 2.0, 5.0, 5.0]], dtype=DTYPE)
    J = StructuredOperator(4, (GramTerm(torch.eye(4, dtype=DTYPE), weights),), positive_semidefinite=True)
    assert_close(J.logdet_estimate(probes=3, steps=4).value, weights.log().sum(-1))
    with pytest.raises(InvalidInputError, match="monotone=True"):
        (-J).logdet_estimate()
    with pytest.raises(InvalidInputError, match="probes"):
        J.logdet_estimate(probes=0)


def _paths(dtype):
    """Positive definite operators in six dimensions, one for each way to a determinant."""
    narrow, wide = torch.randn(2, 6, dtype=DTYPE), torch.randn(9, 6, dtype=DTYPE)
    weights = torch.rand(4, 9, dtype=DTYPE) + 0.5
    shift = torch.rand(6, dtype=DTYPE) + 1.0
    options = {"positive_semidefinite": True}
    woodbury = StructuredOperator(6, (GramTerm(narrow, weights[:, :2]),), shift, **options)
    packed = StructuredOperator(6, (GramTerm(wide, weights),), shift, **options)
    mixing = torch.randn(6, 6, dtype=DTYPE)

    def gradient(x):
        return x + torch.tanh(x @ mixing.to(x).mT) @ mixing.to(x)

    hessian = HessianOperator(gradient, torch.randn(4, 6, dtype=DTYPE).to(dtype), **options)
    operators = {
        "woodbury": woodbury.to(dtype),
        "cholesky": packed.to(dtype),
        "sweep": StructuredOperator(6, (GramTerm(wide, weights.repeat(80, 1)),), shift, **options).to(dtype),
        "unstructured": hessian,
        "sum": SumOperator(packed.to(dtype), hessian),
        "congruence": CongruenceOperator(hessian, torch.eye(6).to(dtype)),
        "inverse": InverseOperator(packed.to(dtype)),
    }
    indefinite = StructuredOperator(6, (GramTerm(wide, weights - 1.0),), shift)
    return operators | {"lu": indefinite.to(dtype)}


PATHS = sorted(_paths(DTYPE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_sixteen_bit_types_are_factorised_in_float32(path, dtype):
    """Determinants, solutions and eigenvalues are those of the rounded operator in float64, rounded to the type."""
    torch.manual_seed(3)
    J = _paths(dtype)[path]
    exact = J.to(torch.float64)
    v = torch.randn(*J.batch_shape, 6).to(dtype)
    # An operator of products in the type has no exact counterpart.
    tolerance = 4 * torch.finfo(dtype).eps * (1 if isinstance(J, StructuredOperator) else 4)
    expected = exact.slogdet()
    found = J.slogdet()
    assert found.logabsdet.dtype == found.sign.dtype == J.solve(v).dtype == J.eigvalsh().dtype == dtype
    assert torch.equal(found.sign.double(), expected.sign)
    assert_close(found.logabsdet.double(), expected.logabsdet, rtol=tolerance, atol=tolerance)
    if path != "lu":
        assert_close(J.logdet().double(), expected.logabsdet, rtol=tolerance, atol=tolerance)
    solution = exact.solve(v.double())
    assert float((J.solve(v).double() - solution).abs().max()) <= tolerance * float(solution.abs().max())
    eigenvalues = exact.eigvalsh()
    assert float((J.eigvalsh().double() - eigenvalues).abs().max()) <= tolerance * float(eigenvalues.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_lanczos_estimate_works_in_sixteen_bit_types(dtype):
    J = _paths(torch.float64)["cholesky"]
    estimate = J.to(dtype).logdet_estimate(probes=5, steps=6)
    assert estimate.value.dtype == dtype
    assert_close(estimate.value.double(), J.logdet_estimate(probes=5, steps=6).value, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("path", PATHS)
def test_determinants_and_solutions_under_vmap(path):
    torch.manual_seed(3)
    J = _paths(DTYPE)[path]
    v = torch.randn(3, *J.batch_shape, 6, dtype=DTYPE)
    factors = torch.tensor([1.0, 2.0, 3.0], dtype=DTYPE)

    def scaled(factor):
        # A tensor may be negative, so scale() drops the promise of definiteness; a congruence keeps it.
        return J.congruence(factor.sqrt().expand(6))

    expected = [scaled(f) for f in factors]
    found = torch.vmap(lambda f: tuple(scaled(f).slogdet()))(factors)
    assert_close(found[0], torch.stack([E.slogdet().sign for E in expected]))
    assert_close(found[1], torch.stack([E.slogdet().logabsdet for E in expected]))
    assert_close(torch.vmap(J.solve)(v), torch.stack([J.solve(b) for b in v]))
    value = torch.vmap(lambda f: scaled(f).logdet())(factors)
    assert_close(value, torch.where(found[0] > 0, found[1], torch.nan), equal_nan=True)


def test_a_negative_determinant_has_no_logarithm_where_no_error_can_be_raised():
    """NaN in vmap and torch.compile, minus infinity for singular matrices, as torch.logdet has it."""
    diagonals = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [0.0, 2.0]], dtype=DTYPE)

    def logdet(diagonal):
        return StructuredOperator(2, (GramTerm(torch.eye(2, dtype=DTYPE), diagonal),)).logdet()

    expected = torch.logdet(torch.diag_embed(diagonals))
    assert_close(torch.vmap(logdet)(diagonals), expected, equal_nan=True)
    assert_close(torch.compile(logdet, fullgraph=True, backend="aot_eager")(diagonals), expected, equal_nan=True)
    with pytest.raises(IndefiniteJacobianError, match="1 of 1"):
        logdet(diagonals[1])
    with pytest.raises(SingularJacobianError, match="1 of 3"):
        logdet(diagonals)


@pytest.mark.parametrize("path", PATHS)
def test_a_matrix_with_nan_gives_nan_in_its_row_alone(path):
    """A sample that is NaN is no reason to refuse the others."""
    torch.manual_seed(3)
    J = _paths(DTYPE)[path]
    scale = torch.ones(*J.batch_shape, 1, 1, dtype=DTYPE)
    scale[1] = torch.nan
    eye = torch.eye(6, dtype=DTYPE)
    part = StructuredOperator(6, (GramTerm(eye * scale, torch.ones_like(scale).squeeze(-1).expand(-1, 6)),))
    part.positive_semidefinite = J.positive_semidefinite
    broken = SumOperator(J, part)
    sound = SumOperator(J, StructuredOperator(6, (GramTerm(eye, torch.ones(6, dtype=DTYPE)),)))
    others = torch.arange(len(scale)) != 1
    v = torch.randn(*J.batch_shape, 6, dtype=DTYPE)
    for found, expected in ((broken.slogdet().logabsdet, sound.slogdet().logabsdet), (broken.solve(v), sound.solve(v))):
        assert bool(found[1].isnan().all())
        assert_close(found[others], expected[others])
    assert bool(broken.slogdet().sign[1].isnan())


@given(exponent=st.integers(-37, 37), d=st.integers(1, 90), seed=st.integers(0, 100))
def test_conjugate_gradients_solve_for_right_hand_sides_of_any_size(exponent, d, seed):
    """Squares of what float32 holds leave its range; a solve must not."""
    generator = torch.Generator().manual_seed(seed)
    diagonal = torch.rand(d, generator=generator) + 0.5
    J = StructuredOperator(d, (), diagonal, positive_semidefinite=True, batch_shape=torch.Size([3]))
    b = (torch.rand(3, d, generator=generator) + 0.1) * 10.0**exponent
    b[1, 0] = torch.nan
    x, failed = conjugate_gradients(J, b)
    assert not bool(failed.any())
    assert bool(x[1].isnan().all())
    expected = b / diagonal
    assert_close(x[[0, 2]] / 10.0**exponent, expected[[0, 2]] / 10.0**exponent, rtol=1e-3, atol=1e-5)
