"""The gradient map, f = grad F, and the operations that gradient maps are closed under."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nablanets import serialization
from nablanets.errors import InvalidInputError, ShapeError, check_points, fits
from nablanets.maps.around import LinearChange, SumOfMaps
from nablanets.maps.describing import describe_map
from nablanets.maps.solved import Problem, Resolvent, WithStep
from nablanets.newton import Solution
from nablanets.operators import SymmetricOperator
from nablanets.parameters import first_tensor
from nablanets.quadrature import PathIntegral, potential_between
from nablanets.serialization import savable
from nablanets.tensors import kept


class GradientMap(nn.Module, ABC):
    r"""A map :math:`f = \nabla F : \mathbb{R}^d \to \mathbb{R}^d`.

    A subclass defines ``_forward``, ``_potential`` and ``_jacobian`` for inputs whose shape is already checked, and
    ``config`` (its constructor arguments); everything else follows. All act on the last dimension and work for any
    leading batch shape, also none. Gradient maps can be added, subtracted, and multiplied by numbers.

    Attributes:
        features: the dimension d.
        monotone: True if F is convex by construction (the Jacobian is positive semidefinite for every x).
    """

    def __init__(self, features: int, *, monotone: bool) -> None:
        super().__init__()
        self.features = features
        self.monotone = monotone

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _potential(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _jacobian(self, x: Tensor) -> SymmetricOperator: ...

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments, from which :func:`nablanets.load` rebuilds the map."""

    def _check(self, x: Tensor, name: str = "x") -> None:
        """Raise unless these are points in ``features`` dimensions, in the dtype and on the device of the map."""
        like = first_tensor(self)
        if not fits(x, self.features, like):
            if like is not None and isinstance(x, Tensor):
                like = self.as_points(
                    like.new_empty(0, dtype=x.dtype)
                )  # a map that subtracts a centre takes wider points than its own
            check_points(x, self.features, owner=type(self).__name__, name=name, like=like)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """f(x) = grad F(x)."""
        self._check(x)
        return self._forward(x)

    def as_points(self, x: Tensor) -> Tensor:
        """x on the map's device and in the type in which it takes points: its own, unless it subtracts a centre first.

        A :class:`Pullback` with a centre takes float64, whatever its own type is, and loses no digits.
        """
        return x.to(next(chain(self.parameters(), self.buffers()), x))

    def potential(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """F(x), which f determines up to a constant."""
        self._check(x)
        return self._potential(x)

    def jacobian(self, x: Float[Tensor, "*batch d"]) -> SymmetricOperator:
        """The Jacobian of f at x (the Hessian of F) as a symmetric operator."""
        self._check(x)
        return self._jacobian(x)

    def value_and_jacobian(self, x: Float[Tensor, "*batch d"]) -> tuple[Float[Tensor, "*batch d"], SymmetricOperator]:
        """f(x) and its Jacobian together, sharing the work they have in common.

        >>> from nablanets import GradNetC
        >>> y, J = GradNetC(3, 8, monotone=True).value_and_jacobian(torch.randn(5, 3))
        >>> y.shape, J.logdet().shape
        (torch.Size([5, 3]), torch.Size([5]))
        """
        self._check(x)
        return self._value_and_jacobian(x)

    def _value_and_jacobian(self, x: Tensor) -> tuple[Tensor, SymmetricOperator]:
        return self._forward(x), self._jacobian(x)

    def hvp(self, x: Float[Tensor, "*batch d"], v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The Hessian-vector product J(x) v."""
        self._check(v, "v")
        return self.jacobian(x) @ v

    def laplacian(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """The Laplacian of F, trace J(x), which is the divergence of f."""
        return self.jacobian(x).trace()

    def along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        """The function t -> <f(x + t p), p> of t (*batch), increasing for monotone f."""
        self._check(x)
        self._check(p, "p")
        return self._along(x, p)

    def _along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda t: (self(x + t.unsqueeze(-1) * p) * p).sum(dim=-1)

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        """Symmetric matrices L, U of shape (d, d) with L <= J(x) <= U for every x, as quadratic forms.

        Entries are not finite where no bound is known.
        """
        unknown = torch.full((self.features, self.features), torch.inf).to(next(self.parameters()))
        return (torch.zeros_like(unknown) if self.monotone else -unknown), unknown

    def curvature_bounds(self) -> tuple[Tensor, Tensor]:
        """Certified bounds of all eigenvalues of J(x), for every x: the largest known lower, the least known upper.

        f is strongly monotone if the lower bound is positive; max(|lower|, |upper|) is a Lipschitz constant.

        >>> from nablanets import GradNetC
        >>> net = GradNetC(3, 8, monotone=True)
        >>> lower, upper = net.curvature_bounds()
        >>> eigenvalues = net.jacobian(torch.randn(100, 3)).eigvalsh()
        >>> bool(0 < lower <= eigenvalues.min()) and bool(eigenvalues.max() <= upper)
        True
        """
        lower, upper = self.curvature_envelope()
        least = torch.linalg.eigvalsh(lower)[0] if bool(torch.isfinite(lower).all()) else lower.new_tensor(-torch.inf)
        most = torch.linalg.eigvalsh(upper)[-1] if bool(torch.isfinite(upper).all()) else upper.new_tensor(torch.inf)
        return (least.clamp(min=0) if self.monotone else least), most

    def solve(
        self,
        y: Float[Tensor, "*batch d"],
        *,
        tolerance: float | None = None,
        max_steps: int = 100,
        throw: bool = True,
    ) -> Solution:
        """Solve f(x) = y for strongly monotone f by damped Newton steps; see :class:`nablanets.newton.Solution`.

        The value is differentiable in y and the parameters (implicitly), also twice. 16-bit types are solved in
        float32, and the result is rounded. ``vmap`` over y solves all samples together, as a batch of y does; ``vmap``
        over parameters solves for one after the other.

        Args:
            y: right-hand sides.
            tolerance: of |f(x) - y|, relative to 1 + |y|; 64 roundings if None.
            max_steps: Newton steps at most.
            throw: raise if a sample did not converge; else look at ``converged`` and ``residual`` of the result.
                A sample that fails, or a y that is not finite, does not touch the others.

        Raises:
            InvalidInputError: the map is not monotone by construction.
            SingularJacobianError: it is monotone, but not strongly.
            ConvergenceError: some samples did not converge, and ``throw``.

        >>> from nablanets import Quadratic
        >>> solution = Quadratic(3, monotone=True).double().solve(torch.ones(5, 3, dtype=torch.double))
        >>> bool(solution.converged.all()), int(solution.iterations.max())
        (True, 1)
        """
        self._check(y, "y")
        if not self.monotone:
            raise InvalidInputError(
                f"{type(self).__name__}: the map is not monotone by construction, so f(x) = y may have no or many "
                "solutions. Build it with monotone=True; or use prox(y, step) with a small step."
            )
        return Problem(self, _itself, tolerance, max_steps, throw).solve(y)

    def inverse(self, y: Float[Tensor, "*batch d"], *, tolerance: float | None = None) -> Float[Tensor, "*batch d"]:
        """The x with f(x) = y: the value of :meth:`solve`, which tells about errors.

        >>> from nablanets import GradNetC
        >>> net, x = GradNetC(3, 8, monotone=True).double(), torch.randn(5, 3, dtype=torch.double)
        >>> torch.allclose(net.inverse(net(x)), x)
        True
        """
        return self.solve(y, tolerance=tolerance).value

    def conjugate(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """The convex conjugate F*(y) = max_x x.y - F(x). :class:`Conjugate` is its gradient map, f^{-1}."""
        x = self.inverse(y)
        return (x * y).sum(dim=-1) - self.potential(x)

    def prox(
        self, y: Float[Tensor, "*batch d"], step: float | Tensor = 1.0, *, tolerance: float | None = None
    ) -> Float[Tensor, "*batch d"]:
        """The proximal point argmin_x F(x) + |x - y|^2 / (2 step), the resolvent (I + step f)^{-1}(y).

        Defined for monotone f and any step > 0, and for others if step * curvature > -1 by ``curvature_bounds``.
        Differentiable as :meth:`solve` is, and in a step that is a tensor without dimensions.

        Raises:
            InvalidInputError: the step is not positive, or too large for the map's negative curvature.

        >>> from nablanets import GradNetC
        >>> net, y = GradNetC(3, 8, monotone=True).double(), torch.randn(5, 3, dtype=torch.double)
        >>> x = net.prox(y, step=0.5)
        >>> torch.allclose(x + 0.5 * net(x), y)
        True
        """
        self._check(y, "y")
        if (isinstance(step, Tensor) and step.ndim > 0) or not step > 0:
            raise InvalidInputError(f"prox: expected a number step > 0, got {step}.")
        lower = 0.0 if self.monotone else float(self.curvature_bounds()[0])
        if step * lower <= -1:
            raise InvalidInputError(
                f"prox: with curvature down to {lower:.3g} the proximal point is unique for steps below "
                f"{-1 / lower:.3g} only, got {step}. Choose a smaller step, or a monotone map."
            )
        if isinstance(step, Tensor):
            return Problem(WithStep(self, step), WithStep.resolvent, tolerance).solve(y).value
        return Problem(self, lambda net: Resolvent(net, step), tolerance).solve(y).value

    def potential_between(
        self, start: Float[Tensor, "*batch d"], end: Float[Tensor, "*batch d"], *, tolerance: float | None = None
    ) -> PathIntegral:
        """F(end) - F(start) by the path integral of f, with an error estimate: independent of ``potential``.

        See :func:`nablanets.quadrature.potential_between`, which takes any field.
        """
        for name, point in (("start", start), ("end", end)):
            self._check(point, name)
        return potential_between(self, start, end, tolerance=tolerance)

    def rows(self, index: Tensor) -> GradientMap:
        """The map for some samples of a flattened batch: itself, unless its parameters differ from sample to sample."""
        parts = {n: part for n, child in self.named_children() if (part := _rows(child, index)) is not child}
        return self if not parts else _with_children(self, parts)

    def save(self, path: str | Path) -> None:
        """Write architecture and weights to a safetensors file; :func:`nablanets.load` reads it back."""
        serialization.save(self, path)

    def pullback(self, a: Tensor, b: Tensor | None = None) -> Pullback:
        """x -> A^T f(A x + b), the gradient of F(A x + b). See :class:`Pullback`."""
        return Pullback(self, a, b)

    def __repr__(self) -> str:
        return describe_map(self, self.config, features=self.features, monotone=self.monotone)

    def __add__(self, other: GradientMap) -> GradientMap:
        return Sum([self, other]) if isinstance(other, GradientMap) else NotImplemented

    def __mul__(self, factor: float) -> GradientMap:
        return Scale(self, factor)

    __rmul__ = __mul__

    def __neg__(self) -> GradientMap:
        return Scale(self, -1.0)

    def __sub__(self, other: GradientMap) -> GradientMap:
        return Sum([self, Scale(other, -1.0)]) if isinstance(other, GradientMap) else NotImplemented


def _itself(net: GradientMap) -> GradientMap:
    return net


def _rows(module: nn.Module, index: Tensor) -> nn.Module:
    if isinstance(module, GradientMap):
        return module.rows(index)
    if isinstance(module, nn.ModuleList):
        parts = [_rows(child, index) for child in module]
        return module if all(new is old for new, old in zip(parts, module, strict=True)) else nn.ModuleList(parts)
    return module


M = TypeVar("M", bound=nn.Module)


def _with_children(module: M, children: dict[str, nn.Module]) -> M:
    """A shallow copy of a module with some of its children replaced."""
    other = copy.copy(module)
    other._modules = {**module._modules, **children}
    return other


@savable
class Sum(SumOfMaps, GradientMap):
    """f = sum_k f_k; monotone if every part is.

    >>> from nablanets import GradNetC, GradNetM
    >>> (GradNetC(2, 8, monotone=True) + GradNetM(2, 8, monotone=True)).monotone
    True
    >>> (GradNetC(2, 8, monotone=True) - GradNetM(2, 8, monotone=True)).monotone
    False
    """

    def __init__(self, parts: list[GradientMap]) -> None:
        dimensions = [part.features for part in parts]
        if len(set(dimensions)) != 1:
            raise ShapeError(f"Sum: expected gradient maps with one number of features, got {dimensions}.")
        super().__init__(dimensions[0], monotone=all(part.monotone for part in parts))
        self.parts = nn.ModuleList(parts)

    def _each(self) -> Iterator[GradientMap]:
        return cast(Iterator[GradientMap], iter(self.parts))

    def config(self) -> dict[str, Any]:
        return {"parts": list(self.parts)}

    def _forward(self, x: Tensor) -> Tensor:
        first, *rest = (part(x) for part in self._each())
        return sum(rest, first)

    def _potential(self, x: Tensor) -> Tensor:
        first, *rest = (part.potential(x) for part in self._each())
        return sum(rest, first)

    def _along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        parts = [part.along(x, p) for part in self._each()]
        return lambda t: sum((part(t) for part in parts), torch.zeros_like(t))

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        parts = [part.curvature_envelope() for part in self._each()]
        reference = max((lower for lower, _ in parts), key=lambda matrix: matrix.dtype.itemsize)
        lower, upper = torch.zeros_like(reference), torch.zeros_like(reference)
        for low, high in parts:
            lower, upper = lower + low.to(reference), upper + high.to(reference)
        return lower, upper

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        first, *rest = (part.jacobian(x) for part in self._each())
        return sum(rest, first)


@savable
class Scale(LinearChange, GradientMap):
    """c f for a fixed number c; monotone if f is and c >= 0.

    >>> from nablanets import GradNetC
    >>> (2 * GradNetC(2, 8, monotone=True)).monotone, (-GradNetC(2, 8, monotone=True)).monotone
    (True, False)
    """

    def __init__(self, inner: GradientMap, factor: float) -> None:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise InvalidInputError(
                f"a gradient map can be multiplied by a number only, got {type(factor).__name__}: the product of two "
                "gradient maps, or of a map and a function of x, is no gradient map."
            )
        super().__init__(inner.features, monotone=inner.monotone and factor >= 0)
        self.inner = inner
        self.factor = float(factor)

    def config(self) -> dict[str, Any]:
        return {"inner": self.inner, "factor": self.factor}

    def _change(self) -> tuple[Tensor | None, Tensor | None, float]:
        return None, None, self.factor

    def as_points(self, x: Tensor) -> Tensor:
        return self.inner.as_points(x)

    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)

    def _potential(self, x: Tensor) -> Tensor:
        return self.factor * self.inner.potential(x)

    def _along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        inner = self.inner.along(x, p)
        return lambda t: self.factor * inner(t)

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        lower, upper = (self.factor * bound for bound in self.inner.curvature_envelope())
        return (lower, upper) if self.factor >= 0 else (upper, lower)

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        return self.inner.jacobian(x).scale(self.factor)


@savable
class Pullback(LinearChange, GradientMap):
    """f(x) = A^T g(A (x - c) + b), the gradient of G(A (x - c) + b); monotone if g is.

    This is the way to change coordinates (also to standardise data) that keeps the Jacobian symmetric.

    Where points are far from zero compared with their spread (seconds since 1970, say), A x + b would cancel, and the
    type of g could not even tell points apart. A centre c is kept in float64, whatever type the map has or is
    converted to, and subtracted in float64 before anything else: such a map takes float64 points as they are.

    Args:
        inner: g, with d features.
        matrix: A of shape (d, n), or (d,) for a diagonal matrix.
        offset: b of shape (d,); zero if None.
        trainable: make A and b parameters, which start at the values given. Else they are copied, or kept as they are
            if they carry derivatives: these then reach A and b, and whatever A and b were computed from.
        centre: c of shape (n,); zero if None. It is never trained.

    >>> from nablanets import GradNetM
    >>> GradNetM(3, 8).pullback(torch.ones(3, 2)).features
    2
    >>> f = Pullback(GradNetM(1, 8), torch.ones(1), centre=torch.tensor([1.7e9], dtype=torch.double))
    >>> x = torch.tensor([[1.7e9 + 0.25]], dtype=torch.double)
    >>> f.image(x).item(), f(x).dtype
    (0.25, torch.float32)
    """

    matrix: Tensor
    offset: Tensor
    centre: Tensor | None

    def __init__(
        self,
        inner: GradientMap,
        matrix: Tensor,
        offset: Tensor | None = None,
        *,
        trainable: bool = False,
        centre: Tensor | None = None,
    ) -> None:
        if matrix.ndim not in (1, 2) or matrix.shape[0] != inner.features:
            raise ShapeError(
                f"Pullback: expected a matrix of shape ({inner.features}, n) or a diagonal ({inner.features},), got "
                f"{tuple(matrix.shape)}."
            )
        if offset is not None and offset.shape != (inner.features,):
            raise ShapeError(f"Pullback: expected an offset of shape ({inner.features},), got {tuple(offset.shape)}.")
        if centre is not None and centre.shape != matrix.shape[-1:]:
            raise ShapeError(f"Pullback: expected a centre of shape ({matrix.shape[-1]},), got {tuple(centre.shape)}.")
        super().__init__(matrix.shape[-1], monotone=inner.monotone)
        self.inner = inner
        self.trainable = trainable
        self.register_buffer("centre", None if centre is None else kept(centre.double()))
        start = matrix.new_zeros(inner.features) if offset is None else offset
        for name, value in (("matrix", matrix), ("offset", start)):
            if trainable:
                setattr(self, name, nn.Parameter(value.detach().clone()))
            else:
                self.register_buffer(name, kept(value))

    def config(self) -> dict[str, Any]:
        config = {"inner": self.inner, "matrix": self.matrix, "offset": self.offset, "trainable": self.trainable}
        return config if self.centre is None else config | {"centre": self.centre}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Pullback:
        """Conversions to another type leave the centre in float64."""
        before = self.centre
        super()._apply(fn, recurse)
        if before is not None and self.centre is not None:
            self.centre = before.to(self.centre.device)
        return self

    def _change(self) -> tuple[Tensor | None, Tensor | None, float]:
        matrix = torch.diag(self.matrix) if self.matrix.ndim == 1 else self.matrix
        if self.centre is None:
            return matrix, self.offset, 1.0
        shift = matrix.double() @ self.centre
        return matrix, (self.offset - shift).to(matrix), 1.0

    def _seen(self, x: Tensor) -> Tensor:
        return self.image(x)

    def as_points(self, x: Tensor) -> Tensor:
        own = super().as_points(x)
        return own if self.centre is None else x.to(own.device, torch.promote_types(x.dtype, own.dtype))

    def image(self, x: Tensor) -> Tensor:
        """A (x - c) + b."""
        if self.centre is not None:
            x = (x - self.centre).to(self.matrix.dtype)
        return self._direction(x) + self.offset

    def _direction(self, p: Tensor) -> Tensor:
        """A p."""
        return p * self.matrix if self.matrix.ndim == 1 else p @ self.matrix.mT

    def _forward(self, x: Tensor) -> Tensor:
        inner = self.inner(self.image(x))
        return inner * self.matrix if self.matrix.ndim == 1 else inner @ self.matrix

    def _potential(self, x: Tensor) -> Tensor:
        return self.inner.potential(self.image(x))

    def _along(self, x: Tensor, p: Tensor) -> Callable[[Tensor], Tensor]:
        return self.inner.along(self.image(x), self._direction(p.to(self.matrix.dtype)))

    def curvature_envelope(self) -> tuple[Tensor, Tensor]:
        a = torch.diag(self.matrix) if self.matrix.ndim == 1 else self.matrix
        lower, upper = (a.mT @ bound @ a for bound in self.inner.curvature_envelope())
        return lower, upper

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        return self.inner.jacobian(self.image(x)).congruence(self.matrix)
