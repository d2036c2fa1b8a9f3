"""The checks of the conformance suite: each takes a gradient map and raises AssertionError if it fails."""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path

import torch
from torch.testing import assert_close

from nablanets import FromPotential, GradientMap, load, verify
from nablanets.errors import IndefiniteJacobianError, SingularJacobianError
from nablanets.maps.potential import HasGradient
from nablanets.operators import StructuredOperator
from tests.cases import D, points


def shapes(net: GradientMap) -> None:
    for batch in ((), (1,), (4,), (2, 3), (0,)):
        x = (
            points(net, 24)[: max(1, torch.Size(batch).numel())].reshape(*batch, D)
            if 0 not in batch
            else points(net, 0)
        )
        assert net(x).shape == (*batch, D)
        assert net.potential(x).shape == batch
        jacobian = net.jacobian(x)
        assert jacobian.shape == (*batch, D, D)
        if 0 not in batch:
            assert jacobian.dense().shape == (*batch, D, D)
            assert jacobian.diagonal().shape == (*batch, D)
        assert net.laplacian(x).shape == batch
        assert net.hvp(x, x).shape == (*batch, D)


def samples_are_independent(net: GradientMap) -> None:
    x = points(net)
    tolerance = verify.TOLERANCE[x.dtype] * 1e-2
    for f in (net, net.potential, lambda z: net.jacobian(z).dense(), net.laplacian):
        assert_close(f(x)[2:4], f(x[2:4]), rtol=tolerance, atol=tolerance)
        assert_close(f(x)[2], f(x[2]), rtol=tolerance, atol=tolerance)


def potential(net: GradientMap) -> None:
    verify.assert_potential(net, points(net))


def potential_along_paths(net: GradientMap) -> None:
    """The potential's values, not only its gradient: rise along segments against the work of f."""
    assert verify.potential_path_error(net, points(net)) <= verify.TOLERANCE[points(net).dtype]


#: What a potential keeps to when its network is steep: its gradient, relative to f, by dtype...
MOVED_GRADIENT = {torch.float64: 1e-10, torch.float32: 1e-5}
#: ...and its rise along paths, in float64.
MOVED_RISE = 1e-9


def potential_after_moves(net: GradientMap) -> None:
    """The potential after the parameters were moved by normal draws times 3, which makes units steep."""
    x = points(net)
    moved = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))
        if x.dtype == torch.float32 and not bool(torch.isfinite(moved(x).abs().square().sum())):
            return  # polynomials of polynomials leave float32's range
    assert verify.potential_gradient_error(moved, x) <= MOVED_GRADIENT[x.dtype]
    if x.dtype == torch.float64:
        with torch.no_grad():
            assert verify.potential_path_error(moved, x) <= MOVED_RISE


def jacobian(net: GradientMap) -> None:
    verify.assert_jacobian(net, points(net))


def symmetry(net: GradientMap) -> None:
    verify.assert_symmetric(net, points(net))


def loops(net: GradientMap) -> None:
    verify.assert_conservative(net, points(net))


def operator(net: GradientMap) -> None:
    """Every operation of the Jacobian operator against its dense form."""
    x = points(net)
    J, tolerance = net.jacobian(x), verify.TOLERANCE[x.dtype] * 1e-1
    dense = J.dense()
    size = float(dense.abs().max())
    close = {"rtol": tolerance, "atol": tolerance * size}
    assert_close(dense, dense.mT, **close)
    assert_close(J @ x, torch.einsum("nij,nj->ni", dense, x), rtol=tolerance, atol=10 * tolerance * size)
    assert_close(J.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=tolerance, atol=3 * tolerance * size)
    assert_close(J.diagonal(), dense.diagonal(dim1=-2, dim2=-1), **close)
    assert_close(J.eigvalsh(), torch.linalg.eigvalsh(dense), **close)
    assert_close((2.0 * J + (-J)).dense(), dense, **close)
    a = torch.randn(D, 2, dtype=x.dtype)
    assert_close(J.congruence(a).dense(), a.mT @ dense @ a, rtol=tolerance, atol=10 * tolerance * size)


#: Samples whose Jacobian must be well enough conditioned for a check of inverse operations to mean something.
LEAST_SAMPLES = 3
#: Ill-conditioned beyond this many roundings, an inverse says nothing.
_LARGEST_CONDITION = 1e-3


class TooFewSamplesError(AssertionError):
    """A check found too few samples to which it applies; a case for which this is so is listed by name."""


