"""Is it really a gradient? Error numbers, assertions on them, and a certificate.

``*_error`` functions take any callable that maps (*, d) to (*, d) sample by sample, so they also measure networks
that are not gradients, at points that are tensors, arrays, tables or lists of numbers. They return plain numbers,
relative to the size of what is compared, and judge nothing; ``assert_*`` functions raise
:class:`~nablanets.errors.VerificationError`, for use in tests.

A certificate by sampling can refute a property, not prove it; the maps of this package have the property by
construction, and the certificate shows that construction and arithmetic agree.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from nablanets.arrays import as_tensor
from nablanets.errors import InvalidInputError, VerificationError, check_finite, check_points
from nablanets.keywords import explain_arguments
from nablanets.maps import GradientMap
from nablanets.parameters import first_tensor, fixed_copy
from nablanets.printing import as_text, html_table, make_table
from nablanets.quadrature import line_integral, potential_between

if TYPE_CHECKING:
    from rich.table import Table

Field = Callable[[Tensor], Tensor]
F = TypeVar("F", bound=Callable[..., Any])

#: Largest relative error that rounding explains, by dtype.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 1e-1}
#: Points that loop and path checks use, since finely structured fields need many nodes along each side.
_LOOP_CORNERS = 16


def takes_arrays(function: F) -> F:
    """Function decorator: points, the second argument, may be an array, a table or lists of numbers.

    They are taken in the dtype and on the device of the first argument, if that is a network; tensors stay as they are.
    """
    first, second = list(inspect.signature(function).parameters)[:2]

    @functools.wraps(function)
    def converting(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip((first, second), args, strict=False)) | kwargs
        points = given.get(second)
        if first in given and points is not None and not isinstance(points, Tensor):
            points = as_points_of(given[first], as_tensor(points, owner=function.__name__, name=second))
            args, kwargs = (
                (given[first], points, *args[2:]),
                {name: value for name, value in kwargs.items() if name not in (first, second)},
            )
        return function(*args, **kwargs)

    return cast(F, converting)


def as_points_of(f: Field, points: Tensor) -> Tensor:
    """Points in the dtype and on the device of a network; as they are where f is none."""
    if isinstance(f, GradientMap):
        return f.as_points(points)
    like = first_tensor(f) if isinstance(f, nn.Module) else None
    return points if like is None else points.to(like)


@takes_arrays
def autodiff_jacobian(f: Field, x: Tensor) -> Tensor:
    """The Jacobians of f at points x (n, d) by automatic differentiation, (n, d, d), one backward pass per row.

    >>> autodiff_jacobian(lambda x: x**2, torch.ones(1, 2)).tolist()
    [[[2.0, 0.0], [0.0, 2.0]]]
    """
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        values = f(point)
        if not values.requires_grad:
            return torch.zeros_like(torch.diag_embed(x))
        rows = [
            torch.autograd.grad(component.sum(), point, retain_graph=True, materialize_grads=True)[0]
            for component in values.unbind(dim=-1)
        ]
    return torch.stack(rows, dim=-2)


@takes_arrays
def symmetry_error(f: Field, x: Tensor) -> float:
    """max |J - J^T| / max |J| over the points, with J by automatic differentiation.

    >>> rotation = lambda x: torch.stack([-x[..., 1], x[..., 0]], dim=-1)
    >>> symmetry_error(rotation, torch.randn(4, 2))
    2.0
    """
    jacobian = autodiff_jacobian(f, x)
    return _relative(jacobian - jacobian.mT, jacobian)


@takes_arrays
def jacobian_error(net: GradientMap, x: Tensor) -> float:
    """max |J - J_autodiff| / max |J_autodiff|: the structured Jacobian against automatic differentiation."""
    reference = autodiff_jacobian(net, x)
    return _relative(net.jacobian(x).dense() - reference, reference)


@takes_arrays
def potential_gradient_error(net: GradientMap, x: Tensor) -> float:
    """max |grad F - f| / max |f|, the gradient of the potential by automatic differentiation."""
    values = net(x)
    return _relative(torch.func.grad(lambda points: net.potential(points).sum())(x) - values, values)


@takes_arrays
def circulations(f: Field, x: Tensor, *, panels: int | None = None) -> Tensor:
    """Circulations of f around triangles of consecutive points x (n, d), over max |f| times the perimeter.

    Args:
        f: the field.
        x: the corners.
        panels: of a fixed rule along each side; sides are refined until their integrals are right if None.
    """
    corners = [x, x.roll(1, dims=0), x.roll(2, dims=0), x]
    work = sum(_rise(f, a, b, panels) for a, b in itertools.pairwise(corners))
    perimeter = sum((b - a).norm(dim=-1) for a, b in itertools.pairwise(corners))
    return work / _positive(perimeter * f(x).norm(dim=-1).max())


def _rise(f: Field, start: Tensor, end: Tensor, panels: int | None) -> Tensor:
    if panels is None:
        return potential_between(f, start, end).value
    return line_integral(f, start, end, panels=panels)


@takes_arrays
def loop_error(f: Field, x: Tensor, *, panels: int | None = None) -> float:
    """The largest |circulation| around triangles of consecutive points, over max |f| times the perimeter.

    Zero for a gradient, up to rounding; of order one for a rotation. ``panels`` as in :func:`circulations`.
    """
    return float(circulations(f, x, panels=panels).detach().abs().max())


@takes_arrays
def potential_path_error(net: GradientMap, x: Tensor) -> float:
    """max |F(b) - F(a) - int_a^b f| / max |F(b) - F(a)| over consecutive points a, b."""
    end = x.roll(1, dims=0)
    rise = net.potential(end) - net.potential(x)
    return _relative(rise - net.potential_between(x, end).value, rise)


@takes_arrays
def smallest_eigenvalue(net: GradientMap, x: Tensor) -> float:
    """The smallest eigenvalue of the Jacobian at the points, over the largest magnitude of any (zero if all vanish)."""
    eigenvalues = net.jacobian(x).eigvalsh()
    return float(eigenvalues.min() / _positive(eigenvalues.abs().max()))


@takes_arrays
def curvature_violation(net: GradientMap, x: Tensor) -> float:
    """How far eigenvalues of the Jacobian at the points lie outside ``net.curvature_bounds()``, over the largest."""
    eigenvalues = net.jacobian(x).eigvalsh()
    lower, upper = net.curvature_bounds()
    outside = torch.maximum(lower - eigenvalues.min(), eigenvalues.max() - upper).clamp(min=0)
    return float(outside / _positive(eigenvalues.abs().max()))


@takes_arrays
def sought_curvature(net: GradientMap, x: Tensor, *, steps: int = 200, rate: float = 0.02) -> float:
    """The largest v.J(x) v / |v|^2 found by ascent in x from the points given: the maximum over all x is no less.

    Each step improves v by power iteration and x by Adam. For a map with positive semidefinite Jacobians this is what
    the upper end of ``curvature_bounds`` is to be compared with; sampling alone finds far less in high dimension.

    >>> from nablanets import GradNetC
    >>> net = GradNetC(3, 8, monotone=True)
    >>> bool(sought_curvature(net, torch.randn(5, 3)) <= net.curvature_bounds()[1] * 1.0001)
    True
    """
    frozen = fixed_copy(net).requires_grad_(False)
    point = x.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([point], rate)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    best = -torch.inf
    for step in range(steps):
        with torch.no_grad():
            for _ in range(30 if step == 0 else 3):
                direction = frozen.hvp(point, direction)
                direction = direction / _positive(direction.norm(dim=-1, keepdim=True))
        curvature = (direction * frozen.hvp(point, direction)).sum(dim=-1)
        best = max(best, float(curvature.detach().max()))
        if not curvature.requires_grad:
            continue  # the Jacobian is the same everywhere
        optimizer.zero_grad()
        (-curvature.sum()).backward()
        optimizer.step()
    return best


@takes_arrays
def monotonicity_gap(f: Field, x: Tensor) -> float:
    """min of <f(a) - f(b), a - b> / (|f(a) - f(b)| |a - b|) over pairs of points; below zero for non-monotone f."""
    values = f(x)
    worst = 1.0
    for shift in range(1, min(len(x), 33)):
        dx, df = x - x.roll(shift, dims=0), values - values.roll(shift, dims=0)
        size = dx.norm(dim=-1) * df.norm(dim=-1)
        # Pairs whose values agree to rounding say nothing about a direction.
        told = df.norm(dim=-1) > 64 * torch.finfo(x.dtype).eps * values.norm(dim=-1).max()
        if bool(told.any()):
            worst = min(worst, float(((dx * df).sum(dim=-1) / _positive(size))[told].min()))
    return worst


def _relative(difference: Tensor, reference: Tensor) -> float:
    return float((difference.abs().max() / _positive(reference.abs().max())).detach())


def _positive(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny)


@takes_arrays
def assert_symmetric(f: Field, x: Tensor, tolerance: float | None = None) -> None:
    """Raise VerificationError unless the Jacobian of f is symmetric at the points, to rounding."""
    _require("symmetry error of the Jacobian", symmetry_error(f, x), _tolerance(x, tolerance))


@takes_arrays
def assert_conservative(f: Field, x: Tensor, tolerance: float | None = None) -> None:
    """Raise VerificationError unless loop integrals of f vanish, to rounding."""
    _require("loop integral", loop_error(f, x[:_LOOP_CORNERS]), _tolerance(x, tolerance))


@takes_arrays
def assert_potential(net: GradientMap, x: Tensor, tolerance: float | None = None) -> None:
    """Raise VerificationError unless f is the gradient of the potential, to rounding.

    A potential may have f as its derivative and wrong values: :func:`potential_path_error` tells.
    """
    error = potential_gradient_error(net, x)
    _require("difference of f and the gradient of the potential", error, _tolerance(x, tolerance))


@takes_arrays
def assert_jacobian(net: GradientMap, x: Tensor, tolerance: float | None = None) -> None:
    """Raise VerificationError unless the structured Jacobian equals automatic differentiation, to rounding."""
    _require("error of the structured Jacobian", jacobian_error(net, x), _tolerance(x, tolerance))


@takes_arrays
def assert_monotone(f: Field, x: Tensor, tolerance: float | None = None) -> None:
    """Raise VerificationError if f decreases along the line between two of the points, beyond rounding."""
    _require("decrease between pairs of points", -monotonicity_gap(f, x), _tolerance(x, tolerance))


def _require(what: str, value: float, tolerance: float) -> None:
    if not value <= tolerance:
        raise VerificationError(f"{what} is {value:.3e}, above the tolerance {tolerance:.1e}.")


def _tolerance(x: Tensor, given: float | None) -> float:
    return TOLERANCE[x.dtype] if given is None else given


_COLUMNS = ("check", "value", "required", "result")


@dataclass(frozen=True)
class Check:
    """One line of a certificate; ``tolerance`` is None for a value that is only reported."""

    name: str
    value: float
    tolerance: float | None
    lower_bound: bool = False

    @property
    def passed(self) -> bool:
        if self.tolerance is None:
            return True
        return self.value >= -self.tolerance if self.lower_bound else self.value <= self.tolerance

    @property
    def requirement(self) -> str:
        if self.tolerance is None:
            return "reported only"
        return f">= {-self.tolerance:.0e}" if self.lower_bound else f"<= {self.tolerance:.0e}"

    @property
    def result(self) -> str:
        if self.tolerance is None:
            return "-"
        return "pass" if self.passed else "FAIL"


@dataclass(frozen=True)
class Certificate:
    """What was checked, on how many points, and the outcome. Prints as a table."""

    subject: str
    points: int
    dtype: str
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def table(self) -> Table:
        """The checks as a table for ``console.print`` of rich."""
        return make_table(_COLUMNS, self._rows(), title=self._title(), numbers={"value"})

    def _title(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"Certificate of {self.subject}: {verdict} ({self.points} points, {self.dtype})"

    def _rows(self) -> list[tuple[str, ...]]:
        return [(check.name, f"{check.value:.2e}", check.requirement, check.result) for check in self.checks]

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(_COLUMNS, self._rows(), title=self._title(), numbers={"value"})

    def __str__(self) -> str:
        return as_text(self.table())


@explain_arguments
def certificate(net: GradientMap, x: Tensor | None = None, *, points: int = 64, seed: int = 0) -> Certificate:
    """Check a gradient map at points x: symmetry, loops, potential, structured Jacobian, eigenvalues, monotonicity.

    Args:
        net: the map. It is evaluated as it is, in its own dtype.
        x: points (n, d); at most ``points`` of them are used, drawn at random. Standard normal points if None.
        points: how many points to use.
        seed: of the draw.

    Returns:
        A table of checks; eigenvalue and pair checks must hold if ``net.monotone``, else they are reported.

    Raises:
        InvalidInputError: x has the wrong shape, or holds NaN, or fewer than three points; net is no gradient map.

    >>> from nablanets import GradNetC
    >>> certificate(GradNetC(3, 8, monotone=True).double()).passed
    True
    """
    if not isinstance(net, GradientMap):
        raise InvalidInputError(f"certificate: expected a GradientMap, got {type(net).__name__}.")
    x = _certificate_points(net, x, points, seed)
    tolerance = TOLERANCE[x.dtype]
    with torch.no_grad():
        eigenvalue = smallest_eigenvalue(net, x)
        pairs = monotonicity_gap(net, x)
        corners = x[:_LOOP_CORNERS]
        checks = [
            Check("symmetry: max |J - J'| / max |J|", symmetry_error(net, x), tolerance),
            Check("loop integrals: circulation / (perimeter |f|)", loop_error(net, corners), tolerance),
            Check("potential: max |grad F - f| / max |f|", potential_gradient_error(net, x), tolerance),
            Check("structured Jacobian against autodiff", jacobian_error(net, x), tolerance),
            Check("smallest eigenvalue / largest", eigenvalue, tolerance if net.monotone else None, True),
            Check(_curvature_line(net, x), curvature_violation(net, x), tolerance),
            Check("monotonicity: min cosine over pairs", pairs, tolerance if net.monotone else None, True),
            Check("potential along paths: |rise - work| / max rise", potential_path_error(net, corners), tolerance),
        ]
    return Certificate(type(net).__name__, len(x), str(x.dtype).removeprefix("torch."), checks)


def _curvature_line(net: GradientMap, x: Tensor) -> str:
    eigenvalues = net.jacobian(x).eigvalsh()
    lower, upper = net.curvature_bounds()
    observed = f"[{float(eigenvalues.min()):.3g}, {float(eigenvalues.max()):.3g}]"
    return f"curvature {observed} within certified [{float(lower):.3g}, {float(upper):.3g}]"


def _certificate_points(net: GradientMap, x: Tensor | None, points: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    reference = next(itertools.chain(net.parameters(), net.buffers()))
    if x is None:
        return torch.randn(max(points, 3), net.features, generator=generator).to(reference)
    x = as_tensor(x, owner="certificate", name="x")
    check_points(x, net.features, owner="certificate")
    check_finite(x, owner="certificate", name="x")
    flat = x.reshape(-1, net.features)
    if len(flat) < 3:
        raise InvalidInputError(f"certificate: expected at least three points (for loops), got {len(flat)}.")
    return flat[torch.randperm(len(flat), generator=generator)[:points].to(x.device)].to(reference)
