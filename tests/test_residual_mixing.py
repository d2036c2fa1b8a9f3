"""The sum that a gradient residual ends in: its closed derivatives, and what torch does with functions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.testing import assert_close

from nablanets.residual.mixing import mixed, unit

DTYPE = torch.float64
SHAPES = {"features": ((3, 4), [-1]), "positions": ((2, 3, 4, 2), [-3]), "samples": ((2, 3, 4), [-2, -1])}


def by_hand(y, x, g, s, dims, gain):
    carried = (1 - s) * x + s * gain * g / g.square().sum(dim=dims, keepdim=True).sqrt()
    return carried if y is None else y + carried


def inputs(shape, *, onto=True, gate=()):
    torch.manual_seed(0)
    y, x, g = (torch.randn(shape, dtype=DTYPE, requires_grad=True) for _ in range(3))
    return [y if onto else None, x, g, torch.rand(gate, dtype=DTYPE, requires_grad=True)]


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("onto", [True, False])
@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_values_and_derivatives(kind, onto, gain):
    shape, dims = SHAPES[kind]
    arguments = inputs(shape, onto=onto)

    def function(*tensors):
        return mixed(*(tensors if onto else (None, *tensors)), dims, gain)

    tensors = [t for t in arguments if t is not None]
    expected = by_hand(*arguments, dims, gain)
    assert_close(function(*tensors), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert_close(function(*tensors), expected.detach(), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("needed", list(itertools.product([True, False], repeat=4)))
def test_only_what_is_wanted_is_differentiated(needed):
    arguments = [t.detach().requires_grad_(want) for t, want in zip(inputs((3, 4)), needed, strict=True)]
    result = mixed(*arguments, [-1])
    assert result.requires_grad == any(needed)
    if any(needed):
        result.square().sum().backward()
        twins = [t.detach().requires_grad_(want) for t, want in zip(arguments, needed, strict=True)]
        by_hand(*twins, [-1], 1.0).square().sum().backward()
        for ours, reference in zip(arguments, twins, strict=True):
            assert_close(ours.grad, reference.grad)


@pytest.mark.parametrize("moved", [m for m in itertools.product([True, False], repeat=4) if any(m)])
@pytest.mark.parametrize("onto", [True, False])
def test_forward_mode_in_each_of_its_arguments(moved, onto):
    """Along tangents of any of y, x, g, s; g requires a gradient, without which torch would not ask the mix itself."""
    arguments = inputs((2, 3, 4), onto=onto)
    moved = [t is not None and move for t, move in zip(arguments, moved, strict=True)]
    if not any(moved):
        pytest.skip("y alone, which is not there")
    tangents = [None if t is None else torch.randn_like(t) for t in arguments]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) if m else t for t, v, m in zip(arguments, tangents, moved, strict=True)]
        result = mixed(*duals, [-2, -1], 2.5)
        assert type(result.grad_fn).__name__ == "_MixedBackward"
        found = forward_ad.unpack_dual(result).tangent

    def along(*steps):
        moving = iter(steps)
        return by_hand(*(next(moving) if m else t for t, m in zip(arguments, moved, strict=True)), [-2, -1], 2.5)

    starts = tuple(t for t, m in zip(arguments, moved, strict=True) if m)
    directions = tuple(v for v, m in zip(tangents, moved, strict=True) if m)
    assert_close(found, torch.func.jvp(along, starts, directions)[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_is_kept_and_the_gate_has_its_derivative_in_any(layout):
    arguments = inputs((2, 3, 4, 5))
    arguments[:3] = [t.detach().contiguous(memory_format=layout).requires_grad_() for t in arguments[:3]]
    result = mixed(*arguments, [-3])
    assert result.is_contiguous(memory_format=layout)
    weight = torch.randn_like(result)
    expected = torch.autograd.grad((by_hand(*arguments, [-3], 1.0) * weight).sum(), arguments)
    assert_close(torch.autograd.grad((result * weight).sum(), arguments), expected)


@pytest.mark.parametrize("wanted", [True, False])
def test_batches_over_any_of_its_arguments(wanted):
    arguments = [t.detach().requires_grad_(wanted) for t in inputs((3, 4))]
    for batched in itertools.product([True, False], repeat=4):
        if not any(batched):
            continue
        stacked = [torch.stack([t, 2 * t]) if many else t for t, many in zip(arguments, batched, strict=True)]
        dims = tuple(0 if many else None for many in batched)
        for context in (torch.enable_grad, torch.no_grad):
            with context():
                together = torch.vmap(lambda *t: mixed(*t, [-1]), dims)(*stacked)
            singles = [[t[i] if many else t for t, many in zip(stacked, batched, strict=True)] for i in range(2)]
            assert_close(together, torch.stack([by_hand(*single, [-1], 1.0) for single in singles]))


def test_transforms_of_functions_nest():
    y, x, g, s = (t.detach() for t in inputs((3, 4)))

    def function(g, s):
        return mixed(y, x, g, s, [-1]).square().sum()

    def reference(g, s):
        return by_hand(y, x, g, s, [-1], 1.0).square().sum()

    for nest in (
        lambda f: torch.func.hessian(f)(g, s),
        lambda f: torch.func.jacfwd(torch.func.jacfwd(f))(g, s),
        lambda f: torch.func.jacrev(torch.func.grad(f, argnums=1), argnums=0)(g, s),
        lambda f: torch.vmap(torch.func.grad(f), (None, 0))(g, torch.stack([s, 2 * s])),
    ):
        assert_close(nest(function), nest(reference))
    _, expected = torch.func.jvp(lambda g: by_hand(y, x, g, s, [-1], 1.0), (g,), (torch.ones_like(g),))
    for context in (torch.enable_grad, torch.no_grad):
        with forward_ad.dual_level(), context():
            dual = mixed(y, x, forward_ad.make_dual(g, torch.ones_like(g)), s, [-1])
            assert_close(forward_ad.unpack_dual(dual).tangent, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_and_tiny_gradients(dtype):
    size = torch.finfo(dtype).tiny ** 0.49
    g = torch.tensor([[0.0, 0.0], [3 * size, 4 * size]], dtype=dtype, requires_grad=True)
    x, s = torch.ones(2, 2, dtype=dtype), torch.tensor(0.5, dtype=dtype)
    result = mixed(None, x, g, s, [-1])
    assert_close(result.detach(), torch.tensor([[0.5, 0.5], [0.8, 0.9]], dtype=dtype))
    (of_g,) = torch.autograd.grad(result[:, 0].sum(), g)
    assert_close(of_g * size, torch.tensor([[0.0, 0.0], [0.064, -0.048]], dtype=dtype))


def test_not_a_number_is_not_hidden():
    g = torch.tensor([[float("nan"), 1.0]])
    assert bool(unit(g, [-1]).isnan().all())
    with torch.no_grad():
        assert bool(mixed(torch.ones(1, 2), torch.ones(1, 2), g, torch.tensor(0.5), [-1]).isnan().all())


def test_mixed_precision_takes_the_wider_type():
    x, g = torch.randn(3, 4), torch.randn(3, 4)
    y = torch.randn(3, 4).bfloat16()
    result = mixed(y, x, g, torch.tensor(0.3), [-1])
    assert result.dtype == torch.float32
    assert_close(result, by_hand(y.float(), x, g, torch.tensor(0.3), [-1], 1.0))


def test_overwrites_only_what_is_its_own():
    y, x, g, s = (t.detach() for t in inputs((3, 4)))
    expected, kept = by_hand(y, x, g, s, [-1], 1.0), y.clone()
    assert_close(mixed(y, x, g, s, [-1], overwrite=True), expected)
    assert torch.equal(y, kept)  # with gradients on, autograd may need it
    with torch.no_grad():
        assert mixed(y, x, g, s, [-1]) is not y and torch.equal(y, kept)
        gates = torch.vmap(lambda s: mixed(y, x, g, s, [-1], overwrite=True))(torch.stack([s, s]))
        assert torch.equal(y, kept)
        assert mixed(y, x, g, s, [-1], overwrite=True) is y
    assert_close(y, expected)
    assert_close(gates, torch.stack([expected, expected]))