def inverse_operations(net: GradientMap) -> None:
    """logdet and solve of the operator where it is invertible, and a refusal where it is singular by structure."""
    x = points(net, 40)
    J = net.jacobian(x)
    if isinstance(J, StructuredOperator) and J.shift is None and J.rank_bound < D:
        for operation in (J.logdet, lambda: J.solve(x)):
            try:
                operation()
            except SingularJacobianError:
                continue
            raise AssertionError("a structurally singular Jacobian was not refused")
        return
    rounding = torch.finfo(x.dtype).eps
    values = torch.linalg.svdvals(J.dense())
    condition = values[:, 0] / values[:, -1]
    sound = condition < _LARGEST_CONDITION / rounding
    if int(sound.sum()) < LEAST_SAMPLES:
        raise TooFewSamplesError(f"{int(sound.sum())} of {len(x)} Jacobians are well conditioned")
    x = x[sound]
    J = net.jacobian(x)
    tolerance = 100 * rounding * condition[sound].clamp(min=1.0)  # of each sample
    sign, expected = torch.linalg.slogdet(J.dense())
    found = J.slogdet()
    assert bool((found.sign == sign).all())
    assert bool(((found.logabsdet - expected).abs() <= tolerance * (1 + expected.abs())).all())
    positive = sign > 0
    if bool(positive.any()):
        value = net.jacobian(x[positive]).logdet()
        assert bool(((value - expected[positive]).abs() <= (tolerance * (1 + expected.abs()))[positive]).all())
    if not bool(positive.all()):
        try:
            J.logdet()
        except IndefiniteJacobianError:
            pass
        else:
            raise AssertionError("the logarithm of a negative determinant was not refused")
    error = (J.solve(J @ x) - x).abs().amax(dim=-1)
    assert bool((error <= tolerance * x.abs().amax(dim=-1)).all())


def monotone(net: GradientMap) -> None:
    """If the map says that it is monotone, it is: at the start, with parameters ten times as large, after training."""
    if not net.monotone:
        return
    x = points(net, 40)
    _assert_monotone(net, x)
    for factor in (10, 3):
        large = copy.deepcopy(net)
        with torch.no_grad():
            for parameter in large.parameters():
                parameter.mul_(factor).add_(torch.randn_like(parameter))
        if bool(torch.isfinite(large.jacobian(x).dense()).all()):  # polynomials of polynomials leave float32's range
            _assert_monotone(large, x)
            break
    else:
        raise AssertionError("no large parameters with a finite Jacobian were found")
    trained = copy.deepcopy(net)
    optimizer = torch.optim.Adam(trained.parameters(), 0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (trained(x) + x).square().sum().backward()  # the target -x pulls away from monotone
        optimizer.step()
    _assert_monotone(trained, x)


def _assert_monotone(net: GradientMap, x: torch.Tensor) -> None:
    verify.assert_monotone(net, x)
    assert verify.smallest_eigenvalue(net, x) >= -verify.TOLERANCE[x.dtype]


def parameters_are_used(net: GradientMap) -> None:
    x = points(net)
    net.zero_grad()
    net(x).square().sum().backward()
    unused = [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    # A potential may have parameters that its gradient does not see (the constant), or that act only at second order.
    unused = [n for n in unused if not n.endswith(_CONSTANTS)]
    assert not unused, f"parameters without gradient: {unused}"


_CONSTANTS = ("module.last.bias",)


def nothing_is_changed(net: GradientMap) -> None:
    """Evaluation leaves inputs, parameters and the random state alone."""
    x = points(net)
    before_x, before = x.clone(), copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    for f in (net, net.potential, lambda z: net.jacobian(z).dense(), net.laplacian):
        f(x)
    assert torch.equal(x, before_x)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def transforms(net: GradientMap) -> None:
    """no_grad, inference_mode, vmap and jacrev give what plain evaluation gives."""
    x = points(net)
    tolerance = verify.TOLERANCE[x.dtype] * 1e-2
    close = {"rtol": tolerance, "atol": tolerance}
    expected = net(x), net.potential(x), net.jacobian(x).dense()

    def evaluate() -> tuple[torch.Tensor, ...]:
        return net(x), net.potential(x), net.jacobian(x).dense()

    with torch.no_grad():
        for value, reference in zip(evaluate(), expected, strict=True):
            assert_close(value, reference.detach(), **close)
            assert not value.requires_grad
    with torch.inference_mode():
        for value, reference in zip(evaluate(), expected, strict=True):
            assert_close(value, reference.detach(), **close)
    assert_close(torch.func.vmap(net)(x), expected[0], **close)
    assert_close(torch.func.vmap(net.potential)(x), expected[1], **close)
    assert_close(torch.func.vmap(lambda z: net.jacobian(z).dense())(x), expected[2], **close)
    assert_close(
        torch.func.vmap(torch.func.jacfwd(net))(x),
        expected[2],
        rtol=1e2 * tolerance,
        atol=1e2 * tolerance * float(expected[2].detach().abs().max() + 1),
    )


def copies(net: GradientMap) -> None:
    """deepcopy, pickle, state_dict and the model file give the same map."""
    x = points(net)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        net.save(path)
        loaded = load(path)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded):
        assert type(other) is type(net)
        assert (other.features, other.monotone) == (net.features, net.monotone)
        assert torch.equal(other(x), net(x))
        assert torch.equal(other.potential(x), net.potential(x))
    loaded.load_state_dict(net.state_dict())


def dtypes(net: GradientMap) -> None:
    """The map works in float64, float32 and bfloat16 and stays in the dtype."""
    reference = copy.deepcopy(net).double()
    expected = reference(points(reference))
    size = float(expected.abs().max())
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.15), (torch.float64, 1e-12)):
        other = copy.deepcopy(net).to(torch.float64).to(dtype)
        x = points(other)
        value = other(x)
        assert value.dtype == dtype
        assert other.potential(x).dtype == dtype
        assert other.jacobian(x).dense().dtype == dtype
        assert_close(value.double(), expected, rtol=tolerance, atol=tolerance * size)


