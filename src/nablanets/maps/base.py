"""The gradient map, f = grad F, and the operations that gradient maps are closed under."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from nablanets import serialization
from nablanets.errors import InvalidInputError, ShapeError, check_points
from nablanets.operators import SymmetricOperator
from nablanets.serialization import savable


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

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """f(x) = grad F(x)."""
        check_points(x, self.features, owner=type(self).__name__)
        return self._forward(x)

    def potential(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """F(x), which f determines up to a constant."""
        check_points(x, self.features, owner=type(self).__name__)
        return self._potential(x)

    def jacobian(self, x: Float[Tensor, "*batch d"]) -> SymmetricOperator:
        """The Jacobian of f at x (the Hessian of F) as a symmetric operator."""
        check_points(x, self.features, owner=type(self).__name__)
        return self._jacobian(x)

    def hvp(self, x: Float[Tensor, "*batch d"], v: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The Hessian-vector product J(x) v."""
        return self.jacobian(x) @ v

    def laplacian(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """The Laplacian of F, trace J(x), which is the divergence of f."""
        return self.jacobian(x).trace()

    def quadrature_gap(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Signed estimate of the quadrature error in ``potential(x)``; zero for potentials in closed form."""
        return x.new_zeros(x.shape[:-1])

    def save(self, path: str | Path) -> None:
        """Write architecture and weights to a safetensors file; :func:`nablanets.load` reads it back."""
        serialization.save(self, path)

    def pullback(self, a: Tensor, b: Tensor | None = None) -> Pullback:
        """x -> A^T f(A x + b), the gradient of F(A x + b). See :class:`Pullback`."""
        return Pullback(self, a, b)

    def __add__(self, other: GradientMap) -> GradientMap:
        return Sum([self, other]) if isinstance(other, GradientMap) else NotImplemented

    def __mul__(self, factor: float) -> GradientMap:
        return Scale(self, factor)

    __rmul__ = __mul__

    def __neg__(self) -> GradientMap:
        return Scale(self, -1.0)

    def __sub__(self, other: GradientMap) -> GradientMap:
        return Sum([self, Scale(other, -1.0)]) if isinstance(other, GradientMap) else NotImplemented


@savable
class Sum(GradientMap):
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

    def quadrature_gap(self, x: Tensor) -> Tensor:
        first, *rest = (part.quadrature_gap(x) for part in self._each())
        return sum(rest, first)

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        first, *rest = (part.jacobian(x) for part in self._each())
        return sum(rest, first)


@savable
class Scale(GradientMap):
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

    def _forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)

    def _potential(self, x: Tensor) -> Tensor:
        return self.factor * self.inner.potential(x)

    def quadrature_gap(self, x: Tensor) -> Tensor:
        return self.factor * self.inner.quadrature_gap(x)

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        return self.inner.jacobian(x).scale(self.factor)


@savable
class Pullback(GradientMap):
    """f(x) = A^T g(A x + b), the gradient of G(A x + b); monotone if g is.

    This is the way to change coordinates (also to standardise data) that keeps the Jacobian symmetric.

    Args:
        inner: g, with d features.
        matrix: A of shape (d, n), or (d,) for a diagonal matrix. Kept as a buffer, not trained.
        offset: b of shape (d,); zero if None.

    >>> from nablanets import GradNetM
    >>> GradNetM(3, 8).pullback(torch.ones(3, 2)).features
    2
    """

    matrix: Tensor
    offset: Tensor

    def __init__(self, inner: GradientMap, matrix: Tensor, offset: Tensor | None = None) -> None:
        if matrix.ndim not in (1, 2) or matrix.shape[0] != inner.features:
            raise ShapeError(
                f"Pullback: expected a matrix of shape ({inner.features}, n) or a diagonal ({inner.features},), got "
                f"{tuple(matrix.shape)}."
            )
        if offset is not None and offset.shape != (inner.features,):
            raise ShapeError(f"Pullback: expected an offset of shape ({inner.features},), got {tuple(offset.shape)}.")
        super().__init__(matrix.shape[-1], monotone=inner.monotone)
        self.inner = inner
        self.register_buffer("matrix", matrix.detach().clone())
        self.register_buffer("offset", matrix.new_zeros(inner.features) if offset is None else offset.detach().clone())

    def config(self) -> dict[str, Any]:
        return {"inner": self.inner, "matrix": self.matrix, "offset": self.offset}

    def _map(self, x: Tensor) -> Tensor:
        return (x * self.matrix if self.matrix.ndim == 1 else x @ self.matrix.mT) + self.offset

    def _forward(self, x: Tensor) -> Tensor:
        inner = self.inner(self._map(x))
        return inner * self.matrix if self.matrix.ndim == 1 else inner @ self.matrix

    def _potential(self, x: Tensor) -> Tensor:
        return self.inner.potential(self._map(x))

    def quadrature_gap(self, x: Tensor) -> Tensor:
        return self.inner.quadrature_gap(self._map(x))

    def _jacobian(self, x: Tensor) -> SymmetricOperator:
        return self.inner.jacobian(self._map(x)).congruence(self.matrix)