def second_derivatives(net: GradientMap) -> None:
    """Derivatives of f with respect to x and the parameters, first and second, against finite differences.

    Differences in float32 are worthless: there, its derivatives are compared with differences of a copy in float64.
    """
    name, parameter = next(iter(net.named_parameters()))
    x = points(net, 2)
    if x.dtype == torch.float64:
        arguments = (x.requires_grad_(), parameter.detach().clone().requires_grad_())

        def f(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(net, {name: p}, (x,))

        assert torch.autograd.gradcheck(f, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, arguments, fast_mode=True)
        return
    wide = copy.deepcopy(net).double()
    generator = torch.Generator().manual_seed(5)
    directions = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (x, parameter)]
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for order in (1, 2):
        narrow, size = _directional_derivative(net, name, weights, directions, order, 0.0)
        step = 1e-5
        ahead, _ = _directional_derivative(wide, name, weights, directions, order - 1, step)
        behind, _ = _directional_derivative(wide, name, weights, directions, order - 1, -step)
        difference = (ahead - behind) / (2 * step)
        assert abs(narrow - difference) <= 1e-3 * (size + abs(difference)), f"derivative {order} in {x.dtype}"


def _directional_derivative(
    net: GradientMap, name: str, weights: torch.Tensor, directions: list[torch.Tensor], order: int, step: float
) -> tuple[float, float]:
    """The derivative of sum weights f(x; p) along directions of (x, p), ``step`` further on, and the size of its terms.

    Args:
        net: f, in whose dtype it is computed.
        name: of the parameter p.
        weights: of the components of f.
        directions: of x and p.
        order: of the derivative, 0 to 2.
        step: where along the directions.
    """
    x = points(net, 2)
    start = (x, net.get_parameter(name).detach())
    lines = [direction.to(x) for direction in directions]
    arguments = [(t + step * line).requires_grad_() for t, line in zip(start, lines, strict=True)]
    value = (torch.func.functional_call(net, {name: arguments[1]}, (arguments[0],)) * weights.to(x)).sum()
    size = abs(float(value.detach()))
    for _ in range(order):
        if not value.requires_grad:
            return 0.0, size
        gradients = torch.autograd.grad(value, arguments, create_graph=True, materialize_grads=True)
        terms = [gradient * line for gradient, line in zip(gradients, lines, strict=True)]
        size = sum(float(term.detach().abs().sum()) for term in terms)
        value = torch.stack([term.sum() for term in terms]).sum()
    return float(value.detach()), size


def compiles(net: GradientMap) -> None:
    """torch.compile(fullgraph=True) of a training step and of the potential."""
    x = points(net)
    potential = torch.compile(net.potential, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(potential(x), net.potential(x), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    net.zero_grad()
    net(x).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    compiled(x).square().sum().backward()
    got = [p.grad for p in net.parameters() if p.grad is not None]
    tolerance = verify.TOLERANCE[x.dtype] * 1e-1
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max() + 1e-30))


def exports(net: GradientMap) -> None:
    """torch.export of the forward pass with a dynamic batch, for maps that do not need torch.func."""
    if isinstance(net, FromPotential) and not isinstance(net.module, HasGradient):
        return
    x = points(net)
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(net, (x,), dynamic_shapes={"x": {0: batch}})
    longer = points(net, 11)
    assert_close(program.module()(longer), net(longer), rtol=1e-5, atol=1e-5 * float(net(longer).abs().max() + 1))


FAST = (
    shapes,
    samples_are_independent,
    potential,
    potential_along_paths,
    potential_after_moves,
    jacobian,
    symmetry,
    loops,
    operator,
    inverse_operations,
    monotone,
    parameters_are_used,
    nothing_is_changed,
    transforms,
    copies,
    dtypes,
    second_derivatives,
)
GRAPH = (compiles, exports)
